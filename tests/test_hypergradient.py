"""∂L_outer(θ̃(ρ))/∂ρ, ASPC's hypergradient, in float64: against central differences of the whole map ρ → θ̃ → L_outer,
against the closed form of Adam's derivative, and against autograd straight through L_outer."""

import functools

import pytest
import torch
import torchopt
from conftest import make_agent, parts, stop_before_alpha
from torch.func import grad, vmap
from torch.nn import functional as F
from torchopt.transform.scale_by_adam import ScaleByAdamState


@functools.cache  # the tests leave the agent as it was
def agent_at(updates: int, dead: bool = False):
    """Two seeds whose next policy update is their `updates`-th and moves α, and the batch s, a that it will see."""
    agent = make_agent("aspc_td3bc", num_seeds=2, alpha_interval=updates)
    if dead:  # the first layer's units never fire
        parts(agent.pi, agent.theta)[1].fill_(-1e3)
    _, _, *batch = stop_before_alpha(agent)
    assert agent.actor_adam.t == updates - 1
    return agent, batch


def hypergradient(agent, batch):
    """∂L_outer/∂ρ as update_alpha takes it, (K,); the agent stays as it was."""
    alpha = F.softplus(agent.rho)
    return step_on_alpha(agent, inner_gradient(agent, alpha, batch), alpha, *batch)["aspc/alpha_grad"]


def inner_gradient(agent, alpha, batch):
    """∇_θ L_inner (K, n) at α (K,)."""
    gradient, _ = vmap(grad(agent.inner_loss, has_aux=True))(agent.theta, agent.phi, alpha, *batch)
    return gradient


def outer_gradient(agent, batch):
    """∂L_outer/∂θ̃ at θ̃(ρ): (K, n)."""
    inputs = step_of_rho(agent, agent.rho, batch), agent.theta, agent.phi, F.softplus(agent.rho), agent.ema
    return vmap(grad(agent.outer_loss, has_aux=True))(*inputs, *batch)[0]


def relative(x, y):
    return ((x - y).abs() / y.abs()).max().item()


def policy_terms(agent, theta, batch):
    """mean Q_1(s, π(s)), mean |Q_1(s, π(s))| (K,) and ‖π(s) − a‖² (K, B)."""
    s, a = batch
    pi = vmap(agent.pi)(theta, s)
    q = vmap(agent.q)(agent.phi[:, 0], s, pi)
    return q.mean(1), q.abs().mean(1), (pi - a).square().mean(-1)


def step_of_rho(agent, rho, batch):
    """θ̃(ρ)"""
    return agent.inner_step(inner_gradient(agent, F.softplus(rho), batch))


def outer_of_rho(agent, batch):
    """ρ -> L_outer (K,), eqs. 6 to 8, with every quantity under a stop-gradient held at its value for the present ρ."""
    alpha, (_, _, bc) = F.softplus(agent.rho), policy_terms(agent, agent.theta, batch)
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


def step_on_alpha(agent, *given) -> dict[str, torch.Tensor]:
    """The metrics of `update_alpha`, which moves α; the agent stays as it was."""
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    metrics = agent.update_alpha(*given)
    assert (agent.rho != before["rho"]).all()
    for name, tensor in agent.tensors().items():
        tensor.copy_(before[name])
    return metrics


def set_time(adam, t):
    """Let Adam have taken t steps."""
    for tensor, value in ((adam.t, t), (adam.beta1_t, 0.9**t), (adam.beta2_t, 0.999**t)):
        tensor.fill_(value)


def grow(adam, t):
    """The same, with the moments grown to what their bias correction takes away at that time."""
    adam.m *= (1 - 0.9**t) / (1 - adam.beta1_t)
    adam.v *= (1 - 0.999**t) / (1 - adam.beta2_t)
    set_time(adam, t)


