"""Many runs: planned, started side by side, watched on one screen, and taken up again where they stopped.

    python -m benchmark.run --scripts aspc_td3bc baselines/td3bc --tasks locomotion-9 maze2d --seeds 0-3 --dry-run
    python -m benchmark.run --suite table2 --tasks maze2d --jobs 8

A job is one process: a script, arguments, and the learners that it trains side by side, tasks of one robot times seeds.
What has been done is read from the run directories themselves, so the same command started again skips the learners
that have finished, resumes the groups that have a checkpoint, and starts the rest; runs started by hand count as well.
Everything passes through files: run directories, one log a job, the files `stop` and `kill`. A thread of this process
(--engine local) or a Ray worker on another machine that sees the same folders (--engine ray) can therefore do the same
work with the same function, `run_job`.
"""

import ast
import itertools
import json
import math
import os
import platform
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
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import filelock

import d4rl_gymnasium as d4rl
from benchmark.estimates import print_estimate
from benchmark.found import Learner, is_held, is_refused, is_whole, last_step, reached_alpha, read_runs, runs_of
from benchmark.scripts import ROOT, command_line, flags, script_arguments, tuned
from benchmark.suites import ASPC, REACHED, SUITES, TASK_SETS, UNIONS


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
    learners_per_run: int | None = None
    """how many learners, tasks of one robot times seeds, train side by side in one process at most; by default 16 on a
    GPU, where they cost little more than one, and 1 on a CPU"""
    set: tuple[str, ...] = ()
    """key=value ...: arguments for every script, such as total_steps=200000 compile=off"""
    dataset_dir: Path | None = None
    """a task whose file ENV_ID.hdf5 is in this folder takes its data from there"""
    stand_in: bool = False
    """let MuJoCo tasks whose D4RL file cannot be had train on stand-ins; without it, such a run refuses and fails"""
    runs_dir: Path = Path("runs")
    """the folder of the run directories, of logs/ and of commands.txt (on a cluster: one that all machines share)"""
    dry_run: bool = False
    """print every job's state and command and the hours that they take, and stop"""
    set_aside: Path | None = None
    """move damaged run directories into this folder; without it they are named, and left where they are"""
    steps_per_second: float | None = None
    """of one process: estimate the hours of the plan by it, in place of the speeds in docs/results/speed-*.json"""

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


# --- What is asked for ------------------------------------------------------------------------------------------------


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
            choices = {"bool": {"true": True, "false": False}}.get(kind)
            if kind.startswith("Literal"):
                choices = {choice: choice for choice in ast.literal_eval(f"({kind[8:-1]},)")}
            try:
                parse = {"int": integer, "float": float}.get(kind, str)
                values[name] = choices[text] if choices else parse(text)
            except (ValueError, KeyError, OverflowError):
                sys.exit(f"--set {setting}: {name} takes {' or '.join(choices) if choices else f'one {kind}'}.")
    return values


def integer(text: str) -> int:
    """As the scripts read integers: 1e6 and 1_000_000 as well as 1000000."""
    if not float(text).is_integer():
        raise ValueError
    return int(float(text))


def parse_seeds(text: str) -> list[int]:
    """ "0,2,5-7" -> [0, 2, 5, 6, 7]"""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        sys.exit(f"--seeds {text}: write them as 0-3 or 0,2,5-7.")
    ranges = [part.split("-") for part in text.split(",")]
    if any(int(ends[-1]) >= 2**64 or int(ends[-1]) - int(ends[0]) >= 10**6 for ends in ranges):
        sys.exit(f"--seeds {text}: seeds are below 2^64, and a million of them too many.")
    seeds = sorted({seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)})
    return seeds or sys.exit(f"--seeds {text}: there is no seed in this range.")


def data_file(args: Args, task: str) -> Path | None:
    """The task's file in --dataset-dir, if it is there."""
    path = args.dataset_dir / f"{task.replace('/', '-')}.hdf5" if args.dataset_dir else None
    return path.resolve() if path and path.is_file() else None  # as it will stand in config.json


