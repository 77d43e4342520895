"""benchmark.run: what is planned, and what becomes of runs that finish, fail, are killed or are stopped."""

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import filelock
import numpy as np
import pytest
import tyro
from conftest import ROOT, SCRIPTS, load_script, wait_for
from test_scripts import write_dataset

import d4rl_gymnasium as d4rl
import offline_run.args
import offline_run.log
from benchmark import estimates, run
from benchmark.run import SUITES, TASK_SETS, Args
from benchmark.scripts import command_line, tuned_arguments
from offline_run import files

# A script with a run's files, lock and signals and no network: it counts to total_steps, in 20 ms each.
TRAINER = '''
import json, os, signal, sys, time, zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
import filelock, tyro

@dataclass
class Args:
    env_id: tuple[str, ...] = ()
    seed: int = 0
    num_seeds: int = 1
    total_steps: int = 10
    alpha: float = 2.5
    fail_at: int | None = None
    deaf: int = 0
    runs_dir: str = "runs"
    resume: str | None = None

args, step = tyro.cli(Args), 0
if args.resume:
    path = Path(args.resume)
    config = json.loads((path / "config.json").read_text())
    step = int(zipfile.ZipFile(path / "checkpoint.pt").read("step"))
    args, paths = Args(**config["args"]), [path.parent / name for name in config["group"]]
else:
    learners = [(env_id, args.seed + k) for env_id in args.env_id for k in range(args.num_seeds)]
    paths = [Path(args.runs_dir) / f"{env_id}__trainer__{seed}__{time.time_ns()}" for env_id, seed in learners]
    for path, (env_id, seed) in zip(paths, learners):
        path.mkdir()
        config = {"script": "trainer", "env_id": env_id, "seed": seed, "args": asdict(args)}
        config |= {"group": [path.name for path in paths], "dataset": {"source": "D4RL"}}
        (path / "config.json").write_text(json.dumps(config))
lock = filelock.FileLock(paths[0] / ".lock", timeout=0)
lock.acquire()
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1) if not args.deaf else None)
print(f"at step {step} in process {os.getpid()}", flush=True)
while step < args.total_steps and not stop:
    if step == args.fail_at:
        sys.exit("the last words of a run")
    time.sleep(0.02)
    step += 1
    scores = " ".join(f"{step + k}." for k in range(len(paths)))
    print(f"Step {step:,} of {args.total_steps:,}: score [{scores}], alpha [2.5 2.5], 0:00:01 to go", flush=True)
    with zipfile.ZipFile(paths[0] / "part", "w") as file:
        file.writestr("step", str(step))
    (paths[0] / "part").rename(paths[0] / "checkpoint.pt")
for path in paths if not stop else []:
    (path / "result.json").write_text(json.dumps({"last": {"aspc/alpha": 3.0 + args.seed}}))
sys.exit(143 if stop else 0)
'''


@pytest.fixture
def trainer(tmp_path) -> str:
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "runs").mkdir()
    return str(tmp_path / "trainer")


def plan(folder: Path, **arguments) -> list[run.Job]:
    jobs, _ = run.make_plan(Args(runs_dir=folder / "runs", **arguments))
    return jobs


def dry_run(folder: Path, capsys, **arguments) -> str:
    """What benchmark.run prints of a plan."""
    run.main(Args(runs_dir=folder / "runs", dry_run=True, **arguments))
    return capsys.readouterr().out


def states(jobs: list[run.Job]) -> dict[str, int]:
    return dict(Counter(job.state for job in jobs))


