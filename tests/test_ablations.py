"""The ablations: little more than the main script's text, each with the outer loss that it promises, restated here on
its own, and with that loss's derivative."""

import ast
import difflib
import functools
import itertools
import os
import signal

import pytest
import torch
from conftest import ROOT, S, assert_seeds_are_independent, make_agent, stop_before_alpha
from test_hypergradient import central_difference, relative
from test_scripts import OWN, after_steps, assert_same_runs, resume, train, write_dataset
from test_update import Restatement
from torch.func import vmap
from torch.nn import functional as F

SCRIPTS = sorted(f"benchmark/ablations/{path.stem}" for path in (ROOT / "benchmark" / "ablations").glob("*.py"))
ONE_STEP, FRESH, WEIGHTED = (
    f"benchmark/ablations/{name}" for name in ("one_step_delta_q", "fresh_outer_batch", "advantage_weighted_bc")
)
each_script = pytest.mark.parametrize("script", SCRIPTS)


@each_script
def test_is_the_main_script_but_for_a_few_lines(script):
    main, variant = ((ROOT / f"{name}.py").read_text() for name in ("aspc_td3bc", script))
    matcher = difflib.SequenceMatcher(None, main.splitlines(), variant.splitlines(), autojunk=False)
    assert 0.95 <= matcher.ratio() < 1
    ours, theirs = (ast.get_docstring(ast.parse(text)) for text in (variant, main))
    assert ours.startswith("Ablation of ") and f"\n    python {script}.py --env-id " in ours
    body = theirs[: theirs.index("\n\n    python aspc_td3bc.py")]
    assert ours.endswith(body), "the rest is the main script's"


# --- The outer loss and its derivative --------------------------------------------------------------------------------


@functools.cache  # the tests leave the agent as it was
def agent_at_20(script: str):
    """Two seeds whose next policy update is their 20th and moves α, and the batches that update_alpha will be given."""
    coefficients = {"l_q_coef": 1e3, "l_bc_coef": 1e5 if script == ONE_STEP else 10.0}  # every term moves the sum
    agent = make_agent(script, num_seeds=2, alpha_interval=20, robust_critic=False, **coefficients)
    given = stop_before_alpha(agent)
    if script != ONE_STEP:
        agent.ema.fill_(-30.0)  # so that ΔQ is about 0.15, not some 0.001
    return agent, given


def policy_terms(agent, k, batch, actor):
    """Of seed k, through plain networks: mean Q_1, mean |Q_1| and ‖π − a‖² (B,)."""
    plain, s, a = Restatement(agent, robust=False), batch.observations[k], batch.actions[k]
    pi = plain.pi([p[k] for p in actor.values()], s)
    q = plain.value([p[k, 0] for p in agent.critics.values()], s, pi)
    return q.mean(), q.abs().mean(), ((pi - a) ** 2).sum(1) / a.shape[1]


def outer_terms(script, agent, k, batch, new_actor, constant_actor):
    """L_alpha, L_Q, L_BC of seed k at new_actor; constant_actor is what θ̃ is wherever it is under a stop-gradient."""
    old_q, _, old_bc = policy_terms(agent, k, batch, agent.actor)
    q, _, bc = policy_terms(agent, k, batch, new_actor)
    constant_q, q_scale, _ = policy_terms(agent, k, batch, constant_actor)
    delta_q = lambda q: q - old_q if script == ONE_STEP else 0.005 * (q - agent.ema[k])  # noqa: E731
    factor, change = delta_q(constant_q) ** 2, (bc - old_bc).abs()
    l_bc = {
        "l_bc_form1": change.max(),
        "l_bc_form2": old_bc.max() * change.max(),
        "l_bc_form3": factor * change.max(),
        "l_bc_form5": factor * old_bc.mean() * change.mean(),
    }.get(script.split("/")[-1], factor * old_bc.max() * change.max())
    weights = batch.weights[k] if script == WEIGHTED else torch.ones(len(bc))
    assert (0 < weights.mean() < 1) == (script == WEIGHTED)
    l_alpha = -F.softplus(agent.rho[k]) * q / q_scale + (weights * bc).mean()
    return torch.stack([l_alpha, delta_q(q) ** 2, l_bc])


@each_script
def test_outer_loss_equals_its_restatement(float64, script):
    agent, (*_, batch) = agent_at_20(script)
    generator = torch.Generator().manual_seed(0)
    new_actor = {name: p + 0.05 * torch.randn(p.shape, generator=generator) for name, p in agent.actor.items()}
    old_q = torch.stack([policy_terms(agent, k, batch, agent.actor)[0] for k in range(2)])
    before = old_q if script == ONE_STEP else agent.ema
    alpha = F.softplus(agent.rho)
    loss, metrics = vmap(agent.outer_loss)(new_actor, agent.actor, agent.critics, alpha, before, batch)
    for k in range(2):
        terms = outer_terms(script, agent, k, batch, new_actor, new_actor)
        for name, term in zip(("losses/L_alpha", "losses/L_Q", "losses/L_BC"), terms, strict=True):
            assert abs(metrics[name][k] / term - 1) < 1e-12, name
        total = terms @ torch.tensor([1, agent.args.l_q_coef, agent.args.l_bc_coef])
        assert abs(loss[k] / total - 1) < 1e-12


