"""The data layer: every way in which a dataset can be found, fetched, damaged or foreign."""

import contextlib
import dataclasses
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import gymnasium
import h5py
import numpy as np
import pytest
from conftest import ROOT, wait_for
from toy_data import (
    HOPPER,
    ON_HOST,
    ON_MIRROR,
    UMAZE,
    changed,
    env_like,
    leftovers,
    part_path,
    refused,
    rows,
    server,
    transitions_of,
    with_value,
    write,
)

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import data, download, tasks

LARGE = d4rl.TASKS["maze2d-large-v1"]
pytestmark = pytest.mark.usefixtures("cache")


# --- Transitions -----------------------------------------------------------------------------------------------------


def rows_kept(raw, horizon):
    """The rows that become transitions, by D4RL's rule as one reads it, one row after the other."""
    kept, step = [], 0
    for i in range(len(raw["rewards"]) - 1):
        final = raw["timeouts"][i] if "timeouts" in raw else step == horizon - 1
        if final:
            step = 0
            continue
        if raw["terminals"][i]:
            step = 0
        kept.append(i)
        step += 1
    return np.array(kept, dtype=int)


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("end", [0.0, 0.02, 0.2, 0.7])
@pytest.mark.parametrize("horizon", [2, 3, 10])
def test_transitions_equal_a_plain_loop(timeouts, end, horizon):
    """With next actions, those of the same episode, nothing else changes, nor do the rows that were given."""
    for seed in range(10):
        raw = rows(300, seed=seed, timeouts=timeouts, end=end)
        actions = raw["actions"].copy()
        kept = rows_kept(raw, horizon)
        expected = {key: raw[key][kept] for key in ("observations", "actions", "rewards", "terminals")}
        expected["next_observations"] = raw["observations"][kept + 1]

        env = env_like(horizon=horizon)
        without, given = d4rl.qlearning_dataset(env, raw), d4rl.qlearning_dataset(env, raw, next_actions=True)
        next_actions = given.pop("next_actions")
        assert next_actions.dtype == np.float32
        for i, next_action in zip(kept, next_actions, strict=True):
            np.testing.assert_array_equal(next_action, 0 if raw["terminals"][i] else actions[i + 1])
        np.testing.assert_array_equal(raw["actions"], actions)
        for transitions in (without, given):
            assert set(transitions) == set(expected)
            for key, array in expected.items():
                np.testing.assert_array_equal(transitions[key], array)
                assert transitions[key].dtype == (bool if key == "terminals" else np.float32)


