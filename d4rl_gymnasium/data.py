"""Finds the file of a task's data, D4RL's, OGBench's or the user's: fetches or collects it first where need be.

    dataset = find_dataset(env)  # which file, its sha256, where it comes from

Files live where D4RL keeps them, in `~/.d4rl/datasets` or $D4RL_DATASET_DIR, under D4RL's names; OGBench's likewise in
`~/.ogbench/data` or $OGBENCH_DATASET_DIR. docs/data.md is the page for users.
"""

import datetime
import errno
import functools
import hashlib
import importlib
import importlib.metadata
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import gymnasium
import h5py

from d4rl_gymnasium.download import NETWORK_ERRORS, discard, download
from d4rl_gymnasium.progress import say
from d4rl_gymnasium.rows import DatasetError, is_npz, load_minari, minari_name, open_hdf5, read_rows
from d4rl_gymnasium.tasks import ALL_TASKS, KNOWN_SHA256, Task

COLLECTION_SEED = 0
# How the sources of files begin that are not the user's
THEIRS = ("D4RL (", "OGBench (", "collected by d4rl_gymnasium's ")


class DownloadError(DatasetError):
    """Neither D4RL's host nor the mirror gave the file."""


@dataclass(frozen=True)
class DatasetFile:
    """A dataset on this machine."""

    path: Path  # or `minari:NAME`
    sha256: str
    source: str  # where the data comes from, in words; a stand-in for D4RL's file calls itself one here
    own: bool = False  # the user's own data, which mean what they say: D4RL's rule is for D4RL's

    @property
    def stand_in(self) -> bool:
        """Whether the data call themselves a stand-in; the name of a file that was given says nothing of the kind."""
        return "stand-in" in self.source.removeprefix(f"given: {self.path.name}")


# --- Finding ---------------------------------------------------------------------------------------------------------


def find_dataset(
    env: gymnasium.Env, dataset_path: str | os.PathLike | None = None, stand_in: bool = False
) -> DatasetFile:
    """The dataset for an environment: `dataset_path` (a file, or `minari:NAME`), or else the benchmark's for this task.

    Without a path: the benchmark's file in its cache directory; for maze2d else the data that this package collected,
    or collects now; for the other tasks else a download. `stand_in`: for the MuJoCo tasks a stand-in that was collected
    goes before the download, and one is collected where the download fails. A file whose bytes no longer have their
    recorded sha256 is refused. Raises DatasetError.
    """
    check_spaces(env)
    task = ALL_TASKS.get(env_id_of(env))
    if dataset_path is None:
        if task is None:
            raise DatasetError(f"{env_id_of(env)} is not one of D4RL's tasks: give its data with --dataset-path FILE.")
        return fetch(task, original=task.download_first and not stand_in)
    dataset = given(dataset_path)
    name = dataset.path.name
    owner = owner_of(name)
    own = task and name == task.file_name  # which five tasks of OGBench share
    if owner and task and not own and (owner.entry_point, owner.kwargs) != (task.entry_point, task.kwargs):
        # Walker2d's rows have the dimensions of HalfCheetah's: shapes alone would not tell.
        raise DatasetError(f"{dataset.path} is data for {owner.env_id}, another environment than {task.env_id}.")
    return dataset


def owner_of(name: str) -> Task | None:
    """The task whose data a file is by its name, the benchmark's or ours; of OGBench's five to a file the first."""
    return next((task for task in ALL_TASKS.values() if name in (task.file_name, f"{task.env_id}.hdf5")), None)


def check_spaces(env: gymnasium.Env) -> None:
    """DatasetError unless the environment is of the kind that these algorithms, and D4RL's layout, are made for."""
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
        raise DatasetError(f"{env_id_of(env)} has observations of {observations}: only a flat Box can be used.")
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise DatasetError(f"{env_id_of(env)} has actions of {actions}: only a flat, bounded Box can be used.")


