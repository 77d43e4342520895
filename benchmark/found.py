"""The run directories that `benchmark.run` finds, whoever made them and whatever became of them since."""

import csv
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

import d4rl_gymnasium as d4rl
from benchmark.scripts import HOUSEKEEPING, ROOT, script_arguments, tuned_arguments


@dataclass
class Learner:
    """A run directory."""

    path: Path
    script: str
    task: str
    seed: int
    args: dict[str, Any]
    source: str  # of its data
    group: list[Path]  # the directories of all that were trained with it; the first holds the checkpoint
    result: dict | None


def read_learner(path: Path) -> Learner:
    """Raises one of DAMAGE for what is no run directory, or a damaged one."""
    config = json.loads((path / "config.json").read_text())
    args, names = config["args"], list(config["group"])
    tasks = [args["env_id"]] if isinstance(args["env_id"], str) else args["env_id"]
    task, seed = config.get("env_id", tasks[0]), config["seed"]
    first, seeds = args["seed"], args["num_seeds"]
    if len(names) != len(tasks) * seeds or not first <= seed < first + seeds:
        raise ValueError("its task, seed and group contradict each other")
    names[tasks.index(task) * seeds + seed - first] = path.name  # it may have been renamed
    if any(name in ("", ".", "..") or re.search(r"[/\\]", name) for name in names):
        raise ValueError("its group leads out of this folder")
    result = path / "result.json"
    result = json.loads(result.read_text()) if result.exists() else None
    if result is not None and not isinstance(result["last"], dict):
        raise ValueError("its result.json is not that of a run")
    group, source = [path.parent / name for name in names], str(config["dataset"]["source"])
    return Learner(path, config["script"], task, seed, args, source, group, result)


DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def read_runs(folder: Path) -> tuple[list[Learner], dict[Path, str]]:
    """The run directories in --runs-dir, and for each that cannot be read the reason."""
    learners, damaged = [], {}
    for config in sorted(folder.glob("*/config.json")):
        try:
            learners.append(read_learner(config.parent))
        except DAMAGE as error:
            damaged[config.parent] = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
    return learners, damaged


def runs_of(learners: list[Learner], script: str, arguments: dict[str, Any]) -> list[Learner]:
    """Those of this script whose arguments are these, but for task and seed and for what belongs to no experiment."""
    defaults = {name: default for name, (_, default) in script_arguments(script).items()}
    settings = tuned_arguments(ROOT / f"{script}.py")  # of the task, where --tuned asks for them

    def fixed(values: dict[str, Any]) -> dict[str, Any]:
        left_out = {*HOUSEKEEPING, *(settings if values.get("tuned") else ())}
        return {name: value for name, value in (defaults | values).items() if name not in left_out}

    return [one for one in learners if one.script == Path(script).name and fixed(one.args) == fixed(arguments)]


def is_refused(learner: Learner) -> bool:
    """Whether its data is what a script refuses with --no-stand-in."""
    task = d4rl.TASKS.get(learner.task)
    return bool(task and task.download_first and learner.source == task.collected_source)


def last_step(learner: Learner) -> int:
    """The step of its last evaluation: near enough to its checkpoint's for a plan."""
    try:
        with (learner.path / "metrics.csv").open(newline="") as file:
            return int([row["step"] for row in csv.DictReader(file)][-1])
    except (*DAMAGE, csv.Error):
        return 0


def is_held(run: Path) -> bool:
    """Whether a process is at the run in this directory: it holds the lock there."""
    lock = run / ".lock"  # as offline_run names it
    if not lock.exists():
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that one may only read
        return False


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint, which is a zip archive, is to the last byte what was written."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile):
        return False


def reached_alpha(
    learners: list[Learner], script: str, own: dict[str, Any], task: str, seeds: list[int]
) -> float | None:
    """Mean over the seeds of the α at the end of a script's finished runs of a task; None if a seed lacks."""
    mine = [one for one in runs_of(learners, script, own) if one.task == task and one.result]
    ends = {one.seed: one.result["last"].get("aspc/alpha") for one in mine}
    ends = [ends.get(seed) for seed in seeds]
    return round(float(np.mean(ends)), 4) if all(isinstance(end, float) for end in ends) else None
