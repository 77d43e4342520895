"""What a run leaves behind, and how it behaves when it is interrupted, diverges, meets a full disk or bad input."""

import csv
import errno
import hashlib
import importlib.machinery
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, A, S, assert_seeds_are_independent, load_script, make_agent, random_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import d4rl_gymnasium as d4rl

TAG = r"(?:charts|losses|aspc|td3bc|cql)/[A-Za-z_]+"
RUN = {  # a run of two seeds: evaluations at 60, 120, 180 and 200, checkpoints at 100 and 200
    "env_id": "hopper-medium-v2", "num_seeds": 2, "total_steps": 200, "batch_size": 8, "device": "cpu",
    "eval_interval": 60, "eval_episodes": 1, "final_eval_episodes": 2, "checkpoint_interval": 100,
    "robust_critic": False, "critic_layers": 1,  # where the script has them
}  # fmt: skip
OWN = RUN | {"env_id": "Pendulum-v1", "num_seeds": 1, "total_steps": 40}
SHORT = RUN | {"num_seeds": 1, "total_steps": 60, "eval_interval": 20, "checkpoint_interval": 20}

# The lines that write files and run the loop are the same text in all scripts (test_shared_text): what they do when
# something goes wrong is tested on the first pair.
PAIR = SCRIPTS[:2]
WHOLE = SCRIPTS[:5]  # whose whole runs are looked at; of the others their agents, and one run of each (copied alone)
each_whole = pytest.mark.parametrize("script", WHOLE)
each_other = pytest.mark.parametrize("script", SCRIPTS[5:])
each_of_pair = pytest.mark.parametrize("script", PAIR)
finished_pair = pytest.mark.parametrize("finished", PAIR, indirect=True)


# --- Helpers ----------------------------------------------------------------------------------------------------------


def write_dataset(path: Path, observation_dim: int, action_dim: int, bound: float = 1.0, seed: int = 0) -> Path:
    rng, rows = np.random.default_rng(seed), 300
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(rows, observation_dim)).astype(np.float32)
        file["actions"] = rng.uniform(-bound, bound, (rows, action_dim)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"] = rng.random(rows) < 0.05
        file["timeouts"] = np.arange(rows) % 50 == 49
    return path


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "rows.hdf5", 11, 3)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Put back the handlers that a run which ended by an exception leaves installed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fitting(script: str, arguments: dict) -> dict:
    """Those of the arguments that the script has."""
    return {k: v for k, v in arguments.items() if k in load_script(script).Args.__dataclass_fields__}


def train(script: str, dataset: Path, runs: Path, arguments: dict) -> list[Path]:
    """The directories of the finished run, one a seed."""
    module = load_script(script)
    module.main(module.Args(dataset_path=str(dataset), runs_dir=str(runs), **fitting(script, arguments)))
    return sorted(runs.iterdir())


def resume(script: str, run: Path) -> None:
    module = load_script(script)
    module.main(module.Args(resume=str(run)))


def after_steps(monkeypatch, script: str, steps: int, act) -> None:
    """Call `act(agent)` when this process has trained so many gradient steps."""
    agent_class, periods = load_script(script).Agent, itertools.count(1)
    original = agent_class.advance

    def advance(agent):
        original(agent)
        if next(periods) * agent.period_steps == steps:
            act(agent)

    monkeypatch.setattr(agent_class, "advance", advance)


def flags(arguments: dict) -> list[str]:
    """Args as they stand on a command line."""
    line = []
    for name, value in arguments.items():
        name = name.replace("_", "-")
        line += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return line


