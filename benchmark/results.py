"""What runs left behind and what the paper published, read from files: what `benchmark.report` is made of."""

import csv
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmark.scripts import DOMAINS, HOUSEKEEPING, ROOT, flags, read_arguments, tuned_arguments
from d4rl_gymnasium.tasks import ALL_TASKS, TASKS

SCRIPTS = {path.stem: path for room in (".", "baselines", "benchmark/ablations") for path in ROOT.glob(f"{room}/*.py")}
AVERAGES = DOMAINS | {"Total": list(TASKS)}
SCORE = "charts/normalized_score"

# Every script's name on every page and its colour in every picture, in the order of rows and legends. Ablations of ASPC
# have shades of its colour.
ALGORITHMS = {
    "aspc_td3bc": ("ASPC", "#d62728"), "td3bc": ("TD3+BC", "#1f77b4"), "a2pr": ("A2PR", "#2ca02c"),
    "iql": ("IQL", "#ff9f1c"), "wpc": ("wPC", "#9467bd"), "rebrac": ("ReBRAC", "#222222"),
    "aspc_iql": ("IQL+ASPC", "#a65e00"), "cql": ("CQL", "#17becf"), "aspc_cql": ("CQL+ASPC", "#0b5f66"),
    "diffusionql": ("Diffusion-QL", "#f47fc4"), "aspc_diffusionql": ("Diffusion-QL+ASPC", "#8f0f5e"),
    "fql": ("FQL", "#b5bd22"), "aspc_fql": ("FQL+ASPC", "#5e6b00"),
    "advantage_weighted_bc": ("ASPC, advantage-weighted BC", "#d62728"),
    **{f"l_bc_form{i}": (f"ASPC, L_BC ({i})", "#d62728") for i in (1, 2, 3, 5)},
    "one_step_delta_q": ("ASPC, one-step ΔQ", "#d62728"), "fresh_outer_batch": ("ASPC, fresh outer batch", "#d62728"),
}
# What the scale of the policy's constraint is called; of different kinds, numbers do not compare
SCALES = {"iql": "β", "cql": "CQL's α", "diffusionql": "η", "fql": "FQL's α"}

# Arguments that leave the algorithm and its measurement as they are, and those that set length and measurement of a
# run. Any other argument that is off its default makes a variant of the algorithm.
NEUTRAL = (*HOUSEKEEPING, "dataset_path", "matmul_precision")
PROTOCOL = ("total_steps", "batch_size", "eval_interval", "eval_episodes", "final_eval_episodes", "max_episode_steps")


# --- Runs -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run directory: config.json, the rows of metrics.csv, and result.json or None if the run has not ended."""

    name: str
    config: dict
    rows: list[dict[str, float]]
    result: dict | None

    def __post_init__(self):
        self.args, self.script, self.seed = self.config["args"], self.config["script"], self.config["seed"]
        # of several tasks in one process, args name all
        self.task = (self.result or {}).get("env_id") or self.config.get("env_id") or self.args["env_id"]
        self.dataset, self.device = self.config["dataset"], self.config["device"]
        commits = [(where["commit"] or "unknown")[:7] for where in [self.config, *self.config.get("resumed", [])]]
        self.commit = ", ".join(dict.fromkeys(commits))  # those of its resumptions too
        mode, long = self.args.get("compile"), self.args.get("total_steps", 0) >= 300_000
        self.compiled = mode in (True, "on") or (mode == "auto" and self.device != "cpu" and long)
        self.group = self.config["group"]  # seeds trained together in one process, whose time they share
        self.steps = int(self.rows[-1]["step"]) if self.rows else 0
        self.seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        self.off_default = off_default(self.script, self.args)
        options = {key: value for key, value in self.off_default.items() if key not in NEUTRAL}
        self.variant = {key: value for key, value in options.items() if key not in PROTOCOL}
        name, self.color = ALGORITHMS.get(self.script, (self.script, "#7f7f7f"))
        self.typed = " ".join([self.script, *flags(self.variant)])
        self.label = " ".join([name, *flags(self.variant)])  # on every page
        place = list(ALGORITHMS).index(self.script) if self.script in ALGORITHMS else len(ALGORITHMS)
        self.place = (place, self.label)  # in every list
        self.data = kind_of_data(self.task, self.dataset)
        setting = flags({key: value for key, value in options.items() if key in PROTOCOL})
        self.setting = " ".join(setting + [self.data] * bool(self.data))
        self.scale = SCALES.get(self.script.removeprefix("aspc_"), "α")
        self.start = self.args.get("alpha_init", self.args.get("alpha"))  # of that scale, where a script logs one
        ablation = self.script in SCRIPTS and SCRIPTS[self.script].parent.name == "ablations"
        self.main = self.variant.keys() <= {"tuned"} and not ablation
        if self.result is not None:
            self.scores = {
                "last": self.result["last"][SCORE],
                "best": self.result["best"][SCORE],
                "final": self.result["final_score"],
            }


def alpha(row: dict[str, float]) -> float:
    """α in a row of metrics.csv, under whichever script's name; NaN where a script has none."""
    return next((value for tag, value in row.items() if tag.endswith("/alpha")), math.nan)


def defaults(script: str) -> dict:
    """The defaults of a script's arguments; {} for a script that is not in this repository."""
    return {key: default for key, (_, default) in read_arguments(SCRIPTS[script]).items()} if script in SCRIPTS else {}


def off_default(script: str, args: dict) -> dict:
    """The arguments off their defaults. Of the settings that --tuned brought it is --tuned that counts."""
    known = defaults(script)
    settings = tuned_arguments(SCRIPTS[script]) if script in SCRIPTS and args.get("tuned") else ()
    off = {key: value for key, value in args.items() if key not in known or value != known[key]}
    return {key: value for key, value in off.items() if key not in settings}


