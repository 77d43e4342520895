"""ReBRAC: TD3+BC with larger networks and a second penalty, in the critics' target.

ReBRAC trains a policy π_θ and critics Q_j on a fixed dataset D of (s, a, r, s', a') and stays near the data in both:

    L(θ) = E_D[ −λ min_j Q_j(s, π_θ(s)) + β_1 ‖π_θ(s) − a‖² ],    λ = 1 / E_D|min_j Q_j(s, π_θ(s))|
    y = r + γ (1 − d) [ min_j Q'_j(s', ã') − β_2 ‖ã' − a'‖² ],    ã' = π'(s') + ε

The constants β_1 and β_2 weigh "stay near the data" against "maximise Q". With --tuned they and a few other settings
are those of the official code for the task, as in the published results.

Paper: Revisiting the Minimalist Approach to Offline Reinforcement Learning, NeurIPS 2023, arXiv:2305.09836.
Method, metrics and differences from the official code: docs/rebrac.md.

    python baselines/rebrac.py --env-id halfcheetah-medium-v2 --tuned
"""

import sys
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._pytree import tree_map

import d4rl_gymnasium as d4rl
from offline_run import Run, RunArgs, evaluate_saved, launch, tuned

# TD3's constants, the same on every task
TAU = 0.005  # Polyak rate of the target networks
POLICY_NOISE, NOISE_CLIP = 0.2, 0.5  # target policy smoothing, in units of the action's half range
POLICY_FREQ = 2  # critic updates for each policy update
Metrics = dict[str, Tensor]  # tag -> a number of one learner, or (K,) of all


@dataclass
class Args(RunArgs):
    env_id: tuple[str, ...] = ("halfcheetah-medium-v2",)
    """tasks of D4RL or OGBench (`python -m d4rl_gymnasium list`), or one of gymnasium with --dataset-path"""
    seed: int = 0
    """the first seed: it fixes initial weights, batches, noise and evaluation episodes"""
    num_seeds: int = 1
    """seeds of each task: seed, seed+1, ... All tasks and seeds train side by side, for one leaves a GPU almost idle"""
    total_steps: int = 1_000_000
    """gradient steps (critic updates), rounded up to whole periods of 20"""
    batch_size: int = 256
    """transitions in a batch"""
    actor_bc_coef: float = 0.01
    """β_1: weight of staying near the data in the policy's loss"""
    critic_bc_coef: float = 0.01
    """β_2: weight of staying near the data in the critics' target"""
    actor_lr: float = 3e-4
    """the policy's learning rate"""
    critic_lr: float = 3e-4
    """the critics' learning rate"""
    discount: float = 0.99
    """γ"""
    reward_scale: float = 1.0
    """what the dataset's rewards are multiplied by"""
    tuned: bool = False
    """these six and the batch size as the official code sets them for the task"""

    def check(self) -> None:
        if min(self.actor_bc_coef, self.critic_bc_coef) < 0:
            sys.exit("--actor-bc-coef and --critic-bc-coef must be at least 0.")
        if min(self.actor_lr, self.critic_lr, self.reward_scale) <= 0 or not 0 < self.discount < 1:
            sys.exit("--actor-lr, --critic-lr and --reward-scale must be positive, and --discount between 0 and 1.")


# --- The official code's settings for each of D4RL's tasks ------------------------------------------------------------

