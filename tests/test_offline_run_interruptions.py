"""Signals, kills, divergence, a full disk: what is left, and that a run which is taken up again equals one that was not
interrupted, bit for bit.
"""

import contextlib
import errno
import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
import toy_runs
from conftest import wait_for
from torch.utils.tensorboard import SummaryWriter
from toy_runs import (
    RUN,
    SHORT,
    after_steps,
    assert_same_runs,
    checkpoint_of,
    command,
    config_of,
    process,
    result_of,
    resume,
    rows_of,
    send,
    stopped_at,
    train,
)

import offline_run
from benchmark.scripts import flags


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> list[Path]:
    """The directories of an uninterrupted run."""
    return train(tmp_path_factory.mktemp("finished"))


# --- Signals ----------------------------------------------------------------------------------------------------------


def test_resumed_run_equals_an_uninterrupted_one(finished, tmp_path, monkeypatch, capfd):
    """Ctrl-C after 100 of 200 steps."""
    runs = stopped_at(100, monkeypatch, tmp_path)
    output, errors = capfd.readouterr()
    assert f"--resume {runs[0]}" in output and "SIGINT: stopping with a checkpoint. A second one" in errors
    assert checkpoint_of(runs[0])["step"] == 100 and not (runs[0] / "result.json").exists()
    torch.manual_seed(12345)  # a fresh process would not have the old one's global generators
    resume(runs[1])  # any directory of the group names it
    assert_same_runs(runs, finished)
    for run in runs:
        (resumption,) = config_of(run)["resumed"]
        assert resumption["step"] == 100 and resumption["versions"]["torch"] == torch.__version__


MOMENTS = {
    "logs": ("log.Log.__init__", 0),
    "start": ("log.tqdm.__init__", 0),
    "update": ("toy.Agent.advance", 20),
    "evaluation begins": ("evaluation.Evaluator.begin", 60),
    "in an episode": ("toy.Walk.step", 60),
    "evaluation ends": ("evaluation.Evaluator.returns", 60),
    "metrics.csv": ("files.save_csv", 60),
    "progress bar": ("log.tqdm.set_postfix_str", 60),
    "checkpoint": ("files.save_tensors", 100),
    "last episode": ("toy.percent_score", 200),  # its tenth call
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_leaves_a_checkpoint(moment, finished, tmp_path, monkeypatch, capsys):
    name, step = MOMENTS[moment]
    *owner, name = name.split(".")
    owner = eval(".".join(owner), vars(offline_run) | {"toy": toy, "files": offline_run.files})
    original, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(name)
        result = original(*args, **kwargs)
        if len(calls) == (8 if moment == "last episode" else 1):
            send(signal.SIGTERM)
        return result

    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the run does not handle this signal"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path)
    assert stop.value.code == 128 + signal.SIGTERM
    runs = sorted(tmp_path.iterdir())
    assert int(re.search(r"Stopped at step (\d+)", capsys.readouterr().out)[1]) == step
    assert checkpoint_of(runs[0])["step"] == step
    resume(runs[0])
    assert_same_runs(runs, finished)


@pytest.mark.parametrize("where", ["training", "final evaluation"])
def test_evaluation_in_place_is_cut_short(where, finished, tmp_path, monkeypatch):
    """That of training stays pending at its step. The resumed run plays it from its start."""
    steps, original, last = [], toy.Walk.step, 30

    def step(env, action):
        steps.append(env)
        if len(steps) == last:
            send()
        return original(env, action)

    with monkeypatch.context() as patch:
        patch.setattr(toy.Walk, "step", step)
        if where == "final evaluation":
            last = 0
            train(tmp_path / "whole")
            last = len(steps) - 5
            steps.clear()
        with pytest.raises(SystemExit):
            train(tmp_path / "cut")
    assert len(steps) == last  # not one more
    runs = sorted((tmp_path / "cut").iterdir())
    checkpoint = checkpoint_of(runs[0])
    assert (checkpoint["step"], checkpoint["pending"] is None) == ((60, False) if where == "training" else (200, True))
    resume(runs[0])
    assert_same_runs(runs, finished)


@pytest.mark.parametrize("step, checkpoint", [(60, 60), (100, 100), (80, 40)])
def test_pending_evaluation(step, checkpoint, finished, tmp_path, monkeypatch):
    """Begun at the checkpoint's step, it is not awaited; of an earlier step (60, at 100) it is."""
    interval = {"checkpoint_interval": checkpoint, "eval_workers": 1}
    runs = stopped_at(step, monkeypatch, tmp_path, **interval)
    saved = checkpoint_of(runs[0])
    pending = saved["pending"] and {row["step"] for row in saved["pending"]}
    assert (saved["step"], pending) == (step, {60} if step == 60 else None)
    assert (runs[0] / "metrics.csv").exists() == (step != 60)
    resume(runs[0], eval_workers=0)
    assert_same_runs(runs, finished)


def test_run_with_workers_equals_one_without(finished, tmp_path):
    assert_same_runs(train(tmp_path, eval_workers=1), finished)


def test_ignored_sighup_stays_ignored(tmp_path, monkeypatch):
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    after_steps(monkeypatch, 40, lambda agent: send(signal.SIGHUP))
    (run,) = train(tmp_path, **SHORT)
    assert result_of(run)["steps"] == 60


def test_terminal_that_closes(finished, tmp_path, monkeypatch):
    """SIGHUP stops the run like Ctrl-C; that it comes twice, and with SIGCONT, does no harm."""

    def close(agent):
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGCONT):
            send(number)

    with monkeypatch.context() as patch:
        after_steps(patch, 40, close)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path)
    assert stop.value.code == 128 + signal.SIGHUP
    runs = sorted(tmp_path.iterdir())
    resume(runs[0])
    assert_same_runs(runs, finished)


