"""benchmark.report on run directories made here: its numbers against hand-computed ones, its files, its refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmark import aggregate, comparisons, page, report, results
from benchmark.results import AVERAGES, DOMAINS, published, read_published
from d4rl_gymnasium.tasks import ALL_TASKS, OGBENCH_TASKS, TASKS

D4RL = "D4RL (found in its cache directory)"


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Pictures take most of a report's time: only tests with "draw" in their name draw them."""
    if "draw" not in request.node.name:
        for module in (report, comparisons):
            monkeypatch.setattr(module, "picture", lambda name, figure, caption: ("picture", name, b"PNG", caption))


def make_run(folder: Path, task: str, script="aspc_td3bc", seed: int = 0, score: float = 50.0, **options) -> Path:
    """A run directory of two evaluations, the last scoring `score`, the first 10 more, the final one 1 less.

    Options are arguments of the script, or: source, finished, time, end_alpha.
    """
    source, finished = options.pop("source", D4RL), options.pop("finished", True)
    end = options.pop("end_alpha", 3.0)
    name = f"{task}__{script}__{seed}__{options.pop('time', '20260101-000000')}"
    for key in sorted(options):  # parallel runs of a variant differ in their time; here in their name
        name += f"-{key}{options[key]}"
    path = folder / name
    path.mkdir(parents=True)
    args = results.defaults(script) | {"env_id": task, "seed": seed} | options
    config = {
        "script": script, "seed": seed, "args": args, "group": [name], "device": "cpu", "commit": "0123456789",
        "dataset": {"path": "/data/x.hdf5", "sha256": "ab" * 32, "source": source},
    }
    (path / "config.json").write_text(json.dumps(config))
    normalized = score if task in ALL_TASKS else None
    rows = [
        {"step": step, "seconds": step / 100, "charts/episodic_return": value, "charts/normalized_score": value,
         "aspc/alpha": alpha}
        for step, value, alpha in ((500, score + 10, 2.5), (1000, score, end))
    ]
    if normalized is None:
        rows = [row | {"charts/normalized_score": None} for row in rows]
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if finished:
        result = {"last": rows[1], "best": rows[0], "final_score": score - 1 if task in ALL_TASKS else None}
        (path / "result.json").write_text(json.dumps(result))
    return path


def build(*folders: Path, out: Path) -> str:
    report.main(report.Args(folders, out))
    return (out / "report.md").read_text(encoding="utf-8")


def read_table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_iqm_drops_a_quarter_at_each_end():
    assert aggregate.iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == (2 + 3 + 4 + 5) / 4
    assert aggregate.iqm(np.array([5.0, 1, 3])) == 3  # int(0.75) = 0 runs are cut
    np.testing.assert_array_equal(aggregate.iqm(np.array([[0.0, 2, 4, 100], [4, 3, 2, 1]])), [3, 2.5])


def test_profile():
    scores = np.array([10.0, 20, 30, 40])
    np.testing.assert_array_equal(aggregate.profile(scores, np.array([0, 10, 25, 40])), [1, 0.75, 0.5, 0])


