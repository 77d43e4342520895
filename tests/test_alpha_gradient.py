"""benchmark.alpha_gradient: the terms add up to the gradient that the scripts take, on either batch."""

import csv

import numpy as np
import pytest
import torch
from conftest import A, random_data, stop_before_alpha
from test_scripts import OWN, train, write_dataset

import aspc_td3bc
from benchmark import alpha_gradient
from benchmark.ablations import fresh_outer_batch


def make_probe(**arguments):
    args = aspc_td3bc.Args(batch_size=32, num_seeds=2, **arguments)
    return alpha_gradient.Probe(args, [random_data()], -np.ones(A), np.ones(A), "cpu")


@pytest.mark.parametrize("which", ["same", "fresh"])
def test_terms_add_up(float64, which):
    probe = make_probe()
    given = stop_before_alpha(probe)
    probe.ema.fill_(-30.0)  # so that L_Q and L_BC count
    before = {name: tensor.clone() for name, tensor in probe.tensors().items()}
    fresh = probe.outer_batch
    probe.update_alpha(*given)
    terms = torch.stack([probe.notes[which, term][0] for term in alpha_gradient.TERMS])
    after = {name: tensor.clone() for name, tensor in probe.tensors().items()}
    for name, tensor in probe.tensors().items():
        tensor.copy_(before[name])
    probe.outer_batch = given[2:] if which == "same" else fresh
    metrics = fresh_outer_batch.Agent.update_alpha(probe, *given)
    torch.testing.assert_close(terms.sum(0), metrics["aspc/alpha_grad"], rtol=1e-9, atol=0)
    assert (terms.abs() > 1e-5 * terms.abs().sum(0)).all(), "a term too small to be tested"
    # α moved by the step's own batch
    assert all(torch.equal(tensor, after[name]) for name, tensor in probe.tensors().items()) == (which == "same")


def test_goes_on_with_a_run_and_leaves_it_alone(tmp_path, capsys):
    data = write_dataset(tmp_path / "data.hdf5", 3, 1, bound=2.0)
    runs = train("aspc_td3bc", data, tmp_path / "runs", OWN | {"num_seeds": 2})
    files = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    alpha_gradient.main(alpha_gradient.Args((runs[0],), updates=3, out=tmp_path / "out.csv"))
    assert files == {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["run"], row["batch"], row["term"]) for row in rows} == {
        (run.name, which, term) for run in runs for which in ("same", "fresh") for term in ("L_alpha", "L_Q", "L_BC")
    }
    assert all(row["step"] == "40" and float(row["negative"]) in (0, 1 / 3, 2 / 3, 1) for row in rows)
    assert capsys.readouterr().out.count("| Pendulum-v1 |") == len(rows) == 12
    with pytest.raises(SystemExit, match="of learners trained together it is the first's"):
        alpha_gradient.main(alpha_gradient.Args((runs[1],)))
    data.write_bytes(data.read_bytes() + b" ")
    with pytest.raises(SystemExit, match="sha256 differs"):
        alpha_gradient.main(alpha_gradient.Args((runs[0],)))


def test_table_by_hand(float64):
    probe = make_probe()
    probe.notes = {("same", "losses/L_Q"): list(torch.tensor([[1.0, -1.0], [2.0, -2.0], [-6.0, -3.0]]))}
    config = {"group": ["a", "b"], "learners": [("x", 7), ("x", 8)], "step": 20}
    first, second = alpha_gradient.table(probe, config)
    assert first[:4] == ["a", "x", 7, 20] and second[:4] == ["b", "x", 8, 20] and first[5:7] == ["same", "L_Q"]
    # 1, 2, -6: mean -1, variance (4 + 9 + 25) / 2 = 19, mean square 41 / 3
    assert first[7:] == pytest.approx([-1, (19 / 3) ** 0.5, 1 / 3, -1 / (41 / 3) ** 0.5])
    assert second[7:] == pytest.approx([-2, (1 / 3) ** 0.5, 1, -2 / (14 / 3) ** 0.5])
