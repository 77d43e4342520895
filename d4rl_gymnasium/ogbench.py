"""OGBench's single-task antmazes: its own environments, made fit for evaluations that repeat.

The package `ogbench` is optional, and imported only when one of these environments is made. It needs none of the
packages that it asks pip for, dm_control above all, in these tasks.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import gymnasium
import numpy as np

from d4rl_gymnasium.physics import restore_contacts


def make(env_id: str, **kwargs) -> gymnasium.Env:
    """OGBench's environment of this id, without a time limit, seeded by `reset(seed=...)` alone.

    Contacts are those of MuJoCo before 3.5, with which OGBench's data were made, whichever version is installed.
    Raises gymnasium.error.DependencyNotInstalled where the package is missing.
    """
    try:
        from ogbench.locomaze import maze  # registers OGBench's ids with gymnasium
    except ImportError as error:
        raise gymnasium.error.DependencyNotInstalled(
            f"OGBench's tasks need the package ogbench ({error}): pip install --no-deps ogbench==1.2.2."
        ) from error
    with _temporary_files_removed(maze):
        env = maze.make_maze_env(**gymnasium.spec(env_id).kwargs, **kwargs)
    restore_contacts(env.unwrapped.model)
    return Seeded(env)


class Seeded(gymnasium.Wrapper):
    """OGBench draws the ant's start from numpy's global generator: here from one of its own, which a seed sets.

    The global one is left as it was, so that an evaluation neither depends on what ran before nor disturbs it.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.starts = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:
            self.starts = np.random.default_rng(seed)
            self.action_space.seed(seed)  # of the random steps with which OGBench finds an observation of the goal
        state = np.random.get_state()
        np.random.seed(self.starts.integers(2**32))
        try:
            return self.env.reset(seed=seed, options=options)
        finally:
            np.random.set_state(state)


@contextlib.contextmanager
def _temporary_files_removed(maze) -> Iterator[None]:
    """OGBench hands its maze to MuJoCo in a temporary file that it neither closes nor removes: an evaluation makes
    fifty, and a process may have about a thousand open.
    """
    files = []

    def mkstemp(**options) -> tuple[int, str]:
        files.append(tempfile.mkstemp(**options))
        return files[-1]

    try:
        with mock.patch.object(maze, "tempfile", SimpleNamespace(mkstemp=mkstemp)):
            yield
    finally:
        for descriptor, path in files:
            os.close(descriptor)
            os.unlink(path)
