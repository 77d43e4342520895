"""Ablation of L_outer's data: a batch of its own (the paper's eqs. 6 to 8 are expectations over the dataset).

The main script, like the released code, judges the step θ → θ̃(α) on the very batch that made it. Both then share their
noise: a larger step along this batch's own ∇Q looks better than it is, and pushes α upwards. Here L_outer has an
independent batch, drawn by the same generator: one row of indices more in each period.

    python benchmark/ablations/fresh_outer_batch.py --env-id halfcheetah-medium-v2

The rest is aspc_td3bc.py:

ASPC on TD3+BC: offline RL whose policy constraint finds its own scale.

TD3+BC trains a policy π_θ on a fixed dataset D of (s, a) with the loss

    L_inner(θ; α) = E_D[ −λ Q(s, π_θ(s)) + ‖π_θ(s) − a‖² ],    λ = α / E_D|Q(s, π_θ(s))|             (eqs. 3, 4)

and a constant α that weighs "maximise Q" against "stay near the data". ASPC (Adaptive Scaling of Policy
Constraints) learns α: every `alpha_interval`-th policy update it asks what the step θ → θ̃(α) did, by

    L_outer(θ̃) = L_alpha + L_Q + L_BC                                                            (eqs. 6 to 9)

and moves α along ∂L_outer/∂α, differentiated through that step (eq. 10). One setting serves all 39 D4RL tasks.

Paper: Adaptive Scaling of Policy Constraints for Offline Reinforcement Learning, ICLR 2026, arXiv:2508.19900.
Method, metrics and differences from the released code: docs/aspc_td3bc.md.
"""

import csv
import importlib.util
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap
from torch.utils.tensorboard import SummaryWriter
from torchopt.transform import scale_by_adam
from torchopt.transform.scale_by_adam import ScaleByAdamState
from tqdm import tqdm

import d4rl_gymnasium as d4rl

# TD3's constants, the same on every task (paper, appendix B.2)
DISCOUNT = 0.99
TAU = 0.005  # Polyak rate of the target networks
POLICY_NOISE, NOISE_CLIP = 0.2, 0.5  # target policy smoothing, in units of the action's half range
POLICY_FREQ = 2  # critic updates for each policy update
LEARNING_RATE = 3e-4
LOG_INTERVAL = 1000  # gradient steps between two reads of the metrics


@dataclass
class Args:
    env_id: str = "halfcheetah-medium-v2"
    """the task: an id of D4RL or OGBench (`python -m d4rl_gymnasium list`), or any gymnasium id with --dataset-path"""
    seed: int = 0
    """the first seed: it fixes initial weights, batches, noise and evaluation episodes"""
    num_seeds: int = 1
    """seeds trained together in this process: seed, seed+1, ... (meant for a GPU, which one seed leaves almost idle)"""
    total_steps: int = 1_000_000
    """gradient steps (critic updates), rounded up to whole periods of 2 x alpha-interval"""
    batch_size: int = 256
    """transitions in a batch"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU where there is one"""
    eval_interval: int = 5_000
    """gradient steps between evaluations"""
    eval_episodes: int = 10
    """episodes of an evaluation during training"""
    final_eval_episodes: int = 100
    """episodes of the evaluation at the end"""
    dataset_path: str | None = None
    """an HDF5 file in D4RL's layout, or minari:NAME, instead of D4RL's own data"""
    stand_in: bool = True
    """a MuJoCo task whose D4RL file cannot be had: train on a stand-in that is collected here, and mark the run so"""
    runs_dir: str = "runs"
    """the folder that receives one run directory per seed"""
    checkpoint_interval: int = 5_000
    """gradient steps between checkpoints (Ctrl-C and SIGTERM write one too)"""
    resume: str | None = None
    """continue the run in this directory, exactly where its checkpoint stands; takes no other argument"""
    eval: str | None = None
    """evaluate the actor saved in this run directory (with --final-eval-episodes and --render-video, if you like)"""
    render_video: str | None = None
    """with --eval: record the first episode into this .mp4 file"""
    track: bool = False
    """log to Weights & Biases as well (pip install wandb)"""
    compile: bool = False
    """torch.compile the gradients: 1 to 5 minutes of compilation, then faster steps (needs a C++ compiler on a CPU)"""
    cudagraph: bool = True
    """on a GPU: replay one period of updates as one CUDA graph"""
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    """of float32 matrix products: high is TF32 on a GPU, medium bfloat16 where the processor has it"""

    alpha_init: float = 2.5
    """where α starts"""
    alpha_lr: float = 2e-3
    """Adam's rate for α at alpha-interval 10 (in proportion at others); decays to 1% over the run"""
    alpha_interval: int = 10
    """policy updates for each update of α"""
    ema: float = 0.995
    """smoothing of the mean Q against which ΔQ is taken"""
    l_q_coef: float = 1.0
    """weight of L_Q in the outer loss (0 switches it off: Fig. 6b)"""
    l_bc_coef: float = 1.0
    """weight of L_BC in the outer loss (0 switches it off: Fig. 6b)"""
    robust_critic: bool = True
    """the paper's critic of three layers with LayerNorm; without: TD3+BC's two plain layers (Fig. 6a)"""


