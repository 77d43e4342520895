"""CQL and ASPC on CQL against independent restatements: of the update in plain PyTorch, of the hypergradient by central
differences, of the densities by torch.distributions, of the penalty's integral by its exact value."""

import math

import numpy as np
import pytest
import torch
from conftest import UNEVEN, A, S, assert_same_learner, make_agent, parts, random_data, stop_before_alpha
from test_hypergradient import central_difference, relative, step_on_alpha
from test_update import PlainAdam, Scale, copies, polyak
from torch import distributions
from torch.func import grad, vmap
from torch.nn import functional as F

SCRIPTS = ["aspc_cql", "baselines/cql"]
STEPS, TOTAL = 40, 100
LOW, HIGH = map(torch.tensor, UNEVEN)
SHARED = {
    "plain": {},
    "options": {"max_target_backup": True, "clip_diff_min": 6.0, "critic_layers": 2, "temperature": 0.7},
}
BASELINE = {"lagrange": {"lagrange": True, "target_action_gap": 3.0, "normalize": False}}
ASPC = {"options": SHARED["options"] | {"alpha_min": 9.999, "alpha_max": 10.001}}  # bounds that α meets
VARIANTS = [
    pytest.param(script, name, arguments, id=f"{name}-{script}")
    for script, own in zip(SCRIPTS, (ASPC, BASELINE), strict=True)
    for name, arguments in (SHARED | own).items()
]

each_script = pytest.mark.parametrize("script", SCRIPTS)


def agent_of(script: str, **arguments):
    return make_agent(script, bounds=UNEVEN, **({"batch_size": 4, "total_steps": TOTAL} | arguments))


# --- One update -------------------------------------------------------------------------------------------------------


