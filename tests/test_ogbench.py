"""OGBench's ten tasks: the table, its data in D4RL's layout, its environments, and the scripts on them.

What needs the package `ogbench` (`pip install --no-deps ogbench==1.2.2`) is compared with that package, and skipped
without it. The data are made here, in the layout of OGBench's files, by its own environment where there is one.
"""

import importlib.util
import json
import os
import sys
import tempfile

import gymnasium
import numpy as np
import pytest
from conftest import SCRIPTS, load_script
from test_scripts import fitting
from toy_data import changed, env_like, leftovers, refused, transitions_of, write

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import tasks
from d4rl_gymnasium.physics import restore_contacts

LARGE = [task for task in d4rl.OGBENCH_TASKS if "large" in task]
GIANT = [task for task in d4rl.OGBENCH_TASKS if "giant" in task]
FILE = "antmaze-large-navigate-v0.npz"

pytestmark = pytest.mark.usefixtures("cache")
needs_ogbench = pytest.mark.skipif(not importlib.util.find_spec("ogbench"), reason="no ogbench here")


@pytest.fixture(autouse=True)
def ogbench_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path / "ogbench"))
    monkeypatch.setattr(tasks, "OGBENCH_HOST", "http://127.0.0.1:9/host")
    monkeypatch.setattr(tasks, "OGBENCH_MIRROR", "http://127.0.0.1:9/mirror")
    return tmp_path / "ogbench"


def rows(env_id: str, episodes: int = 3, length: int = 20) -> dict[str, np.ndarray]:
    """Random rows; in each episode the ant stands at the goal of env_id in rows 5 to 7 and in the last but one."""
    rng, count = np.random.default_rng(0), episodes * length
    qpos = rng.normal(size=(count, 15)).astype(np.float32) - 100
    step = np.arange(count) % length
    at_goal = np.isin(step, (5, 6, 7, length - 2))
    angle = rng.uniform(0, 2 * np.pi, count)
    circle = np.array(d4rl.ALL_TASKS[env_id].goal) + 0.49 * np.stack([np.cos(angle), np.sin(angle)], 1)
    qpos[at_goal, :2] = circle[at_goal]
    qvel = rng.normal(size=(count, 14)).astype(np.float32)
    return {
        "observations": np.concatenate([qpos, qvel], 1), "actions": rng.uniform(-1, 1, (count, 8)).astype(np.float32),
        "terminals": (step == length - 1).astype(np.float32), "qpos": qpos, "qvel": qvel,
    }  # fmt: skip


# --- The table --------------------------------------------------------------------------------------------------------


def test_table():
    assert [*d4rl.OGBENCH_TASKS] == LARGE + GIANT and len(LARGE) == len(GIANT) == 5
    assert [*d4rl.ALL_TASKS] == [*d4rl.TASKS, *d4rl.OGBENCH_TASKS] and len(d4rl.TASKS) == 39
    for maze in ("large", "giant"):
        for number in range(1, 6):
            env_id = f"antmaze-{maze}-navigate-singletask-task{number}-v0"
            task, spec = d4rl.OGBENCH_TASKS[env_id], gymnasium.spec(env_id)
            assert task.file_name == f"antmaze-{maze}-navigate-v0.npz"
            assert (spec.max_episode_steps, spec.entry_point) == (1000, "d4rl_gymnasium.ogbench:make")


def test_urls(monkeypatch):
    monkeypatch.undo()
    task = d4rl.OGBENCH_TASKS[LARGE[0]]
    assert task.dataset_url == f"https://rail.eecs.berkeley.edu/datasets/ogbench/{FILE}"
    assert task.mirror_url == f"https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main/{FILE}"


def test_score_is_the_rate_of_success():
    """A thousand steps without success cost 1000; success in the last of them, 999."""
    returns = np.array([[-1000.0, -999.0], [0.0, -1000.0]])
    np.testing.assert_array_equal(d4rl.get_normalized_score(LARGE[0], returns), [[0, 1], [1, 0]])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match="pip install --no-deps ogbench==1.2.2"):
        gymnasium.make(LARGE[0])


# --- Data -------------------------------------------------------------------------------------------------------------


def transitions_row_by_row(raw, goal):
    """OGBench's rule as one reads it: rows that end an episode have no successor; success is where the ant stands."""
    kept = [i for i, last in enumerate(raw["terminals"]) if not last]
    success = [bool(np.hypot(*(raw["qpos"][i, :2] - goal)) <= 0.5) for i in kept]
    return {
        "observations": raw["observations"][kept], "actions": raw["actions"][kept],
        "next_observations": raw["observations"][[i + 1 for i in kept]],
        "rewards": np.array([0.0 if s else -1.0 for s in success], np.float32), "terminals": np.array(success),
    }  # fmt: skip