def test_a_second_signal_ends_the_process(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(offline_run.files, "save_tensors", lambda *_: found.append(signal.getsignal(signal.SIGTERM)))
    stopped_at(20, monkeypatch, tmp_path)
    assert set(found) == {signal.SIG_DFL}


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    train(tmp_path, **SHORT)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
def test_stopped_in_a_process_of_its_own_and_continued_there(tmp_path):
    """Ctrl-C, which a terminal sends to the worker as well, while that one starts. Then the printed command, with a
    space in its path, killed by -9 while a worker plays.
    """
    folder = tmp_path / "my runs"
    endless = {"total_steps": 10**9, "eval_interval": 20_000, "eval_workers": 1, "runs_dir": folder, "num_seeds": 1}
    running = process(*flags(RUN | endless), cwd=tmp_path, start_new_session=True)
    try:
        wait_for(lambda: len(children(running.pid)) == 2)  # the worker, and multiprocessing's own
        workers = children(running.pid)
        os.killpg(running.pid, signal.SIGINT)
        output, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGINT
    assert errors == "\nSIGINT: stopping with a checkpoint. A second one stops at once, without.\n"
    wait_for(lambda: not any(map(alive, workers)))
    (run,) = folder.iterdir()
    step = checkpoint_of(run)["step"]

    following = re.search(r"python (.*--resume .*)", output)[1]
    assert f"--resume '{run}'" in following
    running = subprocess.Popen(
        f"exec {sys.executable} {following}", shell=True, cwd=tmp_path, env=toy_runs.ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: checkpoint_of(run)["step"] > step and (run / "metrics.csv").exists())
        wait_for(lambda: len(children(running.pid)) == 2)
        workers = children(running.pid)
    finally:
        running.kill()
        running.wait()
    wait_for(lambda: not any(map(alive, workers)), 10)
    assert not (run / "result.json").exists() and list(folder.iterdir()) == [run]


# --- Kills, divergence, full disks ------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is no more."""


def test_crash_between_any_two_file_operations(finished, tmp_path, monkeypatch):
    """actor.pt is never missing or older than the checkpoint, and the run is resumed or was never begun."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # only the order of the operations counts here
    machine = offline_run.files.describe_machine(toy_runs.SCRIPT, "cpu")
    monkeypatch.setattr(offline_run.files, "describe_machine", lambda *_: machine)
    replace, resumed = os.replace, 0
    for operation in range(1, 100):
        left = [operation]

        def crash(source, target, left=left):
            left[0] -= 1
            if left[0] == 0:
                Path(source).with_name(Path(source).name + ".part").write_text("half-written")
                raise Crash
            replace(source, target)

        folder = tmp_path / str(operation)
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            patch.setattr(os, "replace", crash)
            train(folder)
        gc.collect()  # the run and its lock
        if left[0] > 0:
            break
        runs = sorted(folder.iterdir())
        if (runs[0] / "checkpoint.pt").exists():
            count = checkpoint_of(runs[0])["tensors"]["count"]
            for run in runs:
                assert torch.load(run / "actor.pt", weights_only=True)["count"] >= count
            resume(runs[0])
            assert_same_runs(runs, finished)
            resumed += 1
        else:
            with pytest.raises(SystemExit, match="is not a run directory|holds no checkpoint.pt"):
                resume(runs[0])
    assert (operation - 1, resumed) == (2 + 4 * 2 + 2 * 3 + 2, 11)  # configs, evaluations, checkpoints, results


def test_diverged_run_keeps_its_checkpoint(finished, tmp_path, monkeypatch):
    """Seed 1 turns NaN in step 140, is found out at 180, and the run is taken up again at 100."""
    write = SummaryWriter.add_scalar  # so that there are events behind the checkpoint, which the resumed run must purge
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, *given: (write(self, *given), self.flush()))
    with monkeypatch.context() as patch:
        after_steps(patch, 140, lambda agent: agent.theta[1, 0, 0].fill_(torch.nan))
        with pytest.raises(SystemExit) as stop:
            train(tmp_path)
    runs, message = sorted(tmp_path.iterdir()), stop.value.code
    assert message.startswith("Seed 1 diverged: losses/critic is not finite at step 180.") and str(runs[0]) in message
    checkpoint = checkpoint_of(runs[0])
    assert checkpoint["step"] == 100
    assert all(tensor.isfinite().all() for tensor in checkpoint["tensors"].values())
    assert [row["step"] for row in rows_of(runs[0])] == ["60", "120"]
    resume(runs[0])
    assert_same_runs(runs, finished)


def test_events_behind_a_checkpoint_with_a_pending_evaluation(finished, tmp_path, monkeypatch):
    """Those of its own step were written, and are written again."""
    write = SummaryWriter.add_scalar
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, *given: (write(self, *given), self.flush()))
    with monkeypatch.context() as patch:
        after_steps(patch, 80, lambda agent: agent.theta.fill_(torch.nan))
        with pytest.raises(SystemExit, match="step 120"):
            train(tmp_path, eval_workers=1, checkpoint_interval=60)
    runs = sorted(tmp_path.iterdir())
    assert [row["step"] for row in checkpoint_of(runs[0])["pending"]] == [60, 60]
    resume(runs[0])
    assert_same_runs(runs, finished)


@pytest.mark.parametrize("stop", [True, False])
def test_state_that_is_not_finite_never_reaches_a_checkpoint(stop, tmp_path, monkeypatch):
    """After the metrics were computed, and in a tensor that they do not show; of several tasks, one is named."""

    def spoil(agent):
        agent.theta[3, 0, 0] = torch.inf
        if stop:
            send()

    after_steps(monkeypatch, 40, spoil)
    arguments = SHORT | {"num_seeds": 2, "env_id": ("Toy/Walk-v0", "Toy/Uneven-v0")}
    with pytest.raises(SystemExit, match=r"^Toy/Uneven-v0, seed 1 diverged: theta is not finite at step 40\b"):
        train(tmp_path, **arguments)
    assert checkpoint_of(sorted(tmp_path.glob("*Walk*"))[0])["step"] == 20


@pytest.mark.parametrize("failure", ["raised", "real"])
def test_full_disk_keeps_the_previous_checkpoint(failure, tmp_path, monkeypatch):
    """`real` lets the operating system refuse the bytes, through the device that is always full."""
    if failure == "real" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    replace, open_file = os.replace, os.open

    def full(path, *flags):
        if str(path).endswith(".part"):
            if failure == "raised":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            path, flags = "/dev/full", (os.O_WRONLY,)
        return open_file(path, *flags)

    def then_full(source, target):
        replace(source, target)
        if Path(target).name == "checkpoint.pt":
            monkeypatch.setattr(os, "open", full)

    monkeypatch.setattr(os, "replace", then_full)
    message = command(monkeypatch, *flags(SHORT | {"runs_dir": tmp_path}))
    assert isinstance(message, str) and "No space left" in message and "--resume" in message and "\n" not in message
    monkeypatch.undo()
    (run,) = tmp_path.iterdir()
    assert checkpoint_of(run)["step"] == 20
    assert not [path.name for path in run.iterdir() if path.name.endswith(".part")]
    gc.collect()
    resume(run)
    assert result_of(run)["steps"] == 60
