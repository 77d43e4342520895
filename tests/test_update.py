"""One update of each script against an independent restatement of the released code, written with ordinary modules,
autograd and a hand-written Adam: one seed, no vmap, no torch.func, no torchopt."""

import math

import pytest
import torch
from conftest import assert_same_learner, make_agent, parts
from torch.nn import functional as F

STEPS = 60


class PlainAdam:
    """Adam (Kingma & Ba) on a list of tensors; `propose` returns the new values with the gradients' graph intact."""

    def __init__(self, parameters):
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]
        self.t = 0

    def propose(self, parameters, gradients, lr):
        self.t += 1
        new = []
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            m = 0.9 * self.m[i] + 0.1 * g
            v = 0.999 * self.v[i] + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            alive = v_hat > 0  # √ has no derivative at 0
            root = torch.where(alive, torch.where(alive, v_hat, torch.ones_like(v_hat)).sqrt(), torch.zeros_like(v_hat))
            new.append(p - lr * m_hat / (root + 1e-8))
            self.m[i], self.v[i] = m.detach(), v.detach()
        return new


def copies(function, vector: torch.Tensor) -> list[torch.Tensor]:
    """One learner's parameters."""
    return [p.clone() for p in parts(function, vector)]


def polyak(target: list[torch.Tensor], online: list[torch.Tensor]) -> list[torch.Tensor]:
    return [0.995 * t + 0.005 * p.detach() for t, p in zip(target, online, strict=True)]


class Scale:
    """What restatements of ASPC share: α = softplus(ρ), moved by torch's own Adam and schedule; the average of Q."""

    def __init__(self, agent):
        self.args, self.adaptive = agent.args, hasattr(agent.args, "alpha_init")
        if self.adaptive:
            self.rho = torch.tensor(math.log(math.expm1(self.args.alpha_init)), requires_grad=True)
            self.rho_adam = torch.optim.Adam([self.rho], lr=2e-3)
            decay = 0.01 ** (1 / (self.args.total_steps // agent.period_steps))
            self.rho_schedule = torch.optim.lr_scheduler.ExponentialLR(self.rho_adam, decay)
            self.ema = torch.tensor(0.0)

    def descend_rho(self, loss, ema):
        (self.rho.grad,) = torch.autograd.grad(loss, self.rho)
        self.rho_adam.step()
        self.rho_schedule.step()
        self.ema = ema.detach()


class Restatement(Scale):
    """The released update: actor S-256-256-A; critics with (Linear, ReLU, LayerNorm) x 3 and Linear."""

    def __init__(self, agent, robust=True):
        super().__init__(agent)
        self.actor, self.target_actor = (copies(agent.pi, x[0]) for x in (agent.theta, agent.target_theta))
        self.q, self.target_q = ([copies(agent.q, x[0, j]) for j in range(2)] for x in (agent.phi, agent.target_phi))
        self.adam_actor, self.adam_q = PlainAdam(self.actor), [PlainAdam(q) for q in self.q]
        self.robust = robust
        self.iteration = 0

    def pi(self, p, s):
        x = F.relu(F.linear(s, p[0], p[1]))
        return torch.tanh(F.linear(F.relu(F.linear(x, p[2], p[3])), p[4], p[5]))

    def value(self, p, s, a):
        x = torch.cat([s, a], 1)
        width = 4 if self.robust else 2
        for i in range(0, len(p) - 2, width):
            x = F.relu(F.linear(x, p[i], p[i + 1]))
            if self.robust:
                x = F.layer_norm(x, (256,), p[i + 2], p[i + 3])
        return F.linear(x, p[-2], p[-1])[:, 0]

    def train(self, s, a, next_s, r, d, noise):
        self.iteration += 1
        with torch.no_grad():
            next_a = (self.pi(self.target_actor, next_s) + (noise * 0.2).clamp(-0.5, 0.5)).clamp(-1, 1)
            target = r + 0.99 * (1 - d) * torch.min(*(self.value(p, next_s, next_a) for p in self.target_q))
        for j in range(2):
            p = [x.requires_grad_() for x in self.q[j]]
            gradients = torch.autograd.grad(F.mse_loss(self.value(p, s, a), target), p)
            self.q[j] = [x.detach() for x in self.adam_q[j].propose(p, gradients, 3e-4)]
        if self.iteration % 2:
            return
        alpha = F.softplus(self.rho) if self.adaptive else 2.5
        p = [x.requires_grad_() for x in self.actor]
        pi = self.pi(p, s)
        q = self.value(self.q[0], s, pi)
        loss = -(alpha / q.abs().mean().detach()) * q.mean() + F.mse_loss(pi, a)
        gradients = torch.autograd.grad(loss, p, create_graph=self.adaptive)
        new = self.adam_actor.propose(p, gradients, 3e-4)
        if self.adaptive and self.iteration % 20 == 0:
            new_pi = self.pi(new, s)
            new_q = self.value(self.q[0], s, new_pi)
            ema = 0.005 * new_q.mean() + 0.995 * self.ema
            delta_q = ema - self.ema
            bc, new_bc = ((pi - a) ** 2).mean(1).detach(), ((new_pi - a) ** 2).mean(1)
            l_alpha = -(alpha.detach() / new_q.abs().mean().detach()) * new_q.mean() + new_bc.mean()
            l_q = delta_q**2
            l_bc = (delta_q**2).detach() * bc.max() * (bc - new_bc).abs().max()
            self.descend_rho(l_alpha + l_q + l_bc, ema)
        self.actor = [x.detach() for x in new]
        self.target_q = [polyak(target, q) for target, q in zip(self.target_q, self.q, strict=True)]
        self.target_actor = polyak(self.target_actor, self.actor)


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("script", ["aspc_td3bc", "baselines/td3bc"])
def test_equals_the_released_update(float64, script, robust):
    agent = make_agent(script, robust_critic=robust)
    plain = Restatement(agent, robust)
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and noise behind
        for batch in zip(*(x[0] for x in (*agent.buffer.batches(), agent.noise)), strict=True):
            plain.train(*batch)
    networks = {
        "actor": (agent.pi, agent.theta[0], plain.actor),
        "target actor": (agent.pi, agent.target_theta[0], plain.target_actor),
    }
    assert_same_learner(agent, plain, networks, limit=1e-9)


@pytest.mark.parametrize("name", ["td3bc", "iql", "cql", "diffusionql", "fql"])
def test_aspc_with_a_constant_scale_is_its_baseline(float64, name):
    """α at rest where the baseline's constant is: from the same seed, the same state of all networks and optimizers."""
    ours, its = {"alpha_lr": 0.0}, {}
    if name == "fql":  # whose default is not its form with a normalised Q
        ours, its = ours | {"alpha_init": 1.0}, {"alpha": 1.0, "normalize_q_loss": True}
    aspc, baseline = (
        make_agent(script, batch_size=8, **arguments)
        for script, arguments in ((f"aspc_{name}", ours), (f"baselines/{name}", its))
    )
    start = {key: value.clone() for key, value in baseline.tensors().items()}
    for agent in (aspc, baseline):
        for _ in range(40 // agent.period_steps):
            agent.advance()
    theirs = aspc.tensors()
    assert not start.keys() - theirs.keys()
    for key, value in baseline.tensors().items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-10, atol=1e-12, msg=key)
    assert any((value - start[key]).abs().max() > 1e-3 for key, value in baseline.tensors().items())
