"""The table of docs/tasks.md: what stand-ins for D4RL's MuJoCo data hold, beside D4RL's own data.

    python tools/standins.py --out docs/results/standins.csv    # 100,000 rows of each of the 18: some minutes
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from tqdm import tqdm

from d4rl_gymnasium import TASKS
from d4rl_gymnasium.data import COLLECTION_SEED
from d4rl_gymnasium.locomotion import collect

ROWS = 100_000
# Rows, mean and maximum return of D4RL's own files, where we know them (file contents; D4RL's paper and repository).
D4RL = {
    "halfcheetah-medium-v2": (1_000_000, 4770.33, None),
    "hopper-medium-v2": (999_906, 1422.06, 3222.36),
    "hopper-medium-replay-v2": (402_000, 467.30, None),
    "walker2d-medium-replay-v2": (302_000, None, None),
}


def complete_episodes(raw: dict[str, np.ndarray], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths of the episodes that the number of rows did not cut short, (episodes,) each."""
    ends = np.flatnonzero(raw["terminals"] | raw["timeouts"])
    lengths = np.diff(ends, prepend=-1)
    returns = np.diff(np.cumsum(raw["rewards"], dtype=np.float64)[ends], prepend=0.0)
    complete = raw["terminals"][ends] | (lengths == horizon)
    return returns[complete], lengths[complete]


def cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of docs/tasks.md: what stand-ins hold.")
    parser.add_argument("--out", type=Path, help="the same unrounded, as CSV")
    out, lines = parser.parse_args().out, []
    print("| task | rows | steps an episode | return: mean | min | max | D4RL's rows | mean | max |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in tqdm([task for task in TASKS.values() if task.download_first], unit=" tasks", disable=None):
        raw = collect(**task.collect_kwargs, rows=ROWS, seed=COLLECTION_SEED, progress=False)
        returns, lengths = complete_episodes(raw, task.max_episode_steps)
        ours = (task.collected_rows, lengths.mean(), returns.mean(), returns.min(), returns.max())
        lines.append((task.env_id, *ours, *D4RL.get(task.env_id, (None,) * 3)))
        tqdm.write(f"| {task.env_id} | {' | '.join(map(cell, lines[-1][1:]))} |")
    if out:
        with out.open("w", newline="") as file:
            head = "task,rows,steps_an_episode,mean_return,least,greatest,d4rl_rows,d4rl_mean_return,d4rl_greatest"
            csv.writer(file, lineterminator="\n").writerows([head.split(","), *lines])


if __name__ == "__main__":
    main()