def read_request(args: Args) -> tuple[list[tuple[str, str, str, dict]], dict[str, Any]]:
    """What --suite, --scripts, --tasks and --set ask for: [(suite, task, script, arguments)], and arguments that all
    scripts get. Exits with a sentence where they make no sense.
    """
    if args.suite and args.suite not in SUITES | UNIONS:
        sys.exit(f"--suite {args.suite}: there are {', '.join(SUITES | UNIONS)}.")
    if bool(args.suite) == bool(args.scripts) or not (args.suite or args.tasks):
        sys.exit("Say what to run: either --suite, or --scripts and --tasks.")
    if args.dataset_dir and not args.dataset_dir.is_dir():
        sys.exit(f"--dataset-dir {args.dataset_dir}: there is no such folder.")
    parts = {part: SUITES[part] for part in UNIONS.get(args.suite, [args.suite])} if args.suite else {}
    parts = parts or {"": ([], [(script.removesuffix(".py"), {}) for script in args.scripts])}
    given = parse_settings(args.set, [script for _, variants in parts.values() for script, _ in variants])
    path = Path(given.get("dataset_path", "")).expanduser()
    if path.is_file():
        given["dataset_path"] = str(path.resolve())
    expand = lambda names: list(dict.fromkeys(task for name in names for task in TASK_SETS.get(name, [name])))  # noqa: E731
    wanted, requests = expand(args.tasks), []
    for task in wanted:
        if not (task in d4rl.ALL_TASKS or "dataset_path" in given or data_file(args, task)):
            sys.exit(f"--tasks {task}: neither a D4RL task, nor a set ({', '.join(TASK_SETS)}), nor a task whose file "
                     f"{task.replace('/', '-')}.hdf5 is in --dataset-dir.")  # fmt: skip
    for part, (names, variants) in parts.items():
        tasks = wanted or expand(names)
        if args.suite in UNIONS:
            tasks = [task for task in expand(names) if task in tasks]
        for task, (script, varied) in itertools.product(tasks, variants):
            if args.suite in UNIONS:  # what is varied to its default is not varied, and what two suites share is one
                known = script_arguments(script)
                varied = {name: value for name, value in varied.items() if value != known[name][1]}
                if any(request[1:] == (task, script, varied) for request in requests):
                    continue
            requests.append((part, task, script, varied))
    if not requests:
        sys.exit(f"--suite {args.suite} has none of these tasks: {', '.join(wanted)}.")
    return requests, given


# --- The plan ---------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One process, or what need not be started: a learner that has finished, a group that another process trains."""

    state: str  # finished, running (elsewhere), resume, new, or waits (for ASPC's α)
    label: str
    command: list[str]
    log: Path
    tasks: list[str]
    seeds: list[int]
    done: int  # gradient steps behind it
    total: int
    script: str = ""
    batch: int = 256
    part: str = ""  # of a suite of suites
    path: Path | None = None  # the directory of the run that it resumes

    @property
    def learners(self) -> list[tuple[str, int]]:
        return [(task, seed) for task in self.tasks for seed in self.seeds]


@dataclass
class Batch:
    """Tasks that one process could train, for they share script, arguments and the dimensions of their robot."""

    part: str
    script: str
    own: dict[str, Any]  # arguments off the defaults
    shown: list[str]  # those of them that tell this batch from others of the script
    state: str  # of its jobs: new, or waits
    tasks: list[str] = field(default_factory=list)

    def job(self, args: Args, state: str, tasks: list[str], seeds: list[int], run: Learner | None = None) -> Job:
        names = tasks[0] + (f"+{len(tasks) - 1}" if len(tasks) > 1 else "")
        span = "-".join(map(str, sorted({seeds[0], seeds[-1]})))
        label = "__".join([names, Path(self.script).name, span, *self.shown]).replace("/", "-")
        known, python = script_arguments(self.script), [sys.executable, os.path.relpath(ROOT / f"{self.script}.py")]
        workers = {"eval_workers": eval_workers(args)} if "eval_workers" in known.keys() - self.own.keys() else {}
        if state == "resume":
            command = [*python, "--resume", str(run.path), *flags(workers)]
        else:
            stand_in = {"stand_in": args.stand_in} if "stand_in" in known else {}
            several = {"num_seeds": len(seeds)} if len(seeds) > 1 else {}
            place = {"seed": seeds[0]} | several | {"runs_dir": args.runs_dir} | workers
            command = [*python, *flags({"env_id": tasks} | self.own | stand_in | place)]
        values = {name: default for name, (_, default) in known.items()} | self.own
        values |= tuned(ROOT / f"{self.script}.py").get(tasks[0], {}) if values.get("tuned") else {}
        total = values["total_steps"]
        done = total if state == "finished" else last_step(run) if run else 0
        return Job(
            state, label, command, args.runs_dir / "logs" / f"{label}.log", tasks, seeds, done, total, self.script,
            values.get("batch_size", 256), self.part, run and run.path,
        )  # fmt: skip