# --- Networks: written for one seed -----------------------------------------------------------------------------------


class Actor(nn.Module):
    """Deterministic policy π: observations (..., S) -> actions (..., A) within the action space's bounds.

    The observations' mean and std are buffers, so a saved actor needs nothing else.
    """

    def __init__(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.net = nn.Sequential(
            nn.Linear(len(mean), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, len(low))
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.action_bias + self.action_scale * self.net((observations - self.mean) / self.std).tanh()


class Critic(nn.Module):
    """One Q function: observations (..., S), actions (..., A) -> values (...)."""

    def __init__(self, mean: Tensor, std: Tensor, action_dim: int, robust: bool):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        sizes = [len(mean) + action_dim] + [256] * (3 if robust else 2)
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()] + robust * [nn.LayerNorm(fan_out)]
        self.net = nn.Sequential(*layers, nn.Linear(256, 1))
        if robust:  # the released code's initialisation
            *hidden, last = (layer for layer in self.net if isinstance(layer, nn.Linear))
            for layer in hidden:
                nn.init.uniform_(layer.weight, -(layer.in_features**-0.5), layer.in_features**-0.5)
                nn.init.constant_(layer.bias, 0.1)
            nn.init.uniform_(last.weight, -3e-3, 3e-3)
            nn.init.uniform_(last.bias, -3e-3, 3e-3)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat([(observations - self.mean) / self.std, actions], -1)).squeeze(-1)


# --- The agent: losses for one seed, updates for all seeds at once ----------------------------------------------------

Params = dict[str, Tensor]


