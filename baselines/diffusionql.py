"""Diffusion-QL: Q-learning with a diffusion policy, a baseline on which ASPC builds.

Diffusion-QL's policy π_θ turns noise into an action in five steps of a denoiser ε_θ. It is trained on a fixed dataset
D of (s, a) with the loss

    L(θ) = L_diff(θ) − λ E_D[ Q_i(s, π_θ(s)) ],    λ = η / E_D|Q_j(s, π_θ(s))|
    L_diff(θ) = E ‖ε − ε_θ(√ᾱ_t a + √(1 − ᾱ_t) ε, t, s)‖²

and a constant η that weighs "maximise Q" against "stay near the data". With --tuned it and a few other settings are
those that the official code has for the task.

Paper: Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning, ICLR 2023, arXiv:2208.06193.
Method, metrics and differences from the official code: docs/diffusionql.md.

    python baselines/diffusionql.py --env-id halfcheetah-medium-v2
"""

import math
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._pytree import tree_map

import d4rl_gymnasium as d4rl
from offline_run import Run, RunArgs, evaluate_saved, launch, tuned

# Diffusion-QL's constants, the same on every task
DISCOUNT = 0.99
TAU = 0.005  # Polyak rate of the target critics
EMA_RATE, EMA_FREQ, EMA_START = 0.005, 5, 1000  # of the target policy: every 5th step, from step 1000 on
BACKUP_SAMPLES = 10  # next actions of which --max-q-backup takes the best
CANDIDATES = 50  # actions among which the policy chooses when it acts
LEARNING_RATE = 3e-4
# The diffusion: after step t of 0 to T − 1 an action a has become √ᾱ_t a + √(1 − ᾱ_t) ε, ε ~ N(0, I). ᾱ_t is the
# product of the 1 − β up to t, and these betas ("VP") make it exp(−0.1 u − (10 − 0.1) u² / 2) with u = (t + 1) / T.
T = 5
BETAS = [1 - math.exp(-0.1 / T - 0.5 * (10 - 0.1) * (2 * t + 1) / T**2) for t in range(T)]
ALPHA_BARS = [math.prod(1 - beta for beta in BETAS[: t + 1]) for t in range(T)]
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
    """gradient steps (of critics and policy alike), rounded up to whole periods of 10"""
    batch_size: int = 256
    """transitions in a batch"""
    grad_norm: float = 5.0
    """longest gradient, of both critics together and of the policy; longer ones are shortened to it (0: never)"""
    max_q_backup: bool = False
    """bootstrap from the best of 10 next actions instead of from one"""
    eta: float = 1.0
    """weight of Q against staying near the data"""
    actor_lr: float = 3e-4
    """the policy's learning rate"""
    rewards: Literal["raw", "antmaze", "standardised"] = "raw"
    """the dataset's rewards as they are, or 4 (r - 0.5), or with mean 0 and standard deviation 1"""
    tuned: bool = False
    """grad-norm, max-q-backup, eta, actor-lr and rewards as the official code sets them for the task"""

    def check(self) -> None:
        if self.grad_norm < 0:
            sys.exit("--grad-norm must be at least 0.")
        if self.eta < 0 or self.actor_lr <= 0:
            sys.exit("--eta must be at least 0, and --actor-lr positive.")


# --- The official code's settings for each of D4RL's tasks ------------------------------------------------------------

