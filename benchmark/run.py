"""Many runs: planned, started side by side, watched on one screen, and taken up again where they stopped.

    python -m benchmark.run --scripts aspc_td3bc baselines/td3bc --tasks locomotion-9 maze2d --seeds 0-3 --dry-run
    python -m benchmark.run --suite table2 --tasks maze2d --jobs 8

A job is one process: a script, a task, arguments, and a group of seeds. What has been done is read from the run
directories themselves, so the same command started again skips finished runs, resumes those that have a checkpoint, and
starts the rest; runs started by hand count as well. Everything passes through files: run directories, one log a job,
the file `stop`. A thread of this process (--engine local) or a Ray worker on another machine that sees the same folders
(--engine ray) can therefore do the same work with the same function, `run_job`.
"""

import csv
import fcntl
import itertools
import json
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

import d4rl_gymnasium as d4rl
from benchmark.scripts import DOMAINS, ROBOTS, ROOT, flags, read_arguments, tuned_arguments


@dataclass
class Args:
    scripts: tuple[str, ...] = ()
    """scripts by their path without .py: aspc_td3bc, baselines/td3bc, benchmark/ablations/..."""
    tasks: tuple[str, ...] = ()
    """ids, or sets of them: paper (all 39), locomotion, locomotion-9, maze2d, antmaze, adroit, table3, ogbench,
    ogbench-large, ogbench-giant"""
    suite: str | None = None
    """in place of --scripts: the runs behind a table or figure of the paper, on its tasks unless --tasks names others:
    paper (tables 1, 3 and 4), everything, mazes, table1, table2, table3, table4, table13, fig1b, fig5, fig6a, fig6b,
    fig9, fig10, fig11, fig12, readings, smoke"""
    seeds: str = "0-3"
    """such as 0-3 or 0,2,5-7"""
    seeds_per_run: int = 1
    """seeds trained together in one process: costs time on a CPU, next to none on a GPU"""
    set: tuple[str, ...] = ()
    """key=value ...: arguments for every script, such as total_steps=200000 compile=true"""
    dataset_dir: Path | None = None
    """a task whose file ENV_ID.hdf5 is in this folder takes its data from there"""
    stand_in: bool = False
    """let MuJoCo tasks whose D4RL file cannot be had train on stand-ins; without it, such a run refuses and fails"""
    runs_dir: Path = Path("runs")
    """the folder of the run directories, of logs/ and of commands.txt (on a cluster: one that all machines share)"""
    dry_run: bool = False
    """print every job's state and command, and stop"""
    steps_per_second: float | None = None
    """of one run: estimate the hours of the plan (else from the speeds in docs/results/speed-*.json)"""

    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine; ray: the same through Ray (pip install -r requirements-benchmark.txt)"""
    address: str | None = None
    """with --engine ray: a running cluster (auto, or HOST:PORT) instead of a Ray of this machine alone"""
    jobs: int = 0
    """runs at a time on the CPU, 0: as many as it has cores for (a Ray cluster decides by itself)"""
    threads: int = 1
    """CPU threads of a run"""
    per_gpu: int = 0
    """runs that share a GPU; 0: train on the CPU"""
    gpus: tuple[str, ...] = ("0",)
    """with --engine local and --per-gpu: the GPUs to use"""


# --- What can be run --------------------------------------------------------------------------------------------------

TASK_SETS = {
    "paper": list(d4rl.TASKS),  # stands in the order of the paper's Table 1
    "locomotion": DOMAINS["MuJoCo"],
    "maze2d": DOMAINS["Maze2d"],
    "antmaze": DOMAINS["AntMaze"],
    "adroit": DOMAINS["Adroit"],
    "table3": [f"{robot}-medium{more}-v2" for robot in ROBOTS["MuJoCo"] for more in ("", "-expert", "-replay")],
    "ogbench": list(d4rl.OGBENCH_TASKS),  # as in Table 4
    "ogbench-large": [task for task in d4rl.OGBENCH_TASKS if "large" in task],
    "ogbench-giant": [task for task in d4rl.OGBENCH_TASKS if "giant" in task],
}
TASK_SETS |= {"d4rl": TASK_SETS["paper"], "locomotion-9": TASK_SETS["table3"]}

ASPC, TD3BC = "aspc_td3bc", "baselines/td3bc"
REACHED = "REACHED"  # stands for the α that ASPC reached on the same task, mean over the seeds; known when these end
VARIANTS = "benchmark/ablations"
# OGBench's protocol, and what FQL's authors chose there for ReBRAC and IQL
OGBENCH = {"eval_interval": 100_000, "eval_episodes": 50, "final_eval_episodes": 50}
IQL_OGBENCH = OGBENCH | {"expectile": 0.9, "beta": 10.0}
REBRAC_OGBENCH = OGBENCH | {"actor_bc_coef": 0.003, "critic_bc_coef": 0.01}
# name: (task sets, [(script, arguments)]). A script that this checkout does not have is left out, and named.
SUITES: dict[str, tuple[list[str], list[tuple[str, dict[str, Any]]]]] = {
    "table1": (["paper"], [
        *((s, {}) for s in (ASPC, TD3BC, "baselines/wpc", "baselines/a2pr")),
        *((s, {"tuned": True}) for s in ("baselines/iql", "baselines/rebrac")),
    ]),
    "table2": (["paper"], [  # dynamic, naive, converged, linear
        (ASPC, {}), (TD3BC, {}), (TD3BC, {"alpha": REACHED}), (TD3BC, {"alpha_final": REACHED}),
    ]),
    "table3": (["table3"], [
        pair for base in ("iql", "cql", "diffusionql")
        for pair in ((f"baselines/{base}", {"tuned": True}), (f"aspc_{base}", {}))
    ]),
    **{f"table4-{maze}": ([f"ogbench-{maze}"], [
        (TD3BC, OGBENCH), ("baselines/iql", IQL_OGBENCH), ("baselines/rebrac", REBRAC_OGBENCH | discount),
        (ASPC, OGBENCH), ("baselines/fql", OGBENCH | {"tuned": True}), ("aspc_fql", OGBENCH | {"tuned": True}),
    ]) for maze, discount in (("large", {}), ("giant", {"discount": 0.995}))},
    "table13": (["paper"], [(ASPC, {}), *((f"{VARIANTS}/l_bc_form{n}", {}) for n in (1, 2, 3, 5))]),  # form 4 is ASPC's
    "mazes": (["maze2d"], [
        *((s, {}) for s in (ASPC, TD3BC, "baselines/wpc", "baselines/a2pr")),  # A2PR has no settings of mazes
        *((s, {"tuned": True}) for s in ("baselines/rebrac", "baselines/iql")),
    ]),
    "fig1b": (["paper"], [  # settings of each task, and one setting for all
        (ASPC, {}), (TD3BC, {}),
        *((f"baselines/{name}", {"tuned": tuned}) for name in ("iql", "rebrac") for tuned in (True, False)),
    ]),
    "fig5": (["halfcheetah-medium-v2"], [  # run times: give the machine nothing else to do, and --jobs 1
        *((f"baselines/{name}", {}) for name in ("td3bc", "cql", "iql", "wpc", "a2pr")),
        *((ASPC, {"alpha_interval": n}) for n in (5, 10, 20, 30)),
    ]),
    "fig6a": (["paper"], [(s, {"robust_critic": rc}) for s in (ASPC, "baselines/wpc") for rc in (True, False)]),
    "fig6b": (["paper"], [(ASPC, {"l_q_coef": q, "l_bc_coef": bc}) for q in (0.0, 1.0) for bc in (0.0, 1.0)]),
    "fig9": (["antmaze", "adroit"], [(ASPC, {}), (f"{VARIANTS}/advantage_weighted_bc", {})]),
    "fig10": (["halfcheetah-medium-v2"], [(ASPC, {}), (TD3BC, {})]),
    # The values of the paper's Figs. 11 and 12 are in its pictures only: these are ours, around its setting.
    "fig11": (["locomotion", "antmaze", "adroit"], [(ASPC, {"alpha_init": a}) for a in (0.5, 1.0, 2.5, 5.0, 10.0)]),
    "fig12": (["paper"], [(ASPC, {"alpha_lr": rate}) for rate in (2e-4, 1e-3, 2e-3, 5e-3, 1e-2)]),
    # Where the paper's text and the released code differ: the text's reading beside the code's.
    "readings": (["paper"], [(s, {}) for s in (ASPC, f"{VARIANTS}/one_step_delta_q", f"{VARIANTS}/fresh_outer_batch")]),
    "smoke": (["maze2d-umaze-v1"], [  # needs no download, and ends in minutes
        (s, {"total_steps": 2000, "eval_interval": 1000, "eval_episodes": 2, "final_eval_episodes": 5})
        for s in (ASPC, TD3BC)
    ]),
}  # fmt: skip
# Suites of suites; what two of them share is run once, and --tasks picks among the tasks of each
UNIONS = {"table4": ("table4-large", "table4-giant"), "paper": ("table1", "table3", "table4-large", "table4-giant")}
UNIONS["everything"] = tuple(name for name in SUITES if name != "smoke")


def script_arguments(script: str) -> dict[str, tuple[str, Any]]:
    """A script's arguments, name -> (type as written, default). Exits with a sentence if it is none that trains."""
    path = ROOT / f"{script}.py"
    if not path.is_file():
        sys.exit(f"--scripts {script}: there is no {path}.")
    arguments = read_arguments(path)
    if not {"env_id", "seed", "num_seeds", "total_steps", "resume"} <= arguments.keys():
        sys.exit(f"--scripts {script}: {path} does not train: its Args lack env_id, seed, total_steps or resume.")
    return arguments


