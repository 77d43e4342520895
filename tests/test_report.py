"""benchmark.report on run directories made here: its numbers against hand-computed ones, its files, its refusals."""

import csv
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmark import aggregate, comparisons, page, report, results
from benchmark.results import AVERAGES, DOMAINS, SCORE, published, read_published
from d4rl_gymnasium.tasks import ALL_TASKS, OGBENCH_TASKS, TASKS

D4RL = "D4RL (found in its cache directory)"


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """{name: figure} of the pictures, to look at. Painting them takes most of a report's time: only tests with "draw"
    in their name do.
    """
    figures = {}

    def picture(name, figure, caption):
        figures[name] = figure
        return "picture", name, b"PNG", caption

    if "draw" not in request.node.name:
        for module in (report, comparisons):
            monkeypatch.setattr(module, "picture", picture)
    return figures


def make_run(folder: Path, task: str, script="aspc_td3bc", seed: int = 0, score: float = 50.0, **options) -> Path:
    """A run directory of two evaluations, the last scoring `score`, the first 10 more, the final one 1 less.

    Options are arguments of the script, or: source, finished, time, group, end_alpha, moments ((step, seconds) of each
    evaluation, in place of two).
    """
    source, finished, end = options.pop("source", D4RL), options.pop("finished", True), options.pop("end_alpha", 3.0)
    moments, group = options.pop("moments", [(500, 5.0), (1000, 10.0)]), options.pop("group", None)
    name = f"{task}__{script}__{seed}__{options.pop('time', '20260101-000000')}"
    for key in sorted(options):  # parallel runs of a variant differ in their time; here in their name
        name += f"-{key}{options[key]}"
    path = folder / name
    path.mkdir(parents=True)
    args = results.defaults(script) | {"env_id": task, "seed": seed} | options
    config = {
        "script": script, "seed": seed, "args": args, "group": group or [name], "device": "cpu", "commit": "0123456789",
        "dataset": {"path": "/data/x.hdf5", "sha256": "ab" * 32, "source": source},
    }
    (path / "config.json").write_text(json.dumps(config))
    known, rows = task in ALL_TASKS, []  # other tasks have no score
    for step, seconds in moments:
        value, alpha = (score, end) if step == moments[-1][0] else (score + 10, 2.5)
        scores = {"charts/episodic_return": value, SCORE: value if known else None}
        rows.append({"step": step, "seconds": seconds, "aspc/alpha": alpha} | scores)
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if finished:
        result = {"env_id": task, "last": rows[-1], "best": rows[0], "final_score": score - 1 if known else None}
        (path / "result.json").write_text(json.dumps(result))
    return path


def make_runs(folder: Path, script: str, scores: dict[str, tuple[float, ...]], **options) -> None:
    """{task: the score of each seed}"""
    for task, of_task in scores.items():
        for seed, score in enumerate(of_task):
            make_run(folder, task, script, seed, score, **options)


def build(*folders: Path, out: Path) -> str:
    report.main(report.Args(folders, out))
    return (out / "report.md").read_text(encoding="utf-8")


