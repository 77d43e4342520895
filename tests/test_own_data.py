"""A user's own data: they mean what they say, what is odd about them is said, what cannot be right is refused."""

import subprocess
import sys

import gymnasium
import h5py
import numpy as np
import pytest
from conftest import ROOT
from toy_data import HOPPER, changed, env_like, refused, rows, transitions_of, write

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import data
from d4rl_gymnasium import rows as rows_module

pytestmark = pytest.mark.usefixtures("cache")


def flags(count, *indices):
    return np.isin(np.arange(count), indices)


def episodes(ends, count=12):
    """Rows whose reward is their number; `ends` are terminals and timeouts."""
    raw = rows(count)
    raw["rewards"] = np.arange(count, dtype=np.float32)
    return raw | {key: flags(count, *indices) for key, indices in ends.items()}


# --- What the flags mean ---------------------------------------------------------------------------------------------


def test_a_goal_on_the_last_step_is_trained_on(tmp_path):
    """Row 5 reaches the goal with the horizon, row 11 in the last row of the file; row 8 is cut off."""
    raw = episodes({"terminals": (5, 11), "timeouts": (5, 8)})
    transitions = transitions_of(write(tmp_path / "own.hdf5", raw))
    kept = np.delete(np.arange(12), 8)
    np.testing.assert_array_equal(transitions["rewards"], kept)
    np.testing.assert_array_equal(np.flatnonzero(transitions["terminals"]), [5, 10])
    successors = np.where(raw["terminals"], np.arange(12), np.arange(1, 13))[kept]
    np.testing.assert_array_equal(transitions["next_observations"], raw["observations"][successors])

    transitions = transitions_of(tmp_path / "own.hdf5", next_actions=True)
    np.testing.assert_array_equal(transitions["rewards"], kept)
    expected = np.where(raw["terminals"][kept, None], 0, raw["actions"][successors])
    np.testing.assert_array_equal(transitions["next_actions"], expected)


@pytest.mark.parametrize("how", ["in the cache", "given under its name", "an array"])
def test_d4rls_files_keep_d4rls_rule(how, cache, tmp_path):
    """And their next observations, which they hold for some tasks and not for others, are not used."""
    raw, env = episodes({"terminals": (5, 11), "timeouts": (5, 8)}), env_like()
    raw["next_observations"] = np.full((12, 11), np.nan)
    if how == "in the cache":
        write(data.original_path(HOPPER), raw)
        transitions = d4rl.qlearning_dataset(env)
    elif how == "an array":
        transitions = d4rl.qlearning_dataset(env, raw)
    else:
        transitions = transitions_of(write(tmp_path / HOPPER.file_name, raw))
    kept = np.delete(np.arange(12), [5, 8, 11])
    np.testing.assert_array_equal(transitions["rewards"], kept)
    np.testing.assert_array_equal(transitions["next_observations"], raw["observations"][kept + 1])


@pytest.mark.parametrize(
    "source, own, stand_in",
    [
        ("a robot of mine", True, False),
        ("D4RL (downloaded from http://host/file)", False, False),
        (HOPPER.collected_source, False, True),
    ],
)
def test_whose_file_it_is(tmp_path, source, own, stand_in):
    """What it says of its source goes before its name, and the name of a user's file says nothing of the kind."""
    env = env_like()
    assert not d4rl.find_dataset(env, write(tmp_path / "my stand-in.hdf5", rows())).stand_in
    path = write(tmp_path / "my stand-in.hdf5", rows(), {"source": source})
    dataset = d4rl.find_dataset(env, path)
    assert (dataset.own, dataset.stand_in) == (own, stand_in)
    assert d4rl.find_dataset(env, path.rename(tmp_path / HOPPER.file_name)).own == own


def test_episodes_of_own_data_are_counted_from_their_start(tmp_path):
    """Horizon 4. D4RL counts from 1 after a terminal row, and would cut that episode one row too early."""
    raw = episodes({"terminals": (2,)})
    del raw["timeouts"]
    transitions = transitions_of(write(tmp_path / "own.hdf5", raw), env_like(horizon=4))
    np.testing.assert_array_equal(transitions["rewards"], [0, 1, 2, 3, 4, 5, 7, 8, 9])  # 6 at the limit, 10 and so on
    raw["terminals"] = flags(12, 3, 7, 11)  # the goal with the last step, in each
    transitions = transitions_of(write(tmp_path / "own.hdf5", raw), env_like(horizon=4))
    np.testing.assert_array_equal(transitions["rewards"], np.arange(12))


