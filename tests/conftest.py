"""What several test files share: the scripts as modules, a small random dataset, agents, how they are compared."""

import importlib
import math
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toy_data import cache, command, hdf5_bytes, host, small_collections  # noqa: E402, F401  (fixtures)

S, A, N = 5, 3, 500  # observation and action dimensions, transitions
UNEVEN = np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 4.0])  # bounds of actions, neither ±1 nor alike
SCRIPTS = [room + name for name in ("td3bc", "iql", "cql", "diffusionql", "fql") for room in ("aspc_", "baselines/")]
SCRIPTS += ["baselines/wpc", "baselines/a2pr", "baselines/rebrac"]
CQL = {"max_target_backup": True, "clip_diff_min": 1.0}
VARIANTS = [(script, {}) for script in SCRIPTS] + [  # and with options that change what is read, drawn or kept
    ("aspc_iql", {"actor_dropout": 0.1}),
    ("aspc_iql", {"actor_dropout": 0.1, "deterministic": True}),
    ("baselines/iql", {"actor_dropout": 0.1}),
    ("baselines/iql", {"actor_dropout": 0.1, "deterministic": True}),
    ("aspc_cql", CQL),
    ("baselines/cql", CQL | {"lagrange": True, "target_action_gap": 3.0, "normalize": False}),
    ("aspc_diffusionql", {"max_q_backup": True}),
    ("baselines/diffusionql", {"max_q_backup": True}),
    ("aspc_fql", {"q_agg": "min"}),
    ("baselines/fql", {"q_agg": "min"}),
    ("baselines/wpc", {"robust_critic": False}),
    ("baselines/a2pr", {"official_networks": True}),
]


def each_of(variants: list[tuple[str, dict]]):
    named = [pytest.param(script, options, id="-".join([script, *options])) for script, options in variants]
    return pytest.mark.parametrize(("script", "options"), named)


each_script = pytest.mark.parametrize("script", SCRIPTS)
each_variant = each_of(VARIANTS)


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
def small_networks(monkeypatch):
    """FQL's layers of 512 are one of 8, A2PR's of 256 and 750 of 8: where their size does not matter, it takes time."""

    def fql(inputs: int, outputs: int, norm: bool = False) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 8), nn.GELU("tanh"), *norm * [nn.LayerNorm(8)], nn.Linear(8, outputs))

    a2pr, original = load_script("baselines/a2pr"), load_script("baselines/a2pr").mlp
    monkeypatch.setattr(a2pr, "mlp", lambda inputs, units, layers, outputs: original(inputs, 8, layers, outputs))
    for script in ("aspc_fql", "baselines/fql"):
        monkeypatch.setattr(load_script(script), "mlp", fql)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def wait_for(condition, seconds: float = 60) -> None:
    """Until condition() holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def load_script(name: str):
    """The module of aspc_td3bc.py, baselines/td3bc.py, ..."""
    return importlib.import_module(name.removesuffix(".py").replace("/", "."))


def random_data(seed: int = 0, low=-1.0, high=1.0) -> dict[str, np.ndarray]:
    """Transitions whose actions reach from low to high."""
    rng = np.random.default_rng(seed)
    data = {
        "observations": rng.normal(1.0, 2.0, (N, S)),
        "actions": (high + low) / 2 + (high - low) / 2 * rng.uniform(-1, 1, (N, A)).astype(np.float32),
        "next_observations": rng.normal(1.0, 2.0, (N, S)),
        "rewards": rng.normal(0.5, 1.0, N),
        "terminals": rng.random(N) < 0.05,
        "next_actions": rng.uniform(-1, 1, (N, A)),  # ReBRAC's alone
    }
    return {name: x if x.dtype == bool else x.astype(np.float32) for name, x in data.items()}


def write_dataset(path: Path, observation_dim: int, action_dim: int, bound: float = 1.0, seed: int = 0) -> Path:
    """A file of 300 rows in D4RL's layout."""
    rng, rows = np.random.default_rng(seed), 300
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(rows, observation_dim)).astype(np.float32)
        file["actions"] = rng.uniform(-bound, bound, (rows, action_dim)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"] = rng.random(rows) < 0.05
        file["timeouts"] = np.arange(rows) % 50 == 49
    return path


def make_agent(script: str, device: str = "cpu", data: list[dict[str, np.ndarray]] | None = None, bounds=None, **given):
    """data: of each task; else of one, random. bounds: of the actions; else ±1."""
    module, (low, high) = load_script(script), bounds or (-np.ones(A, np.float32), np.ones(A, np.float32))
    args = module.Args(**({"batch_size": 32, "total_steps": 1000} | given))
    return module.Agent(args, data or [random_data(0, low, high)], low, high, device)


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


def relu_network(tensors: list[torch.Tensor]) -> nn.Sequential:
    """An ordinary module with these weights and biases: ReLU after each Linear but the last, and after that LayerNorm,
    with Flax's ε, where its two follow.
    """
    layers = []
    for weight in tensors[::2]:
        norm = weight.ndim == 1
        layers += [nn.LayerNorm(len(weight), eps=1e-6)] if norm else [nn.Linear(*weight.T.shape), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    for p, value in zip(network.parameters(), tensors, strict=True):
        p.data.copy_(value)
    return network


def assert_same_learner(agent, plain, networks: dict[str, tuple], limit: float = 1e-8) -> None:
    """Learner 0 holds, within the limit, what its restatement holds: `networks`, (function, vector, the restatement's
    module or tensors) under each name; both critics and their targets; α where it is learned, which must have moved.
    """
    for j in range(2):
        networks[f"critic {j + 1}"] = agent.q, agent.phi[0, j], plain.q[j]
        networks[f"target critic {j + 1}"] = agent.q, agent.target_phi[0, j], plain.target_q[j]
    for name, (function, vector, theirs) in networks.items():
        theirs = theirs.parameters() if isinstance(theirs, nn.Module) else theirs
        error = torch.stack([(p - q).abs().max() for p, q in zip(parts(function, vector), theirs, strict=True)]).max()
        assert error < limit, f"{name} differs by {error}"  # NaN, too
    if hasattr(agent, "rho"):
        assert abs(agent.rho.item() - plain.rho.item()) < limit
        assert abs(agent.ema.item() - plain.ema.item()) < limit
        assert abs(agent.rho.item() - math.log(math.expm1(agent.args.alpha_init))) > 1e-4


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
