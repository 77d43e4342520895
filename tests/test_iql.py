"""IQL and ASPC on IQL against independent restatements: of the update in plain PyTorch, of the hypergradient by central
differences, of the policy's density by torch.distributions, of the schedule by torch's own."""

import math

import numpy as np
import pytest
import torch
from conftest import UNEVEN, A, S, assert_same_learner, make_agent, parts, random_data, relu_network, stop_before_alpha
from test_hypergradient import relative, step_on_alpha
from test_update import PlainAdam, Scale
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

SCRIPTS = ["aspc_iql", "baselines/iql"]
STEPS, TOTAL = 40, 100
L_Q_COEF = 1e6  # so that L_Q, some 1e-7 of L_outer's gradient on these data, counts
VARIANTS = {
    "Gaussian": {},
    "deterministic, with dropout, some weights at their bound": {
        "deterministic": True, "actor_dropout": 0.3, "scale": 200.0
    },
}  # fmt: skip

each_script = pytest.mark.parametrize("script", SCRIPTS)


def agent_of(script: str, scale: float = 3.0, **arguments):
    own = {"alpha_init": scale, "l_q_coef": L_Q_COEF} if script == "aspc_iql" else {"beta": scale}
    return make_agent(script, **own, **arguments)


# --- One update -------------------------------------------------------------------------------------------------------


class Restatement(Scale):
    """IQL as CORL has it, and ASPC by autograd through everything: one seed, ordinary modules, a hand-written Adam."""

    def __init__(self, agent, scale=3.0, deterministic=False, actor_dropout=0.0):
        super().__init__(agent)
        s = torch.as_tensor(random_data()["observations"], dtype=torch.float64)
        self.mean, self.std = s.mean(0), s.std(0, correction=0) + 1e-3
        self.v = relu_network(parts(agent.v, agent.psi[0]))
        self.q, self.target_q = ([relu_network(parts(agent.q, agent.phi[0, j])) for j in range(2)] for _ in range(2))
        self.actor = relu_network(parts(agent.pi, agent.theta[0])[1:])
        for network, outputs in ((self.v, 1), (self.q[0], 1), (self.actor, A)):
            assert [p.shape[0] for p in network.parameters()] == [256, 256, 256, 256, outputs, outputs]
        self.log_std = nn.Parameter(torch.zeros(A))
        self.policy = [self.log_std, *self.actor.parameters()]
        self.adam_v, self.adam_policy = PlainAdam(list(self.v.parameters())), PlainAdam(self.policy)
        self.adam_q = [PlainAdam(list(q.parameters())) for q in self.q]
        self.rate = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)  # carries the schedule only
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.rate, TOTAL)
        self.scale, self.deterministic = torch.tensor(scale), deterministic
        self.actor_dropout = actor_dropout
        self.iteration, self.clipped = 0, []

    def values(self, module, s, *a):
        return module(torch.cat([(s - self.mean) / self.std, *a], 1))[:, 0]

    def mu(self, parameters, s, uniform=None):
        _, w1, b1, w2, b2, w3, b3 = parameters
        keep = [1.0, 1.0]
        if uniform is not None and self.actor_dropout:
            keep = [(uniform[:, i] >= self.actor_dropout) / (1 - self.actor_dropout) for i in range(2)]
        x = F.linear((s - self.mean) / self.std, w1, b1).relu() * keep[0]
        return F.linear(F.linear(x, w2, b2).relu() * keep[1], w3, b3).tanh()

    def descend(self, module, adam, loss):
        parameters = list(module.parameters())
        new = adam.propose(parameters, torch.autograd.grad(loss, parameters), 3e-4)
        for p, value in zip(parameters, new, strict=True):
            p.data.copy_(value)

    def train(self, s, a, next_s, r, d, uniform):
        self.iteration += 1
        with torch.no_grad():
            next_v = self.values(self.v, next_s)
            target_q = torch.minimum(*(self.values(q, s, a) for q in self.target_q))
        advantage = target_q - self.values(self.v, s)
        self.descend(self.v, self.adam_v, ((0.7 - (advantage < 0).double()).abs() * advantage**2).mean())
        y = r + 0.99 * (1 - d) * next_v
        for q, adam in zip(self.q, self.adam_q, strict=True):
            self.descend(q, adam, F.mse_loss(self.values(q, s, a), y) / 2)
        for target, q in zip(self.target_q, self.q, strict=True):
            for t, p in zip(target.parameters(), q.parameters(), strict=True):
                t.data.copy_(0.995 * t.data + 0.005 * p.data)

        scale = F.softplus(self.rho) if self.adaptive else self.scale
        weight = torch.exp(scale * advantage.detach()).clamp(max=100.0)
        self.clipped.append((weight == 100).double().mean().item())
        mu = self.mu(self.policy, s, uniform)
        if self.deterministic:
            imitation = ((mu - a) ** 2).sum(1)
        else:
            density = torch.distributions.Normal(mu, self.log_std.clamp(-20, 2).exp())
            imitation = -density.log_prob(a).sum(1)
        gradients = torch.autograd.grad(
            (weight * imitation).mean(), self.policy, create_graph=self.adaptive, allow_unused=True
        )
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.policy, gradients, strict=True)]
        new = self.adam_policy.propose(self.policy, gradients, self.schedule.get_last_lr()[0])
        if self.adaptive and self.iteration % 10 == 0:
            new_mu = self.mu(new, s)
            q = torch.minimum(*(self.values(module, s, new_mu) for module in self.q))
            new_ema = 0.005 * q.mean() + 0.995 * self.ema
            l_alpha = -scale.detach() * q.mean() / q.abs().mean().detach() + F.mse_loss(new_mu, a)
            l_q = (new_ema - self.ema) ** 2
            self.descend_rho(l_alpha + L_Q_COEF * l_q, new_ema)
        for p, value in zip(self.policy, new, strict=True):
            p.data.copy_(value.detach())
        self.rate.step()
        self.schedule.step()


