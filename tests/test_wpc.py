"""wPC against an independent restatement of the official update in plain PyTorch, and at its two limits."""

import pytest
import torch
from conftest import A, S, assert_same_learner, make_agent, parts, relu_network
from test_update import Restatement as TD3BC
from test_update import polyak
from torch.nn import functional as F

SCRIPT = "baselines/wpc"
STEPS = 40


class Restatement(TD3BC):
    """Actor, critics and their Adams are those of TD3+BC's restatement; V is an ordinary module with torch's Adam."""

    def __init__(self, agent, robust):
        super().__init__(agent, robust)
        self.v = relu_network(parts(agent.v, agent.psi[0]))
        assert [p.shape[0] for p in self.v.parameters()] == [256, 256, 256, 256, 1, 1]
        self.adam_v = torch.optim.Adam(self.v.parameters(), 3e-4)
        self.shares = []

    def train(self, s, a, next_s, r, d, noise):
        self.iteration += 1
        with torch.no_grad():
            next_a = (self.pi(self.target_actor, next_s) + (noise * 0.2).clamp(-0.5, 0.5)).clamp(-1, 1)
            target = r + 0.99 * (1 - d) * torch.min(*(self.value(p, next_s, next_a) for p in self.target_q))
        for j in range(2):
            p = [x.requires_grad_() for x in self.q[j]]
            gradients = torch.autograd.grad(F.mse_loss(self.value(p, s, a), target), p)
            self.q[j] = [x.detach() for x in self.adam_q[j].propose(p, gradients, 3e-4)]
        v = self.v(s)[:, 0]
        self.adam_v.zero_grad()
        F.mse_loss(v, target).backward()
        self.adam_v.step()
        if self.iteration % 2:
            return
        weight = (self.value(self.q[0], s, a) > v.detach()).double()
        self.shares.append(weight.mean().item())
        p = [x.requires_grad_() for x in self.actor]
        pi = self.pi(p, s)
        q = self.value(self.q[0], s, pi)
        loss = -(2.5 / q.abs().mean().detach()) * q.mean() + (weight[:, None] * (pi - a) ** 2).mean()
        self.actor = [x.detach() for x in self.adam_actor.propose(p, torch.autograd.grad(loss, p), 3e-4)]
        self.target_q = [polyak(target, q) for target, q in zip(self.target_q, self.q, strict=True)]
        self.target_actor = polyak(self.target_actor, self.actor)


@pytest.mark.parametrize("robust", [True, False])
def test_equals_the_restatement(float64, robust):
    agent = make_agent(SCRIPT, robust_critic=robust)
    plain = Restatement(agent, robust)
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and noise behind
        for batch in zip(*(x[0] for x in (*agent.buffer.batches(), agent.noise)), strict=True):
            plain.train(*batch)
        assert agent.metrics["losses/imitated"].item() == pytest.approx(plain.shares[-1], abs=1e-12)
    networks = {
        "actor": (agent.pi, agent.theta[0], plain.actor),
        "target actor": (agent.pi, agent.target_theta[0], plain.target_actor),
        "V": (agent.v, agent.psi[0], plain.v),
    }
    assert_same_learner(agent, plain, networks)
    assert 0 < sum(plain.shares) / len(plain.shares) < 1  # some actions are imitated, not all


def test_limits(float64):
    """V below every Q: TD3+BC's policy loss. V above: its Q term alone."""
    agent, td3bc = make_agent(SCRIPT), make_agent("baselines/td3bc")
    s, a, theta, phi = torch.randn(32, S), torch.rand(32, A), agent.theta[0], agent.phi[0]
    whole, theirs = td3bc.actor_loss(theta, phi, torch.tensor(2.5), s, a)
    for v, share in ((-1e6, 1.0), (1e6, 0.0)):
        loss, ours = agent.actor_loss(theta, phi, torch.full((32,), v), s, a)
        imitation = (agent.pi(theta, s) - a).square().mean()
        torch.testing.assert_close(loss, whole - (1 - share) * imitation, rtol=1e-12, atol=1e-12)
        assert (ours["losses/q"], ours["losses/imitated"]) == (theirs["losses/q"], share)
