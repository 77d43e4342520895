"""IQL: offline RL by weighted imitation, the baseline on which ASPC builds.

IQL (Implicit Q-Learning) learns Q and V of a policy better than the data's from the data's actions alone, V being an
expectile of Q, and then imitates those actions, the better ones with more weight:

    L(θ) = E_D[ min(exp(β A(s, a)), 100) · (−log π_θ(a|s)) ],    A(s, a) = min_j Q'_j(s, a) − V(s)

The constant β weighs "maximise Q" (large) against "stay near the data" (0 is behaviour cloning). With --tuned it and a
few other settings are those that CORL found for the task.

Paper: Offline Reinforcement Learning with Implicit Q-Learning, ICLR 2022, arXiv:2110.06169.
Method, metrics and differences from the official code: docs/iql.md.

    python baselines/iql.py --env-id halfcheetah-medium-v2
"""

import math
import sys
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._pytree import tree_map

import d4rl_gymnasium as d4rl
from offline_run import Run, RunArgs, evaluate_saved, launch, tuned

# IQL's constants, the same on every task
DISCOUNT = 0.99
WEIGHT_MAX = 100.0  # of an action in the policy's loss
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
LEARNING_RATE = 3e-4  # the policy's falls to 0 along a cosine
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
    """gradient steps (of V, critics and policy alike), rounded up to whole periods of 10"""
    batch_size: int = 256
    """transitions in a batch"""
    expectile: float = 0.7
    """which expectile of Q is V: 0.5 the mean over the data's actions, towards 1 their maximum"""
    deterministic: bool = False
    """imitate by squared error instead of the likelihood of a Gaussian"""
    actor_dropout: float = 0.0
    """probability that training drops a hidden unit of the policy"""
    beta: float = 3.0
    """inverse temperature: weight of Q against staying near the data"""
    tau: float = 0.005
    """Polyak rate of the target critics"""
    rewards: Literal["raw", "minus-one", "return-range"] = "raw"
    """the dataset's rewards as they are, less 1, or times 1000 / (largest - smallest return of an episode)"""
    tuned: bool = False
    """expectile, deterministic, actor-dropout, beta, tau and rewards as CORL sets them for the task"""

    def check(self) -> None:
        if not (0 < self.expectile < 1 and 0 <= self.actor_dropout < 1):
            sys.exit("--expectile must be between 0 and 1, and --actor-dropout at least 0 and below 1.")
        if self.beta < 0 or not 0 < self.tau <= 1:
            sys.exit("--beta must be at least 0, and --tau above 0 and at most 1.")


# --- CORL's settings for each of D4RL's tasks -------------------------------------------------------------------------

CORL = {"beta": 3.0, "expectile": 0.7, "deterministic": False, "actor_dropout": 0.0, "tau": 0.005, "rewards": "raw"}
HANDS = ("pen", "door", "hammer", "relocate")
CHANGES = {  # what differs from CORL's defaults
    **{task: {} for task in d4rl.TASKS},
    "hopper-medium-v2": {"deterministic": True, "tau": 0.001, "rewards": "return-range"},
    "hopper-medium-replay-v2": {"deterministic": True, "tau": 0.001, "rewards": "return-range"},
    "hopper-medium-expert-v2": {"beta": 6.0, "expectile": 0.5},
    **{task: {"beta": 10.0, "expectile": 0.9, "rewards": "minus-one"} for task in d4rl.TASKS if "antmaze" in task},
    **{task: {"expectile": 0.8, "actor_dropout": 0.1} for task in d4rl.TASKS if task.startswith(HANDS)},
}
TUNED = {task: CORL | changes for task, changes in CHANGES.items()}


def changed_rewards(rewards: np.ndarray, terminals: np.ndarray, change: str) -> np.ndarray:
    """A task's rewards (N,) as training sees them."""
    if change == "return-range":
        return rewards * (1000 / d4rl.return_range(rewards, terminals))
    return rewards - 1 if change == "minus-one" else rewards