def test_probability_of_improvement():
    x = [np.array([1.0, 3]), np.array([5.0])]
    y = [np.array([2.0, 3]), np.array([4.0, 6])]
    # task 1: 1<2, 1<3, 3>2, 3=3: 1.5 of 4; task 2: 5>4, 5<6: 1 of 2
    assert aggregate.improvement(x, y) == (0.375 + 0.5) / 2
    assert aggregate.improvement(y, x) == 1 - (0.375 + 0.5) / 2


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
    counts = {table: sum(row["table"] == table for row in read_published()) for table in ("1", "2", "3", "4", "13")}
    assert counts == {"1": 6 * (39 + 5), "2": 4 * 5, "3": 6 * (9 + 1), "4": 11, "13": 5 * 5}
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


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_scores_of_tasks_and_domains(tmp_path):
    for seed, score in enumerate((100, 110, 120, 130)):
        make_run(tmp_path / "runs", "maze2d-umaze-v1", seed=seed, score=score, end_alpha=7 + seed)
    for task, score in (("maze2d-medium-v1", 60), ("maze2d-large-v1", 80), ("pen-human-v1", 90)):
        make_run(tmp_path / "runs", task, score=score)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "table1.csv")
    assert list(rows["pen-human-v1"]) == ["task", "aspc_td3bc", "paper, ASPC", "difference"]
    assert list(rows["maze2d-umaze-v1"].values())[1:] == ["115.0 ± 12.9 (4)", "128.1 ± 31.8", "-13.1"]
    assert list(rows["maze2d-medium-v1"].values())[1:] == ["60.0 (1)", "117.8 ± 17.3", "-57.8"]
    # (115 + 60 + 80) / 3; the paper's cells average (128.1 + 117.8 + 195.8) / 3 = 147.23
    assert list(rows["Maze2d average"].values())[1:] == ["85.0", "147.2", "-62.2"]
    assert rows["Maze2d, as the paper states it"]["paper, ASPC"] == "147.2"
    # Missing cells are missing, and averages over what there is say so
    assert list(rows["pen-cloned-v1"].values())[1:] == ["–", "87.2 ± 4.2", "–"]
    assert "hopper-medium-v2" not in rows  # of its domain nothing ran
    assert list(rows["MuJoCo average"].values())[1:] == ["–", "–", "–"]
    assert rows["Adroit average"]["aspc_td3bc"] == "90.0 (1 of 12 tasks)"
    assert rows["Adroit average"]["paper, ASPC"] == "81.1 (1 of 12 tasks)"
    assert rows["Total average"]["aspc_td3bc"] == "86.2 (4 of 39 tasks)"  # (115 + 60 + 80 + 90) / 4
    # Best and final apart
    assert read_table(tmp_path / "out" / "best.csv")["maze2d-umaze-v1"]["aspc_td3bc"] == "125.0 ± 12.9 (4)"
    assert read_table(tmp_path / "out" / "final.csv")["maze2d-umaze-v1"]["aspc_td3bc"] == "114.0 ± 12.9 (4)"
    # 7, 8, 9 and 10 have the deviation √(5/3)
    ends = read_table(tmp_path / "out" / "alpha.csv")
    assert ends["maze2d-umaze-v1"]["aspc_td3bc"] == "8.500 ± 1.291 (4)"
    assert ends["pen-human-v1"]["aspc_td3bc"] == "3.000 (1)" and len(ends) == 4
    # 60 80 90 100 110 120 130: one run is cut at each end
    assert read_table(tmp_path / "out" / "iqm.csv")["aspc_td3bc"]["interquartile mean"] == "100.0"
    assert "Stand-in" not in text
    ran = read_table(tmp_path / "out" / "what_ran.csv")["python aspc_td3bc.py --env-id maze2d-umaze-v1"]
    assert (ran["seeds"], ran["steps"], ran["commit"], ran["hours"]) == ("0, 1, 2, 3", "1,000", "0123456", "0.01")


