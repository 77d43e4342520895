"""A script in small: linear policies on an environment of 20 steps, for the tests of offline_run."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from offline_run import Run, RunArgs, evaluate_saved, launch


class DatasetError(Exception):
    """A sentence for users."""


class Walk(gymnasium.Env):
    """Stay near the origin of the plane. The options make it behave as other environments do."""

    def __init__(
        self, render_mode=None, low=-1.0, high=1.0, dtype=np.float32, integer=False, nan=None, fail=0,
        modes=("rgb_array",),
    ):  # fmt: skip
        self.metadata = {"render_modes": list(modes)}
        self.render_mode, self.integer, self.nan, self.fail = render_mode, integer, nan, fail
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, (2,), dtype)

    def observe(self):
        return np.rint(self.place).astype(int) if self.integer else self.place.astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(size=2), 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype)), action
        self.time += 1
        self.place = self.place + 0.3 * action + 0.1 * self.np_random.normal(size=2)
        reward = -float(np.linalg.norm(self.place))
        if self.time == self.fail and multiprocessing.parent_process():
            os._exit(1)  # as the system does with a process that takes too much memory
        if self.nan == "reward" and self.time > 5:
            reward = float("nan")
        if self.nan == "observation" and self.time > 5:
            self.place[0] = np.nan
        return self.observe(), reward, bool(reward < -4), False, {}

    def render(self):
        return np.full((32, 32, 3), 10 * self.time, np.uint8)


def register(name: str, max_episode_steps: int | None = 20, **options) -> None:
    if name not in gymnasium.registry:  # this file may run as a script and be imported, too
        gymnasium.register(name, entry_point=Walk, max_episode_steps=max_episode_steps, kwargs=options)


register("Toy/Walk-v0")
register("Toy/Endless-v0", None)
register("Toy/NanReward-v0", nan="reward")
register("Toy/NanObservation-v0", nan="observation")
register("Toy/Whole-v0", integer=True, low=-3, high=3, dtype=np.int64)
register("Toy/Uneven-v0", low=-0.1, high=0.7)
register("Toy/Deadly-v0", fail=3)
register("Toy/Dark-v0", modes=())


@dataclass
class Args(RunArgs):
    env_id: tuple[str, ...] = ("Toy/Walk-v0",)
    """the task, and a θ that ASCII lacks"""
    seed: int = 0
    """the first seed"""
    num_seeds: int = 1
    """how many"""
    total_steps: int = 1_000_000
    """gradient steps"""
    batch_size: int = 8
    """rows of a batch"""
    alpha_init: float = 2.5
    """where α starts"""
    stochastic: bool = False
    """add noise to the actions"""

    def check(self) -> None:
        if not self.alpha_init > 0:
            sys.exit("--alpha-init must be positive.")


class Policy(nn.Module):
    """count: periods that the agent had trained."""

    def __init__(self, weight: Tensor, noise: Tensor, count: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("noise", noise)
        self.register_buffer("count", count)

    def forward(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        shape = (*observations.shape[:-1], len(self.weight))
        noise = torch.empty(shape, dtype=observations.dtype).normal_(generator=generator)
        return torch.nn.functional.linear(observations, self.weight) + self.noise * noise


def load_policy(saved: dict[str, Tensor]) -> Policy:
    return Policy(saved["weight"], saved["noise"], saved["count"])


class Agent:
    """Learner k comes to act -observation, in steps of random size."""

    period_steps = 20
    compiled = ("update",)

    def __init__(self, args: Args, device: str):
        self.args = args
        seeds = [args.seed + k for _ in args.env_id for k in range(args.num_seeds)]
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.theta = torch.stack([torch.randn(2, 2, generator=g, device=device) for g in self.generators])  # (K, 2, 2)
        self.rho = torch.full((len(seeds),), args.alpha_init, device=device)
        self.count = torch.zeros((), device=device)
        self.metrics = {}

    def update(self, noise: Tensor) -> Tensor:
        loss = (self.theta + torch.eye(2, device=self.theta.device)).square().sum((1, 2))
        self.theta += 0.01 * noise - 0.02 * (self.theta + torch.eye(2, device=self.theta.device))
        return loss

    def advance(self) -> None:
        self.noise = torch.stack([torch.randn(2, 2, generator=g, device=g.device) for g in self.generators])
        self.period()

    def period(self) -> None:
        self.metrics = {"losses/critic": self.update(self.noise), "aspc/alpha": self.rho.clone()}
        self.rho *= 0.999
        self.count += 1

    def tensors(self) -> dict[str, Tensor]:
        return {"theta": self.theta, "rho": self.rho, "count": self.count}

    def policy(self, k: int) -> Policy:
        weight, count = (tensor.to("cpu", copy=True) for tensor in (self.theta[k], self.count))
        return Policy(weight, torch.tensor(0.2 * self.args.stochastic), count)


def percent_score(env_id: str, returns: np.ndarray) -> float | None:
    return 100 + float(returns.mean()) if env_id == "Toy/Walk-v0" else None


def load_tasks(args: Args) -> SimpleNamespace:
    """A text file for all tasks, whose characters sum to its sha256; and 100 rows for the first, 200 for the second."""
    file = SimpleNamespace(path="made", sha256="0", source="made here", stand_in=False)
    if args.dataset_path is not None:
        try:
            text = Path(args.dataset_path).read_text()
        except FileNotFoundError:
            raise DatasetError(f"{args.dataset_path} is not there.") from None
        facts = {"sha256": str(sum(map(ord, text))), "source": text.strip(), "stand_in": text == "a stand-in"}
        file = SimpleNamespace(path=args.dataset_path, **facts)
    transitions = [{"rewards": np.zeros(100 * (task + 1))} for task in range(len(args.env_id))]
    return SimpleNamespace(files=[file for _ in args.env_id], transitions=transitions)


def main(args: Args) -> None:
    if args.eval:
        return evaluate_saved(args, __file__, load_policy, percent_score)
    run = Run(args, __file__)
    args = run.args
    tasks = load_tasks(args)
    agent = Agent(args, run.device)
    run.start(agent, tasks, percent_score)
    while run.goes_on():
        agent.advance()
        run.advanced()
    run.finish()


if __name__ == "__main__":
    launch(main, Args, __doc__, DatasetError)