OFFICIAL = {"grad_norm": 1.0, "max_q_backup": False, "eta": 1.0, "actor_lr": 3e-4, "rewards": "raw"}
ANTMAZE = {"max_q_backup": True, "rewards": "antmaze"}
PEN = {"actor_lr": 3e-5, "rewards": "standardised"}
CHANGES = {  # what differs from that
    "halfcheetah-medium-v2": {"grad_norm": 9.0},
    "halfcheetah-medium-replay-v2": {"grad_norm": 2.0},
    "halfcheetah-medium-expert-v2": {"grad_norm": 7.0},
    "hopper-medium-v2": {"grad_norm": 9.0},
    "hopper-medium-replay-v2": {"grad_norm": 4.0},
    "hopper-medium-expert-v2": {"grad_norm": 5.0},
    "walker2d-medium-v2": {"grad_norm": 1.0},
    "walker2d-medium-replay-v2": {"grad_norm": 4.0},
    "walker2d-medium-expert-v2": {"grad_norm": 5.0},
    # found for antmaze's -v0 tasks, whose data differ
    "antmaze-umaze-v2": ANTMAZE | {"grad_norm": 2.0, "eta": 0.5, "max_q_backup": False},
    "antmaze-umaze-diverse-v2": ANTMAZE | {"grad_norm": 3.0, "eta": 2.0},
    "antmaze-medium-play-v2": ANTMAZE | {"grad_norm": 2.0, "eta": 2.0, "actor_lr": 1e-3},
    "antmaze-medium-diverse-v2": ANTMAZE | {"grad_norm": 1.0, "eta": 3.0},
    "antmaze-large-play-v2": ANTMAZE | {"grad_norm": 10.0, "eta": 4.5},
    "antmaze-large-diverse-v2": ANTMAZE | {"grad_norm": 7.0, "eta": 3.5},
    "pen-human-v1": PEN | {"grad_norm": 7.0, "eta": 0.15},
    "pen-cloned-v1": PEN | {"grad_norm": 8.0, "eta": 0.1},
}
TUNED = {task: OFFICIAL | changes for task, changes in CHANGES.items()}


def changed_rewards(rewards: np.ndarray, change: str) -> np.ndarray:
    """The rewards (N,) that training sees."""
    if change == "raw":
        return rewards
    if change == "antmaze":
        return 4 * (rewards - 0.5)
    if np.ptp(rewards) == 0:
        sys.exit("--rewards standardised needs rewards that differ.")
    return (rewards - rewards.mean(dtype=np.float64)) / rewards.std(dtype=np.float64, ddof=1)


# --- Networks: written for one learner --------------------------------------------------------------------------------


def layers(inputs: int, outputs: int) -> nn.Sequential:
    """Three layers of 256 between inputs and outputs."""
    hidden = [nn.Linear(inputs, 256), nn.Mish(), nn.Linear(256, 256), nn.Mish(), nn.Linear(256, 256), nn.Mish()]
    return nn.Sequential(*hidden, nn.Linear(256, outputs))


class Actor(nn.Module):
    """The denoiser ε_θ: states (..., S), noisy actions x_t (..., A), t -> the noise that is in them (..., A).

    Here actions are scaled to [−1, 1]; t is a number from 0 to T − 1, or a tensor of them, (...).
    """

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        angles = torch.arange(T)[:, None] * 10_000 ** (-torch.arange(8) / 7)
        self.register_buffer("clock", torch.cat([angles.sin(), angles.cos()], 1).to(low))  # (T, 16): each t as waves
        self.time = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.net = layers(len(low) + 16 + state_dim, len(low))

    def forward(self, s: Tensor, x: Tensor, t: int | Tensor) -> Tensor:
        time = self.time(self.clock[t]).expand(*x.shape[:-1], 16)
        return self.net(torch.cat([x, time, s], -1))


def sample(denoise: Callable, s: Tensor, noise: Tensor) -> Tensor:
    """Reverse diffusion, with gradient: noise (..., T, A) -> actions (..., A), still scaled to [−1, 1].

    denoise is ε_θ(s, x_t, t). Each step estimates the action x_0 behind x_t and draws x_{t−1} given both.
    """
    x = noise[..., 0, :]
    for t in reversed(range(T)):
        bar = ALPHA_BARS[t]
        x0 = ((x - (1 - bar) ** 0.5 * denoise(s, x, t)) / bar**0.5).clamp(-1, 1)
        if t > 0:
            beta, next_bar = BETAS[t], ALPHA_BARS[t - 1]
            mean = (beta * next_bar**0.5 * x0 + (1 - next_bar) * (1 - beta) ** 0.5 * x) / (1 - bar)
            x = mean + (beta * (1 - next_bar) / (1 - bar)) ** 0.5 * noise[..., T - t, :]
    return x0


class Critic(nn.Module):
    """One Q function: states (..., S), actions (..., A) -> values (...)."""

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()
        self.net = layers(state_dim + action_dim, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)


