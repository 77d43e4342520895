"""What several test files share: the scripts as modules, a small random dataset, agents in float64."""

import importlib
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toy_data import cache, command, hdf5_bytes, host, small_collections  # noqa: E402, F401  (fixtures)

S, A, N = 5, 3, 500  # observation and action dimensions, transitions
SCRIPTS = [room + name for name in ("td3bc", "iql", "cql", "diffusionql", "fql") for room in ("aspc_", "baselines/")]
SCRIPTS += ["baselines/wpc", "baselines/a2pr", "baselines/rebrac"]


@pytest.fixture(scope="session", autouse=True)
def process():
    """One thread; and Ctrl-C as in a terminal, for shells start background jobs with SIGINT ignored."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Put back the handlers that a run which ended by an exception leaves installed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def load_script(name: str):
    """The module of aspc_td3bc.py, baselines/td3bc.py, ..."""
    return importlib.import_module(name.removesuffix(".py").replace("/", "."))


def random_data(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(1.0, 2.0, (N, S)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (N, A)).astype(np.float32),
        "next_observations": rng.normal(1.0, 2.0, (N, S)).astype(np.float32),
        "rewards": rng.normal(0.5, 1.0, N).astype(np.float32),
        "terminals": rng.random(N) < 0.05,
        "next_actions": rng.uniform(-1, 1, (N, A)).astype(np.float32),  # ReBRAC's alone
    }


def make_agent(script: str, device: str = "cpu", data: list[dict[str, np.ndarray]] | None = None, **arguments):
    """data: of each task; else of one, random."""
    module = load_script(script)
    args = module.Args(**({"batch_size": 32, "total_steps": 1000} | arguments))
    return module.Agent(args, data or [random_data()], -np.ones(A, np.float32), np.ones(A, np.float32), device)


def parts(function, vectors: torch.Tensor) -> list[torch.Tensor]:
    """The parameters (..., *shape) of a script's Function, in the order of its module, from vectors (..., n)."""
    pieces = vectors.split([shape.numel() for shape in function.shapes.values()], -1)
    return [x.unflatten(-1, shape) for x, shape in zip(pieces, function.shapes.values(), strict=True)]


def stop_before_alpha(agent) -> tuple[torch.Tensor, ...]:
    """Advances to the first step on α and not through it: the arguments that `update_alpha` would have had."""
    given = []

    def stop(*arguments):
        given.extend(arguments)
        raise StopIteration

    agent.update_alpha = stop
    with pytest.raises(StopIteration):
        agent.advance()
    del agent.update_alpha
    return tuple(given)


def assert_seeds_are_independent(together, alone, least: float = 1e-6, steps: int = 40) -> None:
    """After so many steps, all state of seed 1: trained as the second of three as when trained alone, that of the third
    another, by `least` of its size or more.
    """
    for agent in (together, alone):
        for _ in range(steps // agent.period_steps):
            agent.advance()
    for name, tensor in alone.tensors().items():
        if tensor.ndim:
            group = together.tensors()[name]
            torch.testing.assert_close(group[1], tensor[0], rtol=1e-12, atol=1e-12, msg=name)
            assert (group[2] - tensor[0]).abs().max() > least * tensor.abs().max(), name
