"""D4RL's and OGBench's datasets: find the file (fetch or collect it), check it, read it, turn it into transitions.

    dataset = find_dataset(env)                   # which file, its sha256, where it comes from
    transitions = qlearning_dataset(env, dataset)  # float32 arrays, one row a transition

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
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import gymnasium
import h5py
import numpy as np
from tqdm import tqdm

from d4rl_gymnasium.download import NETWORK_ERRORS, download
from d4rl_gymnasium.tasks import ALL_TASKS, OGBenchTask, Task

RAW_KEYS = ("observations", "actions", "rewards", "terminals")
OGBENCH_KEYS = ("observations", "actions", "terminals", "qpos")
TRANSITION_KEYS = ("observations", "actions", "next_observations", "rewards", "terminals")
FLAGS = ("terminals", "timeouts")
COLLECTION_SEED = 0
MINARI = "minari:"


class DatasetError(Exception):
    """What is wrong with the data and what to do about it: a sentence or two, meant for the user's eyes."""


class DownloadError(DatasetError):
    """Neither D4RL's host nor the mirror gave the file."""


@dataclass(frozen=True)
class DatasetFile:
    """A dataset on this machine."""

    path: Path  # or `minari:NAME`
    sha256: str
    source: str  # where the data comes from, in words; a stand-in for D4RL's file calls itself one here


# --- Transitions -----------------------------------------------------------------------------------------------------


def qlearning_dataset(
    env: gymnasium.Env, dataset: DatasetFile | Mapping[str, np.ndarray] | None = None, next_actions: bool = False
) -> dict[str, np.ndarray]:
    """The transitions of a dataset, as D4RL's function of this name gives them (`d4rl/__init__.py`).

    `dataset` is what `find_dataset` returned (looked for if None) or a dict of arrays in D4RL's raw layout.
    Returns float32 arrays `observations` (N, O), `actions` (N, A), `next_observations` (N, O), `rewards` (N,) and the
    bool array `terminals` (N,). Raises DatasetError.

    The next observation of row i is that of row i+1, so a row whose successor belongs to another episode is dropped:
    the last row and every row with a timeout. `terminals` alone ends the bootstrap.

    With `next_actions` the action of row i+1 comes too, under this name, (N, A): zeros where row i is terminal, for its
    episode has no next action. A Minari dataset stores the observation after an episode's last step and so loses no
    row, but no action after it: with `next_actions` its rows are those of D4RL's rule.
    """
    if dataset is None:
        dataset = find_dataset(env)
    if isinstance(dataset, DatasetFile):
        raw = read_dataset(dataset, env)
        if _minari_name(dataset.path) and not next_actions:
            return {key: raw[key] for key in TRANSITION_KEYS}  # Minari stores the observation after the last step
    else:
        _require_keys(dataset, "the dataset")
        raw = _checked({key: dataset[key] for key in (*RAW_KEYS, "timeouts") if key in dataset}, "the dataset")
        _check_fits(raw, env, "the dataset")
        _check_bounds(raw, env, "the dataset")

    keep = ~final_rows(raw, env.spec.max_episode_steps if env.spec else None)[:-1]
    if not keep.any():
        raise DatasetError("The dataset holds no transition: it needs two consecutive rows of one episode.")
    transitions = {
        "observations": raw["observations"][:-1][keep],
        "actions": raw["actions"][:-1][keep],
        "next_observations": raw["observations"][1:][keep],
        "rewards": raw["rewards"][:-1][keep],
        "terminals": raw["terminals"][:-1][keep],
    }
    if next_actions:
        transitions["next_actions"] = raw["actions"][1:][keep]
        transitions["next_actions"][transitions["terminals"]] = 0
    return transitions