def start(folder: Path, line: str) -> subprocess.Popen:
    """benchmark.run as a user starts it, its output in a pipe."""
    command = [sys.executable, "-m", "benchmark.run", "--runs-dir", str(folder / "runs"), *shlex.split(line)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Its exit status and what it printed."""
    try:
        output, _ = process.communicate(timeout=300)
        return process.returncode, output
    finally:
        process.kill()


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("runs/logs/*.log")))


def write_run(
    folder: Path, script: str, seeds: list[int], results: list[dict], checkpoint: bool = True, source: str = "D4RL",
    **arguments,
):  # fmt: skip
    """The directories of a run with as many results as there are."""
    values = {name: default for name, (_, default) in run.script_arguments(script).items()} | arguments
    values |= {"seed": seeds[0], "num_seeds": len(seeds), "runs_dir": "elsewhere"}
    if isinstance(values["env_id"], str):
        values["env_id"] = (values["env_id"],)
    learners = [(task, seed) for task in values["env_id"] for seed in seeds]
    names = [f"{task}__{Path(script).name}__{seed}__{time.time_ns()}" for task, seed in learners]
    for k, (name, (task, seed)) in enumerate(zip(names, learners, strict=True)):
        path = folder / "runs" / name
        path.mkdir(parents=True)
        config = {"script": Path(script).name, "env_id": task, "seed": seed, "args": values, "group": names}
        config["dataset"] = {"source": source}
        (path / "config.json").write_text(json.dumps(config))
        if k < len(results):
            (path / "result.json").write_text(json.dumps({"last": {}} | results[k]))
    if checkpoint:
        with zipfile.ZipFile(folder / "runs" / names[0] / "checkpoint.pt", "w") as file:
            file.writestr("data.pkl", bytes(100))
        (folder / "runs" / names[0] / "metrics.csv").write_text("step,seconds\n5000,1\n10000,2\n")
    return folder / "runs" / names[0]


# --- The plan ---------------------------------------------------------------------------------------------------------


def test_sets_of_tasks():
    assert {name: len(tasks) for name, tasks in TASK_SETS.items()} == {
        "paper": 39, "d4rl": 39, "locomotion": 18, "locomotion-9": 9, "table3": 9, "maze2d": 3, "antmaze": 6,
        "adroit": 12, "ogbench": 10, "ogbench-large": 5, "ogbench-giant": 5,
    }  # fmt: skip
    domains = ("locomotion", "maze2d", "antmaze", "adroit")
    assert [task for name in domains for task in TASK_SETS[name]] == TASK_SETS["paper"]
    assert set(TASK_SETS["table3"]) < set(TASK_SETS["locomotion"])


@pytest.mark.parametrize("suite", SUITES)
def test_suites(suite, tmp_path, capsys):
    sets, variants = SUITES[suite]
    for script, own in variants:
        assert own.keys() <= run.script_arguments(script).keys()
    jobs = plan(tmp_path, suite=suite, seeds="0-3")
    assert len(jobs) == 4 * len(variants) * sum(len(TASK_SETS.get(name, [name])) for name in sets)
    assert {"table2": {"new": 312, "waits": 312}}.get(suite, {"new": len(jobs)}) == states(jobs)
    printed = dry_run(tmp_path, capsys, suite=suite, steps_per_second=100.0, jobs=2)
    assert len(re.findall(r"^(?:new|waits) +\S*python", printed, re.M)) == len(jobs)
    steps = sum(job.total for job in jobs)
    assert f"{steps / 360_000:.1f} hours one after another, {steps / 720_000:.1f} with 2 at a time" in printed
    assert not (tmp_path / "runs").exists()


def test_the_paper_is_its_tables_once_each(tmp_path, capsys):
    """Tables 1, 3 and 4; IQL on Table 3's nine tasks is in Table 1, too."""
    count = lambda suite: len(plan(tmp_path, suite=suite))  # noqa: E731
    assert count("table4") == count("table4-large") + count("table4-giant")
    assert count("paper") == count("table1") + count("table3") + count("table4") - 4 * 9
    some = plan(tmp_path, suite="paper", tasks=("hopper-medium-v2", "ogbench-giant"), seeds="0")
    assert {job.command[3] for job in some} == {"hopper-medium-v2", *TASK_SETS["ogbench-giant"]}
    giant = [shlex.join(job.command) for job in some if "rebrac" in job.script and "giant" in job.label]
    assert all("--discount 0.995" in line for line in giant)
    with pytest.raises(SystemExit, match="has none of these tasks"):
        plan(tmp_path, suite="table4", tasks=("maze2d",))
    printed = dry_run(tmp_path, capsys, suite="paper")
    assert len(re.findall(r"^new +\S*python", printed, re.M)) == count("paper") and "hours" in printed


def test_everything_is_every_suite_once(tmp_path):
    """What two suites share is trained once, also where the one names what is the other's default."""
    jobs = plan(tmp_path, suite="everything", tasks=("maze2d-umaze-v1",), seeds="0")
    lines = [shlex.join(job.command) for job in jobs if job.script == "aspc_td3bc"]
    # as it is; four of alpha_lr, three of l_q_coef and l_bc_coef, one without the robust critic
    assert len(lines) == len(set(lines)) == 1 + 4 + 3 + 1
    everything = plan(tmp_path, suite="everything", seeds="0")
    commands = {shlex.join(job.command) for job in everything}
    assert len(commands) == len(everything)
    for suite in SUITES.keys() - {"smoke", "table2"}:  # each is in it, but for arguments that are at their defaults
        known = {(job.script, job.command[3]) for job in everything}
        assert {(job.script, job.command[3]) for job in plan(tmp_path, suite=suite, seeds="0")} <= known


# --- What it takes ----------------------------------------------------------------------------------------------------


def speed_record(path: Path, device: str, **ms: float) -> None:
    """ms: by "script mode" for one learner at batch 256, or by the whole variant."""
    name = lambda variant: variant if "," in variant else f"{variant}, 1 x 256"  # noqa: E731
    rows = [{"variant": f"{name(variant)}, width 256", "ms_per_step": value} for variant, value in ms.items()]
    path.write_text(json.dumps({"args": {"device": device}, "rows": rows}))


def test_speeds_by_number_of_learners_and_batch_size(tmp_path):
    growth = {"aspc_td3bc graph, 4 x 256": 2.0, "aspc_td3bc graph, 16 x 256": 5.0, "aspc_td3bc graph, 1 x 1024": 3.0}
    others = {"baselines/iql graph": 10.0, "aspc_fql graph, 4 x 256": 8.0, "baselines/td3bc graph, 1 x 64": 1.0}
    speed_record(tmp_path / "speed-gpu.json", "cuda:0", **{"aspc_td3bc graph": 1.0} | growth | others)
    speed_record(tmp_path / "speed-cpu.json", "cpu", **{"aspc_td3bc eager": 99.0, "baselines/wpc eager": 1.0})
    (tmp_path / "speed-bad.json").write_text('{"args": {"device": "cuda"}, "rows": [{"variant": 1}]}')
    (tmp_path / "speed-worse.json").write_text("[")
    speeds, complaints = estimates.read_speeds(tmp_path, "cuda", compiled=False)
    assert len(complaints) == 2 and all("does not count" in text for text in complaints)
    ms = lambda *of: estimates.milliseconds(speeds, *of)  # noqa: E731
    measured = [ms("aspc_td3bc", n, 256) for n in (1, 4, 10, 16, 32)]
    assert measured == [1, 2, 3.5, 5, 10]  # linear between the measured, in proportion beyond them
    assert [ms("aspc_td3bc", n, 1024) for n in (1, 4)] == [3, 6]
    assert ms("aspc_td3bc", 1, 640) == 2 and ms("aspc_td3bc", 1, 2048) == 6 and ms("aspc_td3bc", 1, 128) == 0.5
    assert [ms("baselines/iql", n, 256) for n in (1, 4, 10)] == [10, 20, 35]  # as ASPC grows
    assert [ms("aspc_fql", n, 256) for n in (1, 4, 16)] == [4, 8, 20]
    assert ms("baselines/iql", 4, 512) == 40
    assert ms("aspc_iql", 1, 256) == 10 and ms("baselines/fql", 4, 256) == 8  # its sibling's
    assert ms("benchmark/ablations/l_bc_form1", 10, 256) == 3.5
    assert ms("baselines/wpc", 1, 256) is None
    assert ms("baselines/td3bc", 1, 256) == 1  # measured at another batch alone: its sibling's again
    compiled, _ = estimates.read_speeds(tmp_path, "cuda", compiled=True)
    assert compiled == speeds  # what was measured in one mode alone counts for the other


def test_estimate_from_recorded_speeds(tmp_path, capsys, monkeypatch):
    """What was not measured is named, not guessed; without a GPU's speeds a GPU's hours are not told."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)

    def job(script: str, seeds: int, done: int, total: int, part: str) -> run.Job:
        return run.Job("new", "", [], tmp_path, ["a", "b"][:seeds], [0], done, total, script, 256, part)

    jobs = [job("aspc_td3bc", 2, 0, 1_800_000, "table1"), job("baselines/wpc", 1, 900_000, 1_000_000, "table4-giant")]
    speed_record(folder / "speed-a.json", "cpu", **{"aspc_td3bc eager": 10.0, "aspc_td3bc compiled": 5.0})
    speed_record(folder / "speed-b.json", "cpu", **{"aspc_td3bc eager": 20.0, "aspc_td3bc plain": 1.0})
    estimate = lambda *of: estimates.print_estimate(jobs, folder, *of) or capsys.readouterr().out  # noqa: E731
    printed = estimate("cpu", "auto", 1)
    assert "about 10.0 CPU core hours, without" in printed  # 1.8 million x 2 x 10 ms
    assert "no speed is recorded: baselines/wpc" in printed and "of these" not in printed
    assert "about 5.0 CPU core hours, 2.5 on 2 at a time" in estimate("cpu", "on", 2)
    assert "10.0 CPU core hours" in estimate("cuda", "auto", 1) and "no GPU was measured" in estimate("cuda", "auto", 1)
    gpu = {"aspc_td3bc graph": 2.0, "aspc_td3bc compiled graph": 1.0, "aspc_td3bc compiled graph, 2 x 256": 1.2}
    speed_record(folder / "speed-gpu.json", "cuda", **gpu | {"baselines/wpc graph": 36.0})
    printed = estimate("cuda", "auto", 1)
    assert "about 1.6 GPU hours" in printed and "no GPU" not in printed and "not counted" not in printed
    assert "1 x 2 learners, batch 256" in printed and "of these table1 0.6, table4 1.0" in printed
    assert "about 3.0 GPU hours" in estimate("cuda", "off", 1)


def test_a_gpus_plan_is_priced_as_it_is_grouped(tmp_path, monkeypatch, capsys):
    """With --tuned ReBRAC's batch on locomotion is 1024."""
    monkeypatch.setattr(estimates, "read_speeds", lambda *_: ({"baselines/rebrac": {(1, 256): 1.0}}, []))
    wanted = {"scripts": ("baselines/rebrac",), "tasks": ("hopper-expert-v2",), "seeds": "0"}
    printed = dry_run(tmp_path, capsys, **wanted, per_gpu=1, set=("tuned=true", "total_steps=900000"))
    assert "batch 1024" in printed and "about 1.0 GPU hours" in printed


@pytest.mark.parametrize("script", ["aspc_td3bc", "baselines/td3bc"])
def test_a_command_says_what_the_plan_compares(script, tmp_path):
    """The script's own parser reads from the command what the plan looks for in config.json."""
    module = load_script(script)
    settings = ("total-steps=5e3", "robust_critic=false", "compile=on", "matmul_precision=medium", "eval_workers=2")
    wanted = {"scripts": (script,), "tasks": ("maze2d",), "seeds": "2-4", "learners_per_run": 9, "set": settings}
    given = {"total_steps": 5000, "robust_critic": False, "compile": "on", "matmul_precision": "medium"}
    given |= {"eval_workers": 2, "env_id": tuple(TASK_SETS["maze2d"]), "stand_in": False}
    (job,) = plan(tmp_path, **wanted)
    args = offline_run.args.parse(module.Args, "", job.command[2:])
    assert asdict(args) == asdict(module.Args(**given, seed=2, num_seeds=3, runs_dir=str(tmp_path / "runs")))
    write_run(tmp_path, script, [2, 3, 4], [], **given)
    assert states(plan(tmp_path, **wanted)) == {"resume": 1}


def test_arguments_are_those_of_the_class_and_its_bases():
    for script in SCRIPTS:
        known = run.script_arguments(script)
        assert {name: default for name, (_, default) in known.items()} == asdict(load_script(script).Args()), script
    for path in ROOT.glob("benchmark/ablations/[!_]*.py"):
        if path.stem != "common":
            script = str(path.relative_to(ROOT).with_suffix(""))
            assert run.script_arguments(script) == run.script_arguments("aspc_td3bc")


def test_stand_ins_are_refused_unless_asked_for(tmp_path):
    """A run on one does not count either; with --stand-in it does, and so does any run on D4RL's file."""
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("hopper-medium-v2", "maze2d-umaze-v1"), "seeds": "0-1"}
    hopper, maze = (d4rl.TASKS[task] for task in wanted["tasks"])
    write_run(tmp_path, "aspc_td3bc", [0], [{}], source=hopper.collected_source, env_id=hopper.env_id)
    write_run(tmp_path, "aspc_td3bc", [1], [{}], env_id=hopper.env_id)
    write_run(tmp_path, "aspc_td3bc", [0, 1], [{}, {}], source=maze.collected_source, env_id=maze.env_id)
    *finished, new = plan(tmp_path, **wanted)
    assert [job.state for job in finished] == ["finished"] * 3 and new.state == "new"
    assert new.label == "hopper-medium-v2__aspc_td3bc__0" and "--no-stand-in" in new.command
    assert states(plan(tmp_path, **wanted, stand_in=True)) == {"finished": 4}
    (new,) = plan(tmp_path, **(wanted | {"tasks": ("hopper-expert-v2",), "seeds": "0"}), stand_in=True)
    assert "--stand-in" in new.command and "--no-stand-in" not in new.command