def parse_settings(settings: tuple[str, ...], scripts: list[str]) -> dict[str, Any]:
    """--set key=value ... as {name: value}, of the type that the scripts' Args give it."""
    values = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        name = name.replace("-", "_")
        if name in ("env_id", "seed", "num_seeds", "stand_in", "runs_dir", "resume", "eval", "render_video"):
            sys.exit(f"--set {setting}: --tasks, --seeds, --stand-in, --runs-dir or the plan itself set this argument.")
        for script in scripts:
            if name not in script_arguments(script):
                sys.exit(f"--set {setting}: {script}.py has no argument {name}.")
            kind = script_arguments(script)[name][0].removesuffix(" | None")
            try:
                parse = {"int": int, "float": float, "bool": {"true": True, "false": False}.__getitem__}.get(kind, str)
                values[name] = parse(text)
            except (ValueError, KeyError):
                sys.exit(f"--set {setting}: {name} takes {'true or false' if kind == 'bool' else f'one {kind}'}.")
    return values


def parse_seeds(text: str) -> list[int]:
    """ "0,2,5-7" -> [0, 2, 5, 6, 7]"""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        sys.exit(f"--seeds {text}: write them as 0-3 or 0,2,5-7.")
    ranges = [part.split("-") for part in text.split(",")]
    seeds = sorted({seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)})
    return seeds or sys.exit(f"--seeds {text}: there is no seed in this range.")


