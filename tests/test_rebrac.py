"""ReBRAC against an independent restatement of the official update in plain PyTorch."""

import numpy as np
import torch
from conftest import A, S, assert_same_learner, make_agent, parts, random_data, relu_network
from torch.nn import functional as F

SCRIPT = "baselines/rebrac"
STEPS = 40
SETTINGS = {
    "actor_bc_coef": 0.2, "critic_bc_coef": 0.3, "actor_lr": 1e-3, "critic_lr": 5e-4, "discount": 0.95,
    "reward_scale": 1.5,
}  # fmt: skip


# --- One update -------------------------------------------------------------------------------------------------------


class Restatement:
    """One learner with modules, `backward` and torch's own Adam."""

    def __init__(self, agent):
        self.actor, self.target_actor = (relu_network(parts(agent.pi, agent.theta[0])) for _ in range(2))
        self.q, self.target_q = ([relu_network(parts(agent.q, agent.phi[0, j])) for j in range(2)] for _ in range(2))
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), SETTINGS["actor_lr"])
        self.q_adam = torch.optim.Adam([p for q in self.q for p in q.parameters()], SETTINGS["critic_lr"])
        self.iteration = 0

    def q_min(self, critics, s, a):
        return torch.minimum(*(q(torch.cat([s, a], 1))[:, 0] for q in critics))

    def move(self, target, online):
        for t, p in zip(target.parameters(), online.parameters(), strict=True):
            t.data.copy_(0.995 * t.data + 0.005 * p.data)

    def train(self, s, a, next_s, next_a, r, d, noise):
        with torch.no_grad():
            new_a = (self.target_actor(next_s).tanh() + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
            next_q = self.q_min(self.target_q, next_s, new_a) - 0.3 * ((new_a - next_a) ** 2).sum(1)
            y = 1.5 * r + torch.where(d.bool(), 0.0, 0.95 * next_q)
        self.q_adam.zero_grad()
        sum(F.mse_loss(q(torch.cat([s, a], 1))[:, 0], y) for q in self.q).backward()
        self.q_adam.step()
        if self.iteration % 2 == 0:  # the first of each pair
            pi = self.actor(s).tanh()
            q = self.q_min(self.q, s, pi)
            self.actor_adam.zero_grad()
            (0.2 * ((pi - a) ** 2).sum(1) - q / q.detach().abs().mean()).mean().backward()
            self.move(self.target_actor, self.actor)
            self.actor_adam.step()
            for target, online in zip(self.target_q, self.q, strict=True):
                self.move(target, online)
        self.iteration += 1


def test_equals_the_restatement(float64):
    agent = make_agent(SCRIPT, **SETTINGS)
    plain = Restatement(agent)
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and noise behind
        for batch in zip(*(x[0] for x in (*agent.buffer.batches(), agent.noise)), strict=True):
            plain.train(*batch)
    networks = {
        "actor": (agent.pi, agent.theta[0], plain.actor),
        "target actor": (agent.pi, agent.target_theta[0], plain.target_actor),
    }
    assert_same_learner(agent, plain, networks)


def test_rows_hold_the_next_actions():
    buffer, data = make_agent(SCRIPT).buffer, random_data()
    keys = ("observations", "actions", "next_observations", "next_actions", "rewards", "terminals")
    for column, key in zip(buffer.table.split(buffer.widths, 1), keys, strict=True):
        np.testing.assert_array_equal(column.squeeze(1).numpy(), data[key])  # observations as they are


def test_initial_weights():
    """Hidden weights U(±1/√fan_in) and biases 0.1; last layers U(±0.001) and U(±0.003); LayerNorm in critics alone."""
    agent = make_agent(SCRIPT)
    networks = ((agent.pi, agent.theta[0], 2, 1e-3, S), (agent.q, agent.phi[0], 3, 3e-3, S + A))
    for function, vectors, step, bound, inputs in networks:
        parameters = dict(zip(function.shapes, parts(function, vectors), strict=True))
        for i, fan_in in enumerate((inputs, 256, 256)):
            weight = parameters[f"net.{step * i}.weight"]
            assert weight.shape[-2:] == (256, fan_in) and 0.98 < weight.abs().max() * fan_in**0.5 <= 1
            assert (parameters[f"net.{step * i}.bias"] == torch.tensor(0.1)).all()
        assert 0.98 < parameters[f"net.{3 * step}.weight"].abs().max() / bound <= 1
        assert parameters[f"net.{3 * step}.bias"].abs().max() <= bound
    assert (len(agent.pi.shapes), len(agent.q.shapes)) == (4 * 2, 4 * 2 + 3 * 2)