class Batch(NamedTuple):
    """Transitions of one seed, B of them: s (B, S), a (B, A), s' (B, S), r (B,), d (B,)."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor
    terminals: Tensor


def adam(parameters: list[Tensor], learning_rate: float | Tensor) -> torch.optim.Adam:
    """Fused Adam whose state exists before the first step, so that a CUDA graph and the outer loss can read it."""
    capturable = parameters[0].is_cuda
    optimizer = torch.optim.Adam(parameters, learning_rate, fused=True, capturable=capturable)
    for p in parameters:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def apply(optimizer: torch.optim.Optimizer, gradients: Params) -> None:
    """Step the optimizer with these gradients, which come in the order of its parameters."""
    for p, g in zip(optimizer.param_groups[0]["params"], gradients.values(), strict=True):
        p.grad = g.contiguous()  # the fused kernel walks parameter and gradient in the same order
    optimizer.step()


def polyak(target: Params, online: Params) -> None:
    for t, p in zip(target.values(), online.values(), strict=True):
        t.lerp_(p, TAU)


class Agent:
    """K independent learners ("seeds") as stacked tensors: every parameter has a leading axis of K.

    The losses are written for one seed, as the paper writes them; `vmap` runs them over all. Adam and Polyak averaging
    act on each element by itself, so they need no vmap. Whatever changes lives in tensors on the device.
    """

    def __init__(self, args: Args, data: dict[str, np.ndarray], low: np.ndarray, high: np.ndarray, device: str):
        """data: D4RL's transitions, N rows each; low, high: (A,) bounds of the actions."""
        self.args, self.device = args, torch.device(device)
        dtype = torch.get_default_dtype()
        mean = torch.as_tensor(data["observations"].mean(0, dtype=np.float64), dtype=dtype)
        std = torch.as_tensor(data["observations"].std(0, dtype=np.float64) + 1e-3, dtype=dtype)
        low, high = torch.as_tensor(low, dtype=dtype), torch.as_tensor(high, dtype=dtype)
        actors, critics = [], []
        for seed in range(args.seed, args.seed + args.num_seeds):
            torch.manual_seed(seed)
            actors.append(Actor(mean, std, low, high).to(device))
            critics += [Critic(mean, std, len(low), args.robust_critic).to(device) for _ in range(2)]
        # One module of each kind lends its `forward`; the parameters are stacked beside it.
        self.actor_net, self.critic_net = actors[0], critics[0]
        self.low, self.high = low.to(device), high.to(device)
        K = args.num_seeds
        self.actor: Params = {k: v.detach() for k, v in stack_module_state(actors)[0].items()}  # (K, ...)
        self.critics: Params = {
            k: v.detach().unflatten(0, (K, 2)).contiguous()
            for k, v in stack_module_state(critics)[0].items()
        }  # (K, 2, ...): the twins
        self.target_actor = {k: v.clone() for k, v in self.actor.items()}
        self.target_critics = {k: v.clone() for k, v in self.critics.items()}
        self.actor_optimizer = adam(list(self.actor.values()), LEARNING_RATE)
        self.critic_optimizer = adam(list(self.critics.values()), LEARNING_RATE)

        # α = softplus(ρ) stays positive; Adam moves ρ
        rho = args.alpha_init + math.log(-math.expm1(-args.alpha_init))
        self.rho = torch.full((K,), rho, dtype=dtype, device=device)
        self.ema = torch.zeros(K, dtype=dtype, device=device)  # of mean Q(s, π(s))
        self.rho_lr = torch.zeros((), dtype=dtype, device=device)
        self.rho_optimizer = adam([self.rho], self.rho_lr)

        # Static inputs of a period: the dataset as one table, and for each step its batch indices and noise
        columns = [torch.as_tensor(data[key], dtype=dtype).reshape(len(data[key]), -1) for key in Batch._fields]
        self.rows = torch.cat(columns, 1).to(device)  # (N, 2S + A + 2)
        self.widths = [c.shape[1] for c in columns]
        self.period_steps = POLICY_FREQ * args.alpha_interval
        # One row more than in the main script, the last: L_outer's own batch
        self.indices = torch.zeros(K, self.period_steps + 1, args.batch_size, dtype=torch.int64, device=device)
        self.noise = torch.zeros(K, self.period_steps, args.batch_size, len(low), dtype=dtype, device=device)
        self.generators = [torch.Generator(device).manual_seed(args.seed + k) for k in range(K)]
        self.metrics: dict[str, Tensor] = {}  # tag -> (K,), as of the last period

        self.critic_gradient = vmap(grad_and_value(self.critic_loss))
        self.inner_gradient = vmap(grad_and_value(self.inner_loss, has_aux=True))
        self.mixed_gradient = vmap(grad(self.inner_slope))
        self.outer_gradient = vmap(grad(self.outer_loss, has_aux=True))
        if args.compile:
            self.critic_gradient = torch.compile(self.critic_gradient)
            self.inner_gradient = torch.compile(self.inner_gradient)
            self.mixed_gradient = torch.compile(self.mixed_gradient)
            self.outer_gradient = torch.compile(self.outer_gradient)
        self.use_graph = args.cudagraph and self.device.type == "cuda"
        self.graph, self.warmup_periods = None, 3
        self.stream = torch.cuda.Stream(self.device) if self.use_graph else None  # warms up and records

    def pi(self, actor: Params, s: Tensor) -> Tensor:
        return functional_call(self.actor_net, actor, (s,))

    def q(self, critic: Params, s: Tensor, a: Tensor) -> Tensor:
        return functional_call(self.critic_net, critic, (s, a))

    def q1(self, critics: Params, s: Tensor, a: Tensor) -> Tensor:
        """Q_1, the first of the twins (2, ...): the policy's losses know no other."""
        return self.q({name: p[0] for name, p in critics.items()}, s, a)

    def critic_loss(
        self, critics: Params, target_critics: Params, target_actor: Params, batch: Batch, noise: Tensor
    ) -> Tensor:
        """TD3: sum over the twins of mean (Q_j(s, a) − y)²,  y = r + γ (1 − d) min_j Q'_j(s', π'(s') + ε)."""
        s, a, next_s, r, d = batch
        epsilon = (POLICY_NOISE * noise).clamp(-NOISE_CLIP, NOISE_CLIP) * self.actor_net.action_scale
        next_a = (self.pi(target_actor, next_s) + epsilon).clamp(self.low, self.high)
        twins = vmap(self.q, in_dims=(0, None, None))  # -> (2, B)
        y = r + DISCOUNT * (1 - d) * twins(target_critics, next_s, next_a).amin(0)
        return (twins(critics, s, a) - y).square().mean(1).sum()

    def inner_loss(self, actor: Params, critics: Params, alpha: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Eq. 4: −λ mean Q_1(s, π(s)) + mean ‖π(s) − a‖²,  λ = α / mean |Q_1(s, π(s))| without gradient."""
        s, a = batch.observations, batch.actions
        pi = self.pi(actor, s)
        q = self.q1(critics, s, pi)
        lam = alpha / q.abs().mean().detach()
        return -lam * q.mean() + (pi - a).square().mean(), q.mean()

    # --- ASPC: the learnable scale ---

    def inner_slope(self, actor: Params, critics: Params, alpha: Tensor, batch: Batch) -> Tensor:
        """∂L_inner/∂α, whose gradient in θ is the mixed derivative ∂g/∂α of g = ∇_θ L_inner."""
        return grad(self.inner_loss, argnums=2, has_aux=True)(actor, critics, alpha, batch)[0]

    def outer_loss(
        self, new_actor: Params, actor: Params, critics: Params, alpha: Tensor, ema: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eqs. 6 to 9 at θ̃ = new_actor: only θ̃ carries a gradient. ‖·‖² is a mean over action dimensions, sup a
        maximum over the batch, and ΔQ the step of an average of mean Q over the updates of α, as in the released code.
        """
        s, a = batch.observations, batch.actions
        pi, new_pi = self.pi(actor, s), self.pi(new_actor, s)
        q = self.q1(critics, s, new_pi)
        bc, new_bc = (pi - a).square().mean(-1), (new_pi - a).square().mean(-1)  # (B,)
        delta_q = (1 - self.args.ema) * (q.mean() - ema)
        l_alpha = -alpha / q.abs().mean().detach() * q.mean() + new_bc.mean()  # eq. 6
        l_q = delta_q.square()  # eq. 7
        l_bc = delta_q.detach().square() * bc.max() * (new_bc - bc).abs().max()  # eq. 8
        loss = l_alpha + self.args.l_q_coef * l_q + self.args.l_bc_coef * l_bc  # eq. 9
        metrics = {
            "losses/outer": loss, "losses/L_alpha": l_alpha, "losses/L_Q": l_q, "losses/L_BC": l_bc,
            "aspc/delta_q": delta_q, "aspc/bc": new_bc.mean(),
        }
        return loss, metrics

    def inner_step(self, gradient: Params) -> Params:
        """θ̃: what Adam's next step will make of the actor, as a differentiable function of its gradient (eq. 5)."""
        state = {k: self.actor_optimizer.state[p] for k, p in self.actor.items()}
        moments = ScaleByAdamState(
            mu={k: adam["exp_avg"] for k, adam in state.items()},
            nu={k: adam["exp_avg_sq"] for k, adam in state.items()},
            count={k: adam["step"].double() for k, adam in state.items()},  # 1 − 0.999^t is too coarse in float32
        )
        # eps_root keeps the derivative of √v finite where v = 0 (dead ReLUs) and is too small to change the step
        direction, _ = scale_by_adam(eps_root=1e-30).update(gradient, moments, inplace=False)
        return {k: self.actor[k] - LEARNING_RATE * direction[k] for k in self.actor}

    def update_alpha(self, batch: Batch, outer_batch: Batch) -> Params:  # main script: one batch for both losses
        """One step on ρ along ∂L_outer/∂θ̃ · ∂θ̃/∂g · ∂g/∂α · ∂α/∂ρ (eq. 10); returns g = ∇_θ L_inner at the old α."""
        alpha = F.softplus(self.rho)
        gradient, (actor_loss, q) = self.inner_gradient(self.actor, self.critics, alpha, batch)
        slope = self.mixed_gradient(self.actor, self.critics, alpha, batch)  # ∂g/∂α, in g's shapes
        g = {k: v.detach().requires_grad_() for k, v in gradient.items()}
        new_actor = self.inner_step(g)  # θ̃(g)
        outer_gradient, metrics = self.outer_gradient(
            {k: p.detach() for k, p in new_actor.items()}, self.actor, self.critics, alpha, self.ema, outer_batch
        )
        through_adam = torch.autograd.grad(list(new_actor.values()), list(g.values()), list(outer_gradient.values()))
        alpha_gradient = sum((x * slope[k]).flatten(1).sum(1) for k, x in zip(g, through_adam, strict=True))  # (K,)
        rho_gradient = alpha_gradient * self.rho.sigmoid()  # the derivative of softplus
        updates = self.rho_optimizer.state[self.rho]["step"].double()
        total_updates = max(1, self.args.total_steps // self.period_steps)
        self.rho_lr.copy_(self.args.alpha_lr * self.args.alpha_interval / 10 * 0.01 ** (updates / total_updates))
        apply(self.rho_optimizer, {"rho": rho_gradient})
        self.ema += metrics["aspc/delta_q"]
        self.metrics |= metrics | {
            "losses/actor": actor_loss, "losses/q": q, "aspc/alpha": alpha, "aspc/alpha_grad": rho_gradient,
        }
        return gradient

    # --- One period of updates ---

    def read_batch(self, row: int) -> Batch:  # main script: these two lines stand in `period`
        s, a, next_s, r, d = self.rows[self.indices[:, row]].split(self.widths, -1)
        return Batch(s, a, next_s, r.squeeze(-1), d.squeeze(-1))  # (K, B, ...)

    def period(self) -> None:
        """The schedule's shortest repeat: critics at every step, policy and targets at every second, α at the last.

        It reads the static inputs and touches tensors on the device alone, so a CUDA graph can record it.
        """
        for step in range(self.period_steps):
            batch = self.read_batch(step)
            gradient, self.metrics["losses/critic"] = self.critic_gradient(
                self.critics, self.target_critics, self.target_actor, batch, self.noise[:, step]
            )
            apply(self.critic_optimizer, gradient)
            if (step + 1) % POLICY_FREQ == 0:
                if step + 1 == self.period_steps:
                    gradient = self.update_alpha(batch, self.read_batch(self.period_steps))
                else:
                    gradient, (self.metrics["losses/actor"], self.metrics["losses/q"]) = self.inner_gradient(
                        self.actor, self.critics, F.softplus(self.rho), batch
                    )
                apply(self.actor_optimizer, gradient)
                polyak(self.target_actor, self.actor)
                polyak(self.target_critics, self.critics)

    def advance(self) -> None:
        """Draw one period's batches and noise, each seed from its own generator, and run it."""
        for indices, noise, generator in zip(self.indices, self.noise, self.generators, strict=True):
            indices.random_(0, len(self.rows), generator=generator)
            noise.normal_(generator=generator)
        if not self.use_graph:
            self.period()
        elif self.warmup_periods > 0:  # capturing wants a few runs on a side stream first: updates like any other
            self.warmup_periods -= 1
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                self.period()
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=self.stream):  # records, runs nothing
                    self.period()
            self.graph.replay()

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Each seed's deterministic actions: (K, E, S) -> (K, E, A)."""
        with torch.no_grad():
            inputs = torch.as_tensor(observations, dtype=self.noise.dtype, device=self.device)
            return vmap(self.pi)(self.actor, inputs).cpu().numpy()

    def saved_actor(self, k: int) -> Params:
        """The actor of the k-th seed, its normalisation included: a state dict for `Actor`."""
        tensors = dict(self.actor_net.named_buffers()) | {name: p[k] for name, p in self.actor.items()}
        return {name: tensor.clone().cpu() for name, tensor in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        networks = {
            "actor": self.actor, "critics": self.critics,
            "target_actor": self.target_actor, "target_critics": self.target_critics,
        }
        optimizers = {"actor": self.actor_optimizer, "critics": self.critic_optimizer, "rho": self.rho_optimizer}
        tensors = {f"{net}.{name}": p for net, parameters in networks.items() for name, p in parameters.items()}
        for name, optimizer in optimizers.items():
            for i, state in enumerate(optimizer.state.values()):
                tensors |= {f"{name}.adam.{i}.{key}": value for key, value in state.items()}
        return tensors | {"rho": self.rho, "ema": self.ema}

    def load(self, tensors: dict[str, Tensor], generators: list[Tensor]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        for generator, state in zip(self.generators, generators, strict=True):
            generator.set_state(state)


# --- Evaluation -------------------------------------------------------------------------------------------------------


def evaluate(act, env_id: str, seeds: list[int], episodes: int, progress: bool = False) -> np.ndarray:
    """Undiscounted returns (K, E) of E episodes for each of K seeds, all stepped together.

    act: (K, E, S) observations -> (K, E, A) actions. Episodes are a function of the seed alone: every evaluation of a
    seed starts from the same initial states.
    """
    envs = [[gymnasium.make(env_id) for _ in range(episodes)] for _ in seeds]
    observations = np.stack(
        [[env.reset(seed=1000 * seed + e)[0] for e, env in enumerate(envs[k])] for k, seed in enumerate(seeds)]
    )
    returns = np.zeros((len(seeds), episodes))
    running = np.ones((len(seeds), episodes), bool)
    total = envs[0][0].spec.max_episode_steps
    with tqdm(desc="evaluation", total=total, unit="step", leave=False, mininterval=1, disable=not progress) as bar:
        while running.any():
            actions = act(observations)
            for k, e in np.argwhere(running):
                observations[k, e], reward, terminated, truncated, _ = envs[k][e].step(actions[k, e])
                returns[k, e] += reward
                running[k, e] = not (terminated or truncated)
            bar.update()
    return returns


def normalized_score(env_id: str, returns: np.ndarray) -> float | None:
    """The mean episode's score in percent: D4RL's, 0 a random policy's and 100 an expert's; OGBench's, the rate of
    success; None for a task without reference scores.
    """
    return 100 * float(d4rl.get_normalized_score(env_id, returns).mean()) if env_id in d4rl.ALL_TASKS else None


def summary(env_id: str, returns: np.ndarray, source: str) -> str:
    score = normalized_score(env_id, returns)
    text = f"return {returns.mean():.1f} +- {returns.std():.1f} over {returns.size} episodes"
    text += "" if score is None else f", normalized score {score:.1f}"
    return text + " (trained on stand-in data)" * ("stand-in" in source)


def evaluate_saved(args: Args) -> None:
    """`--eval RUN_DIR`: evaluate the run's actor.pt, and record a video if one is asked for."""
    config, saved = read_config(args.eval), load_tensors(Path(args.eval) / "actor.pt")
    env_id, seed = config["args"]["env_id"], config["seed"]
    actor = Actor(saved["mean"], saved["std"], -saved["action_scale"], saved["action_scale"])  # the shapes count
    actor.load_state_dict(saved)

    def act(observations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return actor(torch.as_tensor(observations, dtype=actor.mean.dtype)).numpy()

    returns = evaluate(act, env_id, [seed], args.final_eval_episodes, progress=True)
    print(f"{env_id}, seed {seed}: {summary(env_id, returns, config['dataset']['source'])}")
    if args.render_video:
        record_video(act, env_id, seed, args.render_video)


def record_video(act: Callable, env_id: str, seed: int, path: str) -> None:
    """Record the seed's first evaluation episode as an .mp4 file."""
    import imageio  # with imageio-ffmpeg, needed for this alone

    try:
        env = gymnasium.make(env_id, render_mode="rgb_array")
        observation, done = env.reset(seed=1000 * seed)[0], False
        frames = [env.render()]
    except Exception as error:  # MuJoCo raises many types where it finds no OpenGL
        sys.exit(f"Rendering failed ({error}): without a display set MUJOCO_GL=egl, or MUJOCO_GL=osmesa without a GPU.")
    while not done:
        observation, _, terminated, truncated, _ = env.step(act(observation[None, None])[0, 0])
        frames.append(env.render())
        done = terminated or truncated
    imageio.mimwrite(path, frames, fps=env.metadata["render_fps"], macro_block_size=1)
    print(f"{path}: {len(frames)} frames")


# --- What a run leaves behind -----------------------------------------------------------------------------------------


def save(path: Path, content: bytes) -> None:
    """Write aside and rename, so that neither a kill nor a full disk costs the file that was there."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_json(path: Path, value: dict) -> None:
    save(path, (json.dumps(value, indent=2) + "\n").encode())


def save_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    save(path, text.getvalue().encode())


def save_tensors(path: Path, value: dict) -> None:
    buffer = io.BytesIO()  # torch.save itself reports a full disk in ways of its own
    torch.save(value, buffer)
    save(path, buffer.getvalue())


def load_tensors(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        sys.exit(f"{path} is missing or damaged ({type(error).__name__}).")


def read_config(run: str) -> dict:
    try:
        config = json.loads((Path(run) / "config.json").read_text())
        script, unknown = config["script"], set(config["args"]) - {f.name for f in fields(Args)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{run} is not a run directory: no config.json of a run can be read there ({error}).")
    if script != Path(__file__).stem:
        sys.exit(f"{run} is a run of another script, {script}.")
    if unknown:
        sys.exit(f"{run} is a run of another version of this script: it has {', '.join(unknown)} among its arguments.")
    return config


def describe(args: Args, seed: int, device: str, dataset: d4rl.DatasetFile, group: list[Path]) -> dict:
    """config.json: what it takes to repeat the run and to trace its numbers."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    packages = ("torch", "torchopt", "numpy", "gymnasium", "mujoco")
    return {
        "script": Path(__file__).stem,
        "seed": seed,
        "args": asdict(args),
        "group": [path.name for path in group],  # all seeds trained together; the first holds their checkpoint
        "dataset": {"path": str(dataset.path), "sha256": dataset.sha256, "source": dataset.source},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in packages},
        "commit": commit or None,
    }


# --- Main -------------------------------------------------------------------------------------------------------------


def check(args: Args) -> None:
    """Exit with a sentence where an argument cannot work."""
    for f in fields(args):
        least = 0 if f.name == "seed" else 1
        if f.type is int and getattr(args, f.name) < least:
            sys.exit(f"--{f.name.replace('_', '-')} must be at least {least}.")
    if not (0 < args.alpha_init < math.inf and args.alpha_lr >= 0 and 0 <= args.ema < 1):
        sys.exit("--alpha-init must be positive, --alpha-lr at least 0, and --ema at least 0 and below 1.")
    if args.render_video and not args.eval:
        sys.exit("--render-video records a saved actor: name its run directory with --eval.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        sys.exit("--device must be auto, cpu, cuda or cuda:N.")
    if args.device.startswith("cuda") and int(args.device[5:] or 0) >= torch.cuda.device_count():
        sys.exit(f"--device {args.device}: PyTorch finds no such GPU; use --device cpu, or a CUDA build of PyTorch.")
    if args.track and importlib.util.find_spec("wandb") is None:
        sys.exit("--track needs Weights & Biases: pip install wandb.")
    if args.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        sys.exit("--compile needs a C++ compiler, and none is on the PATH: install g++, or train without --compile.")


def main(args: Args) -> None:
    checkpoint = None
    if args.resume or args.eval:
        own = ["resume"] if args.resume else ["eval", "final_eval_episodes", "render_video"]
        given = [f.name for f in fields(args) if f.name not in own and getattr(args, f.name) != f.default]
        if given:
            sys.exit(f"--{own[0]} takes this from the run itself: drop --{' --'.join(given).replace('_', '-')}.")
    if args.resume:
        config = read_config(args.resume)
        paths = [Path(args.resume).resolve().parent / name for name in config["group"]]
        if (paths[-1] / "result.json").exists():
            sys.exit(f"{args.resume} is complete: see its result.json.")
        if not (paths[0] / "checkpoint.pt").exists():
            sys.exit(f"{paths[0]} holds no checkpoint.pt: the run ended before its first one, so start it anew.")
        args, checkpoint = Args(**config["args"]), load_tensors(paths[0] / "checkpoint.pt")
    check(args)
    if args.eval:
        return evaluate_saved(args)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device).index or 0)
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable")  # it warms up first
    torch.set_float32_matmul_precision(args.matmul_precision)

    # --- Environment, data, agent ---
    try:
        env = gymnasium.make(args.env_id)
    except (gymnasium.error.Error, ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"--env-id {args.env_id}: {error} (`python -m d4rl_gymnasium list` shows D4RL's tasks.)")
    dataset = d4rl.find_dataset(env, args.dataset_path, args.stand_in)
    if checkpoint and checkpoint["dataset_sha256"] != dataset.sha256:
        sys.exit(f"{dataset.path} is not the file that this run was trained on: its sha256 differs.")
    if checkpoint and (config["device"] == "cpu") != (device == "cpu"):
        sys.exit(f"{paths[0]} was trained on {config['device']}, whose random numbers {device} cannot continue.")
    agent = Agent(args, d4rl.qlearning_dataset(env, dataset), env.action_space.low, env.action_space.high, device)
    seeds = [args.seed + k for k in range(args.num_seeds)]
    step, seconds, history = 0, 0.0, [[] for _ in seeds]  # history: each seed's rows of metrics.csv
    if checkpoint:
        agent.load(checkpoint["tensors"], checkpoint["generators"])
        step, seconds, history = checkpoint["step"], checkpoint["seconds"], checkpoint["history"]
        for seed, path in zip(seeds, paths, strict=True):  # config.json tells of each resumption with what it went on
            config, here = read_config(str(path)), describe(args, seed, device, dataset, paths)
            here = {"step": step} | {key: here[key] for key in ("device", "versions", "commit")}
            save_json(path / "config.json", config | {"resumed": config.get("resumed", []) + [here]})
    else:
        timestamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        name = f"{args.env_id.replace('/', '-')}__{Path(__file__).stem}__%d__{timestamp}"
        name += "__stand-in" * ("stand-in" in dataset.source)
        paths = [Path(args.runs_dir) / (name % seed) for seed in seeds]
        for seed, path in zip(seeds, paths, strict=True):
            path.mkdir(parents=True)
            save_json(path / "config.json", describe(args, seed, device, dataset, paths))
    print(f"{args.env_id}: {len(agent.rows):,} transitions ({dataset.source}), on {device}", *paths, sep="\n")

    # --- Logging, checkpoints, Ctrl-C ---
    writers, trackers = [SummaryWriter(str(path), purge_step=step + 1) for path in paths], []
    if args.track:
        import wandb

        for path in paths:
            trackers.append(
                wandb.init(project="aspc", name=path.name, id=path.name, config=read_config(str(path)),
                           resume="allow", reinit="create_new")
            )

    def log(k: int, values: dict[str, float | None]) -> None:
        values = {tag: value for tag, value in values.items() if value is not None}
        for tag, value in values.items():
            writers[k].add_scalar(tag, value, step)
        if trackers:
            trackers[k].log(values, step=step)

    def require_finite(tensors: dict[str, Tensor]) -> None:
        """Exit at the first quantity, (K, ...), that is not finite, before it reaches an evaluation or a checkpoint."""
        finite = {name: t.isfinite().reshape(len(seeds), -1).all(1) for name, t in tensors.items() if t.ndim}
        for i, k in torch.stack(list(finite.values())).logical_not().nonzero().tolist():  # waits for the device
            sys.exit(f"Seed {seeds[k]} diverged: {list(finite)[i]} is not finite at step {step}. The last checkpoint "
                     f"before, if there is one, is in {paths[0]}.")

    def save_checkpoint() -> None:
        state = {
            "step": step, "seconds": seconds, "history": history, "dataset_sha256": dataset.sha256,
            "tensors": agent.tensors(), "generators": [generator.get_state() for generator in agent.generators],
        }
        save_tensors(paths[0] / "checkpoint.pt", state)
        for k, path in enumerate(paths):
            save_tensors(path / "actor.pt", agent.saved_actor(k))

    stop = []

    def request_stop(number: int, _) -> None:
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    handlers = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}

    # --- Training ---
    bar = tqdm(total=args.total_steps, initial=step, unit="step", dynamic_ncols=True, mininterval=1)
    start, start_step = time.time(), step
    while step < args.total_steps and not stop:
        agent.advance()
        step += agent.period_steps
        bar.update(agent.period_steps)
        log_due, eval_due, checkpoint_due = (
            step % interval < agent.period_steps or step >= args.total_steps
            for interval in (LOG_INTERVAL, args.eval_interval, args.checkpoint_interval)
        )
        if not (log_due or eval_due or checkpoint_due or stop):
            continue
        require_finite(agent.metrics | agent.tensors())
        updates_per_second = (step - start_step) / (time.time() - start)
        seconds += time.time() - start
        values = torch.stack([value.double() for value in agent.metrics.values()], 1).tolist()  # (K, metrics)
        metrics = [dict(zip(agent.metrics, row, strict=True)) for row in values]
        for k in range(len(seeds)):
            log(k, metrics[k] | {"charts/SPS": updates_per_second})
        if eval_due:
            for k, returns in enumerate(evaluate(agent.act, args.env_id, seeds, args.eval_episodes)):
                evaluation = {
                    "charts/episodic_return": returns.mean().item(),
                    "charts/normalized_score": normalized_score(args.env_id, returns),
                }
                log(k, evaluation)
                row = {"step": step, "seconds": seconds, "charts/SPS": updates_per_second} | evaluation
                history[k].append(row | {"episodic_return_std": returns.std().item()} | metrics[k])
                save_csv(paths[k] / "metrics.csv", history[k])
        if checkpoint_due:
            save_checkpoint()
        scores = np.array([rows[-1]["charts/normalized_score"] for rows in history if rows], float)
        alphas = np.array([values["aspc/alpha"] for values in metrics])
        bar.set_postfix_str(f"score {scores.round(1)}, alpha {alphas.round(2)}")
        start, start_step = time.time(), step
    bar.close()
    if stop:
        save_checkpoint()
    for closing in writers:
        closing.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if stop:
        print(f"Stopped at step {step}. To continue: python {sys.argv[0]} --resume {paths[0]}")
        sys.exit(128 + stop[0])

    # --- Final evaluation ---
    final_returns = evaluate(agent.act, args.env_id, seeds, args.final_eval_episodes, progress=True)
    for k, path in enumerate(paths):
        result = {
            "env_id": args.env_id, "script": Path(__file__).stem, "seed": seeds[k], "dataset": dataset.source,
            "steps": step, "seconds": seconds, "final_score": normalized_score(args.env_id, final_returns[k]),
            "final_returns": final_returns[k].tolist(), "last": history[k][-1],
            "best": max(history[k], key=lambda row: row["charts/episodic_return"]),
        }
        save_json(path / "result.json", result)
        print(f"Seed {seeds[k]}: {summary(args.env_id, final_returns[k], dataset.source)}")
    for tracker in trackers:
        tracker.finish()


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except d4rl.DatasetError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. A run that has a checkpoint continues with --resume RUN_DIR.")
    except OSError as error:
        sys.exit(f"{error}. A run that has a checkpoint is intact: continue with --resume RUN_DIR.")