def kind_of_data(task: str, dataset: dict) -> str:
    """"on stand-in data" where they call themselves that; "on own data" where they were given by path for a task of a
    benchmark and are not known to be its file; else "".
    """
    source, known = dataset["source"], ALL_TASKS.get(task)
    called = re.sub(r"^given: .*?( \(|$)", "", source)  # a file's name says nothing; a config of old has no `stand_in`
    if dataset.get("stand_in", "stand-in" in called):
        return "on stand-in data"
    by_path = source.startswith(("given:", "Minari:")) and known and f"({known.benchmark} (" not in source
    return "on own data" if by_path and dataset["sha256"] != known.dataset_sha256 else ""


def read_run(path: Path) -> Run:
    """The run in a directory. Exits with a sentence if a file is damaged or is not what a script writes."""
    file, rows, result = path / "config.json", [], None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        file = path / "metrics.csv"
        if file.exists():  # the first evaluation writes it
            with file.open(newline="", encoding="utf-8") as lines:
                rows = [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(lines)]
        file = path / "result.json"
        if file.exists():
            result = json.loads(file.read_text(encoding="utf-8"))
            if not rows:
                raise ValueError("no metrics.csv with an evaluation stands beside it")
        file = path  # what is missing below may be missing in any of the three
        return Run(path.name, config, rows, result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"{file} is damaged, or not what a run leaves ({type(error).__name__}: {error}).")


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """All runs below the folders, in the order of ALGORITHMS. Exits with a sentence if there are none."""
    for folder in folders:
        if not folder.is_dir():
            sys.exit(f"{folder} is not a folder.")
    paths = sorted({path.parent.resolve() for folder in folders for path in folder.rglob("config.json")})
    if not paths:
        sys.exit(f"No run directory (one with a config.json) lies below {', '.join(map(str, folders))}.")
    runs = [read_run(path) for path in tqdm(paths, desc="reading", unit="run", delay=2)]
    return sorted(runs, key=lambda run: (run.place, run.task, run.seed, run.name))


def without_repeats(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """A seed counts once: of runs alike but for their time a finished one, the latest. Gives (kept, left out)."""
    chosen: dict[tuple, Run] = {}
    for run in sorted(runs, key=lambda run: (run.result is not None, run.name)):
        chosen[run.label, run.setting, run.task, run.seed] = run
    kept = {id(run) for run in chosen.values()}
    return [run for run in runs if id(run) in kept], [run for run in runs if id(run) not in kept]


Groups = dict[str, dict[str, list[Run]]]  # label -> task -> runs, one a seed


def grouped(runs: Iterable[Run], name: Callable[[Run], str] = lambda run: run.label) -> Groups:
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[name(run)][run.task].append(run)
    return groups


def task_means(tasks: dict[str, list[Run]], kind: str = "last") -> dict[str, float]:
    return {task: float(np.mean([run.scores[kind] for run in runs])) for task, runs in tasks.items()}


# --- The paper's numbers ----------------------------------------------------------------------------------------------

# Where the paper published a script's scores on D4RL: table, column, whether with settings of each task (--tuned).
# Those of Table 1 are in its order.
PUBLISHED = {
    "td3bc": ("1", "TD3+BC", False), "a2pr": ("1", "A2PR", False), "iql": ("1", "IQL", True),
    "wpc": ("1", "wPC", False), "rebrac": ("1", "ReBRAC", True), "aspc_td3bc": ("1", "ASPC", False),
    "aspc_iql": ("3", "IQL+ASPC", False), "cql": ("3", "CQL", True), "aspc_cql": ("3", "CQL+ASPC", False),
    "diffusionql": ("3", "Diffusion-QL", True), "aspc_diffusionql": ("3", "Diffusion-QL+ASPC", False),
}


def unlike_paper(run: Run) -> list[str]:
    """Why a run's score does not compare with the paper's for its script; [] where it does."""
    tuned = PUBLISHED[run.script][2]
    reasons = {
        "it is a variant": not run.main,
        f"{run.args['total_steps']:,} gradient steps, the paper's are a million": run.args["total_steps"] != 1_000_000,
        f"a batch of {run.args.get('batch_size')}": "batch_size" in run.off_default and not run.args.get("tuned"),
        "not D4RL's file, or not known to be it": run.data,
        "one setting for all tasks, the paper has one for each": tuned and not run.args.get("tuned"),
        "settings of each task, the paper has one for all": not tuned and run.args.get("tuned"),
    }
    return [reason for reason, holds in reasons.items() if holds]


@cache
def read_published() -> list[dict[str, str]]:
    """The paper's Tables 1, 2, 3, 4 and 13 as printed: table, kind, task, algorithm, mean, std, percent, note; and as
    table "FQL" the success rates that FQL's authors published (Park et al. 2025, arXiv:2502.02538, their Table 3).

    `kind` is "cell", or "stated average" for the average of a column's cells as the paper prints it; `task` D4RL's (or
    OGBench's) id, or a key of `AVERAGES`; `percent` the gain printed in brackets. What is wrong or illegible in the
    paper stays as it is and is said in `note`.
    """
    with (Path(__file__).parent / "published.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def published(table: str, algorithm: str, kind: str = "cell") -> dict[str, dict[str, str]]:
    """{task or domain: row} of one column of one of the paper's tables."""
    rows = [row for row in read_published() if row["table"] == table and row["algorithm"] == algorithm]
    return {row["task"]: row for row in rows if row["kind"] == kind}