def test_truncations_are_timeouts(tmp_path):
    raw = episodes({"terminals": (), "timeouts": (3,)})
    raw["truncations"] = flags(12, 7)
    path = write(tmp_path / "own.hdf5", raw)
    np.testing.assert_array_equal(transitions_of(path)["rewards"], np.delete(np.arange(12), [3, 7, 11]))
    del raw["timeouts"]
    path = write(tmp_path / HOPPER.file_name, raw)
    for transitions in (transitions_of(path), d4rl.qlearning_dataset(env_like(), raw)):
        np.testing.assert_array_equal(transitions["rewards"], np.delete(np.arange(12), [7, 11]))


# --- Stored next observations ----------------------------------------------------------------------------------------


def with_next(raw):
    """`raw` and the observation after each step: another one than the next row's where an episode ends."""
    ends = raw["terminals"] | raw.get("timeouts", False)
    ends[-1] = True
    after = np.where(ends[:, None], np.float32(7), np.roll(raw["observations"], -1, 0))
    return raw | {"next_observations": after}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])  # rounded they are in order, too
def test_stored_next_observations_are_used(tmp_path, capsys, dtype):
    raw = with_next(episodes({"terminals": (5,), "timeouts": (8, 11)}))
    raw["next_observations"] = raw["next_observations"].astype(dtype)
    path = write(tmp_path / "own.hdf5", raw)
    transitions = transitions_of(path)
    for key, array in transitions.items():
        np.testing.assert_array_equal(array, raw[key])  # no row is dropped
    assert "own.hdf5" not in capsys.readouterr().err  # and nothing is to be said
    transitions = transitions_of(path, next_actions=True)
    np.testing.assert_array_equal(transitions["rewards"], np.delete(np.arange(12), [8, 11]))
    assert "of 12 rows are dropped 2 with a timeout." in capsys.readouterr().err


@pytest.mark.parametrize("marked", [True, False])
def test_shuffled_transitions_are_used_and_said(tmp_path, capsys, command, marked):
    raw = with_next(rows(200, end=0.05, timeouts=marked))
    order = np.random.default_rng(1).permutation(200)
    raw = {key: array[order] for key, array in raw.items()}
    path = write(tmp_path / "own.hdf5", raw)
    transitions = transitions_of(path)
    for key, array in transitions.items():
        np.testing.assert_array_equal(array, raw[key])
    said = " ".join(capsys.readouterr().err.split())
    assert "are not the observations of the next row" in said and "of 200 rows" in said
    with pytest.raises(d4rl.DatasetError, match="Next actions need rows in the order"):
        transitions_of(path, next_actions=True)
    code, output, _ = command("check", path)
    told = facts(output)
    assert code == 0 and "taken as it is stored" in told["order"] and "not to be told" in told["episodes"]
    assert "returns" not in told


def test_episodes_that_end_unmarked(tmp_path, capsys):
    """Stored next observations tell: rows 3 and 7 have no successor, and so no next action."""
    raw = with_next(episodes({"terminals": (), "timeouts": (3, 7)}))
    del raw["timeouts"]
    path = write(tmp_path / "own.hdf5", raw)
    assert len(transitions_of(path)["rewards"]) == 12
    assert "the next_observations of 2 of 12 rows" in capsys.readouterr().err
    transitions = transitions_of(path, next_actions=True)
    np.testing.assert_array_equal(transitions["rewards"], np.delete(np.arange(12), [3, 7, 11]))
    env = gymnasium.make("Pendulum-v1").unwrapped  # no spec of a limit is needed either
    env.spec = None
    env.observation_space, env.action_space = env_like().observation_space, env_like().action_space
    assert len(transitions_of(path, env, next_actions=True)["rewards"]) == 9


# --- What is said ----------------------------------------------------------------------------------------------------


def test_what_is_not_read_is_said_once(tmp_path, capsys, command):
    raw = episodes({"terminals": (), "timeouts": (3,)}) | {"dones": flags(12, 3), "infos/goal": np.zeros((12, 2))}
    path = write(tmp_path / "own.hdf5", raw)
    transitions_of(path)
    said = capsys.readouterr().err
    assert said.count(f"{path}: not read: dones, infos.\n") == 1
    assert said.count(f"{path}: of 12 rows are dropped 1 with a timeout, 1 that nothing follows.\n") == 1
    code, output, _ = command("check", path, "--env-id", HOPPER.env_id)
    assert code == 0 and output.count("dones, infos") == 1


