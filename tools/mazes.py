"""The table of docs/tasks.md: what the data that we collect for maze2d hold, beside what is known of D4RL's files.

    python tools/mazes.py                           # collects what is missing, 7 million rows, into the cache directory
    python tools/mazes.py --seeds 6 --maze umaze    # mean and deviation over seeds, of collections that are not kept
"""

import argparse

import h5py
import numpy as np

from d4rl_gymnasium import TASKS, data, maze2d
from d4rl_gymnasium.maze2d import MAZES, find_cells

# Of D4RL's files, as people who read them printed it. docs/tasks.md says who.
PUBLISHED = {
    "umaze": {
        "walks": 12_459,
        "times the goal is left": 1_566,
        "rows between": (96, 3_993),
        "x": (0.39318362, 3.2198412),
        "y": (0.62660956, 3.2187355),
        "vx": (-5.2262554, 5.2262554),
        "vy": (-5.2262554, 5.2262554),
        "target, row": (0.90001136, 3.0999563),
        "target, column": (0.9000267, 3.0999668),
    },
    "large": {
        "times the goal is left": 1_062,
        "rows between": (67, 30_470),
        "x": (0.3964, 7.2164),
        "y": (0.4418, 10.2195),
    },
}


def statistics(maze: str, raw: dict[str, np.ndarray]) -> dict[str, float | tuple[float, float]]:
    """What PUBLISHED has of a file, and more, of the arrays that `maze2d.collect` returns."""
    (goal,) = find_cells(MAZES[maze], "G")
    at_goal = np.linalg.norm(raw["observations"][:, :2] - goal, axis=1) < 0.5
    left = np.flatnonzero(at_goal[:-1] & ~at_goal[1:])
    lengths = np.diff(np.flatnonzero(raw["timeouts"]), prepend=-1)
    columns = np.hstack([raw["observations"], raw["infos/goal"]]).T
    names = ("x", "y", "vx", "vy", "target, row", "target, column")
    return {
        "rows": len(at_goal),
        "walks": len(lengths),
        "longest walk": lengths.max(initial=0),
        "times the goal is left": len(left),
        "rows between": (np.diff(left).min(initial=len(at_goal)), np.diff(left).max(initial=0)),
        "mean reward": raw["rewards"].mean(dtype=np.float64),
    } | {name: (column.min(), column.max()) for name, column in zip(names, columns, strict=True)}


def cell(value: float | tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return " to ".join(map(cell, value))
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.4f}"


def over_seeds(maze: str, seeds: int) -> None:
    rows = TASKS[f"maze2d-{maze}-v1"].collected_rows
    samples = [statistics(maze, maze2d.collect(maze, rows, seed)) for seed in range(seeds)]
    for name in samples[0]:
        values = np.array([sample[name] for sample in samples], dtype=float)
        print(f"{name}: {values.mean(axis=0).round(4)} ± {values.std(axis=0, ddof=1).round(4)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maze", choices=MAZES, default="umaze", help="whose seeds")
    parser.add_argument("--seeds", type=int, help="collect a maze with so many seeds, 0 and up, instead of the table")
    parser.add_argument("--noise", type=float, default=maze2d.NOISE, help="of the actions, with --seeds")
    args = parser.parse_args()
    if args.seeds:
        maze2d.NOISE = args.noise
        return over_seeds(args.maze, args.seeds)

    columns = {}
    for maze in MAZES:
        with h5py.File(data.collect(TASKS[f"maze2d-{maze}-v1"]).path) as file:
            keys = ("observations", "rewards", "timeouts", "infos/goal")
            columns[maze] = statistics(maze, {key: file[key][()] for key in keys})
        if maze in PUBLISHED:
            columns[f"{maze}, D4RL's file"] = PUBLISHED[maze]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name in columns["umaze"]:
        print(f"| {name} | {' | '.join(cell(column.get(name)) for column in columns.values())} |")


if __name__ == "__main__":
    main()
