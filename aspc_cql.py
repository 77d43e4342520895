"""ASPC on CQL: offline RL whose conservatism finds its own scale.

CQL (Conservative Q-Learning) is SAC on a fixed dataset D of (s, a), whose critics Q_j with parameters φ pay for every
promise that they make beyond the data's actions:

    L_inner(φ; α) = Σ_j { E_D[ (Q_j(s, a) − y)² ] + α C_j },    C_j = E_D[ log ∫ exp Q_j(s, ·) − Q_j(s, a) ]

The constant α weighs "trust Q" (small) against "stay near the data" (large).
ASPC (Adaptive Scaling of Policy Constraints) learns it: every `alpha_interval`-th step it asks what the critics' step
φ → φ̃(α) did, by

    L_outer(φ̃) = L_alpha + L_Q                                                                   (appendix D.2)

and moves α along ∂L_outer/∂α, differentiated through that step (eq. 10). One setting serves all tasks.

Paper: Adaptive Scaling of Policy Constraints for Offline Reinforcement Learning, ICLR 2026, arXiv:2508.19900.
Method, metrics and what the paper leaves open: docs/aspc_cql.md.

    python aspc_cql.py --env-id halfcheetah-medium-v2
"""

import math
import sys
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._pytree import tree_map

import d4rl_gymnasium as d4rl
from offline_run import Run, RunArgs, evaluate_saved, launch

# CQL's constants, the same on every task
DISCOUNT = 0.99
TAU = 0.005  # Polyak rate of the target critics
M = 10  # actions drawn of each kind for the penalty: uniform, of the policy at s', of the policy at s
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
LEARNING_RATE = 3e-4  # of the critics
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
    """gradient steps (of critics and policy alike), rounded up to whole periods of alpha-interval"""
    batch_size: int = 256
    """transitions in a batch"""
    policy_lr: float = 3e-5
    """Adam's rate for the policy and for the weight of its entropy"""
    critic_layers: int = 3
    """hidden layers of each critic"""
    temperature: float = 1.0
    """of the penalty's logsumexp: towards 0 it is a maximum"""
    clip_diff_min: float | None = None
    """where a state's logsumexp less Q(s, a) is cut off below, if it shall be"""
    max_target_backup: bool = False
    """the TD target takes the best of ten actions of the policy instead of one"""

    alpha_init: float = 10.0
    """where α starts"""
    alpha_min: float = 0.5
    """α never falls below this: L_outer would let it (see docs/aspc_cql.md)"""
    alpha_max: float = 20.0
    """α never rises above this: L_outer would let it (see docs/aspc_cql.md)"""
    alpha_lr: float = 2e-3
    """Adam's rate for α at alpha-interval 10 (in proportion at others); decays to 1% over the run"""
    alpha_interval: int = 10
    """gradient steps for each update of α"""
    ema: float = 0.995
    """smoothing of the mean Q against which ΔQ is taken"""
    l_q_coef: float = 1.0
    """weight of L_Q in the outer loss (0 switches it off)"""

    def check(self) -> None:
        if self.policy_lr <= 0 or self.temperature <= 0:
            sys.exit("--policy-lr and --temperature must be positive.")
        if not (0 < self.alpha_init < math.inf and self.alpha_lr >= 0 and 0 <= self.ema < 1):
            sys.exit("--alpha-init must be positive, --alpha-lr at least 0, and --ema at least 0 and below 1.")
        if not 0 < self.alpha_min <= self.alpha_init <= self.alpha_max:
            sys.exit("--alpha-init must lie between --alpha-min, which must be positive, and --alpha-max.")


# --- Networks: written for one learner --------------------------------------------------------------------------------