def facts(output):
    """The lines of a description, by their names."""
    return {line[2:21].strip(): line[21:] for line in output.splitlines() if line.startswith("  ")}


def test_check_says_what_training_will_see(tmp_path, command):
    raw = episodes({"terminals": (5, 11), "timeouts": (5, 8)})
    path = write(tmp_path / "own.hdf5", raw)
    code, output, _ = command("check", path, "--env-id", HOPPER.env_id)
    told = facts(output)
    assert code == 0 and told["transitions"] == "11, of which 2 are terminal"
    assert facts(command("check", path)[1])["transitions"] == told["transitions"]
    assert told["rows dropped"] == "1 with a timeout" and told["by"] == "what the data say"
    assert told["episodes"] == "3 that end in the data" and "min 15.00" in told["returns"]  # 0 + ... + 5
    assert "max 30.00" in told["returns"]  # 9 + 10 + 11
    told = facts(command("check", path.rename(tmp_path / HOPPER.file_name))[1])
    assert told["transitions"] == "9, of which 0 are terminal" and told["by"] == "D4RL's rule"
    assert told["rows dropped"] == "2 with a timeout (1 terminal), 1 that nothing follows (1 terminal)"


@pytest.mark.parametrize(
    "raw, message",
    [
        (rows(1, end=0.0), "holds no transition: of 1 rows are dropped 1 that nothing follows"),
        (episodes({"terminals": (), "timeouts": range(12)}), "of 12 rows are dropped 12 with a timeout"),
    ],
)
def test_check_and_training_refuse_alike(tmp_path, command, raw, message):
    path = write(tmp_path / "own.hdf5", raw)
    refused(message, path)
    for arguments in ([], ["--env-id", HOPPER.env_id]):
        code, output, errors = command("check", path, *arguments)
        assert code == 1 and message in errors and "ok" not in output.split()


def test_check_without_an_environment_does_not_guess_its_limit(tmp_path, command):
    path = write(tmp_path / "own.hdf5", rows(timeouts=False))
    code, output, errors = command("check", path)
    assert code == 1 and "`check` knows the limit with --env-id" in errors and "ok" not in output.split()
    assert command("check", path, "--env-id", HOPPER.env_id)[0] == 0


# --- Files that promise what they do not hold ------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["observations", "rewards", "timeouts"])
@pytest.mark.parametrize("kind", ["virtual", "external link", "link to nowhere", "external bytes", "group"])
def test_values_that_lie_elsewhere(tmp_path, key, kind):
    raw = rows()
    other = write(tmp_path / "other.hdf5", raw)
    path = write(tmp_path / "own.hdf5", changed(**{key: None}))
    with h5py.File(path, "a") as file:
        if kind == "virtual":
            layout = h5py.VirtualLayout(raw[key].shape, raw[key].dtype)
            layout[:] = h5py.VirtualSource(other, key, raw[key].shape)
            file.create_virtual_dataset(key, layout)
        elif kind == "external link":
            file[key] = h5py.ExternalLink(other, key)
        elif kind == "link to nowhere":
            file[key] = h5py.SoftLink("/nowhere")
        elif kind == "external bytes":
            file.create_dataset(key, data=raw[key], external=[(str(tmp_path / "bytes"), 0, h5py.h5f.UNLIMITED)])
        else:
            file.create_group(f"{key}/position")
    message = rf"{key} is a group \(of position\)" if kind == "group" else f"{key} is no array of this file but a link"
    for there in (True, False):
        refused(message, path)
        if there:
            other.unlink()


def test_a_link_within_the_file_is_fine(tmp_path):
    path = write(tmp_path / "own.hdf5", {("other/obs" if k == "observations" else k): a for k, a in rows().items()})
    with h5py.File(path, "a") as file:
        file["observations"] = h5py.SoftLink("/other/obs")
    np.testing.assert_array_equal(transitions_of(path)["observations"][0], rows()["observations"][0])


