"""A2PR against independent restatements: of the official update in plain PyTorch, of the VAE's loss by
torch.distributions, of what is imitated row by row."""

import numpy as np
import pytest
import torch
from conftest import UNEVEN, A, S, assert_same_learner, make_agent, parts, relu_network
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

SCRIPT = "baselines/a2pr"
STEPS = 40
VARIANTS = {
    "the ASPC paper's": {},
    "the official ones": {
        "official_networks": True, "alpha": 1.0, "mask": 0.4, "vae_weight": 1.5, "discount": 0.95
    },
}  # fmt: skip


# --- One update -------------------------------------------------------------------------------------------------------


def network(function, vector: torch.Tensor, prefix: str = "net.") -> nn.Sequential:
    """One learner's network as an ordinary module."""
    named = zip(function.shapes, parts(function, vector), strict=True)
    return relu_network([p for name, p in named if name.startswith(prefix)])


class Restatement:
    """One learner with modules, `backward` and torch's own Adam; the VAE's noise is given."""

    def __init__(self, agent, alpha=2.5, mask=1.0, vae_weight=1.0, discount=0.99, official_networks=False):
        self.alpha, self.mask, self.vae_weight, self.discount = alpha, mask, vae_weight, discount
        self.actor, self.target_actor = (network(agent.pi, agent.theta[0]) for _ in range(2))
        self.q, self.target_q = ([network(agent.q, agent.phi[0, j]) for j in range(2)] for _ in range(2))
        self.v = network(agent.v, agent.psi[0])
        self.encoder, self.decoder = (network(agent.vae, agent.omega[0], name) for name in ("encoder.", "decoder."))
        hidden = [sum(isinstance(x, nn.ReLU) for x in net) for net in (self.actor, self.q[0], self.v)]
        assert hidden == ([3, 4, 4] if official_networks else [2, 3, 3])
        assert [p.shape[0] for p in self.encoder.parameters()] == [750, 750, 750, 750, 4 * A, 4 * A]
        assert [p.shape[0] for p in self.decoder.parameters()] == [750, 750, 750, 750, A, A]
        adam = lambda rate, *nets: torch.optim.Adam([p for net in nets for p in net.parameters()], rate)  # noqa: E731
        self.actor_adam, self.q_adam, self.v_adam = adam(3e-4, self.actor), adam(3e-4, *self.q), adam(3e-4, self.v)
        self.vae_adam = adam(1e-3, self.encoder, self.decoder)
        self.iteration, self.shares = 0, []

    def both(self, critics, s, a):
        return [q(torch.cat([s, a], 1))[:, 0] for q in critics]

    def vae(self, s, a, noise):
        mean, log_std = self.encoder(torch.cat([s, a], 1)).split(2 * A, 1)
        std = log_std.clamp(-4, 15).exp()
        return self.decoder(torch.cat([s, mean + std * noise], 1)).tanh(), mean, std

    def descend(self, adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()

    def move(self, target, online):
        for t, p in zip(target.parameters(), online.parameters(), strict=True):
            t.data.copy_(0.995 * t.data + 0.005 * p.data)

    def train(self, s, a, next_s, r, d, noise):
        self.iteration += 1
        target_noise, vae_noise, offer_noise = noise[:, :A], noise[:, A : 3 * A], noise[:, 3 * A :]
        with torch.no_grad():
            next_a = (self.target_actor(next_s).tanh() + (target_noise * 0.2).clamp(-0.5, 0.5)).clamp(-1, 1)
            y = r + self.discount * (1 - d) * torch.minimum(*self.both(self.target_q, next_s, next_a))
        self.descend(self.q_adam, sum(F.mse_loss(q, y) for q in self.both(self.q, s, a)))

        with torch.no_grad():
            v = self.v(s)[:, 0]  # before V's step
            online_y = r + self.discount * (1 - d) * torch.minimum(*self.both(self.q, next_s, next_a))
            q_a = self.both(self.q, s, a)[0]  # after the critics' step
        self.descend(self.v_adam, F.mse_loss(self.v(s)[:, 0], torch.minimum(online_y, y)))

        decoded, mean, std = self.vae(s, a, vae_noise)
        weight = self.vae_weight * (q_a > v).double()
        kl = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean()
        self.descend(self.vae_adam, (weight[:, None] * (decoded - a) ** 2).mean() + 0.5 * kl)
        if self.iteration % 2:
            return

        pi = self.actor(s).tanh()
        q = self.both(self.q, s, pi)[0]
        offered = self.vae(s, pi, offer_noise)[0]
        with torch.no_grad():
            q_offered = self.both(self.q, s, offered)[0]
        loss, imitated, taken = -self.alpha * q.mean() / q.detach().abs().mean(), 0, 0
        for i in range(len(s)):
            take = q_offered[i] - v[i] >= q_a[i] - v[i]
            taken += take.item()
            if q_offered[i] >= v[i] or q_a[i] > v[i]:
                imitated += 1
                loss = loss + self.mask * ((pi[i] - (offered[i] if take else a[i])) ** 2).mean() / len(s)
        self.shares.append((imitated / len(s), taken / len(s)))
        self.descend(self.actor_adam, loss)
        for target, online in zip([self.target_actor, *self.target_q], [self.actor, *self.q], strict=True):
            self.move(target, online)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_restatement(float64, variant):
    agent = make_agent(SCRIPT, **VARIANTS[variant])
    plain = Restatement(agent, **VARIANTS[variant])
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and noise behind
        for batch in zip(*(x[0] for x in (*agent.buffer.batches(), agent.noise)), strict=True):
            plain.train(*batch)
        shares = [agent.metrics[f"losses/{name}"].item() for name in ("imitated", "offered")]
        assert shares == pytest.approx(plain.shares[-1], abs=1e-12)
    networks = {
        "actor": (agent.pi, agent.theta[0], plain.actor),
        "target actor": (agent.pi, agent.target_theta[0], plain.target_actor),
        "V": (agent.v, agent.psi[0], plain.v),
        "VAE": (agent.vae, agent.omega[0], [*plain.encoder.parameters(), *plain.decoder.parameters()]),
    }
    assert_same_learner(agent, plain, networks)
    assert all(0 < np.mean(share) < 1 for share in zip(*plain.shares, strict=True))  # each choice is taken, not always


# --- The VAE ----------------------------------------------------------------------------------------------------------


def test_vae_loss(float64):
    """Against torch.distributions, with bounds other than ±1 and log_std beyond its limits."""
    agent = make_agent(SCRIPT, bounds=UNEVEN, batch_size=4, vae_weight=1.5)
    omega = agent.omega[0].clone()
    encoder_bias = dict(zip(agent.vae.shapes, parts(agent.vae, omega), strict=True))["encoder.4.bias"]  # a view
    bias = torch.zeros(4 * A)
    bias[2 * A :] = torch.tensor([-9.0, -3.0, -1.0, 0.0, 0.5, 1.0])
    encoder_bias.copy_(bias)
    s, a, noise, advantage = torch.randn(64, S), torch.rand(64, A), torch.randn(64, 2 * A), torch.randn(64)
    decoded, mean, log_std = agent.vae(omega, s, a, noise)
    low, high = map(torch.tensor, UNEVEN)
    assert ((decoded >= low) & (decoded <= high)).all() and decoded[:, 2].mean() > 1.5
    assert (log_std[:, 0] == -4).all() and (log_std[:, 1:] > -4).all()
    loss, metrics = agent.vae_loss(omega, advantage, s, a, noise)
    rows = [i for i in range(64) if advantage[i] > 0]
    assert 0 < len(rows) < 64
    expected = 1.5 * (decoded[rows] - a[rows]).square().sum() / (64 * A)
    torch.testing.assert_close(metrics["losses/reconstruction"], expected, rtol=1e-12, atol=1e-12)
    kl = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(loss, expected + kl / 2, rtol=1e-12, atol=1e-12)
    encoder_bias.copy_(bias + 30)
    assert (agent.vae(omega, s, a, noise)[2][:, 1:] == 15).all()


# --- What is imitated -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q_offered", "q_data", "target", "imitated"),
    [
        (2.0, 1.0, "offered", True),  # both better than V = 0
        (1.0, 2.0, "data", True),
        (1.0, 1.0, "offered", True),  # a tie goes to the VAE
        (1.0, -1.0, "offered", True),
        (-1.0, 1.0, "data", True),
        (-1.0, -2.0, "offered", False),
        (-2.0, -1.0, "data", False),
        (0.0, -1.0, "offered", True),  # the VAE's action need only be as good as V,
        (-1.0, 0.0, "data", False),  # the data's must be better
    ],
)
def test_choice_and_mask(float64, monkeypatch, q_offered, q_data, target, imitated):
    agent = make_agent(SCRIPT, mask=0.7)
    theta, phi, omega = agent.theta[0], agent.phi[0], agent.omega[0]
    s, a, noise = torch.randn(8, S), torch.rand(8, A), torch.randn(8, 2 * A)
    pi = agent.pi(theta, s)
    offered = agent.vae(omega, s, pi, noise)[0]
    values = lambda critic, s, a: torch.full((8,), q_offered if torch.equal(a, offered) else 3.0)  # noqa: E731
    monkeypatch.setattr(agent, "q", values)
    loss, metrics = agent.actor_loss(theta, phi, omega, torch.zeros(8), torch.full((8,), q_data), s, a, noise)
    other = {"offered": offered, "data": a}[target]
    expected = -2.5 + imitated * 0.7 * (pi - other).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    seen = tuple(metrics[f"losses/{name}"] for name in ("q", "imitated", "offered"))
    assert seen == (3.0, float(imitated), float(target == "offered"))


def test_each_noise_is_drawn_afresh():
    agent = make_agent(SCRIPT)
    agent.advance()
    first = agent.noise.clone()
    assert first.shape == (1, agent.period_steps, 32, 5 * A) and abs(first.std() - 1) < 0.02
    agent.advance()
    assert len(torch.cat([first, agent.noise]).unique()) > 0.99 * 2 * first.numel()