def data_file(args: Args, task: str) -> Path | None:
    """The task's file in --dataset-dir, if it is there."""
    path = args.dataset_dir / f"{task.replace('/', '-')}.hdf5" if args.dataset_dir else None
    return path if path and path.is_file() else None


def read_request(args: Args) -> tuple[list[tuple[str, str, dict]], dict[str, Any], list[str]]:
    """What --suite, --scripts, --tasks and --set ask for: [(task, script, arguments)], arguments that all scripts
    get, and the suite's scripts that this checkout does not have. Exits with a sentence where they make no sense.
    """
    if args.suite and args.suite not in SUITES | UNIONS:
        sys.exit(f"--suite {args.suite}: there are {', '.join(SUITES | UNIONS)}.")
    if bool(args.suite) == bool(args.scripts) or not (args.suite or args.tasks):
        sys.exit("Say what to run: either --suite, or --scripts and --tasks.")
    if args.dataset_dir and not args.dataset_dir.is_dir():
        sys.exit(f"--dataset-dir {args.dataset_dir}: there is no such folder.")
    parts = [SUITES[part] for part in UNIONS.get(args.suite, [args.suite])] if args.suite else []
    parts = parts or [((), [(script.removesuffix(".py"), {}) for script in args.scripts])]
    scripts = dict.fromkeys(script for _, variants in parts for script, _ in variants)
    missing = [script for script in scripts if args.suite and not (ROOT / f"{script}.py").is_file()]
    scripts = [script for script in scripts if script not in missing]
    if not scripts:
        sys.exit(f"--suite {args.suite}: this checkout has none of its scripts, {', '.join(missing)}.")
    given = parse_settings(args.set, scripts)
    expand = lambda names: list(dict.fromkeys(task for name in names for task in TASK_SETS.get(name, [name])))  # noqa: E731
    wanted, requests = expand(args.tasks), []
    for task in wanted:
        if not (task in d4rl.ALL_TASKS or "dataset_path" in given or data_file(args, task)):
            sys.exit(f"--tasks {task}: neither a D4RL task, nor a set ({', '.join(TASK_SETS)}), nor a task whose file "
                     f"{task.replace('/', '-')}.hdf5 is in --dataset-dir.")  # fmt: skip
    for names, variants in parts:
        tasks = wanted or expand(names)
        if args.suite in UNIONS:
            tasks = [task for task in expand(names) if task in tasks]
        for task, (script, varied) in itertools.product(tasks, variants):
            if args.suite in UNIONS and script not in missing:  # what is varied to its default is not varied
                known = script_arguments(script)
                varied = {name: value for name, value in varied.items() if value != known[name][1]}
            shared = args.suite in UNIONS and (task, script, varied) in requests
            requests += [(task, script, varied)] * (script not in missing and not shared)
    if not requests:
        sys.exit(f"--suite {args.suite} has none of these tasks: {', '.join(wanted)}.")
    return requests, given, missing


