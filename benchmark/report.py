"""The paper's tables and figures from the files that runs left, beside what the paper published.

    python -m benchmark.report runs --out report

Reads config.json, metrics.csv and result.json of every run directory below the given folders, and nothing else. Writes
report.md and report.html (one page with its pictures inside), beside them every table as CSV and every picture as PNG;
runs.csv (a row a run) and evaluations.csv (a row an evaluation) hold the numbers in full. The same files in give the
same bytes out. How to read it: docs/benchmark.md.
"""

import importlib.util
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from benchmark import aggregate
from benchmark.comparisons import ablations
from benchmark.page import (
    Page,
    contents,
    figure,
    folded,
    heading,
    legend,
    number,
    picture,
    ranged,
    table,
    text,
    write,
    write_csv,
)
from benchmark.results import (
    ALGORITHMS,
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
    unlike_paper,
    without_repeats,
)
from benchmark.scripts import DOMAINS, ROOT, command_line, flags
from d4rl_gymnasium.tasks import ALL_TASKS, OGBENCH_TASKS, TASKS


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """folders with run directories somewhere below them, or run directories"""
    out: Path = Path("report")
    """the folder that receives the report"""


def first(tasks: dict[str, list[Run]]) -> Run:
    """One of a label's runs: they are alike but for task and seed."""
    return next(iter(tasks.values()))[0]


def some(present: int, tasks: list[str]) -> str:
    """The mark of an average over some of the tasks."""
    return f" ({present} of {len(tasks)} tasks)" * (present < len(tasks))


def spread(values: list[float], form: str = ".1f") -> str:
    """Mean ± standard deviation (number of seeds)."""
    more = f" ± {aggregate.deviation(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{more} ({len(values)})"


def average(means: dict[str, float], tasks: list[str], form: str = ".1f") -> str:
    """The mean over the tasks that there are, marked where these are not all."""
    present = [means[task] for task in tasks if task in means]
    return format(np.mean(present), form) + some(len(present), tasks) if present else "–"


def estimated(statistic: Callable, sample: Iterable[np.ndarray], form: str = ".1f") -> str:
    """A statistic of benchmark.aggregate and its interval."""
    return ranged(*aggregate.estimate(statistic, [*sample]), form)


def paired(x: dict[str, list[Run]], y: dict[str, list[Run]]) -> dict[str, np.ndarray]:
    """{task: last scores of x and y by seed, (seeds, 2)}, of the tasks and seeds that both have.

    Runs of one seed may begin with the same networks and see the same batches: scores that go together.
    """
    pairs = {}
    for task in (task for task in ALL_TASKS if task in x and task in y):
        scores = [{run.seed: run.scores["last"] for run in runs} for runs in (x[task], y[task])]
        seeds = sorted(scores[0].keys() & scores[1].keys())
        pairs |= {task: np.array([[of[seed] for of in scores] for seed in seeds])} if seeds else {}
    return pairs


# --- Tables -----------------------------------------------------------------------------------------------------------


def our_column(tasks: dict[str, list[Run]], kind: str) -> dict[str, str]:
    means = task_means(tasks, kind)
    column = {task: spread([run.scores[kind] for run in runs]) for task, runs in tasks.items()}
    return column | {f"{domain} average": average(means, of) for domain, of in AVERAGES.items()}


def paper_columns(tasks: dict[str, list[Run]]) -> tuple[dict[str, str], dict[str, str]]:
    """The paper's numbers and our differences from them, where ours are comparable. An average is over the tasks that
    we and the paper have; the average that the paper states stands in a row of its own, for it is not always that of
    its cells.
    """
    column = PUBLISHED[first(tasks).script][:2]
    cells, stated = published(*column), published(*column, kind="stated average")
    ours, theirs = task_means(tasks), {task: float(row["mean"]) for task, row in cells.items()}
    paper = {task: f"{row['mean']} ± {row['std']}" if row["std"] else row["mean"] for task, row in cells.items()}
    common = {task: theirs[task] for task in ours if task in theirs}
    paper |= {f"{domain} average": average(common, of) for domain, of in AVERAGES.items()}
    paper |= {f"{domain}, as the paper states it": row["mean"] for domain, row in stated.items()}
    if unlike_paper(first(tasks)):
        return paper, {}
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
        if paper:
            theirs, difference = paper_columns(tasks)
            columns += [(f"paper, {PUBLISHED[first(tasks).script][1]}", theirs), ("difference", difference)]
    names = []
    for domain, tasks in AVERAGES.items():
        ran = [task for task in tasks if any(task in of for of in groups.values())]
        if domain in DOMAINS and ran:  # of a domain without runs the average's – says it all
            names += tasks if paper else ran
        if ran or paper:
            names += [f"{domain} average"] + [f"{domain}, as the paper states it"] * paper
    rows = [[row, *(column.get(row, "–") for _, column in columns)] for row in names]
    return table(name, ["task", *(head for head, _ in columns)], rows)


