"""tools/parity.py: its helpers; and, where a folder $ASPC_REFERENCE has clones of the official code, the comparison."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script
from torch import nn

from tools import parity

REFERENCE = os.environ.get("ASPC_REFERENCE")


def test_loads_a_file_beside_stubs_and_leaves_no_trace(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/thing.py").write_text(
        "import d4rl, pyrallis, utils\nfrom tqdm.auto import trange\n@pyrallis.wrap()\ndef train(): return utils.X\n"
        "class Env(d4rl.Env): pass\n"
    )
    (tmp_path / "utils.py").write_text("X = 3\n")
    before, path = dict(sys.modules), list(sys.path)
    module = parity.load(tmp_path, "agents.thing")
    assert module.train() == 3
    assert sys.modules == before and sys.path == path


def test_their_random_functions_give_what_they_are_fed():
    x = torch.zeros(4, 2, dtype=torch.float64)
    first, second, third = torch.rand(3, 4, 2, dtype=torch.float64)
    with parity.fed(first, 0.25, second, third):
        assert torch.randn_like(x) is first
        assert np.random.uniform() == 0.25
        assert x.new_empty(4, 2).uniform_(-1, 1) is second
        assert nn.Dropout(0.5)(x + 1).equal(2.0 * (third >= 0.5))
        assert x.float().dtype == torch.float64
    assert x.float().dtype == torch.float32
    with pytest.raises(AssertionError, match="1 of 2 random numbers"), parity.fed(first, second):
        torch.randn(4, 2)


def test_a_difference_is_found_and_their_weights_are_a_copy(float64):
    net, ours = nn.Linear(2, 1), torch.randn(1, 3)
    part = parity.follow(ours, net)
    assert part.theirs().equal(ours[0]) and net.weight.equal(ours[:, :2])
    ours[0, 2] += 0.5
    assert parity.farthest([(part.ours.flatten(), part.theirs())]) == pytest.approx(0.5)
    ours[0, 1] = torch.nan
    assert np.isnan(parity.farthest([(part.ours.flatten(), part.theirs()), (torch.zeros(1), torch.zeros(1))]))


def test_flax_form_and_back(float64):
    pytest.importorskip("jax")
    dense = lambda i, o: {"kernel": np.zeros((2, i, o)), "bias": np.zeros((2, o))}  # noqa: E731
    net = {"Dense_1": dense(4, 1), "LayerNorm_0": {"scale": np.zeros((2, 4)), "bias": np.zeros((2, 4))}}
    net["Dense_0"] = dense(3, 4)
    vector = torch.randn(2, 3 * 4 + 4 + 4 + 4 + 4 + 1)
    tree = parity.to_flax(net, vector)
    kernel = torch.tensor(np.array(tree["Dense_0"]["kernel"])).double()  # JAX's default is float32
    torch.testing.assert_close(kernel[1], vector[1, :12].view(4, 3).T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parity.from_flax(tree).double(), vector, rtol=1e-6, atol=1e-6)


def test_every_script_with_an_official_code_is_compared():
    assert {x.repository for x in parity.COMPARISONS} == set(parity.REPOSITORIES)
    for comparison in parity.COMPARISONS:
        assert load_script(comparison.script).Agent


def test_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.parity", "--reference", tmp_path, "--only", "wpc"], cwd=ROOT, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for url in ("https://github.com/Colin-Jing/ASPC", "https://github.com/qsa-fox/wPC"):
        assert url in done.stdout


@pytest.mark.skipif(not REFERENCE, reason="no folder $ASPC_REFERENCE with clones of the official code")
def test_equals_the_official_code():
    done = subprocess.run(
        [sys.executable, "-m", "tools.parity", "--reference", REFERENCE], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