@pytest.mark.parametrize("chunks", [(10, 11), None])
def test_rows_that_were_never_written(tmp_path, chunks):
    """A writer that reserved the rows and stopped on the way."""
    path = write(tmp_path / "own.hdf5", changed(observations=None))
    with h5py.File(path, "a") as file:
        reserved = file.create_dataset("observations", (50, 11), "f4", chunks=chunks)
        if chunks:
            reserved[:20] = rows()["observations"][:20]
    refused(r"observations has shape \(50, 11\), but not all of it was ever written", path)


def test_rewards_and_flags_may_be_left_at_zero(tmp_path):
    path = write(tmp_path / "own.hdf5", changed(rows(end=0.0), rewards=None, timeouts=None))
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (50,), "f4", chunks=(10,))
        file.create_dataset("timeouts", (50,), bool)
    transitions = transitions_of(path)
    assert len(transitions["rewards"]) == 49 and not transitions["rewards"].any()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"timeouts": 10**9}, "the arrays differ in their number of rows"),
        ({"next_observations": 10**9}, "next_observations has shape (1000000000, 11), but not all of it"),
        (dict.fromkeys(("rewards", "terminals", "timeouts"), 10**12), "differ in their number of rows"),
        ({"rewards": 10**12, "terminals": 10**12, "observations": 10**12, "actions": 10**12}, "has shape (10000000"),
    ],
)
def test_claimed_sizes_are_compared_before_anything_is_read(tmp_path, sizes, message):
    path = write(tmp_path / "own.hdf5", {key: array for key, array in rows().items() if key not in sizes})
    with h5py.File(path, "a") as file:
        for key, count in sizes.items():
            width = () if key not in ("observations", "next_observations", "actions") else (11,)
            file.create_dataset(key, (count, *width), "f4", chunks=(1000, *width))
    # What is not refused fails: memory is limited to 4 GiB.
    check = f'ulimit -v {4 << 20}; exec "{sys.executable}" -m d4rl_gymnasium check "{path}" --env-id {HOPPER.env_id}'
    process = subprocess.run(["bash", "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1 and message in process.stderr


def test_more_than_the_memory_holds(tmp_path, monkeypatch):
    path = write(tmp_path / "own.hdf5", rows(1000))
    monkeypatch.setattr(rows_module, "_memory", lambda: 100_000)
    refused(r"observations has shape \(1000, 11\), and to read the dataset takes .* more than this machine has", path)


# --- Other forms -----------------------------------------------------------------------------------------------------


def test_npz_with_d4rls_keys(tmp_path, command, capsys):
    raw = with_next(episodes({"terminals": (5,), "timeouts": (8,)})) | {"dones": flags(12, 5)}
    path = write(tmp_path / "own.npz", raw)
    transitions = transitions_of(path)
    for key, array in transitions.items():
        np.testing.assert_array_equal(array, raw[key])
    assert "not read: dones." in capsys.readouterr().err
    code, output, _ = command("check", path, "--env-id", HOPPER.env_id)
    assert code == 0 and facts(output)["transitions"] == "12, of which 1 are terminal"
    env = env_like("antmaze-large-navigate-singletask-task1-v0")  # one of OGBench's, with rewards of one's own
    raw = rows(30, 29, 8) | {"qpos": np.zeros((30, 15))}
    assert len(transitions_of(write(tmp_path / "ant.npz", raw), env)["rewards"])


def test_npz_that_claims_a_size(tmp_path):
    import io
    import zipfile

    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        for key, shape in (("observations", (10**12, 11)), ("actions", (10**12, 3)), ("rewards", (10**12,)),
                           ("terminals", (10**12,))):  # fmt: skip
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
            archive.writestr(f"{key}.npy", head.getvalue())
    refused(r"observations has shape \(1000000000000, 11\), and to read the dataset takes", tmp_path / "own.npz")


def test_one_number_a_row(tmp_path):
    """May be written as (rows,) or as (rows, 1)."""
    env = gymnasium.make("Pendulum-v1")
    raw = rows(30, 3, 1, end=0.0)
    expected = d4rl.qlearning_dataset(env, raw)
    raw["actions"] = raw["actions"][:, 0]
    for key in ("rewards", "terminals", "timeouts"):
        raw[key] = raw[key][:, None]
    for transitions in (d4rl.qlearning_dataset(env, raw), transitions_of(write(tmp_path / "own.hdf5", raw), env)):
        for key, array in expected.items():
            assert transitions[key].shape == array.shape
            np.testing.assert_array_equal(transitions[key], array)