def test_groups_of_seeds(tmp_path):
    jobs = plan(tmp_path, scripts=("aspc_td3bc.py",), tasks=("maze2d",), seeds="0-4,7", learners_per_run=4)
    assert [job.seeds for job in jobs] == 3 * [[0, 1, 2, 3]] + [[4], [7]]  # a little of everything first
    assert len({job.log for job in jobs}) == 5
    alone = plan(tmp_path, scripts=("aspc_td3bc.py",), tasks=("maze2d",), seeds="0-4")
    assert [len(job.learners) for job in alone] == [1] * 15  # a CPU gains nothing by more


def sizes(jobs: list[run.Job]) -> list[tuple[str, int, int]]:
    """(first task's robot, tasks, seeds) of each job"""
    return sorted((job.tasks[0].split("-")[0], len(job.tasks), len(job.seeds)) for job in jobs)


def test_groups_of_tasks(tmp_path):
    """On a GPU tasks of one robot train together, with all their seeds."""
    aspc = {"scripts": ("aspc_td3bc",), "per_gpu": 1}
    assert sizes(plan(tmp_path, suite="mazes", per_gpu=1)).count(("maze2d", 3, 4)) == 6  # one job a script
    jobs = plan(tmp_path, **aspc, tasks=("paper",))
    assert sizes(jobs) == sorted(
        [(robot, 3, 4) for robot in ("halfcheetah", "hopper", "walker2d", "antmaze") for _ in range(2)]
        + [(robot, 3, 4) for robot in ("maze2d", "pen", "door", "hammer", "relocate")]
    )  # 6 x 4 are more than 16: two halves
    assert Counter(learner for job in jobs for learner in job.learners) == Counter(
        (task, seed) for task in TASK_SETS["paper"] for seed in range(4)
    )
    assert jobs[0].label == "halfcheetah-random-v2+2__aspc_td3bc__0-3"
    everything = plan(tmp_path, **aspc, tasks=("paper",), learners_per_run=100)
    assert sizes(everything)[1:3] == [("door", 3, 4), ("halfcheetah", 6, 4)] and len(everything) == 9
    (tmp_path / "maze2d-umaze-v1.hdf5").touch()
    own_file = plan(tmp_path, **aspc, tasks=("maze2d",), dataset_dir=tmp_path)
    assert sizes(own_file) == [("maze2d", 1, 4), ("maze2d", 2, 4)]
    assert len(plan(tmp_path, **aspc, tasks=("maze2d",), set=("dataset_path=x",))) == 3


