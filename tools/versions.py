"""How far a step of each robot is from the same step on another version of mujoco: docs/results/mujoco-versions.txt.

    python tools/versions.py record steps.npz                                    # on the version of requirements.txt
    pip install mujoco==3.8.1 && python tools/versions.py compare steps.npz      # and on the others

`record` plays 1,200 random transitions of each robot, twelve episodes of a hundred. `compare` plays each of them again
from the same state with the same action and prints the largest difference of a position or velocity after it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

import d4rl_gymnasium as d4rl  # noqa: F401  (registers the tasks)

TASKS = (
    "halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2", "maze2d-umaze-v1", "maze2d-large-v1",
    "antmaze-umaze-v2", "pen-human-v1", "door-human-v1", "hammer-human-v1", "relocate-human-v1",
)  # fmt: skip
EPISODES, STEPS = 12, 100
STATE = ("qpos", "qvel", "act", "qacc_warmstart")  # all that a step depends on


def episodes(env_id: str) -> Iterator[tuple[gymnasium.Env, mujoco.MjModel, mujoco.MjData]]:
    """The environment and its physics, reset anew for each episode."""
    env = gymnasium.make(env_id, max_episode_steps=STEPS + 1)
    for seed in range(EPISODES):
        env.reset(seed=seed)
        yield env, env.unwrapped.model, env.unwrapped.data
    env.close()


def record(env_id: str) -> dict[str, np.ndarray]:
    """State (N, ...) and action (N, A) before each step, and "after" it positions and velocities (N, nq + nv)."""
    rng, rows = np.random.default_rng(0), {name: [] for name in (*STATE, "action", "after")}
    for env, _, data in episodes(env_id):
        for _ in range(STEPS):
            for name in STATE:
                rows[name].append(getattr(data, name).copy())
            rows["action"].append(rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32))
            env.unwrapped.step(rows["action"][-1])
            rows["after"].append(np.concatenate([data.qpos, data.qvel]))
    return {name: np.array(values) for name, values in rows.items()}


def difference(env_id: str, recorded: dict[str, np.ndarray]) -> float:
    """The largest difference that this version of mujoco makes to a recorded step."""
    largest, row = 0.0, 0
    for env, model, data in episodes(env_id):
        for _ in range(STEPS):
            for name in ("qpos", "qvel", "act"):
                getattr(data, name)[:] = recorded[name][row]
            mujoco.mj_forward(model, data)  # what the environment reads before its step; it moves the warm start
            data.qacc_warmstart[:] = recorded["qacc_warmstart"][row]
            env.unwrapped.step(recorded["action"][row])
            after = np.concatenate([data.qpos, data.qvel])
            largest = max(largest, np.abs(after - recorded["after"][row]).max())
            row += 1
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.mode == "record":
        arrays = {f"{env_id}/{name}": array for env_id in TASKS for name, array in record(env_id).items()}
        np.savez(args.file, mujoco=mujoco.__version__, **arrays)
        return
    with np.load(args.file) as saved:
        print(f"mujoco {mujoco.__version__} against {saved['mujoco']}")
        for env_id in TASKS:
            recorded = {name: saved[f"{env_id}/{name}"] for name in (*STATE, "action", "after")}
            print(f"{env_id:24} {difference(env_id, recorded):.1e}", flush=True)


if __name__ == "__main__":
    main()
