"""What a plan takes, from the speeds that `benchmark.speed` left in docs/results/speed-*.json."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ASPC, ABLATIONS, BATCH = "aspc_td3bc", "benchmark/ablations/", 256
Speeds = dict[str, dict[tuple[int, int], float]]  # script -> (learners, batch) -> ms of a gradient step of all learners


def read_speeds(folder: Path, device: str, compiled: bool) -> tuple[Speeds, list[str]]:
    """The speeds on cuda or cpu in folder/speed-*.json, and a sentence for each of these that cannot be read.

    compiled: take those of compiled updates first, otherwise last. The quickest of several counts.
    """
    modes = {"cuda": ("graph", "compiled graph"), "cpu": ("eager", "compiled")}[device][:: -1 if compiled else 1]
    speeds: dict[str, Speeds] = {mode: {} for mode in modes}
    complaints = []
    for path in sorted(folder.glob("speed-*.json")):
        try:
            record = json.loads(path.read_text())
            if record["args"]["device"].startswith("cuda") != (device == "cuda"):
                continue
            for row in record["rows"]:
                found = re.fullmatch(r"(\S+) ([a-z ]+), (\d+) x (\d+), width 256", row["variant"])
                if found and found[2] in modes:
                    table, size = speeds[found[2]].setdefault(found[1], {}), (int(found[3]), int(found[4]))
                    table[size] = min(float(row["ms_per_step"]), table.get(size, float("inf")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            complaints.append(f"{path} does not count: no speeds can be read in it ({error!r}).")
    return speeds[modes[1]] | speeds[modes[0]], complaints


def interpolated(points: dict[int, float], x: int) -> float:
    """Linear between the points; beyond the last in proportion, before the first as there."""
    xs = sorted(points)
    return float(np.interp(x, xs, [points[at] for at in xs])) * max(1.0, x / xs[-1])


def milliseconds(speeds: Speeds, script: str, learners: int, batch: int) -> float | None:
    """Of a gradient step of so many learners. A script that was not measured is taken for its sibling: an ablation for
    ASPC, a method with ASPC for the one without, and the other way round. None if that was not measured either.

    Beyond the numbers of learners at which a script was measured its time grows as ASPC's does. A batch that was not
    measured costs in proportion to its size.
    """
    base = script.removeprefix("baselines/").removeprefix("aspc_")
    siblings = [ASPC] if script.startswith(ABLATIONS) else [f"aspc_{base}", f"baselines/{base}"]
    tables = [speeds.get(name, {}) for name in (script, *siblings)]
    table = next((table for table in tables if any(b == BATCH for _, b in table)), None)
    if table is None:
        return None
    by_learners = {n: ms for (n, b), ms in table.items() if b == BATCH}
    nearest = min(max(learners, min(by_learners)), max(by_learners))
    growth = {n: ms for (n, b), ms in speeds.get(ASPC, {}).items() if b == BATCH} or {1: 1.0}
    ms = interpolated(by_learners, nearest) * interpolated(growth, learners) / interpolated(growth, nearest)
    by_batch = {b: ms for (n, b), ms in table.items() if n == min(by_learners)}
    at = min(max(batch, min(by_batch)), max(by_batch))
    return ms * interpolated(by_batch, at) / by_batch[BATCH] * batch / at


def print_estimate(jobs: Iterable, folder: Path, device: str, compile: str, at_a_time: int) -> None:
    """The training hours of jobs, by script and size. at_a_time: GPUs, or processes on a CPU."""
    speeds, complaints = read_speeds(folder, device, compile == "on" or (compile == "auto" and device == "cuda"))
    unit, note = {"cuda": "GPU", "cpu": "CPU core"}[device], ""
    if device == "cuda" and not speeds:
        speeds, complaints = read_speeds(folder, "cpu", compile == "on")
        unit, note = "CPU core", "; no GPU was measured yet, so GPU hours cannot be told"
    lines: dict[tuple, Counter] = {}
    parts, unknown = Counter(), set()
    for job in jobs:
        if not (steps := job.total - job.done):
            continue
        ms = milliseconds(speeds, job.script, len(job.learners), job.batch)
        if ms is None:
            unknown.add(job.script)
            continue
        line = lines.setdefault((job.script, len(job.learners), job.batch, ms), Counter())
        line.update(jobs=1, steps=steps)
        parts[job.part.partition("-")[0]] += steps * ms / 3.6e6
    hours = parts.total()
    alone = f", {hours / at_a_time:,.1f} on {at_a_time} at a time" if at_a_time > 1 and not note else ""
    print(*complaints, sep="\n", end="\n" * bool(complaints))
    print(f"Training takes about {hours:,.1f} {unit} hours{alone}, without evaluation, at the speeds in "
          f"docs/results/speed-*.json{note}:")  # fmt: skip
    for (script, learners, batch, ms), line in lines.items():
        size = f"{line['jobs']} x {learners} learners, batch {batch}"
        print(f"  {script:36} {size:32} {line['steps'] / 1e6:8.1f} million steps x {ms:8.3f} ms ="
              f"{line['steps'] * ms / 3.6e6:9,.1f} hours")  # fmt: skip
    if len(parts) > 1:
        print("  of these " + ", ".join(f"{part} {value:,.1f}" for part, value in parts.items()))
    if unknown:
        print(f"  not counted, for no speed is recorded: {', '.join(sorted(unknown))}")
