"""∂L_outer(θ̃(ρ))/∂ρ, ASPC's hypergradient, in float64: against central differences of the whole map ρ → θ̃ → L_outer,
against the closed form of Adam's derivative, and against autograd straight through L_outer."""

import functools

import pytest
import torch
import torchopt
from conftest import make_agent, stop_before_alpha
from torch.func import vmap
from torch.nn import functional as F
from torchopt.transform.scale_by_adam import ScaleByAdamState


@functools.cache  # the tests leave the agent as it was
def agent_at(updates: int, dead: bool = False):
    """Two seeds whose next policy update is their `updates`-th and moves α, and the batch that it will see."""
    agent = make_agent("aspc_td3bc", num_seeds=2, alpha_interval=updates)
    if dead:  # the first layer's units never fire
        agent.actor["net.0.bias"].fill_(-1e3)
    (batch,) = stop_before_alpha(agent)
    assert all(state["step"] == updates - 1 for state in agent.actor_optimizer.state.values())
    return agent, batch


def hypergradient(agent, batch):
    """∂L_outer/∂ρ as update_alpha takes it, (K,); the agent stays as it was."""
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    agent.update_alpha(batch)
    for name, tensor in agent.tensors().items():
        tensor.copy_(before[name])
    return agent.metrics["aspc/alpha_grad"]


def outer_gradient(agent, batch):
    """∂L_outer/∂θ̃ at θ̃(ρ), flat: (K, parameters)."""
    new_actor, alpha = step_of_rho(agent, agent.rho, batch), F.softplus(agent.rho)
    gradient, _ = agent.outer_gradient(new_actor, agent.actor, agent.critics, alpha, agent.ema, batch)
    return torch.cat([g.flatten(1) for g in gradient.values()], 1)


def relative(x, y):
    return ((x - y).abs() / y.abs()).max().item()


def policy_terms(agent, actor, batch):
    """mean Q_1(s, π(s)), mean |Q_1(s, π(s))| (K,) and ‖π(s) − a‖² (K, B)."""
    pi = vmap(agent.pi)(actor, batch.observations)
    q = vmap(agent.q)({name: p[:, 0] for name, p in agent.critics.items()}, batch.observations, pi)
    return q.mean(1), q.abs().mean(1), (pi - batch.actions).square().mean(-1)


def step_of_rho(agent, rho, batch):
    """θ̃(ρ)"""
    return agent.inner_step(agent.inner_gradient(agent.actor, agent.critics, F.softplus(rho), batch)[0])


def outer_of_rho(agent, batch):
    """ρ -> L_outer (K,), eqs. 6 to 8, with every quantity under a stop-gradient held at its value for the present ρ."""
    alpha, (_, _, bc) = F.softplus(agent.rho), policy_terms(agent, agent.actor, batch)
    q_now, q_scale, _ = policy_terms(agent, step_of_rho(agent, agent.rho, batch), batch)
    delta_q_now = 0.005 * (q_now - agent.ema)

    def outer(rho):
        q, _, new_bc = policy_terms(agent, step_of_rho(agent, rho, batch), batch)
        l_alpha = -alpha * q / q_scale + new_bc.mean(1)
        l_q = (0.005 * (q - agent.ema)) ** 2
        l_bc = delta_q_now**2 * bc.amax(1) * (new_bc - bc).abs().amax(1)
        return l_alpha + l_q + l_bc

    return outer


def central_difference(f, step):
    """f'(0) by Richardson extrapolation of two central differences: the error falls as step^4."""
    wide, narrow = ((f(h) - f(-h)) / (2 * h) for h in (step, step / 2))
    return (4 * narrow - wide) / 3


@pytest.mark.parametrize("updates", [20, 400])
def test_central_differences(float64, updates):
    agent, batch = agent_at(updates)
    outer = outer_of_rho(agent, batch)
    assert relative(hypergradient(agent, batch), central_difference(lambda h: outer(agent.rho + h), 1e-2)) < 1e-6


