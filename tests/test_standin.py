"""Stand-ins for D4RL's MuJoCo data: the policies, what is collected from them, when it is used, how it is marked."""

import hashlib
import json
import re

import gymnasium
import numpy as np
import pytest
from conftest import SCRIPTS, load_script
from toy_data import HOPPER, env_like, refused, rows, write

import d4rl_gymnasium as d4rl
from benchmark import results
from d4rl_gymnasium import data, locomotion, tasks

RECORD = json.loads(locomotion.RECORD.read_text())
ROBOTS = list(locomotion.ROBOTS)
LEVELS = ["random", "medium", "expert", "medium-expert", "medium-replay", "full-replay"]
EPISODES = 6
each_robot = pytest.mark.parametrize("robot", ROBOTS)
pytestmark = pytest.mark.usefixtures("cache")


# --- The policies ----------------------------------------------------------------------------------------------------


@each_robot
def test_record(robot):
    snapshots = RECORD[robot]["snapshots"]
    assert 10 <= len(snapshots) <= 16
    steps, roles = ([snapshot[key] for snapshot in snapshots] for key in ("steps", "role"))
    assert steps == sorted(set(steps)) and steps[0] == 0
    assert roles[0] == "random" and roles[-1] == "expert" and sorted(filter(None, roles)) == sorted(set(roles) - {""})
    low, medium, high = (snapshots[roles.index(role)]["return_mean"] for role in ("random", "medium", "expert"))
    assert low < medium < high
    assert f"train {robot} " in RECORD[robot]["command"] and "sbx-rl" in RECORD[robot]["versions"]
    with np.load(locomotion.WEIGHTS) as file:
        stacked = [file[key] for key in file if key.startswith(f"{robot}_")]
    assert {(len(array), array.dtype.name) for array in stacked} == {(len(snapshots), "float16")}
    assert locomotion.WEIGHTS.stat().st_size < 1.5e6


@each_robot
def test_levels(robot):
    """Which snapshots a level's policies are, told by their weights."""
    roles = [snapshot["role"] for snapshot in RECORD[robot]["snapshots"]]
    last, medium = len(roles) - 1, roles.index("medium")
    expected = {
        "random": [0], "medium": [medium], "expert": [last], "medium-expert": [medium, last],
        "medium-replay": list(range(medium + 1)), "full-replay": list(range(last + 1)),
    }  # fmt: skip
    with np.load(locomotion.WEIGHTS) as file:
        weights = file[f"{robot}_hidden2_weight"]
    for level in LEVELS:
        policies = locomotion.load_policies(robot, level)
        assert len(policies) == len(expected[level])
        for i, policy in zip(expected[level], policies, strict=True):
            np.testing.assert_array_equal(policy.hidden2[0], weights[i])


def test_policy_equals_its_formula():
    """One unit after the other, with standard deviations beyond both of the trainer's bounds."""
    rng = np.random.default_rng(0)
    shapes = {"hidden1": (4, 5), "hidden2": (5, 6), "mean": (6, 3), "log_std": (6, 3)}
    arrays = {f"{name}_weight": (0.4 * rng.standard_normal(shape)).astype(np.float16) for name, shape in shapes.items()}
    arrays |= {f"{name}_bias": rng.standard_normal(shape[1]).astype(np.float16) for name, shape in shapes.items()}
    arrays["log_std_bias"] = np.array([-60, 60, -1], np.float16)
    s, noise = rng.standard_normal(4), np.array([0.3, 0.1, -0.2])

    def layer(name, x, j):
        weights, bias = arrays[f"{name}_weight"][:, j], arrays[f"{name}_bias"][j]
        return sum(float(weight) * x_i for weight, x_i in zip(weights, x, strict=True)) + float(bias)

    x = [max(layer("hidden1", s, j), 0) for j in range(5)]
    x = [max(layer("hidden2", x, j), 0) for j in range(6)]
    log_std = [min(max(layer("log_std", x, j), -20), 2) for j in range(3)]
    assert log_std[:2] == [-20, 2] and -20 < log_std[2] < 2, "not all three cases are tested"
    expected = [np.tanh(layer("mean", x, j) + np.exp(log_std[j]) * noise[j]) for j in range(3)]
    np.testing.assert_allclose(locomotion.Policy(arrays)(s, noise), expected, rtol=1e-13)


