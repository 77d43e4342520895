"""The ablations: a few lines on top of aspc_td3bc.Agent, each with the losses that it promises, restated here on their
own, and with their derivative."""

import ast
import functools
import itertools
import signal
import sys

import pytest
import torch
from conftest import (
    ROOT,
    S,
    assert_seeds_are_independent,
    make_agent,
    parts,
    random_data,
    stop_before_alpha,
    write_dataset,
)
from test_hypergradient import central_difference, hypergradient, inner_gradient, relative, step_of_rho
from test_scripts import OWN
from test_update import Restatement
from torch.func import grad, vmap
from torch.nn import functional as F
from toy_runs import after_steps, assert_same_runs, command, send

import aspc_td3bc
from benchmark.scripts import flags

FOLDER = ROOT / "benchmark" / "ablations"
SCRIPTS = sorted(f"benchmark/ablations/{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "common")
ONE_STEP, FRESH, WEIGHTED, CENTRED, GRADIENT_STEP, REWARDS, RATE = (
    f"benchmark/ablations/{name}"
    for name in ("one_step_delta_q", "fresh_outer_batch", "advantage_weighted_bc", "centred_normaliser",
                 "gradient_inner_step", "reward_mean", "constant_alpha_rate")
)  # fmt: skip
each_script = pytest.mark.parametrize("script", SCRIPTS)


@each_script
def test_is_what_differs(script):
    text = (ROOT / f"{script}.py").read_text()
    assert len(text.splitlines()) < (100 if script == WEIGHTED else 60)
    doc = ast.get_docstring(ast.parse(text))
    assert doc.startswith("Ablation of ") and f"\n    python {script}.py --env-id " in doc


def ablation_agent(script: str, **arguments):
    """Like make_agent; an ablation has its arguments from aspc_td3bc."""
    module = sys.modules.get(script) or __import__(script.replace("/", "."), fromlist=["Agent"])
    module.Args = aspc_td3bc.Args
    return make_agent(script, **arguments)


# --- The outer loss and its derivative --------------------------------------------------------------------------------


@functools.cache  # the tests leave the agent as it was
def agent_at_20(script: str):
    """Two seeds whose next policy update is their 20th and moves α, and what update_alpha will be given."""
    coefficients = {"l_q_coef": 1e3, "l_bc_coef": 1e5 if script == ONE_STEP else 10.0}  # every term moves the sum
    agent = ablation_agent(script, num_seeds=2, alpha_interval=20, robust_critic=False, **coefficients)
    given = stop_before_alpha(agent)
    if script != ONE_STEP:
        agent.ema.fill_(-30.0)  # so that ΔQ is about 0.15, not some 0.001
    return agent, given


def with_weights(s, a):
    """s, a and w (K, B) of a batch, which has w where its samples are weighted."""
    a, w = a if isinstance(a, tuple) else (a, torch.ones(a.shape[:2]))
    return s, a, w


def judged_batch(agent, given):
    """s, a and w of L_outer."""
    return with_weights(*getattr(agent, "outer_batch", given[2:]))


def policy_terms(agent, k, batch, theta):
    """Of seed k, through plain networks: Q_1 (B,) and ‖π − a‖² (B,)."""
    plain, s, a = Restatement(agent, robust=False), batch[0][k], batch[1][k]
    pi = plain.pi(parts(agent.pi, theta[k]), s)
    return plain.value(parts(agent.q, agent.phi[k, 0]), s, pi), ((pi - a) ** 2).sum(1) / a.shape[1]


def scale_of(script, q):
    return (q - q.mean()).abs().mean() if script == CENTRED else q.abs().mean()


def outer_terms(script, agent, k, batch, new_theta, constant_theta):
    """L_alpha, L_Q, L_BC of seed k at new_theta; constant_theta is what θ̃ is wherever it is under a stop-gradient."""
    old_q, old_bc = policy_terms(agent, k, batch, agent.theta)
    q, bc = policy_terms(agent, k, batch, new_theta)
    constant_q, _ = policy_terms(agent, k, batch, constant_theta)
    delta_q = lambda q: q.mean() - old_q.mean() if script == ONE_STEP else 0.005 * (q.mean() - agent.ema[k])  # noqa: E731
    factor, change, weights = delta_q(constant_q) ** 2, (bc - old_bc).abs(), batch[2][k]
    l_bc = {
        "l_bc_form1": change.max(),
        "l_bc_form2": old_bc.max() * change.max(),
        "l_bc_form3": factor * change.max(),
        "l_bc_form5": factor * old_bc.mean() * change.mean(),
    }.get(script.split("/")[-1], factor * old_bc.max() * change.max())
    assert (0 < weights.mean() < 1) == (script == WEIGHTED)
    l_alpha = -F.softplus(agent.rho[k]) * q.mean() / scale_of(script, constant_q) + (weights * bc).mean()
    return torch.stack([l_alpha, delta_q(q) ** 2, l_bc])


@each_script
def test_inner_loss_equals_its_restatement(float64, script):
    """And what update_alpha has as its gradient is that."""
    agent, (g, alpha, *batch) = agent_at_20(script)
    torch.testing.assert_close(g, inner_gradient(agent, alpha, batch), rtol=1e-9, atol=1e-15)
    loss, _ = vmap(agent.inner_loss)(agent.theta, agent.phi, alpha, *batch)
    s, a, w = with_weights(*batch)
    for k in range(2):
        q, bc = policy_terms(agent, k, (s, a), agent.theta)
        expected = -alpha[k] * q.mean() / scale_of(script, q) + (w[k] * bc).mean()
        assert abs(loss[k] / expected - 1) < 1e-12


@each_script
def test_outer_loss_equals_its_restatement(float64, script):
    agent, given = agent_at_20(script)
    generator, batch = torch.Generator().manual_seed(0), judged_batch(agent, given)
    new_theta = agent.theta + 0.05 * torch.randn(agent.theta.shape, generator=generator)
    _, alpha, s, a = given
    if script == FRESH:
        s, a = (s, batch[0]), (a, batch[1])
    loss, metrics = vmap(agent.outer_loss)(new_theta, agent.theta, agent.phi, alpha, agent.ema, s, a)
    for k in range(2):
        terms = outer_terms(script, agent, k, batch, new_theta, new_theta)
        for name, term in zip(("losses/L_alpha", "losses/L_Q", "losses/L_BC"), terms, strict=True):
            assert abs(metrics[name][k] / term - 1) < 1e-12, name
        total = terms @ torch.tensor([1, agent.args.l_q_coef, agent.args.l_bc_coef])
        assert abs(loss[k] / total - 1) < 1e-12


@each_script
def test_hypergradient_equals_central_differences(float64, script):
    """In steps so small that no ReLU, and no maximum over the batch, changes sides between two of the points."""
    agent, given = agent_at_20(script)
    batch, rho_g = judged_batch(agent, given), hypergradient(agent, given[2:])
    step = lambda h: step_of_rho(agent, agent.rho + h, given[2:])  # noqa: E731
    for k in range(2):
        terms = central_difference(lambda h, k=k: outer_terms(script, agent, k, batch, step(h), step(0)), 1e-3)
        terms = terms * torch.tensor([1, agent.args.l_q_coef, agent.args.l_bc_coef])
        assert relative(rho_g[k], terms.sum()) < 1e-6
        assert terms.abs().min() > 1e-3 * terms.abs().max(), "a term too small to be tested"


# --- What else they change --------------------------------------------------------------------------------------------


def test_outer_batch_is_fresh(float64):
    """It is the last row of indices, drawn with the others; no other row serves twice either."""
    agent, (_, _, s, _) = agent_at_20(FRESH)
    indices, table = agent.buffer.indices, agent.buffer.table
    assert indices.shape[1] == agent.period_steps + 1
    for row, read in ((agent.period_steps - 1, s), (agent.period_steps, agent.outer_batch[0])):
        assert torch.equal(read, table[indices[:, row]][..., :S])
    for one, other in itertools.combinations(indices[0], 2):
        assert not torch.equal(one, other)


def test_outer_batch_decides_about_alpha(float64):
    """L_outer changes with its own batch; the policy's step was made before."""
    agent, given = agent_at_20(FRESH)
    fresh, slopes = agent.outer_batch, []
    for agent.outer_batch in (fresh, given[2:]):
        slopes.append(hypergradient(agent, given[2:]))
    agent.outer_batch = fresh
    assert (relative(slopes[0][:1], slopes[1][:1]) > 1e-3) and (relative(slopes[0][1:], slopes[1][1:]) > 1e-3)


@pytest.mark.parametrize("script", [ONE_STEP, FRESH, WEIGHTED, REWARDS])  # the others keep the method's state
def test_seeds_are_independent(float64, script):
    seeds = {"num_seeds": 3}, {"seed": 1}
    together, alone = (ablation_agent(script, robust_critic=False, **those) for those in seeds)
    assert_seeds_are_independent(together, alone)


def test_advantage_weights_and_v(float64):
    """w and V's loss in the last step of a period, through plain networks."""
    agent, calls = ablation_agent(WEIGHTED, robust_critic=False), []
    critic_steps = agent.critic_steps

    def recorded(*batches):
        before = [x.clone() for x in (agent.phi, agent.psi, agent.target_phi, agent.target_theta)]
        calls.append((before, batches))
        return critic_steps(*batches)

    agent.critic_steps = recorded
    agent.advance()
    (phi, psi, target_phi, target_theta), batches = calls[-1]
    plain = Restatement(agent, robust=False)
    v_of = [p.requires_grad_() for p in parts(agent.value, psi[0])]
    assert [p.shape for p in v_of] == [(256, S), (256,), (256, 256), (256,), (1, 256), (1,)]

    def v(p, s):
        return F.linear(F.relu(F.linear(F.relu(F.linear(s, p[0], p[1])), p[2], p[3])), p[4], p[5])[:, 0]

    s, a, next_s, r, d, noise = (x[0, 0] for x in batches)  # the first of two steps, at the networks as they were
    next_a = plain.pi(parts(agent.pi, target_theta[0]), next_s) + (noise * 0.2).clamp(-0.5, 0.5)
    next_q = [plain.value(parts(agent.q, target_phi[0, j]), next_s, next_a.clamp(-1, 1)) for j in range(2)]
    y = r + 0.99 * (1 - d) * torch.min(*next_q)
    expected = torch.autograd.grad(F.mse_loss(v(v_of, s), y), v_of)
    ours, _ = vmap(grad(agent.value_loss, has_aux=True))(psi, s[None], y[None])
    for g, other in zip(parts(agent.value, ours[0]), expected, strict=True):
        assert (g - other).abs().max() < 1e-12
    w, q_1 = vmap(agent.bc_weights)(phi, psi, s[None], a[None])[0], plain.value(parts(agent.q, phi[0, 0]), s, a)
    assert torch.equal(w, torch.where(q_1 > v(v_of, s), 1.0, 0.0)) and 0 < w.mean() < 1


def test_rewards_lose_their_mean(float64):
    """Each task's own."""
    data = [random_data(0), random_data(1)]
    agent, main = (make(script, data=data) for make, script in ((ablation_agent, REWARDS), (make_agent, "aspc_td3bc")))
    means = torch.tensor([d["rewards"].mean(dtype=float) for d in data]).repeat_interleave(len(data[0]["rewards"]))
    torch.testing.assert_close(agent.buffer.table[:, -2], main.buffer.table[:, -2] - means, rtol=0, atol=1e-12)
    rest = [*range(agent.buffer.table.shape[1] - 2), -1]
    assert torch.equal(agent.buffer.table[:, rest], main.buffer.table[:, rest])


def test_gradient_step_is_one(float64):
    agent, (g, *_) = agent_at_20(GRADIENT_STEP)
    assert torch.equal(agent.inner_step(g), agent.theta - 3e-4 * g)


def test_rate_of_alpha_stays(float64):
    """Adam's first steps are of its rate's size: the method's second is smaller by 0.01^(1/updates), this one's not."""
    for script, decay in (("aspc_td3bc", 0.01 ** (1 / 5)), (RATE, 1.0)):
        agent, moved = (make_agent if script == "aspc_td3bc" else ablation_agent)(script, total_steps=100), []
        for _ in range(2):
            before = agent.rho.clone()
            agent.rho_adam.m.zero_(), agent.rho_adam.v.zero_()  # each step is then g / |g| of its rate
            agent.advance()
            bias = (1 - 0.999**agent.rho_adam.t).sqrt() / (1 - 0.9**agent.rho_adam.t) * 0.1 / 0.001**0.5
            moved.append(((agent.rho - before).abs() / bias).item())
        assert moved[1] / moved[0] == pytest.approx(decay, rel=1e-3)


@pytest.mark.parametrize("script", [FRESH, WEIGHTED])  # whose state or batches are their own
def test_resumed_run_equals_an_uninterrupted_one(script, tmp_path, monkeypatch, capsys):
    dataset = write_dataset(tmp_path / "pendulum.hdf5", 3, 1, bound=2.0)
    arguments = {k: v for k, v in OWN.items() if k != "critic_layers"} | {"total_steps": 60, "dataset_path": dataset}
    line = lambda runs: flags(arguments | {"runs_dir": tmp_path / runs})  # noqa: E731
    path = ROOT / f"{script}.py"
    assert command(monkeypatch, *line("whole"), script=path) is None
    with monkeypatch.context() as patch:
        after_steps(patch, 40, lambda agent: send(signal.SIGTERM), aspc_td3bc.Agent)
        assert command(monkeypatch, *line("resumed"), script=path) == 128 + signal.SIGTERM
    runs = sorted((tmp_path / "resumed").iterdir())
    assert runs[0].name.split("__")[1] == script.split("/")[-1]
    assert command(monkeypatch, "--resume", runs[0], script=path) is None
    assert_same_runs(runs, sorted((tmp_path / "whole").iterdir()))