@pytest.mark.parametrize("timeouts", [True, False])
def test_a_million_rows_in_two_seconds(timeouts):
    raw = rows(1_000_000, 17, 6, timeouts=timeouts, end=0.005)
    start = time.process_time()  # not the clock on the wall: other processes may share the core
    d4rl.qlearning_dataset(env_like("walker2d-medium-v2"), raw)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    "raw, message",
    [
        (changed(rewards=None), "the dataset has no rewards"),
        (rows(observation_dim=12), "observations have 12 dimensions"),
        (rows(1), "holds no transition"),
        (rows(timeouts=False), "add a `timeouts` array"),  # there being no horizon, either
    ],
)
def test_arrays_given_directly_are_checked_too(raw, message):
    env = env_like()
    env.spec = dataclasses.replace(env.spec, max_episode_steps=None)
    with pytest.raises(d4rl.DatasetError, match=message):
        d4rl.qlearning_dataset(env, raw)


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, options",
    [
        ({}, {}),
        ({}, {"compression": "gzip", "chunks": True}),
        ({}, {"compression": "lzf", "shuffle": True}),
        ({"observations": np.float64, "rewards": np.float64, "terminals": np.float64}, {}),
        ({"terminals": np.uint8, "timeouts": np.int64}, {}),
        ({"actions": np.float16}, {}),
        ({"rewards": np.int32}, {}),
    ],
)
def test_other_types_and_storage(tmp_path, change, options):
    raw = rows(end=0.3)
    raw["rewards"], raw["actions"] = raw["rewards"].round(), raw["actions"].round(1).astype(np.float16)
    path = write(tmp_path / "own.hdf5", raw | {key: raw[key].astype(dtype) for key, dtype in change.items()}, **options)
    env = env_like()
    read = d4rl.read_dataset(d4rl.find_dataset(env, path), env)
    assert set(read) == set(raw)
    for key, array in raw.items():
        np.testing.assert_array_equal(read[key], array)
        assert read[key].dtype == (bool if key in ("terminals", "timeouts") else np.float32)


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"episode_0": np.zeros(3)}, r"no observations, actions, rewards, terminals \(it holds episode_0\)"),
        (changed(rewards=None), r"has no rewards \(it holds actions, observations, terminals, timeouts\)"),
        (rows(0), "is empty"),
        (changed(rewards=lambda a: a[:-1]), "differ in their number of rows .*rewards 49"),
        (changed(timeouts=lambda a: a[:-1]), "differ in their number of rows .*timeouts 49"),
        (changed(observations=with_value(np.nan)), "observations holds 11 values that are NaN or infinite"),
        (changed(rewards=with_value(-np.inf)), "rewards holds 1 values that are NaN or infinite"),
        (changed(terminals=lambda a: with_value(np.nan)(a.astype(float))), "terminals holds 1 values"),
        (changed(observations=lambda a: with_value(1e39)(a.astype(float))), "NaN or infinite"),  # too much for float32
        (changed(rewards=lambda a: a.astype("S5")), "rewards holds .*, not numbers"),
        (changed(observations=lambda a: a[:, :, None]), r"observations has shape \(50, 11, 1\)"),
        (changed(actions=lambda a: a[:, 0]), "actions have 1 dimensions, those of hopper-medium-v2 have 3"),
        (changed(rewards=lambda a: a[:, None, None]), r"rewards has shape \(50, 1, 1\)"),
        (changed(rewards=lambda a: np.stack([a, a], 1)), r"rewards has shape \(50, 2\)"),
        (rows(observation_dim=17, action_dim=6), "not data for hopper-medium-v2: its observations have 17 dimensions"),
        (rows(action_dim=4), "actions have 4 dimensions, those of hopper-medium-v2 have 3"),
        (rows() | {"next_observations": np.zeros((50, 12))}, "next_observations have other dimensions"),
        (changed(actions=lambda a: 3 * a), "actions reach from -[23].* but hopper-medium-v2 takes -1 to 1"),
    ],
)
@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_what_does_not_fit_is_refused(tmp_path, suffix, raw, message):
    refused(message, write(tmp_path / f"own{suffix}", raw))


def test_rounding_beyond_the_bounds_is_accepted():
    raw = changed(actions=with_value(1.00001))
    assert len(d4rl.qlearning_dataset(env_like(), raw)["actions"])