@pytest.mark.parametrize("env_id", [LARGE[0], LARGE[2], GIANT[3]])
def test_transitions(env_id, tmp_path):
    raw = rows(env_id)
    path = write(tmp_path / d4rl.ALL_TASKS[env_id].file_name, raw)
    ours = transitions_of(path, env_like(env_id))
    theirs = transitions_row_by_row(raw, d4rl.ALL_TASKS[env_id].goal)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert ours["terminals"].sum() == 12 and len(ours["rewards"]) == 57  # 4 of 19 rows in each of 3 episodes
    assert {key: array.dtype for key, array in ours.items()} == dict.fromkeys(ours, np.float32) | {"terminals": bool}


def test_file_in_the_cache_of_ogbench(ogbench_cache, command):
    path = write(ogbench_cache / FILE, rows(LARGE[0]))
    dataset = d4rl.find_dataset(env_like(LARGE[0]))
    assert (dataset.path, dataset.source) == (path, "OGBench (found in its cache directory)")
    assert d4rl.find_dataset(env_like(LARGE[4])) == dataset  # five tasks share it
    for line in (["info", LARGE[0]], ["check", str(path), "--env-id", LARGE[0]], ["check", str(path)]):
        code, output, _ = command(*line)
        assert code == 0 and "rows at the goal   12" in output and "episodes           3" in output
    code, output, _ = command("list")
    assert sum("OGBench's file" in line for line in output.splitlines()) == 5


def test_download(ogbench_cache, host, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "OGBENCH_HOST", f"{host.url}/host")
    monkeypatch.setattr(tasks, "OGBENCH_MIRROR", host.mirror_url)
    host.files[f"/host/{FILE}"] = b"<html>moved</html>"
    host.files[f"/mirror/{FILE}"] = write(tmp_path / FILE, rows(LARGE[0])).read_bytes()
    dataset = d4rl.find_dataset(env_like(LARGE[1]))
    assert dataset.source == f"OGBench (downloaded from {d4rl.ALL_TASKS[LARGE[1]].mirror_url})"
    assert leftovers(ogbench_cache) == [FILE, FILE + ".sha256"]
    requests = len(host.requests)
    assert d4rl.find_dataset(env_like(LARGE[0])) == dataset and len(host.requests) == requests
    (ogbench_cache / FILE).write_bytes(write(tmp_path / FILE, rows(LARGE[1])).read_bytes())
    refused("has changed since it was stored", env=env_like(LARGE[0]))


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("qpos", None, "has no qpos"),
        ("terminals", None, "has no terminals"),
        ("observations", lambda x: np.where(x == x.max(), np.nan, x), "NaN"),
        ("actions", lambda x: x[1:], "differ in their number of rows"),
        ("observations", lambda x: x[:, :20], "not data for antmaze-large"),
        ("actions", lambda x: 3 * x, "actions reach from"),
        ("actions", lambda x: x.astype(object), "actions holds object, not numbers"),
    ],
)
def test_damaged_data_get_a_sentence(key, change, words, tmp_path):
    path = write(tmp_path / "my.npz", changed(rows(LARGE[0]), **{key: change}))
    refused(words, path, env_like(LARGE[0]))


def test_files_of_other_tasks(tmp_path):
    giant = write(tmp_path / d4rl.ALL_TASKS[GIANT[0]].file_name, rows(GIANT[0]))
    env = env_like("antmaze-large-play-v2")
    refused("is data for antmaze-giant", giant, env_like(LARGE[0]))
    refused("is data for antmaze-giant", giant, env)
    refused("has no rewards: only OGBench's tasks", giant.rename(tmp_path / "my.npz"), env)


# --- Environments, against the package --------------------------------------------------------------------------------


def ogbench_env(env_id: str) -> gymnasium.Env:
    import ogbench

    env = ogbench.make_env_and_datasets(env_id, env_only=True)
    restore_contacts(env.unwrapped.model)  # of MuJoCo before 3.5; does nothing there
    return env


@needs_ogbench
@pytest.mark.parametrize("env_id", d4rl.OGBENCH_TASKS)
def test_goals_are_those_of_ogbench(env_id):
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    assert tuple(env.unwrapped.cur_goal_xy) == d4rl.ALL_TASKS[env_id].goal
    assert env.unwrapped._goal_tol == d4rl.OGBENCH_TASKS[env_id].goal_radius
    assert env.spec.id == env_id and env.spec.max_episode_steps == 1000
    assert (env.observation_space.shape, env.action_space.shape) == ((29,), (8,))