# --- The plan ---------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One process, or (state finished) the run that makes it needless."""

    state: str  # finished, resume, new, or waits (for ASPC's α)
    label: str
    command: list[str]
    log: Path
    seeds: list[int]
    done: int  # gradient steps behind it
    total: int
    script: str = ""


def read_runs(folder: Path) -> list[dict]:
    """The runs in --runs-dir, one for each group of seeds: script, args, source of the data, seeds, paths (one a seed),
    results.
    """
    runs = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            config = json.loads(path.read_text())
            script, arguments, group = config["script"], config["args"], config["group"]
            if path.parent.name == group[0]:  # whose directory holds the checkpoint
                paths = [folder / name for name in group]
                results = [json.loads((p / "result.json").read_text()) for p in paths if (p / "result.json").exists()]
                seeds = list(range(arguments["seed"], arguments["seed"] + len(group)))
                runs.append({
                    "script": script, "args": arguments, "source": config["dataset"]["source"], "seeds": seeds,
                    "paths": paths, "results": results,
                })  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path.parent} does not count: not the directory of a run that can be read ({error}).")
    return runs


def runs_of(runs: list[dict], script: str, arguments: dict[str, Any]) -> list[dict]:
    """Those of this script whose arguments are these, but for the seeds and for what changes no number."""
    free = {
        "seed", "num_seeds", "stand_in", "runs_dir", "resume", "eval", "render_video", "track", "checkpoint_interval",
    }  # fmt: skip
    defaults = {name: default for name, (_, default) in script_arguments(script).items()}
    settings = tuned_arguments(ROOT / f"{script}.py")  # of the task, where --tuned asks for them

    def fixed(values: dict[str, Any]) -> dict[str, Any]:
        left_out = free | settings if values.get("tuned") else free
        return {name: value for name, value in (defaults | values).items() if name not in left_out}

    return [run for run in runs if run["script"] == Path(script).name and fixed(run["args"]) == fixed(arguments)]


def is_refused(run: dict) -> bool:
    """Whether its data is what a script refuses with --no-stand-in."""
    task = d4rl.TASKS.get(run["args"]["env_id"])
    return bool(task and task.download_first and run["source"] == task.collected_source)


