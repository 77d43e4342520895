"""`benchmark.paired`: differences seed by seed from committed reports."""

import csv

import pytest
from conftest import ROOT

from benchmark.paired import rows

RESULTS = ROOT / "docs" / "results"


def test_the_table_of_the_results_is_that_of_their_runs():
    with (RESULTS / "paired.csv").open(newline="", encoding="utf-8") as file:
        _, *table = csv.reader(file)
    made = [row for folder in ("first", "halfcheetah-medium") for row in rows(RESULTS / folder, "final")]
    assert [[str(cell) for cell in row] for row in made] == table


def test_pairs_are_of_one_seed_and_setting(tmp_path):
    runs = """label,setting,task,seed,final
ASPC,,a,0,3
ASPC,,a,1,5
ASPC,5000 steps,a,1,90
ASPC,,a,2,
TD3+BC,,a,1,1
TD3+BC,,a,0,2
TD3+BC,,a,2,7
TD3+BC,,b,0,9
"""
    (tmp_path / "runs.csv").write_text(runs)
    assert rows(tmp_path, "final") == [[tmp_path.name, "TD3+BC", 1, 2, "2.500", "1.000", "4.000"]]
    (tmp_path / "runs.csv").write_text(runs.replace("ASPC", "wPC"))
    with pytest.raises(SystemExit, match="has no finished run of ASPC"):
        rows(tmp_path, "final")