def read_table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_iqm_drops_a_quarter_at_each_end():
    assert aggregate.iqm([np.array([100.0, 1, 2, 3]), np.array([4.0, 5, 6, -50])]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert aggregate.iqm([np.array([5.0, 1, 3])]) == pytest.approx(3)  # int(0.75) = 0 runs are cut
    np.testing.assert_allclose(aggregate.iqm([np.array([[0.0, 2, 4, 100], [4, 3, 2, 1]])]), [3, 2.5])
    # The first task's one run weighs as much as the three of the second. Of the weights 1/2 (0), 1/6 (10), 1/6 (20),
    # 1/6 (30) a quarter goes at each end: 1/4 of 0, 1/6 of 10 and 1/12 of 20 are left.
    assert aggregate.iqm([np.array([0.0]), np.array([30.0, 10, 20])]) == pytest.approx((10 / 6 + 20 / 12) / (1 / 2))


def test_profile_weighs_tasks_equally():
    scores = [np.array([10.0, 20]), np.array([30.0, 40])]
    np.testing.assert_array_equal(aggregate.profile(scores, np.array([0, 10, 25, 40])), [1, 0.75, 0.5, 0])
    # above 15 is no run of the first task and two of three of the second
    assert aggregate.profile([np.array([0.0]), np.array([10.0, 20, 30])], np.array([15])) == pytest.approx(1 / 3)


def test_two_algorithms_by_seed():
    """Scores (first, second) of two seeds on each of two tasks."""
    pairs = [np.array([[2.0, 1], [3, 3]]), np.array([[4.0, 5], [6, 5]])]
    # task 1: 1<2, 1<3, 3>2, 3=3: 1.5 of 4; task 2: 5>4, 5<6, twice: 2 of 4
    assert aggregate.improvement(pairs) == (0.375 + 0.5) / 2
    assert aggregate.improvement([scores[:, ::-1] for scores in pairs]) == 1 - (0.375 + 0.5) / 2
    assert aggregate.gain(pairs) == ((-1 + 0) / 2 + (1 - 1) / 2) / 2
    assert aggregate.relative_gain([np.array([[40.0, 50], [60, 50]]), np.array([[50.0, 100]])]) == 75 / 50 - 1
    # Of a base that may be 0 in a resample a relative gain has no interval
    value, low, high = aggregate.estimate(aggregate.relative_gain, [np.array([[0.0, 1], [4, 5]])])
    assert value == 0.5 and np.isnan([low, high]).all() and np.isnan(aggregate.relative_gain([np.array([[0.0, 1]])]))
    # 1, 2, 3 against 2, 1, 3 correlate by 1/2; a task on which one does not vary, or of one seed, does not count
    constant, one = np.array([[1.0, 2], [1, 3]]), np.array([[1.0, 2]])
    shuffled = np.array([[1.0, 2], [2, 1], [3, 3]])
    assert aggregate.correlation([shuffled, shuffled[:, :1] * [1, 2], constant, one]) == pytest.approx((0.5 + 1) / 2)
    assert np.isnan(aggregate.correlation([constant, one]))


def test_runs_are_paired_by_seed_whatever_their_order():
    def runs(scores: dict[int, float]) -> list[SimpleNamespace]:
        return [SimpleNamespace(seed=seed, scores={"last": score}) for seed, score in scores.items()]

    task, other = "hopper-medium-v2", "walker2d-medium-v2"
    x, y = {task: runs({0: 1.0, 1: 2.0, 5: 9.0}), other: runs({0: 1.0})}, {task: runs({1: 20.0, 7: 9.0, 0: 10.0})}
    (pairs,) = report.paired(x, y).items()
    assert pairs[0] == task and pairs[1].tolist() == [[1, 10], [2, 20]]


def test_a_paired_bootstrap_knows_what_seeds_share():
    """Seeds that lift both algorithms leave their difference as it is: 1, whichever are drawn."""
    lifted = np.array([[0.0, 1], [50, 51], [100, 101]])
    assert aggregate.estimate(aggregate.gain, [lifted, lifted]) == (1, 1, 1)
    # Two seeds with the differences 0 and 4: a resampled mean is 0, 2, 4, so 95% reach from 0 to 4
    assert aggregate.estimate(aggregate.gain, [np.array([[7.0, 7], [1, 5]])]) == (2, 0, 4)


def test_95_percent_intervals_of_three_seeds_hold_85(monkeypatch):
    """The first of the figures in COVERAGE, by fewer repetitions and resamples: 85% within 3 standard errors."""
    monkeypatch.setattr(aggregate, "RESAMPLES", 1000)
    rng, cells = np.random.default_rng(0), published("1", "ASPC")
    tasks = [*published("3", "IQL"), *DOMAINS["Maze2d"], "pen-human-v1", "door-human-v1"]
    draw = lambda n: [rng.normal(float(cells[t]["mean"]), float(cells[t]["std"]), n) for t in tasks]  # noqa: E731
    truth, held = aggregate.iqm(draw(20_000)), 0
    for _ in range(1500):
        _, low, high = aggregate.estimate(aggregate.iqm, draw(3))
        held += low <= truth <= high
    assert len(tasks) == 14 and held / 1500 == pytest.approx(0.85, abs=0.028)
    assert "85% of cases with 3 seeds on 14 tasks" in aggregate.COVERAGE


def test_bootstrap_is_stratified_and_its_interval_right():
    """Two runs of 0 and 1 on one task: a resampled mean is 0, ½, 1 with probability ¼, ½, ¼, so 95% reach from 0 to 1.
    With the other task's constant 10, drawn from itself alone, the mean of both is 5, 5.25 or 5.5.
    """
    draws = aggregate.resample([np.array([0.0, 1]), np.array([10.0, 10])])
    assert (draws[1] == 10).all()
    means = np.concatenate(draws, -1).mean(-1)
    values, counts = np.unique(means, return_counts=True)
    np.testing.assert_array_equal(values, [5, 5.25, 5.5])
    np.testing.assert_allclose(counts / aggregate.RESAMPLES, [0.25, 0.5, 0.25], atol=0.04)
    np.testing.assert_array_equal(aggregate.interval(means), [5, 5.5])
    # 100 draws from N(0, 1): the mean's interval is about ±1.96 / 10 around it
    sample = np.random.default_rng(1).normal(size=100)
    low, high = aggregate.interval(aggregate.resample([sample])[0].mean(-1))
    np.testing.assert_allclose([low, high], sample.mean() + np.array([-0.196, 0.196]) * sample.std(), atol=0.02)


def test_deviation_is_the_papers():
    assert aggregate.deviation([90, 90, 90, 100]) == pytest.approx(5.0)  # its "92.5 ± 5.0"
    assert np.isnan(aggregate.deviation([3.0]))


# --- The paper's numbers ----------------------------------------------------------------------------------------------


def test_published_has_every_cell():
    counts = Counter(row["table"] for row in read_published())
    assert counts == {"1": 6 * (39 + 5), "2": 4 * 5, "3": 6 * (9 + 1), "4": 11, "13": 5 * 5, "FQL": 10}
    for algorithm in ("TD3+BC", "A2PR", "IQL", "wPC", "ReBRAC", "ASPC"):
        assert list(published("1", algorithm)) == list(TASKS)
        assert list(published("1", algorithm, "stated average")) == list(AVERAGES)
    assert {row["task"] for row in read_published() if row["table"] == "3"} <= {*TASKS, "Total"}
    assert published("1", "ASPC")["maze2d-umaze-v1"]["mean"] == "128.1"
    assert published("1", "ASPC")["maze2d-umaze-v1"]["std"] == "31.8"
    assert published("1", "A2PR", "stated average")["Maze2d"]["mean"] == "123.53"
    assert not any(row["mean"] for row in read_published() if row["table"] == "4")  # only percentages are legible


def test_stated_averages_are_those_of_the_cells_but_for_seven():
    off = {}
    for algorithm in ("TD3+BC", "A2PR", "IQL", "wPC", "ReBRAC", "ASPC"):
        cells, stated = published("1", algorithm), published("1", algorithm, "stated average")
        for domain, tasks in AVERAGES.items():
            mean = np.mean([float(cells[task]["mean"]) for task in tasks])
            if abs(mean - float(stated[domain]["mean"])) > 0.1:  # what rounding can make of both
                off[algorithm, domain] = (float(stated[domain]["mean"]), round(float(mean), 2))
                assert stated[domain]["note"]
    assert off == {
        ("TD3+BC", "MuJoCo"): (70.7, 69.05), ("TD3+BC", "Total"): (57.7, 56.91),
        ("IQL", "Maze2d"): (46.2, 29.2), ("IQL", "Total"): (62.6, 61.33),
        ("wPC", "MuJoCo"): (77.8, 77.92), ("wPC", "Adroit"): (28.8, 27.68), ("wPC", "Total"): (64.2, 63.87),
    }
    for quality in ("medium", "expert", "medium-expert"):  # the copied cells
        walker, hopper = (published("1", "TD3+BC")[f"{robot}-{quality}-v2"] for robot in ("walker2d", "hopper"))
        assert (walker["mean"], walker["std"]) == (hopper["mean"], hopper["std"]) and walker["note"]


def test_other_tables_agree_with_themselves():
    for table in ("2", "13"):
        for algorithm in {row["algorithm"] for row in read_published() if row["table"] == table}:
            cells, total = published(table, algorithm), published(table, algorithm, "stated average")["Total"]
            mean = sum(float(cells[domain]["mean"]) * len(tasks) for domain, tasks in DOMAINS.items()) / len(TASKS)
            assert mean == pytest.approx(float(total["mean"]), abs=0.1)
    worse = 0
    for base in ("IQL", "CQL", "Diffusion-QL"):
        before, after = published("3", base), published("3", f"{base}+ASPC")
        for rows, algorithm in ((before, base), (after, f"{base}+ASPC")):
            stated = float(published("3", algorithm, "stated average")["Total"]["mean"])
            assert np.mean([float(row["mean"]) for row in rows.values()]) == pytest.approx(stated, abs=0.06)
        for task, row in after.items():
            gain = 100 * (float(row["mean"]) / float(before[task]["mean"]) - 1)
            assert abs(gain) == pytest.approx(float(row["percent"].rstrip("%")), abs=0.051)  # printed without its sign
            assert ("a loss" in row["note"]) == (gain < 0)
            worse += gain < 0
    assert worse == 8  # of 27, against "consistently improves"


def test_three_gains_of_table_4_are_losses():
    """FQL's own rates times a gain or a loss of the printed percentages are whole numbers. Of all choices of signs
    three give the printed average; each has three losses or more.
    """
    rates = {task: float(row["mean"]) for task, row in published("FQL", "FQL").items()}
    percents = {task: float(row["percent"].rstrip("%")) / 100 for task, row in published("4", "FQL+ASPC").items()}
    assert list(rates) == list(percents) == list(OGBENCH_TASKS)
    ways = []
    for task, rate in rates.items():
        after = {round(rate * (1 + sign * percents[task])) for sign in (1, -1)}
        assert all(abs(abs(x / rate - 1) - percents[task]) < 0.0006 for x in after if rate and x >= 0)
        ways.append([x for x in after if x >= 0])
    gain = lambda after: round(100 * (sum(after) / sum(rates.values()) - 1), 1)  # noqa: E731
    assert gain([max(way) for way in ways]) == 22.7
    fitting = [after for after in itertools.product(*ways) if gain(after) == 13.5]
    losses = [sum(x < rate for x, rate in zip(after, rates.values(), strict=True)) for after in fitting]
    assert len(fitting) == 3 and min(losses) == 3
    note = published("4", "FQL+ASPC", "stated average")["Total"]["note"]
    assert published("4", "FQL+ASPC", "stated average")["Total"]["percent"] == "13.5%" and "22.7%" in note


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_scores_of_tasks_and_domains(tmp_path):
    for seed, score in enumerate((100, 110, 120, 130)):
        make_run(tmp_path / "runs", "maze2d-umaze-v1", seed=seed, score=score, end_alpha=7 + seed)
    others = {"maze2d-medium-v1": (60,), "maze2d-large-v1": (80,), "pen-human-v1": (90,)}
    make_runs(tmp_path / "runs", "aspc_td3bc", others)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "table1.csv")
    assert list(rows["pen-human-v1"]) == ["task", "ASPC", "paper, ASPC", "difference"]
    assert list(rows["maze2d-umaze-v1"].values())[1:] == ["115.0 ± 12.9 (4)", "128.1 ± 31.8", "-13.1"]
    assert list(rows["maze2d-medium-v1"].values())[1:] == ["60.0 (1)", "117.8 ± 17.3", "-57.8"]
    # (115 + 60 + 80) / 3; the paper's cells average (128.1 + 117.8 + 195.8) / 3 = 147.23
    assert list(rows["Maze2d average"].values())[1:] == ["85.0", "147.2", "-62.2"]
    assert rows["Maze2d, as the paper states it"]["paper, ASPC"] == "147.2"
    # Missing cells are missing, and averages over what there is say so
    assert list(rows["pen-cloned-v1"].values())[1:] == ["–", "87.2 ± 4.2", "–"]
    assert "hopper-medium-v2" not in rows  # of its domain nothing ran
    assert list(rows["MuJoCo average"].values())[1:] == ["–", "–", "–"]
    assert rows["Adroit average"]["ASPC"] == "90.0 (1 of 12 tasks)"
    assert rows["Adroit average"]["paper, ASPC"] == "81.1 (1 of 12 tasks)"
    assert rows["Total average"]["ASPC"] == "86.2 (4 of 39 tasks)"  # (115 + 60 + 80 + 90) / 4
    # Best and final apart
    assert read_table(tmp_path / "out" / "best.csv")["maze2d-umaze-v1"]["ASPC"] == "125.0 ± 12.9 (4)"
    assert read_table(tmp_path / "out" / "final.csv")["maze2d-umaze-v1"]["ASPC"] == "114.0 ± 12.9 (4)"
    # 7, 8, 9 and 10 have the deviation √(5/3)
    ends = read_table(tmp_path / "out" / "alpha.csv")
    assert ends["maze2d-umaze-v1"]["ASPC, α (from 2.5)"] == "8.500 ± 1.291 (4)"
    assert ends["pen-human-v1"]["ASPC, α (from 2.5)"] == "3.000 (1)" and len(ends) == 4
    # 60, 80, 90 weigh 1/4, 100, 110, 120 and 130 of one task 1/16 each; 1/7 of the weight goes at each end
    (row,) = read_table(tmp_path / "out" / "headline.csv").values()
    assert list(row.values())[:3] == ["ASPC", "1 to 4", "86.2"]
    kept = {60: 1 / 4 - 1 / 7, 80: 1 / 4, 90: 1 / 4, 100: 1 / 16, 110: 3 / 16 - 1 / 7}
    iqm = sum(score * weight for score, weight in kept.items()) / (1 - 2 / 7)
    assert row["interquartile mean"] == f"{iqm:.1f}"  # no interval: three tasks have one seed
    assert "stand-in" not in text and "No difference from the paper" not in text
    ran = read_table(tmp_path / "out" / "what_ran.csv")["python aspc_td3bc.py --env-id maze2d-umaze-v1"]
    assert (ran["seeds"], ran["steps"], ran["commit"], ran["hours"]) == ("0, 1, 2, 3", "1,000", "0123456", "0.01")