# --- Networks: written for one learner --------------------------------------------------------------------------------


class Actor(nn.Module):
    """Gaussian policy π: normalised states (..., S) -> its mean (..., A), within the action space's bounds, and its
    standard deviation (A,), which is the same in all states.
    """

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.log_std = nn.Parameter(torch.zeros(len(low)))  # in units of the action's half range
        self.net = nn.Sequential(
            nn.Linear(state_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, len(low))
        )

    def forward(self, s: Tensor, masks: tuple = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
        """masks: what dropout multiplies the two hidden layers by."""
        first, _, second, _, last = self.net
        x = first(s).relu() * masks[0]
        x = second(x).relu() * masks[1]
        std = self.action_scale * self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
        return self.action_bias + self.action_scale * last(x).tanh(), std


class Critic(nn.Module):
    """One Q function: normalised states (..., S), actions (..., A) -> values (...)."""

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(state_dim + action_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)


class Value(nn.Module):
    """V: normalised states (..., S) -> values (...)."""

    def __init__(self, state_dim: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(state_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, s: Tensor) -> Tensor:
        return self.net(s).squeeze(-1)


class Policy(nn.Module):
    """What acts and what a run saves: an actor with the normalisation of the states that it was trained on."""

    def __init__(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.actor = Actor(len(mean), low, high)

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (E, S) -> actions (E, A), the means. It draws nothing from the generator."""
        mean, _ = self.actor((observations - self.mean) / self.std)
        return mean


def load_policy(saved: dict[str, Tensor]) -> Policy:
    """The policy of a run's actor.pt."""
    scale, bias = saved["actor.action_scale"], saved["actor.action_bias"]
    policy = Policy(saved["mean"], saved["std"], bias - scale, bias + scale)
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

    def step(self, theta: Tensor, g: Tensor, learning_rate: float | Tensor = LEARNING_RATE) -> None:
        self.t += 1
        self.beta1_t *= 0.9
        self.beta2_t *= 0.999
        self.m.lerp_(g, 0.1)
        self.v.mul_(0.999).addcmul_(g, g, value=0.001)
        root = (self.v / (1 - self.beta2_t)).sqrt_().add_(1e-8)
        theta -= (self.m / root).mul_(learning_rate / (1 - self.beta1_t))


class ReplayBuffer:
    """The datasets as one table on the device, states normalised. Each learner draws from the rows of its own task."""

    def __init__(self, data: list[dict[str, np.ndarray]], num_seeds: int, steps: int, batch_size: int, device: str):
        """data: D4RL's transitions of each task; steps: batches that are drawn at once."""
        dtype, tables, first = torch.get_default_dtype(), [], 0
        self.mean, self.std, self.ranges = [], [], []  # of each learner, task by task
        for transitions in data:
            s, a, next_s, r, d = (
                torch.as_tensor(transitions[key], dtype=dtype).reshape(len(transitions["rewards"]), -1)
                for key in ("observations", "actions", "next_observations", "rewards", "terminals")
            )
            mean, std = s.double().mean(0).to(dtype), (s.double().std(0, correction=0) + 1e-3).to(dtype)
            tables.append(torch.cat([(s - mean) / std, a, (next_s - mean) / std, r, d], 1))
            self.mean += num_seeds * [mean]
            self.std += num_seeds * [std]
            self.ranges += num_seeds * [(first, first + len(r))]
            first += len(r)
        self.table, self.widths = torch.cat(tables).to(device), [x.shape[1] for x in (s, a, next_s, r, d)]
        self.indices = torch.zeros(len(self.ranges), steps, batch_size, dtype=torch.int64, device=device)

    def draw(self, generators: list[torch.Generator]) -> None:
        """Choose the rows of the next batches, each learner's by its own generator."""
        for indices, (first, end), generator in zip(self.indices, self.ranges, generators, strict=True):
            indices.random_(first, end, generator=generator)

    def batches(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s (K, steps, B, S), a (K, steps, B, A), s', r (K, steps, B), d."""
        s, a, next_s, r, d = self.table[self.indices].split(self.widths, -1)
        return s, a, next_s, r.squeeze(-1), d.squeeze(-1)


# --- The agent: losses of one learner, updates of all -----------------------------------------------------------------


class Agent:
    """K learners, tasks x seeds, side by side: a network of theirs is a matrix (K, n), its rows independent."""

    compiled = ("update",)  # what torch.compile takes whole
    period_steps = 10  # gradient steps in one unit of work

    def __init__(self, args: Args, data: list[dict[str, np.ndarray]], low: np.ndarray, high: np.ndarray, device: str):
        """data: D4RL's transitions of each task; low, high: (A,) bounds of the actions."""
        self.args, self.device, dtype = args, torch.device(device), torch.get_default_dtype()
        self.buffer = ReplayBuffer(data, args.num_seeds, self.period_steps, args.batch_size, device)
        self.low, self.high = (torch.as_tensor(bound, dtype=dtype, device=device) for bound in (low, high))
        state_dim, action_dim = self.buffer.widths[:2]
        seeds = [args.seed + k for k in range(args.num_seeds)] * len(data)
        theta, phi, psi = [], [], []  # of the policies, the critics and V
        for seed in seeds:
            torch.manual_seed(seed)
            actor = Actor(state_dim, self.low, self.high)
            twins = [Critic(state_dim, action_dim) for _ in range(2)]
            value = Value(state_dim)
            theta.append(parameters_to_vector(actor.parameters()))
            phi.append(torch.stack([parameters_to_vector(critic.parameters()) for critic in twins]))
            psi.append(parameters_to_vector(value.parameters()))
        self.theta, self.phi = torch.stack(theta).detach().to(device), torch.stack(phi).detach().to(device)
        self.psi, self.target_phi = torch.stack(psi).detach().to(device), self.phi.clone()  # (K, l) and (K, 2, m)
        self.actor_adam, self.critic_adam, self.value_adam = Adam(self.theta), Adam(self.phi), Adam(self.psi)
        self.pi, self.q, self.v = (Function(net.to(device)) for net in (actor, twins[0], value))

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        # Uniform numbers that decide what dropout drops; without dropout one a layer, which drops nothing
        units = 256 if args.actor_dropout else 1
        self.noise = torch.zeros(*self.buffer.indices.shape, 2, units, dtype=dtype, device=device)
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

    def value_loss(self, psi: Tensor, phi: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        """Expectile regression: mean |τ − 1{A < 0}| A²,  A = min_j Q'_j(s, a) − V(s),  τ the expectile."""
        v = self.v(psi, s)
        advantage = self.twins(phi, s, a).amin(0) - v
        weight = torch.where(advantage < 0, 1 - self.args.expectile, self.args.expectile)
        loss = (weight * advantage.square()).mean()
        return loss, (advantage, {"losses/value": loss, "losses/v": v.mean()})

    def target(self, psi: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> Tensor:
        """y = r + γ (1 − d) V(s')."""
        return r + DISCOUNT * (1 - d) * self.v(psi, next_s)

    def critic_loss(self, phi: Tensor, s: Tensor, a: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Mean over the twins of mean (Q_j(s, a) − y)²."""
        loss = (self.twins(phi, s, a) - y).square().mean()
        return loss, {"losses/critic": loss}

    def imitation_loss(self, theta: Tensor, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """−log π(a|s), or ‖π(s) − a‖² of a deterministic policy: (B,)."""
        masks = (noise >= self.args.actor_dropout) / (1 - self.args.actor_dropout)  # (B, 2, units)
        pi, std = self.pi(theta, s, masks.unbind(-2))
        if self.args.deterministic:
            return (pi - a).square().sum(-1)
        return (((a - pi) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(-1)

    def actor_loss(
        self, theta: Tensor, weight: Tensor, s: Tensor, a: Tensor, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Mean w (−log π(a|s)), w being the weights (B,) of actions."""
        loss = (weight * self.imitation_loss(theta, s, a, noise)).mean()
        return loss, {"losses/actor": loss, "losses/weight": weight.mean()}

    # --- Updates of all learners ---

    def actor_rates(self) -> Tensor:
        """The policy's learning rate at each step of the period, along a cosine to 0 over the run: (steps,).

        Not within the update, where, compiled, the cosine would be taken anew for every parameter.
        """
        t = self.actor_adam.t + torch.arange(self.period_steps, dtype=torch.float64, device=self.device)
        return LEARNING_RATE * (1 + (math.pi * t / self.args.total_steps).cos()) / 2

    def update(self, s, a, next_s, r, d, noise, actor_rate) -> Metrics:
        """One gradient step, from batches (K, B, ...). As in CORL's code A and y are those of V and Q' before it."""
        value_g, (advantage, metrics) = self.gradient(self.value_loss, self.psi, self.target_phi, s, a)
        y = self.all(self.target)(self.psi, next_s, r, d)
        critic_g, critic_metrics = self.gradient(self.critic_loss, self.phi, s, a, y)
        self.value_adam.step(self.psi, value_g)
        self.critic_adam.step(self.phi, critic_g)
        self.target_phi.lerp_(self.phi, self.args.tau)
        weight = (self.args.beta * advantage).exp().clamp(max=WEIGHT_MAX)  # w: (K, B)
        g, actor_metrics = self.gradient(self.actor_loss, self.theta, weight, s, a, noise)
        metrics |= critic_metrics | actor_metrics
        self.actor_adam.step(self.theta, g, actor_rate)
        return metrics

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        inputs = (x.unbind(1) for x in (*self.buffer.batches(), self.noise))
        for step in zip(*inputs, self.actor_rates(), strict=True):
            self.metrics = self.update(*step)

    # --- What a run needs ---

    def advance(self) -> None:
        """Draw one period's batches and noise, each learner's from its own generator, and run it."""
        self.buffer.draw(self.generators)
        for noise, generator in zip(self.noise, self.generators, strict=True):
            noise.uniform_(generator=generator)
        self.period()

    def policy(self, k: int) -> Policy:
        """The k-th learner's, on the CPU and detached from training."""
        policy = Policy(self.buffer.mean[k], self.buffer.std[k], self.low.cpu(), self.high.cpu())
        vector_to_parameters(self.theta[k].cpu(), policy.actor.parameters())
        return deepcopy(policy)  # its parameters are views of one vector, which a file would hold whole

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        state = {
            "actor": self.theta, "critics": self.phi, "target_critics": self.target_phi, "value": self.psi,
        }
        adams = {"actor": self.actor_adam, "critics": self.critic_adam, "value": self.value_adam}
        for name, adam in adams.items():
            state |= {f"{name}.adam.{key}": tensor for key, tensor in vars(adam).items()}
        return state


# --- Main -------------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    if args.eval:
        return evaluate_saved(args, __file__, load_policy, d4rl.percent_score)
    run = Run(tuned(args, TUNED), __file__)  # a new run, or with --resume one that stopped
    tasks = d4rl.load_tasks(run.args.env_id, run.args.dataset_path, run.args.stand_in)
    for data in tasks.transitions:
        data["rewards"] = changed_rewards(data["rewards"], data["terminals"], run.args.rewards)
    agent = Agent(run.args, tasks.transitions, tasks.low, tasks.high, run.device)
    run.start(agent, tasks, d4rl.percent_score)
    while run.goes_on():
        agent.advance()  # one period of gradient steps
        run.advanced()  # metrics, evaluation and checkpoint where they are due
    run.finish()  # the final evaluation


if __name__ == "__main__":
    launch(main, Args, __doc__, d4rl.DatasetError)
