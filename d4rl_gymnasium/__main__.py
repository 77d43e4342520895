"""D4RL's and OGBench's datasets: `python -m d4rl_gymnasium list | info | fetch | collect | check`."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np

from d4rl_gymnasium import data, transitions
from d4rl_gymnasium.data import DatasetFile, find_dataset
from d4rl_gymnasium.progress import say
from d4rl_gymnasium.rows import DatasetError, Rows, read_rows
from d4rl_gymnasium.tasks import ALL_TASKS, KNOWN_SHA256, OGBENCH_TASKS, TASKS, OGBenchTask, Task, get_normalized_score

DOWNLOADS_AT_ONCE = 4


def list_tasks(args: argparse.Namespace) -> None:
    for name, tasks, benchmark in (("task", TASKS, Task), ("OGBench's task", OGBENCH_TASKS, OGBenchTask)):
        width = 2 + max(map(len, tasks))
        print(f"{name:<{width}}{'obs':>4}{'act':>5}{'steps':>7}  data on this machine")
        for task in tasks.values():
            facts = f"{task.observation_dim:>4}{task.action_dim:>5}{task.max_episode_steps:>7}"
            print(f"{task.env_id:<{width}}{facts}  {local_state(task)}")
        print(f"{len(tasks)} tasks; their data belongs into {data.cache_directory(benchmark)}")


def local_state(task: Task) -> str:
    original, collected = data.original_path(task), data.collected_path(task)
    if os.path.exists(original):
        return f"{task.benchmark}'s file, {megabytes(original)}"
    if os.path.exists(collected):
        if task.collected_rows and data.rule_of(collected) != task.collected_rule:
            return f"collected by another rule, {megabytes(collected)} (collected anew when needed)"
        return f"collected, {megabytes(collected)}"
    parts = sorted(data.original_path(task).parent.glob(f"{task.file_name}.*.part"))
    if parts:
        return f"part of a download, {megabytes(parts[0])}"
    if task.download_first:
        return "none (a stand-in can be collected)"
    return "none (collected when needed)" if task.collected_rows else "none"


def info(args: argparse.Namespace) -> None:
    env = shape_of(args.env_id)
    task = ALL_TASKS.get(args.env_id)
    actions, horizon = env.action_space, env.spec.max_episode_steps
    print(args.env_id)
    show("observations", env.observation_space.shape[0])
    show("actions", f"{actions.shape[0]}, in [{actions.low.min():g}, {actions.high.max():g}]")
    show("horizon", f"{horizon} steps" if horizon else "none")
    if task:
        if args.env_id in TASKS:
            show("reference returns", f"{task.ref_min_score:.2f} (score 0), {task.ref_max_score:.2f} (score 100)")
        else:
            show("score", f"success: the goal, {task.goal}, within {task.goal_radius} m")
        show(f"{task.benchmark}'s dataset", task.dataset_url)
    dataset = find_dataset(env, args.dataset_path) if task is None or args.dataset_path else data.find_local(task)
    if dataset is None:
        show("local data", f"none: python -m d4rl_gymnasium fetch {args.env_id}")
        if task.download_first:
            show("", f"or a stand-in: python -m d4rl_gymnasium collect {args.env_id}")
    else:
        describe(dataset, transitions.load(dataset, env), horizon, args.env_id)


def tasks_of(env_ids: list[str]) -> list[Task]:
    for env_id in env_ids:
        if env_id not in ALL_TASKS:
            if env_id in gymnasium.registry:
                raise DatasetError(
                    f"{env_id} is an environment of gymnasium's, without data: only D4RL's tasks and OGBench's "
                    "have files. Give your own with --dataset-path."
                )
            near = difflib.get_close_matches(env_id, ALL_TASKS, n=1)
            hint = f"Did you mean {near[0]}?" if near else "`python -m d4rl_gymnasium list` shows them."
            raise DatasetError(f"{env_id} is not one of D4RL's tasks. {hint}")
    return [ALL_TASKS[env_id] for env_id in dict.fromkeys(env_ids)]


def attempt(get: Callable[[Task], DatasetFile], task: Task) -> bool:
    try:
        dataset = get(task)
    except DatasetError as error:
        say(f"error: {error}")
        return False
    say(f"{task.env_id}: {dataset.path} ({megabytes(dataset.path)}), {dataset.source}")
    return True


def fetch(args: argparse.Namespace) -> None:
    originals, collections = [], []
    for task in tasks_of(args.env_id):
        collected_here = task.collected_rows and not (args.original or task.download_first)
        (collections if collected_here else originals).append(task)
    download = partial(attempt, partial(data.fetch, original=True))
    with ThreadPool(DOWNLOADS_AT_ONCE) as pool:
        downloads = pool.map_async(download, originals, chunksize=1)
        failed = [attempt(data.fetch, task) for task in collections].count(False) + downloads.get().count(False)
    if failed:
        sys.exit(1)


def collect(args: argparse.Namespace) -> None:
    if not all([attempt(data.collect, task) for task in tasks_of(args.env_id)]):
        sys.exit(1)


def check(args: argparse.Namespace) -> None:
    name = Path(args.file).name
    owner = data.owner_of(name)
    env_id = args.env_id or (owner.env_id if owner else None)
    if env_id:
        env = shape_of(env_id)
        dataset = find_dataset(env, args.file)
        describe(dataset, transitions.load(dataset, env), env.spec.max_episode_steps, env_id)
        if name in KNOWN_SHA256:
            same = dataset.sha256 == KNOWN_SHA256[name]
            show("D4RL's release", "the same file" if same else "ANOTHER file (its sha256 differs)")
        print(f"ok: data for {env_id}")
    else:
        dataset = data.given(args.file)
        describe(dataset, read_rows(dataset.path, own=dataset.own), None, None)
        print("ok: finite rows in D4RL's layout; --env-id ID also compares them with an environment")


def describe(dataset: DatasetFile, rows: Rows, horizon: int | None, env_id: str | None) -> None:
    """What is in a file, and what training will see of it. DatasetError where that is nothing."""
    show("file", dataset.path)
    show("sha256", dataset.sha256)
    show("source", dataset.source)
    if dataset.path.is_file() and h5py.is_hdf5(dataset.path):  # not so for minari:NAME
        with h5py.File(dataset.path, "r") as file:
            for key in sorted(set(file.attrs) - {"source", "env_id"}):
                show(f"  {key}", file.attrs[key])
    raw, ogbench = rows.arrays, env_id in OGBENCH_TASKS and not rows.own
    show("rows", f"{len(rows):,}")
    show("dimensions", f"observations {raw['observations'].shape[1]}, actions {raw['actions'].shape[1]}")
    # OGBench's episodes go on after a task's goal
    show("rows at the goal" if ogbench else "terminals", f"{np.count_nonzero(raw['terminals']):,}")
    if not ogbench:
        show("timeouts", f"{np.count_nonzero(raw['timeouts']):,}" if "timeouts" in raw else "not in the file")
    show("not read", ", ".join(rows.unread) or "nothing: all is used")

    seen = transitions.make_transitions(rows, horizon, str(dataset.path))
    show("transitions", f"{len(seen['rewards']):,}, of which {np.count_nonzero(seen['terminals']):,} are terminal")
    show("rows dropped", transitions.told(transitions.dropped_rows(rows, horizon), rows) or "none")
    show("by", "what the data say" if rows.own else f"{Task.benchmark}'s rule")
    disorder = transitions.disorder(rows, horizon)
    if disorder:
        show("order", disorder)
    if ogbench:
        show("episodes", f"{np.count_nonzero(raw['timeouts']):,}")
    elif transitions.is_shuffled(rows, horizon):
        show("episodes", "not to be told; an algorithm that needs next actions (ReBRAC) cannot use these rows")
    else:
        returns = transitions.episode_returns(rows, horizon)
        show("episodes", f"{len(returns):,} that end in the data")
        if len(returns):
            show("returns", summary(returns))
            if env_id in TASKS:
                show("normalized, x 100", summary(100 * get_normalized_score(env_id, returns)))


def summary(values: np.ndarray) -> str:
    low, first, median, third, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    return (
        f"mean {values.mean():.2f}, std {values.std():.2f}, "
        f"min {low:.2f}, quartiles {first:.2f} {median:.2f} {third:.2f}, max {high:.2f}"
    )


def show(name: str, value: object) -> None:
    print(f"  {name:<19}{value}")


def megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def shape_of(env_id: str):
    """The environment; for known tasks only its spec and spaces, so that no physics is loaded to look at a file."""
    if env_id in ALL_TASKS:
        return SimpleNamespace(
            spec=gymnasium.spec(env_id),
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (ALL_TASKS[env_id].observation_dim,)),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (ALL_TASKS[env_id].action_dim,)),
        )
    try:
        env = gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        raise DatasetError(f"{env_id} is neither one of D4RL's tasks nor can gymnasium make it ({error}).") from error
    data.check_spaces(env)
    return env


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m d4rl_gymnasium",
        description="D4RL's 39 tasks, ten of OGBench's, and the datasets that belong to them.",
        epilog="Data lives in ~/.d4rl/datasets, D4RL's own cache, or in $D4RL_DATASET_DIR; OGBench's in "
        "~/.ogbench/data or $OGBENCH_DATASET_DIR.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="all tasks, and which of them have data on this machine")
    command.set_defaults(run=list_tasks)

    command = commands.add_parser(
        "info", help="dimensions, horizon, reference scores; rows, returns, source of the data"
    )
    command.add_argument("env_id", metavar="ENV_ID", help="a D4RL task, or with --dataset-path any gymnasium id")
    command.add_argument("--dataset-path", metavar="FILE", help="describe this file (or minari:NAME) instead of D4RL's")
    command.set_defaults(run=info)

    command = commands.add_parser(
        "fetch",
        help="get datasets ahead of time",
        description="Get datasets ahead of time: D4RL's files, whose downloads run side by side and go on where they "
        "were stopped; the data of maze2d is collected here unless --original is given.",
    )
    command.add_argument(
        "env_id", metavar="ENV_ID", nargs="+", help="D4RL tasks, e.g. hopper-medium-v2 maze2d-umaze-v1"
    )
    command.add_argument("--original", action="store_true", help="download D4RL's own file for maze2d, too")
    command.set_defaults(run=fetch)

    command = commands.add_parser(
        "collect",
        help="collect stand-ins for D4RL's MuJoCo data, or maze2d's data",
        description="Collect a stand-in for D4RL's data of a MuJoCo task (halfcheetah, hopper, walker2d), one to three "
        "minutes a million rows, from behaviour policies that come with this package; or maze2d's data, from a noisy "
        "waypoint controller. No network is used. Scores on stand-ins are not comparable with published D4RL scores.",
    )
    command.add_argument("env_id", metavar="ENV_ID", nargs="+", help="D4RL tasks, e.g. hopper-medium-v2")
    command.set_defaults(run=collect)

    command = commands.add_parser("check", help="read a whole file and say whether it can be trained on")
    command.add_argument("file", metavar="FILE", help="an HDF5 or .npz file in D4RL's layout, or minari:NAME")
    command.add_argument(
        "--env-id", metavar="ID", help="compare with this environment (else known by D4RL's file names)"
    )
    command.set_defaults(run=check)

    args = parser.parse_args()
    try:
        args.run(args)
    except DatasetError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. What was downloaded so far is kept: the same command goes on from there.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