def robot(script: str, task: str, own: dict[str, Any]) -> list:
    """What tasks have in common that one process can train."""
    known = d4rl.ALL_TASKS.get(task)
    if not known or "dataset_path" in own or not script_arguments(script)["env_id"][0].startswith("tuple"):
        return [task]
    settings = tuned(ROOT / f"{script}.py").get(task) if own.get("tuned") else {}
    return [known.entry_point, known.observation_dim, known.action_dim, settings]


def seed_groups(seeds: list[int], size: int) -> list[list[int]]:
    """Runs of consecutive seeds, at most `size` long: [0, 1, 2, 5], 2 -> [[0, 1], [2], [5]]."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1 and len(groups[-1]) < size:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def groups_of(left: dict[str, list[int]], size: int) -> list[tuple[list[str], list[int]]]:
    """The seeds left to each task as groups, tasks x consecutive seeds, of at most `size` learners, nearly even."""
    tasks_of: dict[tuple, list[str]] = {}
    for task, seeds in left.items():
        for group in seed_groups(seeds, size):
            tasks_of.setdefault(tuple(group), []).append(task)
    groups = []
    for seeds, tasks in tasks_of.items():
        number = math.ceil(len(tasks) / (size // len(seeds)))
        most = math.ceil(len(tasks) / number)
        groups += [(tasks[i : i + most], list(seeds)) for i in range(0, len(tasks), most)]
    return groups


def make_plan(args: Args) -> tuple[list[Job], dict[Path, str]]:
    """What --suite, --scripts, --tasks and --seeds ask for, less what has been done: the jobs in the order in which
    they shall run, and the run directories that do not count, with the reason.

    A learner that has finished needs nothing, whatever it was trained with. A group that stopped is resumed as it is,
    one that another process trains is left to it, and the rest forms new groups. Dead ends (no checkpoint) are left
    lying.
    """
    requests, given = read_request(args)
    seeds = parse_seeds(args.seeds)
    learners, damaged = read_runs(args.runs_dir)
    learners = [learner for learner in learners if args.stand_in or not is_refused(learner)]
    batches: dict[str, Batch] = {}
    for part, task, script, varied in requests:
        path = data_file(args, task)
        common = ({"dataset_path": str(path)} if path else {}) | given
        own, state = common | varied | given, "new"
        key = [script, own, robot(script, task, own)]
        if REACHED in own.values():
            alpha = reached_alpha(learners, ASPC, common, task, seeds)
            own = {name: alpha if alpha and value == REACHED else value for name, value in own.items()}
            state, key = "new" if alpha else "waits", [script, own, task]
        shown = [f"{name}={own[name]}" for name in varied if name not in given]
        batch = batches.setdefault(json.dumps(key, sort_keys=True), Batch(part, script, own, shown, state))
        if task in batch.tasks:
            sys.exit(f"This plan has the same job twice, {batch.job(args, 'new', [task], seeds).label}: does --set "
                     "override what the suite varies?")  # fmt: skip
        batch.tasks.append(task)
    jobs, begun = [], set()
    for batch in batches.values():
        jobs += plan_batch(args, batch, seeds, learners, damaged, begun)
    order = ["finished", "running", "resume", "new", "waits"]
    jobs.sort(key=lambda job: (order.index(job.state), job.seeds[0]))  # the first seed of all before any second one
    return jobs, damaged


def plan_batch(
    args: Args, batch: Batch, seeds: list[int], learners: list[Learner], damaged: dict[Path, str], begun: set[Path]
) -> list[Job]:
    """The jobs of a batch. Damaged runs are added to `damaged`, and to `begun` those that resume or run: a run that was
    started by hand may have tasks of several batches.
    """
    mine = runs_of(learners, batch.script, batch.own)
    done = {one.path: (one.task, one.seed) for one in mine if one.result is not None}
    finished = set(done.values())
    wanted = [(task, seed) for task in batch.tasks for seed in seeds]
    jobs = [batch.job(args, "finished", [task], [seed]) for task, seed in wanted if (task, seed) in finished]
    left = {learner for learner in wanted if learner not in finished}
    taken, at = set(), {one.path: one for one in mine}
    heads = [one for one in mine if one.path == one.group[0] and one.group[-1] not in done]
    heads = [(is_held(one.path), last_step(one), one) for one in heads]
    for held, _, head in sorted(heads, key=lambda found: found[:2], reverse=True):  # the furthest first
        group = [at[path] for path in head.group if path in at]
        here = {(one.task, one.seed) for one in group}
        checkpoint = head.path / "checkpoint.pt"
        if not here & left or here & taken:
            continue
        if not held:
            of_old = isinstance(head.args["env_id"], str)  # of a time when scripts had one task
            if of_old or len(group) < len(head.group) or not checkpoint.exists():
                continue
            if not is_whole(checkpoint):
                damaged[head.path] = "its checkpoint.pt is not what was written"
                continue
        tasks, numbers = list(dict.fromkeys(one.task for one in group)), sorted({one.seed for one in group})
        if head.path not in begun:
            jobs.append(batch.job(args, "running" if held else "resume", tasks, numbers, head))
        begun.add(head.path)
        taken |= here
    rest = {task: [seed for seed in seeds if (task, seed) in left - taken] for task in batch.tasks}
    groups = groups_of(rest, args.learners_per_run or (16 if args.per_gpu else 1))
    return jobs + [batch.job(args, batch.state, *group) for group in groups]


def print_plan(args: Args, jobs: list[Job], damaged: dict[Path, str]) -> None:
    for path, why in damaged.items():
        print(f"{path} does not count: it is damaged, or no run ({why}). --set-aside FOLDER moves it there.")
    for job in jobs if args.dry_run else []:
        print(f"{job.state:10}{shlex.join(job.command)}")
    of = lambda state: [job for job in jobs if job.state == state]  # noqa: E731
    finished, to_do = len(of("finished")), [job for job in jobs if job.state in ("resume", "new", "waits")]
    steps = sum(job.total - job.done for job in to_do)
    print(f"{sum(len(job.learners) for job in to_do) + finished} learners in {args.runs_dir}: {finished} finished and "
          f"skipped; jobs: {len(of('resume'))} to resume, {len(of('new'))} new, {len(of('waits'))} waiting; "
          f"{steps:,} gradient steps to do.")  # fmt: skip
    for job in of("running"):
        print(f"{job.label} is left to the process that is at it ({job.path}).")
    if of("waits"):
        print("The waiting jobs take the α that ASPC reached on their task: all seeds of its runs there come first.")
    if args.steps_per_second:
        hours, at_a_time = steps / args.steps_per_second / 3600, slots(args).qsize()
        print(f"At {args.steps_per_second:g} steps a second: {hours:.1f} hours one after another, "
              f"{hours / at_a_time:.1f} with {at_a_time} at a time.")  # fmt: skip
    elif args.dry_run and to_do:
        compile = next((choice for choice in ("on", "off") if f"compile={choice}" in args.set), "auto")
        at_a_time = len(args.gpus) if args.per_gpu else slots(args).qsize()
        print_estimate(to_do, ROOT / "docs" / "results", "cuda" if args.per_gpu else "cpu", compile, at_a_time)


# --- Running ----------------------------------------------------------------------------------------------------------


def run_job(job: Job, folder: str, threads: int, gpu: str | None) -> str:
    """Run a job to its end, its output appended to its log -> "finished", or why it is not.

    folder: the working directory of this program. gpu: the process's CUDA_VISIBLE_DEVICES; None leaves Ray's choice.
    """
    log_path = Path(folder, job.log)
    stop, kill = log_path.parent / "stop", log_path.parent / "kill"
    if stop.exists():
        return "not started"
    with log_path.open("ab") as log:
        try:  # a process holds its log as long as it lives, before it holds a run directory and after its watcher
            if fcntl:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "left to the process that is at it"
        settings = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        settings |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        environment = os.environ | settings
        shown = {name: environment.get(name, "") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        line = " ".join(f"{name}={value}" for name, value in shown.items()) + " " + shlex.join(job.command)
        log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {platform.node()} $ {line}\n".encode())
        log.flush()
        process = subprocess.Popen(
            job.command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for this program, which passes it on once
        )  # fmt: skip
        stopped = False
        while process.poll() is None:
            if kill.exists():
                process.kill()
            elif stop.exists() and not stopped:
                process.terminate()  # the scripts then write a checkpoint
                stopped = True
            time.sleep(0.2)
        if process.returncode == 0:
            return "finished"
        if kill.exists() or stopped:
            return "killed" if kill.exists() else "stopped"
        if process.returncode < 0:
            return f"failed: killed by {signal.Signals(-process.returncode).name}"
        return f"failed: exit status {process.returncode}"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slots(args: Args) -> queue.SimpleQueue:
    """What CUDA_VISIBLE_DEVICES is to be in each of the runs at a time: GPUs in turn, or nothing."""
    free = queue.SimpleQueue()
    for gpu in args.gpus * args.per_gpu or ("",) * (args.jobs or max(1, cores() // args.threads)):
        free.put(gpu)
    return free


def eval_workers(args: Args) -> int:
    """The processes that evaluate beside a run's training: its share of the cores, less those that train."""
    share = args.threads if args.engine == "ray" else cores() // slots(args).qsize()
    return min(8, max(0, share - args.threads))


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


