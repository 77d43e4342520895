"""What a training script starts from: the data of its tasks, which one process can train together."""

from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import numpy as np

from d4rl_gymnasium.data import DatasetError, DatasetFile, check_spaces, find_dataset, qlearning_dataset


class Tasks(NamedTuple):
    files: list[DatasetFile]  # one a task, in the order of the ids
    transitions: list[dict[str, np.ndarray]]  # what `qlearning_dataset` gives of each
    low: np.ndarray  # (A,), the bounds of an action, the same for all
    high: np.ndarray


def load_tasks(
    env_ids: Sequence[str], dataset_path: str | None = None, stand_in: bool = True, next_actions: bool = False
) -> Tasks:
    """Find and read the data of the tasks, fetched or collected first where need be.

    `dataset_path` and `stand_in` are those of `find_dataset`, `next_actions` that of `qlearning_dataset`. Tasks that
    have not the same dimensions and action bounds do not share a network: they are refused before any data is touched.
    Raises DatasetError.
    """
    if not env_ids:
        raise DatasetError("--env-id names no task.")
    twice = next((env_id for i, env_id in enumerate(env_ids) if env_id in env_ids[:i]), None)
    if twice:
        raise DatasetError(f"--env-id names {twice} twice: for several runs of one task give several seeds.")
    if dataset_path is not None and len(env_ids) > 1:
        raise DatasetError(f"--dataset-path gives the data of one task, and --env-id names {len(env_ids)}.")

    envs = [_make(env_id) for env_id in env_ids]
    first = envs[0]
    for env_id, env in zip(env_ids, envs, strict=True):
        check_spaces(env)
        for what, one, other in (
            ("observation dimensions", first.observation_space.shape[0], env.observation_space.shape[0]),
            ("action dimensions", first.action_space.shape[0], env.action_space.shape[0]),
            ("lowest actions", first.action_space.low.tolist(), env.action_space.low.tolist()),
            ("highest actions", first.action_space.high.tolist(), env.action_space.high.tolist()),
        ):
            if one != other:
                raise DatasetError(
                    f"{env_ids[0]} and {env_id} cannot be trained in one process, their {what} differ "
                    f"({one} and {other}): start one for each."
                )
    files = [find_dataset(env, dataset_path, stand_in) for env in envs]
    transitions = [qlearning_dataset(env, file, next_actions) for env, file in zip(envs, files, strict=True)]
    for env in envs:
        env.close()
    return Tasks(files, transitions, first.action_space.low, first.action_space.high)


def _make(env_id: str) -> gymnasium.Env:
    try:
        return gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError, RuntimeError, ValueError) as error:
        raise DatasetError(
            f"--env-id {env_id}: {error} (`python -m d4rl_gymnasium list` shows D4RL's tasks.)"
        ) from error