def scores(groups: Groups, of: str, suffix: str) -> Page:
    if not groups:
        return []
    page = [
        heading(f"Scores (the paper's Table 1){of}"),
        text("Last checkpoint: the last evaluation during training (10 episodes by default, the paper's protocol). "
             "Normalized score, mean ± standard deviation over seeds (ddof 1), in brackets the number of seeds; – is "
             "missing. An average is the mean of its tasks' means. Where tasks are missing it says so, and the paper's "
             "number beside it is the mean of its cells for the same tasks."),
    ]
    reasons = {label: unlike_paper(first(tasks)) for label, tasks in groups.items()
               if PUBLISHED.get(first(tasks).script, "-")[0] == "1"}  # fmt: skip
    in_paper = []  # of each of the paper's columns, in its order, the label that has the most in common with it
    for script in PUBLISHED:
        labels = [label for label in reasons if first(groups[label]).script == script]
        in_paper += [min(labels, key=lambda label: len(reasons[label]))] if labels else []
    others = {label: tasks for label, tasks in groups.items() if label not in in_paper}
    said = defaultdict(list)
    for label in in_paper:
        said["; ".join(reasons[label])].append(label)
    said.pop("", None)
    if said:
        page.append(text("No difference from the paper is formed where runs are not comparable with it: "
                         + " ".join(f"{', '.join(labels)} ({reason})." for reason, labels in said.items())))
    if in_paper:
        page.append(scores_table(f"table1{suffix}", {label: groups[label] for label in in_paper}, "last", paper=True))
        shown = {PUBLISHED[first(groups[label]).script][:2] for label in in_paper}
        notes = [row for row in read_published() if row["note"] and (row["table"], row["algorithm"]) in shown]
        keys = ("table", "kind", "task", "algorithm", "mean", "note")
        odd = table(f"notes{suffix}", list(keys), [[row[key] for key in keys] for row in notes])
        page += [folded("What is odd in the paper's numbers", [odd])] if notes else []
    if others:
        page += [text("The same of what is not in the paper's Table 1:"),
                 scores_table(f"table1_others{suffix}", others, "last")]
    return page + [
        heading(f"Final evaluation{of}"),
        text("The last checkpoint again, in the evaluation after training: 100 episodes by default."),
        scores_table(f"final{suffix}", groups, "final"),
        heading(f"Best checkpoint{of}"),
        text("Chosen by its score in the simulator, with knowledge that offline learning does not have: not a result."),
        scores_table(f"best{suffix}", groups, "best"),
    ]


def ogbench(runs: list[Run], of: str, suffix: str) -> Page:
    """Table 4: success rates on OGBench's tasks, a column for each label, and what ASPC gains over FQL."""
    groups, columns, tasks = grouped(runs), [], list(OGBENCH_TASKS)
    if not groups:
        return []
    for label, ran in groups.items():
        column = {task: spread([run.scores["last"] for run in members]) for task, members in ran.items()}
        columns.append((label, column | {"average": average(task_means(ran), tasks)}))
        base = groups.get(label.replace("FQL+ASPC", "FQL"), {}) if first(ran).script == "aspc_fql" else {}
        pairs = paired(base, ran)
        if pairs:  # FQL with the same arguments
            gains = {task: number(aggregate.relative_gain([of]), "+.1%") for task, of in pairs.items()}
            gains["average"] = estimated(aggregate.relative_gain, pairs.values(), "+.1%") + some(len(pairs), tasks)
            columns.append(("gain over FQL", gains))
    theirs, paper = published("FQL", "FQL"), published("4", "FQL+ASPC")
    rates = {task: f"{row['mean']} ± {row['std']}" for task, row in theirs.items()}
    rates["average"] = average({task: float(row["mean"]) for task, row in theirs.items()}, tasks)
    columns.append(("FQL, as its authors published it", rates))
    lost = paper | {"average": published("4", "FQL+ASPC", "stated average")["Total"]}
    columns.append(("paper's gain, sign lost", {name: row["percent"] for name, row in lost.items()}))
    rows = [[name, *(column.get(name, "–") for _, column in columns)] for name in (*tasks, "average")]
    return [
        heading(f"OGBench (the paper's Table 4){of}"),
        text("Success rate in percent at the last evaluation during training, mean ± standard deviation over seeds, in "
             "brackets the number of seeds. A gain is of the means over the seeds that both have; the average gain is "
             "that of the averages, in square brackets its 95% paired bootstrap interval. FQL's authors report the "
             "mean of the last three evaluations of 8 seeds. The paper's gains fit their rates, but not as ten gains: "
             "these would average 22.7%, not 13.5%, so at least three of the ten are losses."),
        table(f"table4{suffix}", ["task", *(head for head, _ in columns)], rows),
    ]


