"""What a CUDA graph demands of a period, checked without a GPU: it stays on the device and its memory does not grow."""

import gc
from functools import partial

import pytest
import torch
from conftest import SCRIPTS, make_agent
from torch.utils._python_dispatch import TorchDispatchMode

HOST = {
    "_local_scalar_dense": "reads a value on the host (.item(), float(), if tensor)",
    "nonzero": "has a size that the host must wait for",
    "masked_select": "has a size that the host must wait for",
    "lift_fresh": "makes a tensor of Python numbers (torch.tensor), a copy from the host",
}


class NoHost(TorchDispatchMode):
    """Raise at an operation that would make the device wait for the host, or the host for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        assert name not in HOST, f"{name} {HOST[name]}"
        return function(*args, **(kwargs or {}))


def test_detector_detects():
    with NoHost():
        for sync in (lambda: torch.ones(3).sum().item(), lambda: torch.tensor([1.0]), lambda: torch.ones(2).nonzero()):
            with pytest.raises(AssertionError):
                sync()


@pytest.mark.parametrize("script", SCRIPTS)
def test_period_stays_on_the_device(script):
    agent = make_agent(script, num_seeds=2)
    agent.advance()
    with NoHost():
        agent.period()


@pytest.mark.parametrize("script", SCRIPTS)
def test_state_stays_in_place(script):
    """A captured graph writes to the addresses that it saw: no update may replace a tensor of the state."""
    agent = make_agent(script)
    before = {name: tensor.data_ptr() for name, tensor in agent.tensors().items()}
    agent.advance()
    assert before == {name: tensor.data_ptr() for name, tensor in agent.tensors().items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_grows(script):
    def live_tensors():
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    agent = make_agent(script)
    agent.advance()
    first = live_tensors()
    for _ in range(3):
        agent.advance()
    assert live_tensors() == first


@pytest.mark.parametrize("script", ["aspc_td3bc", "aspc_iql"])  # with their baselines' losses
def test_compiled_equals_eager(monkeypatch, float64, script):
    """What torch.compile captures is the update, nothing frozen: three periods of it, run without generated code."""
    torch.compiler.reset()  # all that scripts compile is vmap's one function to it, and eight times is its limit
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    eager, compiled = make_agent(script), make_agent(script, compile=True)
    for _ in range(3):
        eager.advance()
        compiled.advance()
    for name, tensor in eager.tensors().items():
        torch.testing.assert_close(compiled.tensors()[name], tensor, rtol=0, atol=1e-12, msg=name)