def is_finished(run: dict) -> bool:
    return len(run["results"]) == len(run["paths"])


def last_step(run: dict) -> int:
    """The step of its last evaluation: near enough to its checkpoint's for a plan."""
    try:
        with (run["paths"][0] / "metrics.csv").open(newline="") as file:
            return int([row["step"] for row in csv.DictReader(file)][-1])
    except (OSError, IndexError):
        return 0


def seed_groups(seeds: list[int], size: int) -> list[list[int]]:
    """Runs of consecutive seeds, at most `size` long: [0, 1, 2, 5], 2 -> [[0, 1], [2], [5]]."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1 and len(groups[-1]) < size:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def reached_alpha(runs: list[dict], arguments: dict[str, Any], seeds: list[int]) -> float | None:
    """Mean over the seeds of the α at the end of ASPC's finished runs with these arguments; None if a seed lacks."""
    ends = {
        seed: result["last"]["aspc/alpha"]
        for run in filter(is_finished, runs_of(runs, ASPC, arguments))
        for seed, result in zip(run["seeds"], run["results"], strict=True)
    }
    return round(float(np.mean([ends[seed] for seed in seeds])), 4) if ends.keys() >= set(seeds) else None


def make_plan(args: Args) -> tuple[list[Job], list[str]]:
    """All jobs in the order in which they shall run, and the suite's scripts that this checkout does not have.

    For each task and script: the seeds of finished runs need nothing, those of a run that stopped are resumed together,
    what is left forms new groups. Dead ends (no checkpoint) are left lying.
    """
    requests, given, missing = read_request(args)
    seeds, jobs = parse_seeds(args.seeds), {}
    runs = [run for run in read_runs(args.runs_dir) if args.stand_in or not is_refused(run)]

    def add(
        state: str, script: str, own: dict[str, Any], varied: dict[str, Any], group: list[int], run: dict | None = None
    ) -> None:
        shown = [f"{name}={own[name]}" for name in varied if name not in given]
        label = "__".join([own["env_id"], Path(script).name, "-".join(map(str, sorted({group[0], group[-1]}))), *shown])
        label = label.replace("/", "-")
        if label in jobs:
            sys.exit(f"This plan has the same job twice, {label}: does --set override what the suite varies?")
        python = [sys.executable, os.path.relpath(ROOT / f"{script}.py")]
        seed = {"seed": group[0]} | ({"num_seeds": len(group)} if len(group) > 1 else {})
        stand_in = {"stand_in": args.stand_in} if "stand_in" in script_arguments(script) else {}
        command = [*python, *flags(own | stand_in | seed | {"runs_dir": args.runs_dir})]
        if state == "resume":
            command = [*python, "--resume", str(run["paths"][0])]
        total = own.get("total_steps", script_arguments(script)["total_steps"][1])
        done = {"finished": total, "resume": run and last_step(run)}.get(state, 0)
        jobs[label] = Job(state, label, command, args.runs_dir / "logs" / f"{label}.log", group, done, total, script)

    for task, script, varied in requests:
        path = data_file(args, task)
        common = {"env_id": task} | ({"dataset_path": str(path)} if path else {}) | given
        own, left, new = common | varied | given, set(seeds), "new"
        if REACHED in own.values():
            alpha = reached_alpha(runs, common, seeds)
            new = "new" if alpha else "waits"
            own = {name: alpha if alpha and value == REACHED else value for name, value in own.items()}
        mine = runs_of(runs, script, own)
        for run in sorted(mine, key=lambda run: (is_finished(run), last_step(run)), reverse=True):
            overlap = left & set(run["seeds"])
            if overlap and is_finished(run):
                for group in seed_groups(sorted(overlap), len(overlap)):
                    add("finished", script, own, varied, group)
            elif overlap == set(run["seeds"]) and (run["paths"][0] / "checkpoint.pt").exists():
                add("resume", script, own, varied, run["seeds"], run)
            else:
                continue
            left -= overlap
        for group in seed_groups(sorted(left), args.seeds_per_run):
            add(new, script, own, varied, group)
    order = ["finished", "resume", "new", "waits"]  # and the first seed of everything before the second of anything
    return sorted(jobs.values(), key=lambda job: (order.index(job.state), job.seeds[0])), missing


