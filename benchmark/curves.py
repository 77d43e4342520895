"""Learning curves and a table of finished or unfinished runs, from the files that they left.

    python -m benchmark.curves runs/* --out docs/results/first

Writes first.png (score and α against gradient steps, one row of panels a task), first.md (the table) and first.csv
(every evaluation of every run). Reads config.json, metrics.csv and, of finished runs, result.json.
"""

import csv
import json
import math
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories"""
    out: Path = Path("curves")
    """the files' common path, without an ending"""


def read_run(path: Path) -> dict:
    """{"config": ..., "rows": metrics.csv with numbers, "result": result.json or None} of a run directory."""
    try:
        config = json.loads((path / "config.json").read_text())
        with (path / "metrics.csv").open(newline="") as file:
            rows = [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError) as error:
        sys.exit(f"{path} is not a run directory with an evaluation: {error}")
    result = path / "result.json"
    return {"config": config, "rows": rows, "result": json.loads(result.read_text()) if result.exists() else None}


def table(runs: list[dict]) -> str:
    lines = [
        "| task | script | seed | steps | last evaluation | mean of the last ten | best (chosen by score) "
        "| final, 100 episodes | α at the end | hours | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        config, rows, result = run["config"], run["rows"], run["result"]
        scores = np.array([row["charts/normalized_score"] for row in rows])
        alpha = next(value for tag, value in rows[-1].items() if tag.endswith("/alpha"))
        steps, total = int(rows[-1]["step"]), config["args"]["total_steps"]
        final = f"{result['final_score']:.1f}" if result else "not reached"
        lines.append(
            f"| {config['args']['env_id']} | {config['script']} | {config['seed']} "
            f"| {steps:,}{'' if result else f' of {total:,}'} | {scores[-1]:.1f} | {scores[-10:].mean():.1f} "
            f"| {scores.max():.1f} at {int(rows[scores.argmax()]['step']):,} | {final} | {alpha:.2f} "
            f"| {rows[-1]['seconds'] / 3600:.2f} | {(config['commit'] or 'unknown')[:7]} |"
        )
    return "\n".join(lines) + "\n"


def picture(runs: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = defaultdict(list)
    for run in runs:
        tasks[run["config"]["args"]["env_id"]].append(run)
    colors = {script: f"C{i}" for i, script in enumerate(sorted({run["config"]["script"] for run in runs}))}
    figure, axes = plt.subplots(len(tasks), 2, figsize=(10, 3.2 * len(tasks)), squeeze=False, layout="constrained")
    for (task, members), (left, right) in zip(tasks.items(), axes, strict=True):
        for run in members:
            script, steps = run["config"]["script"], [row["step"] for row in run["rows"]]
            label = f"{script}, seed {run['config']['seed']}"
            left.plot(steps, [row["charts/normalized_score"] for row in run["rows"]], color=colors[script], label=label)
            alpha = [next(v for tag, v in row.items() if tag.endswith("/alpha")) for row in run["rows"]]
            right.plot(steps, alpha, color=colors[script], label=label)
        source = "\n".join(textwrap.wrap(members[0]["config"]["dataset"]["source"], 70))
        left.set_title(f"{task}\n{source}", fontsize=8)
        left.set_ylabel("normalised score")
        right.set_ylabel("α")
        for axis in (left, right):
            axis.set_xlabel("gradient steps")
            axis.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:.0f}k")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(args: Args) -> None:
    runs = [read_run(path) for path in sorted(args.runs) if path.is_dir()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.md").write_text(table(runs))
    with Path(f"{args.out}.csv").open("w", newline="") as file:
        keys = dict.fromkeys(key for run in runs for row in run["rows"] for key in row)
        writer = csv.DictWriter(file, ["env_id", "script", "seed", *keys], restval="", lineterminator="\n")
        writer.writeheader()
        for run in runs:
            head = {"env_id": run["config"]["args"]["env_id"], "script": run["config"]["script"]}
            writer.writerows(head | {"seed": run["config"]["seed"]} | row for row in run["rows"])
    picture(runs, Path(f"{args.out}.png"))
    print(table(runs), end="")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
