"""Score and learned scale along runs, finished or not: a CSV file and a picture.

    python -m benchmark.curves runs/maze2d-*__aspc_td3bc__* --out docs/results/mazes-gpu

One panel a task, a line a run: the normalised score of every evaluation (thin) and its mean over the last 20 (thick),
below it the scale (`aspc/alpha`, `td3bc/alpha`).
"""

import itertools
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmark.page import figure, write_csv
from benchmark.results import SCORE, Run, alpha, read_run
from benchmark.scripts import command_line
from d4rl_gymnasium.tasks import TASKS

COLUMNS = ("task", "script", "seed", "step", "seconds", "score", "alpha")
WINDOW = 20  # evaluations of the thick line
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories"""
    out: Path
    """the folder that receives curves.csv and curves.png"""


def draw(runs: list[Run], path: Path) -> None:
    tasks = defaultdict(list)
    for run in runs:
        tasks[run.task].append(run)
    picture, axes = figure(2, len(tasks), 4, 2.3, sharex=True)
    for column, (task, members) in enumerate(tasks.items()):
        for color, run in zip(itertools.cycle(COLORS), members, strict=False):
            steps, scores, scales = np.array([(row["step"] / 1e6, row[SCORE], alpha(row)) for row in run.rows]).T
            means = [scores[max(0, i - WINDOW + 1) : i + 1].mean() for i in range(len(scores))]
            axes[0, column].plot(steps, scores, color=color, linewidth=0.5, alpha=0.5)
            axes[0, column].plot(steps, means, color=color, label=f"{run.script}, seed {run.seed}")
            axes[1, column].plot(steps, scales, color=color)
        axes[0, column].set_title(task)
        axes[1, column].set_xlabel("million gradient steps")
        axes[0, column].legend(fontsize=7)
    axes[0, 0].set_ylabel("normalised score")
    axes[1, 0].set_ylabel("α")
    picture.savefig(path, dpi=110, metadata={"Software": None})


def main(args: Args) -> None:
    if not args.runs:
        sys.exit("Name at least one run directory.")
    order = {task: i for i, task in enumerate(TASKS)}
    runs = sorted(map(read_run, args.runs), key=lambda run: (order.get(run.task, 99), run.task, run.script, run.seed))
    for run in runs:
        if not run.rows:
            sys.exit(f"{run.name} has no evaluations that can be read.")
    rows = [
        [run.task, run.script, run.seed, int(row["step"]), row["seconds"], row[SCORE], alpha(row)]
        for run in runs for row in run.rows
    ]  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "curves.csv", COLUMNS, rows)
    draw(runs, args.out / "curves.png")


if __name__ == "__main__":
    main(command_line(Args, "python -m benchmark.curves", __doc__))
