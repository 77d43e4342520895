"""Runs of the toy script, and how tests look at what a run leaves."""

import csv
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)  # numbers of one length: sorted

SCRIPT = ROOT / "tests" / "toy.py"
RUN = {  # two learners: evaluations at 60, 120, 180 and 200, checkpoints at 100 and 200
    "num_seeds": 2, "total_steps": 200, "device": "cpu", "eval_interval": 60, "eval_episodes": 3,
    "final_eval_episodes": 7, "checkpoint_interval": 100, "eval_workers": 0, "stochastic": True,
}  # fmt: skip
SHORT = RUN | {"num_seeds": 1, "total_steps": 60, "eval_interval": 20, "checkpoint_interval": 20}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def train(runs: Path, **arguments) -> list[Path]:
    """The directories of the finished run, one a learner."""
    toy.main(toy.Args(runs_dir=str(runs), **(RUN | arguments)))
    return sorted(runs.iterdir())


def resume(run: Path, **arguments) -> None:
    toy.main(toy.Args(resume=str(run), **arguments))


def command(monkeypatch, *arguments: str, script: Path = SCRIPT):
    """Run the script's command line in this process; what it hands to sys.exit (None if it ends by itself)."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return stop.code


def process(*arguments, **options) -> subprocess.Popen:
    """The same in a process of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen([sys.executable, str(SCRIPT), *map(str, arguments)], **(streams | options))


def after_steps(patch: pytest.MonkeyPatch, steps: int, act, agent_class: type = toy.Agent) -> None:
    """Call `act(agent)` when this process has trained so many gradient steps."""
    original, periods = agent_class.advance, itertools.count(1)

    def advance(agent):
        original(agent)
        if next(periods) * agent.period_steps == steps:
            act(agent)

    patch.setattr(agent_class, "advance", advance)


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def stopped(steps: int, monkeypatch, run, agent_class: type = toy.Agent) -> None:
    """Calls `run()`, which Ctrl-C ends after so many steps."""
    with monkeypatch.context() as patch:
        after_steps(patch, steps, lambda agent: send(), agent_class)
        with pytest.raises(SystemExit) as stop:
            run()
    assert stop.value.code == 128 + signal.SIGINT


def stopped_at(steps: int, monkeypatch, runs: Path, **arguments) -> list[Path]:
    """The directories of the toy's run that Ctrl-C ended after so many steps."""
    stopped(steps, monkeypatch, lambda: train(runs, **arguments))
    return sorted(runs.iterdir())


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def checkpoint_of(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", weights_only=True)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def events_of(run: Path) -> dict[str, list]:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


def timeless(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("seconds", "charts/SPS")}


def assert_same_runs(ours: list[Path], theirs: list[Path]) -> None:
    """Bit for bit, but for the clock."""
    a, b = checkpoint_of(ours[0]), checkpoint_of(theirs[0])
    assert a["step"] == b["step"] and a["tensors"].keys() == b["tensors"].keys()
    assert not [name for name, tensor in a["tensors"].items() if not torch.equal(tensor, b["tensors"][name])]
    assert all(torch.equal(x, y) for x, y in zip(a["generators"], b["generators"], strict=True))
    for x, y in zip(ours, theirs, strict=True):
        assert list(map(timeless, rows_of(x))) == list(map(timeless, rows_of(y)))
        actors = [torch.load(run / "actor.pt", weights_only=True) for run in (x, y)]
        assert all(torch.equal(tensor, actors[1][name]) for name, tensor in actors[0].items())
        assert result_of(x)["final_returns"] == result_of(y)["final_returns"]
        for name in ("last", "best"):
            assert timeless(result_of(x)[name]) == timeless(result_of(y)[name])
        for tag, events in events_of(x).items():
            steps = [event.step for event in events]
            assert steps == sorted(set(steps)) and steps[-1] == result_of(x)["steps"], tag
            logged = {row["step"]: row[tag] for row in rows_of(x)}
            assert all(float(logged[str(event.step)]) == pytest.approx(event.value) for event in events
                       if str(event.step) in logged)  # fmt: skip
        assert [event.step for event in events_of(x)["charts/episodic_return"]] == [
            event.step for event in events_of(y)["charts/episodic_return"]
        ]
