"""`load_tasks`, what the scripts start from, and `percent_score`, what they report."""

import gymnasium
import numpy as np
import pytest
from toy_data import rows, write

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import data

MEDIUM, EXPERT = "hopper-medium-v2", "hopper-expert-v2"
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def hopper_files():
    return {
        env_id: write(data.original_path(d4rl.TASKS[env_id]), rows(seed=seed))
        for seed, env_id in enumerate((MEDIUM, EXPERT))
    }


@pytest.mark.parametrize("env_ids", [[MEDIUM], (EXPERT, MEDIUM)])
@pytest.mark.parametrize("next_actions", [False, True])
def test_tasks_keep_their_order(hopper_files, env_ids, next_actions):
    tasks = d4rl.load_tasks(env_ids, next_actions=next_actions)
    for env_id, file, transitions in zip(env_ids, tasks.files, tasks.transitions, strict=True):
        env = gymnasium.make(env_id)
        assert file == d4rl.find_dataset(env) and file.path == hopper_files[env_id]
        expected = d4rl.qlearning_dataset(env, file, next_actions)
        assert transitions.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(transitions[key], array)
    np.testing.assert_array_equal(tasks.low, [-1, -1, -1])
    np.testing.assert_array_equal(tasks.high, [1, 1, 1])
    assert tasks.low.dtype == np.float32


def test_a_path_goes_with_one_task(hopper_files):
    assert d4rl.load_tasks([MEDIUM], str(hopper_files[EXPERT])).files[0].path == hopper_files[EXPERT]
    with pytest.raises(d4rl.DatasetError, match="--dataset-path gives the data of one task, and --env-id names 2"):
        d4rl.load_tasks([MEDIUM, EXPERT], str(hopper_files[EXPERT]))


@pytest.mark.parametrize(
    "env_ids, message",
    [
        ([], "names no task"),
        ([MEDIUM, EXPERT, MEDIUM], "names hopper-medium-v2 twice"),
        (["hopper-medum-v2"], r"--env-id hopper-medum-v2: .* \(`python -m d4rl_gymnasium list` shows D4RL's tasks"),
        (["CartPole-v1"], "CartPole-v1 has actions of Discrete"),
        ([MEDIUM, "halfcheetah-medium-v2"], r"hopper-medium-v2 and halfcheetah.* observation .*\(11 and 17\)"),
        (["Low-v0", "Lower-v0"], "lowest actions differ"),
        (["Low-v0", "Wide-v0"], r"highest actions differ \(\[1.0\] and \[2.0\]\)"),
        (["Low-v0", "Two-v0"], r"action dimensions differ \(1 and 2\)"),
    ],
)
def test_tasks_that_cannot_be_trained_together(env_ids, message, monkeypatch):
    """Before anything is fetched: neither host nor file exists here."""

    class Env(gymnasium.Env):
        def __init__(self, low, high):
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
            self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high))

    for env_id, low, high in (
        ("Low-v0", [-1], [1]), ("Lower-v0", [-2], [1]), ("Wide-v0", [-1], [2]), ("Two-v0", [-1, -1], [1, 1])
    ):  # fmt: skip
        spec = gymnasium.envs.registration.EnvSpec(env_id, entry_point=Env, kwargs={"low": low, "high": high})
        monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(d4rl.DatasetError, match=message):
        d4rl.load_tasks(env_ids)


def test_percent_score():
    task = d4rl.TASKS[MEDIUM]
    returns = np.array([task.ref_min_score, task.ref_max_score, task.ref_max_score, task.ref_max_score])
    assert d4rl.percent_score(MEDIUM, returns) == pytest.approx(75)
    assert type(d4rl.percent_score(MEDIUM, returns)) is float
    assert d4rl.percent_score("antmaze-large-navigate-singletask-task1-v0", np.array([-1000.0, -999.0])) == 50
    assert d4rl.percent_score("Pendulum-v1", returns) is None