class Policy(nn.Module):
    """What acts and what a run saves: an actor with the target critics Q', by which it chooses among its actions."""

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.actor = Actor(state_dim, low, high)
        self.critics = nn.ModuleList(Critic(state_dim, len(low)) for _ in range(2))

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (E, S) -> actions (E, A): for each, one of CANDIDATES that the actor samples, drawn with
        probabilities softmax(min_j Q'_j(s, ·)).
        """
        s = observations[:, None].expand(-1, CANDIDATES, -1)
        noise = torch.randn(*s.shape[:-1], T, len(self.actor.action_bias), generator=generator, dtype=s.dtype)
        a = self.actor.action_bias + self.actor.action_scale * sample(self.actor, s, noise)  # (E, CANDIDATES, A)
        q = torch.minimum(*(critic(s, a) for critic in self.critics))
        choice = torch.multinomial(q.softmax(-1), 1, generator=generator)  # (E, 1)
        return a.take_along_dim(choice[..., None], 1).squeeze(1)


def load_policy(saved: dict[str, Tensor]) -> Policy:
    """The policy of a run's actor.pt."""
    scale, bias = saved["actor.action_scale"], saved["actor.action_bias"]
    state_dim = saved["critics.0.net.0.weight"].shape[1] - len(bias)
    policy = Policy(state_dim, bias - scale, bias + scale)
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


class Noise(NamedTuple):
    """The random numbers of one learner's gradient step: normal, but for t of 0 to T − 1 and i of 0 or 1."""

    chain: Tensor  # (B, T, A), for π(s)
    next_chains: Tensor  # (B, n, T, A), for n actions of the target policy at s'
    epsilon: Tensor  # (B, A), of L_diff
    t: Tensor  # (B,), of L_diff
    i: Tensor  # (), which critic the policy maximises; the other normalises


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
        self.denoise, self.q = Function(actor.to(device)), Function(twins[0].to(device))
        self.alpha_bars = torch.tensor(ALPHA_BARS, dtype=dtype, device=device)

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        shape, samples = self.buffer.indices.shape, BACKUP_SAMPLES if args.max_q_backup else 1
        self.noise = Noise(  # of a period: (K, steps, ...)
            chain=torch.zeros(*shape, T, action_dim, dtype=dtype, device=device),
            next_chains=torch.zeros(*shape, samples, T, action_dim, dtype=dtype, device=device),
            epsilon=torch.zeros(*shape, action_dim, dtype=dtype, device=device),
            t=torch.zeros(shape, dtype=torch.int64, device=device),
            i=torch.zeros(shape[:2], dtype=torch.int64, device=device),
        )
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
        """Both Q_j(s, a): (2, m), (..., S), (..., A) -> (2, ...)."""
        if self.device.type == "cpu":  # where two products are faster than a batched one
            return torch.stack([self.q(phi[0], s, a), self.q(phi[1], s, a)])
        return vmap(lambda critic: self.q(critic, s, a))(phi)

    def pi(self, theta: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """The policy's actions (..., A) for states (..., S), of noise (..., T, A)."""
        x = sample(lambda *inputs: self.denoise(theta, *inputs), s, noise)
        return self.denoise.module.action_bias + self.denoise.module.action_scale * x

    def target(self, theta: Tensor, phi: Tensor, next_s: Tensor, r: Tensor, d: Tensor, noise: Noise) -> Tensor:
        """y = r + γ (1 − d) min_j max_n Q'_j(s', a'_n),  a'_n of π'(s')."""
        next_s = next_s[:, None].expand(-1, noise.next_chains.shape[1], -1)  # (B, n, S)
        next_a = self.pi(theta, next_s, noise.next_chains)
        return r + DISCOUNT * (1 - d) * self.twins(phi, next_s, next_a).amax(-1).amin(0)

    def critic_loss(self, phi: Tensor, s: Tensor, a: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Sum over the twins of mean (Q_j(s, a) − y)²."""
        loss = (self.twins(phi, s, a) - y).square().mean(1).sum()
        return loss, {"losses/critic": loss}

    def q_term(self, theta: Tensor, phi: Tensor, s: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """mean Q_i(s, π(s)), and mean |Q_j(s, π(s))| without gradient: j is the other critic."""
        pi, (phi_i, phi_j) = self.pi(theta, s, noise.chain), torch.where(noise.i == 0, phi, phi.flip(0))
        return self.q(phi_i, s, pi).mean(), self.q(phi_j, s, pi).abs().mean().detach()

    def diffusion_loss(self, theta: Tensor, s: Tensor, a: Tensor, noise: Noise) -> Tensor:
        """L_diff: mean (ε − ε_θ(√ᾱ_t a + √(1 − ᾱ_t) ε, t, s))²."""
        bar = self.alpha_bars[noise.t].unsqueeze(-1)  # (B, 1)
        x0 = (a - self.denoise.module.action_bias) / self.denoise.module.action_scale
        x = bar.sqrt() * x0 + (1 - bar).sqrt() * noise.epsilon
        return (self.denoise(theta, s, x, noise.t) - noise.epsilon).square().mean()

    def actor_loss(
        self, theta: Tensor, phi: Tensor, s: Tensor, a: Tensor, noise: Noise
    ) -> tuple[Tensor, Metrics]:
        """−λ mean Q_i(s, π(s)) + L_diff,  λ = η / mean |Q_j(s, π(s))| without gradient."""
        q, scale = self.q_term(theta, phi, s, noise)
        diffusion = self.diffusion_loss(theta, s, a, noise)
        loss = -self.args.eta / scale * q + diffusion
        return loss, {"losses/actor": loss, "losses/q": q, "losses/diffusion": diffusion}

    def clip(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """A gradient (...), shortened if it is longer than --grad-norm, and the factor that does so, ()."""
        norm = g.norm()
        factor = (self.args.grad_norm / (norm + 1e-6)).clamp(max=1) if self.args.grad_norm else torch.ones_like(norm)
        return factor * g, factor

    # --- Updates of all learners ---

    def target_actor_rate(self) -> Tensor:
        """Polyak rate of the target policy, (), after the step of the policy that Adam has just counted."""
        step = self.actor_adam.t - 1  # from 0, as the official code counts
        return EMA_RATE * ((step >= EMA_START) & (step % EMA_FREQ == 0))

    def update(self, s, a, next_s, r, d, noise) -> Metrics:
        """One gradient step, from batches (K, B, ...): critics, policy and targets."""
        y = self.all(self.target)(self.target_theta, self.target_phi, next_s, r, d, noise)
        g, critic_metrics = self.gradient(self.critic_loss, self.phi, s, a, y)
        self.critic_adam.step(self.phi, self.all(self.clip)(g)[0])
        g, metrics = self.gradient(self.actor_loss, self.theta, self.phi, s, a, noise)
        g, factor = self.all(self.clip)(g)
        metrics = critic_metrics | metrics | {"losses/actor_clip": factor}
        self.actor_adam.step(self.theta, g, self.args.actor_lr)
        self.target_theta.lerp_(self.theta, self.target_actor_rate())
        self.target_phi.lerp_(self.phi, TAU)
        return metrics

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        batches = self.buffer.batches()
        for step in range(self.period_steps):
            batch, noise = (x[:, step] for x in batches), Noise(*(x[:, step] for x in self.noise))
            self.metrics = self.update(*batch, noise)

    # --- What a run needs ---

    def advance(self) -> None:
        """Draw one period's batches and noise, each learner's from its own generator, and run it."""
        self.buffer.draw(self.generators)
        for k, generator in enumerate(self.generators):
            for normal in (self.noise.chain, self.noise.next_chains, self.noise.epsilon):
                normal[k].normal_(generator=generator)
            self.noise.t[k].random_(0, T, generator=generator)
            self.noise.i[k].random_(0, 2, generator=generator)
        self.period()

    def policy(self, k: int) -> Policy:
        """The k-th learner's, on the CPU and detached from training."""
        policy = Policy(self.buffer.widths[0], self.low.cpu(), self.high.cpu())
        vector_to_parameters(self.theta[k].cpu(), policy.actor.parameters())
        vector_to_parameters(self.target_phi[k].flatten().cpu(), policy.critics.parameters())
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
    tasks = d4rl.load_tasks(run.args.env_id, run.args.dataset_path, run.args.stand_in)
    for transitions in tasks.transitions:
        transitions["rewards"] = changed_rewards(transitions["rewards"], run.args.rewards)
    agent = Agent(run.args, tasks.transitions, tasks.low, tasks.high, run.device)
    run.start(agent, tasks, d4rl.percent_score)
    while run.goes_on():
        agent.advance()  # one period of gradient steps
        run.advanced()  # metrics, evaluation and checkpoint where they are due
    run.finish()  # the final evaluation


if __name__ == "__main__":
    launch(main, Args, __doc__, d4rl.DatasetError)