OFFICIAL = {"batch_size": 256, "actor_lr": 3e-4, "critic_lr": 3e-4, "discount": 0.99, "reward_scale": 1.0}
LOCOMOTION = {"batch_size": 1024, "actor_lr": 1e-3, "critic_lr": 1e-3}
ANTMAZE = {"critic_lr": 5e-5, "discount": 0.999, "reward_scale": 100.0}
PENALTIES = {  # β_1, β_2
    "halfcheetah-random-v2": (0.001, 0.1),
    "halfcheetah-medium-v2": (0.001, 0.01),
    "halfcheetah-expert-v2": (0.01, 0.01),
    "halfcheetah-medium-expert-v2": (0.01, 0.1),
    "halfcheetah-medium-replay-v2": (0.01, 0.001),
    "halfcheetah-full-replay-v2": (0.001, 0.1),
    "hopper-random-v2": (0.001, 0.01),
    "hopper-medium-v2": (0.01, 0.01),
    "hopper-expert-v2": (0.1, 0.1),
    "hopper-medium-expert-v2": (0.1, 0.01),
    "hopper-medium-replay-v2": (0.05, 0.5),
    "hopper-full-replay-v2": (0.01, 0.01),
    "walker2d-random-v2": (0.01, 0.0),
    "walker2d-medium-v2": (0.05, 0.1),
    "walker2d-expert-v2": (0.01, 0.5),
    "walker2d-medium-expert-v2": (0.01, 0.01),
    "walker2d-medium-replay-v2": (0.05, 0.01),
    "walker2d-full-replay-v2": (0.01, 0.01),
    "maze2d-umaze-v1": (0.003, 0.001),
    "maze2d-medium-v1": (0.003, 0.001),
    "maze2d-large-v1": (0.003, 0.001),
    "antmaze-umaze-v2": (0.003, 0.002),
    "antmaze-umaze-diverse-v2": (0.003, 0.001),
    "antmaze-medium-play-v2": (0.001, 0.0005),
    "antmaze-medium-diverse-v2": (0.001, 0.0),
    "antmaze-large-play-v2": (0.002, 0.001),
    "antmaze-large-diverse-v2": (0.002, 0.002),
    "pen-human-v1": (0.1, 0.5),
    "pen-cloned-v1": (0.05, 0.5),
    "pen-expert-v1": (0.01, 0.01),
    "door-human-v1": (0.1, 0.1),
    "door-cloned-v1": (0.01, 0.1),
    "door-expert-v1": (0.05, 0.01),
    "hammer-human-v1": (0.01, 0.5),
    "hammer-cloned-v1": (0.1, 0.5),
    "hammer-expert-v1": (0.01, 0.01),
    "relocate-human-v1": (0.1, 0.01),
    "relocate-cloned-v1": (0.1, 0.01),
    "relocate-expert-v1": (0.05, 0.01),
}
FAMILIES = {"halfcheetah": LOCOMOTION, "hopper": LOCOMOTION, "walker2d": LOCOMOTION, "antmaze": ANTMAZE}
TUNED = {
    task: {"actor_bc_coef": beta_1, "critic_bc_coef": beta_2} | OFFICIAL | FAMILIES.get(task.split("-")[0], {})
    for task, (beta_1, beta_2) in PENALTIES.items()
}


# --- Networks: written for one learner --------------------------------------------------------------------------------


def initialize(net: nn.Sequential, bound: float) -> None:
    """The official code's initialisation; bound: of the last layer's weights and biases."""
    *hidden, last = (layer for layer in net if isinstance(layer, nn.Linear))
    for layer in hidden:
        nn.init.uniform_(layer.weight, -(layer.in_features**-0.5), layer.in_features**-0.5)
        nn.init.constant_(layer.bias, 0.1)
    nn.init.uniform_(last.weight, -bound, bound)
    nn.init.uniform_(last.bias, -bound, bound)


class Actor(nn.Module):
    """Deterministic policy π: states (..., S) -> actions (..., A) within the action space's bounds."""

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.net = nn.Sequential(
            nn.Linear(state_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, len(low)),
        )  # fmt: skip
        initialize(self.net, 1e-3)

    def forward(self, s: Tensor) -> Tensor:
        return self.action_bias + self.action_scale * self.net(s).tanh()


class Critic(nn.Module):
    """One Q function: states (..., S), actions (..., A) -> values (...)."""

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()
        sizes = [state_dim + action_dim] + [256] * 3
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.LayerNorm(fan_out, eps=1e-6)]  # the ε of flax
        self.net = nn.Sequential(*layers, nn.Linear(256, 1))
        initialize(self.net, 3e-3)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)


