"""Reads a dataset's rows, from HDF5, .npz or Minari, into arrays that fit together; DatasetError says what does not.

Names, types, shapes and sizes are compared before the first value is read.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from d4rl_gymnasium.tasks import OGBenchTask, Task

RAW_KEYS = ("observations", "actions", "rewards", "terminals")
D4RL_KEYS = (*RAW_KEYS, "timeouts", "truncations")  # D4RL has the former, and gymnasium's word for them means the same
OWN_KEYS = (*D4RL_KEYS, "next_observations")  # some of D4RL's files have these as well, and it uses them in none
OGBENCH_KEYS = ("observations", "actions", "terminals", "qpos")
MATRICES = ("observations", "next_observations", "actions", "qpos")  # (rows, dimensions); the others are (rows,)
FLAGS = ("terminals", "timeouts", "truncations")
MINARI = "minari:"


class DatasetError(Exception):
    """What is wrong with the data and what to do about it: a sentence or two, meant for the user's eyes."""


@dataclass(frozen=True)
class Rows:
    """A dataset in D4RL's raw layout, one row a step.

    arrays: float32 `observations` (N, O), `actions` (N, A), `rewards` (N,) and bool `terminals` (N,); where the data
    has them `timeouts` (N,), which are its `truncations` too, and, of own data, `next_observations` (N, O).
    """

    arrays: dict[str, np.ndarray]
    own: bool  # the user's: flags and next observations mean what they say; of D4RL's files D4RL's rule holds
    unread: list[str] = field(default_factory=list)  # what else is in the file

    def __len__(self) -> int:
        return len(self.arrays["rewards"])


def read_rows(path: Path, task: Task | None = None, own: bool = False) -> Rows:
    """The rows of a file, or of `minari:NAME`. Of OGBench's files `task` has the goal."""
    name = minari_name(path)
    if name:
        return Rows(check_arrays(_read_minari(name), str(path)), own=True)
    npz = is_npz(path)
    with (_open_npz if npz else open_hdf5)(path) as file:
        names = sorted(file)
        of_ogbench = npz and "rewards" not in names and (isinstance(task, OGBenchTask) or "qpos" in names)
        keys, needed = (OWN_KEYS if own else D4RL_KEYS), RAW_KEYS
        if of_ogbench:
            if not isinstance(task, OGBenchTask):
                raise DatasetError(
                    f"{path} is a file of OGBench, which has no rewards: only OGBench's tasks can use it."
                )
            keys = needed = OGBENCH_KEYS
        require(needed, names, str(path))
        stored = {key: (_npz_array if npz else _hdf5_array)(file, key, path) for key in keys if key in names}
        arrays = check_arrays(stored, str(path))
    unread = [name for name in names if name not in keys]
    if of_ogbench:
        return Rows(_with_goal(arrays, task), own=False, unread=unread)
    return Rows(arrays, own, unread)


def require(needed: tuple[str, ...], names: list[str], name: str) -> None:
    missing = [key for key in needed if key not in names]
    if missing:
        raise DatasetError(
            f"{name} has no {', '.join(missing)} (it holds {', '.join(names[:8]) or 'nothing'}): "
            f"needed are {', '.join(needed)}, one row a step."
        )


# --- What every array must be ----------------------------------------------------------------------------------------


def check_arrays(stored: Mapping, name: str) -> dict[str, np.ndarray]:
    """The arrays of D4RL's raw layout as float32 and bool; DatasetError unless they are finite rows of equal number.

    `stored` may hold arrays that still lie in a file, anything with `shape`, `dtype` and `[()]`.
    """
    for key, array in stored.items():
        if array.dtype.kind not in "biuf":
            raise DatasetError(f"{name}: {key} holds {array.dtype}, not numbers.")
        shape = array.shape or ()  # HDF5 has arrays without one
        if 0 in shape:
            raise DatasetError(f"{name} is empty: {key} holds no rows.")
        # One number a row may be written as (rows,) or as (rows, 1)
        if len(shape) not in (1, 2) or (key not in MATRICES and math.prod(shape[1:]) != 1):
            wanted = "(rows, dimensions)" if key in MATRICES else "(rows,)"
            raise DatasetError(f"{name}: {key} has shape {shape}, where {wanted} is needed.")
    if len({array.shape[0] for array in stored.values()}) > 1:
        listed = ", ".join(f"{key} {array.shape[0]}" for key, array in stored.items())
        raise DatasetError(f"{name}: the arrays differ in their number of rows ({listed}).")
    # What is stored, the same as float32, and the transitions made of it
    sizes = {key: math.prod(array.shape) * (array.dtype.itemsize + 8) for key, array in stored.items()}
    largest, memory = max(sizes, key=sizes.get), _memory()
    too_large = DatasetError(
        f"{name}: {largest} has shape {stored[largest].shape}, and to read the dataset takes "
        f"{sum(sizes.values()) / 1e9:,.0f} GB of memory, more than this machine has ({memory / 1e9:,.0f} GB)."
    )
    if sum(sizes.values()) > memory:
        raise too_large
    try:
        arrays = {key: _converted(key, array[()], name) for key, array in stored.items()}
    except MemoryError:
        raise too_large from None
    if "truncations" in arrays:
        arrays["timeouts"] = arrays.pop("truncations") | arrays.get("timeouts", False)
    if arrays.get("next_observations", arrays["observations"]).shape != arrays["observations"].shape:
        raise DatasetError(f"{name}: next_observations have other dimensions than observations.")
    return arrays


