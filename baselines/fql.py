"""FQL: Q-learning with a one-step policy distilled from a flow of actions, a baseline on which ASPC builds.

A teacher v_ψ learns to carry noise along a flow to the actions of a fixed dataset D of (s, a); the student μ_θ is the
policy and makes an action of noise z in one step. It is trained with the loss

    L(θ) = α L_distill(θ) − E[ Q(s, μ_θ(s, z)) ]
    L_distill(θ) = E ‖μ_θ(s, z) − â(s, z)‖²,    â(s, z): where the teacher's flow carries z

and a constant α that weighs "do as the teacher does" against "maximise Q". With --tuned it and a few other settings
are those that the official code has for the task.

Paper: Flow Q-Learning, ICML 2025, arXiv:2502.02538.
Method, metrics and differences from the official code: docs/fql.md.

    python baselines/fql.py --env-id maze2d-umaze-v1
"""

import sys
from collections.abc import Callable
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

# FQL's constants, the same on every task
TAU = 0.005  # Polyak rate of the target critics
LEARNING_RATE = 3e-4
FLOW_STEPS = 10  # of Euler's method along the teacher's flow
Metrics = dict[str, Tensor]  # tag -> a number of one learner, or (K,) of all


@dataclass
class Args(RunArgs):
    env_id: tuple[str, ...] = ("maze2d-umaze-v1",)
    """tasks of D4RL or OGBench (`python -m d4rl_gymnasium list`), or one of gymnasium with --dataset-path"""
    seed: int = 0
    """the first seed: it fixes initial weights, batches, noise and evaluation episodes"""
    num_seeds: int = 1
    """seeds of each task: seed, seed+1, ... All tasks and seeds train side by side, for one leaves a GPU almost idle"""
    total_steps: int = 1_000_000
    """gradient steps (of critics, teacher and student alike), rounded up to whole periods of 10"""
    batch_size: int = 256
    """transitions in a batch"""
    discount: float = 0.99
    """γ"""
    q_agg: Literal["mean", "min"] = "mean"
    """bootstrap from the mean or from the smaller of both target critics"""
    reward_shift: float = 0.0
    """added to every reward"""
    tuned: bool = False
    """discount, q-agg, reward-shift and alpha as FQL's official code sets them for the task"""
    alpha: float = 10.0
    """weight of L_distill; the right one grows with the size of Q, unless that is normalised"""
    normalize_q_loss: bool = False
    """divide Q by its mean size, as ASPC does: then 1/alpha is ASPC's α"""

    def check(self) -> None:
        if not 0 < self.discount < 1:
            sys.exit("--discount must lie between 0 and 1.")
        if self.alpha < 0:
            sys.exit("--alpha must be at least 0.")


# --- The official code's settings for each task -----------------------------------------------------------------------

OFFICIAL = {"discount": 0.99, "q_agg": "mean", "reward_shift": 0.0}
CHANGES = {  # what differs from that
    f"antmaze-{maze}-v2": {"reward_shift": -1.0}
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
}
CHANGES |= {
    f"{task}-{data}-v1": {"q_agg": "min"}
    for task in ("pen", "door", "hammer", "relocate")
    for data in ("human", "cloned", "expert")
}
CHANGES |= {f"antmaze-large-navigate-singletask-task{n}-v0": {"q_agg": "min"} for n in range(1, 6)}
CHANGES |= {f"antmaze-giant-navigate-singletask-task{n}-v0": {"q_agg": "min", "discount": 0.995} for n in range(1, 6)}
ALPHAS = {  # where it is not 10
    "antmaze-large-play-v2": 3.0, "antmaze-large-diverse-v2": 3.0,
    "pen-human-v1": 1e4, "pen-cloned-v1": 1e4, "pen-expert-v1": 3e3,
    "door-human-v1": 3e4, "door-cloned-v1": 3e4, "door-expert-v1": 3e4,
    "hammer-human-v1": 3e4, "hammer-cloned-v1": 1e4, "hammer-expert-v1": 3e4,
    "relocate-human-v1": 1e4, "relocate-cloned-v1": 3e4, "relocate-expert-v1": 3e4,
}  # fmt: skip
TUNED = {task: OFFICIAL | {"alpha": ALPHAS.get(task, 10.0)} | changes for task, changes in CHANGES.items()}


# --- Networks: written for one learner --------------------------------------------------------------------------------


def mlp(inputs: int, outputs: int, norm: bool = False) -> nn.Sequential:
    """Four hidden layers of 512 with GELU (and LayerNorm); initial weights and epsilon are those of FQL's Flax."""
    layers, size = [], inputs
    for _ in range(4):
        layers += [nn.Linear(size, 512), nn.GELU("tanh")] + norm * [nn.LayerNorm(512, eps=1e-6)]
        size = 512
    net = nn.Sequential(*layers, nn.Linear(size, outputs))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