@each_script
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_restatement(float64, script, variant):
    agent = agent_of(script, total_steps=TOTAL, **VARIANTS[variant])
    plain = Restatement(agent, **VARIANTS[variant])
    columns = ("observations", "actions", "next_observations", "rewards", "terminals")
    data = [torch.as_tensor(random_data()[key], dtype=torch.float64) for key in columns]
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and noise behind
        for rows, noise in zip(agent.buffer.indices[0], agent.noise[0], strict=True):
            plain.train(*(column[rows] for column in data), noise)
    networks = {"actor": (agent.pi, agent.theta[0], plain.policy), "V": (agent.v, agent.psi[0], plain.v)}
    assert_same_learner(agent, plain, networks)
    assert np.mean(plain.clipped) == 0 if variant == "Gaussian" else 0.02 < np.mean(plain.clipped) < 0.9


# --- The hypergradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "scale", "deterministic"),
    [(3, 3.0, False), (100, 3.0, False), (3, 200.0, False), (100, 200.0, True)],
)
def test_hypergradient_equals_central_differences(float64, updates, scale, deterministic):
    """Of the whole map ρ -> θ̃ -> L_outer, with every quantity under a stop-gradient held at its value for this ρ."""
    agent = agent_of("aspc_iql", scale, num_seeds=2, alpha_interval=updates, deterministic=deterministic)
    _, alpha, advantage, _, s, a, noise, actor_rate = given = stop_before_alpha(agent)
    assert agent.actor_adam.t == updates - 1
    metrics = step_on_alpha(agent, *given)
    assert torch.equal(alpha, F.softplus(agent.rho))
    clipped = alpha[:, None] * advantage > math.log(100)
    assert (scale == 3.0) == (not clipped.any()) and not clipped.all(1).any()

    def terms(rho):
        """mean Q and mean |Q| of the new policy's actions, and their squared distance to the data's: (K,)."""
        weight = (F.softplus(rho)[:, None] * advantage).exp().clamp(max=100)
        g, _ = vmap(grad(agent.actor_loss, has_aux=True))(agent.theta, weight, s, a, noise)
        pi, _ = vmap(agent.pi)(agent.inner_step(g, actor_rate), s)
        q = torch.minimum(*(vmap(agent.q)(agent.phi[:, j], s, pi) for j in range(2)))
        return q.mean(1), q.abs().mean(1), (pi - a).square().mean((1, 2))

    q_scale = terms(agent.rho)[1]

    def outer(rho):
        q, _, bc = terms(rho)
        return -alpha * q / q_scale + bc + L_Q_COEF * (0.005 * (q - agent.ema)) ** 2

    h = 1e-4  # at 3e-4 one ReLU of a critic switches for one state, and the difference meets the kink
    expected = (outer(agent.rho + h) - outer(agent.rho - h)) / (2 * h)
    assert relative(metrics["aspc/alpha_grad"], expected) < 1e-5