def table_3(groups: Groups, of: str, suffix: str) -> Page:
    """Table 3: an algorithm, the same with ASPC, what that gains, the paper's three columns."""
    tasks, columns = list(published("3", "IQL")), []
    for base, ours in itertools.product(groups, groups):
        script = first(groups[ours]).script
        if script != f"aspc_{first(groups[base]).script}" or PUBLISHED.get(script, "1")[0] != "3":
            continue
        name = PUBLISHED[script][1]
        common = [task for task in tasks if task in groups[base] and task in groups[ours]]
        for label in (base, ours):
            means = task_means({task: groups[label][task] for task in common})
            columns.append((label, our_column(groups[label], "last") | {"average": average(means, tasks)}))
        pairs = paired(groups[base], groups[ours])
        pairs = {task: pairs[task] for task in common if task in pairs}
        gains = {task: spread(list(of[:, 1] - of[:, 0]), "+.1f") for task, of in pairs.items()}
        if pairs:
            gains["average"] = estimated(aggregate.gain, pairs.values(), "+.1f") + some(len(pairs), tasks)
        columns.append(("gain", gains))
        paper = [published("3", x) for x in (name.removesuffix("+ASPC"), name)]
        paper = [{task: float(column[task]["mean"]) for task in common} for column in paper]
        paper.append({task: paper[1][task] - paper[0][task] for task in common})
        heads = (f"paper, {name.removesuffix('+ASPC')}", f"paper, {name}", "gain")
        for head, column, form in zip(heads, paper, (".1f", ".1f", "+.1f"), strict=True):
            cells = {task: format(value, form) for task, value in column.items()}
            columns.append((head, cells | {"average": average(column, tasks, form)}))
    ran = [task for task in tasks if any(task in column for _, column in columns)]
    if not ran:
        return []
    rows = [[name, *(column.get(name, "–") for _, column in columns)] for name in (*ran, "average")]
    return [
        heading(f"ASPC on other algorithms (the paper's Table 3){of}"),
        text("Last checkpoint, mean ± standard deviation over seeds, in brackets their number. A base whose "
             "column says --tuned has its per-task settings, ASPC one setting for all. A gain is in points of score, "
             "between runs of the same seed; its average has a 95% paired bootstrap interval. "
             "Averages are over the tasks that ran with both; of these are the paper's numbers."),
        table(f"table3{suffix}", ["task", *(title for title, _ in columns)], rows),
    ]


def variants(groups: Groups, of: str, suffix: str) -> Page:
    if not groups:
        return []
    means = {label: task_means(tasks) for label, tasks in groups.items()}
    rows = [[label, *(average(of, tasks) for tasks in AVERAGES.values())] for label, of in means.items()]
    return [heading(f"Averages of all variants{of}"), text("Of last checkpoints."),
            table(f"variants{suffix}", ["", *AVERAGES], rows)]


# --- Aggregates -------------------------------------------------------------------------------------------------------


def in_common(groups: Groups) -> tuple[Groups, list[str]]:
    """The labels to compare and those left out. Comparing is over the tasks that all compared labels have: labels are
    taken in, those with most tasks first, as long as that makes labels times tasks larger.
    """
    order = sorted(groups, key=lambda label: -len(groups[label]))
    common = [set.intersection(*(set(groups[label]) for label in order[: k + 1])) for k in range(len(order))]
    best = max(range(len(order)), key=lambda k: ((k + 1) * len(common[k]), k))
    taken = [label for label in groups if label in order[: best + 1]]
    tasks = [task for task in TASKS if task in common[best]]
    return {label: {task: groups[label][task] for task in tasks} for label in taken}, order[best + 1 :]


