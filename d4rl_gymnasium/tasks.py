"""D4RL's and OGBench's tasks: the only place where an id, a URL, a horizon, a goal or a reference score stands.

Sources: D4RL 1.1 (`d4rl/infos.py` and the registrations beside it; Fu et al. 2020, arXiv:2004.07219), OGBench 1.2.2
(`ogbench/locomaze`; Park et al. 2024, arXiv:2410.20092).
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"  # D4RL's own; has been down for days at a time
MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main"  # the same file names, all in its root
OGBENCH_HOST = "https://rail.eecs.berkeley.edu/datasets/ogbench"
# Named by OGBench's author when that host was down (seohongpark/ogbench#49)
OGBENCH_MIRROR = "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main"


@dataclass(frozen=True)
class Task:
    """One of D4RL's tasks: an environment and the dataset that belongs to it."""

    benchmark: ClassVar[str] = "D4RL"
    cache: ClassVar[str] = "~/.d4rl/datasets"  # where the benchmark's own package keeps its datasets ...
    cache_variable: ClassVar[str] = "D4RL_DATASET_DIR"  # ... unless this environment variable names a folder

    env_id: str
    observation_dim: int
    action_dim: int  # every task's actions lie in [-1, 1]
    max_episode_steps: int
    ref_min_score: float  # the return of a random policy: normalized score 0
    ref_max_score: float  # the return of an expert: normalized score 1
    dataset: str  # path of the dataset below the host
    entry_point: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    # For tasks whose data this package can collect itself, by `collect(**collect_kwargs, rows, seed, progress)` of the
    # environment's module:
    collected_rows: int | None = None  # of D4RL's file, or nearly so
    collected_by: str = ""
    collected_rule: int = 1  # counts up when the rows change; what another rule collected is collected anew
    collect_kwargs: Mapping[str, Any] = field(default_factory=dict)
    download_first: bool = False  # collected from other policies than D4RL's: only where D4RL's file cannot be had

    @property
    def file_name(self) -> str:
        """The name under which D4RL, its mirror and the cache directory keep the dataset."""
        return self.dataset.rsplit("/", 1)[-1]

    @property
    def dataset_url(self) -> str:
        return f"{HOST}/{self.dataset}"

    @property
    def mirror_url(self) -> str:
        return f"{MIRROR}/{self.file_name}"

    @property
    def collected_source(self) -> str:
        """What the files that this package collects call themselves."""
        return f"collected by d4rl_gymnasium's {self.collected_by} (stand-in for D4RL's file)"

    @property
    def dataset_sha256(self) -> str | None:
        """The sha256 of D4RL's released file, where it is known."""
        return KNOWN_SHA256.get(self.file_name)

    def score(self, episode_return: np.ndarray) -> np.ndarray:
        """The score of undiscounted returns, as a fraction."""
        return (episode_return - self.ref_min_score) / (self.ref_max_score - self.ref_min_score)


@dataclass(frozen=True)
class OGBenchTask(Task):
    """One of OGBench's single tasks: five of them, with other goals, share a maze and its dataset."""

    benchmark: ClassVar[str] = "OGBench"
    cache: ClassVar[str] = "~/.ogbench/data"
    cache_variable: ClassVar[str] = "OGBENCH_DATASET_DIR"
    goal_radius: ClassVar[float] = 0.5  # m

    goal: tuple[float, float] = (0.0, 0.0)  # m; the ant succeeds within goal_radius of it

    @property
    def dataset_url(self) -> str:
        return f"{OGBENCH_HOST}/{self.dataset}"

    @property
    def mirror_url(self) -> str:
        return f"{OGBENCH_MIRROR}/{self.file_name}"

    def score(self, episode_return: np.ndarray) -> np.ndarray:
        """1 for success: every step costs 1 but the one that ends the episode at the goal."""
        return (episode_return > -self.max_episode_steps).astype(float)


KNOWN_SHA256 = {
    "hopper_medium_replay-v2.hdf5": "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b",
    "walker2d_medium_replay-v2.hdf5": "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db",
}


def _locomotion() -> Iterator[Task]:
    for robot, class_name, observation_dim, action_dim, ref_min, ref_max, replay_rows in (
        ("halfcheetah", "HalfCheetahEnv", 17, 6, -280.178953, 12135.0, 202_000),
        ("hopper", "HopperEnv", 11, 3, -20.272305, 3234.3, 402_000),
        ("walker2d", "Walker2dEnv", 17, 6, 1.629008, 4592.3, 302_000),
    ):
        rows = {"medium-expert": 2_000_000, "medium-replay": replay_rows}
        for quality in ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay"):
            yield Task(
                f"{robot}-{quality}-v2", observation_dim, action_dim, 1000, ref_min, ref_max,
                dataset=f"gym_mujoco_v2/{robot}_{quality.replace('-', '_')}-v2.hdf5",
                entry_point=f"d4rl_gymnasium.locomotion:{class_name}",
                collected_rows=rows.get(quality, 1_000_000),
                collected_by="behaviour policies",
                collect_kwargs={"robot": robot, "level": quality},
                download_first=True,
            )  # fmt: skip