class Restatement(Scale):
    """CQL as CORL has it, and ASPC by autograd through everything: one seed, plain tensors, a hand-written Adam."""

    def __init__(self, agent):
        super().__init__(agent)
        multiplier, offset = torch.tensor(1.0), torch.tensor(-1.0)
        self.actor = [multiplier, offset, *copies(agent.pi, agent.theta[0])[2:]]
        self.q, self.target_q = ([copies(agent.q, x[0, j]) for j in range(2)] for x in (agent.phi, agent.target_phi))
        s = torch.as_tensor(random_data()["observations"], dtype=torch.float64)
        self.mean, self.std = s.mean(0), s.std(0, correction=0) + 1e-3
        if not getattr(agent.args, "normalize", True):
            self.mean, self.std = torch.zeros(S), torch.ones(S)
        self.log_eta, self.log_lagrange = torch.tensor(0.0), torch.tensor(1.0)
        self.adam_actor, self.adam_q = PlainAdam(self.actor), [PlainAdam(q) for q in self.q]
        self.adam_eta, self.adam_lagrange = PlainAdam([self.log_eta]), PlainAdam([self.log_lagrange])
        self.scale, self.uniform = (HIGH - LOW) / 2, distributions.Uniform(LOW, HIGH)
        self.transform = distributions.ComposeTransform(
            [distributions.TanhTransform(), distributions.AffineTransform((HIGH + LOW) / 2, self.scale)]
        )
        self.iteration, self.clipped, self.at_bound = 0, [], []

    def network(self, p, x):
        for i in range(0, len(p) - 2, 2):
            x = F.linear(x, p[i], p[i + 1]).relu()
        return F.linear(x, p[-2], p[-1])

    def draw(self, p, s, noise):
        """Actions (B, n, A) and their log densities (B, n), from noise (n, B, A); the observations stand n times."""
        s = s.repeat_interleave(len(noise), 0).view(len(s), len(noise), S)
        mean, log_std = self.network(p[2:], (s - self.mean) / self.std).split(A, -1)
        std = (p[0] * log_std + p[1]).clamp(-20, 2).exp()
        x = mean + std * noise.transpose(0, 1)
        a = self.transform(x)
        density = distributions.Normal(mean, std).log_prob(x) - self.transform.log_abs_det_jacobian(x, a)
        return a, density.sum(-1)

    def value(self, p, s, a):
        s = s[:, None].repeat(1, a.shape[1], 1)
        return self.network(p, torch.cat([(s - self.mean) / self.std, a], -1)).squeeze(-1)

    def excess(self, p, s, a, proposals):
        """C_j"""
        t, terms = self.args.temperature, [self.value(p, s, x) - density for x, density in proposals]
        excess = t * torch.logsumexp(torch.cat(terms, 1) / t, 1) - self.value(p, s, a[:, None])[:, 0]
        least = -math.inf if self.args.clip_diff_min is None else self.args.clip_diff_min
        self.clipped.append((excess < least).double().mean().item())
        return torch.clamp(excess, least, math.inf).mean()

    def train(self, s, a, next_s, r, d, noise, uniform):
        self.iteration += 1
        backups = 10 if self.args.max_target_backup else 1
        at_s, at_next, backup, last = noise.split([10, 10, backups, 1])
        eta = self.log_eta.exp()

        p = [x.requires_grad_() for x in self.actor]
        new_a, log_pi = self.draw(p, s, last)
        policy_loss = (eta * log_pi - torch.min(*(self.value(q, s, new_a) for q in self.q))).mean()
        policy_gradients = torch.autograd.grad(policy_loss, p)
        # The entropy that η steers to −A is that of the action before it is scaled
        eta_gradient = -((log_pi + self.scale.log().sum()).mean() - A).detach()

        with torch.no_grad():
            next_a, _ = self.draw(p, next_s, backup)
            target_q = torch.min(*(self.value(q, next_s, next_a) for q in self.target_q)).amax(1)
            y = r + 0.99 * (1 - d) * target_q
            u = LOW + (HIGH - LOW) * uniform.transpose(0, 1)
            proposals = [(u, self.uniform.log_prob(u).sum(-1)), self.draw(p, next_s, at_next), self.draw(p, s, at_s)]
        multiplier = self.log_lagrange.exp().clamp(0, 1e6) if self.args_lagrange() else 1.0
        alpha = F.softplus(self.rho) if self.adaptive else self.args.alpha * multiplier
        new_q, lagrange_loss = [], 0.0
        for j in range(2):
            q = [x.requires_grad_() for x in self.q[j]]
            excess = self.excess(q, s, a, proposals)
            loss = F.mse_loss(self.value(q, s, a[:, None])[:, 0], y) + alpha * excess
            gradients = torch.autograd.grad(loss, q, create_graph=self.adaptive)
            new_q.append(self.adam_q[j].propose(q, gradients, 3e-4))
            if self.args_lagrange():
                lagrange_loss -= alpha.item() * (excess.item() - self.args.target_action_gap) / 2
        if self.adaptive and self.iteration % 10 == 0:
            policy_actions = proposals[2][0]
            q_bar = torch.min(*(self.value(q, s, policy_actions) for q in new_q))
            penalty = sum(self.excess(q, s, a, proposals) for q in new_q)
            new_ema = 0.005 * q_bar.mean() + 0.995 * self.ema
            l_alpha = -q_bar.mean() / q_bar.abs().mean().detach() + alpha.detach() * penalty
            l_q = (new_ema - self.ema) ** 2
            self.descend_rho(l_alpha + l_q, new_ema)
            low, high = (math.log(math.expm1(x)) for x in (self.args.alpha_min, self.args.alpha_max))
            self.at_bound.append(not low <= self.rho.item() <= high)
            self.rho.data.clamp_(low, high)

        (self.log_eta,) = self.adam_eta.propose([self.log_eta], [eta_gradient], self.args.policy_lr)
        if self.args_lagrange():  # the loss is linear in α', so that its derivative in log α' is the loss itself
            gradient = torch.as_tensor(lagrange_loss)
            (self.log_lagrange,) = self.adam_lagrange.propose([self.log_lagrange], [gradient], 3e-4)
        self.actor = [x.detach() for x in self.adam_actor.propose(p, policy_gradients, self.args.policy_lr)]
        self.q = [[x.detach() for x in q] for q in new_q]
        self.target_q = [polyak(target, q) for target, q in zip(self.target_q, self.q, strict=True)]

    def args_lagrange(self):
        return not self.adaptive and self.args.lagrange


