"""ASPC on FQL: a one-step policy, distilled from a flow of the data's actions, whose weight of Q finds its own scale.

A teacher v_ψ learns to carry noise along a flow to the actions of a fixed dataset D of (s, a); the student μ_θ is the
policy and makes an action of noise z in one step. It is trained with the loss

    L_inner(θ; α) = L_distill(θ) − λ E[ Q(s, μ_θ(s, z)) ],    λ = α / E|Q(s, μ_θ(s, z))|
    L_distill(θ) = E ‖μ_θ(s, z) − â(s, z)‖²,    â(s, z): where the teacher's flow carries z

and a constant α that weighs "maximise Q" against "do as the teacher does". ASPC (Adaptive Scaling of Policy
Constraints) learns α: every `alpha_interval`-th policy update it asks what the step θ → θ̃(α) did, by

    L_outer(θ̃) = L_alpha + L_Q                                                                  (appendix D.4)

and moves α along ∂L_outer/∂α, differentiated through that step (eq. 10). One setting of it serves all tasks.

Paper: Adaptive Scaling of Policy Constraints for Offline Reinforcement Learning, ICLR 2026, arXiv:2508.19900.
Method, metrics and differences from the text: docs/aspc_fql.md.

    python aspc_fql.py --env-id maze2d-umaze-v1
"""