@each_robot
@pytest.mark.parametrize("role", ["random", "medium", "expert"])
def test_a_snapshot_returns_what_the_record_says(robot, role):
    (known,) = (snapshot for snapshot in RECORD[robot]["snapshots"] if snapshot["role"] == role)
    env, rng = locomotion.ROBOTS[robot](), np.random.default_rng(7)
    (policy,) = locomotion.load_policies(robot, role)
    env.reset(seed=7)
    returns = [locomotion.run_episode(env, policy, rng)["rewards"].sum() for _ in range(EPISODES)]
    error = known["return_std"] * np.sqrt(1 / EPISODES + 1 / RECORD[robot]["evaluation"]["episodes"])
    assert abs(np.mean(returns) - known["return_mean"]) < 4 * error


# --- What is collected -----------------------------------------------------------------------------------------------


@each_robot
@pytest.mark.parametrize("level", LEVELS)
def test_a_collection(robot, level):
    count = 2000
    raw = locomotion.collect(robot, level, count, seed=0, progress=False)
    task = d4rl.TASKS[f"{robot}-{level}-v2"]
    s, a = (task.observation_dim,), (task.action_dim,)
    assert {key: (array.shape, array.dtype.name) for key, array in raw.items()} == {
        "observations": ((count, *s), "float32"),
        "actions": ((count, *a), "float32"),
        "next_observations": ((count, *s), "float32"),
        "rewards": ((count,), "float32"),
        "terminals": ((count,), "bool"),
        "timeouts": ((count,), "bool"),
    }
    d4rl.qlearning_dataset(env_like(task.env_id), raw)  # its checks pass
    final = raw["terminals"] | raw["timeouts"]
    assert not (raw["terminals"] & raw["timeouts"]).any() and final[-1]
    inside = ~final[:-1]
    np.testing.assert_array_equal(raw["next_observations"][:-1][inside], raw["observations"][1:][inside])
    assert not (raw["next_observations"][:-1][~inside] == raw["observations"][1:][~inside]).all(axis=1).any()
    # Timeouts: at the horizon, and where the rows of a policy end.
    ends = np.flatnonzero(final)
    lengths = np.diff(ends, prepend=-1)
    policies = len(locomotion.load_policies(robot, level))
    shares = {count * (i + 1) // policies - 1 for i in range(policies)}
    assert shares <= set(ends.tolist())
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        assert length <= 1000 and raw["timeouts"][end] <= (length == 1000 or end in shares)


@each_robot
def test_collected_transitions_are_the_environments(robot):
    """Set the state that a row shows (but for its place along the track, which changes nothing) and take its action."""
    raw = locomotion.collect(robot, "random", 1000, seed=3, progress=False)
    env = gymnasium.make(f"{robot}-medium-v2").unwrapped
    env.reset(seed=0)
    checked = 0
    for row in range(999):  # not the last, which the number of rows may have cut off
        s = raw["observations"][row].astype(np.float64)
        velocities = s[env.model.nq - 1 :]
        if np.abs(velocities).max() >= env.speed_limit:  # what is observed of a velocity is cut off there
            continue
        env.set_state(np.r_[0.0, s[: env.model.nq - 1]], velocities)
        observation, reward, terminal, _, _ = env.step(raw["actions"][row])
        checked += 1
        np.testing.assert_allclose(observation, raw["next_observations"][row], rtol=0, atol=1e-3)
        assert reward == pytest.approx(raw["rewards"][row], abs=1e-4)
        assert terminal == raw["terminals"][row]
    assert checked > 100


@each_robot
def test_a_collection_repeats(robot):
    one, again, other = (locomotion.collect(robot, "medium-replay", 600, seed, progress=False) for seed in (5, 5, 6))
    for key, array in one.items():
        np.testing.assert_array_equal(array, again[key])
    assert not np.array_equal(one["actions"], other["actions"])


# --- When it is used -------------------------------------------------------------------------------------------------


SOURCE = "collected by d4rl_gymnasium's behaviour policies (stand-in for D4RL's file)"
REFUSAL = r"download failed .*Fetch http\S+ or http\S+ elsewhere and put it into .*--dataset-path FILE"


def test_with_no_host_a_stand_in_is_collected_and_announced(small_collections, capsys):
    env = env_like()
    dataset = d4rl.find_dataset(env, stand_in=True)
    assert dataset.path == data.cache_directory() / "collected" / "hopper-medium-v2.hdf5"
    assert dataset.source == SOURCE and not data.original_path(HOPPER).exists()
    assert len(d4rl.read_dataset(dataset, env)["rewards"]) == 2000
    errors = capsys.readouterr().err
    assert "download failed" in errors and "Collecting 2,000 rows" in errors
    frame = re.search(r"^(\+-+\+)\n((?:\| .* \|\n)+)\1$", errors, re.M)
    assert "STAND-IN" in frame[2] and "not comparable" in frame[2] and "fetch hopper-medium-v2" in frame[2]

    assert d4rl.find_dataset(env, stand_in=True) == dataset  # at once, but never without a word
    errors = capsys.readouterr().err
    assert "Downloading" not in errors and "STAND-IN" in errors


def test_a_stand_in_can_be_refused(small_collections):
    data.collect(tasks.TASKS[HOPPER.env_id])  # which it is even where one is at hand
    refused(REFUSAL)


def test_d4rls_own_file_comes_first(small_collections, capsys):
    data.collect(tasks.TASKS[HOPPER.env_id])
    path = write(data.original_path(HOPPER), rows())
    assert d4rl.find_dataset(env_like(), stand_in=True).path == path
    assert data.collect(tasks.TASKS[HOPPER.env_id]).source == SOURCE  # both can be had
    assert "STAND-IN" not in capsys.readouterr().err


def test_command_line(small_collections, command):
    code, _, errors = command("collect", "hopper-medium-v2", "pen-human-v1")
    assert code == 1 and "pen-human-v1 cannot be collected" in errors and SOURCE in errors
    assert "collected, " in command("list")[1].split("hopper-medium-v2")[1].splitlines()[0]
    code, output, _ = command("info", "hopper-medium-v2")
    assert code == 0 and SOURCE in output and "rows               2,000" in output
    assert "'level': 'medium'" in output and hashlib.sha256(locomotion.WEIGHTS.read_bytes()).hexdigest() in output
    code, _, errors = command("fetch", "hopper-medium-v2")  # that is D4RL's own
    assert code == 1 and "D4RL's file is not on this machine" in errors


def test_rows_are_d4rls():
    expected = {"medium-expert": [2_000_000] * 3, "medium-replay": [202_000, 402_000, 302_000]}
    for level in LEVELS:
        counts = [d4rl.TASKS[f"{robot}-{level}-v2"].collected_rows for robot in ROBOTS]
        assert counts == expected.get(level, [1_000_000] * 3)


# --- How a run is marked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_can_refuse(script, tmp_path):
    module = load_script(script)
    assert module.Args().stand_in
    with pytest.raises(d4rl.DatasetError, match=REFUSAL):
        module.main(module.Args(env_id=(HOPPER.env_id,), stand_in=False, runs_dir=str(tmp_path / "runs"), device="cpu"))
    assert not (tmp_path / "runs").exists()


def test_a_run_is_marked(small_collections, tmp_path, monkeypatch):
    module = load_script("aspc_td3bc")
    module.main(
        module.Args(
            env_id=(HOPPER.env_id,), runs_dir=str(tmp_path), device="cpu", total_steps=20, batch_size=8,
            eval_interval=20, eval_episodes=1, final_eval_episodes=1, eval_workers=0,
        )
    )  # fmt: skip
    (path,) = tmp_path.glob("hopper-medium-v2__aspc_td3bc__0__*")
    assert path.name.endswith("__stand-in")
    assert json.loads((path / "config.json").read_text())["dataset"]["source"] == SOURCE
    assert json.loads((path / "result.json").read_text())["dataset"] == SOURCE
    run = results.read_run(path)
    assert results.kind_of_data(run.task, run.dataset) == "on stand-in data" and "stand-in" not in run.label
    with pytest.raises(SystemExit, match="is complete"):
        module.main(module.Args(resume=str(path)))