def measured_speeds(folder: Path, compiled: bool) -> tuple[dict[str, float], str]:
    """Milliseconds of a gradient step of each script, one seed at batch 256, as `benchmark.speed` recorded them in
    folder/speed-*.json, and whose they are. A GPU's go before a CPU's, the quickest of several counts.
    """
    speeds: dict[str, dict[str, float]] = {"cuda": {}, "cpu": {}}
    modes = {"cuda": "compiled graph" if compiled else "graph", "cpu": "compiled" if compiled else "eager"}
    for path in sorted(folder.glob("speed-*.json")):
        record = json.loads(path.read_text())
        device = "cuda" if record["args"]["device"].startswith("cuda") else "cpu"
        for row in record["rows"]:
            script, _, how = row["variant"].partition(" ")
            if how == f"{modes[device]}, 1 x 256, width 256":
                speeds[device][script] = min(row["ms_per_step"], speeds[device].get(script, float("inf")))
    device = "cuda" if speeds["cuda"] else "cpu"
    return speeds[device], {"cuda": "GPU", "cpu": "CPU core"}[device]


def print_estimate(args: Args, jobs: list[Job]) -> None:
    """The training hours of the plan, without evaluations, by script, from measured speeds."""
    compiled = "compile=true" in (setting.replace(" ", "") for setting in args.set)
    speeds, unit = measured_speeds(ROOT / "docs" / "results", compiled)
    hours, unknown, steps = Counter(), set(), Counter()
    for job in jobs:
        to_do = (job.total - job.done) * len(job.seeds)
        steps[job.script] += to_do
        if job.script in speeds:
            hours[job.script] += to_do * speeds[job.script] / 3.6e6
        elif to_do:
            unknown.add(job.script)
    print(f"Training takes about {sum(hours.values()):,.0f} {unit} hours, at the speeds in docs/results/speed-*.json"
          + ("; no GPU was measured yet, so GPU hours cannot be told" if unit != "GPU" else "") + ":")  # fmt: skip
    for script, value in hours.items():
        print(f"  {script:24}{steps[script] / 1e6:8.1f} million steps x {speeds[script]:6.1f} ms ={value:9,.0f} hours")
    if unknown:
        print(f"  not counted, for no speed is recorded: {', '.join(sorted(unknown))}")


def print_plan(args: Args, jobs: list[Job], missing: list[str]) -> None:
    for job in jobs if args.dry_run else []:
        print(f"{job.state:10}{shlex.join(job.command)}")
    counts, to_do = Counter(job.state for job in jobs), sum(job.total - job.done for job in jobs)
    print(f"{len(jobs)} jobs in {args.runs_dir}: {counts['finished']} finished and skipped, {counts['resume']} to "
          f"resume, {counts['new']} new, {counts['waits']} waiting; {to_do:,} gradient steps to do.")  # fmt: skip
    if missing:
        print(f"Left out, since this checkout has no such script: {', '.join(missing)}.")
    if counts["waits"]:
        print("The waiting jobs take the α that ASPC reached on their task: all seeds of its runs there come first.")
    if args.steps_per_second:
        hours, at_a_time = to_do / args.steps_per_second / 3600, slots(args).qsize()
        print(f"At {args.steps_per_second:g} steps a second: {hours:.1f} hours one after another, "
              f"{hours / at_a_time:.1f} with {at_a_time} at a time.")  # fmt: skip
    elif args.dry_run and to_do:
        print_estimate(args, jobs)


# --- Running ----------------------------------------------------------------------------------------------------------


