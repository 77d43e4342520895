"""What a GPU, its CUDA graphs and torch.compile demand, checked without one: all is on the device, stays there, does
not grow, and is captured whole."""

import functools
import gc

import pytest
import torch
from conftest import A, S, each_script, each_variant, make_agent
from torch.utils._python_dispatch import TorchDispatchMode

from offline_run import compile_agent, graph_agent, load_state

pytestmark = pytest.mark.usefixtures("small_networks")
HOST = {
    "_local_scalar_dense": "reads a value on the host (.item(), float(), if tensor)",
    "nonzero": "has a size that the host must wait for",
    "masked_select": "has a size that the host must wait for",
    "lift_fresh": "makes a tensor of Python numbers (torch.tensor), a copy from the host",
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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


class MetaGenerator:
    """The device "meta" draws no numbers."""

    def __init__(self, device="cpu"):
        pass

    def manual_seed(self, seed):
        return self


@each_script
def test_works_on_another_device(monkeypatch, script):
    """On "meta", which computes shapes alone and, as a GPU does, refuses to mix its tensors with the CPU's."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "Generator", MetaGenerator)
        agent = make_agent(script, "meta", num_seeds=2)
        agent.period()
    for name, tensor in (agent.tensors() | agent.metrics).items():
        assert tensor.is_meta, name
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.ones(tensor.shape))  # "meta" has nothing to copy
    policy = agent.policy(1)
    assert policy(torch.zeros(4, S), torch.Generator()).shape == (4, A)
    assert all(tensor.device.type == "cpu" for tensor in policy.state_dict().values())


@each_variant
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_period_stays_on_the_device_and_in_place(script, options, num_seeds):
    """A captured graph keeps to the addresses that it saw: no update may replace a tensor of the state or an input."""

    def addresses() -> dict:
        held = agent.tensors()
        for prefix, owner in (("agent", agent), ("buffer", agent.buffer)):
            for name, value in vars(owner).items():
                tensors = value if isinstance(value, tuple) else [value]
                held |= {f"{prefix}.{name}.{i}": x for i, x in enumerate(tensors) if torch.is_tensor(x)}
        return {name: tensor.data_ptr() for name, tensor in held.items()}

    agent = make_agent(script, num_seeds=num_seeds, batch_size=4, **options)
    before = addresses()
    agent.advance()
    with NoHost():
        agent.period()
    assert {"buffer.table.0", "buffer.indices.0"} < set(before) and before == addresses()


@each_script
def test_nothing_grows(script):
    def live_tensors():
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    agent = make_agent(script, batch_size=8)
    agent.advance()
    first = live_tensors()
    for _ in range(2):
        agent.advance()
    assert live_tensors() == first


@each_script
def test_compiled_equals_eager(monkeypatch, float64, script):
    """torch.compile takes the update whole, and nothing in it is frozen: two periods, run without generated code."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    eager, compiled = (make_agent(script, num_seeds=2, batch_size=8) for _ in range(2))
    assert compile_agent(compiled)
    for _ in range(2):
        eager.advance()
        compiled.advance()
    for name, tensor in eager.tensors().items():
        torch.testing.assert_close(compiled.tensors()[name], tensor, rtol=0, atol=1e-12, msg=name)


@needs_gpu
@each_script
def test_graph_equals_eager_and_resumes(float64, script):
    """Six periods, three before the graph is recorded; and three, then three more in another agent."""
    eager, graph, first, second = (make_agent(script, "cuda", num_seeds=2) for _ in range(4))
    for agent in (graph, first, second):
        graph_agent(agent)
    for _ in range(6):
        eager.advance()
        graph.advance()
    for _ in range(3):
        first.advance()
    tensors = {name: tensor.cpu() for name, tensor in first.tensors().items()}
    load_state(second, tensors, [generator.get_state() for generator in first.generators])
    for _ in range(3):
        second.advance()
    for name, tensor in eager.tensors().items():
        torch.testing.assert_close(graph.tensors()[name], tensor, rtol=0, atol=1e-9, msg=name)
        torch.testing.assert_close(second.tensors()[name], tensor, rtol=0, atol=1e-9, msg=name)


@needs_gpu
def test_compiled_graph_equals_eager(float64):
    eager, fast = (make_agent("aspc_td3bc", "cuda", num_seeds=2) for _ in range(2))
    assert compile_agent(fast)
    graph_agent(fast)
    for _ in range(6):
        eager.advance()
        fast.advance()
    for name, tensor in eager.tensors().items():
        torch.testing.assert_close(fast.tensors()[name], tensor, rtol=0, atol=1e-9, msg=name)