class Actor(nn.Module):
    """The student μ: states (..., S), noise z (..., A) -> what it makes of it (..., A).

    Here actions are scaled to [−1, 1]. What it makes may lie outside; `action` is what then acts.
    """

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.net = mlp(state_dim + len(low), len(low))

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([s, z], -1))

    def action(self, x: Tensor) -> Tensor:
        return self.action_bias + self.action_scale * x.clamp(-1, 1)


class Teacher(nn.Module):
    """The field v of velocities: states (..., S), x_t (..., A), times t (..., 1) -> dx_t/dt (..., A)."""

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()
        self.net = mlp(state_dim + action_dim + 1, action_dim)

    def forward(self, s: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([s, x, t], -1))


def euler(velocity: Callable, x: Tensor) -> Tensor:
    """Carry x (..., A) along dx/dt = velocity(x, t), t (..., 1), from time 0 to 1 by FLOW_STEPS steps of Euler's."""
    for step in range(FLOW_STEPS):
        x = x + velocity(x, torch.full_like(x[..., :1], step / FLOW_STEPS)) / FLOW_STEPS
    return x


class Critic(nn.Module):
    """One Q function: states (..., S), actions (..., A) -> values (...)."""

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()
        self.net = mlp(state_dim + action_dim, 1, norm=True)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)