def test_weights_that_overflow_have_a_derivative():
    """exp(3 · 10⁴) is infinite: the bounded weight is 100 there, and its derivative in α 0, not NaN."""
    agent = agent_of("aspc_iql", num_seeds=2)
    extremes = torch.full((32,), 1e4)
    extremes[::2] = -1e4

    def value_loss(*inputs):
        loss, (_, metrics) = type(agent).value_loss(agent, *inputs)
        return loss, (extremes, metrics)

    agent.value_loss = value_loss
    rho = agent.rho.clone()
    for _ in range(3):
        agent.advance()
    assert (agent.metrics["losses/weight"] == 50).all()
    assert all(tensor.isfinite().all() for tensor in (agent.metrics | agent.tensors()).values())
    assert (agent.metrics["aspc/alpha_grad"] == 0).all() and torch.equal(agent.rho, rho)


# --- The policy: density, dropout, schedule, acting -------------------------------------------------------------------


@each_script
def test_density(float64, script):
    """Against torch.distributions, with bounds other than ±1 and logarithms of the deviation beyond their limits."""
    agent, (low, high) = make_agent(script, bounds=UNEVEN, batch_size=4), map(torch.tensor, UNEVEN)
    theta, s, noise = agent.theta[0], torch.randn(64, S), torch.rand(64, 2, 1)
    parts(agent.pi, theta)[0].copy_(torch.tensor([-25.0, 0.3, 3.0]))
    mu, _ = agent.pi(theta, s)
    assert ((mu > low) & (mu < high)).all()
    std = torch.tensor([-20.0, 0.3, 2.0]).exp() * (high - low) / 2
    a = mu + std * torch.randn(64, A)
    expected = -torch.distributions.Normal(mu, std).log_prob(a).sum(1)
    torch.testing.assert_close(agent.imitation_loss(theta, s, a, noise), expected, rtol=1e-12, atol=1e-12)


@each_script
def test_dropout(script):
    """Each unit of both layers goes with the probability asked for, afresh at each step; never when the agent acts."""
    agent = make_agent(script, actor_dropout=0.3)
    agent.advance()
    first = agent.noise.clone()
    assert first.shape == (1, agent.period_steps, 32, 2, 256) and (first >= 0).all() and (first < 1).all()
    dropped = (first < 0.3).float().mean((0, 1, 2))  # (2, 256), of 320 draws each
    assert abs(dropped.mean() - 0.3) < 0.01 and (dropped - 0.3).abs().max() < 0.15
    assert all((first[0, i] != first[0, j]).any() for i in range(10) for j in range(i))
    agent.advance()
    assert (agent.noise != first).any()
    observations, policy = torch.randn(4, S), agent.policy(0)
    assert torch.equal(policy(observations), policy(observations))


@each_script
def test_policy_rate_is_a_cosine_to_zero(script):
    """The rate of each step of a whole run, in closed form."""
    agent, rates = make_agent(script, total_steps=40), []
    step = agent.actor_adam.step
    agent.actor_adam.step = lambda theta, g, rate: (rates.append(rate.item()), step(theta, g, rate))
    for _ in range(4):
        agent.advance()
    expected = [3e-4 * math.cos(math.pi * t / 80) ** 2 for t in range(40)]  # (1 + cos 2x) / 2 = cos² x
    assert rates == pytest.approx(expected, rel=1e-5)