class Actor(nn.Module):
    """Tanh-Gaussian policy π: normalised states (..., S) -> actions (..., A) within the action space's bounds."""

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.net = nn.Sequential(
            nn.Linear(state_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 2 * len(low)),
        )
        nn.init.xavier_uniform_(self.net[-1].weight, gain=0.01)
        nn.init.zeros_(self.net[-1].bias)
        self.log_std_multiplier = nn.Parameter(torch.ones(1))
        self.log_std_offset = nn.Parameter(-torch.ones(1))

    def forward(self, s: Tensor, noise: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The deterministic action; or, with standard normal noise (..., A), the action drawn with it and log π of it.

        Further leading axes of the noise, (M, B, A), draw further actions at the same states (B, S).
        """
        mean, log_std = self.net(s).chunk(2, -1)
        if noise is None:
            return self.action_bias + self.action_scale * mean.tanh()
        log_std = (self.log_std_multiplier * log_std + self.log_std_offset).clamp(LOG_STD_MIN, LOG_STD_MAX)
        x = mean + log_std.exp() * noise
        log_normal = -noise.square() / 2 - log_std - math.log(2 * math.pi) / 2
        log_slope = 2 * (math.log(2) - x - F.softplus(-2 * x)) + self.action_scale.log()  # of x -> action
        return self.action_bias + self.action_scale * x.tanh(), (log_normal - log_slope).sum(-1)


class Critic(nn.Module):
    """One Q function: normalised states (B, S), actions (..., B, A) -> values (..., B)."""

    def __init__(self, state_dim: int, action_dim: int, hidden: int):
        super().__init__()
        sizes = [state_dim + action_dim] + [256] * hidden
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(256, 1))
        for layer in self.net[::2]:
            nn.init.orthogonal_(layer.weight, gain=0.01 if layer is self.net[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        inputs = torch.cat([s.expand(*a.shape[:-1], -1), a], -1)  # (..., B, S + A)
        # As one matrix: of a stack vmap would multiply each with its own copy of the weights
        return self.net(inputs.flatten(0, -2)).reshape(a.shape[:-1])


class Policy(nn.Module):
    """What acts and what a run saves: an actor with the normalisation of the states that it was trained on."""

    def __init__(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.actor = Actor(len(mean), low, high)

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (E, S) -> deterministic actions (E, A). It draws nothing from the generator."""
        return self.actor((observations - self.mean) / self.std)


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

    def __init__(self, args: Args, data: list[dict[str, np.ndarray]], low: np.ndarray, high: np.ndarray, device: str):
        """data: D4RL's transitions of each task; low, high: (A,) bounds of the actions."""
        self.args, self.device, dtype = args, torch.device(device), torch.get_default_dtype()
        self.period_steps = args.alpha_interval
        self.buffer = ReplayBuffer(data, args.num_seeds, self.period_steps, args.batch_size, device)
        self.low, self.high = (torch.as_tensor(bound, dtype=dtype, device=device) for bound in (low, high))
        state_dim, action_dim = self.buffer.widths[:2]
        seeds = [args.seed + k for k in range(args.num_seeds)] * len(data)
        theta, phi = [], []
        for seed in seeds:
            torch.manual_seed(seed)
            actor = Actor(state_dim, self.low, self.high)
            twins = [Critic(state_dim, action_dim, args.critic_layers) for _ in range(2)]
            theta.append(parameters_to_vector(actor.parameters()))
            phi.append(torch.stack([parameters_to_vector(critic.parameters()) for critic in twins]))
        self.theta, self.phi = torch.stack(theta).detach().to(device), torch.stack(phi).detach().to(device)
        self.target_phi = self.phi.clone()  # (K, 2, m)
        self.actor_adam, self.critic_adam = Adam(self.theta), Adam(self.phi)
        self.pi, self.q = Function(actor.to(device)), Function(twins[0].to(device))

        # η = exp(log η) weighs the policy's entropy (SAC's α); Adam moves log η
        self.log_eta = torch.zeros(len(seeds), dtype=dtype, device=device)
        self.eta_adam = Adam(self.log_eta)
        self.target_entropy = (actor.action_scale.log() - 1).sum()  # −A, actions measured in half ranges

        # α = softplus(ρ) stays positive; Adam moves ρ
        self.rho_min, rho, self.rho_max = (
            alpha + math.log(-math.expm1(-alpha)) for alpha in (args.alpha_min, args.alpha_init, args.alpha_max)
        )
        self.rho = torch.full_like(self.log_eta, rho)
        self.rho_adam = Adam(self.rho)
        self.ema = torch.zeros_like(self.rho)  # of mean min_j Q_j at the policy's actions

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        # A step's noise: normal for the policy's actions (M at s, M at s', the TD target's, the policy loss's), uniform
        draws = 2 * M + (M if args.max_target_backup else 1) + 1
        shape = len(seeds), self.period_steps, draws, args.batch_size, action_dim
        self.noise = torch.zeros(shape, dtype=dtype, device=device)
        self.uniform = torch.zeros_like(self.noise[:, :, :M])
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
        """Both Q_j(s, a): (2, m), (B, S), (..., B, A) -> (2, ..., B)."""
        if self.device.type == "cpu":  # where two products are faster than a batched one
            return torch.stack([self.q(phi[0], s, a), self.q(phi[1], s, a)])
        return vmap(lambda critic: self.q(critic, s, a))(phi)

    def actor_loss(
        self, theta: Tensor, phi: Tensor, log_eta: Tensor, s: Tensor, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """SAC: mean η log π(a|s) − min_j Q_j(s, a),  a ~ π(s)."""
        a, log_pi = self.pi(theta, s, noise)
        q, eta = self.twins(phi, s, a).amin(0), log_eta.exp()
        loss = (eta * log_pi - q).mean()
        return loss, {"losses/actor": loss, "losses/q": q.mean(), "cql/entropy": -log_pi.mean(), "cql/eta": eta}

    def target(self, theta: Tensor, phi: Tensor, next_s: Tensor, r: Tensor, d: Tensor, noise: Tensor) -> Tensor:
        """y = r + γ (1 − d) max_k min_j Q'_j(s', a'_k),  a'_k ~ π(s')."""
        next_a, _ = self.pi(theta, next_s, noise)
        return r + DISCOUNT * (1 - d) * self.twins(phi, next_s, next_a).amin(0).amax(0)

    def proposals(
        self, theta: Tensor, s: Tensor, a: Tensor, next_s: Tensor, noise: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The actions for which the critics are asked at s, (1 + 3M, B, A): the data's, M uniform ones, M of the policy
        at s', M of the policy at s; and log u of all but the data's, (3M, B), with u the density that they come from.
        """
        pi, log_pi = self.pi(theta, s, noise[:M])
        next_pi, next_log_pi = self.pi(theta, next_s, noise[M:])
        log_uniform = -(self.high - self.low).log().sum().expand_as(log_pi)
        actions = torch.cat([a[None], self.low + (self.high - self.low) * uniform, next_pi, pi])
        return actions, torch.cat([log_uniform, next_log_pi, log_pi])

    def penalty(self, q: Tensor, log_u: Tensor) -> Tensor:
        """Σ_j C_j, from Q_j(s, ·) at the proposals (2, 1 + 3M, B). Actions drawn from a density u estimate an integral
        by Σ exp(Q_j − log u); the number of the terms, a constant in C_j, is left out as in CQL's code.
        """
        t = self.args.temperature
        excess = t * ((q[:, 1:] - log_u) / t).logsumexp(1) - q[:, 0]  # (2, B)
        if self.args.clip_diff_min is not None:
            excess = excess.clamp(min=self.args.clip_diff_min)
        return excess.mean(1).sum()

    def inner_loss(
        self, phi: Tensor, alpha: Tensor, s: Tensor, y: Tensor, actions: Tensor, log_u: Tensor
    ) -> tuple[Tensor, Metrics]:
        """CQL: Σ_j { mean (Q_j(s, a) − y)² + α C_j }."""
        q = self.twins(phi, s, actions)
        td, penalty = (q[:, 0] - y).square().mean(1).sum(), self.penalty(q, log_u)
        loss = td + alpha * penalty
        return loss, {"losses/critic": loss, "losses/td": td, "losses/penalty": penalty}

    # --- ASPC: the learnable scale ---

    def inner_slope(self, phi: Tensor, s: Tensor, actions: Tensor, log_u: Tensor) -> tuple[Tensor, Metrics]:
        """∂L_inner/∂α = Σ_j C_j, whose gradient in φ is the mixed derivative ∂g/∂α of g = ∇_φ L_inner."""
        return self.penalty(self.twins(phi, s, actions), log_u), {}

    def outer_loss(
        self, new_phi: Tensor, alpha: Tensor, ema: Tensor, s: Tensor, actions: Tensor, log_u: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Metrics]:
        """Appendix D.2 at φ̃ = new_phi, which alone carries a derivative: its terms in Q̄ and its penalty apart. Q̄ is the
        lesser Q at the policy's actions, and ΔQ the step of an average of mean Q̄ over the updates of α, as in the code
        that was released for TD3+BC.
        """
        q = self.twins(new_phi, s, actions)
        q_bar, penalty = q[:, -M:].amin(0), alpha * self.penalty(q, log_u)  # (M, B)
        delta_q = (1 - self.args.ema) * (q_bar.mean() - ema)
        l_alpha = -q_bar.mean() / q_bar.abs().mean().detach()  # as eq. 6; its other term is the penalty
        l_q = delta_q.square()  # as eq. 7
        q_terms = l_alpha + self.args.l_q_coef * l_q
        return (q_terms, penalty), {
            "losses/outer": q_terms + penalty, "losses/L_alpha": l_alpha + penalty, "losses/L_Q": l_q,
            "aspc/delta_q": delta_q,
        }

    def inner_step(self, g: Tensor) -> Tensor:
        """φ̃: where Adam's next step will lead the critics, as a differentiable function of their gradient (eq. 5)."""
        adam = self.critic_adam
        m, v = torch.lerp(adam.m, g, 0.1), torch.lerp(adam.v, g * g, 0.001)
        # 1e-30 keeps the derivative of √v finite where v = 0 (dead ReLUs) and is too small to change the step
        root = (v / (1 - 0.999 * adam.beta2_t) + 1e-30).sqrt() + 1e-8
        return self.phi - LEARNING_RATE / (1 - 0.9 * adam.beta1_t) * m / root

    def update_alpha(self, g: Tensor, alpha: Tensor, s: Tensor, actions: Tensor, log_u: Tensor) -> Metrics:
        """One step on ρ along ∂L_outer/∂φ̃ · ∂φ̃/∂α · ∂α/∂ρ (eq. 10), before φ takes the step along g that it judges. The
        derivative runs forwards, from g through φ̃ to L_outer: one pass tells how either part of L_outer pulls at α.
        """

        def outer(g):
            return self.all(self.outer_loss)(self.inner_step(g), alpha, self.ema, s, actions, log_u)

        g_slope, _ = self.gradient(self.inner_slope, self.phi, s, actions, log_u)  # ∂g/∂α
        _, pulls, metrics = jvp(outer, (g,), (g_slope,), has_aux=True)
        # times the derivative of softplus; jvp may have made float64 of what met a Python number
        pull_q, pull_penalty = (pull.to(self.rho) * self.rho.sigmoid() for pull in pulls)
        rho_g = pull_q + pull_penalty
        decay = 0.01 ** (self.rho_adam.t / max(1, self.args.total_steps // self.period_steps))
        self.rho_adam.step(self.rho, rho_g, self.args.alpha_lr * self.args.alpha_interval / 10 * decay)
        self.rho.clamp_(self.rho_min, self.rho_max)  # L_outer knows no limit
        self.ema += metrics["aspc/delta_q"]
        return metrics | {
            "aspc/alpha": alpha, "aspc/alpha_grad": rho_g,
            "aspc/alpha_grad_q": pull_q, "aspc/alpha_grad_penalty": pull_penalty,
        }

    # --- Updates of all learners ---

    def update(self, s, a, next_s, r, d, noise, uniform, move_alpha: bool = False) -> Metrics:
        """One gradient step, from batches (K, B, ...). As in CORL's code all gradients are taken before any update."""
        alpha = F.softplus(self.rho)
        actor_g, metrics = self.gradient(self.actor_loss, self.theta, self.phi, self.log_eta, s, noise[:, -1])
        y = self.all(self.target)(self.theta, self.target_phi, next_s, r, d, noise[:, 2 * M : -1])
        actions, log_u = self.all(self.proposals)(self.theta, s, a, next_s, noise[:, : 2 * M], uniform)
        critic_g, more = self.gradient(self.inner_loss, self.phi, alpha, s, y, actions, log_u)
        if move_alpha:
            more |= self.update_alpha(critic_g, alpha, s, actions, log_u)
        self.eta_adam.step(self.log_eta, metrics["cql/entropy"] - self.target_entropy, self.args.policy_lr)
        self.actor_adam.step(self.theta, actor_g, self.args.policy_lr)
        self.critic_adam.step(self.phi, critic_g)
        self.target_phi.lerp_(self.phi, TAU)
        return metrics | more

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        inputs = (x.unbind(1) for x in (*self.buffer.batches(), self.noise, self.uniform))
        *steps, last = zip(*inputs, strict=True)
        for step in steps:
            self.update(*step)
        self.metrics = self.update(*last, move_alpha=True)

    # --- What a run needs ---

    def advance(self) -> None:
        """Draw one period's batches and noise, each learner's from its own generator, and run it."""
        self.buffer.draw(self.generators)
        for noise, uniform, generator in zip(self.noise, self.uniform, self.generators, strict=True):
            noise.normal_(generator=generator)
            uniform.uniform_(generator=generator)
        self.period()

    def policy(self, k: int) -> Policy:
        """The k-th learner's, on the CPU and detached from training."""
        policy = Policy(self.buffer.mean[k], self.buffer.std[k], self.low.cpu(), self.high.cpu())
        vector_to_parameters(self.theta[k].cpu(), policy.actor.parameters())
        return deepcopy(policy)  # its parameters are views of one vector, which a file would hold whole

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        state = {
            "actor": self.theta, "critics": self.phi, "target_critics": self.target_phi, "log_eta": self.log_eta,
            "rho": self.rho, "ema": self.ema,
        }
        adams = {"actor": self.actor_adam, "critics": self.critic_adam, "log_eta": self.eta_adam, "rho": self.rho_adam}
        for name, adam in adams.items():
            state |= {f"{name}.adam.{key}": tensor for key, tensor in vars(adam).items()}
        return state


# --- Main -------------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    if args.eval:
        return evaluate_saved(args, __file__, load_policy, d4rl.percent_score)
    run = Run(args, __file__)  # a new run, or with --resume one that stopped
    tasks = d4rl.load_tasks(run.args.env_id, run.args.dataset_path, run.args.stand_in)
    agent = Agent(run.args, tasks.transitions, tasks.low, tasks.high, run.device)
    run.start(agent, tasks, d4rl.percent_score)
    while run.goes_on():
        agent.advance()  # one period of gradient steps
        run.advanced()  # metrics, evaluation and checkpoint where they are due
    run.finish()  # the final evaluation


if __name__ == "__main__":
    launch(main, Args, __doc__, d4rl.DatasetError)