# What a script prints at an evaluation: the step, scores or returns of all learners, the time that is left
PROGRESS = re.compile(r"Step ([\d,]+) of [\d,]+: (\w+) \[([^]]*)\].*?, ((?:\d+ days?, )?[\d:]+) to go")


def read_log(job: Job, start: int) -> list[str]:
    """The lines of a log's last 64 KiB behind byte `start`; of a bar, which overwrites itself, the last state."""
    try:
        with job.log.open("rb") as file:
            file.seek(max(start, job.log.stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line]


def describe(job: Job, text: list[str]) -> tuple[int, str, list[tuple[str, str]]]:
    """How a job fares by the lines of its log: the step that it has reached, words on it, (task, its scores) ..."""
    found = PROGRESS.findall("\n".join(text))
    if not found:
        return job.done, text[-1] if text else "", []
    step, kind, numbers, left = found[-1]
    numbers, size = numbers.split(), len(job.seeds)
    scores = [f"{kind} {' '.join(numbers[k * size : (k + 1) * size])}" for k in range(len(job.tasks))]
    words = f"{step:>9} of {job.total:,}, {left} to go"
    return int(step.replace(",", "")), words, list(zip(job.tasks, scores, strict=True))


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
    steps, outcomes, drawn, start = {job.label: job.done for job in jobs}, [], 0, time.monotonic()
    to_do = sum(job.total - job.done for job in jobs)
    pending = {submit(job): job for job in jobs}
    try:
        while pending:
            lines = []
            for future in wait(pending, 1, FIRST_COMPLETED).done:
                job = pending.pop(future)
                outcome = f"failed: {future.exception()}" if future.exception() else future.result()
                outcomes.append(outcome)
                if outcome == "not started":
                    continue
                text = read_log(job, begins[job.label])
                steps[job.label], _, scores = describe(job, text)
                lines.append(f"{len(outcomes)}/{len(jobs)} {job.label}: {outcome}")
                if outcome == "finished":
                    steps[job.label] = job.total
                    lines += [f"    {task:44} {score}" for task, score in scores]
                elif outcome.startswith("failed"):
                    lines += [f"    {line}" for line in text[-15:]] + [f"    ({job.log})"]
                    lines += [f"    To begin it anew, move {job.path} out of this folder."] * bool(job.path)
            running = []
            if sys.stdout.isatty():
                for job in pending.values():
                    if text := read_log(job, begins[job.label]):
                        steps[job.label], words, scores = describe(job, text)
                        words += f", {scores[0][1]}" if len(scores) == 1 else ""
                        rows = [f"    {task:44} {score}" for task, score in scores] if len(scores) > 1 else []
                        running.append([f"{job.label[:48]:48} {words}", *rows])
                if sum(map(len, running)) > shutil.get_terminal_size().lines - 3:
                    running = [rows[:1] for rows in running]
            done, seconds = sum(steps.values()) - sum(job.done for job in jobs), time.monotonic() - start
            head = f"{len(outcomes)} of {len(jobs)} jobs ended, {len(running)} running; {done:,} of {to_do:,} steps"
            head += f", about {timedelta(seconds=int(seconds * (to_do / done - 1)))} to go" if done else ""
            head = "Stopping: the runs write their checkpoints. A second Ctrl-C kills them." if stop.exists() else head
            drawn = draw(lines, drawn, [head, *itertools.chain(*running)] if pending else [])
    finally:
        if pending:  # this program fails: no run may be left without its watcher
            stop.touch()
            wait(pending)
    return outcomes


def main(args: Args) -> None:
    for name, least in (("jobs", 0), ("threads", 1), ("learners_per_run", 1), ("per_gpu", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            sys.exit(f"--{name.replace('_', '-')} must be at least {least}.")
    if args.steps_per_second is not None and not args.steps_per_second > 0:
        sys.exit("--steps-per-second must be positive.")
    if args.address and args.engine != "ray":
        sys.exit("--address is for --engine ray.")
    jobs, damaged = make_plan(args)
    print_plan(args, jobs, damaged)
    to_move = damaged if args.set_aside else {}
    if args.dry_run or not (to_move or any(job.state in ("resume", "new") for job in jobs)):
        return
    logs = args.runs_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(logs / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        sys.exit(f"Another benchmark.run is at work in {args.runs_dir}: two would train the same runs twice.")
    for path in to_move:
        args.set_aside.mkdir(parents=True, exist_ok=True)
        print(f"{path} stands in {shutil.move(path, args.set_aside)} now.")
    jobs, _ = make_plan(args)  # again, with what another benchmark.run may have ended before it gave up the lock
    for name in ("stop", "kill"):
        (logs / name).unlink(missing_ok=True)
    submit = ray_engine(args) if args.engine == "ray" else local_engine(args)
    stops: list[tuple[int, float]] = []

    def request_stop(number: int, _) -> None:
        stops.append((number, time.monotonic()))
        (logs / "stop").touch()
        if stops[-1][1] - stops[0][1] > 1:  # not what `timeout` sends twice: somebody who waits no longer
            (logs / "kill").touch()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
            signal.signal(number, request_stop)

    outcomes: list[str] = []
    while ready := [job for job in jobs if job.state in ("resume", "new")]:
        with (args.runs_dir / "commands.txt").open("a") as file:
            file.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} python -m benchmark.run {shlex.join(sys.argv[1:])}\n")
            file.writelines(shlex.join(job.command) + "\n" for job in ready)
        outcomes += execute(ready, submit, logs)
        if set(outcomes) != {"finished"} or jobs[-1].state != "waits":
            break
        jobs, damaged = make_plan(args)  # what waited for the runs that are now finished
        print_plan(args, jobs, damaged)
    lock.release()
    if not outcomes:
        return
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes)
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) + ".")
    if counts.keys() != {"finished"}:
        print("To go on, start the same command again.")
        sys.exit(128 + stops[0][0] if stops else 1)


if __name__ == "__main__":
    try:
        main(command_line(Args, "python -m benchmark.run", __doc__))
    except OSError as error:
        sys.exit(str(error))