def final_rows(raw: Mapping[str, np.ndarray], max_episode_steps: int | None) -> np.ndarray:
    """The rows that a time limit ended, (N,) bool: `timeouts`, or without that key the rows that reach the horizon.

    D4RL counts the steps of an episode from 0, but from 1 after a terminal row; so does this.
    """
    if "timeouts" in raw:
        return raw["timeouts"]
    if max_episode_steps is None:
        raise DatasetError("The dataset has no `timeouts` and the environment no step limit: add a `timeouts` array.")
    terminals = raw["terminals"]
    final = np.zeros(len(terminals), dtype=bool)
    start, step = 0, 0
    for end in (*np.flatnonzero(terminals) + 1, len(terminals)):
        final[start + max_episode_steps - 1 - step : end : max_episode_steps] = True
        start, step = end, 0 if final[end - 1] else 1
    return final


def episode_returns(raw: Mapping[str, np.ndarray], max_episode_steps: int | None) -> np.ndarray:
    """The undiscounted return of each episode that ends in the data, (episodes,) float64."""
    ends = np.flatnonzero(raw["terminals"] | final_rows(raw, max_episode_steps))
    return np.diff(np.cumsum(raw["rewards"], dtype=np.float64)[ends], prepend=0.0)


# --- Reading and checking --------------------------------------------------------------------------------------------


def read_dataset(dataset: DatasetFile, env: gymnasium.Env) -> dict[str, np.ndarray]:
    """The rows of a dataset in D4RL's raw layout, checked against the environment's spaces.

    Returns float32 `observations` (N, O), `actions` (N, A), `rewards` (N,) and bool `terminals` (N,), and `timeouts`
    (N,) if the file has them. Only a Minari dataset has `next_observations` (N, O) too: D4RL's rule does without them.
    Raises DatasetError when the file is damaged, or is not the data of such an environment.
    """
    raw = load(dataset.path, ALL_TASKS.get(_env_id(env)))
    _check_fits(raw, env, str(dataset.path))
    if not dataset.source.startswith("D4RL"):  # D4RL's own files are taken as they are: its environments clip
        _check_bounds(raw, env, str(dataset.path))
    return raw


def load(path: Path, task: Task | None = None) -> dict[str, np.ndarray]:
    """`read_dataset` for a path, without an environment to compare with. Of OGBench's files `task` has the goal."""
    name = _minari_name(path)
    if not name and _is_npz(path):
        return _read_ogbench(path, task)
    return _checked(_read_minari(name) if name else _read_hdf5(path), str(path))