def sample(tasks: dict[str, list[Run]]) -> list[np.ndarray]:
    return [np.array([run.scores["last"] for run in runs]) for runs in tasks.values()]


def headline(groups: Groups, of: str, suffix: str) -> Page:
    """What a reader wants to know first: all algorithms on their common tasks, and beside TD3+BC."""
    if not groups:
        return []
    groups, left_out = in_common(groups)
    base, rows = groups.get("TD3+BC"), []
    for label, tasks in groups.items():
        seeds = sorted({len(runs) for runs in tasks.values()})
        row = [label, " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))]
        row += [estimated(statistic, sample(tasks)) for statistic in (aggregate.mean, aggregate.iqm)]
        pairs = paired(base, tasks) if base and label != "TD3+BC" else {}
        if len(pairs) == len(tasks):
            row += [estimated(aggregate.gain, pairs.values(), "+.1f"),
                    estimated(aggregate.improvement, pairs.values(), ".2f")]  # fmt: skip
        rows.append(row + ["–"] * (6 - len(row)))
    count = len(next(iter(groups.values())))
    return [
        heading(f"In short{of}"),
        text(f"Last checkpoints on the {count} task{'s' * (count > 1)} that all of these have; every task weighs the "
             "same. In square brackets 95% bootstrap intervals over seeds, none where a task has one seed. Runs of "
             "the same seed are compared with each other."
             + f" Without {', '.join(left_out)}, which ran on too few of these." * bool(left_out)),
        table(f"headline{suffix}", ["", "seeds", "mean", "interquartile mean", "difference to TD3+BC",
                                    "probability of improvement on TD3+BC"], rows),
    ]  # fmt: skip


def aggregates(groups: Groups, of: str, suffix: str) -> Page:
    """Performance profiles, probability of improvement, ASPC's differences and the radar chart, of last checkpoints."""
    if not groups:
        return []
    compared, _ = in_common(groups)
    samples = {label: sample(tasks) for label, tasks in compared.items()}
    every = np.concatenate([scores for label in samples for scores in samples[label]])
    margin = 0.03 * max(1.0, np.ptp(every))
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 141)
    drawing, [[axis]] = figure(1, 1, 7, 4.2)
    for i, (label, scores) in enumerate(samples.items()):
        color, style = look(first(compared[label]))
        shares = aggregate.profile(scores, thresholds)
        axis.plot(thresholds, shares, style, color=color, label=label, zorder=3 - 0.01 * i)
        if min(map(len, scores)) > 1:
            band = aggregate.interval(aggregate.profile(aggregate.resample(scores), thresholds))
            axis.fill_between(thresholds, *band, color=color, alpha=0.15, lw=0)
    axis.set(xlabel="normalized score τ", ylabel="share of runs with a score above τ", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    legend(drawing)
    pairs = []
    for x, y in itertools.combinations(compared, 2):
        shared = paired(compared[y], compared[x]).values()
        if shared:
            pairs.append([x, y, str(len(shared)), estimated(aggregate.improvement, shared, ".2f")])
    count = len(next(iter(compared.values())))
    page = [
        heading(f"Aggregates over tasks (Fig. 2){of}"),
        picture(f"profiles{suffix}", drawing, f"Performance profiles on the {count} common task{'s' * (count > 1)}, "
                                              f"with pointwise 95% intervals{of}."),
    ]
    if pairs:
        page += [text("Probability of improvement: that a run of X beats a run of Y on the same task, mean over the "
                      "common tasks, with 95% paired bootstrap intervals."),
                 table(f"improvement{suffix}", ["X", "Y", "tasks", "P(X > Y)"], pairs)]
    return page + differences(groups, suffix) + radar(groups, of, suffix)


def differences(groups: Groups, suffix: str) -> Page:
    """What ASPC has more than each other label, seed by seed."""
    columns = {}
    for label, tasks in groups.items():
        pairs = paired(tasks, groups.get("ASPC", {})) if label != "ASPC" else {}
        if not pairs:
            continue
        columns[label] = {task: spread(list(of[:, 1] - of[:, 0]), "+.1f") for task, of in pairs.items()}
        for domain, tasks_of in AVERAGES.items():
            there = [pairs[task] for task in tasks_of if task in pairs]
            if there:
                mark = some(len(there), tasks_of)
                columns[label][f"{domain} average"] = estimated(aggregate.gain, there, "+.1f") + mark
        columns[label]["correlation by seed"] = number(aggregate.correlation([*pairs.values()]), ".2f")
    names = [name for domain, tasks in AVERAGES.items()
             for name in [*(tasks if domain in DOMAINS else []), f"{domain} average"]]  # fmt: skip
    names = [name for name in [*names, "correlation by seed"] if any(name in column for column in columns.values())]
    rows = [[name, *(column.get(name, "–") for column in columns.values())] for name in names]
    return [
        text("ASPC's score less that of the run of the same seed: mean ± standard deviation over the seeds that both "
             "have, in brackets their number; averages with 95% paired bootstrap intervals. Runs of one seed may "
             "begin with the same networks and see the same batches: how far their scores go together within a task "
             "is the last row."),
        table(f"differences{suffix}", ["task", *(f"ASPC − {label}" for label in columns)], rows),
    ] if columns else []  # fmt: skip


def radar(groups: Groups, of: str, suffix: str) -> Page:
    """Domain averages, each domain scaled to its lowest and highest polygon; a label with gaps has none to draw. The
    paper's polygons stand beside ours where one of ours is comparable.
    """
    ours = {label: task_means(tasks) for label, tasks in groups.items() if len(tasks) == len(TASKS)}
    looks = {label: (*look(first(groups[label])), 2) for label in ours}
    polygons = dict(ours)
    known = [label for label in ours if first(groups[label]).script in PUBLISHED]
    if any(not unlike_paper(first(groups[label])) for label in known):
        for script, (table_number, name, _) in PUBLISHED.items():
            if table_number == "1":
                cells = published("1", name)
                polygons[f"paper, {name}"] = {task: float(row["mean"]) for task, row in cells.items()}
                looks[f"paper, {name}"] = (ALGORITHMS[script][1], ":", 1.2)
    if len(polygons) < 2:
        return [text(f"No radar chart: that needs labels with scores on all {len(TASKS)} tasks.")]
    means = np.array([[np.mean([of[t] for t in tasks]) for tasks in DOMAINS.values()] for of in polygons.values()])
    scaled = (means - means.min(0)) / np.maximum(np.ptp(means, axis=0), 1e-9)
    angles = np.arange(len(DOMAINS) + 1) * 2 * np.pi / len(DOMAINS)
    drawing, [[axis]] = figure(1, 1, 8, 4.5, subplot_kw={"projection": "polar"})
    for i, (name, values) in enumerate(zip(polygons, scaled, strict=True)):
        color, style, width = looks[name]
        axis.plot(angles, [*values, values[0]], style, color=color, lw=width, label=name, zorder=3 - 0.01 * i)
    axis.set_xticks(angles[:-1], DOMAINS)
    axis.tick_params(pad=16)
    axis.tick_params(axis="y", labelsize=7)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.25, 1))
    caption = "Domain averages, each domain from its lowest (0) to its highest (1)"
    caption += "; dotted: means of the paper's cells." if len(polygons) > len(ours) else "."
    return [picture(f"radar{suffix}", drawing, caption + of)]