@needs_ogbench
def test_same_steps_as_ogbench():
    """Set to the same state, both go the same way, to the bit; and the reward is −1."""
    ours, theirs = gymnasium.make(GIANT[1]), ogbench_env(GIANT[1])
    observation, _ = ours.reset(seed=3)
    theirs.reset(seed=0)
    theirs.unwrapped.set_state(observation[:15], observation[15:])
    ours.unwrapped.set_state(observation[:15], observation[15:])
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 8)
        a, b = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4] == (-1.0, False, False)


@needs_ogbench
@pytest.mark.parametrize("env_id", [LARGE[1], GIANT[4]])
def test_data_equal_ogbench(env_id, tmp_path):
    """Random walks of OGBench's own environment from near the goal: its loader and its relabelling, and ours."""
    from ogbench.relabel_utils import relabel_dataset
    from ogbench.utils import load_dataset

    env = ogbench_env(env_id)
    env.reset(seed=0)
    goal, rng, columns = env.unwrapped.cur_goal_xy, np.random.default_rng(0), []
    for episode in range(4):
        env.reset(seed=episode)
        env.unwrapped.set_xy(np.array(goal) + rng.uniform(-0.7, 0.7, 2))
        for step in range(30):
            action, data = rng.uniform(-1, 1, 8), env.unwrapped.data
            qpos, qvel = data.qpos.copy(), data.qvel.copy()
            columns.append((np.concatenate([qpos, qvel]), action, float(step == 29), qpos, qvel))
            env.step(action)
    names = ("observations", "actions", "terminals", "qpos", "qvel")
    raw = {name: np.array(column, np.float32) for name, column in zip(names, zip(*columns, strict=True), strict=True)}
    path = write(tmp_path / d4rl.ALL_TASKS[env_id].file_name, raw)
    theirs = load_dataset(path, add_info=True)
    relabel_dataset(env_id.replace("-navigate", ""), env, theirs)
    assert 0 < theirs["masks"].sum() < len(theirs["masks"])
    ours = transitions_of(path, gymnasium.make(env_id))
    np.testing.assert_array_equal(ours["terminals"], theirs["masks"] == 0)
    for key in ("observations", "actions", "next_observations", "rewards"):
        np.testing.assert_array_equal(ours[key], theirs[key])


@needs_ogbench
def test_episodes_are_a_function_of_the_seed():
    """Whatever numpy's global generator does, which is left as it was."""
    env, other = gymnasium.make(LARGE[0]), gymnasium.make(LARGE[0])
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first = env.reset(seed=7)[0]
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(2)
    second, info = other.reset(seed=7)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(env.reset(seed=7)[1]["goal"], info["goal"])
    starts = np.array([env.reset(seed=seed)[0][:2] for seed in range(40)])
    assert len(np.unique(starts, axis=0)) == 40 and (abs(starts) < 1.01).all()  # around cell (1, 1), by up to a metre
    assert (abs(starts) > 0.8).any(0).all()
    np.testing.assert_array_equal(env.reset()[0], env.reset(seed=39) and env.reset()[0])  # goes on from the seed


@needs_ogbench
@pytest.mark.parametrize(("succeeds", "length", "expected"), [(True, 5, -4.0), (False, 1000, -1000.0)])
def test_success_ends_the_episode_and_scores(succeeds, length, expected):
    env = gymnasium.make(LARGE[2])
    env.reset(seed=0)
    total, steps, done = 0.0, 0, False
    while not done:
        if succeeds and steps == 4:
            env.unwrapped.set_xy(np.array(d4rl.ALL_TASKS[LARGE[2]].goal) + [0.0, 0.3])
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        total, steps, done = total + reward, steps + 1, terminated or truncated
    assert (total, steps, terminated, truncated) == (expected, length, succeeds, not succeeds)
    assert info["success"] == d4rl.get_normalized_score(LARGE[2], total) == succeeds


@needs_ogbench
def test_environments_leave_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gymnasium.make(LARGE[0])
    before = len(os.listdir("/proc/self/fd"))
    environments = [gymnasium.make(LARGE[0]) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before and not list(tmp_path.iterdir())
    assert len({id(env.unwrapped.model) for env in environments}) == 5


@needs_ogbench
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs(script, tmp_path):
    module, path = load_script(script), write(tmp_path / FILE, rows(LARGE[0]))
    arguments = {
        "env_id": (LARGE[0],), "dataset_path": str(path), "runs_dir": str(tmp_path / "runs"), "device": "cpu",
        "total_steps": 20, "batch_size": 8, "eval_episodes": 1, "final_eval_episodes": 2,
    }  # fmt: skip
    module.main(module.Args(**fitting(script, arguments)))
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert (result["env_id"], result["final_score"], len(result["final_returns"])) == (LARGE[0], 0.0, 2)
    assert result["final_returns"] == [-1000.0, -1000.0] and result["last"]["charts/normalized_score"] == 0.0