def test_stand_in_data_is_marked_and_kept_apart(tmp_path):
    make_run(tmp_path / "runs", "maze2d-umaze-v1", source="collected (stand-in for D4RL's file)", score=10)
    make_run(tmp_path / "runs", "maze2d-umaze-v1", seed=1, score=90)
    make_run(tmp_path / "runs", "maze2d-large-v1", source="given: some.hdf5", score=20)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    row = read_table(tmp_path / "out" / "table1.csv")
    assert row["maze2d-umaze-v1"]["aspc_td3bc on stand-in data"] == "10.0 (1)"
    assert row["maze2d-umaze-v1"]["aspc_td3bc"] == "90.0 (1)"
    assert row["maze2d-large-v1"]["aspc_td3bc on stand-in data"] == "20.0 (1)"
    with (tmp_path / "out" / "table1.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    # No difference is formed from scores on other data
    head = ["aspc_td3bc", "paper, ASPC", "difference", "aspc_td3bc on stand-in data", "paper, ASPC"]
    assert lines[0][1:] == head
    assert "not comparable" in text and "All runs:" not in text


def test_what_all_runs_share_stands_once(tmp_path):
    for script in ("aspc_td3bc", "td3bc"):
        make_run(tmp_path / "runs", "maze2d-umaze-v1", script, source="given: some.hdf5", total_steps=7)
    text = build(tmp_path / "runs", out=tmp_path / "out")
    assert "All runs: --total-steps 7 on stand-in data." in text
    assert list(read_table(tmp_path / "out" / "table1.csv")["maze2d-umaze-v1"]) == [
        "task", "aspc_td3bc", "paper, ASPC", "td3bc", "paper, TD3+BC"
    ]
    assert set(read_table(tmp_path / "out" / "variants.csv")) == {"aspc_td3bc", "td3bc"}
    assert [run.shared for run in results.read_runs([tmp_path / "runs"])] == ["--total-steps 7 on stand-in data"] * 2


@pytest.mark.parametrize(
    "source, sha256, expected",
    [
        ("D4RL (downloaded from http://host/x.hdf5)", "0", False),
        ("collected by d4rl_gymnasium's waypoint controller (stand-in for D4RL's file)", "0", True),
        ("collected by d4rl_gymnasium's behaviour policies (stand-in for D4RL's file)", "0", True),
        ("given: my.hdf5", "0", True),
        ("given: my.hdf5", TASKS["hopper-medium-replay-v2"].dataset_sha256, False),
        ("given: x.hdf5 (D4RL (downloaded from http://host/x.hdf5))", "0", False),
        ("Minari: D4RL/x", "0", True),
    ],
)
def test_what_counts_as_a_stand_in(source, sha256, expected):
    assert results.is_stand_in("hopper-medium-replay-v2", {"source": source, "sha256": sha256}) == expected


def test_unfinished_runs_and_repeats_are_listed_not_counted(tmp_path):
    make_run(tmp_path / "runs", "pen-human-v1", seed=0, score=70)
    make_run(tmp_path / "runs", "pen-human-v1", seed=1, score=10, finished=False)
    make_run(tmp_path / "runs", "door-human-v1", seed=0, score=1, time="20260101-000000")
    make_run(tmp_path / "runs", "door-human-v1", seed=0, score=2, time="20260202-000000")
    empty = make_run(tmp_path / "runs", "pen-cloned-v1", finished=False)
    (empty / "metrics.csv").unlink()  # it ended before its first evaluation
    text = build(tmp_path / "runs", out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "table1.csv")
    assert rows["pen-human-v1"]["aspc_td3bc"] == "70.0 (1)" and rows["pen-cloned-v1"]["aspc_td3bc"] == "–"
    assert rows["door-human-v1"]["aspc_td3bc"] == "2.0 (1)"  # the later one
    unfinished = read_table(tmp_path / "out" / "unfinished.csv")
    assert [row["last score"] for row in unfinished.values()] == ["–", "10.0"]
    assert [row["steps"] for row in unfinished.values()] == ["0 of 1,000,000", "1,000 of 1,000,000"]
    assert "label and seed: door-human-v1__aspc_td3bc__0__20260101-000000." in text


def test_variants_have_labels_of_their_own(tmp_path):
    make_run(tmp_path, "pen-human-v1", alpha_init=10.0, total_steps=2000)
    make_run(tmp_path, "pen-human-v1", seed=1, robust_critic=False, compile=True, device="cuda")
    make_run(tmp_path, "pen-human-v1", seed=2)
    make_run(tmp_path, "pen-human-v1", script="not_here", learning_rate=0.1)
    runs = results.read_runs([tmp_path])
    assert [run.label for run in runs] == [
        "aspc_td3bc", "aspc_td3bc --alpha-init 10.0 --total-steps 2000", "aspc_td3bc --no-robust-critic",
        "not_here --learning-rate 0.1",
    ]
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
    labels = ["rebrac --actor-bc-coef 0.03", "rebrac --tuned", "rebrac --tuned", "wpc --alpha 1.0"]
    assert [(run.label, run.main) for run in runs] == list(zip(labels, [False, True, True, False], strict=True))
    assert report.command(runs[1]) == "python baselines/rebrac.py --env-id antmaze-umaze-v2 --tuned"
    text = build(tmp_path, out=tmp_path / "out")
    assert "rebrac --tuned" in text
    columns = list(read_table(tmp_path / "out" / "table1.csv")["hopper-medium-v2"])
    assert columns[1:4] == ["rebrac --tuned", "paper, ReBRAC", "difference"]


def test_ogbench_is_a_table_of_its_own(tmp_path):
    """Success rates, what ASPC gains over FQL of the same length, and no part in D4RL's tables."""
    first, second, *_ = OGBENCH_TASKS
    for seed, (fql, aspc) in enumerate(((40.0, 60.0), (60.0, 62.0))):
        make_run(tmp_path, first, "fql", seed, fql, eval_episodes=50)
        make_run(tmp_path, first, "aspc_fql", seed, aspc, eval_episodes=50)
    make_run(tmp_path, second, "fql", 0, 0.0, eval_episodes=50)
    make_run(tmp_path, second, "aspc_fql", 0, 8.0, eval_episodes=50)
    make_run(tmp_path, first, "aspc_fql", 0, 90.0, eval_episodes=50, total_steps=7)  # another length, without FQL's
    build(tmp_path, out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "table4.csv")
    fql, aspc = "fql --eval-episodes 50", "aspc_fql --eval-episodes 50"
    short = "aspc_fql --total-steps 7 --eval-episodes 50"
    assert list(rows) == [*OGBENCH_TASKS, "average"]
    assert (rows[first][fql], rows[first][aspc]) == ("50.0 ± 14.1 (2)", "61.0 ± 1.4 (2)")
    assert [rows[name]["gain over FQL"] for name in (first, second)] == ["+22.0%", "–"]
    assert rows[first]["paper's gain, sign lost"] == "5.0%" and rows["average"]["paper's gain, sign lost"] == "13.5%"
    assert rows["average"][aspc] == "34.5 (2 of 10 tasks)" and rows[first][short] == "90.0 (1)"
    assert list(rows[first]).count("gain over FQL") == 1
    assert not (tmp_path / "out" / "table1.csv").exists() and not (tmp_path / "out" / "others.csv").exists()


def test_table_3(tmp_path):
    """A base beside itself with ASPC in the same setting; gains and averages by hand, the paper's of the same tasks."""
    hopper, walker, cheetah = "hopper-medium-v2", "walker2d-medium-v2", "halfcheetah-medium-v2"
    for seed, score in enumerate((40, 60)):
        make_run(tmp_path / "runs", hopper, "iql", seed, score, tuned=True)
    make_run(tmp_path / "runs", hopper, "aspc_iql", score=64)
    make_run(tmp_path / "runs", walker, "iql", score=80, tuned=True)
    make_run(tmp_path / "runs", walker, "aspc_iql", score=70)
    make_run(tmp_path / "runs", cheetah, "iql", score=30, tuned=True)  # without its pair
    make_run(tmp_path / "runs", hopper, "cql", score=30)
    make_run(tmp_path / "runs", hopper, "aspc_cql", score=90, total_steps=7)  # of another length
    for script in ("td3bc", "aspc_td3bc"):  # Table 1's pair
        make_run(tmp_path / "runs", hopper, script)
    build(tmp_path / "runs", out=tmp_path / "out")
    with (tmp_path / "out" / "table3.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["task", "iql --tuned", "aspc_iql", "gain", "paper, IQL", "paper, IQL+ASPC", "gain"]
    assert rows == [
        [cheetah, "30.0 (1)", "–", "–", "–", "–", "–"],
        [hopper, "50.0 ± 14.1 (2)", "64.0 (1)", "+14.0", "65.2", "61.4", "-3.8"],
        [walker, "80.0 (1)", "70.0 (1)", "-10.0", "80.7", "83.9", "+3.2"],
        ["average", *(f"{mean} (2 of 9 tasks)" for mean in ("65.0", "67.0", "+2.0", "73.0", "72.7"))]
        + ["-0.3 (2 of 9 tasks)"],
    ]  # fmt: skip


def test_legend_names_every_line_once():
    drawing, axes = page.figure(1, 2, 4.6, 3)
    for axis, labels in zip(axes.flat, (("a", "b"), ("b", "a long name of a variant" * 3)), strict=True):
        for label in labels:
            axis.plot([0, 1], [0, 1], label=label)
    page.legend(drawing, "--total-steps 7 on stand-in data")
    (drawn,) = drawing.legends
    assert sorted(text.get_text() for text in drawn.get_texts()) == sorted(["a", "b", "a long name of a variant" * 3])
    assert drawn.get_title().get_text() == "--total-steps 7 on stand-in data" and drawn._ncols == 1


def test_a_file_of_ogbench_is_no_stand_in():
    task, source = next(iter(OGBENCH_TASKS)), "OGBench (found in its cache directory)"
    stand_in = lambda source: results.is_stand_in(task, {"source": source, "sha256": ""})  # noqa: E731
    assert not stand_in(source) and not stand_in(f"given: x.npz ({source})") and stand_in("given: x.npz")


def test_seeds_of_one_process_share_their_hours(tmp_path):
    for seed in (0, 1):
        path = make_run(tmp_path / "runs", "pen-human-v1", seed=seed)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"group": ["first", "second"]}))
    build(tmp_path / "runs", out=tmp_path / "out")
    # 10 s for 1000 steps
    row = read_table(tmp_path / "out" / "runtime.csv")["aspc_td3bc"]
    assert row["processes"] == "1" and row["how"] == "cpu, seeds at once: 2"
    assert float(row["hours for a million steps"]) == pytest.approx(10 / 3600 * 1000, abs=0.01)