import math
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
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
    """gradient steps (of critics, teacher and student alike), rounded up to whole periods of alpha-interval"""
    batch_size: int = 256
    """transitions in a batch"""
    discount: float = 0.99
    """γ"""
    q_agg: Literal["mean", "min"] = "mean"
    """bootstrap from the mean or from the smaller of both target critics"""
    reward_shift: float = 0.0
    """added to every reward"""
    tuned: bool = False
    """discount, q-agg and reward-shift as FQL's official code sets them for the task"""
    alpha_init: float = 2.5
    """where α starts"""
    alpha_lr: float = 2e-3
    """Adam's rate for α at alpha-interval 10 (in proportion at others); decays to 1% over the run"""
    alpha_interval: int = 10
    """policy updates for each update of α"""
    ema: float = 0.995
    """smoothing of the mean Q against which ΔQ is taken"""
    l_q_coef: float = 1.0
    """weight of L_Q in the outer loss (0 switches it off)"""

    def check(self) -> None:
        if not 0 < self.discount < 1:
            sys.exit("--discount must lie between 0 and 1.")
        if not (0 < self.alpha_init < math.inf and self.alpha_lr >= 0 and 0 <= self.ema < 1):
            sys.exit("--alpha-init must be positive, --alpha-lr at least 0, and --ema at least 0 and below 1.")


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
TUNED = {task: OFFICIAL | changes for task, changes in CHANGES.items()}


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

    def __init__(self, args: Args, data: list[dict[str, np.ndarray]], low: np.ndarray, high: np.ndarray, device: str):
        """data: D4RL's transitions of each task; low, high: (A,) bounds of the actions."""
        self.args, self.device, dtype = args, torch.device(device), torch.get_default_dtype()
        self.period_steps = args.alpha_interval
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

        rho = args.alpha_init + math.log(-math.expm1(-args.alpha_init))  # α = softplus(ρ) stays positive; Adam moves ρ
        self.rho = torch.full((len(seeds),), rho, dtype=dtype, device=device)
        self.rho_adam = Adam(self.rho)
        self.ema = torch.zeros_like(self.rho)  # of mean Q(s, μ(s, z))

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

    def inner_loss(
        self, theta: Tensor, phi: Tensor, alpha: Tensor, s: Tensor, z: Tensor, imitated: Tensor
    ) -> tuple[Tensor, Metrics]:
        """−λ mean Q(s, μ(s, z)) + L_distill,  λ = α / mean |Q(s, μ(s, z))| without gradient."""
        x = self.mu(theta, s, z)
        q, distillation = self.value(phi, s, x), (x - imitated).square().mean()
        loss = -alpha / q.abs().mean().detach() * q.mean() + distillation
        return loss, {"losses/actor": loss, "losses/q": q.mean(), "losses/distillation": distillation}

    # --- ASPC: the learnable scale ---

    def inner_slope(self, theta: Tensor, phi: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Metrics]:
        """∂L_inner/∂α, whose gradient in θ is the mixed derivative ∂g/∂α of g = ∇_θ L_inner."""
        q = self.value(phi, s, self.mu(theta, s, z))
        return -q.mean() / q.abs().mean().detach(), {}

    def outer_loss(
        self, new_theta: Tensor, phi: Tensor, alpha: Tensor, ema: Tensor, s: Tensor, z: Tensor, imitated: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Appendix D.4 at θ̃ = new_theta, which alone carries a gradient. The noise z is that of the inner loss, or ΔQ
        would be mostly noise; it is the step of an average of mean Q over the updates of α, as in ASPC's code.
        """
        x = self.mu(new_theta, s, z)
        q, distillation = self.value(phi, s, x), (x - imitated).square().mean()
        delta_q = (1 - self.args.ema) * (q.mean() - ema)
        l_alpha = -alpha / q.abs().mean().detach() * q.mean() + distillation
        l_q = delta_q.square()
        loss = l_alpha + self.args.l_q_coef * l_q
        return loss, {
            "losses/outer": loss, "losses/L_alpha": l_alpha, "losses/L_Q": l_q,
            "aspc/delta_q": delta_q, "aspc/bc": distillation,
        }

    def inner_step(self, g: Tensor) -> Tensor:
        """θ̃: where Adam's next step will lead the actors, as a differentiable function of their gradient (eq. 5)."""
        adam = self.actor_adam
        m, v = torch.lerp(adam.m, g, 0.1), torch.lerp(adam.v, g * g, 0.001)
        # 1e-30 keeps the derivative of √v finite where v = 0 and is too small to change the step
        root = (v / (1 - 0.999 * adam.beta2_t) + 1e-30).sqrt() + 1e-8
        return self.theta - LEARNING_RATE / (1 - 0.9 * adam.beta1_t) * m / root

    def update_alpha(self, g: Tensor, alpha: Tensor, s: Tensor, z: Tensor, imitated: Tensor) -> Metrics:
        """One step on ρ along ∂L_outer/∂θ̃ · ∂θ̃/∂α · ∂α/∂ρ (eq. 10), before θ takes the step along g that it judges."""
        g_slope, _ = self.gradient(self.inner_slope, self.theta, self.phi, s, z)  # ∂g/∂α
        new_theta, slope = jvp(self.inner_step, (g,), (g_slope,))  # θ̃, ∂θ̃/∂α
        outer_g, metrics = self.gradient(self.outer_loss, new_theta, self.phi, alpha, self.ema, s, z, imitated)
        rho_g = (outer_g * slope).sum(1) * self.rho.sigmoid()  # the derivative of softplus
        decay = 0.01 ** (self.rho_adam.t / max(1, self.args.total_steps // self.period_steps))
        self.rho_adam.step(self.rho, rho_g, self.args.alpha_lr * self.args.alpha_interval / 10 * decay)
        self.ema += metrics["aspc/delta_q"]
        return metrics | {"aspc/alpha": alpha, "aspc/alpha_grad": rho_g}

    # --- Updates of all learners ---

    def update(self, s, a, next_s, r, d, z, next_z, x0, t, move_alpha: bool = False) -> Metrics:
        """One gradient step of all networks, from batches (K, B, ...). It is one joint step, as in the official code:
        all gradients are taken at the parameters before it, and the targets follow the critics as they were.
        """
        y = self.all(self.target)(self.theta, self.target_phi, next_s, r, d, next_z)
        imitated = self.all(self.imitate)(self.psi, s, z)
        critic_g, critic_metrics = self.gradient(self.critic_loss, self.phi, s, a, y)
        teacher_g, flow_metrics = self.gradient(self.flow_loss, self.psi, s, a, x0, t)
        alpha = F.softplus(self.rho)
        g, metrics = self.gradient(self.inner_loss, self.theta, self.phi, alpha, s, z, imitated)
        if move_alpha:
            metrics |= self.update_alpha(g, alpha, s, z, imitated)
        self.target_phi.lerp_(self.phi, TAU)
        self.critic_adam.step(self.phi, critic_g)
        self.teacher_adam.step(self.psi, teacher_g)
        self.actor_adam.step(self.theta, g)
        return critic_metrics | flow_metrics | metrics

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        *steps, last = zip(*(x.unbind(1) for x in (*self.buffer.batches(), *self.normal, self.uniform)), strict=True)
        for step in steps:
            self.update(*step)
        self.metrics = self.update(*last, move_alpha=True)

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
        state = {
            "actor": self.theta, "teacher": self.psi, "critics": self.phi, "target_critics": self.target_phi,
            "rho": self.rho, "ema": self.ema,
        }
        adams = self.actor_adam, self.teacher_adam, self.critic_adam, self.rho_adam
        for name, adam in zip(("actor", "teacher", "critics", "rho"), adams, strict=True):
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