def _is_npz(path: Path) -> bool:
    """Whether the file begins as numpy's .npz, a zip archive, does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False  # reading it as HDF5 says what is wrong


def _read_ogbench(path: Path, task: Task | None) -> dict[str, np.ndarray]:
    """An .npz file of OGBench in D4RL's raw layout, with the rewards and terminals of a task.

    The file marks the last row of each episode, which has no successor: these are `timeouts`. What `relabel_dataset`
    of OGBench calls success is where the ant stands, before the step: reward 0 and terminal there, else -1.
    """
    if not isinstance(task, OGBenchTask):
        raise DatasetError(f"{path} is a file of OGBench, which has no rewards: only OGBench's tasks can use it.")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = ", ".join(key for key in OGBENCH_KEYS if key not in file)
            if missing:
                raise DatasetError(f"{path} has no {missing}: OGBench's files hold {', '.join(OGBENCH_KEYS)}.")
            raw = {key: file[key] for key in OGBENCH_KEYS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path} is damaged or was cut short: delete it and fetch it again.") from error
    position, raw["timeouts"] = raw.pop("qpos")[:, :2], raw["terminals"]
    success = np.linalg.norm(position - np.array(task.goal), axis=-1) <= task.goal_radius
    return _checked(raw | {"rewards": success - 1.0, "terminals": success}, str(path))


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with _open_hdf5(path) as file:
        _require_keys(file, str(path))
        return {key: file[key][()] for key in (*RAW_KEYS, "timeouts") if key in file}


@contextmanager
def _open_hdf5(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (PermissionError, FileNotFoundError) as error:
        raise DatasetError(f"{path} cannot be read: {os.strerror(error.errno)}.") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # what h5py makes of damaged bytes
        what = "is damaged or was cut short" if h5py.is_hdf5(path) else "is not an HDF5 file"
        raise DatasetError(f"{path} {what}: give another file, or delete a damaged download to get it anew.") from error


def _require_keys(raw: Mapping, name: str) -> None:
    missing = [key for key in RAW_KEYS if key not in raw]
    if missing:
        raise DatasetError(
            f"{name} has no {', '.join(missing)} (it holds {', '.join(sorted(raw)[:8]) or 'nothing'}): "
            f"D4RL's layout needs {', '.join(RAW_KEYS)}, one row a step."
        )


def _read_minari(name: str) -> dict[str, np.ndarray]:
    """A Minari dataset as rows. An episode of T steps there has T+1 observations: the last is a next observation."""
    columns = {key: [] for key in (*TRANSITION_KEYS, "timeouts")}
    for episode in _load_minari(name, lambda dataset: list(dataset.iterate_episodes())):
        for key in ("observations", "actions"):
            if not isinstance(getattr(episode, key), np.ndarray):
                raise DatasetError(
                    f"{MINARI}{name} has {key} of several parts ({type(getattr(episode, key)).__name__}): "
                    "only flat arrays can be used, so flatten them into a dataset of your own."
                )
        columns["observations"].append(episode.observations[:-1])
        columns["next_observations"].append(episode.observations[1:])
        columns["actions"].append(episode.actions)
        columns["rewards"].append(episode.rewards)
        columns["terminals"].append(episode.terminations)
        # An episode that did not terminate was cut short at its last step, whether or not its collector said so
        columns["timeouts"].append(np.append(episode.truncations[:-1], ~episode.terminations[-1:]))
    return {key: np.concatenate(parts) if parts else np.empty(0) for key, parts in columns.items()}


def _load_minari(name: str, read: Callable):
    """What `read` makes of the dataset. Minari has no exception of its own for a wrong name or damaged files."""
    try:
        import minari  # optional: only for those who name such a dataset
    except ImportError:
        raise DatasetError(f'{MINARI}{name} needs the package minari: pip install "minari[hdf5]".') from None
    try:
        return read(minari.load_dataset(name))
    except Exception as error:
        raise DatasetError(
            f"{MINARI}{name} is not a Minari dataset that can be read here: `minari list local` shows those that are, "
            f"`minari download {name}` fetches it."
        ) from error


def _minari_name(path: str | os.PathLike) -> str | None:
    return str(path)[len(MINARI) :] if str(path).startswith(MINARI) else None


def _checked(raw: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The same arrays as float32 and bool; DatasetError unless they are finite rows of equal number."""
    arrays = {}
    for key, value in raw.items():
        array = np.asarray(value)
        if not array.size:
            raise DatasetError(f"{name} is empty: {key} holds no rows.")
        if array.dtype.kind not in "biuf":
            raise DatasetError(f"{name}: {key} holds {array.dtype}, not numbers.")
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported
                array = array.astype(np.float32, copy=False)
            bad = array.size - np.count_nonzero(np.isfinite(array))
            if bad:
                raise DatasetError(f"{name}: {key} holds {bad} values that are NaN or infinite; remove those rows.")
        array = array.astype(bool if key in FLAGS else np.float32, copy=False)
        matrix = key in ("observations", "next_observations", "actions")
        if not matrix and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != (2 if matrix else 1):
            shape = "(rows, dimensions)" if matrix else "(rows,)"
            raise DatasetError(f"{name}: {key} has shape {array.shape}, where {shape} is needed.")
        arrays[key] = array
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DatasetError(f"{name}: the arrays differ in their number of rows ({listed}).")
    return arrays


def _check_fits(raw: Mapping[str, np.ndarray], env: gymnasium.Env, name: str) -> None:
    """DatasetError unless the rows have the dimensions of the environment's spaces."""
    check_spaces(env)
    env_id = _env_id(env)
    for key, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if raw[key].shape[1:] != space.shape:
            raise DatasetError(
                f"{name} is not data for {env_id}: its {key} have {raw[key].shape[1]} dimensions, "
                f"those of {env_id} have {space.shape[0]}."
            )


