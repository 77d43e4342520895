"""The paper's ablations, from runs that differ in one respect: tables of domain averages with their bars.

Part of `benchmark.report`. Each comparison is over the tasks that all of its columns have.
"""

import math
from collections import defaultdict

import numpy as np

from benchmark.page import Page, figure, heading, number, picture, table, text
from benchmark.results import AVERAGES, Groups, Run, alpha, grouped, published, task_means

# Ablations by script: title, name, {script: column}, the paper's table, the column that gains are taken against
FORMS = {"aspc_td3bc": "(4)"} | {f"l_bc_form{i}": f"({i})" for i in (1, 2, 3, 5)}
READINGS = {"aspc_td3bc": "as released", "one_step_delta_q": "one-step ΔQ", "fresh_outer_batch": "fresh outer batch"}
COMPARISONS = (
    ("Table 13: forms of L_BC", "table13", FORMS, "13", "(4)"),
    ("Fig. 9: behaviour cloning weighted by advantage", "fig9",
     {"aspc_td3bc": "ASPC", "advantage_weighted_bc": "advantage-weighted"}, None, "ASPC"),
    ("Where the paper's text and the released code differ", "readings", READINGS, None, "as released"),
)
# Ablations by argument: title, name, scripts, the arguments that differ
SWEEPS = (
    ("Fig. 5: interval of α's updates", "fig5", ("aspc_td3bc",), ("alpha_interval",)),
    ("Fig. 6a: robust critic", "fig6a", ("aspc_td3bc", "td3bc", "wpc"), ("robust_critic",)),
    ("Fig. 6b: terms of the outer loss", "fig6b", ("aspc_td3bc",), ("l_q_coef", "l_bc_coef")),
    ("Fig. 11: where α starts", "fig11", ("aspc_td3bc",), ("alpha_init",)),
    ("Fig. 12: learning rate of α", "fig12", ("aspc_td3bc",), ("alpha_lr",)),
)


def ablation(title: str, name: str, groups: Groups, table_number: str | None = None, base: str | None = None) -> Page:
    """Domain averages over the tasks that all columns have, as a table and as bars.

    table_number: the paper's, whose numbers then stand beside ours; base: the column that gains are taken against.
    """
    common = set.intersection(*(set(tasks) for tasks in groups.values()))
    means = {label: task_means(tasks) for label, tasks in groups.items()}
    head, rows, drawn, notes = ["domain", "tasks"], [], {}, []
    for label in groups:
        head += [label] + [f"paper, {label}"] * bool(table_number)
    for domain, tasks in AVERAGES.items():
        present = [task for task in tasks if task in common]
        row = [domain, f"{len(present)} of {len(tasks)}"]
        values = {label: np.mean([of[t] for t in present]) if present else math.nan for label, of in means.items()}
        for label, value in values.items():
            gain = base in values and label != base and values[base] > 0
            row.append(number(value) + (f" ({value / values[base] - 1:+.1%})" if gain else ""))
            if table_number:
                paper = published(table_number, label) | published(table_number, label, "stated average")
                row.append(f"{paper[domain]['mean']} ({paper[domain]['percent'] or 'base'})")
                if paper[domain]["note"]:
                    notes.append(f"The paper's {label}, {domain}: {paper[domain]['note']}.")
        rows.append(row)
        if present:
            drawn[f"{domain}\n({row[1]} tasks)"] = list(values.values())
    runs = [["runs of these tasks", ""]]
    for tasks in groups.values():
        runs[0] += [str(sum(len(tasks[task]) for task in common))] + ["–"] * bool(table_number)
    page = [heading(title.strip()), table(name, head, rows + runs), *map(text, notes)]
    if not drawn:
        return [*page, text("No task has runs in every column.")]
    drawing, [[axis]] = figure(1, 1, 7.5, 3.6)
    width = 0.8 / len(groups)
    for i, label in enumerate(groups):
        axis.bar(np.arange(len(drawn)) + (i - (len(groups) - 1) / 2) * width, [v[i] for v in drawn.values()], width,
                 label=label)
    axis.set_xticks(range(len(drawn)), drawn)
    axis.set_ylabel("normalized score")
    axis.legend(fontsize=7)
    return [*page, picture(name, drawing, "Means over the tasks that all columns have.")]


def table_2_column(run: Run, ends: dict[str, list[float]]) -> str:
    """The column of the paper's Table 2 to which a run belongs, "" for none. ends: {task: [where ASPC's α ended]}.

    The paper's constant and linear α end where ASPC's ended on the same data. Nothing in a run says that it was meant
    so; an α within those of the seeds, give or take 1%, is taken for it.
    """
    if run.algorithm in ("td3bc", "aspc_td3bc"):
        return "Naive" if run.algorithm == "td3bc" else "Dynamic (ASPC)"
    if run.script == "td3bc" and run.task in ends:
        for column, argument in (("Converged", "alpha"), ("Linear", "alpha_final")):
            near = 0.99 * min(ends[run.task]) <= run.variant.get(argument, 0) <= 1.01 * max(ends[run.task])
            if near and run.variant.keys() == {argument}:
                return column
    return ""


def table_2(runs: list[Run], of: str, suffix: str) -> Page:
    ends = defaultdict(list)
    for run in runs:
        if run.algorithm == "aspc_td3bc":
            ends[run.task].append(alpha(run.rows[-1]))
    groups = grouped(runs, lambda run: table_2_column(run, ends))
    columns = {name: groups[name] for name in ("Naive", "Converged", "Linear", "Dynamic (ASPC)") if name in groups}
    if not columns.keys() & {"Converged", "Linear"}:
        return []
    return ablation(f"Table 2: would a fixed or linear α do? {of}", f"table2{suffix}", columns, "2", "Naive")


def compare(
    runs: list[Run], of: str, suffix: str, title: str, name: str, columns: dict[str, str], number: str | None, base: str
) -> Page:
    """The runs of these scripts, with default arguments."""
    groups = grouped((run for run in runs if run.algorithm in columns), lambda run: columns[run.script])
    groups = {column: groups[column] for column in sorted(columns.values()) if column in groups}
    return ablation(f"{title} {of}", name + suffix, groups, number, base) if len(groups) > 1 else []


def sweep(runs: list[Run], of: str, suffix: str, title: str, name: str, scripts: tuple, keys: tuple) -> Page:
    """The runs of the scripts that differ in these arguments alone, by value, of scripts that were varied at all."""
    runs = [run for run in runs if run.script in scripts and run.variant.keys() <= set(keys)]
    varied = {run.script for run in runs if run.variant}
    runs = sorted((r for r in runs if r.script in varied), key=lambda r: (r.script, [r.args[key] for key in keys]))
    groups = grouped(runs, lambda run: ", ".join([run.script, *(f"{key} {run.args[key]}" for key in keys)]))
    return ablation(f"{title} {of}", name + suffix, groups) if groups else []


def ablations(runs: list[Run]) -> Page:
    """Tables 2 and 13, Figs 5, 6, 9, 11, 12 where runs exist; runs of another length or on stand-ins apart."""
    page = []
    for i, setting in enumerate(sorted({run.setting for run in runs})):
        members = [run for run in runs if run.setting == setting]
        of, suffix = f"({setting})" if setting else "", f"_{i + 1}"
        page += table_2(members, of, suffix)
        for arguments in COMPARISONS:
            page += compare(members, of, suffix, *arguments)
        for arguments in SWEEPS:
            page += sweep(members, of, suffix, *arguments)
    return page