@pytest.mark.parametrize(("script", "name", "arguments"), VARIANTS)
def test_equals_the_restatement(float64, script, name, arguments):
    agent = agent_of(script, **arguments)
    plain = Restatement(agent)
    columns = ("observations", "actions", "next_observations", "rewards", "terminals")
    data = [torch.as_tensor(random_data(0, *UNEVEN)[key], dtype=torch.float64) for key in columns]
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and random numbers behind
        for rows, noise, uniform in zip(agent.buffer.indices[0], agent.noise[0], agent.uniform[0], strict=True):
            plain.train(*(column[rows] for column in data), noise, uniform)
    assert_same_learner(agent, plain, {"actor": (agent.pi, agent.theta[0], plain.actor)})
    assert abs(agent.log_eta.item() - plain.log_eta.item()) < 1e-8
    if name == "lagrange":
        assert abs(agent.log_lagrange.item() - plain.log_lagrange.item()) < 1e-8
        assert abs(plain.log_lagrange - 1) > 1e-3
    if plain.adaptive:
        assert any(plain.at_bound) == (name == "options")
    assert (0.05 < np.mean(plain.clipped) < 0.95) == (name == "options")


# --- The hypergradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [3, 100])
def test_hypergradient_equals_central_differences(float64, updates):
    """Of the whole map ρ -> φ̃ -> L_outer, with every quantity under a stop-gradient held at its value for this ρ; and
    of its terms in Q̄ and in the penalty, one by one, as the metrics tell them."""
    agent = agent_of("aspc_cql", num_seeds=2, alpha_interval=updates, alpha_init=3.0)
    g, alpha, s, actions, log_u = given = stop_before_alpha(agent)
    assert agent.critic_adam.t == updates - 1
    agent.ema.fill_(-40.0)  # far from Q̄, lest L_Q drown in the rest
    metrics = step_on_alpha(agent, *given)
    assert torch.equal(alpha, F.softplus(agent.rho))

    def inner_gradient(rho):
        """∇_φ L_inner for targets y = 0: y adds what no α changes."""
        y = s.new_zeros(s.shape[:2])
        return vmap(grad(agent.inner_loss, has_aux=True))(agent.phi, F.softplus(rho), s, y, actions, log_u)[0]

    def terms(rho):
        """mean Q̄, mean |Q̄| and Σ_j C_j of the new critics: (K,)."""
        new = agent.inner_step(g + inner_gradient(rho) - inner_gradient(agent.rho))
        q = vmap(vmap(agent.q, in_dims=(0, None, None)))(new, s, actions)  # (K, 2, 31, B)
        excess = torch.logsumexp(q[:, :, 1:] - log_u[:, None], 2) - q[:, :, 0]
        q_bar = q[:, :, 21:].amin(1)
        return q_bar.mean((1, 2)), q_bar.abs().mean((1, 2)), excess.mean(2).sum(1)

    q_scale = terms(agent.rho)[1]

    def outer(rho):
        q, _, penalty = terms(rho)
        return torch.stack([-q / q_scale + (0.005 * (q + 40)) ** 2, alpha * penalty])

    expected = central_difference(lambda h: outer(agent.rho + h), 2e-3)
    ours = torch.stack([metrics["aspc/alpha_grad_q"], metrics["aspc/alpha_grad_penalty"]])
    assert relative(ours, expected) < 1e-5
    assert relative(metrics["aspc/alpha_grad"], expected.sum(0)) < 1e-5


@pytest.mark.parametrize(("push", "bound"), [(1.0, 9.995), (-1.0, 10.002)])
def test_alpha_stays_within_its_bounds(float64, push, bound):
    agent = agent_of("aspc_cql", alpha_min=9.995, alpha_max=10.002, total_steps=1000)
    agent.rho_adam.m.fill_(push)
    for _ in range(2):
        agent.advance()
        assert 9.995 - 1e-9 < F.softplus(agent.rho).item() < 10.002 + 1e-9
    assert F.softplus(agent.rho).item() == pytest.approx(bound, abs=1e-9)


# --- The policy's densities and the penalty ---------------------------------------------------------------------------