def _check_bounds(raw: Mapping[str, np.ndarray], env: gymnasium.Env, name: str) -> None:
    """DatasetError unless the actions lie within the environment's bounds."""
    actions = env.action_space
    slack = 1e-4 * (actions.high - actions.low)  # rounding, not another scale
    outside = (raw["actions"] < actions.low - slack) | (raw["actions"] > actions.high + slack)
    if outside.any():
        raise DatasetError(
            f"{name}: actions reach from {raw['actions'].min():.3g} to {raw['actions'].max():.3g}, but "
            f"{_env_id(env)} takes {actions.low.min():.3g} to {actions.high.max():.3g}; "
            "scale or clip them as the environment would."
        )


def check_spaces(env: gymnasium.Env) -> None:
    """DatasetError unless the environment is of the kind that these algorithms, and D4RL's layout, are made for."""
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
        raise DatasetError(f"{_env_id(env)} has observations of {observations}: only a flat Box can be used.")
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise DatasetError(f"{_env_id(env)} has actions of {actions}: only a flat, bounded Box can be used.")


def _env_id(env: gymnasium.Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__


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
    task = ALL_TASKS.get(_env_id(env))
    if dataset_path is None:
        if task is None:
            raise DatasetError(f"{_env_id(env)} is not one of D4RL's tasks: give its data with --dataset-path FILE.")
        return fetch(task, original=task.download_first and not stand_in)
    dataset = given(dataset_path)
    name = dataset.path.name
    owner = next((other for other in ALL_TASKS.values() if name in (other.file_name, f"{other.env_id}.hdf5")), None)
    own = task and name == task.file_name  # which five tasks of OGBench share
    if owner and task and not own and (owner.entry_point, owner.kwargs) != (task.entry_point, task.kwargs):
        # Walker2d's rows have the dimensions of HalfCheetah's: shapes alone would not tell.
        raise DatasetError(f"{dataset.path} is data for {owner.env_id}, another environment than {task.env_id}.")
    return dataset


def given(dataset_path: str | os.PathLike) -> DatasetFile:
    """The dataset that a user names: a file in D4RL's layout, or `minari:NAME`. Raises DatasetError."""
    name = _minari_name(dataset_path)
    if name:
        folder = Path(_load_minari(name, lambda dataset: dataset.storage.data_path))
        sha256 = _sha256(*sorted(path for path in folder.rglob("*") if path.is_file()))
        return DatasetFile(Path(dataset_path), sha256, f"Minari: {name}")
    path = Path(os.path.expanduser(dataset_path))
    sha256, source = identify(path)
    return DatasetFile(path, sha256, f"given: {path.name}" + (f" ({source})" if source else ""))


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
    with _open_hdf5(path) as file:
        return int(file.attrs.get("rule", 1))


def identify(path: Path) -> tuple[str, str]:
    """A file's sha256 and what it, or the record beside it, says of its source ("" if nothing).

    Raises DatasetError if it is missing, is neither HDF5 nor .npz, or has changed since it was recorded.
    """
    if not os.path.isfile(path):
        what = "a folder: give a file" if os.path.isdir(path) else "not there: check the path"
        raise DatasetError(f"{path} is {what}.")
    source = ""
    if not _is_npz(path):
        with _open_hdf5(path) as file:
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
        lock.acquire(blocking=False)
    except filelock.Timeout:
        say(f"Another process is getting {target.name}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
                reasons.append(f"{host}: {getattr(error, 'reason', error)}")
                break
            except DatasetError:
                part.unlink()
                reasons.append(f"{host}: what it sent is not this dataset")
            except OSError:
                part.unlink(missing_ok=True)  # leaves a full disk no fuller than it was
                raise
            else:
                _store(part, target, sha256, f"{task.benchmark} (downloaded from {url})")
                for other in target.parent.glob(f"{target.name}.*.part"):
                    other.unlink()  # begun at the other host
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
    raw = load(part, task)
    dimensions = (raw["observations"].shape[1], raw["actions"].shape[1])
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
    arrays = module.collect(**arguments, progress=sys.stderr.isatty())
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


def say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)
