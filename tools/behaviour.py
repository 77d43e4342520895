"""Train the behaviour policies from which `d4rl_gymnasium` collects stand-ins for D4RL's MuJoCo data.

    pip install -r requirements.txt -r requirements-tools.txt -e .
    python tools/behaviour.py train hopper --steps 1500000     # some hours; started again, it goes on
    python tools/behaviour.py bundle                           # chooses snapshots -> d4rl_gymnasium/behaviour.npz

`train` runs SAC (SBX, Stable-Baselines3's JAX twin) in D4RL's physics and keeps the actor every 10,000 steps: two
hidden layers of 64, ReLU, a tanh-squashed Gaussian. The critics have 128 units, for speed.

`bundle` keeps at most 14 snapshots of each robot, in the order of training: the untrained one, the best ("expert"),
the one whose return is nearest to that of D4RL's medium data ("medium"), and others evenly between these. Beside them
it writes behaviour.json: how they were trained, and each one's return.
"""

import argparse
import csv
import importlib.metadata
import io
import json
import os
import sys
from pathlib import Path

import gymnasium
import numpy as np
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from d4rl_gymnasium.locomotion import RECORD, ROBOTS, WEIGHTS, Policy, run_episode
from offline_run.files import save

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
MEDIUM_RETURN = {"halfcheetah": 4770.0, "hopper": 1420.0, "walker2d": 2850.0}  # mean return of D4RL's medium data
KEPT, AFTER_MEDIUM = 14, 8  # snapshots to keep; of these at most so many after the medium one
CANDIDATES, CANDIDATE_EPISODES, CANDIDATE_SEED = 8, 20, 0  # for "medium" and for "expert": by their training returns
EPISODES, SEED = 50, 1  # of the record: another seed, for a maximum over candidates flatters


# --- Training ---------------------------------------------------------------------------------------------------------


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
        save(self.folder / f"{self.num_timesteps:08d}.npz", npz(arrays))
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
        versions = {name: importlib.metadata.version(name) for name in ("sbx-rl", "jax", "mujoco", "gymnasium")}
        training = {"algorithm": "SAC", "seed": args.seed, "hyperparameters": HYPERPARAMETERS, "versions": versions}
        save(folder / "training.json", json.dumps(training).encode())
        model = SAC("MlpPolicy", env, seed=args.seed, **HYPERPARAMETERS)
    steps = args.steps - model.num_timesteps
    if steps > 0:
        model.learn(steps, callback=Keep(folder), reset_num_timesteps=False)


# --- Bundling ---------------------------------------------------------------------------------------------------------


def evaluate(robot: str, arrays: dict[str, np.ndarray], episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths of so many episodes of a snapshot, its actions drawn as in a collection."""
    env, rng, policy = ROBOTS[robot](), np.random.default_rng(seed), Policy(arrays)
    env.reset(seed=seed)
    rewards = [run_episode(env, policy, rng)["rewards"] for _ in range(episodes)]
    env.close()
    return np.array([r.sum(dtype=np.float64) for r in rewards]), np.array([len(r) for r in rewards])


def choose(robot: str, folder: Path) -> dict[int, str]:
    """The snapshots to keep, {training step: role}, in the order of training."""
    with open(folder / "progress.csv", newline="") as file:
        training = {int(step): float(mean) for step, mean in csv.reader(file)}
    training = {step: mean for step, mean in sorted(training.items()) if mean == mean}  # the first is not known
    wanted = MEDIUM_RETURN[robot]

    def evaluated(steps: list[int], role: str) -> dict[int, float]:
        means = {}
        for step in sorted(steps):
            means[step] = evaluate(robot, load(folder, step), CANDIDATE_EPISODES, CANDIDATE_SEED)[0].mean()
            print(f"{robot}: candidate for {role}, {step:>9,} steps, return {means[step]:.0f}", flush=True)
        return means

    means = evaluated(sorted(training, key=training.get)[-CANDIDATES:], "expert")
    expert = max(means, key=means.get)
    earlier = [step for step in training if step < expert]
    means = evaluated(sorted(earlier, key=lambda step: abs(training[step] - wanted))[:CANDIDATES], "medium")
    medium = min(means, key=lambda step: abs(means[step] - wanted))

    after = min(AFTER_MEDIUM, (expert - medium) // SNAPSHOT_STEPS)
    kept = [*np.linspace(0, medium, KEPT - after), *np.linspace(medium, expert, after + 1)]
    kept = sorted({round(step / SNAPSHOT_STEPS) * SNAPSHOT_STEPS for step in kept})
    roles = {0: "random", medium: "medium", expert: "expert"}
    return {step: roles.get(step, "") for step in kept}


def bundle(args: argparse.Namespace) -> None:
    weights, record = {}, {}
    for robot in ROBOTS:
        folder = args.out / robot
        for name in ("training.json", "progress.csv"):
            if not (folder / name).exists():
                sys.exit(f"{folder / name} is missing: run `python tools/behaviour.py train {robot}` first.")
        training = json.loads((folder / "training.json").read_text())
        steps = max(int(path.stem) for path in folder.glob("*.npz"))
        command = f"python tools/behaviour.py train {robot} --steps {steps} --seed {training['seed']}"
        evaluation = {"policy": "stochastic", "episodes": EPISODES, "seed": SEED}
        record[robot] = {"command": command, **training, "evaluation": evaluation, "snapshots": []}
        chosen = choose(robot, folder)
        snapshots = [load(folder, step) for step in chosen]
        weights |= {f"{robot}_{key}": np.stack([arrays[key] for arrays in snapshots]) for key in snapshots[0]}
        for (step, role), arrays in zip(chosen.items(), snapshots, strict=True):
            returns, lengths = evaluate(robot, arrays, EPISODES, SEED)
            facts = {"return_mean": returns.mean(), "return_std": returns.std(ddof=1), "length_mean": lengths.mean()}
            facts = {name: round(float(value), 2) for name, value in facts.items()}
            record[robot]["snapshots"].append({"steps": step, "role": role, **facts})
            summary = f"return {returns.mean():.0f} ± {returns.std(ddof=1):.0f} {role}"
            print(f"{robot}: {step:>9,} steps, {summary}", flush=True)
    save(WEIGHTS, npz(weights))
    save(RECORD, (json.dumps(record, indent=1) + "\n").encode())
    print(f"{WEIGHTS} ({WEIGHTS.stat().st_size:,} bytes), {RECORD}")


def load(folder: Path, step: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"{step:08d}.npz") as file:
        return dict(file)


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("train", help="train one robot's agent and keep its snapshots")
    command.add_argument("robot", choices=ROBOTS)
    command.add_argument("--steps", type=int, default=1_500_000, help="environment steps in all (1500000)")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=train)
    command = commands.add_parser("bundle", help="choose snapshots of all robots, evaluate them and store them")
    command.set_defaults(run=bundle)
    for command in commands.choices.values():
        command.add_argument(
            "--out",
            type=lambda path: Path(path).expanduser(),
            default=Path("runs/behaviour"),
            help="the folder of training's files (runs/behaviour)",
        )
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
