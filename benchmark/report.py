"""The paper's tables and figures from the files that runs left, beside what the paper published.

    python -m benchmark.report runs --out report

Reads config.json, metrics.csv and result.json of every run directory below the given folders, and nothing else. Writes
report.md and report.html (one page with its pictures inside), beside them every table as CSV and every picture as PNG;
runs.csv (a row a run) and evaluations.csv (a row an evaluation) hold the numbers in full. The same files in give the
same bytes out. How to read it: docs/benchmark.md.
"""

import importlib.util
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from benchmark.aggregate import deviation, improvement, interval, iqm, profile, resample
from benchmark.comparisons import ablations
from benchmark.page import Page, figure, heading, legend, number, picture, table, text, write, write_csv
from benchmark.results import (
    AVERAGES,
    PUBLISHED,
    SCORE,
    SCRIPTS,
    Groups,
    Run,
    alpha,
    grouped,
    published,
    read_published,
    read_runs,
    task_means,
    without_repeats,
)
from benchmark.scripts import DOMAINS, ROOT, flags
from d4rl_gymnasium.tasks import ALL_TASKS, OGBENCH_TASKS, TASKS


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """folders with run directories somewhere below them, or run directories"""
    out: Path = Path("report")
    """the folder that receives the report"""


# --- Tables -----------------------------------------------------------------------------------------------------------


def shared(groups: Groups) -> str:
    """The setting that stands in no label, since all runs have it."""
    return next(runs[0].shared for tasks in groups.values() for runs in tasks.values())


def spread(values: list[float], form: str = ".1f") -> str:
    """Mean ± standard deviation (number of seeds)."""
    return f"{np.mean(values):{form}}" + f" ± {deviation(values):{form}}" * (len(values) > 1) + f" ({len(values)})"


def average(means: dict[str, float], tasks: list[str], form: str = ".1f") -> str:
    """The mean over the tasks that there are, marked where these are not all."""
    present = [means[task] for task in tasks if task in means]
    mark = f" ({len(present)} of {len(tasks)} tasks)" * (len(present) < len(tasks))
    return format(np.mean(present), form) + mark if present else "–"


def our_column(tasks: dict[str, list[Run]], kind: str) -> dict[str, str]:
    means = task_means(tasks, kind)
    column = {task: spread([run.scores[kind] for run in runs]) for task, runs in tasks.items()}
    return column | {f"{domain} average": average(means, of) for domain, of in AVERAGES.items()}