def test_tuned_tasks_train_together_where_their_settings_are_the_same(tmp_path):
    wanted = {"tasks": ("adroit", "maze2d"), "seeds": "0-1", "per_gpu": 1, "set": ("tuned=true",)}
    jobs = plan(tmp_path, **wanted, scripts=("baselines/iql",))
    assert sizes(jobs) == [(robot, 3, 2) for robot in ("door", "hammer", "maze2d", "pen", "relocate")]
    jobs = plan(tmp_path, **wanted, scripts=("baselines/rebrac",))
    assert ("maze2d", 3, 2) in sizes(jobs) and ("pen", 1, 2) in sizes(jobs)
    module = load_script("baselines/rebrac")
    for job in jobs:
        module.tuned(module.Args(env_id=tuple(job.tasks), tuned=True), module.TUNED)  # it would exit


def test_a_group_is_resumed_as_a_group_and_each_of_its_learners_counts_when_it_has_finished(tmp_path):
    mazes = {"env_id": tuple(TASK_SETS["maze2d"]), "total_steps": 20_000}
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("maze2d",), "per_gpu": 1, "set": ("total_steps=20000",)}
    head = write_run(tmp_path, "aspc_td3bc", [0, 1], [{}, {}], **mazes)  # killed between its results
    found = lambda jobs: [(job.state, len(job.tasks), job.seeds) for job in jobs]  # noqa: E731
    assert found(plan(tmp_path, **wanted)) == [("finished", 1, [0]), ("finished", 1, [1]), ("resume", 3, [0, 1]),
                                               ("new", 3, [2, 3])]  # fmt: skip
    resumed = plan(tmp_path, **wanted)[2]
    assert resumed.command[2:4] == ["--resume", str(head)] and (resumed.done, resumed.total) == (10_000, 20_000)
    # the same learners trained elsewhere: nothing is left of the group
    write_run(tmp_path, "aspc_td3bc", [0, 1], [{}] * 4, **mazes | {"env_id": mazes["env_id"][1:]})
    finished = [("finished", 1, [seed]) for seed in (0, 0, 0, 1, 1, 1)]
    assert found(plan(tmp_path, **wanted)) == [*finished, ("new", 3, [2, 3])]
    # a moved group keeps its learners apart by their config.json
    head.rename(head.with_name("renamed"))
    assert found(plan(tmp_path, **wanted))[-1] == ("new", 3, [2, 3])


def test_a_group_started_by_hand_is_resumed_once(tmp_path):
    """Also where this program would not have made it: halfcheetah and walker2d have the same dimensions."""
    tasks = ("halfcheetah-expert-v2", "walker2d-expert-v2")
    write_run(tmp_path, "aspc_td3bc", [0], [], env_id=tasks)
    jobs = plan(tmp_path, scripts=("aspc_td3bc",), tasks=tasks, seeds="0-1", per_gpu=1)
    assert [(job.state, job.tasks) for job in jobs] == [
        ("resume", list(tasks)), ("new", [tasks[0]]), ("new", [tasks[1]]),
    ]  # fmt: skip


