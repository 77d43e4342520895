"""How long a final evaluation takes: 100 episodes of one seed, every one of them to the horizon.

    OMP_NUM_THREADS=1 python -m benchmark.evaluation --out evaluation.json

An untrained policy falls over after a few steps, and hopper and walker2d are made to go on from there: robots that lie
have more contacts than robots that walk, which makes this an upper bound.
"""

import importlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import d4rl_gymnasium as d4rl
from d4rl_gymnasium.locomotion import HopperEnv, Walker2dEnv


@dataclass
class Args:
    env_ids: tuple[str, ...] = (
        "halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2",
        "maze2d-umaze-v1", "maze2d-medium-v1", "maze2d-large-v1",
    )
    """one evaluation of each"""
    episodes: int = 100
    """episodes of an evaluation"""
    out: str | None = None
    """write the figures into this JSON file"""


def main(args: Args) -> None:
    script = importlib.import_module("aspc_td3bc")
    figures = {}
    HopperEnv.has_fallen = Walker2dEnv.has_fallen = lambda self: False
    for env_id in args.env_ids:
        task = d4rl.TASKS[env_id]
        data = {
            "observations": np.random.default_rng(0).standard_normal((1000, task.observation_dim), np.float32),
            "actions": np.zeros((1000, task.action_dim), np.float32),
            "rewards": np.zeros(1000, np.float32),
            "terminals": np.zeros(1000, bool),
        }
        data["next_observations"] = data["observations"]
        high = np.ones(task.action_dim, np.float32)
        agent = script.Agent(script.Args(env_id=env_id), data, -high, high, "cpu")
        start = time.perf_counter()
        script.evaluate(agent.act, env_id, [0], args.episodes)
        seconds = time.perf_counter() - start
        steps = args.episodes * task.max_episode_steps
        figures[env_id] = {"seconds": seconds, "steps": steps, "steps_per_second": steps / seconds}
        print(f"{env_id:24}{args.episodes:5} episodes {seconds:6.1f} s {steps / seconds:8,.0f} steps/s")
    print(f"{torch.get_num_threads()} threads, system load {os.getloadavg()[0]}")
    if args.out:
        Path(args.out).write_text(json.dumps({"torch": torch.__version__, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