def test_d4rl_own_actions_are_taken_as_they_are(tmp_path):
    path = write(tmp_path / "hopper_medium-v2.hdf5", changed(actions=lambda a: 3 * a))
    dataset = d4rl.DatasetFile(path, "", "D4RL (found in its cache directory)")
    assert np.abs(d4rl.read_dataset(dataset, env_like())["actions"]).max() > 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_a_file_cut_short(tmp_path, suffix, share):
    path = write(tmp_path / f"own{suffix}", rows(20_000))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused("was cut short" if share else "is not an HDF5 file", path)


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_damaged_bytes_within_a_compressed_file(tmp_path, suffix):
    path = write(tmp_path / f"own{suffix}", rows(20_000), compression="gzip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1000] = bytes(1000)
    path.write_bytes(content)
    refused("damaged", path)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "own.hdf5"
    path.write_text("<html>Sign in to this network</html>")
    refused("is not an HDF5 file", path)
    refused("is a folder: give a file", tmp_path)
    for nowhere in (tmp_path / "none.hdf5", "~nobody-of-this-name/none.hdf5", "", "a" * 5000):
        refused("is not there|is a folder", nowhere)


@pytest.mark.parametrize("name", ["walker2d_medium-v2.hdf5", "walker2d-medium-v2.hdf5"])  # D4RL's, and a collection's
def test_data_of_another_robot_with_the_same_dimensions(tmp_path, name):
    path = write(tmp_path / name, rows(observation_dim=17, action_dim=6))
    refused("is data for walker2d-medium-v2, another environment", path, env_like("halfcheetah-medium-v2"))
    assert d4rl.find_dataset(env_like("walker2d-expert-v2"), path)  # the same robot: another quality is a fair wish


def test_a_path_with_a_tilde_and_spaces(tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    path, given = tmp_path / "my data" / "a b.hdf5", "~/my data/a b.hdf5"
    write(path, rows(), {"source": "a\nrobot of mine"})
    assert command("check", given)[0] == 0
    assert command("info", HOPPER.env_id, "--dataset-path", given)[0] == 0
    (dataset,) = d4rl.load_tasks([HOPPER.env_id], given).files
    assert dataset.path == path
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.source == "given: a b.hdf5 (a robot of mine)"


def test_own_data_for_any_environment(tmp_path):
    env = gymnasium.make("Pendulum-v1")
    raw = rows(30, 3, 1, timeouts=False, end=0.0)
    raw["actions"] *= 2  # Pendulum takes -2 to 2
    assert transitions_of(write(tmp_path / "pendulum.hdf5", raw), env)["observations"].shape == (29, 3)
    refused("give its data with --dataset-path", env=env)


def test_the_lines_of_the_docs_write_such_a_file(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "data.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "h5py" in block)
    monkeypatch.chdir(tmp_path)
    exec(code, rows())
    dataset = d4rl.find_dataset(env_like(), "my.hdf5")
    assert dataset.source.startswith("given: my.hdf5 (my robot")
    assert len(d4rl.qlearning_dataset(env_like(), dataset)["rewards"])


def test_environments_of_another_kind():
    env = env_like()
    env.observation_space = gymnasium.spaces.Dict(position=env.observation_space)
    refused("only a flat Box", "any.hdf5", env)
    refused("actions of Discrete", "any.hdf5", gymnasium.make("CartPole-v1"))


# --- The cache directory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable, folder", [("~/cache", "cache"), (None, ".d4rl/datasets")])
def test_d4rls_cache_is_shared(tmp_path, monkeypatch, variable, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("D4RL_DATASET_DIR")
    if variable:
        monkeypatch.setenv("D4RL_DATASET_DIR", variable)
    path = write(tmp_path / folder / HOPPER.file_name, rows())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert d4rl.find_dataset(env_like()) == d4rl.DatasetFile(path, sha256, "D4RL (found in its cache directory)")


def test_a_stand_in_names_itself(cache):
    for source in ("stand-in: policies of mine", np.bytes_("stand-in: policies of mine")):
        write(cache / HOPPER.file_name, rows(), {"source": source})
        assert d4rl.find_dataset(env_like()).source == "stand-in: policies of mine"


def test_bytes_that_changed_since_they_were_recorded(cache):
    path = write(cache / HOPPER.file_name, rows())
    record = path.with_name(path.name + ".sha256")
    record.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")  # as sha256sum writes it
    assert d4rl.find_dataset(env_like()).source.startswith("D4RL")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # one bit of a reward or a flag: HDF5 itself would not notice
    path.write_bytes(content)
    for dataset_path in (None, path):
        refused("has changed since it was stored .*sha256 beside it", dataset_path)
    record.write_text("nonsense")
    refused("has changed since it was stored")


def test_a_file_that_is_not_the_released_one(cache):
    task = d4rl.TASKS["hopper-medium-replay-v2"]
    write(cache / task.file_name, rows())
    refused("not the file that D4RL released", env=env_like(task.env_id))
    write(cache / task.file_name, rows(), {"source": "stand-in"})  # that one makes no such claim
    assert d4rl.find_dataset(env_like(task.env_id)).source == "stand-in"


# --- Download --------------------------------------------------------------------------------------------------------


def test_download(cache, host, hdf5_bytes):
    host.files[ON_HOST] = hdf5_bytes
    dataset = d4rl.find_dataset(env_like())
    assert dataset.path == cache / HOPPER.file_name
    assert dataset.path.read_bytes() == hdf5_bytes
    assert dataset.sha256 == hashlib.sha256(hdf5_bytes).hexdigest()
    assert dataset.source == f"D4RL (downloaded from {host.url}{ON_HOST})"
    assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]
    assert d4rl.find_dataset(env_like()) == dataset
    assert host.requests == [(ON_HOST, None)]
    assert len(transitions_of()["rewards"])


def test_the_mirror_where_the_host_has_nothing(cache, host, hdf5_bytes):
    host.files[ON_MIRROR] = hdf5_bytes
    part_path(cache, host.url).write_bytes(b"begun at the host")
    assert d4rl.find_dataset(env_like()).source == f"D4RL (downloaded from {HOPPER.mirror_url})"
    assert host.requests == [(ON_HOST, "bytes=17-"), (ON_MIRROR, None)]
    assert leftovers(cache) == [HOPPER.file_name, HOPPER.file_name + ".sha256"]


def test_no_host_at_all(cache):
    said = refused("D4RL's file is not on this machine and the download failed")
    for advice in (HOPPER.dataset_url, HOPPER.mirror_url, str(cache), "--dataset-path FILE"):
        assert advice in said
    assert leftovers(cache) == []


def test_a_silent_host_is_given_up_within_ten_seconds(monkeypatch):
    assert 2 * download.CONNECT_TIMEOUT <= 10  # host and mirror
    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 0.2)
    with server(lambda connection, request: time.sleep(3)) as url:  # takes connections and does not say a word
        monkeypatch.setattr(tasks, "HOST", url)
        monkeypatch.setattr(tasks, "MIRROR", url)
        start = time.perf_counter()
        refused("no answer in 0.2 seconds")
        assert time.perf_counter() - start < 2


def test_a_lost_connection_goes_on_where_it_stopped(host, hdf5_bytes):
    host.files[ON_HOST], host.versions = hdf5_bytes, ['"1"']  # without a version: test_a_host_that_is_away_for_a_while
    host.lose_after = [1_500_000, 10]
    assert d4rl.find_dataset(env_like()).path.read_bytes() == hdf5_bytes
    assert host.requests == [(ON_HOST, None), (ON_HOST, "bytes=1500000-"), (ON_HOST, "bytes=1500010-")]


def test_a_connection_lost_too_often(cache, host, hdf5_bytes):
    host.files[ON_HOST] = hdf5_bytes
    host.lose_after = [500_000] + [0] * download.ATTEMPTS
    refused("lost 5 times without any progress")
    assert leftovers(cache) == [part_path(cache, host.url).name, part_path(cache, host.url).name + ".version"]
    assert d4rl.find_dataset(env_like()).path.read_bytes() == hdf5_bytes
    assert host.requests[-1] == (ON_HOST, "bytes=500000-")


def test_what_an_earlier_run_left(cache, host, hdf5_bytes):
    host.files[ON_HOST] = hdf5_bytes
    for left, host.ranges, requests in (
        (hdf5_bytes, True, 1),  # all of it: to be told so is enough
        (hdf5_bytes[:1000], True, 1),
        (hdf5_bytes[:1000], False, 1),
        (b"", True, 1),
        (hdf5_bytes + b"more", True, 2),
        (b"of another version" * 1000, True, 2),
    ):
        host.requests.clear()
        part_path(cache, host.url).write_bytes(left)
        assert d4rl.find_dataset(env_like()).path.read_bytes() == hdf5_bytes
        assert len(host.requests) == requests
        assert not part_path(cache, host.url).exists()
        (cache / HOPPER.file_name).unlink()


def test_a_download_that_is_not_the_dataset(cache, host, hdf5_bytes, tmp_path):
    other = write(tmp_path / "other.hdf5", rows(observation_dim=17, action_dim=6)).read_bytes()
    for content in (b"<html>Sign in to this network</html>", hdf5_bytes[:-100], other):
        host.files[ON_HOST] = host.files[ON_MIRROR] = content
        refused("what it sent is not this dataset")
        assert leftovers(cache) == []


def test_a_download_with_another_sha256_than_the_release(host, hdf5_bytes, monkeypatch):
    task = d4rl.TASKS["hopper-medium-replay-v2"]
    host.files[f"/host/{task.dataset}"] = hdf5_bytes
    refused("what it sent is not this dataset", env=env_like(task.env_id))
    monkeypatch.setitem(tasks.KNOWN_SHA256, task.file_name, hashlib.sha256(hdf5_bytes).hexdigest())
    assert d4rl.find_dataset(env_like(task.env_id)).source.startswith("D4RL (downloaded")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_during_a_download(cache, host, hdf5_bytes):
    host.files[ON_HOST] = host.files[ON_MIRROR] = hdf5_bytes
    part_path(cache, host.url).symlink_to("/dev/full")
    with pytest.raises(d4rl.DatasetError, match="the disk is full: make room, or set D4RL_DATASET_DIR"):
        d4rl.find_dataset(env_like(), stand_in=True)  # which is no reason for a stand-in
    assert leftovers(cache) == [] and not part_path(cache, host.url).is_symlink()
    assert d4rl.find_dataset(env_like()).path.read_bytes() == hdf5_bytes


@contextlib.contextmanager
def read_only(folder):
    """Within it nothing can be written to `folder`, not even by root (who becomes nobody for so long)."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_cache_directory(host, hdf5_bytes, monkeypatch):
    host.files[ON_HOST] = hdf5_bytes
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        cache = Path(name)
        monkeypatch.setenv("D4RL_DATASET_DIR", name)
        write(cache / UMAZE.file_name, rows(20, 4, 2))
        with read_only(cache):
            assert d4rl.find_dataset(env_like(UMAZE.env_id))  # what is there can be used
            refused("Permission denied: set D4RL_DATASET_DIR to a folder that you")
    assert host.requests == []


def test_a_cache_directory_that_is_a_file(cache):
    cache.write_text("")
    refused("set D4RL_DATASET_DIR")


# --- Several processes -----------------------------------------------------------------------------------------------

FETCH = """
import sys
from d4rl_gymnasium import data, tasks
tasks.HOST, tasks.MIRROR = sys.argv[1] + "/host", sys.argv[1] + "/mirror"
print(data.fetch(tasks.TASKS[sys.argv[2]]).sha256)
"""


def start(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(stream, text):
    """Reads a process's output up to the line that contains `text`."""
    assert any(text in line for line in stream), f"{text!r} was not said"


def has_arrived(part, count):
    return part.exists() and part.stat().st_size >= count


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_want_one_file(cache, host, hdf5_bytes, killed):
    """A lock goes with its process: the one that waits then goes on from the bytes that had arrived."""
    host.files[ON_HOST], host.hold_after = hdf5_bytes, 1_500_000
    first = start(FETCH, host.url, HOPPER.env_id)
    assert host.holding.wait(60)
    second = start(FETCH, host.url, HOPPER.env_id)
    read_until(second.stderr, "Another process is getting")
    wait_for(lambda: has_arrived(part_path(cache, host.url), 1 << 20))
    assert not (cache / HOPPER.file_name).exists()
    if killed:
        host.hold_after = None
        first.kill()
    else:
        host.go_on.set()
    sha256 = hashlib.sha256(hdf5_bytes).hexdigest()
    told = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert told == ["" if killed else sha256, sha256]
    request, *later = host.requests
    assert request == (ON_HOST, None) and len(later) == killed
    for path, wanted in later:
        assert path == ON_HOST and int(wanted.removeprefix("bytes=").removesuffix("-")) >= 1 << 20


def test_a_process_waits_while_another_collects():
    path = data.collected_path(UMAZE)
    path.parent.mkdir(parents=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        process = start(FETCH, "http://127.0.0.1:9", UMAZE.env_id)
        read_until(process.stderr, "Another process is getting")
        write(path, rows(20, 4, 2), {"source": "by the other process", "rule": UMAZE.collected_rule})
    assert process.communicate(timeout=60)[0].strip() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_collection_that_is_killed_starts_clean(cache, small_collections):
    process = start(FETCH, "http://127.0.0.1:9", UMAZE.env_id)
    read_until(process.stderr, "Collecting 1,000,000 rows")
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert leftovers(cache) == []
    part = data.collected_path(UMAZE).with_name(UMAZE.env_id + ".hdf5.part")
    part.write_bytes(b"half a file")  # had it been killed a little later
    assert len(transitions_of(env=env_like(UMAZE.env_id))["rewards"])
    assert leftovers(cache) == [f"{UMAZE.env_id}.hdf5", f"{UMAZE.env_id}.hdf5.sha256"]


# --- Collection ------------------------------------------------------------------------------------------------------


def test_maze2d_is_collected(cache, host, small_collections):
    env = gymnasium.make(UMAZE.env_id)
    dataset = d4rl.find_dataset(env)
    assert host.requests == []  # no network is needed, and none is asked
    assert dataset.path == cache / "collected" / "maze2d-umaze-v1.hdf5"
    assert not (cache / UMAZE.file_name).exists()
    assert dataset.source == "collected by d4rl_gymnasium's noisy waypoint controller (stand-in for D4RL's file)"
    with h5py.File(dataset.path) as file:
        assert file.attrs["source"] == dataset.source
        assert "maze2d.collect" in file.attrs["generator"] and "2000" in file.attrs["generator"]
        assert "mujoco 3" in file.attrs["versions"]
        assert file.attrs["seed"] == 0 and file.attrs["rule"] == 2
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", file.attrs["date"])
    assert len(d4rl.read_dataset(dataset, env)["rewards"]) == 2000
    assert d4rl.find_dataset(env) == dataset


@pytest.mark.parametrize("rule", [None, 1, 3])
def test_what_another_rule_collected_is_collected_anew(small_collections, capsys, rule):
    path = data.collected_path(UMAZE)
    old = write(path, rows(20, 4, 2), {"source": "collected"} | ({"rule": rule} if rule else {})).read_bytes()
    record = path.with_name(path.name + ".sha256")
    record.write_text(f"# collected\n{hashlib.sha256(old).hexdigest()}  {path.name}\n")
    for _ in range(2):
        dataset = d4rl.find_dataset(env_like(UMAZE.env_id))
        assert len(d4rl.read_dataset(dataset, env_like(UMAZE.env_id))["rewards"]) == 2000
        assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() in record.read_text()
    said = capsys.readouterr().err
    assert said.count("is collected anew") == 1 and f"version {rule or 1} of the rule" in said
    write(path, rows(20, 4, 2), {"source": "collected", "rule": 2})  # of the present rule, but with another record
    refused("has changed since it was stored", env=env_like(UMAZE.env_id))


def test_stand_ins_of_the_first_rule_are_kept():
    path = write(data.collected_path(HOPPER), rows(), {"source": "a stand-in from before rules had a version"})
    assert data.collect(HOPPER).path == path
    assert data.find_local(HOPPER).source == "a stand-in from before rules had a version"


def test_an_old_collection_stays_until_the_new_one_is_there(small_collections, monkeypatch):
    path = write(data.collected_path(UMAZE), rows(20, 4, 2))
    old = path.read_bytes()

    def stopped(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("d4rl_gymnasium.maze2d.collect", stopped)
    with pytest.raises(KeyboardInterrupt):
        d4rl.find_dataset(env_like(UMAZE.env_id))
    assert path.read_bytes() == old


def test_d4rls_own_maze2d_file_comes_first(cache, host, command, small_collections, tmp_path):
    host.files[f"/host/{UMAZE.dataset}"] = write(tmp_path / "original.hdf5", rows(20, 4, 2)).read_bytes()
    assert command("fetch", "--original", UMAZE.env_id)[0] == 0
    assert leftovers(cache) == [UMAZE.file_name, UMAZE.file_name + ".sha256"]
    assert data.collect(tasks.TASKS[UMAZE.env_id]).source.startswith("collected")
    assert d4rl.find_dataset(env_like(UMAZE.env_id)).source.startswith("D4RL (downloaded")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_during_a_collection(cache, small_collections):
    path = data.collected_path(UMAZE)
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".part").symlink_to("/dev/full")
    refused("the disk is full", env=env_like(UMAZE.env_id))
    assert leftovers(cache) == [] and not path.with_name(path.name + ".part").is_symlink()


# --- Minari ----------------------------------------------------------------------------------------------------------


def minari_dataset(name, observations):
    """Two episodes: three steps and a termination; two steps and a truncation. One observation more than steps."""
    import minari
    from minari.data_collector import EpisodeBuffer

    episodes, start = [], 0
    for steps, terminated in ((3, True), (2, False)):
        last = np.arange(steps) == steps - 1
        episodes.append(
            EpisodeBuffer(
                observations=observations(start, steps + 1),
                actions=np.arange(start, start + steps, dtype=np.float32)[:, None] / 10,
                rewards=np.arange(start, start + steps, dtype=float),
                terminations=last & terminated,
                truncations=last & (not terminated),
            )
        )
        start += 10
    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    space = gymnasium.spaces.Dict(state=box) if isinstance(episodes[0].observations, dict) else box
    minari.create_dataset_from_buffers(
        dataset_id=name,
        buffer=episodes,
        observation_space=space,
        action_space=gymnasium.spaces.Box(-2.0, 2.0, (1,)),
    )


def state(start, count):
    return np.repeat(np.arange(start, start + count, dtype=np.float32)[:, None], 3, axis=1)


@pytest.fixture
def minari_home(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.mark.filterwarnings("ignore::UserWarning:minari")  # it misses an environment and an author: no need of these
def test_minari(minari_home, tmp_path):
    minari_dataset("test/pendulum-v0", state)
    env = gymnasium.make("Pendulum-v1")
    dataset = d4rl.find_dataset(env, "minari:test/pendulum-v0")
    assert dataset.source == "Minari: test/pendulum-v0"
    assert re.fullmatch("[0-9a-f]{64}", dataset.sha256)

    transitions = d4rl.qlearning_dataset(env, dataset)
    np.testing.assert_array_equal(transitions["observations"][:, 0], [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(transitions["next_observations"][:, 0], [1, 2, 3, 11, 12])  # 3 and 12: the last ones
    np.testing.assert_array_equal(transitions["rewards"], [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(transitions["terminals"], [False, False, True, False, False])
    assert {array.dtype.name for array in transitions.values()} == {"float32", "bool"}
    raw = d4rl.read_dataset(dataset, env)
    np.testing.assert_array_equal(raw["timeouts"], [False, False, False, False, True])

    transitions = d4rl.qlearning_dataset(env, dataset, next_actions=True)
    np.testing.assert_array_equal(transitions["rewards"], [0, 1, 2, 10])  # 11 has no next action, 2 needs none
    np.testing.assert_array_equal(transitions["next_observations"][:2, 0], [1, 2])
    np.testing.assert_array_equal(transitions["next_actions"][:, 0], np.float32([0.1, 0.2, 0, 1.1]))

    refused("not data for hopper-medium-v2", "minari:test/pendulum-v0")

    (file,) = tmp_path.glob("minari/**/main_data.hdf5")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(d4rl.DatasetError, match="not a Minari dataset that can be read here"):
        d4rl.qlearning_dataset(env, dataset)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_with_observations_of_several_parts(minari_home):
    minari_dataset("test/dict-v0", lambda start, count: {"state": state(start, count)})
    refused("observations of several parts", "minari:test/dict-v0", gymnasium.make("Pendulum-v1"))


@pytest.mark.parametrize("name", ["test/none-v0", "not a name!"])
def test_minari_without_such_a_dataset(minari_home, name):
    refused("is not a Minari dataset that can be read here: `minari list local`", f"minari:{name}")


def test_minari_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    refused(r'pip install "minari\[hdf5\]"', "minari:test/pendulum-v0")


# --- Command line ----------------------------------------------------------------------------------------------------


def test_list(command, cache, host):
    write(cache / HOPPER.file_name, rows())
    write(data.collected_path(UMAZE), rows(20, 4, 2), {"rule": UMAZE.collected_rule})
    write(data.collected_path(LARGE), rows(20, 4, 2))
    part_path(cache, host.url, d4rl.TASKS["pen-human-v1"]).write_bytes(bytes(3_000_000))
    code, output, _ = command("list")
    assert code == 0
    lines = {line.split()[0]: line for line in output.splitlines()}
    assert len(lines) == 41 + 12 and set(d4rl.ALL_TASKS) < set(lines)  # both tables with a heading and a summary
    assert "D4RL's file" in lines["hopper-medium-v2"]
    assert lines["maze2d-umaze-v1"].endswith("collected, 0.0 MB")
    assert lines["maze2d-large-v1"].endswith("collected by another rule, 0.0 MB (collected anew when needed)")
    assert "part of a download, 3.0 MB" in lines["pen-human-v1"]
    assert lines["walker2d-random-v2"].endswith("none (a stand-in can be collected)")
    assert lines["antmaze-umaze-v2"].endswith("none")


def test_info(command, cache):
    code, output, _ = command("info", "hopper-medium-v2")
    assert code == 0 and "fetch hopper-medium-v2" in output and "3234.30" in output
    raw = rows(100, end=0.0)
    raw["rewards"][:] = np.repeat([1, 3, 7], [50, 40, 10])  # the last ten belong to an episode that does not end
    raw["terminals"][49] = raw["timeouts"][89] = True
    write(cache / HOPPER.file_name, raw, {"source": "stand-in", "seed": 5})
    code, output, _ = command("info", "hopper-medium-v2")
    text = " ".join(output.split())
    assert code == 0
    for fact in ("source stand-in", "seed 5", "rows 100", "episodes 2", "mean 85.00, std 35.00, min 50.00"):
        assert fact in text
    code, output, _ = command("info", "walker2d-medium-v2", "--dataset-path", cache / HOPPER.file_name)
    assert code == 1


def test_info_of_another_environment(command, tmp_path):
    path = write(tmp_path / "pendulum.hdf5", rows(400, 3, 1, timeouts=False, end=0.0))
    code, output, _ = command("info", "Pendulum-v1", "--dataset-path", path)
    assert code == 0 and "rows               400" in output and "horizon            200 steps" in output
    assert command("info", "Nothing-v7")[0] == 1


def test_fetch_several(command, cache, host, hdf5_bytes, small_collections):
    other = d4rl.TASKS["hopper-expert-v2"]
    host.files |= {ON_HOST: hdf5_bytes, f"/mirror/{other.file_name}": hdf5_bytes}
    code, _, errors = command("fetch", HOPPER.env_id, other.env_id, UMAZE.env_id, HOPPER.env_id)
    assert code == 0, errors
    for task in (HOPPER, other, UMAZE):
        assert data.find_local(task)
    code, _, errors = command("fetch", HOPPER.env_id, "hopper-random-v2")
    assert code == 1 and "hopper-random-v2: D4RL's file is not on this machine" in errors
    code, _, errors = command("fetch", "hopper-medum-v2")
    assert code == 1 and "Did you mean hopper-medium-v2?" in errors
    for env_id in ("Pendulum-v1", "HalfCheetah-v5"):
        code, _, errors = command("fetch", env_id)
        assert code == 1 and f"{env_id} is an environment of gymnasium's, without data: only D4RL's tasks" in errors


def test_check(command, tmp_path):
    path = write(tmp_path / "own.hdf5", rows())
    code, output, _ = command("check", path)
    assert code == 0 and "--env-id ID" in output
    assert command("check", path, "--env-id", "hopper-medium-v2")[:1] == (0,)
    code, _, errors = command("check", path, "--env-id", "pen-human-v1")
    assert code == 1 and "not data for pen-human-v1" in errors
    path = write(tmp_path / HOPPER.file_name, rows(observation_dim=12))  # known by its name
    assert "not data for hopper-medium-v2" in command("check", path)[2]
    path.write_bytes(path.read_bytes()[:-50])
    assert "cut short" in command("check", path)[2]
    path = write(tmp_path / "hopper_medium_replay-v2.hdf5", rows())  # whose release is known
    assert "ANOTHER file" in command("check", path)[1]


def test_help(command):
    for arguments in ([], ["list"], ["info"], ["fetch"], ["collect"], ["check"]):
        code, output, _ = command(*arguments, "--help")
        assert code == 0 and "usage: python -m d4rl_gymnasium" in output
    assert command()[0] == 2


CTRL_C = """
import sys, time
from d4rl_gymnasium import __main__, maze2d, tasks
tasks.HOST, sys.argv = sys.argv[1] + "/host", ["d4rl_gymnasium", "fetch", sys.argv[2]]

def collect(**arguments):
    print("collecting", file=sys.stderr, flush=True)
    time.sleep(60)

maze2d.collect = collect
__main__.main()
"""


@pytest.mark.parametrize("task", [HOPPER, UMAZE], ids=["download", "collection"])
def test_ctrl_c(cache, host, hdf5_bytes, task):
    host.files[ON_HOST], host.hold_after = hdf5_bytes, 1_500_000
    process = start(CTRL_C, host.url, task.env_id)
    if task is HOPPER:
        assert host.holding.wait(60)
        wait_for(lambda: has_arrived(part_path(cache, host.url), 1))
    else:
        read_until(process.stderr, "collecting\n")
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Stopped." in errors and "Traceback" not in errors
    part = part_path(cache, host.url).name
    assert leftovers(cache) == ([part, part + ".version"] if task is HOPPER else [])