def test_runs_of_one_task_each_count_as_well(tmp_path):
    """Those of scripts that had no tasks side by side; their checkpoints are of no use any more."""
    for seed, results in ((0, [{}]), (1, [])):
        path = write_run(tmp_path, "aspc_td3bc", [seed], results, env_id="maze2d-umaze-v1")
        config = json.loads((path / "config.json").read_text())
        config["args"] |= {"env_id": config.pop("env_id"), "compile": True}
        (path / "config.json").write_text(json.dumps(config))
    jobs = plan(tmp_path, scripts=("aspc_td3bc",), tasks=("maze2d-umaze-v1",), seeds="0-1")
    assert [(job.state, job.seeds) for job in jobs] == [("finished", [0]), ("new", [1])]


def test_a_file_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Own-v0.hdf5").touch()
    write_run(tmp_path, "aspc_td3bc", [0], [{}], env_id="Own-v0", dataset_path=str(tmp_path / "Own-v0.hdf5"))
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("Own-v0",), "seeds": "0"}
    assert states(plan(tmp_path, **wanted, dataset_dir=Path("."))) == {"finished": 1}
    assert states(plan(tmp_path, **wanted, set=("dataset_path=Own-v0.hdf5",))) == {"finished": 1}


def test_new_groups_are_of_what_is_left(tmp_path):
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("maze2d",), "per_gpu": 1}
    write_run(tmp_path, "aspc_td3bc", [1], [{}], env_id="maze2d-umaze-v1")
    head = write_run(tmp_path, "aspc_td3bc", [2, 3], [], env_id="maze2d-large-v1")
    next(head.parent.glob("maze2d-large-v1__aspc_td3bc__3__*")).rename(tmp_path / "elsewhere")  # so it cannot go on
    jobs = [job for job in plan(tmp_path, **wanted) if job.state == "new"]
    groups = [(job.tasks[0], len(job.tasks), job.seeds) for job in jobs]
    assert groups == [("maze2d-umaze-v1", 1, [0]), ("maze2d-medium-v1", 2, [0, 1, 2, 3]),
                      ("maze2d-umaze-v1", 1, [2, 3])]  # fmt: skip


def damage(path: Path, content: bytes | None = None) -> None:
    """Turn a byte in the middle, or write this."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(bytes(data) if content is None else content)


def test_a_damaged_run_is_named_and_stops_nothing(tmp_path, capsys):
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("hopper-medium-v2",), "seeds": "0-6"}
    heads = [write_run(tmp_path, "aspc_td3bc", [k], [{}] * (k == 1), env_id="hopper-medium-v2") for k in range(6)]
    damage(heads[0] / "checkpoint.pt")
    damage(heads[1] / "result.json", b'{"last": 3}')
    damage(heads[2] / "config.json", b"{")
    config = json.loads((heads[3] / "config.json").read_text())
    (heads[3] / "config.json").write_text(json.dumps(config | {"group": ["../elsewhere"], "seed": 9}))
    (heads[4] / "metrics.csv").write_bytes(b"\0\xff\n1")
    damage(heads[5] / "config.json", b"[" * 100_000)
    jobs = plan(tmp_path, **wanted)
    assert [(job.state, job.seeds) for job in jobs] == [("resume", [4])] + [("new", [k]) for k in (0, 1, 2, 3, 5, 6)]
    printed = dry_run(tmp_path, capsys, **wanted)
    assert [str(head) in printed.partition("resume ")[0] for head in heads] == [True] * 4 + [False, True]
    assert len(re.findall("does not count: it is damaged, or no run .*--set-aside FOLDER", printed)) == 5


@pytest.mark.parametrize("name", ["../x", "..", "a/b", "a\\b", "", 3])
def test_names_in_a_group_stay_in_their_folder(name, tmp_path):
    head = write_run(tmp_path, "aspc_td3bc", [0, 1], [], env_id="maze2d-umaze-v1")
    config = json.loads((head / "config.json").read_text())
    config["group"][1] = name
    (head / "config.json").write_text(json.dumps(config))
    jobs, damaged = run.make_plan(Args(scripts=("aspc_td3bc",), tasks=("maze2d-umaze-v1",), runs_dir=tmp_path / "runs"))
    assert list(damaged) == [head] and states(jobs) == {"new": 4}


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path, capsys):
    """Whoever started it: by hand, or a benchmark.run that was killed."""
    head = write_run(tmp_path, "aspc_td3bc", [0, 1], [], checkpoint=False, env_id="maze2d-umaze-v1")
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("maze2d-umaze-v1",), "seeds": "0-2"}
    held = files.lock(head)
    try:
        assert states(plan(tmp_path, **wanted)) == {"running": 1, "new": 1}
        assert f"left to the process that is at it ({head})" in dry_run(tmp_path, capsys, **wanted)
    finally:
        files.unlock(held)
    assert states(plan(tmp_path, **wanted)) == {"new": 3}  # it holds no checkpoint


def test_what_has_been_done_is_found(tmp_path):
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("hopper-medium-v2",), "learners_per_run": 2}
    hopper = {"env_id": "hopper-medium-v2"}
    write_run(tmp_path, "aspc_td3bc", [0, 1], [{}, {}], **hopper, track=True)
    half = write_run(tmp_path, "aspc_td3bc", [2, 3], [{}], **hopper)  # killed between its two results
    write_run(tmp_path, "aspc_td3bc", [4], [], checkpoint=False, **hopper)  # killed before its first checkpoint
    write_run(tmp_path, "aspc_td3bc", [5], [{}], **hopper, alpha_init=1.0)  # other runs
    write_run(tmp_path, "baselines/td3bc", [5], [{}], **hopper)
    found = lambda jobs: [(job.state, job.seeds) for job in jobs]  # noqa: E731
    jobs, damaged = run.make_plan(Args(runs_dir=tmp_path / "runs", **wanted, seeds="0-5"))
    assert not damaged and found(jobs) == [*(("finished", [k]) for k in range(3)), ("resume", [2, 3]), ("new", [4, 5])]
    assert jobs[3].command[:4] == [sys.executable, os.path.relpath(ROOT / "aspc_td3bc.py"), "--resume", str(half)]
    assert [job.total - job.done for job in jobs] == [0, 0, 0, 990_000, 1_000_000]
    assert found(plan(tmp_path, **wanted, seeds="1,6")) == [("finished", [1]), ("new", [6])]
    write_run(tmp_path, "aspc_td3bc", [4, 5, 6], [{}, {}, {}], **hopper)
    assert found(plan(tmp_path, **wanted, seeds="4,6")) == [("finished", [4]), ("finished", [6])]


@pytest.mark.parametrize("script", ["iql", "cql", "diffusionql", "rebrac", "a2pr"])
def test_a_tuned_run_is_found_by_what_was_asked_for(script, tmp_path):
    """It records the settings of its task, as the scripts' own `tuned` gives them."""
    module, task = load_script(f"baselines/{script}"), "hopper-medium-v2"
    wanted = {"scripts": (f"baselines/{script}",), "tasks": (task,), "seeds": "0", "set": ("tuned=true",)}
    args = module.Args(env_id=(task,), tuned=True)
    settings = asdict(module.tuned(args, module.TUNED))
    write_run(tmp_path, f"baselines/{script}", [0], [{}], **settings)
    assert settings != asdict(args)
    read = run.tuned(ROOT / f"baselines/{script}.py")[task]
    assert asdict(args) | read == settings and read.keys() == tuned_arguments(ROOT / f"baselines/{script}.py")
    assert states(plan(tmp_path, **wanted)) == {"finished": 1}
    assert states(plan(tmp_path, **wanted | {"set": ("tuned=true", "total_steps=5000")})) == {"new": 1}
    assert states(plan(tmp_path, **wanted | {"set": ()})) == {"new": 1}


