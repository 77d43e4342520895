"""Train the behaviour policies from which `d4rl_gymnasium` collects stand-ins for D4RL's MuJoCo data.

    pip install -r requirements.txt -r requirements-tools.txt
    python tools/behaviour.py train hopper --steps 1000000     # an hour or two; started again, it goes on
    python tools/behaviour.py bundle                           # chooses snapshots -> d4rl_gymnasium/behaviour.npz

`train` runs SAC (SBX, Stable-Baselines3's JAX twin) in D4RL's physics and keeps the actor every 10,000 steps: two
hidden layers of 64, ReLU, a tanh-squashed Gaussian. The critics have 128 units, for speed.
"""

import argparse
import csv
import importlib.metadata
import os
from pathlib import Path

import gymnasium
import numpy as np
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

import d4rl_gymnasium  # noqa: F401 - registers D4RL's tasks

ROBOTS = ("halfcheetah", "hopper", "walker2d")
SNAPSHOT_STEPS = 10_000
CHECKPOINT_STEPS = 50_000
HYPERPARAMETERS = dict(
    learning_rate=5e-4,
    batch_size=256,
    train_freq=8,  # eight updates after every eight steps: one call of compiled code for all of them
    gradient_steps=8,
    learning_starts=5_000,
    policy_kwargs=dict(net_arch=dict(pi=[64, 64], qf=[128, 128])),
)


class Keep(BaseCallback):
    """Writes the actor every SNAPSHOT_STEPS steps, and what a restart needs every CHECKPOINT_STEPS."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def _on_training_start(self):
        if self.num_timesteps == 0:
            self.write_snapshot()  # the untrained actor

    def _on_step(self):
        return True

    def _on_rollout_end(self):  # after it the gradient steps of this rollout follow; eight updates do not matter here
        if self.num_timesteps % SNAPSHOT_STEPS == 0:
            self.write_snapshot()
        if self.num_timesteps % CHECKPOINT_STEPS == 0:
            self.write_checkpoint()

    def write_snapshot(self):
        layers = self.model.policy.actor_state.params["params"]
        parts = (("hidden1", "Dense_0"), ("hidden2", "Dense_1"), ("mean", "Dense_2"), ("log_std", "Dense_3"))
        arrays = {}
        for name, layer in parts:
            arrays[f"{name}_weight"] = np.asarray(layers[layer]["kernel"], np.float16)  # (inputs, outputs)
            arrays[f"{name}_bias"] = np.asarray(layers[layer]["bias"], np.float16)
        path = self.folder / f"{self.num_timesteps:08d}.npz"
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, **arrays)
        os.replace(path.with_suffix(".part"), path)
        episodes = [episode["r"] for episode in self.model.ep_info_buffer][-20:]
        mean = float(np.mean(episodes)) if episodes else float("nan")
        with open(self.folder / "progress.csv", "a", newline="") as file:
            csv.writer(file).writerow([self.num_timesteps, f"{mean:.1f}"])
        print(f"{self.num_timesteps:>9,} steps, return of the last 20 training episodes {mean:.0f}", flush=True)

    def write_checkpoint(self):
        self.model.save_replay_buffer(self.folder / "replay.pkl.part")
        self.model.save(self.folder / "agent.zip.part")
        for name in ("replay.pkl", "agent.zip"):
            part = next(p for p in self.folder.iterdir() if p.name.startswith(f"{name}.part"))
            os.replace(part, self.folder / name)


def train(args: argparse.Namespace) -> None:
    folder = args.out / args.robot
    folder.mkdir(parents=True, exist_ok=True)
    env = Monitor(gymnasium.make(f"{args.robot}-medium-v2"))
    if (folder / "agent.zip").exists():
        model = SAC.load(folder / "agent.zip", env=env)
        model.load_replay_buffer(folder / "replay.pkl")
        print(f"Going on after {model.num_timesteps:,} steps.")
    else:
        model = SAC("MlpPolicy", env, seed=args.seed, **HYPERPARAMETERS)
        versions = {name: importlib.metadata.version(name) for name in ("sbx-rl", "jax", "mujoco", "gymnasium")}
        print(f"{args.robot}, seed {args.seed}, {HYPERPARAMETERS}, {versions}")
    steps = args.steps - model.num_timesteps
    if steps > 0:
        model.learn(steps, callback=Keep(folder), reset_num_timesteps=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("train", help="train one robot's agent and keep its snapshots")
    command.add_argument("robot", choices=ROBOTS)
    command.add_argument("--steps", type=int, default=1_000_000, help="environment steps in all (default 1000000)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, default=Path("runs/behaviour"), help="default runs/behaviour")
    command.set_defaults(run=train)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
