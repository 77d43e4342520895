"""What a run leaves behind, what it takes on its command line and refuses, and what it tells meanwhile."""

import importlib.machinery
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
import toy_runs
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import (
    RUN,
    SHORT,
    checkpoint_of,
    command,
    config_of,
    events_of,
    process,
    result_of,
    resume,
    rows_of,
    stopped_at,
    train,
)

from benchmark.scripts import flags
from offline_run import files, launch, log


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> list[Path]:
    """The directories of an uninterrupted run."""
    return train(tmp_path_factory.mktemp("finished"), dataset_path=None)


# --- Files of a run ---------------------------------------------------------------------------------------------------


def test_hyperparameters_are_shown_beside_the_curves(finished):
    accumulator = EventAccumulator(str(finished[0])).Reload()
    (event,) = accumulator.Tensors("hyperparameters/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert all(f"| {name} | {value} |" in text for name, value in config_of(finished[0])["args"].items())


def test_files_of_a_run(finished):
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = (shutil.which("git") and subprocess.run(git, capture_output=True, text=True).stdout.strip()) or None
    for seed, run in enumerate(finished):
        assert re.fullmatch(rf"Toy-Walk-v0__toy__{seed}__\d{{8}}-\d{{6}}-\d+", run.name)
        names = {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents.")}
        expected = {"config.json", "metrics.csv", "actor.pt", "result.json"}
        assert names == (expected | {"checkpoint.pt"} if seed == 0 else expected)  # nothing half-written, no lock

        config = config_of(run)
        assert {name: config["args"][name] for name in RUN} == RUN
        assert config["args"].keys() == toy.Args.__dataclass_fields__.keys()
        assert config["args"]["runs_dir"] == str(run.parent)
        assert [config[name] for name in ("script", "env_id", "seed", "device")] == ["toy", "Toy/Walk-v0", seed, "cpu"]
        assert config["group"] == [path.name for path in finished]
        assert config["dataset"] == {"path": "made", "sha256": "0", "source": "made here", "stand_in": False}
        assert config["versions"]["torch"] == torch.__version__
        assert config["versions"].keys() >= {"python", "numpy", "gymnasium"}
        assert config["commit"] == head

        rows = rows_of(run)
        assert [row["step"] for row in rows] == ["60", "120", "180", "200"]
        assert list(rows[0]) == [
            "step", "seconds", "charts/SPS", "charts/episodic_return", "charts/normalized_score", "episodic_return_std",
            "losses/critic", "aspc/alpha",
        ]  # fmt: skip
        assert all(np.isfinite(float(value)) for row in rows for value in row.values())

        result = result_of(run)
        assert [result[name] for name in ("env_id", "script", "seed")] == ["Toy/Walk-v0", "toy", seed]
        assert (result["steps"], result["dataset"], len(result["final_returns"])) == (200, "made here", 7)
        assert result["final_score"] == pytest.approx(100 + np.mean(result["final_returns"]))
        as_text = [{name: str(value) for name, value in result[which].items()} for which in ("last", "best")]
        assert as_text == [rows[-1], max(rows, key=lambda row: float(row["charts/episodic_return"]))]
        assert result["seconds"] == result["last"]["seconds"] > 0

        actor, final = torch.load(run / "actor.pt", weights_only=True), checkpoint_of(finished[0])["tensors"]
        assert torch.equal(actor["weight"], final["theta"][seed]) and actor["count"] == final["count"] == 10


def test_events_are_the_metrics(finished):
    for run in finished:
        events, rows = events_of(run), rows_of(run)
        assert set(events) == {column for column in rows[0] if "/" in column}
        for tag, points in events.items():
            evaluation = tag in ("charts/episodic_return", "charts/normalized_score")
            assert [point.step for point in points] == [60, *([] if evaluation else [100]), 120, 180, 200]
            values = {str(point.step): point.value for point in points}
            assert all(values[row["step"]] == pytest.approx(float(row[tag])) for row in rows)


def test_tasks_times_seeds(tmp_path):
    """Task by task; on the second task there are no reference scores."""
    tasks = ("Toy/Walk-v0", "Toy/Uneven-v0")
    runs = train(tmp_path, env_id=tasks, seed=3)
    configs = {(config_of(run)["env_id"], config_of(run)["seed"]): run for run in runs}
    assert configs.keys() == {(task, seed) for task in tasks for seed in (3, 4)}
    first = configs["Toy/Walk-v0", 3]
    group = [configs[task, seed].name for task in tasks for seed in (3, 4)]
    assert all(config_of(run)["group"] == group for run in runs) and (first / "checkpoint.pt").exists()
    final = checkpoint_of(first)["tensors"]["theta"]
    for k, key in enumerate((task, seed) for task in tasks for seed in (3, 4)):
        assert torch.equal(torch.load(configs[key] / "actor.pt", weights_only=True)["weight"], final[k])
        assert (result_of(configs[key])["final_score"] is None) == (key[0] == "Toy/Uneven-v0")
    assert "charts/normalized_score" not in events_of(configs["Toy/Uneven-v0", 3])
    alone = train(tmp_path / "alone", seed=3)
    assert result_of(alone[0])["final_returns"] == result_of(first)["final_returns"]


def test_stand_in_is_named(tmp_path, capsys):
    (tmp_path / "data.txt").write_text("a stand-in")
    (run,) = train(tmp_path / "runs", **(SHORT | {"dataset_path": str(tmp_path / "data.txt")}))
    assert run.name.endswith("__stand-in") and result_of(run)["dataset"] == "a stand-in"
    printed = capsys.readouterr().out
    assert "Toy/Walk-v0: 100 transitions (a stand-in), on cpu" in printed
    assert re.search(r"Seed 0: return -\d+\.\d \+- \d+\.\d over 7 episodes, normalized score \d+\.\d "
                     r"\(trained on stand-in data\)", printed)  # fmt: skip


def test_no_colon_in_a_directory(tmp_path):
    (run,) = train(tmp_path, **(SHORT | {"env_id": ("toy:Toy/Walk-v0",)}))
    assert run.name.startswith("toy-Toy-Walk-v0__") and result_of(run)["env_id"] == "toy:Toy/Walk-v0"


def test_planted_link_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    (tmp_path / "file.part").symlink_to(victim)
    files.save(path, b"content")
    assert victim.read_text() == "precious" and path.read_bytes() == b"content" and not path.is_symlink()


def test_no_nan_in_json(tmp_path):
    with pytest.raises(ValueError):
        files.save_json(tmp_path / "x.json", {"score": float("nan")})
    with pytest.raises(SystemExit, match="--alpha-init must be a finite number"):
        train(tmp_path / "runs", alpha_init=float("inf"))
    assert not list(tmp_path.iterdir())


def test_rows_without_a_clock(tmp_path, monkeypatch):
    """A clock that stands still divides nothing by zero."""
    monkeypatch.setattr("time.perf_counter", lambda: 1.0)
    (run,) = train(tmp_path, **SHORT)
    assert all(np.isfinite(float(row["charts/SPS"])) for row in rows_of(run))


# --- The command line -------------------------------------------------------------------------------------------------


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    line = flags(SHORT | {"total_steps": "6e1", "eval_interval": "2_0", "seed": 2**64 - 1, "runs_dir": "~/runs"})
    assert command(monkeypatch, *line) is None
    (run,) = (tmp_path / "runs").iterdir()
    assert config_of(run)["args"]["total_steps"] == 60 and config_of(run)["seed"] == 2**64 - 1
    assert command(monkeypatch, "--total-steps", "1.5") == 2  # tyro's own message


def test_help_in_sections_and_in_ascii():
    ascii_terminal = toy_runs.ENVIRONMENT | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    output, errors = process("--help", env=ascii_terminal).communicate()
    assert not errors and output.isascii()
    sections = re.findall(r"(\w+) options\b", output)
    assert sections == ["method", "evaluation", "files", "device", "tracking"]
    method = output[output.index("method options") : output.index("evaluation options")]
    assert "the task, and a ? that ASCII lacks" in method and "--total-steps INT" in method
    assert "--runs-dir" not in method and output.count("--runs-dir") == 1
    assert "the folder that receives one run directory" in output and "A script in small" in output


BAD_INPUT = {
    "missing dataset": ("--dataset-path {tmp}/missing", "missing is not there"),
    "no seeds": ("--num-seeds 0", "--num-seeds must be at least 1"),
    "negative seed": ("--seed -1", "--seed must be at least 0"),
    "large seed": ("--seed 18446744073709551616", "--seed must be below 2^64"),
    "no steps": ("--total-steps 0", "--total-steps must be at least 1"),
    "no evaluation": ("--eval-episodes 0", "--eval-episodes must be at least 1"),
    "negative workers": ("--eval-workers -1", "--eval-workers must be at least 0"),
    "no episode": ("--max-episode-steps 0", "--max-episode-steps must be at least 1"),
    "a task twice": ("--env-id Toy/Walk-v0 Toy/Walk-v0", "--env-id"),
    "no task": ("--env-id", "--env-id"),
    "the method's": ("--alpha-init -1", "--alpha-init must be positive"),
    "the method's, no number": ("--alpha-init nan", "--alpha-init must be positive"),
    "unknown device": ("--device gpu", "--device"),
    "device misspelt": ("--device cpux", "--device"),
    "no environment": ("--env-id Toy/Wlak-v0", "no environment Toy/Wlak-v0"),
    "no module of an environment": ("--env-id toys:Toy/Walk-v0", "no environment toys:Toy/Walk-v0"),
    "no step limit": ("--env-id Toy/Endless-v0", "Toy/Endless-v0 has no step limit"),
    "evaluation with a training argument": ("--eval {tmp} --batch-size 9", "--eval takes this from the run itself"),
    "resumption with another": ("--resume {tmp} --compile on", "drop --compile"),
    "video without a run": ("--render-video film.mp4", "--eval"),
    "wandb missing": ("--track", "pip install wandb"),
    "evaluation of no run": ("--eval {tmp}", "{tmp} is not a run directory"),
    "evaluation of another project's folder": ("--eval {tmp}/other", "{tmp}/other"),
    "resumption of no run": ("--resume {tmp}", "is not a run directory"),
    "resumption of nothing": ("--resume {tmp}/nothing", "is not a run directory"),
    "resumption of another project's folder": ("--resume {tmp}/other", "is not a run directory"),
    "resumption of a list": ("--resume {tmp}/list", "is not a run directory"),
    "runs_dir is a file": ("--runs-dir {tmp}/text", "text"),
}


@pytest.mark.parametrize(("line", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_gets_a_sentence(line, words, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no folder")
    for name, content in {"other": '{"model": "other"}', "list": "[1, 2]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = shlex.split(line.format(tmp=tmp_path))
    if not {"--eval", "--resume"} & set(given):
        given = flags(SHORT | {"runs_dir": tmp_path / "runs"}) + given  # of two values the last counts
    message = command(monkeypatch, *given)
    assert isinstance(message, str), f"exit status {message}"
    assert words.format(tmp=tmp_path) in message
    assert "\n" not in message and len(message) < 500
    assert not list(tmp_path.glob("runs/*")), "refused only after the run had begun"


def test_compiler_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="--compile on needs a C"):
        train(tmp_path, compile="on")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_where_there_is_none(monkeypatch):
    assert "--device cpu" in command(monkeypatch, "--device", "cuda")


@pytest.mark.parametrize("device, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_run_takes_the_gpu(monkeypatch, device, index):
    """With PyTorch told of two GPUs: the run sets the one that was asked for, and hands it to the agent."""
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", given.append, raising=False)

    def agent(args, device):
        given.append(torch.device(device))
        raise StopIteration

    monkeypatch.setattr(toy, "Agent", agent)
    with pytest.raises(StopIteration):
        toy.main(toy.Args(device=device))
    assert given[0] == index and given[1].type == "cuda" and given[1].index in (index, None)


TOO_LITTLE = (
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),  # on Windows
)


@pytest.mark.parametrize(
    "fill", [lambda: torch.empty(10**16), lambda: np.empty(10**16), *(lambda e=e: raised(e) for e in TOO_LITTLE)]
)
def test_too_little_memory_gets_a_sentence(fill, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit, match=r"^Out of memory \([^\n]+\): .* --resume RUN_DIR\.$"):
        launch(lambda args: fill(), toy.Args, None)


def raised(error):
    raise error


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(RuntimeError, match="shapes"):
        launch(lambda args: (_ for _ in ()).throw(RuntimeError("shapes")), toy.Args, None)


def test_process_ends_with_the_sentence(tmp_path):
    running = process("--dataset-path", tmp_path / "missing", cwd=tmp_path)
    output, errors = running.communicate()
    assert running.returncode == 1 and errors == f"{tmp_path / 'missing'} is not there.\n"


# --- What a run tells -------------------------------------------------------------------------------------------------


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    train(tmp_path, env_id=("Toy/Walk-v0",))
    output, errors = capsys.readouterr()
    lines = [line for line in output.splitlines() if line.startswith("Step ")]
    form = r"Step (\d+) of 200: score \[\d+\.\d \d+\.\d\], alpha \[2\.\d\d 2\.\d\d\], 0:00:\d\d to go"
    assert [re.fullmatch(form, line)[1] for line in lines] == ["60", "120", "180", "200"]
    assert not errors


def test_returns_where_there_are_no_scores(tmp_path, capsys):
    train(tmp_path, env_id=("Toy/Uneven-v0",))
    output = capsys.readouterr().out
    assert "nan" not in output and re.search(r"Step 60 of 200: return \[-\S+\.\d -\S+\.\d\], alpha", output)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(log.tqdm, "monitor_interval", 0)
    train(tmp_path)
    assert "Step " not in capsys.readouterr().out
    assert re.search(r"200/200 .*score \[\S+\.\d \S+\.\d\], alpha \[", terminal.getvalue())


def test_message_has_a_line_of_its_own(tmp_path, monkeypatch):
    """Also beside a bar that the script's own error leaves open."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    toy_runs.after_steps(monkeypatch, 40, lambda agent: agent.theta.fill_(torch.nan))
    with pytest.raises(SystemExit, match="diverged"):
        train(tmp_path)
    assert terminal.getvalue().endswith("\n")

    def fail(args):
        log.Progress(0, 10).bar.update(3)
        raise toy.DatasetError("Alas.")

    terminal.truncate(0)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit, match="Alas"):
        launch(fail, toy.Args, None, toy.DatasetError)
    assert terminal.getvalue().endswith("\n")


def test_reader_that_leaves_does_not_end_training(tmp_path):
    """Of either stream, and from the very first line on."""
    reader, writer = os.pipe()
    os.close(reader)
    running = process(*flags(RUN | {"runs_dir": tmp_path}), stdout=writer, stderr=writer)
    os.close(writer)
    assert running.wait() == 0
    assert all((run / "result.json").exists() for run in tmp_path.iterdir())


def test_process_without_streams(tmp_path):
    line = shlex.join([sys.executable, str(toy_runs.SCRIPT), *flags(SHORT | {"runs_dir": tmp_path})])
    assert subprocess.run(f"{line} >&- 2>&-", shell=True, env=toy_runs.ENVIRONMENT).returncode == 0
    (run,) = tmp_path.iterdir()
    assert (run / "result.json").exists()


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


@pytest.mark.parametrize("workers", [0, 1])
def test_weights_and_biases(workers, tmp_path, monkeypatch):
    """With a worker the scalars of later steps wait for the evaluation's: steps stay in order."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("offline_run.run.LOG_INTERVAL", 20)
    tracking = {"track": True, "track_project": "mine", "track_entity": "us", "track_group": "first"}
    paths = stopped_at(100, monkeypatch, tmp_path, eval_workers=workers, **tracking)
    assert [run.settings["id"] for run in wandb.runs] == [path.name for path in paths]  # once a learner
    resume(paths[0])
    assert [run.settings["id"] for run in wandb.runs] == 2 * [path.name for path in paths]
    for k, path in enumerate(paths):
        before, after = wandb.runs[k], wandb.runs[2 + k]
        assert after.settings["resume"] and before.finished == after.finished == 1
        assert after.settings["config"] == config_of(path)
        assert [after.settings[name] for name in ("project", "entity", "group")] == ["mine", "us", "first"]
        logged = [(step, tag) for run in (before, after) for step, values in run.logged for tag in values]
        rows, due = rows_of(path), set(range(20, 201, 20))
        charts = {(int(row["step"]), tag) for row in rows for tag in row if "/" in tag}
        assert set(logged) == charts | {(s, tag) for s in due for tag in ("losses/critic", "aspc/alpha", "charts/SPS")}
        steps = [step for run in (before, after) for step, _ in run.logged]
        assert steps == sorted(steps)
        values = {(step, tag): value for run in (before, after) for step, v in run.logged for tag, value in v.items()}
        for row in rows:
            assert values[int(row["step"]), "losses/critic"] == float(row["losses/critic"])


# --- The package ------------------------------------------------------------------------------------------------------


def test_it_knows_neither_scripts_nor_tasks():
    modules = {path.name: path.read_text() for path in (ROOT / "offline_run").glob("*.py")}
    for name, text in modules.items():
        imports = re.findall(r"^ *(?:from|import) +(\w+)", text, re.MULTILINE)
        assert not {"d4rl_gymnasium", "benchmark", "baselines", "mujoco"} & set(imports), name
        assert not any(module.startswith("aspc") for module in imports), name
        assert text.startswith('"""'), name