def env_id_of(env: gymnasium.Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def given(dataset_path: str | os.PathLike) -> DatasetFile:
    """The dataset that a user names: a file in D4RL's layout, or `minari:NAME`. Raises DatasetError.

    It is the user's own unless it is known to be another's, by its sha256, by what it says of its source, or, if it
    says nothing, by the name under which its benchmark releases it.
    """
    name = minari_name(dataset_path)
    if name:
        folder = Path(load_minari(name, lambda dataset: dataset.storage.data_path))
        sha256 = _sha256(*sorted(path for path in folder.rglob("*") if path.is_file()))
        return DatasetFile(Path(dataset_path), sha256, f"Minari: {name}", own=True)
    path = Path(os.path.expanduser(dataset_path))
    sha256, source = identify(path)
    known = source.startswith(THEIRS) if source else any(path.name == task.file_name for task in ALL_TASKS.values())
    own = not known and sha256 not in KNOWN_SHA256.values()
    return DatasetFile(path, sha256, f"given: {path.name}" + (f" ({source})" if source else ""), own)


def fetch(task: Task, original: bool = False) -> DatasetFile:
    """The task's dataset from the cache directory, where it is first downloaded or collected if it is missing.

    Processes that want the same file wait for the first of them. `original`: D4RL's file even where this package could
    collect a stand-in. Raises DatasetError.
    """
    find = functools.partial(find_local, task, original)
    collectable = task.collected_rows and not original
    dataset = find()
    if not dataset and (task.download_first or not collectable):
        try:
            dataset = _get(task, find, _download, original_path(task))
        except DownloadError as error:
            if not collectable:
                raise
            say(str(error))
    if not dataset:
        dataset = _get(task, find, _collect, collected_path(task))
    if task.download_first and dataset.path == collected_path(task):
        warn_of_stand_in(task)
    return dataset


def collect(task: Task) -> DatasetFile:
    """The task's data as this package collects it, from the cache directory or now. Raises DatasetError."""
    if not task.collected_rows:
        raise DatasetError(f"{task.env_id} cannot be collected: only the data of MuJoCo tasks and of maze2d can.")
    find = functools.partial(find_collected, task)
    return find() or _get(task, find, _collect, collected_path(task))


def _get(
    task: Task, find: Callable[[], DatasetFile | None], how: Callable[[Task, Path], None], target: Path
) -> DatasetFile:
    """What `find` finds after `how` has written `target`, or another process has."""
    try:
        with _locked(target):
            if not find():  # now there, if this process waited for another one
                how(task, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"the disk is full: make room, or set {task.cache_variable} to a folder on another disk"
        else:
            advice = f"{error.strerror or error}: set {task.cache_variable} to a folder that you can write to"
        raise DatasetError(f"{target} could not be written, {advice}.") from error
    return find()


def warn_of_stand_in(task: Task) -> None:
    lines = (
        f"{task.env_id}: this data is a STAND-IN for D4RL's file, from other policies.",
        "Scores on it are not comparable with published D4RL scores.",
        f"D4RL's file, once: python -m d4rl_gymnasium fetch {task.env_id}",
        "To refuse stand-ins: --no-stand-in",
    )
    width = max(map(len, lines))
    frame = "+" + "-" * (width + 2) + "+"
    say("\n".join([frame, *(f"| {line:<{width}} |" for line in lines), frame]))


def find_local(task: Task, original: bool = False) -> DatasetFile | None:
    """The task's dataset in the cache directory (with `original`: only D4RL's own), or None. Raises DatasetError."""
    path = original_path(task)
    if os.path.exists(path):  # unlike Path.exists, False where one may not look
        sha256, source = identify(path)
        if not source and task.dataset_sha256 not in (None, sha256):
            raise DatasetError(f"{path} is not the file that D4RL released (another sha256): delete it to get it anew.")
        return DatasetFile(path, sha256, source or f"{task.benchmark} (found in its cache directory)")
    return None if original else find_collected(task)


def find_collected(task: Task) -> DatasetFile | None:
    """What was collected for the task by its present rule in the cache directory, or None. Raises DatasetError."""
    path = collected_path(task)
    if not task.collected_rows or not os.path.exists(path) or rule_of(path) != task.collected_rule:
        return None
    return DatasetFile(path, *identify(path))


def rule_of(path: Path) -> int:
    """The version of the rule by which a file was collected; 1 if it has none. Raises DatasetError."""
    with open_hdf5(path) as file:
        return int(file.attrs.get("rule", 1))


def identify(path: Path) -> tuple[str, str]:
    """A file's sha256 and what it, or the record beside it, says of its source ("" if nothing).

    Raises DatasetError if it is missing, is neither HDF5 nor .npz, or has changed since it was recorded.
    """
    if not os.path.isfile(path):
        missing = "not there: check the path (--dataset-path gives it, with --resume too)"
        what = "a folder: give a file" if os.path.isdir(path) else missing
        raise DatasetError(f"{path} is {what}.")
    source = ""
    if not is_npz(path):
        with open_hdf5(path) as file:
            source = file.attrs.get("source", "")
            source = source.decode(errors="replace") if isinstance(source, bytes) else str(source)
    sha256 = _sha256(path)
    source = " ".join(source.split())  # one line
    record = _record_path(path)
    if record.exists():
        match = RECORD.fullmatch(record.read_text(encoding="utf-8", errors="replace"))
        if not match or match["sha256"] != sha256:
            raise DatasetError(
                f"{path} has changed since it was stored (see {record.name} beside it): delete both to get it anew, "
                "or only that record if the change was yours."
            )
        source = source or match["source"] or ""
    return sha256, source


def cache_directory(benchmark: type[Task] = Task) -> Path:
    """D4RL's: $D4RL_DATASET_DIR, or ~/.d4rl/datasets; with OGBenchTask OGBench's."""
    return Path(os.path.expanduser(os.environ.get(benchmark.cache_variable) or benchmark.cache))


def original_path(task: Task) -> Path:
    return cache_directory(type(task)) / task.file_name


def collected_path(task: Task) -> Path:
    # A folder and a name of its own: under D4RL's name the original d4rl would take it for its own file.
    return cache_directory() / "collected" / f"{task.env_id}.hdf5"


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# --- Fetching --------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time works on `target`. The operating system frees the lock of a process that dies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        say(f"Another process is getting {target.name}: waiting for it.")
        held = lock.acquire()
    with held:
        yield


def _download(task: Task, target: Path) -> None:
    """The benchmark's file into `target`, from its host or the mirror. Raises DatasetError, or OSError of the disk."""
    reasons = []
    for url in (task.dataset_url, task.mirror_url):
        host = urlsplit(url).netloc
        part = target.with_name(f"{target.name}.{host.replace(':', '_')}.part")  # each host's own: never mixed
        # What an earlier run began may not fit the rest that comes now; then once more, from the start.
        for _ in range(2 if part.exists() else 1):
            say(f"Downloading {url} to {target}")
            try:
                download(url, part)
                sha256 = _verified_sha256(part, task)
            except NETWORK_ERRORS as error:
                reasons.append(f"{host}: {' '.join(str(getattr(error, 'reason', error)).split())}")
                break
            except DatasetError:
                discard(part)
                reasons.append(f"{host}: what it sent is not this dataset")
            except OSError:
                discard(part)  # leaves a full disk no fuller than it was
                raise
            else:
                _store(part, target, sha256, f"{task.benchmark} (downloaded from {url})")
                for other in target.parent.glob(f"{target.name}.*.part*"):
                    other.unlink()  # begun at the other host, and what was noted of the versions
                return
    raise DownloadError(
        f"{task.env_id}: {task.benchmark}'s file is not on this machine "
        f"and the download failed ({'; '.join(reasons)}). "
        f"Fetch {task.dataset_url} or {task.mirror_url} elsewhere and put it into {target.parent}, "
        "or give a file of your own with --dataset-path FILE."
    )


def _verified_sha256(part: Path, task: Task) -> str:
    """Raises DatasetError if what was downloaded is not the task's dataset."""
    sha256 = _sha256(part)
    arrays = read_rows(part, task).arrays
    dimensions = (arrays["observations"].shape[1], arrays["actions"].shape[1])
    if task.dataset_sha256 not in (None, sha256) or dimensions != (task.observation_dim, task.action_dim):
        raise DatasetError(f"{part} is not the data of {task.env_id}.")
    return sha256


def _collect(task: Task, target: Path) -> None:
    """Have the task's module collect its rows, and store them in D4RL's layout with their provenance."""
    if target.exists():
        say(
            f"{target} was collected by version {rule_of(target)} of the rule for {task.env_id}, which is now "
            f"{task.collected_rule}: it is collected anew. Runs on the old data cannot be resumed."
        )
    say(f"Collecting {task.collected_rows:,} rows of {task.env_id} into {target}")
    module = importlib.import_module(task.entry_point.split(":")[0])
    arguments = {**task.collect_kwargs, "rows": task.collected_rows, "seed": COLLECTION_SEED}
    arrays = module.collect(**arguments, progress=True)
    memory = io.BytesIO()  # a full disk then meets a plain write, not HDF5 in the middle of its bookkeeping
    with h5py.File(memory, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip", compression_opts=1)
        file.attrs["source"] = task.collected_source
        file.attrs["env_id"] = task.env_id
        file.attrs["rule"] = task.collected_rule
        file.attrs["generator"] = f"{module.__name__}.collect(**{arguments})"
        if task.download_first:
            file.attrs["policies"] = f"{module.WEIGHTS.name}, sha256 {_sha256(module.WEIGHTS)}"
        file.attrs["seed"] = COLLECTION_SEED
        file.attrs["versions"] = ", ".join(
            f"{package} {importlib.metadata.version(package)}" for package in ("gymnasium", "mujoco", "numpy")
        )
        file.attrs["date"] = datetime.date.today().isoformat()
    part = target.with_name(f"{target.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(memory.getbuffer())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _store(part, target, hashlib.sha256(memory.getbuffer()).hexdigest(), task.collected_source)


# What stands in NAME.sha256 beside a stored file NAME: where it came from and a line for `sha256sum -c`.
RECORD = re.compile(r"(# (?P<source>.*)\n)?(?P<sha256>[0-9a-f]{64}) [ *].*\n?")


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _store(part: Path, target: Path, sha256: str, source: str) -> None:
    """Give a finished file its name; its record first, so that it never stands without one, or with another's."""
    target.unlink(missing_ok=True)  # there only if another rule collected it
    _record_path(target).write_text(f"# {source}\n{sha256}  {target.name}\n", encoding="utf-8")
    os.replace(part, target)