def test_central_differences_at_the_first_step(float64):
    """Adam's first step is g / (|g| + ε): ρ hardly moves it, and the difference of two losses drowns in rounding. So
    the differences are taken of the step itself and meet ∂L_outer/∂θ̃ after that."""
    agent, batch = agent_at(1)

    def adam_step(rho):
        gradient, _ = agent.inner_gradient(agent.actor, agent.critics, F.softplus(rho), batch)
        return torch.cat([-3e-4 * (g / (g.abs() + 1e-8)).flatten(1) for g in gradient.values()], 1)

    derivative = central_difference(lambda h: adam_step(agent.rho + h), 1e-5)
    assert relative(hypergradient(agent, batch), (outer_gradient(agent, batch) * derivative).sum(1)) < 1e-6


@pytest.mark.parametrize("updates", [1, 20, 400])
def test_closed_form(float64, updates):
    """dθ̃/dα = −lr [ k1 / (√v̂ + ε) − m̂ / (√v̂ + ε)² · k2 g / √v̂ ] ∂g/∂α, with k_i = (1 − β_i) / (1 − β_i^t)."""
    agent, batch = agent_at(updates)
    flat = lambda tensors: torch.cat([x.flatten(1) for x in tensors], 1)  # noqa: E731
    at_alpha = lambda alpha: flat(  # noqa: E731
        agent.inner_gradient(agent.actor, agent.critics, torch.full((2,), alpha), batch)[0].values()
    )
    g_q = at_alpha(1.0) - at_alpha(0.0)  # the gradient is affine in α
    g = at_alpha(0.0) + F.softplus(agent.rho)[:, None] * g_q
    states = agent.actor_optimizer.state.values()
    k1, k2 = 0.1 / (1 - 0.9**updates), 0.001 / (1 - 0.999**updates)
    m = k1 * (g + 9 * flat(s["exp_avg"] for s in states))
    root = (k2 * (g**2 + 999 * flat(s["exp_avg_sq"] for s in states))).sqrt()
    second = torch.where(root > 0, m / (root + 1e-8) ** 2 * k2 * g / root, 0.0)
    d_new_actor = -3e-4 * (k1 / (root + 1e-8) - second) * g_q
    expected = (outer_gradient(agent, batch) * d_new_actor).sum(1) * agent.rho.sigmoid()
    # at the first step the bracket cancels to 1e-5 of its terms, and with it their digits
    assert relative(hypergradient(agent, batch), expected) < (1e-6 if updates == 1 else 1e-9)


@pytest.mark.parametrize("updates", [1, 20, 400])
def test_torchopt_end_to_end(float64, updates):
    """Autograd straight through torchopt's whole optimiser and the outer loss, as the released code has it."""
    agent, batch = agent_at(updates)
    rho = agent.rho.clone().requires_grad_()
    gradient, _ = agent.inner_gradient(agent.actor, agent.critics, F.softplus(rho), batch)
    adam = torchopt.adam(3e-4, eps_root=1e-30)
    states = agent.actor_optimizer.state.values()
    moments = ScaleByAdamState(
        mu=[s["exp_avg"] for s in states],
        nu=[s["exp_avg_sq"] for s in states],
        count=[s["step"].long() for s in states],
    )
    parameters = list(agent.actor.values())
    state = tuple(moments if isinstance(part, ScaleByAdamState) else part for part in adam.init(parameters))
    step, _ = adam.update(list(gradient.values()), state, inplace=False)
    new_actor = dict(zip(agent.actor, torchopt.apply_updates(parameters, step, inplace=False), strict=True))
    alpha = F.softplus(agent.rho)
    loss, _ = vmap(agent.outer_loss)(new_actor, agent.actor, agent.critics, alpha, agent.ema, batch)
    loss.sum().backward()
    assert relative(hypergradient(agent, batch), rho.grad) < 1e-9


@pytest.mark.parametrize("updates", [1, 20])
def test_dead_units_give_no_nan(updates):
    agent, batch = agent_at(updates, dead=True)
    assert all((s["exp_avg_sq"] == 0).any() for s in list(agent.actor_optimizer.state.values())[:2])
    result = hypergradient(agent, batch)
    assert result.isfinite().all() and (result != 0).all()