class Policy(nn.Module):
    """What acts and what a run saves: an actor, which takes states as they are."""

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.actor = Actor(state_dim, low, high)

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (E, S) -> actions (E, A). It draws nothing from the generator."""
        return self.actor(observations)


def load_policy(saved: dict[str, Tensor]) -> Policy:
    """The policy of a run's actor.pt."""
    scale, bias = saved["actor.action_scale"], saved["actor.action_bias"]
    policy = Policy(saved["actor.net.0.weight"].shape[1], bias - scale, bias + scale)
    policy.load_state_dict(saved)
    return policy


# --- A network is a vector: the tools of all learners -----------------------------------------------------------------


class Function:
    """A module as a function of its parameters: Function(actor)(theta, s) with theta (n,)."""

    def __init__(self, module: nn.Module):
        self.module, self.shapes = module, {name: p.shape for name, p in module.named_parameters()}

    def __call__(self, theta: Tensor, *inputs: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return functional_call(self.module, named, inputs, tie_weights=False)  # none are tied, and looking is slow


class Adam:
    """Adam for the vectors of all learners, (K, n): in place and on the device, so that a CUDA graph can replay it."""

    def __init__(self, theta: Tensor):
        self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        # float32 is too coarse for 1 − 0.999^t; a power would, compiled, be taken anew for every element
        zero = torch.zeros((), dtype=torch.float64, device=theta.device)
        self.t, self.beta1_t, self.beta2_t = zero, zero + 1, zero + 1  # t, 0.9^t, 0.999^t

    def step(self, theta: Tensor, g: Tensor, learning_rate: float) -> None:
        self.t += 1
        self.beta1_t *= 0.9
        self.beta2_t *= 0.999
        self.m.lerp_(g, 0.1)
        self.v.mul_(0.999).addcmul_(g, g, value=0.001)
        root = (self.v / (1 - self.beta2_t)).sqrt_().add_(1e-8)
        theta -= (self.m / root).mul_(learning_rate / (1 - self.beta1_t))


class ReplayBuffer:
    """The datasets as one table on the device. Each learner draws from the rows of its own task."""

    def __init__(self, data: list[dict[str, np.ndarray]], num_seeds: int, steps: int, batch_size: int, device: str):
        """data: D4RL's transitions of each task, with next actions; steps: batches that are drawn at once."""
        dtype, tables, first = torch.get_default_dtype(), [], 0
        self.ranges = []  # of each learner, task by task
        for transitions in data:
            s, a, next_s, next_a, r, d = (
                torch.as_tensor(transitions[key], dtype=dtype).reshape(len(transitions["rewards"]), -1)
                for key in ("observations", "actions", "next_observations", "next_actions", "rewards", "terminals")
            )
            tables.append(torch.cat([s, a, next_s, next_a, r, d], 1))
            self.ranges += num_seeds * [(first, first + len(r))]
            first += len(r)
        self.table, self.widths = torch.cat(tables).to(device), [x.shape[1] for x in (s, a, next_s, next_a, r, d)]
        self.indices = torch.zeros(len(self.ranges), steps, batch_size, dtype=torch.int64, device=device)

    def draw(self, generators: list[torch.Generator]) -> None:
        """Choose the rows of the next batches, each learner's by its own generator."""
        for indices, (first, end), generator in zip(self.indices, self.ranges, generators, strict=True):
            indices.random_(first, end, generator=generator)

    def batches(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s (K, steps, B, S), a (K, steps, B, A), s', a', r (K, steps, B), d."""
        s, a, next_s, next_a, r, d = self.table[self.indices].split(self.widths, -1)
        return s, a, next_s, next_a, r.squeeze(-1), d.squeeze(-1)


# --- The agent: losses of one learner, updates of all -----------------------------------------------------------------


class Agent:
    """K learners, tasks x seeds, side by side: a network of theirs is a matrix (K, n), its rows independent."""

    compiled = ("update",)  # what torch.compile takes whole
    period_steps = 20  # gradient steps in one unit of work, a multiple of POLICY_FREQ

    def __init__(self, args: Args, data: list[dict[str, np.ndarray]], low: np.ndarray, high: np.ndarray, device: str):
        """data: D4RL's transitions of each task, with next actions; low, high: (A,) bounds of the actions."""
        self.args, self.device, dtype = args, torch.device(device), torch.get_default_dtype()
        self.buffer = ReplayBuffer(data, args.num_seeds, self.period_steps, args.batch_size, device)
        self.low, self.high = (torch.as_tensor(bound, dtype=dtype, device=device) for bound in (low, high))
        state_dim, action_dim = self.buffer.widths[:2]
        seeds = [args.seed + k for k in range(args.num_seeds)] * len(data)
        theta, phi = [], []
        for seed in seeds:
            torch.manual_seed(seed)
            actor = Actor(state_dim, self.low, self.high)
            twins = [Critic(state_dim, action_dim) for _ in range(2)]
            theta.append(parameters_to_vector(actor.parameters()))
            phi.append(torch.stack([parameters_to_vector(critic.parameters()) for critic in twins]))
        self.theta, self.phi = torch.stack(theta).detach().to(device), torch.stack(phi).detach().to(device)
        self.target_theta, self.target_phi = self.theta.clone(), self.phi.clone()  # (K, n) and (K, 2, m)
        self.actor_adam, self.critic_adam = Adam(self.theta), Adam(self.phi)
        self.pi, self.q = Function(actor.to(device)), Function(twins[0].to(device))

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.noise = torch.zeros(*self.buffer.indices.shape, action_dim, dtype=dtype, device=device)
        self.metrics: Metrics = {}  # tag -> (K,), as of the last period

    def all(self, function):
        """A function of one learner for all K: the first axis of what it takes and gives counts the learners."""
        if len(self.theta) > 1:
            return vmap(function)
        return lambda *inputs: tree_map(lambda x: x[None], function(*tree_map(lambda x: x[0], inputs)))  # quicker

    def gradient(self, loss, theta: Tensor, *inputs) -> tuple:
        """Of a loss of one learner, for all K: its gradient in theta, (K, n), and what it gives beside (metrics)."""
        if torch.compiler.is_compiling():  # it can trace torch.func alone; without it that is slower
            return self.all(grad(loss, has_aux=True))(theta, *inputs)
        theta = theta.detach().requires_grad_()
        losses, metrics = self.all(loss)(theta, *inputs)
        (g,) = torch.autograd.grad(losses.sum(), theta)  # the rows of theta are independent
        return g, tree_map(Tensor.detach, metrics)

    # --- Losses of one learner ---

    def twins(self, phi: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """Both Q_j(s, a): (2, m), (B, S), (B, A) -> (2, B)."""
        if self.device.type == "cpu":  # where two products are faster than a batched one
            return torch.stack([self.q(phi[0], s, a), self.q(phi[1], s, a)])
        return vmap(lambda critic: self.q(critic, s, a))(phi)

    def target(
        self, theta: Tensor, phi: Tensor, next_s: Tensor, next_a: Tensor, r: Tensor, d: Tensor, noise: Tensor
    ) -> Tensor:
        """y = r + γ (1 − d) [min_j Q'_j(s', ã') − β_2 ‖ã' − a'‖²],  ã' = π'(s') + ε."""
        epsilon = (POLICY_NOISE * noise).clamp(-NOISE_CLIP, NOISE_CLIP) * self.pi.module.action_scale
        next_pi = (self.pi(theta, next_s) + epsilon).clamp(self.low, self.high)  # ã'
        penalty = self.args.critic_bc_coef * (next_pi - next_a).square().sum(-1)
        next_q = self.twins(phi, next_s, next_pi).amin(0) - penalty
        return self.args.reward_scale * r + self.args.discount * (1 - d) * next_q

    def critic_loss(self, phi: Tensor, s: Tensor, a: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Sum over the twins of mean (Q_j(s, a) − y)²."""
        loss = (self.twins(phi, s, a) - y).square().mean(1).sum()
        return loss, {"losses/critic": loss}

    def actor_loss(self, theta: Tensor, phi: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Metrics]:
        """−λ mean min_j Q_j(s, π(s)) + β_1 mean ‖π(s) − a‖²,  λ = 1 / mean |min_j Q_j(s, π(s))| without gradient."""
        pi = self.pi(theta, s)
        q, bc = self.twins(phi, s, pi).amin(0), (pi - a).square().sum(-1).mean()
        loss = -1 / q.abs().mean().detach() * q.mean() + self.args.actor_bc_coef * bc
        return loss, {"losses/actor": loss, "losses/q": q.mean()}

    # --- Updates of all learners ---

    def critic_step(self, s, a, next_s, next_a, r, d, noise) -> Metrics:
        y = self.all(self.target)(self.target_theta, self.target_phi, next_s, next_a, r, d, noise)
        g, metrics = self.gradient(self.critic_loss, self.phi, s, a, y)
        self.critic_adam.step(self.phi, g, self.args.critic_lr)
        return metrics

    def update(self, s, a, next_s, next_a, r, d, noise) -> Metrics:
        """Two gradient steps, from batches (K, 2, B, ...): critics twice, policy and targets once, after the first."""
        first, second = zip(*(x.unbind(1) for x in (s, a, next_s, next_a, r, d, noise)), strict=True)
        self.critic_step(*first)
        g, metrics = self.gradient(self.actor_loss, self.theta, self.phi, s[:, 0], a[:, 0])
        self.target_theta.lerp_(self.theta, TAU)  # before the policy's step, as in the official code
        self.actor_adam.step(self.theta, g, self.args.actor_lr)
        self.target_phi.lerp_(self.phi, TAU)
        return self.critic_step(*second) | metrics

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        for pair in zip(*(x.split(POLICY_FREQ, 1) for x in (*self.buffer.batches(), self.noise)), strict=True):
            self.metrics = self.update(*pair)

    # --- What a run needs ---

    def advance(self) -> None:
        """Draw one period's batches and noise, each learner's from its own generator, and run it."""
        self.buffer.draw(self.generators)
        for noise, generator in zip(self.noise, self.generators, strict=True):
            noise.normal_(generator=generator)
        self.period()

    def policy(self, k: int) -> Policy:
        """The k-th learner's, on the CPU and detached from training."""
        policy = Policy(self.buffer.widths[0], self.low.cpu(), self.high.cpu())
        vector_to_parameters(self.theta[k].cpu(), policy.actor.parameters())
        return deepcopy(policy)  # its parameters are views of one vector, which a file would hold whole

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        state = {"actor": self.theta, "target_actor": self.target_theta}
        state |= {"critics": self.phi, "target_critics": self.target_phi}
        for name, adam in {"actor": self.actor_adam, "critics": self.critic_adam}.items():
            state |= {f"{name}.adam.{key}": tensor for key, tensor in vars(adam).items()}
        return state


# --- Main -------------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    if args.eval:
        return evaluate_saved(args, __file__, load_policy, d4rl.percent_score)
    run = Run(tuned(args, TUNED), __file__)  # a new run, or with --resume one that stopped
    tasks = d4rl.load_tasks(run.args.env_id, run.args.dataset_path, run.args.stand_in, next_actions=True)
    agent = Agent(run.args, tasks.transitions, tasks.low, tasks.high, run.device)
    run.start(agent, tasks, d4rl.percent_score)
    while run.goes_on():
        agent.advance()  # one period of gradient steps
        run.advanced()  # metrics, evaluation and checkpoint where they are due
    run.finish()  # the final evaluation


if __name__ == "__main__":
    launch(main, Args, __doc__, d4rl.DatasetError)