def test_table2_takes_the_alpha_that_aspc_reached(tmp_path):
    wanted = {"suite": "table2", "tasks": ("maze2d",), "seeds": "0-1", "set": ("total_steps=1000",)}
    maze = {"env_id": "maze2d-umaze-v1", "total_steps": 1000}
    write_run(tmp_path, "aspc_td3bc", [0], [{"last": {"aspc/alpha": 3.0}}], **maze)
    assert states(plan(tmp_path, **wanted)) == {"finished": 1, "new": 11, "waits": 12}  # seed 1 lacks
    write_run(tmp_path, "aspc_td3bc", [1], [{"last": {"aspc/alpha": 4.5}}], **maze)
    write_run(tmp_path, "aspc_td3bc", [1], [{"last": {"aspc/alpha": 9.0}}], env_id="maze2d-umaze-v1")  # a longer run
    jobs = plan(tmp_path, **wanted)
    assert states(jobs) == {"finished": 2, "new": 14, "waits": 8}
    commands = [shlex.join(job.command) for job in jobs if job.state == "new"]
    assert sum("--alpha 3.75 " in command for command in commands) == 2
    assert sum("--alpha-final 3.75 " in command for command in commands) == 2
    assert all("maze2d-umaze-v1" in command for command in commands if "3.75" in command)


BAD_ARGUMENTS = {
    "nothing": ("", "--suite, or --scripts and --tasks"),
    "seeds beyond 2^64": (f"--scripts aspc_td3bc --tasks maze2d --seeds {2**64}", "seeds are below 2^64"),
    "seeds without number": ("--scripts aspc_td3bc --tasks maze2d --seeds 0-99999999999", "a million of them"),
    "scripts alone": ("--scripts aspc_td3bc", "--suite, or --scripts and --tasks"),
    "unknown suite": ("--suite tabel2", "there are table1"),
    "unknown script": ("--scripts aspc_td3 --tasks maze2d", "aspc_td3.py"),
    "no training script": ("--scripts benchmark/speed --tasks maze2d", "does not train"),
    "unknown task": ("--suite smoke --tasks hoper-medium-v2", "neither a D4RL task"),
    "unknown key": ("--suite smoke --set alpha_init=1", "baselines/td3bc.py has no argument alpha_init"),
    "wrong type": ("--suite smoke --set total_steps=1.5", "total_steps takes one int"),
    "wrong bool": ("--suite smoke --set robust_critic=0", "true or false"),
    "wrong choice": ("--suite smoke --set compile=true", "compile takes auto or on or off"),
    "key of the plan": ("--suite smoke --set seed=1", "--seeds"),
    "stand-ins": ("--suite smoke --set stand_in=true", "--stand-in"),
    "override": ("--suite fig6b --set l_q_coef=1", "twice"),
    "script twice": ("--scripts aspc_td3bc aspc_td3bc --tasks maze2d", "twice"),
    "seeds": ("--suite smoke --seeds 0..3", "--seeds 0..3"),
    "no seeds": ("--suite smoke --seeds 3-0", "--seeds 3-0"),
    "folder": ("--suite smoke --dataset-dir nowhere", "nowhere"),
    "learners": ("--suite smoke --learners-per-run 0", "--learners-per-run must be at least 1"),
    "threads": ("--suite smoke --threads 0", "--threads must be at least 1"),
    "address": ("--suite smoke --address auto", "--engine ray"),
}


def test_a_tilde_in_any_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run", "--runs-dir=~/runs", "--dataset-dir=~/data", "--set-aside", "~/bad"])
    args = command_line(Args, "run", None)
    assert (args.runs_dir, args.dataset_dir, args.set_aside) == tuple(tmp_path / x for x in ("runs", "data", "bad"))


