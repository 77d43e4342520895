"""The paper's ablations, from runs that differ in one respect: tables of domain averages with their bars.

Part of `benchmark.report`. Each comparison is over the tasks that all of its columns have.
"""

from collections import defaultdict

import numpy as np

from benchmark.aggregate import estimate, mean
from benchmark.page import Page, figure, heading, lighter, picture, ranged, table, text
from benchmark.results import ALGORITHMS, AVERAGES, PUBLISHED, Groups, Run, alpha, grouped, published

# Ablations by script: title, name, {what was typed: column}, the paper's table, the column that gains are taken against
FORMS = {f"l_bc_form{i}": f"({i})" for i in (1, 2, 3)} | {"aspc_td3bc": "(4)", "l_bc_form5": "(5)"}
READINGS = {"aspc_td3bc": "as released", "one_step_delta_q": "one-step ΔQ", "fresh_outer_batch": "fresh outer batch"}
TUNING = {
    "aspc_td3bc": "ASPC", "td3bc": "TD3+BC", "iql": "IQL", "iql --tuned": "IQL --tuned", "rebrac": "ReBRAC",
    "rebrac --tuned": "ReBRAC --tuned",
}
COMPARISONS = (
    ("Fig. 1(b): one setting for all tasks, and settings of each (--tuned)", "fig1b", TUNING, None, None),
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
    """Domain averages over the tasks that all columns have, with intervals over seeds, as a table and as bars.

    table_number: the paper's, whose averages stand beside ours where a domain is complete; base: the column that gains
    are taken against.
    """
    common = set.intersection(*(set(tasks) for tasks in groups.values()))
    head, rows, drawn, notes = ["domain", "tasks"], [], {}, []
    for label in groups:
        head += [label] + [f"paper, {label}"] * bool(table_number)
    for domain, tasks in AVERAGES.items():
        present = [task for task in tasks if task in common]
        row, values = [domain, f"{len(present)} of {len(tasks)}"], {}
        for label, of in groups.items() if present else ():
            values[label] = estimate(mean, [np.array([run.scores["last"] for run in of[task]]) for task in present])
        for label in groups:
            gain = present and base in values and label != base and values[base][0] > 0
            percent = f" ({values[label][0] / values[base][0] - 1:+.1%})" if gain else ""
            row.append(ranged(*values[label]) + percent if present else "–")
            if table_number and len(present) < len(tasks):
                row.append("–")
            elif table_number:
                paper = (published(table_number, label) | published(table_number, label, "stated average"))[domain]
                row.append(f"{paper['mean']} ({paper['percent'] or 'base'})")
                if paper["note"]:
                    notes.append(f"The paper's {label}, {domain}: {paper['note']}.")
        rows.append(row)
        if present:
            drawn[f"{domain}\n({row[1]} tasks)"] = [values[label] for label in groups]
    runs = [["runs of these tasks", ""]]
    for tasks in groups.values():
        runs[0] += [str(sum(len(tasks[task]) for task in common))] + ["–"] * bool(table_number)
    page = [heading(title), table(name, head, rows + runs), *map(text, notes)]
    if not drawn:
        return [*page, text("No task has runs in every column.")]
    drawing, [[axis]] = figure(1, 1, 8, 3.8)
    width, firsts = 0.8 / len(groups), [next(iter(tasks.values()))[0] for tasks in groups.values()]
    alike = [(run.color, bool(run.args.get("tuned")), run.typed == run.script in PUBLISHED) for run in firsts]
    for i, label in enumerate(groups):  # an algorithm has its colour, its variants light shades; hatched where --tuned
        color, tuned, plain = alike[i]
        share = 0 if plain or tuned else 0.3 + 0.5 * alike[:i].count(alike[i]) / max(1, alike.count(alike[i]) - 1)
        means, low, high = np.array([*drawn.values()])[:, i].T
        edge, hatch = ("white", "//") if tuned else ("black", "")
        axis.bar(
            np.arange(len(drawn)) + (i - (len(groups) - 1) / 2) * width, means, width, label=label,
            color=lighter(color, share), edgecolor=edge, hatch=hatch, linewidth=0.5,
            yerr=np.maximum([means - low, high - means], 0),
            error_kw={"elinewidth": 1.2, "capsize": 2, "ecolor": "#555555"},
        )  # fmt: skip
    axis.set_xticks(range(len(drawn)), drawn)
    axis.set_ylabel("normalized score")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    drawing.legend(loc="outside lower center", ncols=min(3, len(groups)), fontsize=8)
    caption = "Means over the tasks that all columns have, with 95% bootstrap intervals over seeds; none of one seed."
    return [*page, picture(name, drawing, caption)]


def table_2_column(run: Run, ends: dict[str, list[float]]) -> str:
    """The column of the paper's Table 2 to which a run belongs, "" for none. ends: {task: [where ASPC's α ended]}.

    The paper's constant and linear α end where ASPC's ended on the same data. Nothing in a run says that it was meant
    so; an α within those of the seeds, give or take 1%, is taken for it.
    """
    if run.typed in ("td3bc", "aspc_td3bc"):
        return "Naive" if run.typed == "td3bc" else "Dynamic (ASPC)"
    if run.script == "td3bc" and run.task in ends:
        for column, argument in (("Converged", "alpha"), ("Linear", "alpha_final")):
            near = 0.99 * min(ends[run.task]) <= run.variant.get(argument, 0) <= 1.01 * max(ends[run.task])
            if near and run.variant.keys() == {argument}:
                return column
    return ""


def table_2(runs: list[Run], of: str, suffix: str) -> Page:
    ends = defaultdict(list)
    for run in runs:
        if run.typed == "aspc_td3bc":
            ends[run.task].append(alpha(run.rows[-1]))
    groups = grouped(runs, lambda run: table_2_column(run, ends))
    columns = {name: groups[name] for name in ("Naive", "Converged", "Linear", "Dynamic (ASPC)") if name in groups}
    if not columns.keys() & {"Converged", "Linear"}:
        return []
    return ablation(f"Table 2: would a fixed or linear α do?{of}", f"table2{suffix}", columns, "2", "Naive")


def compare(
    runs: list[Run], of: str, suffix: str, title: str, name: str, columns: dict[str, str], number: str | None,
    base: str | None,
) -> Page:  # fmt: skip
    """The runs of these scripts, with no arguments but those that `columns` names."""
    groups = grouped((run for run in runs if run.typed in columns), lambda run: columns[run.typed])
    groups = {column: groups[column] for column in columns.values() if column in groups}
    if columns is TUNING and not any(f"{column} --tuned" in groups for column in groups):
        return []
    return ablation(f"{title}{of}", name + suffix, groups, number, base) if len(groups) > 1 else []


def sweep(runs: list[Run], of: str, suffix: str, title: str, name: str, scripts: tuple, keys: tuple) -> Page:
    """The runs of the scripts that differ in these arguments alone, by value, of scripts that were varied at all."""
    runs = [run for run in runs if run.script in scripts and run.variant.keys() <= set(keys)]
    varied = {run.script for run in runs if run.variant}
    runs = sorted((r for r in runs if r.script in varied), key=lambda r: (r.script, [r.args[key] for key in keys]))
    names = lambda run: ", ".join([ALGORITHMS[run.script][0], *(f"{key} {run.args[key]}" for key in keys)])  # noqa: E731
    groups = grouped(runs, names)
    return ablation(f"{title}{of}", name + suffix, groups) if groups else []


def ablations(runs: list[Run], of: str, suffix: str) -> Page:
    """Fig. 1(b), Tables 2 and 13, Figs 5, 6, 9, 11, 12, where runs of the same setting exist."""
    page = table_2(runs, of, suffix)
    for arguments in COMPARISONS:
        page += compare(runs, of, suffix, *arguments)
    for arguments in SWEEPS:
        page += sweep(runs, of, suffix, *arguments)
    return page