# --- Curves -----------------------------------------------------------------------------------------------------------

Value = Callable[[Run, dict[str, float]], float]  # of a run, in a row of its metrics.csv
DATA_COLORS = [*(f"C{i}" for i in range(10)), "#222222", "#0b5f66", "#8f0f5e", "#5e6b00", "#ffcf40"]


def look(run: Run) -> tuple[str, str]:
    """The colour and the style of its lines: broken where an algorithm has settings of each task."""
    return run.color, "--" if run.args.get("tuned") else "-"


def scale(run: Run, row: dict[str, float]) -> float:
    return alpha(row)


def relative_scale(run: Run, row: dict[str, float]) -> float:
    return alpha(row) / (run.start or alpha(run.rows[0]))


def curve(runs: list[Run], value: Value) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and standard deviation (0 of one run) over the runs evaluated at each step: three of (steps,)."""
    values = defaultdict(list)
    for run in runs:
        for row in run.rows:
            values[row["step"]].append(value(run, row))
    steps = sorted(values)
    band = np.nan_to_num([aggregate.deviation(values[step]) for step in steps])
    return np.array(steps), np.array([np.mean(values[step]) for step in steps]), band


def panels(parts: list[tuple[str, str, Value, dict[str, list[Run]]]], colors: dict[str, str] | None = None):
    """A figure with a panel for each (title, what its axis shows, value, {label: runs}), and in it a line with its band
    for each label. colors: {label: colour} where labels are not algorithms.
    """
    columns, seeds = min(3, len(parts)), defaultdict(set)
    for label, runs in [item for *_, lines in parts for item in lines.items()]:
        seeds[label].add(len(runs))
    names = {label: f"{label} ({' to '.join(map(str, sorted({min(n), max(n)})))})" for label, n in seeds.items()}
    drawing, axes = figure(math.ceil(len(parts) / columns), columns, 4.6 if columns > 1 else 6, 3.2)
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    places = {label: runs[0].place for *_, lines in parts for label, runs in lines.items()}
    order = list(colors or sorted(names, key=places.get))  # the first is drawn on top
    for axis, (title, shown, value, lines) in zip(axes.flat, parts, strict=False):
        for label, runs in lines.items():
            color, style = (colors[label], "-") if colors else look(runs[0])
            steps, mean_, band = curve(runs, value)
            axis.plot(steps, mean_, style, color=color, label=names[label], zorder=3 - 0.01 * order.index(label))
            axis.fill_between(steps, mean_ - band, mean_ + band, color=color, alpha=0.15, lw=0)
        axis.set(title=title, xlabel="gradient steps", ylabel=shown)
        axis.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1e6:g}M" if steps >= 1e6 else f"{steps / 1000:g}k")
        axis.grid(alpha=0.3)
    legend(drawing)
    return drawing


def curves(runs: list[Run], of: str, suffix: str) -> Page:
    """Figs 8 and 7, a picture a domain; Figs 3 and 4: the datasets of a robot or maze in one panel; Fig. 10."""
    runs = [run for run in runs if run.rows]
    groups = grouped(runs)
    if not groups:
        return []
    page = [
        heading(f"Learning curves and α (Figs 3, 4, 7, 8){of}"),
        text("Mean and standard deviation over seeds, in brackets their number; broken lines are algorithms with "
             "settings of each task (--tuned). Unfinished runs are drawn as far as they got; where a seed stops early, "
             "the line goes on with the others. Scales of different kinds (α, β, η) are drawn relative to their "
             "start."),
    ]
    adapted = grouped(run for run in runs if not math.isnan(alpha(run.rows[-1])))
    for domain, tasks in tqdm(DOMAINS.items(), desc="curves", unit="domain", delay=2, leave=False):
        for name, these in (("score", groups), ("alpha", adapted)):
            lines = {task: {label: by[task] for label, by in these.items() if task in by} for task in tasks}
            kinds = {runs[0].scale for line in lines.values() for runs in line.values()}
            shown, value = (" or ".join(sorted(kinds)), scale) if len(kinds) == 1 else ("scale / start", relative_scale)
            if name == "score":
                shown, value = "normalized score", lambda run, row: row[SCORE]
            parts = [(task, shown, value, line) for task, line in lines.items() if line]
            if parts:
                caption = f"{domain}: {'score of the evaluations during training' if name == 'score' else shown}{of}."
                page.append(picture(f"{name}_{domain}{suffix}", panels(parts), caption))
    for script in dict.fromkeys(run.script for run in runs if run.script.startswith("aspc")):
        label = next(run.label for run in runs if run.script == script)
        lines = defaultdict(dict)
        for task in (task for task in TASKS if task in groups[label]):
            robot, data = task.rsplit("-", 1)[0].split("-", 1)
            lines[robot][data] = groups[label][task]
        kind = first(groups[label]).scale
        names = dict.fromkeys(data for line in lines.values() for data in line)
        colors = dict(zip(names, DATA_COLORS, strict=False))
        drawing = panels([(robot, kind, scale, line) for robot, line in lines.items()], colors)
        page.append(picture(f"scale_by_data_{script}{suffix}", drawing, f"{kind} of {label}, by dataset{of}."))
    ends = {label: {task: [alpha(run.rows[-1]) for run in runs if run.result] for task, runs in of_tasks.items()}
            for label, of_tasks in adapted.items() if first(of_tasks).script.startswith("aspc")}  # fmt: skip
    tasks = [task for task in TASKS if any(by.get(task) for by in ends.values())]
    if tasks:
        rows = [[task, *(spread(by[task], ".3f") if by.get(task) else "–" for by in ends.values())] for task in tasks]
        heads = [f"{label}, {first(groups[label]).scale} (from {first(groups[label]).start:g})" for label in ends]
        page += [text("The scale at the last evaluation of finished runs:"),
                 table(f"alpha{suffix}", ["task", *heads], rows)]
    return page + figure_10(groups, of, suffix)


def figure_10(groups: Groups, of: str, suffix: str) -> Page:
    """Q, loss of behaviour cloning and score of ASPC and TD3+BC on halfcheetah-medium."""
    task = "halfcheetah-medium-v2"
    lines = {label: groups[label][task] for label in ("ASPC", "TD3+BC") if task in groups.get(label, {})}
    if len(lines) < 2:
        return []
    cloned = lambda run, row: row.get("aspc/bc" if run.script == "aspc_td3bc" else "td3bc/bc", math.nan)  # noqa: E731
    parts = [
        ("Q", "Q(s, π(s)), mean of a batch", lambda run, row: row.get("losses/q", math.nan), lines),
        ("BC loss", "(π(s) − a)², mean of a batch", cloned, lines),
        ("score", "normalized score", lambda run, row: row[SCORE], lines),
    ]
    return [
        heading(f"What ASPC and TD3+BC do on halfcheetah-medium (Fig. 10){of}"),
        picture(f"fig10{suffix}", panels(parts), "Q, loss of behaviour cloning and score during training, mean and "
                                                 "standard deviation over seeds, in brackets their number."),
    ]


# --- What ran ---------------------------------------------------------------------------------------------------------

FEW_INTERVALS, FEW_STEPS = 3, 10_000  # behind the first interval: a run with fewer says nothing of its speed


def hours(run: Run) -> np.ndarray:
    """For a million steps, by each interval between evaluations but the first, which contains compilation."""
    steps, seconds = np.diff([(row["step"], row["seconds"]) for row in run.rows], axis=0).T.reshape(2, -1)
    return seconds / steps / 3600 * 1e6 if len(steps) >= FEW_INTERVALS and steps.sum() >= FEW_STEPS else np.array([])


def runtime(runs: list[Run]) -> Page:
    """Fig. 5: hours for a million steps, apart for everything that speed depends on."""
    processes, short = defaultdict(dict), 0  # seeds trained together count once
    for run in {run.group[0]: run for run in runs if run.main or run.variant.keys() == {"alpha_interval"}}.values():
        how = f"{run.device}, seeds at once: {len(run.group)}" + ", compiled" * run.compiled
        if len(hours(run)):
            processes[run.label, how][run.group[0]] = hours(run)
        else:
            short += 1
    skipped = f" Left out: {short} process{'es' * (short > 1)} too short to tell." * bool(short)
    if not processes:
        return [heading("Runtime (Fig. 5)"), text(skipped.strip())] if short else []
    spans = {key: np.percentile(np.concatenate([*by.values()]), [10, 50, 90]) for key, by in processes.items()}
    rows = [[*key, str(len(processes[key])), *(f"{x:.2f}" for x in (mid, low, high))]
            for key, (low, mid, high) in spans.items()]  # fmt: skip
    drawing, [[axis]] = figure(1, 1, 8, 1 + 0.4 * len(spans))
    low, middle, high = np.array([*spans.values()]).T
    colors = {run.label: run.color for run in runs}
    axis.barh([f"{label}\n{how}" for label, how in spans], middle, height=0.6,
              color=[colors[label] for label, _ in spans], xerr=np.maximum([middle - low, high - middle], 0),
              error_kw={"elinewidth": 1, "capsize": 2})  # fmt: skip
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.set_xlabel("hours for a million gradient steps")
    return [
        heading("Runtime (Fig. 5)"),
        text("Of training without evaluations, by the clock, so whatever else the machine did counts in: median of the "
             "intervals between evaluations, and between which hours the middle eight tenths of them lie. The first "
             f"interval, with compilation in it, is left out.{skipped}"),
        table("runtime", ["algorithm", "how", "processes", "hours for a million steps", "from", "to"], rows),
        picture("runtime", drawing, "Hours for a million gradient steps: median, and the middle eight tenths."),
    ]


def titled(run: Run) -> str:
    """Its label and its setting: runs alike but for task and seed."""
    return f"{run.label} {run.setting}".strip()


def others(runs: list[Run]) -> Page:
    """Tasks of neither benchmark: raw returns."""
    rows = [
        [task, label, spread([run.result["last"]["charts/episodic_return"] for run in members])]
        for label, tasks in grouped(runs, titled).items()
        for task, members in tasks.items()
    ]
    head = ["task", "label", "return of the last checkpoint"]
    return [heading("Other tasks"), table("others", head, rows)] if rows else []


def command(run: Run) -> str:
    """What was typed, but for seeds, folders and device; of a dataset's path the name, for its sha256 stands beside."""
    tasks = run.args["env_id"]
    options = run.off_default | {"env_id": tasks if isinstance(tasks, str) else " ".join(tasks)}
    for key in ("seed", "num_seeds", "runs_dir", "device", "resume"):
        options.pop(key, None)
    path = options.get("dataset_path")
    if isinstance(path, str) and not path.startswith("minari:"):
        options["dataset_path"] = Path(path).name
    script = SCRIPTS[run.script].relative_to(ROOT) if run.script in SCRIPTS else f"{run.script}.py"
    options = {"env_id": options.pop("env_id")} | options
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
        seeds = ", ".join(map(str, sorted({run.seed for run in members})))
        rows.append([typed, seeds, f"{hours:.2f}", *rest])
    head = ["command", "seeds", "hours", "steps", "commit", "device", "data"]
    return [heading("What ran"), text("Hours of training for all seeds; seeds trained in one process share theirs."),
            table("what_ran", head, rows)]