@pytest.mark.parametrize(("line", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(line, words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run.main(tyro.cli(Args, args=[*line.split(), "--runs-dir", str(tmp_path / "runs")]))
    assert words in stop.value.code and "\n" not in stop.value.code
    assert not (tmp_path / "runs").exists()


# --- Running ----------------------------------------------------------------------------------------------------------


def test_the_scripts_one_of_them_killed(tmp_path):
    """The real scripts on a tiny dataset: one finishes, the other is killed; the second start resumes it alone."""
    write_dataset(tmp_path / "Pendulum-v1.hdf5", 3, 1, bound=2.0)
    line = (
        f"--suite smoke --seeds 0 --tasks Pendulum-v1 --dataset-dir {tmp_path} --jobs 2 --set total_steps=200 "
        "batch_size=8 robust_critic=false eval_interval=100 eval_episodes=1 final_eval_episodes=2 "
        "checkpoint_interval=20"
    )
    process = start(tmp_path, line)
    wait_for(lambda: list(tmp_path.glob("runs/*aspc*/checkpoint.pt")))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().decode().split("\0") if path.exists() else []
        if "aspc_td3bc.py" in words and str(tmp_path / "runs") in words:
            os.kill(int(path.parent.name), signal.SIGKILL)
    status, output = finish(process)
    assert status == 1 and "1 failed, 1 finished." in output, output
    assert "0 finished and skipped; jobs: 0 to resume, 2 new" in output
    assert re.search(r"Pendulum-v1__aspc_td3bc__0.*: failed: killed by SIGKILL\n    ", output)

    status, output = finish(start(tmp_path, line))
    assert status == 0 and output.endswith("1 finished.\n"), output
    assert "1 finished and skipped; jobs: 1 to resume, 0 new" in output
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    assert sorted((result["script"], result["steps"]) for result in results) == [("aspc_td3bc", 200), ("td3bc", 200)]
    commands = (tmp_path / "runs" / "commands.txt").read_text().splitlines()
    assert [line.startswith("#") for line in commands] == [True, False, False, True, False]
    assert "--resume" in commands[-1]
    assert all(command in logs(tmp_path) for command in commands if not command.startswith("#"))
    assert logs(tmp_path).count("OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= ") == 3


def test_a_failed_run_does_not_stop_the_others(trainer, tmp_path):
    line = f"--scripts {trainer} --tasks maze2d --seeds 0 --set"
    status, output = finish(start(tmp_path, f"{line} fail_at=5 --jobs 1"))
    assert status == 1 and "3 failed." in output and "start the same command again" in output
    assert output.count("failed: exit status 1\n") == output.count("the last words of a run\n") == 3
    assert all(str(path) in output for path in tmp_path.glob("runs/logs/maze2d*.log"))
    assert states(plan(tmp_path, scripts=(trainer,), tasks=("maze2d",), seeds="0", set=("fail_at=5",))) == {"resume": 3}
    status, output = finish(start(tmp_path, f"{line} fail_at=999 --per-gpu 1 --gpus 5 7 --learners-per-run 1"))
    assert status == 0 and "3 finished." in output and "last words" not in output
    assert set(re.findall(r"CUDA_VISIBLE_DEVICES=(\d)", logs(tmp_path))) == {"5", "7"}


ENGINES = ["local", pytest.param("ray", marks=pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="no Ray"))]


@pytest.mark.parametrize("engine", ENGINES)
def test_stopped_and_started_again(trainer, tmp_path, engine):
    """Two of three jobs run, the third has not begun; all are taken up again where they stood."""
    line = (
        f"--scripts {trainer} --tasks maze2d --seeds 0-1 --learners-per-run 2 --engine {engine} --jobs 2 "
        "--set total_steps=250"
    )
    process = start(tmp_path, line)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 2)
    status, output = finish(start(tmp_path, line))
    assert "Another benchmark.run is at work" in output and status == 1
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 128 + signal.SIGTERM, output
    assert "1 not started, 2 stopped." in output and "start the same command again" in output
    steps = {zipfile.ZipFile(path).read("step").decode() for path in tmp_path.glob("runs/*/checkpoint.pt")}
    status, output = finish(start(tmp_path, line))
    assert status == 0 and "0 finished and skipped; jobs: 2 to resume, 1 new" in output, output
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 6
    assert {f"at step {step} " for step in steps | {"0"}} == set(re.findall(r"at step \d+ ", logs(tmp_path)))
    status, output = finish(start(tmp_path, line))
    assert "6 finished and skipped; jobs: 0 to resume, 0 new" in output and status == 0


def test_waiting_jobs_follow_by_themselves(trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ASPC", trainer)
    suite = (["maze2d-umaze-v1"], [(trainer, {}), (trainer, {"alpha": run.REACHED})])
    monkeypatch.setitem(SUITES, "table2", suite)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    run.main(Args(suite="table2", runs_dir=tmp_path / "runs", seeds="0-1", jobs=2))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    printed = capsys.readouterr().out
    assert "0 finished and skipped; jobs: 0 to resume, 2 new, 2 waiting" in printed and "come first" in printed
    assert "2 finished and skipped; jobs: 0 to resume, 2 new, 0 waiting" in printed and "4 finished." in printed
    alphas = [json.loads(path.read_text())["args"]["alpha"] for path in tmp_path.glob("runs/*/config.json")]
    assert sorted(alphas) == [2.5, 2.5, 3.5, 3.5]


def test_a_job_that_still_reads_its_data_is_left_alone(trainer, tmp_path):
    """Its watcher was killed, and it has no run directory yet."""
    script, go_on = Path(f"{trainer}.py"), tmp_path / "go on"
    waits = f"\nwhile not Path({str(go_on)!r}).exists():\n    time.sleep(0.05)\nargs, step"
    script.write_text(script.read_text().replace("\nargs, step", waits, 1))
    line = f"--scripts {trainer} --tasks maze2d-umaze-v1 --seeds 0"
    process = start(tmp_path, line)
    wait_for(lambda: "$" in logs(tmp_path))
    time.sleep(1)
    process.kill()
    process.wait()
    status, output = finish(start(tmp_path, line))
    assert "1 left to the process that is at it." in output and status == 1, output
    go_on.touch()
    wait_for(lambda: list(tmp_path.glob("runs/*/result.json")))
    assert len(list(tmp_path.glob("runs/*/config.json"))) == 1


def test_a_run_that_outlived_its_watcher_is_left_alone(trainer, tmp_path):
    wanted = {"scripts": (trainer,), "tasks": ("maze2d-umaze-v1",), "seeds": "0", "set": ("total_steps=400",)}
    line = f"--scripts {trainer} --tasks maze2d-umaze-v1 --seeds 0 --set total_steps=400"
    process = start(tmp_path, line)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoint.pt")))
    process.kill()
    process.wait()
    status, output = finish(start(tmp_path, line))
    assert "is left to the process that is at it" in output and status == 0
    os.kill(int(re.search(r"in process (\d+)", logs(tmp_path))[1]), signal.SIGTERM)
    (lock,) = tmp_path.glob("runs/maze2d*/.lock")
    with filelock.FileLock(lock, timeout=60):  # until it has ended
        pass
    assert states(plan(tmp_path, **wanted)) == {"resume": 1}


@pytest.mark.parametrize("engine", ENGINES)
def test_stopped_twice_leaves_no_orphan(trainer, tmp_path, engine):
    """The run does not listen; a second signal ends it all the same, and benchmark.run ends after it."""
    line = f"--scripts {trainer} --tasks maze2d-umaze-v1 --seeds 0 --engine {engine} --set total_steps=100000 deaf=1"
    process = start(tmp_path, line)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoint.pt")))
    for _ in range(2):  # `timeout` sends its signal twice
        process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert status == 128 + signal.SIGTERM and "1 killed." in output, output
    child = int(re.search(r"in process (\d+)", logs(tmp_path))[1])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_damaged_run_is_set_aside_on_request(trainer, tmp_path):
    line = f"--scripts {trainer} --tasks maze2d-umaze-v1 --seeds 0 --set fail_at=5"
    finish(start(tmp_path, line))
    (checkpoint,) = tmp_path.glob("runs/*/checkpoint.pt")
    damage(checkpoint, checkpoint.read_bytes()[:-9])
    _, output = finish(start(tmp_path, f"{line} --set-aside {tmp_path / 'aside'}"))
    assert "1 new" in output and "it is damaged" in output and "1 failed." in output, output
    assert len(list(tmp_path.glob("runs/*/config.json"))) == len(list(tmp_path.glob("aside/*/config.json"))) == 1


def test_scores_of_all_learners_are_shown(trainer, tmp_path):
    line = f"--scripts {trainer} --tasks maze2d --seeds 0-1 --per-gpu 1 --set total_steps=3"
    status, output = finish(start(tmp_path, line))
    assert status == 0, output
    assert re.search(r"1/1 maze2d-umaze-v1\+2__trainer__0-1.*: finished\n +maze2d-umaze-v1 +score 3. 4.\n", output)
    assert re.search(r"maze2d-medium-v1 +score 5. 6.\n +maze2d-large-v1 +score 7. 8.\n", output)


def test_a_line_of_progress_is_read_as_the_scripts_print_it():
    job = run.Job("new", "x", [], Path(), ["a", "b"], list(range(8)), 0, 1_000_000)
    rows = [{"step": 25_000, "charts/normalized_score": k - 7.25, "aspc/alpha": 2.5} for k in range(16)]
    text = f"Step 25,000 of 1,000,000: {offline_run.log.in_words(rows)}, 1 day, 2:00:00 to go"
    step, words, scores = run.describe(job, ["a: 1,000 transitions", text])
    assert step == 25_000 and words.endswith("25,000 of 1,000,000, 1 day, 2:00:00 to go")
    assert [task for task, _ in scores] == ["a", "b"]
    numbers = [float(number) for _, line in scores for number in line.removeprefix("score ").split()]
    assert np.allclose(numbers, np.arange(16) - 7.25, atol=0.051)
    assert run.describe(job, ["compiling"]) == (0, "compiling", [])


def test_ray_is_optional(trainer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match="requirements-benchmark.txt"):
        run.main(Args(scripts=(trainer,), tasks=("maze2d",), engine="ray", runs_dir=tmp_path / "runs"))


def test_a_dead_ray_cluster_is_told_in_seconds(trainer, tmp_path, monkeypatch):
    """Ray itself asks for minutes; here it is not even asked."""
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again behind this block
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        begin = time.time()
        with pytest.raises(SystemExit, match=f"--address {address}: no Ray cluster answers there"):
            run.ray_engine(Args(engine="ray", address=address))
        assert time.time() - begin < 10


def test_the_screen(monkeypatch, capsys, tmp_path):
    """The block of progress is overwritten, lines above it stay; bars show their last state."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    height = run.draw([], 0, ["head", "x" * 500])
    assert height == 2 and run.draw(["ended"], height, ["head"]) == 1
    first, second = capsys.readouterr().out.split("\x1b[2F")
    assert first.startswith("\x1b[Jhead\nxxx") and second == "\x1b[Jended\nhead\n"
    assert max(map(len, first.splitlines())) < 200
    job = run.Job("new", "label", [], tmp_path / "x.log", ["a"], [0], 0, 10)
    assert run.read_log(job, 0) == []
    job.log.write_text("old\nnew\n 1/10 [\r 2/10 [\n\reval\r    \rdone\r")
    assert run.read_log(job, 4) == ["new", " 2/10 [", "done"]