def test_other_tasks_have_returns(tmp_path):
    for seed, score in enumerate((-200.0, -100.0)):
        make_run(tmp_path / "runs", "Pendulum-v1", seed=seed, score=score, source="given: my.hdf5")
    build(tmp_path / "runs", out=tmp_path / "out")
    assert read_table(tmp_path / "out" / "others.csv")["Pendulum-v1"]["return of the last checkpoint"] == (
        "-150.0 ± 70.7 (2)"
    )


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
    row = read_table(tmp_path / "out" / "table2_1.csv")["Maze2d"]
    assert list(row.items())[1:] == [
        ("tasks", "1 of 3"), ("Naive", "50.0"), ("paper, Naive", "61.9 (base)"),
        ("Converged", "80.0 (+60.0%)"), ("paper, Converged", "133.2 (115.2%)"),
        ("Linear", "60.0 (+20.0%)"), ("paper, Linear", "103.3 (66.9%)"),
        ("Dynamic (ASPC)", "100.0 (+100.0%)"), ("paper, Dynamic (ASPC)", "147.2 (137.8%)"),
    ]


def test_table_13_and_sweeps(tmp_path, monkeypatch):
    monkeypatch.setitem(results.SCRIPTS, "l_bc_form1", results.ROOT / "benchmark" / "ablations" / "l_bc_form1.py")
    known = results.defaults("aspc_td3bc")
    monkeypatch.setattr(results, "defaults", lambda script: known)
    runs, task = tmp_path / "runs", "pen-human-v1"
    make_run(runs, task, score=50)
    make_run(runs, task, script="l_bc_form1", score=40)
    make_run(runs, task, score=30, alpha_init=10.0)
    make_run(runs, task, score=20, alpha_init=0.5)
    make_run(runs, task, score=45, l_q_coef=0.0)
    make_run(runs, task, score=35, l_q_coef=0.0, l_bc_coef=0.0)
    make_run(runs, task, score=99, total_steps=2000, alpha_init=10.0)  # of another length: no column here
    text = build(runs, out=tmp_path / "out")
    assert list(read_table(tmp_path / "out" / "table1.csv")[task])[1:] == ["aspc_td3bc", "paper, ASPC", "difference"]
    assert list(read_table(tmp_path / "out" / "table13_1.csv")["Adroit"].items())[2:] == [
        ("(1)", "40.0 (-20.0%)"), ("paper, (1)", "55.2 (-0.9%)"), ("(4)", "50.0"), ("paper, (4)", "55.7 (base)"),
    ]
    assert list(read_table(tmp_path / "out" / "fig11_1.csv")["Adroit"].items())[2:] == [
        ("aspc_td3bc, alpha_init 0.5", "20.0"), ("aspc_td3bc, alpha_init 2.5", "50.0"),
        ("aspc_td3bc, alpha_init 10.0", "30.0"),
    ]
    assert list(read_table(tmp_path / "out" / "fig6b_1.csv")["Adroit"].values())[2:] == ["35.0", "45.0", "50.0"]
    assert "Fig. 12" not in text and "Fig. 6a" not in text
    assert (tmp_path / "out" / "fig11_1.png").exists()


