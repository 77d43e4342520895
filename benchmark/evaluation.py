"""How long a final evaluation takes: 100 episodes of one seed, every one of them to the horizon.

    OMP_NUM_THREADS=1 python -m benchmark.evaluation --out evaluation.json

A robot that falls ends its episode, so the longest evaluation is that of a policy that stays on its feet: the bundled
expert acts for halfcheetah, hopper and walker2d. Everywhere else an untrained actor gets to the horizon. The actor's
time is paid in both cases.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import aspc_td3bc
import d4rl_gymnasium as d4rl
from benchmark.scripts import command_line
from d4rl_gymnasium.locomotion import ROBOTS, load_policies
from offline_run.evaluation import Evaluator
from offline_run.files import save_json


@dataclass
class Args:
    env_ids: tuple[str, ...] = (
        "halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2",
        "maze2d-umaze-v1", "maze2d-medium-v1", "maze2d-large-v1",
    )
    """one evaluation of each"""
    episodes: int = 100
    """episodes of an evaluation"""
    repeats: int = 3
    """times that everything is measured, in turn; the figure is the median"""
    out: Path | None = None
    """write the figures into this JSON file"""


class Longest(nn.Module):
    """A policy whose episodes go to the horizon, at the cost of an actor's: observations (E, S) -> actions (E, A)."""

    def __init__(self, env_id: str):
        super().__init__()
        task, robot = d4rl.TASKS[env_id], env_id.split("-")[0]
        zeros, ones = torch.zeros(task.observation_dim), torch.ones(task.action_dim)
        self.actor = aspc_td3bc.Policy(zeros, zeros + 1, -ones, ones)
        self.expert = load_policies(robot, "expert")[0] if robot in ROBOTS else None
        self.nothing = np.zeros(task.action_dim)  # of the expert's noise

    def forward(self, observations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        actions = self.actor(observations)
        return actions if self.expert is None else torch.as_tensor(self.expert(observations.numpy(), self.nothing))


def main(args: Args) -> None:
    if unknown := set(args.env_ids) - set(d4rl.TASKS):
        sys.exit(f"--env-ids {' '.join(sorted(unknown))}: not a task of D4RL (`python -m d4rl_gymnasium list`).")
    if min(args.episodes, args.repeats) < 1:
        sys.exit("--episodes and --repeats must be at least 1.")
    seconds, evaluator = {env_id: [] for env_id in args.env_ids}, Evaluator(0)
    policies = {env_id: Longest(env_id) for env_id in args.env_ids}
    for _ in tqdm(range(args.repeats), desc="repeats", leave=False):
        for env_id, policy in policies.items():
            start = time.perf_counter()
            evaluator.begin([policy], [(env_id, 0)], args.episodes)
            evaluator.returns()
            seconds[env_id].append(time.perf_counter() - start)
    for env_id, values in seconds.items():
        spread = f"({min(values):.1f} to {max(values):.1f})"
        print(f"{env_id:24}{args.episodes:5} episodes {np.median(values):6.1f} s {spread}")
    load = os.getloadavg()[0]
    print(f"{torch.get_num_threads()} threads, system load {load:.1f}")
    if args.out:
        save_json(Path(args.out), {"torch": torch.__version__, "load": load, "seconds": seconds})


if __name__ == "__main__":
    main(command_line(Args, "python -m benchmark.evaluation", __doc__))
