"""What a run leaves behind: files that are whole or absent, and directories that are found again and read with care."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import filelock
import torch

from offline_run.args import RunArgs, check, learners

# --- Writing ----------------------------------------------------------------------------------------------------------


def save(path: Path, content: bytes) -> None:
    """Write aside and rename, so that neither a kill nor a full disk costs the file that was there."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # opened as a new file: a link that stands there leads nowhere
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(part, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_json(path: Path, value: dict) -> None:
    save(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def save_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    save(path, text.getvalue().encode())


def save_tensors(path: Path, value: dict) -> None:
    buffer = io.BytesIO()  # torch.save itself reports a full disk in ways of its own
    torch.save(value, buffer)
    save(path, buffer.getvalue())


# --- The directories of a run -----------------------------------------------------------------------------------------


def create(args: RunArgs, script: Path, device: str, datasets: list) -> list[Path]:
    """The new directories of a run, one a learner, each with its config.json. datasets: one a task."""
    timestamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    datasets = [dataset for dataset in datasets for _ in range(args.num_seeds)]  # one a learner
    paths = []
    for (env_id, seed), dataset in zip(learners(args), datasets, strict=True):
        name = f"{re.sub('[/:]', '-', env_id)}__{script.stem}__{seed}__{timestamp}"
        paths.append(Path(args.runs_dir).resolve() / (name + "__stand-in" * ("stand-in" in dataset.source)))
    for (env_id, seed), dataset, path in zip(learners(args), datasets, paths, strict=True):
        path.mkdir(parents=True)
        config = {
            "script": script.stem,
            "env_id": env_id,
            "seed": seed,
            "args": asdict(args),
            "group": [path.name for path in paths],  # all learners trained together; the first holds their checkpoint
            "dataset": {"path": str(dataset.path), "sha256": dataset.sha256, "source": dataset.source},
        }
        save_json(path / "config.json", config | describe_machine(script, device))
    return paths


def describe_machine(script: Path, device: str) -> dict:
    """With what the numbers were made: the rest of config.json."""
    git = ["git", "-C", str(script.resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    packages = [name for name in ("torch", "torchopt", "numpy", "gymnasium", "mujoco") if name in sys.modules]
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in packages},
        "commit": commit or None,
    }


def lock(directory: Path) -> filelock.FileLock:
    """Hold the run for this process alone, until `release` or the process's end."""
    held = filelock.FileLock(directory / "lock")
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        sys.exit(f"{directory}: another process is at this run.")
    return held


# --- Reading ----------------------------------------------------------------------------------------------------------


def load_tensors(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        sys.exit(f"{path} is missing or damaged ({type(error).__name__}).")


def read_config(run: Path, script: str, Args: type[RunArgs]) -> tuple[dict, RunArgs]:
    """config.json and the arguments in it. Exits with a sentence if they are not those of a run of this script."""
    try:
        config = json.loads((run / "config.json").read_text())
        of, given = config["script"], {name: value for name, value in config["args"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        sys.exit(f"{run} is not a run directory: no config.json of a run can be read there ({error}).")
    if of != script:
        sys.exit(f"{run} is a run of another script, {of}.")
    types, other = get_type_hints(Args), f"{run} is a run of another version of this script: it has"
    if unknown := given.keys() - types.keys():
        sys.exit(f"{other} {', '.join(sorted(unknown))} among its arguments.")
    if wrong := [name for name, value in given.items() if not fits(value, types[name])]:
        sys.exit(f"{other} another kind of {', '.join(wrong)} among its arguments.")
    args = Args(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    if args.eval or args.resume or args.render_video:
        sys.exit(f"{run} is not a run directory: its config.json has --eval or --resume among its arguments.")
    kinds = {"env_id": str, "seed": int, "group": tuple[str, ...], "dataset": dict, "device": str}
    wrong = [name for name, kind in kinds.items() if not fits(config.get(name), kind)]
    if wrong or not {"path", "sha256", "source"} <= config["dataset"].keys():
        sys.exit(f"{other} no {(wrong or ['dataset'])[0]} such as this one writes.")
    check(args)
    size = len(args.env_id) * args.num_seeds
    if len(config["group"]) != size or (config["env_id"], config["seed"]) not in learners(args):
        sys.exit(f"{run} is not a run directory: the task, seed and group of its config.json contradict each other.")
    return config, args


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of this type, of those that arguments have."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        return isinstance(value, list) and all(fits(item, options[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def find_group(run: Path, script: str, Args: type[RunArgs]) -> tuple[list[Path], list[dict], RunArgs]:
    """The directories of all learners that were trained together with `run`, which may have been moved and renamed,
    their configs, and their arguments. The others stand beside it.
    """
    config, args = read_config(run, script, Args)
    names = list(config["group"])
    names[learners(args).index((config["env_id"], config["seed"]))] = run.name
    paths, configs = [], []
    for name, learner in zip(names, learners(args), strict=True):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            sys.exit(f"{run} is not a run directory: the group in its config.json leads out of its folder.")
        paths.append(run.parent / name)
        configs.append(read_config(paths[-1], script, Args)[0])
        if (configs[-1]["env_id"], configs[-1]["seed"]) != learner:
            sys.exit(f"{paths[-1]} is not the run of {learner[0]}, seed {learner[1]}, that {run} was trained with.")
    return paths, configs, args