def test_stand_in_data_is_marked_and_kept_apart(tmp_path):
    make_run(tmp_path / "runs", "maze2d-umaze-v1", source="collected (stand-in for D4RL's file)", score=10)
    make_run(tmp_path / "runs", "maze2d-umaze-v1", seed=1, score=90)
    make_run(tmp_path / "runs", "maze2d-large-v1", source="given: some.hdf5 (a stand-in)", score=20)
    make_run(tmp_path / "runs", "maze2d-large-v1", seed=1, source="given: some.hdf5", score=30)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    row = read_table(tmp_path / "out" / "table1.csv")["maze2d-umaze-v1"]
    assert (row["ASPC"], row["difference"]) == ("90.0 (1)", "-38.1")
    assert read_table(tmp_path / "out" / "table1_2.csv")["maze2d-large-v1"]["ASPC"] == "30.0 (1)"
    stand_in = read_table(tmp_path / "out" / "table1_3.csv")
    assert (stand_in["maze2d-umaze-v1"]["ASPC"], stand_in["maze2d-large-v1"]["ASPC"]) == ("10.0 (1)", "20.0 (1)")
    assert {row["difference"] for row in stand_in.values()} == {"–"}
    assert "with it: ASPC (not D4RL's file, or not known to be it)." in text and "All runs:" not in text
    assert "## Scores (the paper's Table 1) (on stand-in data)" in text and "(on own data)" in text