def run_job(job: Job, folder: str, threads: int, gpu: str | None) -> str:
    """Run a job to its end, its output appended to its log -> "finished", or why it is not.

    folder: the working directory of this program. gpu: the process's CUDA_VISIBLE_DEVICES; None leaves Ray's choice.
    """
    log_path = Path(folder, job.log)
    stop = log_path.parent / "stop"
    if stop.exists():
        return "not started"
    with log_path.open("ab") as log:
        try:  # the process inherits this lock with its output and holds it even if we are killed
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "failed: its process of an earlier start is still at work"
        settings = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        settings |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        environment = os.environ | settings
        shown = {name: environment.get(name, "") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        line = " ".join(f"{name}={value}" for name, value in shown.items()) + " " + shlex.join(job.command)
        log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {os.uname().nodename} $ {line}\n".encode())
        log.flush()
        process = subprocess.Popen(
            job.command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for this program, which passes it on once
        )  # fmt: skip
        while process.poll() is None and not stop.exists():
            time.sleep(0.2)
        if process.poll() is None:
            process.terminate()  # the scripts then write a checkpoint
            return "finished" if process.wait() == 0 else "stopped"
        if process.returncode < 0:
            return f"failed: killed by {signal.Signals(-process.returncode).name}"
        return f"failed: exit status {process.returncode}" if process.returncode else "finished"


def slots(args: Args) -> queue.SimpleQueue:
    """What CUDA_VISIBLE_DEVICES is to be in each of the runs at a time: GPUs in turn, or nothing."""
    free = queue.SimpleQueue()
    for gpu in args.gpus * args.per_gpu or ("",) * (args.jobs or max(1, (os.cpu_count() or 1) // args.threads)):
        free.put(gpu)
    return free


def local_engine(args: Args) -> Callable[[Job], Future]:
    free = slots(args)
    pool = ThreadPoolExecutor(free.qsize())

    def work(job: Job) -> str:
        gpu = free.get()
        try:
            return run_job(job, os.getcwd(), args.threads, gpu)
        finally:
            free.put(gpu)

    return lambda job: pool.submit(work, job)


def ray_engine(args: Args) -> Callable[[Job], Future]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        sys.exit("--engine ray needs Ray: pip install -r requirements-benchmark.txt, or take --engine local.")
    host, _, port = (args.address or "").removeprefix("ray://").rpartition(":")
    if port.isdigit():  # Ray itself asks a host that is not there for minutes
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            sys.exit(f"--address {args.address}: no Ray cluster answers there ({error}).")
    here = {} if args.address else {"num_cpus": args.threads * slots(args).qsize(), "include_dashboard": False}
    try:
        ray.init(args.address or "local", log_to_driver=False, logging_level="error", **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        sys.exit(f"--address {args.address}: no Ray cluster answers there ({error}).")
    share = 1 / args.per_gpu if args.per_gpu else 0
    if share > ray.cluster_resources().get("GPU", 0):
        sys.exit("--per-gpu: Ray knows of no GPU.")
    # A run that Ray began again by itself would begin from nothing: the next start of this program resumes it.
    remote = ray.remote(num_cpus=args.threads, num_gpus=share, max_retries=0)(run_job)
    return lambda job: remote.remote(job, os.getcwd(), args.threads, None if share else "").future()


# --- Watching ---------------------------------------------------------------------------------------------------------


def read_log(job: Job, start: int) -> list[str]:
    """The lines of a log's last 64 KiB behind byte `start`; of a progress bar, which overwrites itself, the last."""
    try:
        with job.log.open("rb") as file:
            file.seek(max(start, job.log.stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line]


def draw(lines: list[str], drawn: int, block: list[str]) -> int:
    """Print `lines` for good, then the block of progress, over the `drawn` lines of the one before -> its height."""
    if not sys.stdout.isatty():
        print("\n".join(lines), end="\n" * bool(lines), flush=True)
        return 0
    columns, rows = shutil.get_terminal_size()
    block = [line[: columns - 1] for line in block[: rows - 2]]
    print(f"\x1b[{drawn}F" * bool(drawn) + "\x1b[J" + "\n".join([*lines, *block, ""]), end="", flush=True)
    return len(block)


def execute(jobs: list[Job], submit: Callable[[Job], Future], logs: Path) -> list[str]:
    """Run the jobs, show how they fare, and say how each ended."""
    stop = logs / "stop"
    begins = {job.label: job.log.stat().st_size if job.log.exists() else 0 for job in jobs}
    steps, outcomes, drawn, start = {job.label: job.done for job in jobs}, [], 0, time.time()
    to_do = sum(job.total - job.done for job in jobs)
    pending = {submit(job): job for job in jobs}
    try:
        while pending:
            lines = []
            for future in wait(pending, 1, FIRST_COMPLETED).done:
                job = pending.pop(future)
                outcome = f"failed: {future.exception()}" if future.exception() else future.result()
                outcomes.append(outcome)
                if outcome != "not started":
                    lines.append(f"{len(outcomes)}/{len(jobs)} {job.label}: {outcome}")
                if outcome == "finished":
                    steps[job.label] = job.total
                elif outcome.startswith("failed"):
                    lines += [f"    {line}" for line in read_log(job, begins[job.label])[-15:]] + [f"    ({job.log})"]
            running = []
            if sys.stdout.isatty():
                for job in pending.values():
                    text = read_log(job, begins[job.label])
                    bars = re.findall(rf"(\d+)/{job.total} \[", "\n".join(text[-3:]))
                    steps[job.label] = int(bars[-1]) if bars else steps[job.label]
                    running += [f"{job.label[:48]:48} {re.sub(r'[|].*[|]', '', text[-1])}"] if text else []
            done, seconds = sum(steps.values()) - sum(job.done for job in jobs), time.time() - start
            head = f"{len(outcomes)} of {len(jobs)} jobs ended, {len(running)} running; {done:,} of {to_do:,} steps"
            head += f", about {timedelta(seconds=int(seconds * (to_do / done - 1)))} to go" if done else ""
            head = "Stopping: the runs write their checkpoints." if stop.exists() else head
            drawn = draw(lines, drawn, [head, *running] if pending else [])
    finally:
        if pending:  # this program fails: no run may be left without its watcher
            stop.touch()
    return outcomes


def main(args: Args) -> None:
    for name, least in (("jobs", 0), ("threads", 1), ("seeds_per_run", 1), ("per_gpu", 0)):
        if getattr(args, name) < least:
            sys.exit(f"--{name.replace('_', '-')} must be at least {least}.")
    if args.steps_per_second is not None and not args.steps_per_second > 0:
        sys.exit("--steps-per-second must be positive.")
    if args.address and args.engine != "ray":
        sys.exit("--address is for --engine ray.")
    jobs, missing = make_plan(args)
    print_plan(args, jobs, missing)
    if args.dry_run or not any(job.state in ("resume", "new") for job in jobs):
        return
    logs = args.runs_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    lock = (logs / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"Another benchmark.run is at work in {args.runs_dir}: two would train the same runs twice.")
    jobs, missing = make_plan(args)  # again, with what another benchmark.run may have ended before it gave up the lock
    (logs / "stop").unlink(missing_ok=True)
    submit = ray_engine(args) if args.engine == "ray" else local_engine(args)
    stops = []

    def request_stop(number: int, _) -> None:
        stops.append(number)
        (logs / "stop").touch()
        signal.signal(number, signal.SIG_DFL)  # a second one ends this program at once

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
            signal.signal(number, request_stop)

    outcomes: list[str] = []
    while ready := [job for job in jobs if job.state in ("resume", "new")]:
        with (args.runs_dir / "commands.txt").open("a") as file:
            file.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} python -m benchmark.run {shlex.join(sys.argv[1:])}\n")
            file.writelines(shlex.join(job.command) + "\n" for job in ready)
        outcomes += execute(ready, submit, logs)
        if set(outcomes) != {"finished"} or jobs[-1].state != "waits":
            break
        jobs, missing = make_plan(args)  # what waited for the runs that are now finished
        print_plan(args, jobs, missing)
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes)
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) + ".")
    if counts.keys() != {"finished"}:
        print("To go on, start the same command again.")
        sys.exit(128 + stops[0] if stops else 1)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, prog="python -m benchmark.run", description=__doc__))
    except OSError as error:
        sys.exit(str(error))
