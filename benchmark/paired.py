"""By how much ASPC is better than each other algorithm, seed by seed, from the `runs.csv` of reports.

    python -m benchmark.paired docs/results/first docs/results/halfcheetah-medium --out docs/results/paired.csv

A difference is that of two runs of the same task and seed; every task weighs the same. Intervals are those of
`benchmark.aggregate`: 95%, from 2,000 resamplings of seeds, too narrow where seeds are few, none where a task has one.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmark.aggregate import estimate, gain

ASPC = ("ASPC", "aspc_td3bc")  # its label in reports, today and in those of 2026-11-23


def rows(folder: Path, score: str) -> list[list]:
    """A row for each other algorithm: the report, its label, tasks, seeds at least, difference and interval."""
    scores = defaultdict(dict)  # label -> (setting and task, seed) -> score
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        for run in csv.DictReader(file):
            if run[score]:  # it has finished
                scores[run["label"]][(run.get("setting", ""), run["task"]), run["seed"]] = float(run[score])
    ours = next((scores.pop(label) for label in ASPC if label in scores), None)
    if ours is None:
        sys.exit(f"{folder / 'runs.csv'} has no finished run of ASPC.")
    table = []
    for label, theirs in sorted(scores.items()):
        pairs = defaultdict(list)
        for task, seed in sorted(ours.keys() & theirs.keys()):
            pairs[task].append((theirs[task, seed], ours[task, seed]))
        if pairs:
            figures = [f"{x:.3f}" for x in estimate(gain, [np.array(of) for of in pairs.values()])]
            table.append([folder.name, label, len(pairs), min(map(len, pairs.values())), *figures])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of benchmark.report")
    parser.add_argument("--score", choices=("last", "final"), default="final", help="column of runs.csv")
    parser.add_argument("--out", type=Path, help="a CSV file, instead of the screen")
    args = parser.parse_args()
    table = [["report", "ASPC minus", "tasks", "seeds", "difference", "low", "high"]]
    table += [row for folder in args.folders for row in rows(folder, args.score)]
    lines = "".join(",".join(map(str, row)) + "\n" for row in table)
    if args.out:
        args.out.write_text(lines, encoding="utf-8")
    else:
        print(lines, end="")


if __name__ == "__main__":
    main()