def command(monkeypatch, script: str, *arguments: str):
    """Run the script's command line in this process; what it hands to sys.exit (None if it ends by itself)."""
    path = str(ROOT / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        return stop.code


def checkpoint_of(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", weights_only=True)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def events_of(run: Path) -> dict[str, list]:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


def assert_same_runs(ours: list[Path], theirs: list[Path]) -> None:
    """Bit for bit, but for the clock."""
    a, b = checkpoint_of(ours[0]), checkpoint_of(theirs[0])
    assert a["step"] == b["step"] and a["tensors"].keys() == b["tensors"].keys()
    different = [name for name, tensor in a["tensors"].items() if not torch.equal(tensor, b["tensors"][name])]
    assert not different
    assert all(torch.equal(x, y) for x, y in zip(a["generators"], b["generators"], strict=True))
    for x, y in zip(ours, theirs, strict=True):
        timeless = [
            [{k: v for k, v in row.items() if k not in ("seconds", "charts/SPS")} for row in rows_of(run)]
            for run in (x, y)
        ]
        assert timeless[0] == timeless[1]
        actors = [torch.load(run / "actor.pt", weights_only=True) for run in (x, y)]
        assert all(torch.equal(tensor, actors[1][name]) for name, tensor in actors[0].items())
        results = [json.loads((run / "result.json").read_text()) for run in (x, y)]
        assert results[0]["final_returns"] == results[1]["final_returns"]
        assert results[0]["steps"] == results[1]["steps"]


@pytest.fixture(scope="module", params=WHOLE)
def finished(request, hopper, tmp_path_factory) -> types.SimpleNamespace:
    """An uninterrupted run."""
    runs = tmp_path_factory.mktemp("finished")
    return types.SimpleNamespace(script=request.param, runs=train(request.param, hopper, runs, RUN))


def test_shared_text():
    """Files and the training loop: the same lines in every script."""
    sections = (("def save(", "def describe("), ("    # --- Logging", "        scores ="))
    for script in SCRIPTS:
        text, first = ((ROOT / f"{name}.py").read_text() for name in (script, PAIR[0]))
        for start, end in sections:
            section = text[text.index(start) : text.index(end)]
            assert section and section == first[first.index(start) : first.index(end)], (script, start)


# --- Files of a run ---------------------------------------------------------------------------------------------------


def test_files_of_a_run(finished, hopper):
    script = Path(finished.script).name
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = (shutil.which("git") and subprocess.run(git, capture_output=True, text=True).stdout.strip()) or None
    for seed, run in enumerate(finished.runs):
        assert re.fullmatch(rf"hopper-medium-v2__{script}__{seed}__\d{{8}}-\d{{6}}-\d+", run.name)
        names = {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents.")}
        expected = {"config.json", "metrics.csv", "actor.pt", "result.json"}
        assert names == (expected | {"checkpoint.pt"} if seed == 0 else expected)  # and nothing half-written

        config = json.loads((run / "config.json").read_text())
        given = fitting(finished.script, RUN) | {"seed": 0, "dataset_path": str(hopper)}
        assert {name: config["args"][name] for name in given} == given
        assert config["args"].keys() == load_script(finished.script).Args.__dataclass_fields__.keys()
        assert (config["script"], config["seed"], config["device"]) == (script, seed, "cpu")
        assert config["group"] == [path.name for path in finished.runs]
        sha256 = hashlib.sha256(hopper.read_bytes()).hexdigest()
        assert config["dataset"] == {"path": str(hopper), "sha256": sha256, "source": "given: rows.hdf5"}
        assert config["versions"]["torch"] == torch.__version__
        assert config["versions"].keys() >= {"python", "numpy", "gymnasium", "mujoco"}
        assert config["commit"] == head

        rows = rows_of(run)
        assert [row["step"] for row in rows] == ["60", "120", "180", "200"]
        assert rows[0].keys() >= {"seconds", "charts/SPS", "charts/episodic_return", "episodic_return_std"}
        assert all(np.isfinite(float(value)) for row in rows for value in row.values())

        result = json.loads((run / "result.json").read_text())
        assert (result["env_id"], result["script"], result["seed"]) == ("hopper-medium-v2", script, seed)
        assert (result["steps"], result["dataset"], len(result["final_returns"])) == (200, "given: rows.hdf5", 2)
        score = 100 * d4rl.get_normalized_score("hopper-medium-v2", np.mean(result["final_returns"]))
        assert result["final_score"] == pytest.approx(score)
        as_text = [{name: str(value) for name, value in result[which].items()} for which in ("last", "best")]
        assert as_text == [rows[-1], max(rows, key=lambda row: float(row["charts/episodic_return"]))]
        assert result["seconds"] == result["last"]["seconds"] > 0

        actor = torch.load(run / "actor.pt", weights_only=True)
        final = {name.removeprefix("actor."): t for name, t in checkpoint_of(finished.runs[0])["tensors"].items()}
        weights = {name.removeprefix("actor."): t for name, t in actor.items()}  # or "critics."
        same = [torch.equal(t, final[name][seed]) for name, t in weights.items() if name.startswith("net.")]
        assert same and all(same)


def test_tags_are_those_of_the_glossary(finished):
    page = (ROOT / "docs" / f"{Path(finished.script).name}.md").read_text()
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    listed = set(re.findall(rf"`({TAG})`", table))
    for run in finished.runs:
        events = events_of(run)
        assert listed == set(events)
        assert {column for column in rows_of(run)[0] if "/" in column} == listed
        assert [event.step for event in events["charts/episodic_return"]] == [60, 120, 180, 200]


# --- Interruptions ----------------------------------------------------------------------------------------------------


def test_resumed_run_equals_an_uninterrupted_one(finished, hopper, tmp_path, monkeypatch, capsys):
    """Ctrl-C after 100 of 200 steps."""
    with monkeypatch.context() as patch:
        after_steps(patch, finished.script, 100, lambda agent: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as stop:
            train(finished.script, hopper, tmp_path, RUN)
    runs = sorted(tmp_path.iterdir())
    assert stop.value.code == 128 + signal.SIGINT
    assert f"--resume {runs[0]}" in capsys.readouterr().out
    assert checkpoint_of(runs[0])["step"] == 100 and not (runs[0] / "result.json").exists()
    torch.manual_seed(12345)  # a fresh process would not have the old one's global generators
    resume(finished.script, runs[1])  # any directory of the group names it
    assert_same_runs(runs, finished.runs)
    for run in runs:
        (resumption,) = json.loads((run / "config.json").read_text())["resumed"]
        assert resumption["step"] == 100 and resumption["versions"]["torch"] == torch.__version__


@each_other
def test_metrics_are_those_of_the_glossary(script):
    page = (ROOT / "docs" / f"{Path(script).name}.md").read_text()
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    agent = make_agent(script, batch_size=4)
    agent.advance()
    assert {tag for tag in re.findall(rf"`({TAG})`", table) if not tag.startswith("charts/")} == set(agent.metrics)


@each_other
def test_agent_continues_from_its_tensors_and_generators(script):
    """All that a checkpoint holds of it, loaded into a new agent: the same from then on, bit for bit."""
    first, second = make_agent(script, batch_size=4), make_agent(script, batch_size=4)
    first.advance()
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    states = [generator.get_state() for generator in first.generators]
    first.advance()
    second.load(tensors, states)
    second.advance()
    other = second.tensors()
    assert not [name for name, tensor in first.tensors().items() if not torch.equal(tensor, other[name])]
    assert not all(torch.equal(tensor, tensors[name]) for name, tensor in other.items())


@each_of_pair
@pytest.mark.parametrize("moment", ["start", "update", "evaluation", "progress bar"])
def test_a_signal_at_any_moment_leaves_a_checkpoint(script, moment, hopper, tmp_path, monkeypatch, capsys):
    module = load_script(script)
    owner, name = {
        "start": (module, "tqdm"),
        "update": (module.Agent, "advance"),
        "evaluation": (module, "evaluate"),
        "progress bar": (module.tqdm, "set_postfix_str"),
    }[moment]
    original, sent = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        result = original(*args, **kwargs)
        if not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the run does not handle this signal"))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(SystemExit) as stop:
            train(script, hopper, tmp_path, SHORT | {"total_steps": 20_000, "checkpoint_interval": 10_000})
    assert stop.value.code == 128 + signal.SIGTERM
    (run,) = tmp_path.iterdir()
    step = int(re.search(r"Stopped at step (\d+)", capsys.readouterr().out)[1])
    assert step <= 20
    assert checkpoint_of(run)["step"] == step


@finished_pair
def test_diverged_run_keeps_its_checkpoint(finished, hopper, tmp_path, monkeypatch):
    """Seed 1 turns NaN in step 140, is found out at 180, and the run is taken up again at 100."""

    class Unbuffered(SummaryWriter):  # so that there are events behind the checkpoint, which the resumed run must purge
        def add_scalar(self, *args, **kwargs):
            super().add_scalar(*args, **kwargs)
            self.flush()

    with monkeypatch.context() as patch:
        patch.setattr(load_script(finished.script), "SummaryWriter", Unbuffered)
        after_steps(patch, finished.script, 140, lambda agent: agent.actor["net.0.weight"][1, 0, 0].fill_(torch.nan))
        with pytest.raises(SystemExit) as stop:
            train(finished.script, hopper, tmp_path, RUN)
    runs = sorted(tmp_path.iterdir())
    message = stop.value.code
    assert re.search(r"\b[Ss]eed 1\b", message) and re.search(r"\bstep 180\b", message) and str(runs[0]) in message
    assert re.search(r"\blosses/(critic|actor|q)\b", message)
    checkpoint = checkpoint_of(runs[0])
    assert checkpoint["step"] == 100
    assert all(tensor.isfinite().all() for tensor in checkpoint["tensors"].values())
    assert [row["step"] for row in rows_of(runs[0])] == ["60", "120"]
    resume(finished.script, runs[0])
    assert_same_runs(runs, finished.runs)
    for run in runs:
        for tag, events in events_of(run).items():
            steps = [event.step for event in events]
            assert steps == sorted(set(steps)) and steps[-1] == 200, tag
        assert [event.step for event in events_of(run)["charts/episodic_return"]] == [60, 120, 180, 200]


@each_of_pair
def test_state_that_is_not_finite_never_reaches_a_checkpoint(script, hopper, tmp_path, monkeypatch):
    """After the metrics were computed, and in a tensor that they do not show."""
    infinite = lambda agent: agent.target_critics["net.0.bias"][0, 1, 0].fill_(torch.inf)  # noqa: E731
    after_steps(monkeypatch, script, 40, infinite)
    with pytest.raises(SystemExit, match=r"Seed 0 .*target_critics\.net\.0\.bias.* step 40\b"):
        train(script, hopper, tmp_path, SHORT)
    (run,) = tmp_path.iterdir()
    assert checkpoint_of(run)["step"] == 20


@each_of_pair
@pytest.mark.parametrize("failure", ["raised", "real"])
def test_full_disk_keeps_the_previous_checkpoint(script, failure, hopper, tmp_path, monkeypatch):
    """`real` lets the operating system refuse the bytes, through the device that is always full."""
    if failure == "real" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    replace = os.replace

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def then_full(source, target):
        replace(source, target)
        if Path(target).name != "actor.pt":  # the last file of a checkpoint
            return
        if failure == "raised":
            monkeypatch.setattr(torch, "save", full)
        else:
            Path(target).with_name("checkpoint.pt.part").symlink_to("/dev/full")

    monkeypatch.setattr(os, "replace", then_full)
    given = fitting(script, SHORT) | {"dataset_path": hopper, "runs_dir": tmp_path}
    message = command(monkeypatch, script, *flags(given))
    assert isinstance(message, str) and "--resume" in message and "\n" not in message
    (run,) = tmp_path.iterdir()
    assert checkpoint_of(run)["step"] == 20
    assert not [path.name for path in run.iterdir() if path.name.endswith(".part")]
    monkeypatch.undo()
    resume(script, run)
    assert json.loads((run / "result.json").read_text())["steps"] == 60


@finished_pair
def test_resume_refuses(finished, hopper, tmp_path, monkeypatch):
    """What cannot be continued, with a sentence that says why."""
    resumed = lambda *arguments: command(monkeypatch, finished.script, "--resume", *map(str, arguments))  # noqa: E731
    for run in finished.runs:
        assert "complete" in resumed(run)
    runs = [shutil.copytree(run, tmp_path / run.name) for run in finished.runs]
    (runs[1] / "result.json").unlink()  # as if killed in the final evaluation
    assert "--total-steps" in resumed(runs[0], "--total-steps", 800)
    other = next(script for script in SCRIPTS if script != finished.script)
    assert Path(finished.script).name in command(monkeypatch, other, "--resume", str(runs[0]))

    written = (runs[0] / "config.json").read_text()
    (runs[0] / "config.json").write_text(json.dumps(json.loads(written) | {"device": "NVIDIA H200"}))
    assert "NVIDIA H200" in resumed(runs[0])
    config = json.loads(written)
    config["args"]["gone"] = 1
    (runs[0] / "config.json").write_text(json.dumps(config))
    assert "another version" in resumed(runs[0]) and "gone" in resumed(runs[0])
    config = json.loads(written)
    config["args"]["dataset_path"] = str(write_dataset(tmp_path / "rows.hdf5", 11, 3, seed=1))
    (runs[0] / "config.json").write_text(json.dumps(config))
    assert "sha256" in resumed(runs[0])
    (tmp_path / "rows.hdf5").unlink()
    assert str(tmp_path / "rows.hdf5") in resumed(runs[0])
    whole = (runs[0] / "checkpoint.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no checkpoint", b""):
        (runs[0] / "checkpoint.pt").write_bytes(damaged)
        message = resumed(runs[0])
        assert "checkpoint.pt" in message and "\n" not in message
    (runs[0] / "checkpoint.pt").unlink()
    assert "checkpoint.pt" in resumed(runs[0])


@finished_pair
def test_run_killed_in_its_final_evaluation_resumes(finished, tmp_path):
    """In another place than where it was trained, too."""
    runs = [shutil.copytree(run, tmp_path / run.name) for run in finished.runs]
    (runs[1] / "result.json").unlink()
    resume(finished.script, runs[0])
    assert_same_runs(runs, finished.runs)


def alone(tmp_path: Path, scripts: list[str]) -> tuple[Path, dict]:
    """The files in an empty directory, with no other part of this repository than the installed package; the directory
    and how a subprocess runs there.
    """
    packages, project = tmp_path / "packages", tmp_path / "project"
    packages.mkdir()
    project.mkdir()
    shutil.copytree(ROOT / "d4rl_gymnasium", packages / "d4rl_gymnasium", ignore=shutil.ignore_patterns("__pycache__"))
    for script in scripts:
        shutil.copy(ROOT / f"{script}.py", project)
    environment = os.environ | {"PYTHONPATH": str(packages), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment["GIT_CEILING_DIRECTORIES"] = str(tmp_path)
    options = {"cwd": project, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return project, options


def test_copied_alone(hopper, tmp_path):
    """Every script in one process, one after the other."""
    project, options = alone(tmp_path, SCRIPTS)
    given = SHORT | {"total_steps": 20, "dataset_path": str(hopper)}
    lines = [[f"{Path(script).name}.py", *flags(fitting(script, given))] for script in SCRIPTS]
    (project / "lines.json").write_text(json.dumps(lines))
    program = (
        "import json, runpy, sys\n"
        "for sys.argv in json.load(open('lines.json')): runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", program], **options)
    assert process.returncode == 0, process.stderr
    names = [json.loads(path.read_text())["script"] for path in project.glob("runs/*/result.json")]
    assert sorted(names) == sorted(Path(script).name for script in SCRIPTS)


def test_copied_alone_stopped_and_continued(hopper, tmp_path):
    script, number = PAIR[0], signal.SIGTERM
    project, options = alone(tmp_path, [script])
    plain_critic = " ".join(flags(fitting(script, {"robust_critic": False, "critic_layers": 1})))
    arguments = (
        f"{Path(script).name}.py --env-id hopper-medium-v2 --dataset-path {hopper} --total-steps 300 --batch-size 8 "
        f"--device cpu --eval-interval 20 --eval-episodes 1 --final-eval-episodes 2 {plain_critic}"
    )
    process = subprocess.Popen([sys.executable, *shlex.split(arguments)], **options)
    try:
        while process.poll() is None and not list(project.glob("runs/*/metrics.csv")):
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    (run,) = project.glob("runs/*")
    step = checkpoint_of(run)["step"]
    assert 20 <= step < 300
    assert json.loads((run / "config.json").read_text())["commit"] is None

    following = re.search(r"python (.*--resume .*)", output)[1]
    again = subprocess.run([sys.executable, *shlex.split(following)], **options)
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 300
    assert [int(row["step"]) for row in rows_of(run)] == list(range(20, 301, 20))
    assert len(list(project.glob("runs/*"))) == 1


# --- Seeds ------------------------------------------------------------------------------------------------------------


def seed_by_seed(script: str, **arguments) -> tuple[dict, dict, dict]:
    """All state after 40 steps: of seeds 1 and 2 when trained as the second and third of three, and of seed 1 alone."""
    together, alone = make_agent(script, num_seeds=3, **arguments), make_agent(script, seed=1, **arguments)
    for agent in (together, alone):
        for _ in range(40 // agent.period_steps):
            agent.advance()
    pick = lambda agent, k: {name: t[k] for name, t in agent.tensors().items() if t.ndim}  # noqa: E731
    return pick(together, 1), pick(together, 2), pick(alone, 0)


def largest_difference(x: dict, y: dict) -> dict[str, float]:
    return {name: (x[name] - y[name]).abs().max().item() for name in x}


@pytest.mark.parametrize("script", [s for s in SCRIPTS if not s.endswith(("iql", "cql", "fql"))])  # they: with options
def test_seeds_are_independent(float64, script):
    together, alone = make_agent(script, num_seeds=3, batch_size=8), make_agent(script, seed=1, batch_size=8)
    assert_seeds_are_independent(together, alone)
    if script.startswith("aspc"):
        assert {"rho", "ema"} <= alone.tensors().keys()


@each_of_pair
def test_seeds_are_independent_in_float32(script):
    """The rounding of a batched product differs from that of a single one. Adam makes up to LEARNING_RATE of it at each
    step where a gradient is itself no more than rounding; a tenth of one step is far below what a foreign batch does.
    """
    module = load_script(script)
    one, two, alone = seed_by_seed(script, **fitting(script, {"robust_critic": False}))
    same, other = largest_difference(one, alone), largest_difference(two, alone)
    for name in alone:
        if ".adam." not in name:
            assert same[name] < 0.1 * module.LEARNING_RATE, name
    assert min(other[name] for name in other if name.endswith("net.0.weight")) > 0.1


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD_INPUT = {
    "unknown task": ("--env-id hoper-medium-v2", "hoper-medium-v2"),
    "missing dataset": ("--dataset-path {tmp}/missing.hdf5", "missing.hdf5 is not there"),
    "another task's data": ("--env-id walker2d-medium-v2", "not data for walker2d-medium-v2"),
    "not HDF5": ("--dataset-path {tmp}/text.hdf5", "not an HDF5 file"),
    "no data for an own task": ("--env-id Pendulum-v1 --dataset-path {tmp}/missing.hdf5", "missing.hdf5"),
    "discrete actions": ("--env-id CartPole-v1", "Box"),
    "no seeds": ("--num-seeds 0", "--num-seeds must be at least 1"),
    "negative seed": ("--seed -1", "--seed"),
    "no steps": ("--total-steps 0", "--total-steps must be at least 1"),
    "unknown device": ("--device gpu", "--device"),
    "device misspelt": ("--device cpux", "--device"),
    "task of three parts": ("--env-id a:b:c", "--env-id a:b:c"),
    "evaluation with a training argument": ("--eval {tmp} --batch-size 8", "drop --batch-size"),
    "video without a run": ("--render-video film.mp4", "--eval"),
    "wandb missing": ("--track", "pip install wandb"),
    "evaluation of no run": ("--eval {tmp}", "is not a run directory"),
    "evaluation of another project's folder": ("--eval {tmp}/other", "{tmp}/other"),
    "resumption of no run": ("--resume {tmp}", "is not a run directory"),
    "resumption of another project's folder": ("--resume {tmp}/other", "is not a run directory"),
    "resumption of a list": ("--resume {tmp}/list", "is not a run directory"),
    "runs_dir is a file": ("--runs-dir {tmp}/text.hdf5", "text.hdf5"),
}
BAD_INPUT_ASPC = {
    "alpha starts at 0": ("--alpha-init 0", "--alpha-init must be positive"),
    "alpha is no number": ("--alpha-init nan", "--alpha-init must be positive"),
    "alpha learns backwards": ("--alpha-lr -1", "--alpha-lr at least 0"),
    "no average": ("--ema 1", "--ema"),
}
BAD_INPUT_TD3BC = {"minimise Q": ("--alpha -1", "--alpha")}
BAD_INPUT_IQL = {
    "no expectile": ("--expectile 1", "--expectile"),
    "all dropped": ("--actor-dropout 1", "--actor-dropout"),
}
BAD_INPUT_IQL_ALONE = {
    "imitation of the worst": ("--beta -1", "--beta"),
}
BAD_INPUT_CQL = {
    "no learning": ("--policy-lr 0", "--policy-lr"),
    "no temperature": ("--temperature 0", "--temperature"),
}
BAD_INPUT_CQL_ALONE = {"negative penalty": ("--alpha -1", "--alpha")}
BAD_INPUT_CQL_ASPC = {
    "alpha starts out of bounds": ("--alpha-init 30", "--alpha-max"),
    "alpha may reach 0": ("--alpha-min 0", "--alpha-min"),
}
BAD_INPUT_DIFFUSIONQL = {"negative norm": ("--grad-norm -1", "--grad-norm must be at least 0")}
BAD_INPUT_DIFFUSIONQL_ALONE = {
    "minimise Q": ("--eta -1", "--eta must be at least 0"),
    "no learning": ("--actor-lr 0", "--actor-lr positive"),
}
BAD_INPUT_REBRAC = {
    "keep away from the data": ("--critic-bc-coef -1", "--critic-bc-coef must be at least 0"),
    "no learning": ("--actor-lr 0", "--actor-lr"),
    "no horizon": ("--discount 1", "--discount between 0 and 1"),
}
BAD_INPUT_A2PR = {
    "keep away from good actions": ("--mask -1", "--mask"),
    "no horizon": ("--discount 1", "--discount between 0 and 1"),
}
BAD_INPUT_FQL = {"no horizon": ("--discount 1", "--discount must lie between 0 and 1")}
BAD_INPUT_FQL_ALONE = {"keep away from the teacher": ("--alpha -1", "--alpha must be at least 0")}
NOT_TUNED = {"no settings for the task": ("--env-id Pendulum-v1 --tuned", "no settings for Pendulum-v1")}


@pytest.mark.parametrize(
    ("script", "line", "words"),
    [
        pytest.param(script, *BAD_INPUT[name], id=f"{name}-{script}")
        for script in PAIR
        for name in BAD_INPUT
    ]
    + [
        pytest.param(script, *case, id=f"{name}-{script}")
        for cases, scripts in (
            (BAD_INPUT_ASPC, [script for script in SCRIPTS if script.startswith("aspc")]),
            (BAD_INPUT_TD3BC, ["baselines/td3bc", "baselines/wpc", "baselines/a2pr"]),
            (BAD_INPUT_IQL, ["aspc_iql", "baselines/iql"]),
            (BAD_INPUT_IQL_ALONE, ["baselines/iql"]),
            (BAD_INPUT_CQL, ["aspc_cql", "baselines/cql"]),
            (BAD_INPUT_CQL_ALONE, ["baselines/cql"]),
            (BAD_INPUT_CQL_ASPC, ["aspc_cql"]),
            (BAD_INPUT_DIFFUSIONQL, ["aspc_diffusionql", "baselines/diffusionql"]),
            (BAD_INPUT_DIFFUSIONQL_ALONE, ["baselines/diffusionql"]),
            (BAD_INPUT_REBRAC, ["baselines/rebrac"]),
            (BAD_INPUT_A2PR, ["baselines/a2pr"]),
            (BAD_INPUT_FQL, ["aspc_fql", "baselines/fql"]),
            (BAD_INPUT_FQL_ALONE, ["baselines/fql"]),
            (NOT_TUNED, [f"baselines/{name}" for name in ("iql", "cql", "diffusionql", "rebrac", "a2pr", "fql")]),
            (NOT_TUNED, ["aspc_fql"]),
        )
        for script in scripts
        for name, case in cases.items()
    ],
)
def test_bad_input_gets_a_sentence(script, line, words, hopper, tmp_path, monkeypatch):
    (tmp_path / "text.hdf5").write_text("no data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model": "other"}')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[1, 2]")
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = shlex.split(line.format(tmp=tmp_path))
    rest = flags(fitting(script, SHORT) | {"total_steps": 20, "dataset_path": hopper, "runs_dir": tmp_path / "runs"})
    if not {"--eval", "--resume"} & set(given):
        given = rest + given  # of two values the last counts
    message = command(monkeypatch, script, *given)
    assert isinstance(message, str), f"exit status {message}"
    assert words.format(tmp=tmp_path) in message
    assert "\n" not in message and len(message) < 500
    assert not list(tmp_path.glob("runs/*")), "refused only after the run had begun"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@each_of_pair
def test_gpu_where_there_is_none(script, monkeypatch):
    assert "--device cpu" in command(monkeypatch, script, "--device", "cuda")


@each_of_pair
@pytest.mark.parametrize("device, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_main_takes_the_gpu(monkeypatch, hopper, script, device, index):
    """With PyTorch told of two GPUs: `main` sets the one that was asked for and hands it to the agent."""
    module, given = load_script(script), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", given.append, raising=False)

    def agent(args, data, low, high, device):
        given.append(torch.device(device))
        raise StopIteration

    monkeypatch.setattr(module, "Agent", agent)
    with pytest.raises(StopIteration):
        module.main(module.Args(env_id="hopper-medium-v2", dataset_path=str(hopper), device=device))
    assert given[0] == index and given[1].type == "cuda" and given[1].index in (index, None)


def test_process_ends_with_the_sentence(tmp_path):
    arguments = [sys.executable, str(ROOT / "aspc_td3bc.py"), "--dataset-path", str(tmp_path / "missing.hdf5")]
    process = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert "missing.hdf5 is not there" in process.stderr and "Traceback" not in process.stderr


# --- The saved actor --------------------------------------------------------------------------------------------------


def test_saved_actor_evaluates_to_the_result(finished, monkeypatch, capsys):
    module, returns = load_script(finished.script), []
    evaluate = module.evaluate

    def recorded(*args, **kwargs):
        returns.append(evaluate(*args, **kwargs))
        return returns[-1]

    monkeypatch.setattr(module, "evaluate", recorded)
    for run in finished.runs:
        module.main(module.Args(eval=str(run), final_eval_episodes=2))
        result = json.loads((run / "result.json").read_text())
        # The trained actors ran as one batched network, this one alone: the same up to rounding
        assert returns[-1][0] == pytest.approx(result["final_returns"], rel=1e-4)
        printed = capsys.readouterr().out
        assert f"return {returns[-1].mean():.1f} " in printed and "over 2 episodes" in printed
        assert f"normalized score {module.normalized_score('hopper-medium-v2', returns[-1]):.1f}" in printed


@finished_pair
def test_damaged_actor(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished.runs[0], tmp_path / "run")
    whole = (run / "actor.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no actor", b""):
        (run / "actor.pt").write_bytes(damaged)
        message = command(monkeypatch, finished.script, "--eval", str(run))
        assert "actor.pt" in message and "\n" not in message
    (run / "actor.pt").unlink()
    assert "actor.pt" in command(monkeypatch, finished.script, "--eval", str(run))


def opengl() -> str | None:
    """A value of MUJOCO_GL with which MuJoCo renders here."""
    probe = (
        "import gymnasium, d4rl_gymnasium; env = gymnasium.make('hopper-medium-v2', render_mode='rgb_array'); "
        "env.reset(); env.render()"
    )
    for backend in ("egl", "osmesa"):
        environment = os.environ | {"MUJOCO_GL": backend}
        process = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, env=environment, capture_output=True)
        if process.returncode == 0:
            return backend
    return None


@finished_pair
def test_video(finished, tmp_path):
    imageio = pytest.importorskip("imageio")
    pytest.importorskip("imageio_ffmpeg")
    if finished.script != SCRIPTS[0]:
        pytest.skip("the scripts share this code")
    backend = opengl()
    if not backend:
        pytest.skip("no OpenGL here")
    video = tmp_path / "hopper.mp4"
    arguments = [sys.executable, str(ROOT / f"{finished.script}.py"), "--eval", str(finished.runs[0]),
                 "--final-eval-episodes", "1", "--render-video", str(video)]  # fmt: skip
    environment = os.environ | {"MUJOCO_GL": backend, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    frames = [frame for frame in imageio.get_reader(video)]  # its length is unknown until it ends
    assert len(frames) == int(re.search(r"(\d+) frames", process.stdout)[1]) > 2
    assert frames[0].std() > 0 and (frames[0] != frames[-1]).any()


# --- Weights & Biases -------------------------------------------------------------------------------------------------


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs = []

    def init(self, **settings):
        run = types.SimpleNamespace(settings=settings, logged=[], finished=0)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda *args, **kwargs: setattr(run, "finished", run.finished + 1)
        self.runs.append(run)
        return run


@each_of_pair
def test_weights_and_biases(script, hopper, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with monkeypatch.context() as patch:
        after_steps(patch, script, 20, lambda agent: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit):
            train(script, hopper, tmp_path, SHORT | {"num_seeds": 2, "total_steps": 40, "track": True})
    paths = sorted(tmp_path.iterdir())
    assert [run.settings["id"] for run in wandb.runs] == [path.name for path in paths]  # once a seed
    resume(script, paths[0])
    assert [run.settings["id"] for run in wandb.runs] == 2 * [path.name for path in paths]
    for k, path in enumerate(paths):
        before, after = wandb.runs[k], wandb.runs[2 + k]
        assert after.settings["resume"] and after.finished == 1
        assert after.settings["config"] == json.loads((path / "config.json").read_text())
        logged = [(step, tag) for run in (before, after) for step, values in run.logged for tag in values]
        rows = rows_of(path)
        assert set(logged) == {(int(row["step"]), tag) for row in rows for tag in row if "/" in tag}
        steps = [step for run in (before, after) for step, _ in run.logged]
        assert steps == sorted(steps)
        values = {(step, tag): value for run in (before, after) for step, v in run.logged for tag, value in v.items()}
        for row in rows:
            assert values[int(row["step"]), "losses/critic"] == float(row["losses/critic"])


# --- Own data ---------------------------------------------------------------------------------------------------------


@each_whole
def test_own_task_with_other_bounds(script, tmp_path):
    dataset = write_dataset(tmp_path / "pendulum.hdf5", 3, 1, bound=2.0)
    (run,) = train(script, dataset, tmp_path / "runs", OWN)
    result = json.loads((run / "result.json").read_text())
    assert result["final_score"] is None and result["last"]["charts/normalized_score"] is None
    assert all(-2000 < value < 0 for value in result["final_returns"])
    assert "charts/normalized_score" not in events_of(run)
    saved = torch.load(run / "actor.pt", weights_only=True)
    module, low, high = load_script(script), torch.tensor([-2.0]), torch.tensor([2.0])
    if hasattr(module, "Policy"):  # it draws its actions
        actor = module.Policy(saved["actor.mean"], saved["actor.std"], low, high)
    else:
        actor = module.Actor(saved["mean"], saved["std"], low, high)
    actor.load_state_dict(saved)
    actions = actor(1000 * torch.randn(100, 3), *([torch.Generator()] if hasattr(module, "Policy") else []))
    assert 1 < actions.abs().max() <= 2
    space = gymnasium.make("Pendulum-v1").action_space
    assert (actions.min() >= space.low.item()) and (actions.max() <= space.high.item())


@each_of_pair
def test_target_noise_scales_with_the_bounds(float64, script, monkeypatch):
    """TD3's smoothing: at most half of the half range, and never beyond the bounds."""
    module = load_script(script)
    low, high = np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 4.0])
    data = random_data()
    data["actions"] = low + (high - low) * (data["actions"] + 1) / 2
    agent = module.Agent(module.Args(batch_size=4), data, low, high, "cpu")
    batch = module.Batch(torch.randn(4, S), torch.randn(4, A), torch.randn(4, S), torch.randn(4), torch.zeros(4))
    one = lambda params: {name: p[0] for name, p in params.items()}  # noqa: E731
    target_actor = one(agent.target_actor)
    target_actor["net.4.bias"] = torch.tensor([0.1, 2.0, 0.1])  # the second action is near its bound
    seen, q = [], agent.q
    monkeypatch.setattr(agent, "q", lambda critic, s, a: seen.append(a) or q(critic, s, a))
    noise = torch.tensor([100.0, 1.0, -1.0])
    agent.critic_loss(one(agent.critics), one(agent.target_critics), target_actor, batch, noise.expand(4, A))
    pi = agent.pi(target_actor, batch.next_observations)
    expected = pi + torch.tensor([0.5, 0.2, -0.2]) * torch.tensor([2.0, 1.0, 2.0])
    expected = expected.clamp(torch.as_tensor(low), torch.as_tensor(high))
    torch.testing.assert_close(seen[0], expected)
    assert (expected[:, 1] == 1).all() and (pi[:, 1] < 1).all()