def by_central_differences(agent, batch):
    outer = outer_of_rho(agent, batch)
    return central_difference(lambda h: outer(agent.rho + h), 1e-2)


def by_closed_form(agent, batch):
    """dθ̃/dα = −lr [ k1 / (√v̂ + ε) − m̂ / (√v̂ + ε)² · k2 g / √v̂ ] ∂g/∂α, with k_i = (1 − β_i) / (1 − β_i^t)."""
    at_alpha = lambda alpha: inner_gradient(agent, torch.full((2,), alpha), batch)  # noqa: E731
    g_q = at_alpha(1.0) - at_alpha(0.0)  # the gradient is affine in α
    g = at_alpha(0.0) + F.softplus(agent.rho)[:, None] * g_q
    t = agent.actor_adam.t + 1
    k1, k2 = 0.1 / (1 - 0.9**t), 0.001 / (1 - 0.999**t)
    m = k1 * (g + 9 * agent.actor_adam.m)
    root = (k2 * (g**2 + 999 * agent.actor_adam.v)).sqrt()
    second = torch.where(root > 0, m / (root + 1e-8) ** 2 * k2 * g / root, 0.0)
    d_new_theta = -3e-4 * (k1 / (root + 1e-8) - second) * g_q
    return (outer_gradient(agent, batch) * d_new_theta).sum(1) * agent.rho.sigmoid()


def by_torchopt(agent, batch):
    """Autograd straight through torchopt's whole optimiser and the outer loss, as the released code has it."""
    rho = agent.rho.clone().requires_grad_()
    gradient = inner_gradient(agent, F.softplus(rho), batch)
    adam = torchopt.adam(3e-4, eps_root=1e-30)
    moments = ScaleByAdamState(mu=[agent.actor_adam.m], nu=[agent.actor_adam.v], count=[agent.actor_adam.t.long()])
    state = tuple(moments if isinstance(part, ScaleByAdamState) else part for part in adam.init([agent.theta]))
    step, _ = adam.update([gradient], state, inplace=False)
    (new_theta,) = torchopt.apply_updates([agent.theta], step, inplace=False)
    inputs = new_theta, agent.theta, agent.phi, F.softplus(agent.rho), agent.ema
    loss, _ = vmap(agent.outer_loss)(*inputs, *batch)
    loss.sum().backward()
    return rho.grad


@pytest.mark.parametrize("updates", [1, 20, 400])
def test_hypergradient(float64, updates):
    agent, batch = agent_at(updates)
    ours = hypergradient(agent, batch)
    assert relative(ours, by_torchopt(agent, batch)) < 1e-9
    # at the first step the closed form's bracket cancels to 1e-5 of its terms, and with it their digits
    assert relative(ours, by_closed_form(agent, batch)) < (1e-6 if updates == 1 else 1e-9)
    if updates > 1:  # for that one there is the next test
        assert relative(ours, by_central_differences(agent, batch)) < 1e-6


def test_central_differences_at_the_first_step(float64):
    """Adam's first step is g / (|g| + ε): ρ hardly moves it, and the difference of two losses drowns in rounding. So
    the differences are taken of the step itself and meet ∂L_outer/∂θ̃ after that."""
    agent, batch = agent_at(1)

    def adam_step(rho):
        g = inner_gradient(agent, F.softplus(rho), batch)
        return -3e-4 * (g / (g.abs() + 1e-8))

    derivative = central_difference(lambda h: adam_step(agent.rho + h), 1e-5)
    assert relative(hypergradient(agent, batch), (outer_gradient(agent, batch) * derivative).sum(1)) < 1e-6


@pytest.mark.parametrize("updates", [1, 20])
def test_dead_units_give_no_nan(updates):
    agent, batch = agent_at(updates, dead=True)
    assert all((v == 0).any() for v in parts(agent.pi, agent.actor_adam.v)[:2])
    result = hypergradient(agent, batch)
    assert result.isfinite().all() and (result != 0).all()
