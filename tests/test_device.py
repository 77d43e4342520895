"""What a GPU and its CUDA graphs demand, checked without one: all is on the device, stays there, and does not grow."""

import gc
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, A, S, make_agent
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


class MetaAdam(torch.optim.Adam):
    """Adam on the device "meta", which has no fused kernel: it only looks at what it is given."""

    def __init__(self, parameters, lr, **_):
        super().__init__(parameters, 0.1)
        self.rate = lr

    def step(self):
        for p, state in self.state.items():
            tensors = [p, p.grad, *state.values()] + torch.is_tensor(self.rate) * [self.rate]
            assert all(tensor.is_meta for tensor in tensors)
            assert p.grad.shape == p.shape and p.grad.is_contiguous()


class MetaGenerator:
    """The device "meta" draws no numbers."""

    def __init__(self, device):
        pass

    def manual_seed(self, seed):
        return self


@pytest.mark.parametrize("script", SCRIPTS)
def test_works_on_another_device(monkeypatch, script):
    """On "meta", which computes shapes alone and, as a GPU does, refuses to mix its tensors with the CPU's."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", MetaAdam)
        patch.setattr(torch, "Generator", MetaGenerator)
        agent = make_agent(script, "meta", num_seeds=2)
        agent.period()
    for name, tensor in (agent.tensors() | agent.metrics).items():
        assert tensor.is_meta, name
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.ones(tensor.shape))  # "meta" has nothing to copy
    generators = [[torch.Generator(), torch.Generator()]] * ("generators" in signature(agent.act).parameters)
    assert agent.act(np.zeros((2, 4, S)), *generators).shape == (2, 4, A)
    assert all(tensor.device.type == "cpu" for tensor in agent.saved_actor(1).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("script", SCRIPTS)
def test_graph_equals_eager_and_resumes(float64, script):
    """Six periods, three before the graph is recorded; and three, then three more in another agent."""
    eager, graph = (make_agent(script, "cuda", num_seeds=2, cudagraph=on) for on in (False, True))
    first, second = (make_agent(script, "cuda", num_seeds=2) for _ in range(2))
    for _ in range(6):
        eager.advance()
        graph.advance()
    for _ in range(3):
        first.advance()
    tensors = {name: tensor.cpu() for name, tensor in first.tensors().items()}
    second.load(tensors, [generator.get_state() for generator in first.generators])
    for _ in range(3):
        second.advance()
    for name, tensor in eager.tensors().items():
        torch.testing.assert_close(graph.tensors()[name], tensor, rtol=0, atol=1e-9, msg=name)
        torch.testing.assert_close(second.tensors()[name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_period_stays_on_the_device(script):
    agent = make_agent(script, num_seeds=2)
    agent.advance()
    with NoHost():
        agent.period()


@pytest.mark.parametrize("script", SCRIPTS)
def test_state_stays_in_place(script):
    """A captured graph keeps to the addresses that it saw: no update may replace a tensor of the state or an input."""

    def addresses() -> dict:
        held = agent.tensors() | {name: value for name, value in vars(agent).items() if torch.is_tensor(value)}
        noise = agent.noise if isinstance(agent.noise, tuple) else [agent.noise]
        held |= {f"noise {i}": tensor for i, tensor in enumerate(noise)}
        return {name: tensor.data_ptr() for name, tensor in held.items()}

    agent = make_agent(script)
    before = addresses()
    agent.advance()
    assert {"indices", "rows", "noise 0"} < set(before) and before == addresses()


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