class Policy(nn.Module):
    """What acts and what a run saves: the student, which acts with noise."""

    def __init__(self, actor: Actor):
        super().__init__()
        self.actor = actor

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (E, S) -> actions (E, A), on the CPU, of noise from the generator."""
        z = torch.randn(len(observations), len(self.actor.action_bias), generator=generator, dtype=observations.dtype)
        return self.actor.action(self.actor(observations, z))


def load_policy(saved: dict[str, Tensor]) -> Policy:
    """The policy of a run's actor.pt."""
    scale, bias = saved["actor.action_scale"], saved["actor.action_bias"]
    state_dim = saved["actor.net.0.weight"].shape[1] - len(bias)
    policy = Policy(Actor(state_dim, bias - scale, bias + scale))
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
    """The datasets as one table on the device. Each learner draws from the rows of its own task."""

    def __init__(self, data: list[dict[str, np.ndarray]], num_seeds: int, steps: int, batch_size: int, device: str):
        """data: D4RL's transitions of each task; steps: batches that are drawn at once."""
        dtype, tables, first = torch.get_default_dtype(), [], 0
        self.ranges = []  # of each learner, task by task
        for transitions in data:
            s, a, next_s, r, d = (
                torch.as_tensor(transitions[key], dtype=dtype).reshape(len(transitions["rewards"]), -1)
                for key in ("observations", "actions", "next_observations", "rewards", "terminals")
            )
            tables.append(torch.cat([s, a, next_s, r, d], 1))
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
        low, high = (torch.as_tensor(bound, dtype=dtype, device=device) for bound in (low, high))
        _, a, _, r, _ = self.buffer.table.split(self.buffer.widths, 1)  # views of it
        margin = 1e-5 * (high - low) / 2  # the official code keeps the data's actions off the bounds
        a.clamp_(low + margin, high - margin)
        r += args.reward_shift
        state_dim, action_dim = self.buffer.widths[:2]
        seeds = [args.seed + k for k in range(args.num_seeds)] * len(data)
        theta, psi, phi = [], [], []
        for seed in seeds:
            torch.manual_seed(seed)
            actor, teacher = Actor(state_dim, low, high), Teacher(state_dim, action_dim)
            twins = [Critic(state_dim, action_dim) for _ in range(2)]
            theta.append(parameters_to_vector(actor.parameters()))
            psi.append(parameters_to_vector(teacher.parameters()))
            phi.append(torch.stack([parameters_to_vector(critic.parameters()) for critic in twins]))
        self.theta, self.psi, self.phi = (torch.stack(x).detach().to(device) for x in (theta, psi, phi))
        self.target_phi = self.phi.clone()  # (K, 2, m)
        self.actor_adam, self.teacher_adam, self.critic_adam = Adam(self.theta), Adam(self.psi), Adam(self.phi)
        self.mu, self.v, self.q = (Function(module.to(device)) for module in (actor, teacher, twins[0]))

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        shape = self.buffer.indices.shape  # (K, steps, B)
        self.normal = torch.zeros(3, *shape, action_dim, dtype=dtype, device=device)  # z at s, z at s', x_0 of L_flow
        self.uniform = torch.zeros(*shape, 1, dtype=dtype, device=device)  # t of L_flow
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

    def target(self, theta: Tensor, phi: Tensor, next_s: Tensor, r: Tensor, d: Tensor, next_z: Tensor) -> Tensor:
        """y = r + γ (1 − d) mean_j or min_j Q'_j(s', μ(s', z')): no target network of the student."""
        q = self.twins(phi, next_s, self.mu.module.action(self.mu(theta, next_s, next_z)))
        return r + self.args.discount * (1 - d) * (q.amin(0) if self.args.q_agg == "min" else q.mean(0))

    def critic_loss(self, phi: Tensor, s: Tensor, a: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Mean over the twins of mean (Q_j(s, a) − y)²."""
        loss = (self.twins(phi, s, a) - y).square().mean()
        return loss, {"losses/critic": loss}

    def flow_loss(self, psi: Tensor, s: Tensor, a: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Metrics]:
        """L_flow: mean (v(s, x_t, t) − (x_1 − x_0))²,  x_t = (1 − t) x_0 + t x_1: lines from noise to actions."""
        x1 = (a - self.mu.module.action_bias) / self.mu.module.action_scale
        loss = (self.v(psi, s, (1 - t) * x0 + t * x1, t) - (x1 - x0)).square().mean()
        return loss, {"losses/flow": loss}

    def imitate(self, psi: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """â(s, z): where the teacher's flow carries the noise z (B, A), clipped to [−1, 1], (B, A)."""
        return euler(lambda x, t: self.v(psi, s, x, t), z).clamp(-1, 1)

    def value(self, phi: Tensor, s: Tensor, x: Tensor) -> Tensor:
        """Q(s, x) of what a student made, the mean of both critics: (2, m), (B, S), (B, A) -> (B,)."""
        return self.twins(phi, s, self.mu.module.action(x)).mean(0)

    def actor_loss(self, theta: Tensor, phi: Tensor, s: Tensor, z: Tensor, imitated: Tensor) -> tuple[Tensor, Metrics]:
        """−mean Q(s, μ(s, z)) + α L_distill; with --normalize-q-loss the first is over mean |Q|, without gradient."""
        x = self.mu(theta, s, z)
        q, distillation = self.value(phi, s, x), (x - imitated).square().mean()
        scale = q.abs().mean().detach() if self.args.normalize_q_loss else 1
        loss = -q.mean() / scale + self.args.alpha * distillation
        return loss, {"losses/actor": loss, "losses/q": q.mean(), "losses/distillation": distillation}

    # --- Updates of all learners ---

    def update(self, s, a, next_s, r, d, z, next_z, x0, t) -> Metrics:
        """One gradient step of all networks, from batches (K, B, ...). It is one joint step, as in the official code:
        all gradients are taken at the parameters before it, and the targets follow the critics as they were.
        """
        y = self.all(self.target)(self.theta, self.target_phi, next_s, r, d, next_z)
        imitated = self.all(self.imitate)(self.psi, s, z)
        critic_g, critic_metrics = self.gradient(self.critic_loss, self.phi, s, a, y)
        teacher_g, flow_metrics = self.gradient(self.flow_loss, self.psi, s, a, x0, t)
        g, metrics = self.gradient(self.actor_loss, self.theta, self.phi, s, z, imitated)
        self.target_phi.lerp_(self.phi, TAU)
        self.critic_adam.step(self.phi, critic_g)
        self.teacher_adam.step(self.psi, teacher_g)
        self.actor_adam.step(self.theta, g)
        return critic_metrics | flow_metrics | metrics

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        for step in zip(*(x.unbind(1) for x in (*self.buffer.batches(), *self.normal, self.uniform)), strict=True):
            self.metrics = self.update(*step)

    # --- What a run needs ---

    def advance(self) -> None:
        """Draw one period's batches and noise, each learner's from its own generator, and run it."""
        self.buffer.draw(self.generators)
        for k, generator in enumerate(self.generators):
            for normal in self.normal:
                normal[k].normal_(generator=generator)
            self.uniform[k].uniform_(generator=generator)
        self.period()

    def policy(self, k: int) -> Policy:
        """The k-th learner's, on the CPU and detached from training."""
        policy = Policy(deepcopy(self.mu.module).cpu())
        vector_to_parameters(self.theta[k].cpu(), policy.actor.parameters())
        return deepcopy(policy)  # its parameters are views of one vector, which a file would hold whole

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        state = {"actor": self.theta, "teacher": self.psi, "critics": self.phi, "target_critics": self.target_phi}
        adams = self.actor_adam, self.teacher_adam, self.critic_adam
        for name, adam in zip(("actor", "teacher", "critics"), adams, strict=True):
            state |= {f"{name}.adam.{key}": tensor for key, tensor in vars(adam).items()}
        return state


# --- Main -------------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    if args.eval:
        return evaluate_saved(args, __file__, load_policy, d4rl.percent_score)
    run = Run(tuned(args, TUNED), __file__)  # a new run, or with --resume one that stopped
    tasks = d4rl.load_tasks(run.args.env_id, run.args.dataset_path, run.args.stand_in)
    agent = Agent(run.args, tasks.transitions, tasks.low, tasks.high, run.device)
    run.start(agent, tasks, d4rl.percent_score)
    while run.goes_on():
        agent.advance()  # one period of gradient steps
        run.advanced()  # metrics, evaluation and checkpoint where they are due
    run.finish()  # the final evaluation


if __name__ == "__main__":
    launch(main, Args, __doc__, d4rl.DatasetError)
