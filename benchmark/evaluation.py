"""How long a final evaluation takes: 100 episodes of one seed, every one of them to the horizon.

    OMP_NUM_THREADS=1 python -m benchmark.evaluation --out evaluation.json

A robot that falls ends its episode, so the longest evaluation is that of a policy that stays on its feet: the bundled
expert acts for halfcheetah, hopper and walker2d. Everywhere else an untrained actor gets to the horizon. The actor's
time is paid in both cases.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import aspc_td3bc
import d4rl_gymnasium as d4rl
from benchmark.scripts import command_line
from d4rl_gymnasium.locomotion import ROBOTS, load_policies


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


def longest(env_id: str) -> Callable[[np.ndarray], np.ndarray]:
    """(1, E, S) observations -> (1, E, A) actions that keep an episode going, at the cost of an actor's."""
    task = d4rl.TASKS[env_id]
    data = {
        "observations": np.random.default_rng(0).standard_normal((1000, task.observation_dim), np.float32),
        "actions": np.zeros((1000, task.action_dim), np.float32),
        "rewards": np.zeros(1000, np.float32),
        "terminals": np.zeros(1000, bool),
    }
    data["next_observations"] = data["observations"]
    high = np.ones(task.action_dim, np.float32)
    agent = aspc_td3bc.Agent(aspc_td3bc.Args(env_id=env_id), data, -high, high, "cpu")
    robot = env_id.split("-")[0]
    if robot not in ROBOTS:
        return agent.act
    (expert,) = load_policies(robot, "expert")

    def act(observations: np.ndarray) -> np.ndarray:
        agent.act(observations)
        return expert(observations, np.zeros(task.action_dim))

    return act


def main(args: Args) -> None:
    if unknown := set(args.env_ids) - set(d4rl.TASKS):
        sys.exit(f"--env-ids {' '.join(sorted(unknown))}: not a task of D4RL (`python -m d4rl_gymnasium list`).")
    if min(args.episodes, args.repeats) < 1:
        sys.exit("--episodes and --repeats must be at least 1.")
    seconds = {env_id: [] for env_id in args.env_ids}
    actors = {env_id: longest(env_id) for env_id in args.env_ids}
    for _ in tqdm(range(args.repeats), desc="repeats", leave=False):
        for env_id, act in actors.items():
            start = time.perf_counter()
            aspc_td3bc.evaluate(act, env_id, [0], args.episodes, progress=True)
            seconds[env_id].append(time.perf_counter() - start)
    for env_id, values in seconds.items():
        spread = f"({min(values):.1f} to {max(values):.1f})"
        print(f"{env_id:24}{args.episodes:5} episodes {np.median(values):6.1f} s {spread}")
    load = os.getloadavg()[0]
    print(f"{torch.get_num_threads()} threads, system load {load:.1f}")
    if args.out:
        aspc_td3bc.save_json(Path(args.out), {"torch": torch.__version__, "load": load, "seconds": seconds})


if __name__ == "__main__":
    main(command_line(Args, "python -m benchmark.evaluation", __doc__))