def _maze2d() -> Iterator[Task]:
    for maze, horizon, ref_min, ref_max, rows in (
        ("umaze", 300, 23.85, 161.86, 1_000_000),
        ("medium", 600, 13.13, 277.39, 2_000_000),
        ("large", 800, 6.7, 273.99, 4_000_000),
    ):
        yield Task(
            f"maze2d-{maze}-v1", 4, 2, horizon, ref_min, ref_max,
            dataset=f"maze2d/maze2d-{maze}-sparse-v1.hdf5",
            entry_point="d4rl_gymnasium.maze2d:Maze2dEnv",
            kwargs={"maze": maze},
            collected_rows=rows,
            collected_by="noisy waypoint controller",
            collected_rule=2,  # 1 had no noise, and no repeated observations
            collect_kwargs={"maze": maze},
        )  # fmt: skip


def _antmaze() -> Iterator[Task]:
    # D4RL's file names call medium "big" and large "hardest".
    for name, maze, horizon, file_maze, multistart, multigoal in (
        ("umaze", "umaze", 700, "u", False, False),
        ("umaze-diverse", "umaze", 700, "u", True, True),
        ("medium-play", "medium", 1000, "big", True, False),
        ("medium-diverse", "medium", 1000, "big", True, True),
        ("large-play", "large", 1000, "hardest", True, False),
        ("large-diverse", "large", 1000, "hardest", True, True),
    ):
        file = f"Ant_maze_{file_maze}-maze_noisy_multistart_{multistart}_multigoal_{multigoal}_sparse_fixed.hdf5"
        yield Task(
            f"antmaze-{name}-v2", 29, 8, max_episode_steps=horizon, ref_min_score=0.0, ref_max_score=1.0,
            dataset=f"ant_maze_v2/{file}",
            entry_point="d4rl_gymnasium.antmaze:AntMazeEnv",
            kwargs={"maze": maze},
        )  # fmt: skip


def _adroit() -> Iterator[Task]:
    for task, observation_dim, action_dim, horizon, ref_min, ref_max in (
        ("pen", 45, 24, 100, 96.262799, 3076.8331017826877),
        ("door", 39, 28, 200, -56.512833, 2880.5693087298737),
        ("hammer", 46, 26, 200, -274.856578, 12794.134825156867),
        ("relocate", 39, 30, 200, -6.425911, 4233.877797728884),
    ):
        for demonstrator in ("human", "cloned", "expert"):
            yield Task(
                f"{task}-{demonstrator}-v1", observation_dim, action_dim, horizon, ref_min, ref_max,
                dataset=f"hand_dapg_v1/{task}-{demonstrator}-v1.hdf5",
                entry_point="d4rl_gymnasium.adroit:AdroitEnv",
                kwargs={"task": task},
            )  # fmt: skip


TASKS: dict[str, Task] = {
    task.env_id: task for family in (_locomotion, _maze2d, _antmaze, _adroit) for task in family()
}


def _ogbench() -> Iterator[OGBenchTask]:
    for maze, goals in (  # the goals' cells, row and column, of tasks 1 to 5; cells are 4 m wide, cell (1, 1) is at 0
        ("large", ((7, 10), (7, 1), (1, 10), (5, 4), (5, 4))),
        ("giant", ((10, 14), (10, 1), (1, 1), (5, 12), (3, 8))),
    ):
        for number, (row, column) in enumerate(goals, 1):
            yield OGBenchTask(
                f"antmaze-{maze}-navigate-singletask-task{number}-v0", 29, 8, max_episode_steps=1000,
                ref_min_score=0.0, ref_max_score=1.0,
                dataset=f"antmaze-{maze}-navigate-v0.npz",
                entry_point="d4rl_gymnasium.ogbench:make",
                kwargs={"env_id": f"antmaze-{maze}-singletask-task{number}-v0"},
                goal=(4.0 * column - 4.0, 4.0 * row - 4.0),
            )  # fmt: skip


OGBENCH_TASKS: dict[str, OGBenchTask] = {task.env_id: task for task in _ogbench()}
ALL_TASKS: Mapping[str, Task] = ChainMap(OGBENCH_TASKS, TASKS)  # a view; it lists D4RL's first


def get_normalized_score(env_id: str, episode_return: float | np.ndarray) -> float | np.ndarray:
    """The score of an episode as a fraction (papers print 100 times this): D4RL's, where 0 is the random policy and 1
    the expert; on OGBench's tasks success, 1 or 0, whose mean over episodes is the success rate.

    `episode_return` is one undiscounted return or an array of them; the answer has its shape.
    Raises ValueError for an id that has no reference scores.
    """
    if env_id not in ALL_TASKS:
        raise ValueError(f"{env_id} has no reference scores: it is not one of D4RL's tasks, nor of OGBench's ten")
    return ALL_TASKS[env_id].score(np.asarray(episode_return))


def percent_score(env_id: str, returns: np.ndarray) -> float | None:
    """The mean episode's score in percent: D4RL's, 0 a random policy's and 100 an expert's; OGBench's, the rate of
    success; None for a task without reference scores.
    """
    return 100 * float(get_normalized_score(env_id, returns).mean()) if env_id in ALL_TASKS else None
