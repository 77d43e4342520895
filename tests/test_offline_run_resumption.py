"""--resume: in another place, under another name, one process at a time; and a sentence for what cannot be resumed."""

import gc
import json
import shutil
from pathlib import Path

import filelock
import pytest
import torch
import toy
from toy_runs import (
    SHORT,
    after_steps,
    assert_same_runs,
    checkpoint_of,
    command,
    config_of,
    result_of,
    resume,
    send,
    stopped_at,
    train,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> list[Path]:
    """The directories of an uninterrupted run."""
    return train(tmp_path_factory.mktemp("finished"))


def copied(runs: list[Path], folder: Path, complete: bool = False) -> list[Path]:
    """The runs' directories in another place; not `complete`: as if killed in the final evaluation."""
    folder.mkdir(exist_ok=True)
    runs = [shutil.copytree(run, folder / run.name) for run in runs]
    if not complete:
        (runs[-1] / "result.json").unlink()
    return runs


def test_run_killed_in_its_final_evaluation_resumes(finished, tmp_path):
    """In another place than where it was trained, too."""
    runs = copied(finished, tmp_path / "elsewhere")
    resume(runs[0])
    assert_same_runs(runs, finished)


@pytest.mark.parametrize("renamed", [0, 1])
def test_moved_and_renamed(renamed, finished, tmp_path, monkeypatch):
    """The other learner's directory keeps its name, and stands beside it; afterwards either names the run."""
    stopped_at(100, monkeypatch, tmp_path / "here")
    runs = sorted((tmp_path / "here").rename(tmp_path / "there").iterdir())
    runs[renamed] = runs[renamed].rename(tmp_path / "there" / "favourite: mine")
    with monkeypatch.context() as patch:
        after_steps(patch, 40, lambda agent: send())
        patch.chdir(runs[renamed])
        with pytest.raises(SystemExit):
            resume(Path("."), runs_dir=str(tmp_path / "nowhere"))
    assert all(config_of(run)["group"] == [path.name for path in runs] for run in runs)
    resume(runs[1 - renamed])
    assert_same_runs(runs, finished)
    assert len(list((tmp_path / "there").iterdir())) == 2 and not (tmp_path / "nowhere").exists()


def test_data_that_moved(tmp_path, monkeypatch):
    data = tmp_path / "data.txt"
    data.write_text("rows")
    monkeypatch.chdir(tmp_path)
    (run,) = stopped_at(20, monkeypatch, tmp_path / "runs", **(SHORT | {"dataset_path": "data.txt"}))
    assert config_of(run)["args"]["dataset_path"] == str(data)
    other = data.rename(tmp_path / "other.txt")
    with pytest.raises(toy.DatasetError, match="data.txt is not there"):
        resume(run)
    gc.collect()
    other.write_text("more rows")
    with pytest.raises(SystemExit, match="sha256 differs"):
        resume(run, dataset_path=str(other))
    gc.collect()
    other.write_text("rows")
    resume(run, dataset_path=str(other))
    assert result_of(run)["steps"] == 60 and config_of(run)["args"]["dataset_path"] == str(other)


def test_one_process_a_run(finished, tmp_path, monkeypatch):
    runs = copied(finished, tmp_path / "runs")
    held = filelock.FileLock(runs[0] / ".lock")
    with held, pytest.raises(SystemExit, match="another process is at this run"):
        resume(runs[1])

    def try_lock(agent):
        (run,) = (tmp_path / "new").iterdir()
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(run / ".lock").acquire(timeout=0)

    after_steps(monkeypatch, 40, try_lock)
    train(tmp_path / "new", **SHORT)


def test_resume_refuses(finished, tmp_path, monkeypatch):
    """What cannot be continued, with a sentence that says why."""
    resumed = lambda *arguments: command(monkeypatch, "--resume", *map(str, arguments))  # noqa: E731
    for run in finished:
        assert "complete" in resumed(run)
    runs = copied(finished, tmp_path / "runs")
    assert "--total-steps" in resumed(runs[0], "--total-steps", 800)
    whole = (runs[0] / "checkpoint.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no checkpoint", b""):
        (runs[0] / "checkpoint.pt").write_bytes(damaged)
        message = resumed(runs[0])
        assert "checkpoint.pt" in message and "\n" not in message
    (runs[0] / "checkpoint.pt").unlink()
    assert "checkpoint.pt" in resumed(runs[0])
    shutil.rmtree(runs[0])
    assert f"{runs[0]} is not a run directory" in resumed(runs[1])


def with_config(**changes):
    return lambda config: config | changes


def with_args(**changes):
    return lambda config: config | {"args": config["args"] | changes}


BAD_CONFIG = {
    "another script": (with_config(script="other"), "another script, other"),
    "a GPU's": (with_config(device="NVIDIA H200"), "NVIDIA H200"),
    "unknown argument": (with_args(gone=1), "another version of this script: this one does not understand its gone"),
    "one task as text": (with_args(env_id="Toy/Walk-v0"), "does not understand its env_id"),
    "compile as before": (with_args(compile=False), "does not understand its compile"),
    "steps as text": (with_args(total_steps="200"), "does not understand its total_steps"),
    "steps as a truth": (with_args(total_steps=True), "does not understand its total_steps"),
    "steps as a fraction": (with_args(total_steps=200.5), "does not understand its total_steps"),
    "no seeds": (with_args(num_seeds=0), "is not a run directory"),
    "very many seeds": (with_args(num_seeds=10**15), "is not a run directory"),
    "no episodes": (with_args(eval_episodes=0), "--eval-episodes must be at least 1"),
    "an evaluation": (with_args(eval="x"), "does not understand its eval"),
    "a resumption": (with_args(resume="x"), "does not understand its resume"),
    "arguments as a list": (with_config(args=[1]), "is not a run directory"),
    "no arguments": (with_config(args=None), "is not a run directory"),
    "no task": (with_config(env_id=None), "does not understand its env_id"),
    "another seed": (with_config(seed=7), "is not a run directory"),
    "seed as text": (with_config(seed="0"), "does not understand its seed"),
    "no group": (with_config(group=None), "does not understand its group"),
    "empty group": (with_config(group=[]), "is not a run directory"),
    "group of numbers": (with_config(group=[1, 2]), "does not understand its group"),
    "group elsewhere": (with_config(group=["..", "x"]), "is not a run directory"),
    "group in a folder": (with_config(group=["a/b", "x"]), "is not a run directory"),
    "group in a Windows folder": (with_config(group=["a", "..\\x"]), "is not a run directory"),
    "group that is gone": (with_config(group=["a", "b"]), "/b is not a run directory"),
    "no dataset": (with_config(dataset=None), "does not understand its dataset"),
    "dataset without a source": (with_config(dataset={}), "does not understand its dataset"),
    "a truth as source": (with_config(dataset={"source": True}), "does not understand its dataset"),
}


@pytest.mark.parametrize(("change", "words"), BAD_CONFIG.values(), ids=BAD_CONFIG)
def test_malformed_config(change, words, finished, tmp_path, monkeypatch):
    runs = copied(finished, tmp_path / "runs")
    before = {path: path.read_bytes() for run in runs for path in run.iterdir()}
    changed = before | {runs[0] / "config.json": json.dumps(change(config_of(runs[0]))).encode()}
    (runs[0] / "config.json").write_bytes(changed[runs[0] / "config.json"])
    message = command(monkeypatch, "--resume", runs[0])
    assert isinstance(message, str) and words in message and "\n" not in message
    gc.collect()
    assert {path: path.read_bytes() for run in runs for path in run.iterdir() if path.name != ".lock"} == changed
    assert sorted((tmp_path / "runs").iterdir()) == runs  # nothing was started anew


def with_tensors(**changes):
    return lambda checkpoint: checkpoint | {"tensors": checkpoint["tensors"] | changes}


BAD_CHECKPOINT = {
    "empty": lambda checkpoint: {},
    "a list": lambda checkpoint: [checkpoint],
    "a tensor": lambda checkpoint: torch.zeros(2),
    "one tensor missing": with_tensors(theta=None),
    "no tensors": lambda checkpoint: checkpoint | {"tensors": {}},
    "one tensor more": with_tensors(phi=torch.zeros(2)),
    "a shape that would broadcast": with_tensors(theta=torch.zeros(1, 2, 2)),
    "another type": with_tensors(theta=torch.zeros(2, 2, 2, dtype=torch.float64)),
    "one generator": lambda checkpoint: checkpoint | {"generators": checkpoint["generators"][:1]},
    "short generators": lambda checkpoint: checkpoint | {"generators": [torch.zeros(9, dtype=torch.uint8)] * 2},
    "no generators": lambda checkpoint: checkpoint | {"generators": [torch.zeros(5056, dtype=torch.uint8)] * 2},
    "step as text": lambda checkpoint: checkpoint | {"step": "200"},
    "another number of tasks": lambda checkpoint: checkpoint | {"dataset_sha256": ["0"]},
    "history of one": lambda checkpoint: checkpoint | {"history": checkpoint["history"][:1]},
    "history of numbers": lambda checkpoint: checkpoint | {"history": [[1], [2]]},
    "history of other rows": lambda checkpoint: checkpoint | {"history": [[{}], [{}]]},
    "an older version's": lambda checkpoint: {name: checkpoint[name] for name in checkpoint if name != "pending"},
    "pending of one": lambda checkpoint: checkpoint | {"pending": [checkpoint["history"][0][0]]},
}


@pytest.mark.parametrize("change", BAD_CHECKPOINT.values(), ids=BAD_CHECKPOINT)
def test_malformed_checkpoint(change, finished, tmp_path, monkeypatch):
    runs = copied(finished, tmp_path / "runs")
    torch.save(change(checkpoint_of(runs[0])), runs[0] / "checkpoint.pt")
    before = config_of(runs[0])
    message = command(monkeypatch, "--resume", runs[0])
    gc.collect()
    assert message == f"{runs[0] / 'checkpoint.pt'} is not a checkpoint of this version of the script."
    assert config_of(runs[0]) == before and sorted((tmp_path / "runs").iterdir()) == runs


def test_siblings_exchanged(finished, tmp_path, monkeypatch):
    runs = copied(finished, tmp_path / "runs")
    shutil.copy(runs[0] / "config.json", runs[1])
    assert "is not the run of Toy/Walk-v0, seed 1" in command(monkeypatch, "--resume", runs[0])
