"""benchmark.speed: it writes what it measures, of all variants asked for."""

import json

import numpy as np

from benchmark import speed


def test_measures_each_variant_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "N", 1000)
    arguments = {"learners": (1, 2), "repeats": 1, "compile": False, "memory": False}
    speed.main(speed.Args(scripts=("baselines/td3bc", "aspc_td3bc"), out=tmp_path / "speed", **arguments))
    written = json.loads((tmp_path / "speed.json").read_text())
    modes = "plain, 1", "eager, 1", "eager, 2"
    variants = [f"{script} {mode} x 256, width 256" for mode in modes for script in ("baselines/td3bc", "aspc_td3bc")]
    assert sorted(row["variant"] for row in written["rows"]) == sorted(variants) == sorted(written["times_ms"])
    for row in written["rows"]:
        assert row["ms_per_step"] == np.median(written["times_ms"][row["variant"]]) > 0
        assert (row["over_baseline"] is None) == row["variant"].startswith("baselines/")
    assert (tmp_path / "speed.png").stat().st_size > 1000
