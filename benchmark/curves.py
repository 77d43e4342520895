"""Score and learned scale along runs, finished or not: a CSV file and a picture.

    python -m benchmark.curves runs/maze2d-*__aspc_td3bc__* --out docs/results/mazes-gpu

One panel a task, a line a run: the normalised score of every evaluation (thin) and its mean over the last 20 (thick),
below it the scale (`aspc/alpha`, `td3bc/alpha`).
"""

import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmark.page import figure, write_csv
from benchmark.scripts import command_line
from benchmark.suites import TASK_SETS

COLUMNS = ("task", "script", "seed", "step", "seconds", "score", "alpha")
WINDOW = 20  # evaluations of the thick line
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories"""
    out: Path
    """the folder that receives curves.csv and curves.png"""


def read(run: Path) -> list[list]:
    """A row for each evaluation of the run. Exits with a sentence where there is none."""
    try:
        config = json.loads((run / "config.json").read_text())
        with (run / "metrics.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        about = [config["env_id"], config["script"], config["seed"]]
        scales = [tag for tag in ("aspc/alpha", "td3bc/alpha") if tag in lines[0]]
        return [
            [*about, int(line["step"]), float(line["seconds"]), float(line["charts/normalized_score"]),
             float(line[scales[0]]) if scales else None]
            for line in lines
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        sys.exit(f"{run} has no evaluations that can be read ({type(error).__name__}: {error}).")


def draw(rows: list[list], path: Path) -> None:
    runs = defaultdict(list)
    for task, script, seed, step, _, score, alpha in rows:
        runs[task, script, seed].append((step, score, np.nan if alpha is None else alpha))
    tasks = list(dict.fromkeys(task for task, _, _ in runs))
    picture, axes = figure(2, len(tasks), 4, 2.3, sharex=True)
    for column, task in enumerate(tasks):
        for color, ((_, script, seed), points) in zip(
            COLORS, [item for item in runs.items() if item[0][0] == task], strict=False
        ):
            steps, scores, alphas = np.array(points).T
            means = [scores[max(0, i - WINDOW + 1) : i + 1].mean() for i in range(len(scores))]
            axes[0, column].plot(steps / 1e6, scores, color=color, linewidth=0.5, alpha=0.5)
            axes[0, column].plot(steps / 1e6, means, color=color, label=f"{script}, seed {seed}")
            axes[1, column].plot(steps / 1e6, alphas, color=color)
        axes[0, column].set_title(task)
        axes[1, column].set_xlabel("million gradient steps")
        axes[0, column].legend(fontsize=7)
    axes[0, 0].set_ylabel("normalised score")
    axes[1, 0].set_ylabel("α")
    picture.savefig(path, dpi=110, metadata={"Software": None})


def main(args: Args) -> None:
    if not args.runs:
        sys.exit("Name at least one run directory.")
    order = {task: i for i, task in enumerate(TASK_SETS["paper"])}
    rows = sorted(
        (row for run in args.runs for row in read(run)), key=lambda row: (order.get(row[0], 99), row[0], row[1:4])
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "curves.csv", COLUMNS, rows)
    draw(rows, args.out / "curves.png")


if __name__ == "__main__":
    main(command_line(Args, "python -m benchmark.curves", __doc__))