# --- Files and refusals -----------------------------------------------------------------------------------------------


def test_two_builds_draw_the_same_bytes(tmp_path):
    runs = tmp_path / "runs"
    for i, task in enumerate(("hopper-medium-v2", "pen-human-v1")):
        make_run(runs / "a", task, score=i)
    make_run(runs / "a", "pen-human-v1", alpha_init=10.0)
    make_run(runs / "b", "pen-human-v1", script="td3bc", score=50)
    build(runs, out=tmp_path / "1")
    text = build(runs / "b", runs / "a", out=tmp_path / "2")
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert {"report.md", "report.html", "runs.csv", "evaluations.csv", "fig11_1.png", "score_Adroit.png"} <= set(files)
    assert files == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    page = (tmp_path / "1" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == text.count("![") == sum(name.endswith(".png") for name in files)
    assert 'src="' not in page.replace('src="data:', "") and "href=" not in page  # nothing to fetch
    improvement = read_table(tmp_path / "1" / "improvement.csv")["aspc_td3bc"]
    assert (improvement["common tasks"], improvement["P(X > Y)"]) == ("1", "0.00")  # 1 against 50


def test_radar_draws_complete_labels_only(tmp_path):
    for i, task in enumerate(TASKS):
        make_run(tmp_path, task, score=i)
    make_run(tmp_path, "pen-human-v1", script="td3bc")
    groups = report.grouped(results.read_runs([tmp_path]))
    (block,) = report.radar(groups)
    assert block[:2] == ("picture", "radar") and block[2].startswith(b"\x89PNG")
    assert block[2] == report.radar(groups)[0][2]
    (block,) = report.radar({"td3bc": groups["td3bc"]})
    assert block == ("text", "No radar chart: that needs one label's scores on all 39 tasks.")
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