@each_script
def test_densities(float64, script):
    """Against torch.distributions, deviations beyond their limits and saturated actions included."""
    agent = agent_of(script)
    torch.manual_seed(0)
    multiplier, offset, *layers = parts(agent.pi, agent.theta[0])  # views
    layers[6][:A] *= 3000
    layers[6][A:] *= 500
    multiplier.fill_(1.7)
    offset.fill_(0.4)
    s, noise = torch.randn(64, S), torch.randn(10, 64, A)
    hidden = s
    for i in (0, 2, 4):
        hidden = F.linear(hidden, layers[i], layers[i + 1]).relu()
    mean, log_std = F.linear(hidden, layers[6], layers[7]).split(A, -1)
    log_std = 1.7 * log_std + 0.4
    assert (log_std > 2).any() and (log_std < 2).any() and mean.abs().max() > 2
    affine = distributions.AffineTransform((HIGH + LOW) / 2, (HIGH - LOW) / 2, cache_size=1)
    transforms = [distributions.TanhTransform(cache_size=1), affine]  # cached, for they cannot invert a rounded tanh
    policy = distributions.TransformedDistribution(distributions.Normal(mean, log_std.clamp(-20, 2).exp()), transforms)
    expected = affine(transforms[0](mean + log_std.clamp(-20, 2).exp() * noise))
    actions, log_pi = agent.pi(agent.theta[0], s, noise)
    torch.testing.assert_close(actions, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_pi, policy.log_prob(expected).sum(-1), rtol=1e-12, atol=1e-12)
    assert ((actions >= LOW) & (actions <= HIGH)).all()
    torch.testing.assert_close(agent.pi(agent.theta[0], s), affine(mean.tanh()), rtol=1e-12, atol=1e-12)


@each_script
def test_penalty_estimates_the_integral(float64, script, monkeypatch):
    """Of Q(s, a) = −‖a − c‖², whose integral over the box is known: the mean over its terms of what the logsumexp adds,
    for each of the three kinds of actions on its own, so that each kind's density counts."""
    agent = agent_of(script, batch_size=8000)
    noise, uniform = agent.noise[0, 0], agent.uniform[0, 0]
    noise.normal_(generator=torch.Generator().manual_seed(0))
    uniform.uniform_(generator=torch.Generator().manual_seed(1))
    agent.buffer.indices[0, 0] = torch.arange(8000) % 400
    s, a, next_s, _, _ = (x[0, 0] for x in agent.buffer.batches())
    parts(agent.pi, agent.theta[0])[1].fill_(0.0)  # broad, or single terms outweigh all others
    actions, log_u = agent.proposals(agent.theta[0], s, a, next_s, noise[:20], uniform)
    c = torch.tensor([1.0, -0.5, 3.0])
    monkeypatch.setattr(agent, "q", lambda phi, s, a: -(a - c).square().sum(-1))
    q = agent.twins(agent.phi[0], s, actions)
    penalty = agent.penalty(q, log_u)
    integral = math.prod(
        math.sqrt(math.pi) / 2 * (math.erf(h - m) - math.erf(low - m))
        for low, h, m in zip(LOW.tolist(), HIGH.tolist(), c.tolist(), strict=True)
    )
    terms = (q[0, 1:] - log_u).exp().view(3, 10, -1)
    assert terms.mean((1, 2)) == pytest.approx([integral] * 3, rel=0.03)
    expected = (30 * terms.mean((0, 1))).log() - q[0, 0]
    assert penalty.item() == pytest.approx(2 * expected.mean().item(), rel=1e-12)
    assert q.shape == (2, 31, 8000) and torch.equal(actions[0], a)


@each_script
def test_initialisation(script):
    """Orthogonal critics, and a policy close to a tanh-Gaussian of mean 0 and log deviation −1."""
    agent = agent_of(script)
    twins = parts(agent.q, agent.phi[0])  # the weight (2, ...) and the bias of each layer
    for j in range(2):
        for weight in twins[0:6:2]:
            w = weight[j]
            torch.testing.assert_close(w.T @ w, 2 * torch.eye(w.shape[1]), rtol=0, atol=1e-5)
        assert twins[6][j].norm().item() == pytest.approx(0.01, rel=1e-5)
        assert all((bias[j] == 0).all() for bias in twins[1::2])
    assert (twins[0][0] != twins[0][1]).any()
    multiplier, offset, *layers = parts(agent.pi, agent.theta[0])
    last, bound = layers[6], 0.01 * math.sqrt(6 / (256 + 2 * A))
    assert 0.95 * bound < last.abs().max() <= bound and (layers[7] == 0).all()
    assert (multiplier.item(), offset.item()) == (1.0, -1.0)
    assert agent.target_entropy.item() == pytest.approx(-A + math.log(2 * 1 * 2))
