"""FQL: Q-learning with a one-step policy distilled from a flow of actions, a baseline on which ASPC builds.

A teacher v_θ learns to carry noise along a flow to the actions of a fixed dataset D of (s, a); the student μ_ω is the
policy and makes an action of noise z in one step. It is trained with the loss

    L(ω) = α L_distill(ω) − E[ Q(s, μ_ω(s, z)) ]
    L_distill(ω) = E ‖μ_ω(s, z) − â(s, z)‖²,    â(s, z): where the teacher's flow carries z

and a constant α that weighs "do as the teacher does" against "maximise Q". With --tuned it and a few other settings
are those that the official code has for the task.

Paper: Flow Q-Learning, ICML 2025, arXiv:2502.02538.
Method, metrics and differences from the official code: docs/fql.md.

    python baselines/fql.py --env-id maze2d-umaze-v1
"""

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import d4rl_gymnasium as d4rl

# FQL's constants, the same on every task
TAU = 0.005  # Polyak rate of the target critics
LEARNING_RATE = 3e-4
FLOW_STEPS = 10  # of Euler's method along the teacher's flow
PERIOD = 10  # gradient steps in one unit of work
LOG_INTERVAL = 1000  # gradient steps between two reads of the metrics


@dataclass
class Args:
    env_id: str = "maze2d-umaze-v1"
    """the task: an id of D4RL or OGBench (`python -m d4rl_gymnasium list`), or any gymnasium id with --dataset-path"""
    seed: int = 0
    """the first seed: it fixes initial weights, batches, noise and evaluation episodes"""
    num_seeds: int = 1
    """seeds trained together in this process: seed, seed+1, ... (meant for a GPU, which one seed leaves almost idle)"""
    total_steps: int = 1_000_000
    """gradient steps (of critics, teacher and student alike), rounded up to whole periods of 10"""
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


# --- The official code's settings for each task -----------------------------------------------------------------------

OFFICIAL = {"discount": 0.99, "q_agg": "mean", "reward_shift": 0.0}
TUNED = {  # what differs from that
    f"antmaze-{maze}-v2": {"reward_shift": -1.0}
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
}
TUNED |= {
    f"{task}-{data}-v1": {"q_agg": "min"}
    for task in ("pen", "door", "hammer", "relocate")
    for data in ("human", "cloned", "expert")
}
TUNED |= {f"antmaze-large-navigate-singletask-task{n}-v0": {"q_agg": "min"} for n in range(1, 6)}
TUNED |= {f"antmaze-giant-navigate-singletask-task{n}-v0": {"q_agg": "min", "discount": 0.995} for n in range(1, 6)}
ALPHAS = {  # where it is not 10
    "antmaze-large-play-v2": 3.0, "antmaze-large-diverse-v2": 3.0,
    "pen-human-v1": 1e4, "pen-cloned-v1": 1e4, "pen-expert-v1": 3e3,
    "door-human-v1": 3e4, "door-cloned-v1": 3e4, "door-expert-v1": 3e4,
    "hammer-human-v1": 3e4, "hammer-cloned-v1": 1e4, "hammer-expert-v1": 3e4,
    "relocate-human-v1": 1e4, "relocate-cloned-v1": 3e4, "relocate-expert-v1": 3e4,
}  # fmt: skip


def tuned(args: Args) -> Args:
    if args.env_id not in TUNED:
        sys.exit(f"--tuned: the official code has no settings for {args.env_id}; set --discount, --q-agg, ... instead.")
    settings = OFFICIAL | TUNED[args.env_id] | {"alpha": ALPHAS.get(args.env_id, 10.0)}
    print("Official settings:", ", ".join(f"{name} {value}" for name, value in settings.items()))
    return replace(args, **settings)