def not_counted(runs: list[Run], repeats: list[Run]) -> Page:
    page, rows = [], []
    for run in runs:
        if not run.result:
            score = number(run.rows[-1][SCORE]) if run.rows else "–"
            rows.append([run.name, titled(run), f"{run.steps:,} of {run.args['total_steps']:,}", score])
    if rows:
        page += [heading("Unfinished runs"), text("In the curves, but in no table of scores."),
                 table("unfinished", ["run", "label", "steps", "last score"], rows)]
    if repeats:
        names = ", ".join(run.name for run in repeats)
        page += [heading("Repeats"), text("A seed counts once. Left out, since a later or finished run has their task, "
                                          f"label and seed: {names}.")]
    for label, tasks in grouped(runs, titled).items():
        for task, members in tasks.items():
            if len({run.dataset["sha256"] for run in members}) > 1:
                page.append(text(f"Mixed data: not all runs of {label} on {task} had the same dataset."))
    return page


def write_numbers(runs: list[Run], out: Path) -> None:
    """runs.csv and evaluations.csv, unrounded, for whoever wants to count otherwise."""
    head, rows = ["run", "label", "setting", "task", "seed"], []
    about = {run.name: [run.name, run.label, run.setting, run.task, run.seed] for run in runs}
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
    count = sum(run.result is not None for run in runs)
    settings = sorted({run.setting for run in runs})  # "", the defaults, comes first
    top, page = [text(f"{count} finished and {len(runs) - count} unfinished runs. Written by benchmark.report.")], []
    if len(settings) > 1:
        top.append(text("Runs of different length, measurement or kind of data are never compared: each kind has parts "
                        "of its own, those with no other name are of the scripts' defaults on the benchmark's data."))
    elif settings[0]:
        top.append(text(f"All runs: {settings[0]}."))
    for i, setting in enumerate(tqdm(settings, desc="report", unit="setting", delay=2)):
        members = [run for run in runs if run.setting == setting]
        where = f" ({setting})" if setting and len(settings) > 1 else "", f"_{i + 1}" if i else ""
        ended = [run for run in members if run.result and run.task in TASKS]
        main = grouped(run for run in ended if run.main)
        top += headline(main, *where)
        page += scores(main, *where)
        page += table_3(main, *where)
        page += variants(grouped(ended), *where)
        page += aggregates(main, *where)
        page += curves([run for run in members if run.main and run.task in TASKS], *where)
        page += ogbench([run for run in members if run.result and run.task in OGBENCH_TASKS], *where)
        page += ablations(ended, *where)
    top += [text(aggregate.COVERAGE)] if any("[" in str(block[3]) for block in top if block[0] == "table") else []
    page += runtime([run for run in runs if run.result and run.task in TASKS])
    page += others([run for run in runs if run.result and run.task not in ALL_TASKS])
    return [*top, contents(), *page, *what_ran(runs), *not_counted(runs, repeats)]


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
    main(command_line(Args, "python -m benchmark.report", __doc__))