def _converted(key: str, array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported
            array = array.astype(np.float32, copy=False)
        bad = array.size - np.count_nonzero(np.isfinite(array))
        if bad:
            raise DatasetError(f"{name}: {key} holds {bad} values that are NaN or infinite; remove those rows.")
    array = array.astype(bool if key in FLAGS else np.float32, copy=False)
    return array.reshape(len(array), -1) if key in MATRICES else array.reshape(len(array))


def _memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # no such question on Windows
        return math.inf


# --- HDF5 ------------------------------------------------------------------------------------------------------------


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (PermissionError, FileNotFoundError) as error:
        raise DatasetError(f"{path} cannot be read: {os.strerror(error.errno)}.") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # what h5py makes of damaged bytes
        what = "is damaged or was cut short" if h5py.is_hdf5(path) else "is not an HDF5 file, nor an .npz"
        raise DatasetError(f"{path} {what}: give another file, or delete a damaged download to get it anew.") from error


def _hdf5_array(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """An array that lies in the file itself, whose sha256 then says what it is, and that was written."""
    array = None if isinstance(file.get(key, getlink=True), h5py.ExternalLink) else file.get(key)
    if isinstance(array, h5py.Group):
        parts = ", ".join(sorted(array)[:8]) or "nothing"
        raise DatasetError(f"{path}: {key} is a group (of {parts}), where one flat array is needed.")
    here = isinstance(array, h5py.Dataset) and array.file.filename == file.filename
    if not here or array.is_virtual or array.external:
        raise DatasetError(
            f"{path}: {key} is no array of this file but a link, or a view of other files, which may change or be "
            "gone: write the values themselves into it."
        )
    if key in MATRICES and not _is_written(array):  # rewards and flags may be left at 0 on purpose
        raise DatasetError(
            f"{path}: {key} has shape {array.shape}, but not all of it was ever written, and the rest reads as zeros: "
            "write the file anew, with the rows that there are."
        )
    return array


def _is_written(array: h5py.Dataset) -> bool:
    """Whether HDF5 has stored the whole of an array, if it has any values."""
    if not array.size:
        return True
    if array.chunks is None:
        return array.id.get_storage_size() > 0
    chunks = math.prod(math.ceil(rows / some) for rows, some in zip(array.shape, array.chunks, strict=True))
    return array.id.get_num_chunks() == chunks


# --- .npz ------------------------------------------------------------------------------------------------------------


def is_npz(path: Path) -> bool:
    """Whether the file begins as numpy's .npz, a zip archive, does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False  # reading it as HDF5 says what is wrong


@contextmanager
def _open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path} is damaged or was cut short: delete it and fetch or write it again.") from error


class _npz_array:
    """An array of an .npz file, of which only the head has been read."""

    def __init__(self, file: np.lib.npyio.NpzFile, key: str, path: Path):
        self.file, self.key = file, key
        with file.zip.open(f"{key}.npy") as member:
            first = np.lib.format.read_magic(member) == (1, 0)
            head = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            self.shape, _, self.dtype = head(member)

    def __getitem__(self, _) -> np.ndarray:
        return self.file[self.key]


def _with_goal(arrays: dict[str, np.ndarray], task: OGBenchTask) -> dict[str, np.ndarray]:
    """OGBench's rows in D4RL's raw layout, with the rewards and terminals of a task.

    The file marks the last row of each episode, which has no successor: these are `timeouts`. What `relabel_dataset`
    of OGBench calls success is where the ant stands, before the step: reward 0 and terminal there, else -1.
    """
    position = arrays["qpos"][:, :2]
    success = np.linalg.norm(position - np.array(task.goal), axis=-1) <= task.goal_radius
    return {
        "observations": arrays["observations"],
        "actions": arrays["actions"],
        "rewards": (success - 1.0).astype(np.float32),
        "terminals": success,
        "timeouts": arrays["terminals"],
    }


# --- Minari ----------------------------------------------------------------------------------------------------------


def _read_minari(name: str) -> dict[str, np.ndarray]:
    """A Minari dataset as rows. An episode of T steps there has T+1 observations: the last is a next observation."""
    columns = {key: [] for key in (*RAW_KEYS, "timeouts", "next_observations")}
    for episode in load_minari(name, lambda dataset: list(dataset.iterate_episodes())):
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


def load_minari(name: str, read: Callable):
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


def minari_name(path: str | os.PathLike) -> str | None:
    return str(path)[len(MINARI) :] if str(path).startswith(MINARI) else None
