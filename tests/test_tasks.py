"""The table of tasks: against a copy of D4RL's facts, and as gymnasium sees it."""

import csv
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import d4rl_gymnasium as d4rl

HERE = Path(__file__).parent


def test_table_equals_the_csv():
    with open(HERE / "d4rl_tasks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    assert [row["env_id"] for row in rows] == list(d4rl.TASKS)
    for row in rows:
        task = d4rl.TASKS[row["env_id"]]
        assert task.env_id == row["env_id"]
        assert task.dataset_url == row["dataset_url"]
        for name in ("observation_dim", "action_dim", "max_episode_steps"):
            assert getattr(task, name) == int(row[name]), (task.env_id, name)
        for name in ("ref_min_score", "ref_max_score"):
            assert getattr(task, name) == float(row[name]), (task.env_id, name)


def test_file_names_are_unique():
    """A file in the cache directory must say by its name whose data it is."""
    assert len({task.file_name for task in d4rl.TASKS.values()}) == 39
    assert all(task.mirror_url.endswith("/main/" + task.file_name) for task in d4rl.TASKS.values())


def test_every_task_is_registered():
    for task in d4rl.TASKS.values():
        spec = gymnasium.spec(task.env_id)
        assert spec.entry_point == task.entry_point
        assert spec.max_episode_steps == task.max_episode_steps
        assert spec.kwargs == dict(task.kwargs)
        assert spec.disable_env_checker


def test_importing_twice_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(d4rl)


def test_import_loads_no_physics():
    code = "import sys, d4rl_gymnasium; sys.exit(any(name in sys.modules for name in ('mujoco', 'torch', 'minari')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE.parent).returncode == 0


def test_normalized_score_is_a_fraction():
    task = d4rl.TASKS["hopper-medium-v2"]
    assert d4rl.get_normalized_score(task.env_id, task.ref_min_score) == 0.0
    assert d4rl.get_normalized_score(task.env_id, task.ref_max_score) == 1.0
    middle = (task.ref_min_score + task.ref_max_score) / 2
    np.testing.assert_allclose(
        d4rl.get_normalized_score(task.env_id, np.array([[middle, task.ref_max_score]])), [[0.5, 1.0]]
    )


def test_normalized_score_of_another_environment():
    with pytest.raises(ValueError, match="Pendulum-v1 has no reference scores"):
        d4rl.get_normalized_score("Pendulum-v1", 0.0)