# --- Networks: written for one seed -----------------------------------------------------------------------------------


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
    """The student μ_ω: observations (..., S), noise z (..., A) -> what it makes of it (..., A).

    Here actions are scaled to [−1, 1]. What it makes may lie outside; `action` is what then acts.
    """

    def __init__(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.net = mlp(len(mean) + len(low), len(low))

    def forward(self, observations: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([(observations - self.mean) / self.std, z], -1))

    def action(self, x: Tensor) -> Tensor:
        return self.action_bias + self.action_scale * x.clamp(-1, 1)


class Teacher(nn.Module):
    """The field v_θ of velocities: observations (..., S), x_t (..., A), times t (..., 1) -> dx_t/dt (..., A)."""

    def __init__(self, mean: Tensor, std: Tensor, action_dim: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.net = mlp(len(mean) + action_dim + 1, action_dim)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([(observations - self.mean) / self.std, x, t], -1))


def euler(velocity: Callable, x: Tensor) -> Tensor:
    """Carry x (..., A) along dx/dt = velocity(x, t), t (..., 1), from time 0 to 1 by FLOW_STEPS steps of Euler's."""
    for step in range(FLOW_STEPS):
        x = x + velocity(x, torch.full_like(x[..., :1], step / FLOW_STEPS)) / FLOW_STEPS
    return x


class Critic(nn.Module):
    """One Q function: observations (..., S), actions (..., A) -> values (...)."""

    def __init__(self, mean: Tensor, std: Tensor, action_dim: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.net = mlp(len(mean) + action_dim, 1, norm=True)

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


class Noise(NamedTuple):
    """The random numbers of one seed's gradient step: normal, but for t, which is uniform in [0, 1)."""

    z: Tensor  # (B, A), of the actions at s, the student's and the teacher's
    next_z: Tensor  # (B, A), of the student's actions at s'
    x0: Tensor  # (B, A), where the paths of L_flow begin
    t: Tensor  # (B, 1), of L_flow


def adam(parameters: list[Tensor], learning_rate: float | Tensor) -> torch.optim.Adam:
    """Fused Adam whose state exists before the first step, so that a CUDA graph can hold it."""
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
        state_dim = data["observations"].shape[1]
        mean, std = torch.zeros(state_dim), torch.ones(state_dim)  # the official code does not normalise observations
        low, high = torch.as_tensor(low, dtype=dtype), torch.as_tensor(high, dtype=dtype)
        margin = (1e-5 * (high - low) / 2).numpy()  # the official code keeps the data's actions off the bounds
        data = data | {"actions": np.clip(data["actions"], low.numpy() + margin, high.numpy() - margin)}
        actors, teachers, critics = [], [], []
        for seed in range(args.seed, args.seed + args.num_seeds):
            torch.manual_seed(seed)
            actors.append(Actor(mean, std, low, high).to(device))
            teachers.append(Teacher(mean, std, len(low)).to(device))
            critics += [Critic(mean, std, len(low)).to(device) for _ in range(2)]
        # One module of each kind lends its `forward`; the parameters are stacked beside it.
        self.actor_net, self.critic_net = actors[0], critics[0]
        self.teacher_net = teachers[0]
        K = args.num_seeds
        self.actor: Params = {k: v.detach() for k, v in stack_module_state(actors)[0].items()}  # (K, ...)
        self.teacher: Params = {k: v.detach() for k, v in stack_module_state(teachers)[0].items()}
        self.critics: Params = {
            k: v.detach().unflatten(0, (K, 2)).contiguous()
            for k, v in stack_module_state(critics)[0].items()
        }  # (K, 2, ...): the twins
        self.target_critics = {k: v.clone() for k, v in self.critics.items()}
        self.actor_optimizer = adam(list(self.actor.values()), LEARNING_RATE)
        self.teacher_optimizer = adam(list(self.teacher.values()), LEARNING_RATE)
        self.critic_optimizer = adam(list(self.critics.values()), LEARNING_RATE)

        # Static inputs of a period: the dataset as one table, and for each step its batch indices and noise
        columns = [torch.as_tensor(data[key], dtype=dtype).reshape(len(data[key]), -1) for key in Batch._fields]
        self.rows = torch.cat(columns, 1).to(device)  # (N, 2S + A + 2)
        self.widths = [c.shape[1] for c in columns]
        self.period_steps = PERIOD
        self.indices = torch.zeros(K, self.period_steps, args.batch_size, dtype=torch.int64, device=device)
        self.noise = Noise(
            *(torch.zeros(*self.indices.shape, len(low), dtype=dtype, device=device) for _ in range(3)),
            t=torch.zeros(*self.indices.shape, 1, dtype=dtype, device=device),
        )
        self.generators = [torch.Generator(device).manual_seed(args.seed + k) for k in range(K)]
        self.metrics: dict[str, Tensor] = {}  # tag -> (K,), as of the last period

        self.imitated = vmap(self.imitate)
        self.critic_gradient = vmap(grad_and_value(self.critic_loss))
        self.teacher_gradient = vmap(grad_and_value(self.flow_loss))
        self.policy_gradient = vmap(grad_and_value(self.policy_loss, has_aux=True))
        if args.compile:
            self.imitated = torch.compile(self.imitated)
            self.critic_gradient = torch.compile(self.critic_gradient)
            self.teacher_gradient = torch.compile(self.teacher_gradient)
            self.policy_gradient = torch.compile(self.policy_gradient)
        self.use_graph = args.cudagraph and self.device.type == "cuda"
        self.graph, self.warmup_periods = None, 3
        self.stream = torch.cuda.Stream(self.device) if self.use_graph else None  # warms up and records

    def pi(self, actor: Params, s: Tensor, z: Tensor) -> Tensor:
        """The student's action for each s, (..., A), of noise (..., A)."""
        return self.actor_net.action(functional_call(self.actor_net, actor, (s, z)))

    def q(self, critic: Params, s: Tensor, a: Tensor) -> Tensor:
        return functional_call(self.critic_net, critic, (s, a))

    def critic_loss(
        self, critics: Params, target_critics: Params, actor: Params, batch: Batch, noise: Noise
    ) -> Tensor:
        """Mean over j of mean (Q_j(s, a) − y)²,  y = r + γ (1 − d) mean_j or min_j Q'_j(s', μ(s', z'))."""
        s, a, next_s, r, d = batch
        twins = vmap(self.q, in_dims=(0, None, None))  # -> (2, B)
        next_q = twins(target_critics, next_s, self.pi(actor, next_s, noise.next_z))
        next_q = next_q.amin(0) if self.args.q_agg == "min" else next_q.mean(0)
        y = r + self.args.discount * (1 - d) * next_q
        return (twins(critics, s, a) - y).square().mean()

    def flow_loss(self, teacher: Params, batch: Batch, noise: Noise) -> Tensor:
        """L_flow: mean (v(s, x_t, t) − (x_1 − x_0))²,  x_t = (1 − t) x_0 + t x_1: lines from noise to actions."""
        x0, x1 = noise.x0, (batch.actions - self.actor_net.action_bias) / self.actor_net.action_scale
        x = (1 - noise.t) * x0 + noise.t * x1
        velocity = functional_call(self.teacher_net, teacher, (batch.observations, x, noise.t))
        return (velocity - (x1 - x0)).square().mean()

    def imitate(self, teacher: Params, s: Tensor, z: Tensor) -> Tensor:
        """â(s, z): where the teacher's flow carries the noise z (..., A), clipped to [−1, 1], (..., A)."""
        return euler(lambda x, t: functional_call(self.teacher_net, teacher, (s, x, t)), z).clamp(-1, 1)

    def policy_terms(
        self, actor: Params, critics: Params, batch: Batch, noise: Noise, imitated: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the student's losses are made of: mean Q(s, μ(s, z)) of both critics, mean |Q(s, μ(s, z))| without
        gradient, and L_distill. imitated is â(s, z).
        """
        s = batch.observations
        x = functional_call(self.actor_net, actor, (s, noise.z))
        q = vmap(self.q, in_dims=(0, None, None))(critics, s, self.actor_net.action(x)).mean(0)  # (B,)
        return q.mean(), q.abs().mean().detach(), (x - imitated).square().mean()

    def policy_loss(
        self, actor: Params, critics: Params, batch: Batch, noise: Noise, imitated: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """−mean Q(s, μ(s, z)) + α L_distill; with --normalize-q-loss the first is over mean |Q|, without gradient."""
        q, scale, distillation = self.policy_terms(actor, critics, batch, noise, imitated)
        q_loss = -q / scale if self.args.normalize_q_loss else -q
        return q_loss + self.args.alpha * distillation, (q, distillation)

    # --- One period of updates ---

    def period(self) -> None:
        """PERIOD gradient steps: critics, teacher, student and targets at every step.

        It reads the static inputs and touches tensors on the device alone, so a CUDA graph can record it.
        """
        for step in range(self.period_steps):
            s, a, next_s, r, d = self.rows[self.indices[:, step]].split(self.widths, -1)
            batch = Batch(s, a, next_s, r.squeeze(-1), d.squeeze(-1))  # (K, B, ...)
            noise = Noise(*(x[:, step] for x in self.noise))
            imitated = self.imitated(self.teacher, s, noise.z)
            critic_gradient, self.metrics["losses/critic"] = self.critic_gradient(
                self.critics, self.target_critics, self.actor, batch, noise
            )
            teacher_gradient, self.metrics["losses/flow"] = self.teacher_gradient(self.teacher, batch, noise)
            gradient, (actor_loss, (q, distillation)) = self.policy_gradient(
                self.actor, self.critics, batch, noise, imitated
            )
            self.metrics |= {"losses/actor": actor_loss, "losses/q": q, "losses/distillation": distillation}
            polyak(self.target_critics, self.critics)  # before the steps: every update sees what the last one left
            apply(self.critic_optimizer, critic_gradient)
            apply(self.teacher_optimizer, teacher_gradient)
            apply(self.actor_optimizer, gradient)

    def advance(self) -> None:
        """Draw one period's batches and noise, each seed from its own generator, and run it."""
        for k, generator in enumerate(self.generators):
            self.indices[k].random_(0, len(self.rows), generator=generator)
            for normal in (self.noise.z, self.noise.next_z, self.noise.x0):
                normal[k].normal_(generator=generator)
            self.noise.t[k].uniform_(generator=generator)
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

    def act(self, observations: np.ndarray, generators: list[torch.Generator]) -> np.ndarray:
        """Each seed's actions, of noise from its own generator of the CPU: (K, E, S) -> (K, E, A)."""
        with torch.no_grad():
            inputs = torch.as_tensor(observations, dtype=self.rows.dtype, device=self.device)
            shape = (inputs.shape[1], len(self.actor_net.action_bias))
            z = torch.stack([torch.randn(shape, generator=g, dtype=inputs.dtype) for g in generators])
            return vmap(self.pi)(self.actor, inputs, z.to(self.device)).cpu().numpy()

    def saved_actor(self, k: int) -> Params:
        """The student of the k-th seed, its normalisation included: a state dict for `Actor`."""
        tensors = dict(self.actor_net.named_buffers()) | {name: p[k] for name, p in self.actor.items()}
        return {name: tensor.clone().cpu() for name, tensor in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        networks = {
            "actor": self.actor, "teacher": self.teacher, "critics": self.critics,
            "target_critics": self.target_critics,
        }
        optimizers = {
            "actor": self.actor_optimizer, "teacher": self.teacher_optimizer, "critics": self.critic_optimizer,
        }
        tensors = {f"{net}.{name}": p for net, parameters in networks.items() for name, p in parameters.items()}
        for name, optimizer in optimizers.items():
            for i, state in enumerate(optimizer.state.values()):
                tensors |= {f"{name}.adam.{i}.{key}": value for key, value in state.items()}
        return tensors

    def load(self, tensors: dict[str, Tensor], generators: list[Tensor]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        for generator, state in zip(self.generators, generators, strict=True):
            generator.set_state(state)


# --- Evaluation -------------------------------------------------------------------------------------------------------


def evaluate(act, env_id: str, seeds: list[int], episodes: int, progress: bool = False) -> np.ndarray:
    """Undiscounted returns (K, E) of E episodes for each of K seeds, all stepped together.

    act: (K, E, S) observations, K generators -> (K, E, A) actions. Episodes are a function of the seed alone: every
    evaluation of a seed starts from the same initial states, and draws the same numbers for its actions.
    """
    generators = [torch.Generator().manual_seed(1000 * seed) for seed in seeds]
    envs = [[gymnasium.make(env_id) for _ in range(episodes)] for _ in seeds]
    observations = np.stack(
        [[env.reset(seed=1000 * seed + e)[0] for e, env in enumerate(envs[k])] for k, seed in enumerate(seeds)]
    )
    returns = np.zeros((len(seeds), episodes))
    running = np.ones((len(seeds), episodes), bool)
    total = envs[0][0].spec.max_episode_steps
    with tqdm(desc="evaluation", total=total, unit="step", leave=False, mininterval=1, disable=not progress) as bar:
        while running.any():
            actions = act(observations, generators)
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

    def act(observations: np.ndarray, generators: list[torch.Generator]) -> np.ndarray:
        with torch.no_grad():
            s = torch.as_tensor(observations[0], dtype=actor.mean.dtype)
            z = torch.randn(len(s), len(actor.action_bias), generator=generators[0], dtype=s.dtype)
            return actor.action(actor(s, z))[None].numpy()

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
        frames, generators = [env.render()], [torch.Generator().manual_seed(1000 * seed)]
    except Exception as error:  # MuJoCo raises many types where it finds no OpenGL
        sys.exit(f"Rendering failed ({error}): without a display set MUJOCO_GL=egl, or MUJOCO_GL=osmesa without a GPU.")
    while not done:
        observation, _, terminated, truncated, _ = env.step(act(observation[None, None], generators)[0, 0])
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
    packages = ("torch", "numpy", "gymnasium", "mujoco")
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
    if not 0 < args.discount < 1:
        sys.exit("--discount must lie between 0 and 1.")
    if args.alpha < 0:
        sys.exit("--alpha must be at least 0.")
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
    elif args.tuned:
        args = tuned(args)
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
    data = d4rl.qlearning_dataset(env, dataset)
    data["rewards"] += args.reward_shift
    agent = Agent(args, data, env.action_space.low, env.action_space.high, device)
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
        bar.set_postfix_str(f"score {scores.round(1)}")
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
