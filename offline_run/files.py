"""What a run leaves behind: files that are whole or absent, and directories that are found again and read with care."""

import contextlib
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

from offline_run.args import RunArgs, learners

# --- Writing ----------------------------------------------------------------------------------------------------------


def save(path: Path, content: bytes, sync: bool = True) -> None:
    """Write aside and rename, so that neither a kill nor a full disk costs the file that was there; and with `sync` no
    power cut.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # and opened as a new file: a link that was planted there leads nowhere
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(part, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            if sync:
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
    save(path, text.getvalue().encode(), sync=False)  # a checkpoint holds the same rows


def save_tensors(path: Path, value: dict) -> None:
    buffer = io.BytesIO()  # torch.save itself reports a full disk in ways of its own
    torch.save(value, buffer)
    save(path, buffer.getvalue())


def load_tensors(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        sys.exit(f"{path} is missing or damaged ({type(error).__name__}).")


# --- The directories of a run -----------------------------------------------------------------------------------------


def create(args: RunArgs, script: Path, device: str, datasets: list) -> list[Path]:
    """The new directories of a run, each with its config.json, one a learner. datasets: each learner's."""
    timestamp, machine, paths = datetime.now().strftime("%Y%m%d-%H%M%S-%f"), describe_machine(script, device), []
    for (env_id, seed), dataset in zip(learners(args), datasets, strict=True):
        name = f"{re.sub('[/:]', '-', env_id)}__{script.stem}__{seed}__{timestamp}"
        paths.append(Path(args.runs_dir).resolve() / (name + "__stand-in" * dataset.stand_in))
    for (env_id, seed), dataset, path in zip(learners(args), datasets, paths, strict=True):
        config = {
            "script": script.stem,
            "env_id": env_id,
            "seed": seed,
            "args": asdict(args),
            "group": [path.name for path in paths],  # all learners trained together; the first holds their checkpoint
            "dataset": {
                "path": str(dataset.path),
                "sha256": dataset.sha256,
                "source": dataset.source,
                "stand_in": dataset.stand_in,
            },
        }
        path.mkdir(parents=True)
        save_json(path / "config.json", config | machine)
    return paths


def describe_machine(script: Path, device: str) -> dict:
    """With what the numbers are made: the rest of config.json."""
    git = ["git", "-C", str(script.resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    packages = [name for name in ("torch", "torchopt", "numpy", "gymnasium", "mujoco") if name in sys.modules]
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in packages},
        "commit": commit or None,
    }


def lock(directory: Path) -> filelock.FileLock:
    """Hold the run for this process alone, until `unlock` or the process's end."""
    held = filelock.FileLock(directory / ".lock")
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        sys.exit(f"{directory}: another process is at this run.")
    return held


def unlock(held: filelock.FileLock) -> None:
    with contextlib.suppress(OSError):  # Windows removes no open file
        os.unlink(held.lock_file)
    held.release()


def read_config(run: Path, script: str, Args: type[RunArgs]) -> tuple[dict, RunArgs]:
    """config.json and the arguments in it. Exits with a sentence if they are not those of a run of this script."""
    try:
        config = json.loads((run / "config.json").read_text())
        of, values = config["script"], {**config["args"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        sys.exit(f"{run} is not a run directory: no config.json of a run can be read there ({error}).")
    if of != script:
        sys.exit(f"{run} is a run of another script, {of}.")
    types = get_type_hints(Args) | dict.fromkeys(("eval", "resume", "render_video"), type(None))
    odd = [name for name, value in values.items() if name not in types or not fits(value, types[name])]
    kinds = {"env_id": str, "seed": int, "group": tuple[str, ...], "dataset": dict[str, str | bool], "device": str}
    odd += [name for name, kind in kinds.items() if not fits(config.get(name), kind)]
    if odd or not isinstance(config["dataset"].get("source"), str):
        odd = ", ".join(dict.fromkeys(odd)) or "dataset"
        sys.exit(f"{run} is a run of another version of this script: this one does not understand its {odd}.")
    return config, Args(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of this type, of those that a config has."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        return isinstance(value, list) and all(fits(item, options[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, options[1]) for item in value.values())
    return hint is bool if isinstance(value, bool) else isinstance(value, (int, float) if hint is float else hint)


def find_group(run: Path, script: str, Args: type[RunArgs]) -> tuple[list[Path], list[dict], RunArgs]:
    """The directories of the learners that were trained together with `run`, which may have been moved and renamed,
    their configs, and their arguments. The others stand beside it. Exits with a sentence where that is not so.
    """
    config, args = read_config(run, script, Args)
    learner, names = (config["env_id"], config["seed"]), config["group"].copy()
    inside = all(name not in ("", ".", "..") and not set(name) & set("/\\") for name in names)
    if not inside or len(names) != len(args.env_id) * args.num_seeds or learner not in learners(args):
        sys.exit(f"{run} is not a run directory: the task, seed and group of its config.json cannot be.")
    names[learners(args).index(learner)] = run.name
    paths = [run.parent / name for name in names]
    configs = [read_config(path, script, Args)[0] for path in paths]
    for path, config, (env_id, seed) in zip(paths, configs, learners(args), strict=True):
        if (config["env_id"], config["seed"]) != (env_id, seed):
            sys.exit(f"{path} is not the run of {env_id}, seed {seed}, that was trained together with {run}.")
    return paths, configs, args