@each_script
def test_hypergradient_equals_central_differences(float64, script):
    """In steps so small that no ReLU, and no maximum over the batch, changes sides between two of the points."""
    agent, given = agent_at_20(script)
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    agent.update_alpha(*given)
    for name, tensor in agent.tensors().items():
        tensor.copy_(before[name])

    def step(h):
        """θ̃(ρ + h)"""
        gradient, _ = agent.inner_gradient(agent.actor, agent.critics, F.softplus(agent.rho + h), given[0])
        return agent.inner_step(gradient)

    for k in range(2):
        terms = central_difference(lambda h, k=k: outer_terms(script, agent, k, given[-1], step(h), step(0)), 1e-3)
        terms = terms * torch.tensor([1, agent.args.l_q_coef, agent.args.l_bc_coef])
        assert relative(agent.metrics["aspc/alpha_grad"][k], terms.sum()) < 1e-6
        assert terms.abs().min() > 1e-3 * terms.abs().max(), "a term too small to be tested"


# --- What else they change --------------------------------------------------------------------------------------------


def test_outer_batch_is_fresh(float64):
    """It is the last row of indices, drawn with the others; no other row serves twice either."""
    agent, (batch, outer_batch) = agent_at_20(FRESH)
    assert agent.indices.shape[1] == agent.period_steps + 1
    for row, read in ((agent.period_steps - 1, batch), (agent.period_steps, outer_batch)):
        assert torch.equal(read.observations, agent.rows[agent.indices[:, row]][..., :S])
    for one, other in itertools.combinations(agent.indices[0], 2):
        assert not torch.equal(one, other)


def test_outer_batch_decides_about_alpha(float64):
    """L_outer changes with its own batch; the policy's step does not."""
    agent, (batch, outer_batch) = agent_at_20(FRESH)
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    gradients, slopes = [], []
    for chosen in (outer_batch, batch):
        gradients.append(agent.update_alpha(batch, chosen))
        slopes.append(agent.metrics["aspc/alpha_grad"])
        for name, tensor in agent.tensors().items():
            tensor.copy_(before[name])
    assert all(torch.equal(g, gradients[1][name]) for name, g in gradients[0].items())
    assert (relative(slopes[0][:1], slopes[1][:1]) > 1e-3) and (relative(slopes[0][1:], slopes[1][1:]) > 1e-3)


@pytest.mark.parametrize("script", [ONE_STEP, FRESH, WEIGHTED])  # the others keep the main script's state
def test_seeds_are_independent(float64, script):
    together, alone = (make_agent(script, robust_critic=False, **seeds) for seeds in ({"num_seeds": 3}, {"seed": 1}))
    assert_seeds_are_independent(together, alone)


def test_advantage_weights_and_v(float64):
    """w and V's gradient in the first step, through plain networks; and w in the policy's loss."""
    agent, calls = make_agent(WEIGHTED, robust_critic=False), []
    critic_gradient = agent.critic_gradient

    def recorded(*inputs):
        networks = [{name: p.clone() for name, p in network.items()} for network in inputs[:4]]  # they will change
        calls.append((*networks, *inputs[4:], critic_gradient(*inputs)))
        return calls[-1][-1]

    agent.critic_gradient = recorded
    agent.advance()
    critics, value, targets, target_actor, batch, noise, ((_, ours), loss) = calls[-1]
    plain, (s, a, next_s, r, d, w) = Restatement(agent, robust=False), (x[0] for x in batch)
    v_of = [value[name][0].requires_grad_() for name in value]
    assert [p.shape for p in v_of] == [(256, S), (256,), (256, 256), (256,), (1, 256), (1,)]
    x = F.relu(F.linear((s - plain.mean) / plain.std, v_of[0], v_of[1]))
    v = F.linear(F.relu(F.linear(x, v_of[2], v_of[3])), v_of[4], v_of[5])[:, 0]
    q = [plain.value([p[0, j] for p in critics.values()], s, a) for j in range(2)]
    assert torch.equal(w, torch.where(q[0] > v, 1.0, 0.0)) and 0 < w.mean() < 1
    next_a = plain.pi([p[0] for p in target_actor.values()], next_s) + (noise[0] * 0.2).clamp(-0.5, 0.5)
    next_q = [plain.value([p[0, j] for p in targets.values()], next_s, next_a.clamp(-1, 1)) for j in range(2)]
    y = r + 0.99 * (1 - d) * torch.min(*next_q)
    assert relative(loss[0], F.mse_loss(q[0], y) + F.mse_loss(q[1], y) + F.mse_loss(v, y)) < 1e-12
    for g, expected in zip(ours.values(), torch.autograd.grad(F.mse_loss(v, y), v_of), strict=True):
        assert (g[0] - expected).abs().max() < 1e-12

    q, q_scale, bc = policy_terms(agent, 0, batch, agent.actor)
    inner, _ = vmap(agent.inner_loss)(agent.actor, agent.critics, torch.tensor([2.0]), batch)
    assert relative(inner, -2 * q / q_scale + (w * bc).mean()) < 1e-12


@pytest.mark.parametrize("script", [ONE_STEP, FRESH, WEIGHTED])
def test_resumed_run_equals_an_uninterrupted_one(script, tmp_path, monkeypatch):
    dataset, arguments = write_dataset(tmp_path / "pendulum.hdf5", 3, 1, bound=2.0), OWN | {"total_steps": 60}
    whole = train(script, dataset, tmp_path / "whole", arguments)
    with monkeypatch.context() as patch:
        after_steps(patch, script, 40, lambda agent: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(script, dataset, tmp_path / "resumed", arguments)
    runs = sorted((tmp_path / "resumed").iterdir())
    assert runs[0].name.split("__")[1] == script.split("/")[-1]
    resume(script, runs[0])
    assert_same_runs(runs, whole)
