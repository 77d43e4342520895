"""benchmark.run: what is planned, and what becomes of runs that finish, fail, are killed or are stopped."""

import fcntl
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
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import tyro
from conftest import ROOT, load_script

import d4rl_gymnasium as d4rl
from benchmark import run
from benchmark.run import SUITES, TASK_SETS, Args

# A script with a run's files and signals and no network: it counts to total_steps, in 20 ms each.
TRAINER = '''
import json, os, signal, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path

@dataclass
class Args:
    env_id: str = ""
    seed: int = 0
    num_seeds: int = 1
    total_steps: int = 10
    alpha: float = 2.5
    fail_at: int | None = None
    runs_dir: str = "runs"
    resume: str | None = None

given = {key[2:].replace("-", "_"): value for key, value in zip(sys.argv[1::2], sys.argv[2::2])}
kinds = {"seed": int, "num_seeds": int, "total_steps": int, "alpha": float, "fail_at": int}
args, step = Args(**{key: kinds.get(key, str)(value) for key, value in given.items()}), 0
if args.resume:
    path = Path(args.resume)
    config, step = json.loads((path / "config.json").read_text()), int((path / "checkpoint.pt").read_text())
    args, paths = Args(**config["args"]), [path.parent / name for name in config["group"]]
else:
    seeds = range(args.seed, args.seed + args.num_seeds)
    paths = [Path(args.runs_dir) / f"{args.env_id}__trainer__{seed}__{time.time_ns()}" for seed in seeds]
    for path in paths:
        path.mkdir()
        config = {"script": "trainer", "args": asdict(args), "group": [path.name for path in paths]}
        config["dataset"] = {"source": "D4RL"}
        (path / "config.json").write_text(json.dumps(config))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
print(f"at step {step} in process {os.getpid()}", flush=True)
while step < args.total_steps and not stop:
    if step == args.fail_at:
        sys.exit("the last words of a run")
    time.sleep(0.02)
    step += 1
    print(f"\\r {step}/{args.total_steps} [", end="", flush=True)
    (paths[0] / "checkpoint.pt").write_text(str(step))
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
    return run.make_plan(Args(runs_dir=folder / "runs", **arguments))[0]


def states(jobs: list[run.Job]) -> dict[str, int]:
    return dict(Counter(job.state for job in jobs))


def start(folder: Path, line: str) -> subprocess.Popen:
    """benchmark.run as a user starts it, its output in a pipe."""
    command = [sys.executable, "-m", "benchmark.run", "--runs-dir", str(folder / "runs"), *shlex.split(line)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    try:
        return process.communicate(timeout=300)[0]
    finally:
        process.kill()


def wait_for(condition, seconds: float = 300) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.02)


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("runs/logs/*.log")))


def write_run(
    folder: Path, script: str, seeds: list[int], results: list[dict], checkpoint: bool = True, source: str = "D4RL",
    **arguments,
):  # fmt: skip
    """The directories of a run with as many results as there are."""
    names = [f"{arguments['env_id']}__{Path(script).name}__{seed}__{time.time_ns()}" for seed in seeds]
    values = {name: default for name, (_, default) in run.script_arguments(script).items()} | arguments
    values |= {"seed": seeds[0], "num_seeds": len(seeds), "runs_dir": "elsewhere"}
    for k, name in enumerate(names):
        path = folder / "runs" / name
        path.mkdir(parents=True)
        config = {"script": Path(script).name, "seed": seeds[k], "args": values, "group": names}
        config["dataset"] = {"source": source}
        (path / "config.json").write_text(json.dumps(config))
        if k < len(results):
            (path / "result.json").write_text(json.dumps(results[k]))
    if checkpoint:
        (folder / "runs" / names[0] / "checkpoint.pt").touch()
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
    there = [(script, own) for script, own in variants if (ROOT / f"{script}.py").is_file()]
    for script, own in there:
        assert own.keys() <= run.script_arguments(script).keys()
    if not there:
        with pytest.raises(SystemExit, match="has none of its scripts"):
            plan(tmp_path, suite=suite)
        return
    jobs, missing = run.make_plan(Args(suite=suite, runs_dir=tmp_path, seeds="0-3"))
    assert len(jobs) == 4 * len(there) * sum(len(TASK_SETS.get(name, [name])) for name in sets)
    assert sorted(missing) == sorted({script for script, _ in variants} - {script for script, _ in there})
    assert {"table2": {"new": 312, "waits": 312}}.get(suite, {"new": len(jobs)}) == states(jobs)
    run.main(Args(suite=suite, runs_dir=tmp_path / "runs", dry_run=True, steps_per_second=100.0, jobs=2))
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:new|waits) +\S*python", printed, re.M)) == len(jobs)
    assert all(script in printed for script in missing)
    steps = sum(job.total for job in jobs)
    assert f"{steps / 360_000:.1f} hours one after another, {steps / 720_000:.1f} with 2 at a time" in printed
    assert not (tmp_path / "runs").exists()


def test_the_paper_is_its_tables_once_each(tmp_path, capsys):
    """Tables 1, 3 and 4; IQL on Table 3's nine tasks is in Table 1, too."""
    count = lambda suite: len(plan(tmp_path, suite=suite))  # noqa: E731
    there = (ROOT / "baselines" / "iql.py").is_file()
    assert count("table4") == count("table4-large") + count("table4-giant")
    assert count("paper") == count("table1") + count("table3") + count("table4") - 4 * 9 * there
    some = plan(tmp_path, suite="paper", tasks=("hopper-medium-v2", "ogbench-giant"), seeds="0")
    assert {job.command[3] for job in some} == {"hopper-medium-v2", *TASK_SETS["ogbench-giant"]}
    giant = [shlex.join(job.command) for job in some if "rebrac" in job.script and "giant" in job.label]
    assert all("--discount 0.995" in line for line in giant)
    with pytest.raises(SystemExit, match="has none of these tasks"):
        plan(tmp_path, suite="table4", tasks=("maze2d",))
    run.main(Args(suite="paper", runs_dir=tmp_path / "runs", dry_run=True))
    printed = capsys.readouterr().out
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


def speed_record(path: Path, device: str, **ms: float) -> None:
    rows = [{"variant": f"{script}, 1 x 256, width 256", "ms_per_step": value} for script, value in ms.items()]
    path.write_text(json.dumps({"args": {"device": device}, "rows": rows}))


def test_estimate_from_recorded_speeds(tmp_path, capsys, monkeypatch):
    """A GPU's speeds are taken where there are any; what was not measured is named, not guessed."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    jobs = [run.Job("new", "", [], tmp_path, [0, 1], 0, 1_800_000, "aspc_td3bc"),
            run.Job("resume", "", [], tmp_path, [0], 900_000, 1_000_000, "baselines/td3bc")]  # fmt: skip
    speed_record(folder / "speed-a.json", "cpu", **{"aspc_td3bc eager": 10.0, "aspc_td3bc compiled": 5.0})
    speed_record(folder / "speed-b.json", "cpu", **{"aspc_td3bc eager": 20.0, "aspc_td3bc plain": 1.0})
    run.print_estimate(Args(), jobs)
    printed = capsys.readouterr().out
    assert "about 10 CPU core hours" in printed and "no GPU was measured" in printed  # 2 x 1.8 million x 10 ms
    assert "no speed is recorded: baselines/td3bc" in printed
    run.print_estimate(Args(set=("compile=true",)), jobs)
    assert "about 5 CPU core hours" in capsys.readouterr().out
    speed_record(folder / "speed-gpu.json", "cuda", **{"aspc_td3bc graph": 1.0, "baselines/td3bc graph": 36.0})
    run.print_estimate(Args(), jobs)
    printed = capsys.readouterr().out
    assert "about 2 GPU hours" in printed and "measured" not in printed and "not counted" not in printed


@pytest.mark.parametrize("script", ["aspc_td3bc", "baselines/td3bc"])
def test_a_command_says_what_the_plan_compares(script, tmp_path):
    """The script's own parser reads from the command what the plan looks for in config.json."""
    module = load_script(script)
    assert {name: default for name, (_, default) in run.script_arguments(script).items()} == asdict(module.Args())
    settings = ("total-steps=5000", "robust_critic=false", "compile=true", "matmul_precision=medium", "dataset_path=x")
    wanted = {"scripts": (script,), "tasks": ("Own-v0",), "seeds": "2-4", "seeds_per_run": 3, "set": settings}
    given = {"total_steps": 5000, "robust_critic": False, "compile": True, "matmul_precision": "medium"}
    given |= {"dataset_path": "x", "env_id": "Own-v0", "stand_in": False}
    (job,) = plan(tmp_path, **wanted)
    args = tyro.cli(module.Args, args=job.command[2:])
    assert asdict(args) == asdict(module.Args(**given, seed=2, num_seeds=3, runs_dir=str(tmp_path / "runs")))
    write_run(tmp_path, script, [2, 3, 4], [], **given)
    assert states(plan(tmp_path, **wanted)) == {"resume": 1}


def test_stand_ins_are_refused_unless_asked_for(tmp_path):
    """A run on one does not count either; with --stand-in it does, and so does any run on D4RL's file."""
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("hopper-medium-v2", "maze2d-umaze-v1"), "seeds": "0-1"}
    hopper, maze = (d4rl.TASKS[task] for task in wanted["tasks"])
    write_run(tmp_path, "aspc_td3bc", [0], [{}], source=hopper.collected_source, env_id=hopper.env_id)
    write_run(tmp_path, "aspc_td3bc", [1], [{}], env_id=hopper.env_id)
    write_run(tmp_path, "aspc_td3bc", [0, 1], [{}, {}], source=maze.collected_source, env_id=maze.env_id)
    *finished, new = plan(tmp_path, **wanted)
    assert [job.state for job in finished] == ["finished"] * 2 and new.state == "new"
    assert new.label == "hopper-medium-v2__aspc_td3bc__0" and "--no-stand-in" in new.command
    assert states(plan(tmp_path, **wanted, stand_in=True)) == {"finished": 3}
    (new,) = plan(tmp_path, **(wanted | {"tasks": ("hopper-expert-v2",), "seeds": "0"}), stand_in=True)
    assert "--stand-in" in new.command and "--no-stand-in" not in new.command


def test_groups_of_seeds(tmp_path):
    jobs = plan(tmp_path, scripts=("aspc_td3bc.py",), tasks=("maze2d",), seeds="0-4,7", seeds_per_run=4)
    assert [job.seeds for job in jobs] == 3 * [[0, 1, 2, 3]] + 3 * [[4]] + 3 * [[7]]  # a little of everything first
    assert len({job.log for job in jobs}) == 9


def test_what_has_been_done_is_found(tmp_path, capsys):
    wanted = {"scripts": ("aspc_td3bc",), "tasks": ("hopper-medium-v2",), "seeds_per_run": 2}
    hopper = {"env_id": "hopper-medium-v2"}
    write_run(tmp_path, "aspc_td3bc", [0, 1], [{}, {}], **hopper, track=True)
    half = write_run(tmp_path, "aspc_td3bc", [2, 3], [{}], **hopper)  # killed between its two results
    write_run(tmp_path, "aspc_td3bc", [4], [], checkpoint=False, **hopper)  # killed before its first checkpoint
    write_run(tmp_path, "aspc_td3bc", [5], [{}], **hopper, alpha_init=1.0)  # other runs
    write_run(tmp_path, "baselines/td3bc", [5], [{}], **hopper)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.json").write_text("{")
    found = lambda jobs: [(job.state, job.seeds) for job in jobs]  # noqa: E731
    jobs = plan(tmp_path, **wanted, seeds="0-5")
    assert found(jobs) == [("finished", [0, 1]), ("resume", [2, 3]), ("new", [4, 5])]
    assert jobs[1].command == [sys.executable, os.path.relpath(ROOT / "aspc_td3bc.py"), "--resume", str(half)]
    assert [job.total - job.done for job in jobs] == [0, 990_000, 1_000_000]
    assert "broken does not count" in capsys.readouterr().out
    assert found(plan(tmp_path, **wanted, seeds="1,6")) == [("finished", [1]), ("new", [6])]
    write_run(tmp_path, "aspc_td3bc", [4, 5, 6], [{}, {}, {}], **hopper)
    assert found(plan(tmp_path, **wanted, seeds="4,6")) == [("finished", [4]), ("finished", [6])]


@pytest.mark.parametrize("script", ["iql", "cql", "diffusionql", "rebrac", "a2pr"])
def test_a_tuned_run_is_found_by_what_was_asked_for(script, tmp_path):
    """It records the settings of its task, as the scripts' own `tuned` gives them."""
    module, task = load_script(f"baselines/{script}"), "hopper-medium-v2"
    wanted = {"scripts": (f"baselines/{script}",), "tasks": (task,), "seeds": "0", "set": ("tuned=true",)}
    args = module.Args(env_id=task, tuned=True)
    settings = asdict(module.tuned(args))
    write_run(tmp_path, f"baselines/{script}", [0], [{}], **settings)
    assert settings != asdict(args)
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
    "scripts alone": ("--scripts aspc_td3bc", "--suite, or --scripts and --tasks"),
    "unknown suite": ("--suite tabel2", "there are table1"),
    "unknown script": ("--scripts aspc_td3 --tasks maze2d", "aspc_td3.py"),
    "no training script": ("--scripts benchmark/speed --tasks maze2d", "does not train"),
    "unknown task": ("--suite smoke --tasks hoper-medium-v2", "neither a D4RL task"),
    "unknown key": ("--suite smoke --set alpha_init=1", "baselines/td3bc.py has no argument alpha_init"),
    "wrong type": ("--suite smoke --set total_steps=1e6", "total_steps takes one int"),
    "wrong bool": ("--suite smoke --set compile", "true or false"),
    "key of the plan": ("--suite smoke --set seed=1", "--seeds"),
    "stand-ins": ("--suite smoke --set stand_in=true", "--stand-in"),
    "override": ("--suite fig6b --set l_q_coef=1", "twice"),
    "script twice": ("--scripts aspc_td3bc aspc_td3bc --tasks maze2d", "twice"),
    "seeds": ("--suite smoke --seeds 0..3", "--seeds 0..3"),
    "no seeds": ("--suite smoke --seeds 3-0", "--seeds 3-0"),
    "folder": ("--suite smoke --dataset-dir nowhere", "nowhere"),
    "threads": ("--suite smoke --threads 0", "--threads must be at least 1"),
    "address": ("--suite smoke --address auto", "--engine ray"),
}


@pytest.mark.parametrize(("line", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(line, words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run.main(tyro.cli(Args, args=[*line.split(), "--runs-dir", str(tmp_path / "runs")]))
    assert words in stop.value.code and "\n" not in stop.value.code
    assert not (tmp_path / "runs").exists()


# --- Running ----------------------------------------------------------------------------------------------------------


def test_the_scripts_one_of_them_killed(tmp_path):
    """The real scripts on a tiny dataset: one finishes, the other is killed; the second start resumes it alone."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "Pendulum-v1.hdf5", "w") as file:
        file["observations"] = rng.normal(size=(300, 3)).astype(np.float32)
        file["actions"] = rng.uniform(-2, 2, (300, 1)).astype(np.float32)
        file["rewards"], file["terminals"] = rng.normal(size=300).astype(np.float32), np.zeros(300, bool)
        file["timeouts"] = np.arange(300) % 50 == 49
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
    output = finish(process)
    assert process.returncode == 1 and "1 failed, 1 finished." in output, output
    assert "0 finished and skipped, 0 to resume, 2 new" in output
    assert re.search(r"Pendulum-v1__aspc_td3bc__0.*: failed: killed by SIGKILL\n    ", output)

    process = start(tmp_path, line)
    output = finish(process)
    assert process.returncode == 0 and output.endswith("1 finished.\n"), output
    assert "1 finished and skipped, 1 to resume, 0 new" in output
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    assert sorted((result["script"], result["steps"]) for result in results) == [("aspc_td3bc", 200), ("td3bc", 200)]
    commands = (tmp_path / "runs" / "commands.txt").read_text().splitlines()
    assert [line.startswith("#") for line in commands] == [True, False, False, True, False]
    assert "--resume" in commands[-1]
    assert all(command in logs(tmp_path) for command in commands if not command.startswith("#"))
    assert logs(tmp_path).count("OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= ") == 3


def test_a_failed_run_does_not_stop_the_others(trainer, tmp_path):
    line = f"--scripts {trainer} --tasks maze2d --seeds 0 --set"
    process = start(tmp_path, f"{line} fail_at=5 --jobs 1")
    output = finish(process)
    assert process.returncode == 1 and "3 failed." in output and "start the same command again" in output
    assert output.count("failed: exit status 1\n") == output.count("the last words of a run\n") == 3
    assert all(str(path) in output for path in tmp_path.glob("runs/logs/maze2d*.log"))
    assert states(plan(tmp_path, scripts=(trainer,), tasks=("maze2d",), seeds="0", set=("fail_at=5",))) == {"resume": 3}
    process = start(tmp_path, f"{line} fail_at=999 --per-gpu 1 --gpus 5 7")
    output = finish(process)
    assert process.returncode == 0 and "3 finished." in output and "last words" not in output
    assert set(re.findall(r"CUDA_VISIBLE_DEVICES=(\d)", logs(tmp_path))) == {"5", "7"}


ENGINES = ["local", pytest.param("ray", marks=pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="no Ray"))]


@pytest.mark.parametrize("engine", ENGINES)
def test_stopped_and_started_again(trainer, tmp_path, engine):
    """Two of three jobs run, the third has not begun; all are taken up again where they stood."""
    line = (
        f"--scripts {trainer} --tasks maze2d --seeds 0-1 --seeds-per-run 2 --engine {engine} --jobs 2 "
        "--set total_steps=150"
    )
    process = start(tmp_path, line)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 2)
    other = start(tmp_path, line)
    assert "Another benchmark.run is at work" in finish(other) and other.returncode == 1
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "1 not started, 2 stopped." in output and "start the same command again" in output
    steps = {path.read_text() for path in tmp_path.glob("runs/*/checkpoint.pt")}
    again = start(tmp_path, line)
    output = finish(again)
    assert again.returncode == 0 and "0 finished and skipped, 2 to resume, 1 new" in output, output
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 6
    assert {f"at step {step} " for step in steps | {"0"}} == set(re.findall(r"at step \d+ ", logs(tmp_path)))
    last = start(tmp_path, line)
    assert "3 finished and skipped, 0 to resume, 0 new" in finish(last) and last.returncode == 0


def test_waiting_jobs_follow_by_themselves(trainer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ASPC", trainer)
    suite = (["maze2d-umaze-v1"], [(trainer, {}), (trainer, {"alpha": run.REACHED})])
    monkeypatch.setitem(SUITES, "table2", suite)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    run.main(Args(suite="table2", runs_dir=tmp_path / "runs", seeds="0-1", jobs=2))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    printed = capsys.readouterr().out
    assert "0 finished and skipped, 0 to resume, 2 new, 2 waiting" in printed and "come first" in printed
    assert "2 finished and skipped, 0 to resume, 2 new, 0 waiting" in printed and "4 finished." in printed
    alphas = [json.loads(path.read_text())["args"]["alpha"] for path in tmp_path.glob("runs/*/config.json")]
    assert sorted(alphas) == [2.5, 2.5, 3.5, 3.5]


def test_a_run_that_outlived_its_watcher_is_left_alone(trainer, tmp_path):
    wanted = {"scripts": (trainer,), "tasks": ("maze2d-umaze-v1",), "seeds": "0", "set": ("total_steps=400",)}
    line = f"--scripts {trainer} --tasks maze2d-umaze-v1 --seeds 0 --set total_steps=400"
    process = start(tmp_path, line)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoint.pt")))
    process.kill()
    process.wait()
    again = start(tmp_path, line)
    assert "failed: its process of an earlier start is still at work" in finish(again) and again.returncode == 1
    os.kill(int(re.search(r"in process (\d+)", logs(tmp_path))[1]), signal.SIGTERM)
    (log,) = tmp_path.glob("runs/logs/*.log")
    with log.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it has ended
    assert states(plan(tmp_path, **wanted)) == {"resume": 1}


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
    job = run.Job("new", "label", [], tmp_path / "x.log", [0], 0, 10)
    assert run.read_log(job, 0) == []
    job.log.write_text("old\nnew\n 1/10 [\r 2/10 [\n\reval\r    \rdone\r")
    assert run.read_log(job, 4) == ["new", " 2/10 [", "done"]