def test_what_all_runs_share_stands_once(tmp_path):
    for script in ("aspc_td3bc", "td3bc"):
        make_run(tmp_path / "runs", "maze2d-umaze-v1", script, source="given: some.hdf5", total_steps=7)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    assert "All runs: --total-steps 7 on own data." in text and "## Scores (the paper's Table 1)\n" in text
    assert list(read_table(tmp_path / "out" / "table1.csv")["maze2d-umaze-v1"]) == [
        "task", "TD3+BC", "paper, TD3+BC", "difference", "ASPC", "paper, ASPC"
    ]
    assert list(read_table(tmp_path / "out" / "variants.csv")) == ["ASPC", "TD3+BC"]


def test_a_difference_from_the_paper_needs_its_steps_its_tuning_and_its_data(tmp_path):
    """One column for each of the paper's, in its order; the rest in a table without the paper's numbers."""
    task = "hopper-medium-v2"
    for script, options in {
        "aspc_td3bc": {}, "rebrac": {"tuned": True}, "wpc": {"batch_size": 7}, "iql": {}, "a2pr": {"tuned": True},
        "td3bc": {}, "cql": {"tuned": True},
    }.items():  # fmt: skip
        make_run(tmp_path / "runs", task, script, score=60, **options)
    make_run(tmp_path / "runs", task, "rebrac", score=10)
    make_run(tmp_path / "runs", task, "td3bc", score=1, total_steps=7)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    with (tmp_path / "out" / "table1.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    names = ["TD3+BC", "A2PR --tuned", "IQL", "ReBRAC --tuned", "ASPC"]
    assert head[1::3] == names and set(head[3::3]) == {"difference"}
    (row,) = [row for row in rows if row[0] == task]
    assert row[3::3] == ["-2.0", "–", "–", "-42.0", "-32.7"]  # from 62.0, 102.0, 92.7
    assert "with it: A2PR --tuned (settings of each task, the paper has one for all). IQL (one setting for all" in text
    assert "wPC (a batch of 7)" in text and "TD3+BC (7 gradient steps, the paper's are a million)" in text
    assert list(read_table(tmp_path / "out" / "table1_others.csv")[task]) == ["task", "ReBRAC", "CQL --tuned"]


HOPPER, SHA256 = "hopper-medium-replay-v2", TASKS["hopper-medium-replay-v2"].dataset_sha256
OGBENCH = "OGBench (found in its cache directory)"
STAND_IN, OWN = "on stand-in data", "on own data"


@pytest.mark.parametrize(
    "task, source, sha256, expected",
    [
        (HOPPER, "D4RL (downloaded from http://host/x.hdf5)", "0", ""),
        (HOPPER, "collected by d4rl_gymnasium's waypoint controller (stand-in for D4RL's file)", "0", STAND_IN),
        (HOPPER, "collected by d4rl_gymnasium's behaviour policies (stand-in for D4RL's file)", "0", STAND_IN),
        (HOPPER, "given: my.hdf5 (a stand-in)", "0", STAND_IN),
        (HOPPER, "given: my-stand-in.hdf5", "0", OWN),
        (HOPPER, "given: my.hdf5", "0", OWN),
        (HOPPER, "given: my.hdf5", SHA256, ""),
        (HOPPER, "given: x.hdf5 (D4RL (downloaded from http://host/x.hdf5))", "0", ""),
        (HOPPER, "Minari: D4RL/x", "0", OWN),
        (next(iter(OGBENCH_TASKS)), OGBENCH, "0", ""),
        (next(iter(OGBENCH_TASKS)), f"given: x.npz ({OGBENCH})", "0", ""),
        (next(iter(OGBENCH_TASKS)), "given: x.npz", "0", OWN),
    ],
)
def test_whose_data_they_are(task, source, sha256, expected):
    dataset = {"source": source, "sha256": sha256}
    assert results.kind_of_data(task, dataset) == expected
    dataset["stand_in"] = expected == STAND_IN  # as configs say since
    assert results.kind_of_data(task, dataset) == expected
    if expected == OWN:  # and where there is no other kind, it has no name
        assert results.kind_of_data("Pendulum-v1", dataset) == ""


def test_unfinished_runs_and_repeats_are_listed_not_counted(tmp_path):
    make_run(tmp_path / "runs", "pen-human-v1", seed=0, score=70)
    make_run(tmp_path / "runs", "pen-human-v1", seed=1, score=10, finished=False)
    make_run(tmp_path / "runs", "door-human-v1", seed=0, score=1, time="20260101-000000")
    make_run(tmp_path / "runs", "door-human-v1", seed=0, score=2, time="20260202-000000")
    empty = make_run(tmp_path / "runs", "pen-cloned-v1", finished=False)
    (empty / "metrics.csv").unlink()  # it ended before its first evaluation
    text = build(tmp_path / "runs", out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "table1.csv")
    assert rows["pen-human-v1"]["ASPC"] == "70.0 (1)" and rows["pen-cloned-v1"]["ASPC"] == "–"
    assert rows["door-human-v1"]["ASPC"] == "2.0 (1)"  # the later one
    unfinished = read_table(tmp_path / "out" / "unfinished.csv")
    assert [row["last score"] for row in unfinished.values()] == ["–", "10.0"]
    assert [row["steps"] for row in unfinished.values()] == ["0 of 1,000,000", "1,000 of 1,000,000"]
    assert "label and seed: door-human-v1__aspc_td3bc__0__20260101-000000." in text


def test_variants_have_labels_of_their_own(tmp_path):
    """What changes no number makes none: benchmark.run itself gives --eval-workers."""
    make_run(tmp_path, "pen-human-v1", alpha_init=10.0, total_steps=2000)
    make_run(tmp_path, "pen-human-v1", seed=1, robust_critic=False, compile=True, device="cuda")
    make_run(tmp_path, "pen-human-v1", seed=2, eval_workers=3, track_project="mine", matmul_precision="medium")
    make_run(tmp_path, "pen-human-v1", script="not_here", learning_rate=0.1)
    runs = results.read_runs([tmp_path])
    assert [run.label for run in runs] == [
        "ASPC", "ASPC --alpha-init 10.0", "ASPC --no-robust-critic", "not_here --learning-rate 0.1",
    ]
    assert [run.setting for run in runs] == ["", "--total-steps 2000", "", ""]
    assert [run.main for run in runs] == [True, False, False, False]
    assert report.command(runs[2]) == "python aspc_td3bc.py --env-id pen-human-v1 --compile --no-robust-critic"
    assert results.flags({"alpha_init": 10, "track": True}) == ["--alpha-init", "10", "--track"]


def test_tuned_runs_are_one_algorithm(tmp_path):
    """Their settings differ from task to task; one argument more makes a variant."""
    make_run(tmp_path, "hopper-medium-v2", script="rebrac", tuned=True, actor_bc_coef=0.03, batch_size=1024)
    make_run(tmp_path, "antmaze-umaze-v2", script="rebrac", tuned=True, actor_bc_coef=0.003, discount=0.999)
    make_run(tmp_path, "hopper-medium-v2", script="rebrac", actor_bc_coef=0.03)
    make_run(tmp_path, "hopper-medium-v2", script="wpc", alpha=1.0)
    runs = results.read_runs([tmp_path])
    labels = ["wPC --alpha 1.0", "ReBRAC --actor-bc-coef 0.03", "ReBRAC --tuned", "ReBRAC --tuned"]
    assert [(run.label, run.main) for run in runs] == list(zip(labels, [False, False, True, True], strict=True))
    assert report.command(runs[2]) == "python baselines/rebrac.py --env-id antmaze-umaze-v2 --tuned"
    text = build(tmp_path, out=tmp_path / "out")
    assert "ReBRAC --tuned" in text
    columns = list(read_table(tmp_path / "out" / "table1.csv")["hopper-medium-v2"])
    assert columns[1:4] == ["ReBRAC --tuned", "paper, ReBRAC", "difference"]


def test_ogbench_is_a_table_of_its_own(tmp_path):
    """Success rates, what ASPC gains over FQL by seed, and no part in D4RL's tables."""
    first, second, *_ = OGBENCH_TASKS
    make_runs(tmp_path, "fql", {first: (40, 60), second: (0,)}, eval_episodes=50)
    make_runs(tmp_path, "aspc_fql", {first: (60, 62, 0), second: (8,)}, eval_episodes=50)  # a seed without its partner
    make_run(tmp_path, first, "aspc_fql", 0, 90.0, total_steps=7)  # another length, without FQL's
    build(tmp_path, out=tmp_path / "out")
    short, rows = (read_table(tmp_path / "out" / f"table4{suffix}.csv") for suffix in ("_2", ""))
    assert list(rows) == [*OGBENCH_TASKS, "average"]
    assert list(rows[first].values())[1:] == ["50.0 ± 14.1 (2)", "40.7 ± 35.2 (3)", "+22.0%", "80 ± 8", "5.0%"]
    assert rows[second]["gain over FQL"] == "–"
    # (61 + 8) / 2 over (50 + 0) / 2; one seed of the second task: no interval. FQL's ten rates add up to 436.
    assert list(rows["average"].values())[2:] == ["24.3 (2 of 10 tasks)", "+38.0% (2 of 10 tasks)", "43.6", "13.5%"]
    assert short[first]["FQL+ASPC"] == "90.0 (1)" and "gain over FQL" not in short[first]
    assert not (tmp_path / "out" / "table1.csv").exists() and not (tmp_path / "out" / "others.csv").exists()


def test_table_3(tmp_path):
    """A base beside itself with ASPC in the same setting; gains by seed and averages by hand, the paper's of the same
    tasks.
    """
    hopper, walker, cheetah = "hopper-medium-v2", "walker2d-medium-v2", "halfcheetah-medium-v2"
    iql = {hopper: (40, 60), walker: (80, 80, 80), cheetah: (30,)}  # walker's third seed and cheetah have no pair
    make_runs(tmp_path / "runs", "iql", iql, tuned=True)
    make_runs(tmp_path / "runs", "aspc_iql", {hopper: (50, 74), walker: (70, 70)})
    make_run(tmp_path / "runs", hopper, "cql", score=30)
    make_run(tmp_path / "runs", hopper, "aspc_cql", score=90, total_steps=7)  # of another length
    for script in ("td3bc", "aspc_td3bc"):  # Table 1's pair
        make_run(tmp_path / "runs", hopper, script)
    build(tmp_path / "runs", out=tmp_path / "out")
    with (tmp_path / "out" / "table3.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["task", "IQL --tuned", "IQL+ASPC", "gain", "paper, IQL", "paper, IQL+ASPC", "gain"]
    assert rows == [
        [cheetah, "30.0 (1)", "–", "–", "–", "–", "–"],
        [hopper, "50.0 ± 14.1 (2)", "62.0 ± 17.0 (2)", "+12.0 ± 2.8 (2)", "65.2", "61.4", "-3.8"],
        [walker, "80.0 ± 0.0 (3)", "70.0 ± 0.0 (2)", "-10.0 ± 0.0 (2)", "80.7", "83.9", "+3.2"],
        # resampled, hopper's gain is 10, 12 or 14 and walker's -10
        ["average", "65.0 (2 of 9 tasks)", "66.0 (2 of 9 tasks)", "+1.0 [+0.0, +2.0] (2 of 9 tasks)",
         *(f"{mean} (2 of 9 tasks)" for mean in ("73.0", "72.7", "-0.3"))],
    ]  # fmt: skip


def test_headline_and_differences(tmp_path, figures):
    """Common tasks and shared seeds alone, by hand; an algorithm with too few tasks is left out and named."""
    runs = tmp_path / "runs"  # on the common tasks the second seed is the better one for both
    make_runs(runs, "td3bc", {"pen-human-v1": (10, 30), "door-human-v1": (50, 70)})
    make_runs(runs, "aspc_td3bc", {"pen-human-v1": (14, 34), "door-human-v1": (52, 80), "hammer-human-v1": (0, 0)})
    make_runs(runs, "iql", {"pen-human-v1": (90, 90)})
    make_run(runs, "pen-human-v1", "td3bc", 9, 50)  # a seed of its own
    text = build(runs, out=tmp_path / "out")
    ours, base = read_table(tmp_path / "out" / "headline.csv").values()
    # by seed 4 and 4 on pen, 2 and 10 on door: resampled (4 + 2) / 2 to (4 + 10) / 2
    assert ours["difference to TD3+BC"] == "+5.0 [+3.0, +7.0]" and ours["seeds"] == "2"
    # pen: 14 > 10, 34 > both: 3 of 4; door: 52 > 50, 80 > both: 3 of 4. Were one seed drawn twice: 1 of 1
    assert ours["probability of improvement on TD3+BC"] == "0.75 [0.75, 1.00]"
    assert (ours["mean"], ours["interquartile mean"]) == ("45.0 [33.0, 57.0]", "43.0 [33.0, 57.0]")
    assert base["difference to TD3+BC"] == "–" and base["seeds"] == "2 to 3"
    assert "on the 2 tasks that all of these have" in text and "Without IQL, which ran on too few" in text
    assert text.index("## In short") < text.index("85% of cases") < text.index("- [Scores (the paper's Table 1)](#sc")
    rows = read_table(tmp_path / "out" / "differences.csv")
    assert list(rows["pen-human-v1"].items())[1:] == [
        ("ASPC − TD3+BC", "+4.0 ± 0.0 (2)"), ("ASPC − IQL", "-66.0 ± 14.1 (2)"),
    ]  # fmt: skip
    assert rows["Adroit average"]["ASPC − TD3+BC"] == "+5.0 [+3.0, +7.0] (2 of 12 tasks)"
    assert rows["correlation by seed"] == {"task": "correlation by seed", "ASPC − TD3+BC": "1.00", "ASPC − IQL": "–"}
    (improvement,) = read_table(tmp_path / "out" / "improvement.csv").values()
    assert list(improvement.values()) == ["ASPC", "TD3+BC", "2", "0.75 [0.75, 1.00]"]
    # Profiles from the lowest to the highest score, 10 and 80 (and 3% more), ASPC's above the other
    ours, base = figures["profiles"].axes[0].get_lines()
    np.testing.assert_allclose(ours.get_xdata()[[0, -1]], [10 - 2.1, 80 + 2.1])
    assert (ours.get_ydata()[0], ours.get_ydata()[-1]) == (1, 0) and len(figures["profiles"].axes[0].collections) == 2
    assert [line.get_label() for line in (ours, base)] == ["ASPC", "TD3+BC"] and ours.get_zorder() > base.get_zorder()
    assert not any("tandard error" in path.read_text() for path in (tmp_path / "out").glob("*.md"))


def test_what_is_compared_is_the_largest_block():
    names = ["pen-human-v1", "door-human-v1", "hammer-human-v1", "relocate-human-v1"]
    tasks = lambda n: {task: [task] for task in names[:n]}  # noqa: E731
    for sizes, taken in (((4, 4, 1), 2), ((4, 4, 3), 3), ((4,), 1), ((1, 4, 4, 2), 2), ((1, 4, 4, 2, 2), 4)):
        groups = {str(i): tasks(n) for i, n in enumerate(sizes)}
        compared, left_out = report.in_common(groups)
        assert len(compared) == taken and len(left_out) == len(sizes) - taken
        assert len({tuple(of) for of in compared.values()}) == 1


def test_one_name_and_one_look_in_every_picture(tmp_path, figures):
    """Wherever an algorithm is drawn, in whatever company; ASPC's line above all others."""
    for task in ("hopper-medium-v2", "halfcheetah-medium-v2"):
        for script, options in {"td3bc": {}, "rebrac": {"tuned": True}, "aspc_td3bc": {}}.items():
            make_run(tmp_path / "runs", task, script, **options)
    make_run(tmp_path / "runs", "pen-human-v1", "rebrac", tuned=True)
    make_run(tmp_path / "runs", "pen-human-v1", "aspc_td3bc")
    build(tmp_path / "runs", out=tmp_path / "out")
    looks = {"ASPC": ("#d62728", "-"), "TD3+BC": ("#1f77b4", "-"), "ReBRAC --tuned": ("#222222", "--")}
    for name in ("profiles", "score_MuJoCo", "score_Adroit", "fig10"):
        for axis in figures[name].axes:
            lines = {line.get_label().split(" (")[0]: line for line in axis.get_lines()}
            for label, line in lines.items():
                assert (line.get_color(), line.get_linestyle()) == looks[label]
            top = max(lines, key=lambda label: lines[label].get_zorder()) if lines else "ASPC"
            assert top == "ASPC"


def test_algorithms_can_be_told_apart():
    main = [results.ALGORITHMS[script][1] for script in (*results.PUBLISHED, "fql", "aspc_fql")]
    rgb = np.array([page.lighter(color, 0) for color in main])
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)[np.triu_indices(len(main), 1)]
    assert len(main) == 13 and apart.min() > 0.25  # of the √3 from black to white
    assert page.lighter("#ff0000", 0.5) == (1, 0.5, 0.5)


def test_legend_names_every_line_once():
    drawing, axes = page.figure(1, 2, 4.6, 3)
    for axis, labels in zip(axes.flat, (("b", "a"), ("a", "a long name of a variant" * 3)), strict=True):
        for label in labels:
            axis.plot([0, 1], [0, 1], label=label, zorder=3 if label == "a" else 2)
    page.legend(drawing)
    (drawn,) = drawing.legends
    texts = [text.get_text() for text in drawn.get_texts()]
    assert texts[0] == "a" and sorted(texts) == sorted(["a", "b", "a long name of a variant" * 3]) and drawn._ncols == 1


def test_hours_are_those_behind_the_first_interval(tmp_path, figures):
    """Steps of 10,000 in 100 (with compilation), then 20, 20, 20, 40 s: a million take 2,000 s in the median."""
    spent = itertools.accumulate((100, 20, 20, 20, 40))
    moments = list(zip(range(10_000, 60_000, 10_000), spent, strict=True))
    for seed in (0, 1):
        make_run(tmp_path / "runs", "pen-human-v1", "aspc_td3bc", seed, moments=moments, group=["ASPC 0", "ASPC 1"])
        make_run(tmp_path / "runs", "pen-human-v1", "td3bc", seed, group=["TD3+BC 0", "TD3+BC 1"])
    text = build(tmp_path / "runs", out=tmp_path / "out")
    (row,) = read_table(tmp_path / "out" / "runtime.csv").values()
    # the nine tenths of 20, 20, 20, 40 s lie 0.7 of the way from the third to the fourth
    hours = [f"{seconds * 100 / 3600:.2f}" for seconds in (20, 20, 34)]
    assert list(row.values()) == ["ASPC", "cpu, seeds at once: 2", "1", *hours]
    assert "Left out: 1 process too short to tell." in text
    (bar,) = (x for x in figures["runtime"].axes[0].containers if hasattr(x, "patches"))
    ((ends,),) = (x.get_segments() for x in bar.errorbar.lines[2])
    np.testing.assert_allclose(np.array(ends)[:, 0] * 36, [20, 34])


def test_scales_of_different_kinds_are_relative_to_their_start(tmp_path):
    make_run(tmp_path / "runs", "hopper-medium-v2", "aspc_iql", end_alpha=4.5)
    make_run(tmp_path / "runs", "hopper-medium-v2", "td3bc", end_alpha=2.5)
    runs = {run.script: run for run in results.read_runs([tmp_path / "runs"])}
    assert (runs["aspc_iql"].scale, runs["aspc_iql"].start, runs["td3bc"].scale) == ("β", 3.0, "α")
    assert report.relative_scale(runs["aspc_iql"], runs["aspc_iql"].rows[-1]) == 1.5
    assert report.relative_scale(runs["td3bc"], runs["td3bc"].rows[-1]) == 1
    assert "MuJoCo: scale / start." in build(tmp_path / "runs", out=tmp_path / "out")
    for path in (tmp_path / "runs").glob("*aspc_iql*"):
        path.rename(tmp_path / "away")
    assert "MuJoCo: α." in build(tmp_path / "runs", out=tmp_path / "out")


def test_one_process_may_train_several_tasks(tmp_path):
    """args then has all tasks; whose the directory is says result.json, or without it config.json's own env_id."""
    tasks = ["pen-human-v1", "door-human-v1"]
    for task, finished in zip(tasks, (True, False), strict=True):
        path = make_run(tmp_path, task, finished=finished)
        config = json.loads((path / "config.json").read_text())
        config["args"]["env_id"] = tasks
        (path / "config.json").write_text(json.dumps(config | ({} if finished else {"env_id": task})))
    runs = results.read_runs([tmp_path])
    assert sorted(run.task for run in runs) == sorted(tasks)
    assert {report.command(run) for run in runs} == {"python aspc_td3bc.py --env-id pen-human-v1 door-human-v1"}


def test_other_tasks_have_returns(tmp_path):
    make_runs(tmp_path / "runs", "aspc_td3bc", {"Pendulum-v1": (-200, -100)}, source="given: my.hdf5")
    build(tmp_path / "runs", out=tmp_path / "out")
    row = read_table(tmp_path / "out" / "others.csv")["Pendulum-v1"]
    assert row["return of the last checkpoint"] == "-150.0 ± 70.7 (2)"


# --- Ablations --------------------------------------------------------------------------------------------------------


def test_table_2(tmp_path):
    runs, task = tmp_path / "runs", "maze2d-umaze-v1"
    for seed, end in enumerate((7.0, 9.0)):
        make_run(runs, task, seed=seed, score=100, end_alpha=end)
    make_run(runs, task, script="td3bc", score=50)
    make_run(runs, task, script="td3bc", score=80, alpha=8.0)  # the mean of 7 and 9
    make_run(runs, task, script="td3bc", score=60, alpha_final=8.0)
    make_run(runs, task, script="td3bc", score=999, alpha=2.0)  # not where ASPC ended
    make_run(runs, "maze2d-large-v1", script="td3bc", score=999)  # not a task of all columns
    build(runs, out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "table2.csv")
    assert list(rows["Maze2d"].items())[1:] == [
        ("tasks", "1 of 3"), ("Naive", "50.0"), ("paper, Naive", "–"),  # an average of three tasks
        ("Converged", "80.0 (+60.0%)"), ("paper, Converged", "–"),
        ("Linear", "60.0 (+20.0%)"), ("paper, Linear", "–"),
        ("Dynamic (ASPC)", "100.0 [100.0, 100.0] (+100.0%)"), ("paper, Dynamic (ASPC)", "–"),
    ]
    for task in ("maze2d-medium-v1", "maze2d-large-v1"):
        make_run(runs, task, score=100, end_alpha=8.0, time="20260202-000000")
        make_run(runs, task, script="td3bc", score=50, time="20260202-000000")
        make_run(runs, task, script="td3bc", score=80, alpha=8.0)
        make_run(runs, task, script="td3bc", score=60, alpha_final=8.0)
    build(runs, out=tmp_path / "out")
    row = read_table(tmp_path / "out" / "table2.csv")["Maze2d"]
    assert [row[f"paper, {x}"] for x in ("Naive", "Converged", "Linear")] == [
        "61.9 (base)", "133.2 (115.2%)", "103.3 (66.9%)",
    ]  # fmt: skip


def test_table_13_and_sweeps(tmp_path):
    runs, task = tmp_path / "runs", "pen-human-v1"
    make_run(runs, task, score=50)
    make_run(runs, task, script="l_bc_form1", score=40)
    make_run(runs, task, score=30, alpha_init=10.0)
    make_run(runs, task, score=20, alpha_init=0.5)
    make_run(runs, task, score=45, l_q_coef=0.0)
    make_run(runs, task, score=35, l_q_coef=0.0, l_bc_coef=0.0)
    make_run(runs, task, score=99, total_steps=2000, alpha_init=10.0)  # of another length: no column here
    text = build(runs, out=tmp_path / "out")
    assert list(read_table(tmp_path / "out" / "table1.csv")[task])[1:] == ["ASPC", "paper, ASPC", "difference"]
    assert list(read_table(tmp_path / "out" / "table13.csv")["Adroit"].items())[2:] == [
        ("(1)", "40.0 (-20.0%)"), ("paper, (1)", "–"), ("(4)", "50.0"), ("paper, (4)", "–"),  # one task of twelve
    ]
    assert list(read_table(tmp_path / "out" / "fig11.csv")["Adroit"].items())[2:] == [
        ("ASPC, alpha_init 0.5", "20.0"), ("ASPC, alpha_init 2.5", "50.0"),
        ("ASPC, alpha_init 10.0", "30.0"),
    ]
    assert list(read_table(tmp_path / "out" / "fig6b.csv")["Adroit"].values())[2:] == ["35.0", "45.0", "50.0"]
    assert "Fig. 12" not in text and "Fig. 6a" not in text
    assert (tmp_path / "out" / "fig11.png").exists()


def test_figure_1b_needs_an_algorithm_with_and_without_its_settings(tmp_path, figures):
    for script, scores in {"iql": (10, 20), "rebrac": (60, 70)}.items():
        make_runs(tmp_path, script, {"pen-human-v1": scores})
        make_runs(tmp_path, script, {"pen-human-v1": (80, 80)}, tuned=True)
    runs = results.read_runs([tmp_path])
    (name,) = [block[1:] for block in comparisons.ablations(runs, "", "") if block[0] == "table"]
    assert name[0] == "fig1b" and name[1][2:] == ["IQL", "IQL --tuned", "ReBRAC", "ReBRAC --tuned"]
    assert name[2][3] == [
        "Adroit", "1 of 12", "15.0 [10.0, 20.0]", "80.0 [80.0, 80.0]", "65.0 [60.0, 70.0]", "80.0 [80.0, 80.0]",
    ]  # fmt: skip
    drawn = [x for x in figures["fig1b"].axes[0].containers if hasattr(x, "patches")]
    assert [bars.get_label() for bars in drawn] == name[1][2:]
    for bars, (mean, *ends) in zip(drawn, ((15, 10, 20), (80, 80, 80), (65, 60, 70), (80, 80, 80)), strict=True):
        assert [bar.get_height() for bar in bars] == [mean] * 2  # of Adroit and of all tasks
        assert [np.array(x)[:, 1].tolist() for x in bars.errorbar.lines[2][0].get_segments()] == [ends] * 2
    assert comparisons.ablations([run for run in runs if not run.variant], "", "") == []


def test_figure_10(tmp_path, monkeypatch):
    """Q, BC loss and score of ASPC and TD3+BC; a run from before TD3+BC logged its BC loss has none."""
    drawn = []
    monkeypatch.setattr(report, "panels", drawn.append)
    task, row = "halfcheetah-medium-v2", {"losses/q": 7.0, SCORE: 40.0, "aspc/bc": 0.1, "td3bc/bc": 0.2}
    for script in ("aspc_td3bc", "td3bc"):
        make_run(tmp_path, task, script)
    groups = report.grouped(results.read_runs([tmp_path]))
    assert [block[0] for block in report.figure_10(groups, "", "")] == ["heading", "picture"]
    ((*parts,),) = drawn
    runs = {label: groups[label][task] for label in ("ASPC", "TD3+BC")}
    assert [title for title, *_ in parts] == ["Q", "BC loss", "score"] and all(part[3] == runs for part in parts)
    assert [[value(of[0], row) for of in runs.values()] for _, _, value, _ in parts] == [[7, 7], [0.1, 0.2], [40, 40]]
    assert np.isnan(parts[1][2](runs["TD3+BC"][0], {}))
    assert report.figure_10({"ASPC": groups["ASPC"]}, "", "") == []


# --- Files and refusals -----------------------------------------------------------------------------------------------


def test_two_builds_draw_the_same_bytes(tmp_path):
    runs = tmp_path / "runs"
    for i, task in enumerate(("hopper-medium-v2", "pen-human-v1")):
        make_run(runs / "a", task, score=i)
    make_run(runs / "a", "pen-human-v1", alpha_init=10.0)
    make_run(runs / "b", "pen-human-v1", script="td3bc", score=50)
    for script in ("aspc_td3bc", "td3bc"):  # Fig. 10
        make_run(runs / "b", "halfcheetah-medium-v2", script)
    build(runs, out=tmp_path / "1")
    text = build(runs / "b", runs / "a", out=tmp_path / "2")
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert {"report.md", "report.html", "runs.csv", "evaluations.csv", "fig11.png", "fig10.png"} <= set(files)
    assert files == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    page = (tmp_path / "1" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == text.count("![") == sum(name.endswith(".png") for name in files)
    assert 'src="' not in page.replace('src="data:', "") and 'href="h' not in page  # nothing to fetch
    assert set(re.findall('href="#([^"]*)"', page)) == set(re.findall('<h2 id="([^"]*)"', page))
    assert page.count("<details>") == text.count("<details>") == 1  # what is odd in the paper's numbers


def test_radar_draws_complete_labels_only(tmp_path):
    for i, task in enumerate(TASKS):
        make_run(tmp_path, task, score=i)
    make_run(tmp_path, "pen-human-v1", script="td3bc")
    groups = report.grouped(results.read_runs([tmp_path]))
    (block,) = report.radar(groups, "", "")
    assert block[:2] == ("picture", "radar") and block[2].startswith(b"\x89PNG")
    assert block[2] == report.radar(groups, "", "")[0][2] and "paper" in block[3]
    (block,) = report.radar({"TD3+BC": groups["TD3+BC"]}, "", "")
    assert block == ("text", "No radar chart: that needs labels with scores on all 39 tasks.")
    table = report.scores_table("table1", groups, "last")
    assert table[3][-1] == ["Total average", "19.0", "50.0 (1 of 39 tasks)"]  # mean of 0 to 38


@pytest.mark.parametrize("file, content", [
    ("config.json", "{"), ("config.json", "[]"), ("config.json", '{"script": "td3bc"}'),
    ("result.json", '{"last": '), ("result.json", "{}"), ("metrics.csv", "step,seconds\nx,y\n"), ("metrics.csv", ""),
])
def test_damaged_files_end_with_a_sentence(tmp_path, file, content):
    path = make_run(tmp_path / "runs", "pen-human-v1")
    (path / file).write_text(content)
    with pytest.raises(SystemExit, match="damaged, or not what a run leaves") as caught:
        build(tmp_path / "runs", out=tmp_path / "out")
    assert path.name in str(caught.value) and not (tmp_path / "out").exists()


def test_folders_without_runs_end_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="No run directory"):
        build(tmp_path, out=tmp_path / "out")
    with pytest.raises(SystemExit, match="is not a folder"):
        build(tmp_path / "nowhere", out=tmp_path / "out")
    make_run(tmp_path / "runs", "pen-human-v1", finished=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="could not be written"):
        build(tmp_path / "runs", out=tmp_path / "file")