def paper_columns(tasks: dict[str, list[Run]], source: tuple[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The paper's numbers and our differences from them. An average is over the tasks that we and the paper have; the
    average that the paper states stands in a row of its own, for it is not always that of its cells.
    """
    cells, stated = published(*source), published(*source, kind="stated average")
    ours, theirs = task_means(tasks), {task: float(row["mean"]) for task, row in cells.items()}
    paper = {task: f"{row['mean']} ± {row['std']}" if row["std"] else row["mean"] for task, row in cells.items()}
    common = {task: theirs[task] for task in ours if task in theirs}
    paper |= {f"{domain} average": average(common, of) for domain, of in AVERAGES.items()}
    paper |= {f"{domain}, as the paper states it": row["mean"] for domain, row in stated.items()}
    if any(run.stand_in for runs in tasks.values() for run in runs):
        return paper, {}  # scores on other data are not comparable
    off = {task: ours[task] - theirs[task] for task in common}
    difference = {task: f"{value:+.1f}" for task, value in off.items()}
    return paper, difference | {f"{domain} average": average(off, of, "+.1f") for domain, of in AVERAGES.items()}


def scores_table(name: str, groups: Groups, kind: str, paper: bool = False) -> tuple:
    """The layout of the paper's Table 1: tasks, domain averages and total; a column for each label. Beside the paper's
    numbers every task of a domain has its row, otherwise those that ran.
    """
    columns: list[tuple[str, dict[str, str]]] = []
    for label, tasks in groups.items():
        columns.append((label, our_column(tasks, kind)))
        source = PUBLISHED.get(next(iter(tasks.values()))[0].script)
        if paper and source:
            theirs, difference = paper_columns(tasks, source)
            columns += [(f"paper, {source[1]}", theirs)] + [("difference", difference)] * bool(difference)
    names = []
    for domain, tasks in AVERAGES.items():
        ran = [task for task in tasks if any(task in of for of in groups.values())]
        if domain in DOMAINS and ran:  # of a domain without runs the average's – says it all
            names += tasks if paper else ran
        if ran or paper:
            names += [f"{domain} average"] + [f"{domain}, as the paper states it"] * paper
    rows = [[row, *(column.get(row, "–") for _, column in columns)] for row in names]
    return table(name, ["task", *(head for head, _ in columns)], rows)


def scores(groups: Groups) -> Page:
    if not groups:
        return [text("No algorithm with its default arguments has a finished run on a task of D4RL.")]
    page = [
        heading("Scores (the paper's Table 1)"),
        text("Last checkpoint: the last evaluation during training (10 episodes by default, the paper's protocol). "
             "Normalized score, mean ± standard deviation over seeds (ddof 1), in brackets the number of seeds; – is "
             "missing. An average is the mean of its tasks' means. Where tasks are missing it says so, and the paper's "
             "number beside it is the mean of its cells for the same tasks."),
    ]
    runs = [run for tasks in groups.values() for members in tasks.values() for run in members]
    if any(run.stand_in for run in runs):
        page.append(text("Stand-in data: not D4RL's own file, or not known to be it. Scores on it are not comparable "
                         "with published ones, so no difference is formed."))
    page.append(scores_table("table1", groups, "last", paper=True))
    shown = {PUBLISHED.get(run.script) for run in runs}
    notes = [row for row in read_published() if row["note"] and (row["table"], row["algorithm"]) in shown]
    if notes:
        keys = ("table", "kind", "task", "algorithm", "mean", "note")
        page += [text("What is odd in the paper's numbers:"),
                 table("notes", list(keys), [[row[key] for key in keys] for row in notes])]
    return page + [
        heading("Final evaluation"),
        text("The last checkpoint again, in the evaluation after training: 100 episodes by default."),
        scores_table("final", groups, "final"),
        heading("Best checkpoint"),
        text("Chosen by its score in the simulator, with knowledge that offline learning does not have: not a result."),
        scores_table("best", groups, "best"),
    ]


def ogbench(runs: list[Run]) -> Page:
    """Table 4: success rates on OGBench's tasks, a column for each label, and what ASPC gains over FQL."""
    groups, columns = grouped(runs), []
    if not groups:
        return []
    firsts = {label: next(iter(tasks.values()))[0] for label, tasks in groups.items()}
    bases = {firsts[label].setting: task_means(groups[label]) for label in groups if firsts[label].script == "fql"}
    for label, tasks in groups.items():
        means = task_means(tasks)
        column = {task: spread([run.scores["last"] for run in members]) for task, members in tasks.items()}
        columns.append((label, column | {"average": average(means, list(OGBENCH_TASKS))}))
        base = bases.get(firsts[label].setting, {}) if firsts[label].script == "aspc_fql" else {}
        if base:  # FQL of the same length, on the same kind of data
            gains = {task: f"{means[task] / base[task] - 1:+.1%}" for task in means if base.get(task)}
            columns.append(("gain over FQL", gains))
    paper = published("4", "FQL+ASPC") | {"average": published("4", "FQL+ASPC", "stated average")["Total"]}
    columns.append(("paper's gain, sign lost", {name: row["percent"] for name, row in paper.items()}))
    rows = [[name, *(column.get(name, "–") for _, column in columns)] for name in (*OGBENCH_TASKS, "average")]
    return [
        heading("OGBench (the paper's Table 4)"),
        text("Success rate in percent at the last evaluation during training, mean ± standard deviation over seeds, in "
             "brackets the number of seeds. FQL's authors report the mean of the last three evaluations."),
        table("table4", ["task", *(head for head, _ in columns)], rows),
    ]


def beside(titles: tuple[str, ...], means: list[dict], cells: list[dict], tasks: list[str]) -> list[tuple[str, dict]]:
    """Columns of two algorithms and of what the second gains, with averages over the tasks that both have."""
    gains = {task: means[1][task] - means[0][task] for task in tasks if task in means[0] and task in means[1]}
    cells = [*cells, {task: f"{gain:+.1f}" for task, gain in gains.items()}]
    averages = [average({task: of[task] for task in gains}, tasks) for of in means] + [average(gains, tasks, "+.1f")]
    return [(title, of | {"average": end}) for title, of, end in zip(titles, cells, averages, strict=True)]


def table_3(groups: Groups) -> Page:
    """Table 3: an algorithm, the same with ASPC under the same protocol, what that gains, the paper's three columns."""
    firsts = {label: next(iter(tasks.values()))[0] for label, tasks in groups.items()}
    tasks, columns = list(published("3", "IQL")), []
    for base, ours in ((x, y) for x in groups for y in groups if firsts[y].script == f"aspc_{firsts[x].script}"):
        number, name = PUBLISHED.get(firsts[ours].script, ("", ""))
        if number != "3" or firsts[base].setting != firsts[ours].setting:
            continue
        names = (name.removesuffix("+ASPC"), name)
        means = [task_means(groups[label]) for label in (base, ours)]
        paper = [{task: float(row["mean"]) for task, row in published("3", x).items()} for x in names]
        paper = [{task: of[task] for task in tasks if task in means[0] and task in means[1]} for of in paper]
        columns += beside((base, ours, "gain"), means, [our_column(groups[x], "last") for x in (base, ours)], tasks)
        cells = [{task: f"{value:.1f}" for task, value in of.items()} for of in paper]
        columns += beside((f"paper, {names[0]}", f"paper, {names[1]}", "gain"), paper, cells, tasks)
    if not columns:
        return []
    ran = [task for task in tasks if any(task in column for _, column in columns)]
    rows = [[name, *(column.get(name, "–") for _, column in columns)] for name in (*ran, "average")]
    return [
        heading("ASPC on other algorithms (the paper's Table 3)"),
        text("Last checkpoint, mean ± standard deviation over seeds, in brackets their number. A base whose "
             "column says --tuned has its per-task settings, ASPC one setting for all. A gain is in points of score. "
             "Averages are over the tasks that ran with both; of these are the paper's numbers."),
        table("table3", ["task", *(title for title, _ in columns)], rows),
    ]


def variants(groups: Groups) -> Page:
    if not groups:
        return []
    means = {label: task_means(tasks) for label, tasks in groups.items()}
    rows = [[label, *(average(of, tasks) for tasks in AVERAGES.values())] for label, of in means.items()]
    return [heading("Averages of all variants"), text("Of last checkpoints."), table("variants", ["", *AVERAGES], rows)]


# --- Aggregates -------------------------------------------------------------------------------------------------------


def aggregates(groups: Groups) -> Page:
    """IQM, performance profiles, probability of improvement and the radar chart, of last checkpoints."""
    if not groups:
        return []
    samples = {
        label: {task: np.array([run.scores["last"] for run in runs]) for task, runs in tasks.items()}
        for label, tasks in groups.items()
    }
    rows, thresholds = [], np.linspace(-10, 130, 141)
    drawing, [[axis]] = figure(1, 1, 6.5, 4)
    for label, sample in samples.items():
        runs, draws = np.concatenate([*sample.values()]), np.concatenate(resample([*sample.values()]), -1)
        low, high = interval(iqm(draws))
        count = f"{len(sample)} of {len(TASKS)}"
        rows.append([label, count, str(len(runs)), f"{iqm(runs):.1f}", f"{low:.1f} to {high:.1f}"])
        (line,) = axis.plot(thresholds, profile(runs, thresholds), label=f"{label} ({count} tasks)")
        axis.fill_between(thresholds, *interval(profile(draws, thresholds)), color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="normalized score τ", ylabel="share of runs with a score above τ", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    legend(drawing, shared(groups))
    pairs = []
    for x, y in ((x, y) for x in samples for y in samples if x != y):
        common = [task for task in samples[x] if task in samples[y]]
        if common:
            ours, theirs = [samples[x][task] for task in common], [samples[y][task] for task in common]
            low, high = interval(improvement(resample(ours), resample(theirs, seed=1)))
            pairs.append([x, y, str(len(common)), f"{improvement(ours, theirs):.2f}", f"{low:.2f} to {high:.2f}"])
    page = [
        heading("Aggregates over tasks (Fig. 2)"),
        text("Of last checkpoints, with 95% stratified bootstrap intervals. They know the variation between seeds "
             "alone: with one seed a task they have no width and say nothing. Labels compare only where they have the "
             "same tasks."),
        table("iqm", ["label", "tasks", "runs", "interquartile mean", "95% interval"], rows),
        picture("profiles", drawing, "Performance profiles with pointwise 95% intervals."),
    ]
    if pairs:
        page += [text("Probability of improvement: that a run of X beats a run of Y on the same task."),
                 table("improvement", ["X", "Y", "common tasks", "P(X > Y)", "95% interval"], pairs)]
    return page + radar(groups)


def radar(groups: Groups) -> Page:
    """Domain averages, each domain scaled to its lowest and highest polygon; a label with gaps has none to draw."""
    ours = {label: task_means(tasks) for label, tasks in groups.items() if len(tasks) == len(TASKS)}
    if not ours:
        return [text(f"No radar chart: that needs one label's scores on all {len(TASKS)} tasks.")]
    paper = {
        f"paper, {name}": {task: float(row["mean"]) for task, row in published(number, name).items()}
        for number, name in PUBLISHED.values()
        if number == "1"
    }
    polygons = ours | paper
    means = np.array([[np.mean([of[t] for t in tasks]) for tasks in DOMAINS.values()] for of in polygons.values()])
    scaled = (means - means.min(0)) / (means.max(0) - means.min(0))
    angles = np.arange(len(DOMAINS) + 1) * 2 * np.pi / len(DOMAINS)
    drawing, [[axis]] = figure(1, 1, 7, 4.5, subplot_kw={"projection": "polar"})
    for name, values in zip(polygons, scaled, strict=True):
        width, style = (2, "-") if name in ours else (1, ":")
        axis.plot(angles, [*values, values[0]], style, lw=width, label=name)
    axis.set_xticks(angles[:-1], DOMAINS)
    axis.tick_params(pad=16)
    axis.tick_params(axis="y", labelsize=7)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.1, 1))
    caption = "Domain averages, each domain from its lowest (0) to its highest (1); dotted: means of the paper's cells."
    return [picture("radar", drawing, caption)]


# --- Curves -----------------------------------------------------------------------------------------------------------


def curve(runs: list[Run], value: Callable[[dict], float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and standard deviation (0 of one run) over the runs evaluated at each step: three of (steps,)."""
    values = defaultdict(list)
    for run in runs:
        for row in run.rows:
            values[row["step"]].append(value(row))
    steps = sorted(values)
    band = np.nan_to_num([deviation(values[step]) for step in steps])
    return np.array(steps), np.array([np.mean(values[step]) for step in steps]), band


def panels(lines: Groups, value: Callable[[dict], float], ylabel: str):
    """A figure with a panel for each title and in it a line with its band for each label: {title: {label: runs}}."""
    columns = min(3, len(lines))
    seeds = defaultdict(set)
    for line in lines.values():
        for label, runs in line.items():
            seeds[label].add(len(runs))
    colors = {label: f"C{i}" for i, label in enumerate(seeds)}  # ten colours, then again from the first
    names = {label: f"{label} ({' to '.join(map(str, sorted({min(n), max(n)})))})" for label, n in seeds.items()}
    drawing, axes = figure(math.ceil(len(lines) / columns), columns, 4.6, 3.2)
    for axis in axes.flat[len(lines) :]:
        axis.set_axis_off()
    for axis, (title, line) in zip(axes.flat, lines.items(), strict=False):
        for label, runs in line.items():
            steps, mean, band = curve(runs, value)
            axis.plot(steps, mean, color=colors[label], label=names[label])
            axis.fill_between(steps, mean - band, mean + band, color=colors[label], alpha=0.2, lw=0)
        axis.set(title=title, xlabel="gradient steps", ylabel=ylabel)
        axis.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:g}k")
        axis.grid(alpha=0.3)
    legend(drawing, shared(lines))
    return drawing


def curves(runs: list[Run]) -> Page:
    """Figs 8 and 7, a picture a domain; Figs 3 and 4: the datasets of a robot or maze in one panel."""
    groups = grouped(run for run in runs if run.rows)
    if not groups:
        return []
    page = [
        heading("Learning curves and α (Figs 3, 4, 7, 8)"),
        text("Mean and standard deviation over seeds, in brackets their number. Unfinished runs are drawn as far as "
             "they got; where a seed stops early, the line goes on with the others."),
    ]
    for domain, tasks in tqdm(DOMAINS.items(), desc="curves", unit="domain", delay=2, leave=False):
        lines = {task: {label: of[task] for label, of in groups.items() if task in of} for task in tasks}
        lines = {task: line for task, line in lines.items() if line}
        if lines:
            drawing = panels(lines, lambda row: row[SCORE], "normalized score")
            page.append(picture(f"score_{domain}", drawing, f"{domain}: score of the evaluations during training."))
        lines = {task: {label: of for label, of in line.items() if not math.isnan(alpha(of[0].rows[-1]))}
                 for task, line in lines.items()}  # fmt: skip
        lines = {task: line for task, line in lines.items() if line}
        if lines:
            page.append(picture(f"alpha_{domain}", panels(lines, alpha, "α"), f"{domain}: α."))
    for i, label in enumerate(label for label in groups if label.startswith("aspc")):
        lines = defaultdict(dict)
        for task in (task for task in TASKS if task in groups[label]):
            robot, data = task.split("-", 1)
            lines[robot][data] = groups[label][task]
        page.append(picture(f"alpha_by_data_{i + 1}", panels(lines, alpha, "α"), f"α of {label}, by dataset."))
    ends = {label: {task: [alpha(run.rows[-1]) for run in runs if run.result] for task, runs in of.items()}
            for label, of in groups.items() if label.startswith("aspc")}  # fmt: skip
    tasks = [task for task in TASKS if any(of.get(task) for of in ends.values())]
    if tasks:
        rows = [[task, *(spread(of[task], ".3f") if of.get(task) else "–" for of in ends.values())] for task in tasks]
        page += [text("α at the last evaluation of finished runs:"), table("alpha", ["task", *ends], rows)]
    return page


# --- What ran ---------------------------------------------------------------------------------------------------------


def runtime(runs: list[Run]) -> Page:
    """Fig. 5: hours for a million steps, apart for everything that speed depends on."""
    hours = defaultdict(dict)  # seeds trained together count once
    for run in runs:
        if run.main or run.variant.keys() == {"alpha_interval"}:
            how = f"{run.device}, seeds at once: {len(run.group)}" + ", compiled" * run.args.get("compile", False)
            hours[run.algorithm, how][run.group[0]] = run.seconds / run.steps / 3600 * 1e6
    if not hours:
        return []
    means = {key: np.mean([*of.values()]) for key, of in sorted(hours.items())}
    rows = [[*key, str(len(hours[key])), f"{mean:.2f}"] for key, mean in means.items()]
    drawing, [[axis]] = figure(1, 1, 8, 1 + 0.4 * len(means))
    axis.barh([f"{algorithm}\n{how}" for algorithm, how in means], [*means.values()], height=0.6)
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.set_xlabel("hours for a million gradient steps")
    return [
        heading("Runtime (Fig. 5)"),
        text("Of training without evaluations, by the clock: whatever else the machine did counts in."),
        table("runtime", ["algorithm", "how", "processes", "hours for a million steps"], rows),
        picture("runtime", drawing, "Hours for a million gradient steps."),
    ]


def others(runs: list[Run]) -> Page:
    """Tasks of neither benchmark: raw returns."""
    rows = [
        [task, label, spread([run.result["last"]["charts/episodic_return"] for run in members])]
        for label, tasks in grouped(runs).items()
        for task, members in tasks.items()
    ]
    head = ["task", "label", "return of the last checkpoint"]
    return [heading("Other tasks"), table("others", head, rows)] if rows else []


def command(run: Run) -> str:
    """What was typed, but for seeds, folders and device; of a dataset's path the name, for its sha256 stands beside."""
    options = {"env_id": run.task} | run.off_default
    for key in ("seed", "num_seeds", "runs_dir", "device", "resume"):
        options.pop(key, None)
    path = options.get("dataset_path")
    if path and not path.startswith("minari:"):
        options["dataset_path"] = Path(path).name
    script = SCRIPTS[run.script].relative_to(ROOT) if run.script in SCRIPTS else f"{run.script}.py"
    return " ".join(["python", str(script), *flags({k: v for k, v in options.items() if v is not None})])


def what_ran(runs: list[Run]) -> Page:
    alike = defaultdict(list)
    for run in runs:
        steps = f"{run.steps:,}" if run.result else f"{run.steps:,} of {run.args['total_steps']:,}"
        data = f"{run.dataset['source']}, sha256 {run.dataset['sha256'][:12]}"
        alike[command(run), steps, run.commit, run.device, data].append(run)
    rows = []
    for (typed, *rest), members in sorted(alike.items()):
        hours = sum({run.group[0]: run.seconds for run in members}.values()) / 3600
        rows.append([typed, ", ".join(str(run.seed) for run in members), f"{hours:.2f}", *rest])
    head = ["command", "seeds", "hours", "steps", "commit", "device", "data"]
    return [heading("What ran"), text("Hours of training for all seeds; seeds trained in one process share theirs."),
            table("what_ran", head, rows)]


def not_counted(runs: list[Run], repeats: list[Run]) -> Page:
    page, rows = [], []
    for run in runs:
        if not run.result:
            score = number(run.rows[-1][SCORE]) if run.rows else "–"
            rows.append([run.name, run.label, f"{run.steps:,} of {run.args['total_steps']:,}", score])
    if rows:
        page += [heading("Unfinished runs"), text("In the curves, but in no table of scores."),
                 table("unfinished", ["run", "label", "steps", "last score"], rows)]
    if repeats:
        names = ", ".join(run.name for run in repeats)
        page += [heading("Repeats"), text("A seed counts once. Left out, since a later or finished run has their task, "
                                          f"label and seed: {names}.")]
    for label, tasks in grouped(runs).items():
        for task, members in tasks.items():
            if len({run.dataset["sha256"] for run in members}) > 1:
                page.append(text(f"Mixed data: not all runs of {label} on {task} had the same dataset."))
    return page


def write_numbers(runs: list[Run], out: Path) -> None:
    """runs.csv and evaluations.csv, unrounded, for whoever wants to count otherwise."""
    head, rows = ["run", "label", "task", "seed"], []
    about = {run.name: [run.name, run.label, run.task, run.seed] for run in runs}
    for run in runs:
        recent = np.mean([row[SCORE] for row in run.rows[-10:]] or [math.nan])
        end = alpha(run.rows[-1]) if run.rows else math.nan
        ended = [*run.scores.values(), int(run.result["best"]["step"])] if run.result else [""] * 4
        where = [run.seconds, run.commit, run.device, run.dataset["source"]]
        rows.append([*about[run.name], run.steps, recent, end, *ended, *where])
    columns = ["steps", "mean_of_last_ten", "alpha", "last", "best", "final", "best_step"]
    write_csv(out / "runs.csv", [*head, *columns, "seconds", "commit", "device", "data"], rows)
    tags = dict.fromkeys(tag for run in runs for row in run.rows for tag in row)
    rows = [[*about[run.name], *(row.get(tag, "") for tag in tags)] for run in runs for row in run.rows]
    write_csv(out / "evaluations.csv", [*head, *tags], rows)


def build(runs: list[Run], repeats: list[Run]) -> Page:
    finished = [run for run in runs if run.result and run.task in TASKS]
    main = grouped(run for run in finished if run.main)
    count = sum(run.result is not None for run in runs)
    page = [text(f"{count} finished and {len(runs) - count} unfinished runs. Written by benchmark.report.")]
    if runs[0].shared:
        page.append(text(f"All runs: {runs[0].shared}."))
    sections = (
        lambda: scores(main),
        lambda: table_3(main),
        lambda: variants(grouped(finished)),
        lambda: aggregates(main),
        lambda: curves([run for run in runs if run.main and run.task in TASKS]),
        lambda: ogbench([run for run in runs if run.result and run.task in OGBENCH_TASKS]),
        lambda: ablations(finished),
        lambda: runtime(finished),
        lambda: others([run for run in runs if run.result and run.task not in ALL_TASKS]),
        lambda: what_ran(runs),
        lambda: not_counted(runs, repeats),
    )
    for section in tqdm(sections, desc="report", unit="section", delay=2):
        page += section()
    return page


def main(args: Args) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("The pictures need matplotlib: pip install -r requirements-dev.txt.")
    runs, repeats = without_repeats(read_runs(args.runs))
    page = build(runs, repeats)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        write(page, args.out)
        write_numbers(runs, args.out)
    except OSError as error:
        sys.exit(f"The report could not be written: {error}.")
    print(f"{len(runs)} runs: {args.out / 'report.md'}, {args.out / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m benchmark.report", description=__doc__))
