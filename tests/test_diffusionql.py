"""Diffusion-QL and ASPC on it: every update against an independent restatement (one seed, no vmap, no torch.func, no
torchopt), the diffusion against closed forms, ASPC's hypergradient against central differences, and how it acts."""

import math

import numpy as np
import pytest
import torch
from conftest import UNEVEN, A, S, assert_same_learner, load_script, make_agent, stop_before_alpha
from test_hypergradient import central_difference, grow, relative, set_time, step_on_alpha
from test_update import PlainAdam, Scale, copies, polyak
from torch.func import grad, vmap
from torch.nn import functional as F

ASPC, BASELINE = "aspc_diffusionql", "baselines/diffusionql"
T = 5

both = pytest.mark.parametrize("script", [ASPC, BASELINE])


def vp_betas():
    """The schedule as its authors print it: t from 1 to T, bounds 0.1 and 10."""
    t = np.arange(1, T + 1)
    return torch.as_tensor(1 - np.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2))


# --- The update -------------------------------------------------------------------------------------------------------


class Restatement(Scale):
    """Diffusion-QL on lists of tensors: 4 of the time's network, then (weight, bias) of each layer."""

    def __init__(self, agent, low, high, steps_done):
        super().__init__(agent)
        self.half, self.middle = (high - low) / 2, (high + low) / 2
        self.actor, self.ema_actor = (copies(agent.denoise, x[0]) for x in (agent.theta, agent.target_theta))
        self.q, self.target_q = ([copies(agent.q, x[0, j]) for j in range(2)] for x in (agent.phi, agent.target_phi))
        self.adam_actor, self.adam_q = PlainAdam(self.actor), PlainAdam(self.q[0] + self.q[1])
        self.step = self.adam_actor.t = steps_done
        betas = vp_betas()
        self.alphas, self.bars = 1 - betas, torch.cumprod(1 - betas, 0)
        previous = torch.cat([torch.ones(1), self.bars[:-1]])
        self.coef_x0 = betas * previous.sqrt() / (1 - self.bars)
        self.coef_x = (1 - previous) * self.alphas.sqrt() / (1 - self.bars)
        self.variance = betas * (1 - previous) / (1 - self.bars)
        self.clipped = {"critics": [], "actor": []}

    @staticmethod
    def layers(p, x):
        for w, b in zip(p[:-2:2], p[1:-2:2], strict=True):
            x = F.linear(x, w, b)
            x = x * torch.tanh(torch.log1p(torch.exp(x)))  # Mish
        return F.linear(x, p[-2], p[-1])

    def epsilon(self, p, s, x, t):
        frequencies = torch.exp(-math.log(10000) / 7 * torch.arange(8))
        angles = t[:, None] * frequencies
        time = self.layers(p[:4], torch.cat([angles.sin(), angles.cos()], 1))
        return self.layers(p[4:], torch.cat([x, time, s], 1))

    def act(self, p, s, noise):
        """noise (B, T, A): the start, then what is added on the way to steps 3, 2, 1, 0."""
        x = noise[:, 0]
        for i, t in enumerate((4, 3, 2, 1, 0)):
            epsilon = self.epsilon(p, s, x, torch.full((len(s),), t))
            x0 = (1 / self.bars[t]).sqrt() * x - (1 / self.bars[t] - 1).sqrt() * epsilon
            x = self.coef_x0[t] * x0.clamp(-1, 1) + self.coef_x[t] * x
            if t:
                x = x + self.variance[t].sqrt() * noise[:, i + 1]
        return self.middle + self.half * x.clamp(-1, 1)

    def value(self, p, s, a):
        return self.layers(p, torch.cat([s, a], 1))[:, 0]

    def clip(self, gradients, which):
        norm = torch.cat([g.detach().flatten() for g in gradients]).norm()
        factor = torch.clamp(self.args.grad_norm / (norm + 1e-6), max=1.0)
        self.clipped[which].append(factor.item() < 1)
        return [factor * g for g in gradients]

    def policy_terms(self, p, s, a, chain, epsilon, t, i):
        pi = self.act(p, s, chain)
        x = self.bars[t].sqrt()[:, None] * (a - self.middle) / self.half + (1 - self.bars[t]).sqrt()[:, None] * epsilon
        q, other = self.value(self.q[i], s, pi), self.value(self.q[1 - i], s, pi)
        return q.mean(), other.abs().mean().detach(), F.mse_loss(self.epsilon(p, s, x, t), epsilon)

    def train(self, s, a, next_s, r, d, chain, next_chains, epsilon, t, i):
        n = next_chains.shape[1]
        with torch.no_grad():
            repeated = next_s.repeat_interleave(n, 0)
            next_a = self.act(self.ema_actor, repeated, next_chains.flatten(0, 1))
            best = [self.value(p, repeated, next_a).view(-1, n).max(1).values for p in self.target_q]
            y = r + 0.99 * (1 - d) * torch.min(*best)
        p = [x.requires_grad_() for x in self.q[0] + self.q[1]]
        half = len(self.q[0])
        loss = F.mse_loss(self.value(p[:half], s, a), y) + F.mse_loss(self.value(p[half:], s, a), y)
        new = self.adam_q.propose(p, self.clip(torch.autograd.grad(loss, p), "critics"), 3e-4)
        self.q = [[x.detach() for x in new[:half]], [x.detach() for x in new[half:]]]

        p = [x.requires_grad_() for x in self.actor]
        noise = (s, a, chain, epsilon, t, i)
        q, scale, diffusion = self.policy_terms(p, *noise)
        alpha = F.softplus(self.rho) if self.adaptive else self.args.eta
        last = self.adaptive and (self.step + 1) % 10 == 0
        gradients = torch.autograd.grad(-alpha * q / scale + diffusion, p, create_graph=last)
        learning_rate = 3e-4 if self.adaptive else self.args.actor_lr
        new = self.adam_actor.propose(p, self.clip(gradients, "actor"), learning_rate)
        if last:
            q, scale, diffusion = self.policy_terms(new, *noise)
            ema = 0.005 * q + 0.995 * self.ema
            self.descend_rho(-alpha.detach() * q / scale + diffusion + (ema - self.ema) ** 2, ema)
        self.actor = [x.detach() for x in new]
        if self.step % 5 == 0 and self.step >= 1000:
            self.ema_actor = polyak(self.ema_actor, self.actor)
        self.target_q = [polyak(target, q) for target, q in zip(self.target_q, self.q, strict=True)]
        self.step += 1


@pytest.mark.parametrize("case", ["official", "max backup, other bounds, much clipped, past step 1000"])
@both
def test_equals_an_independent_restatement(float64, script, case):
    """40 gradient steps: all parameters and targets, α and the average of Q."""
    official = case == "official"
    steps_done, arguments = (0, {}) if official else (980, {"grad_norm": 0.3, "max_q_backup": True})
    if not official and script == BASELINE:
        arguments |= {"eta": 2.0, "actor_lr": 1e-3}
    bounds = (-np.ones(A), np.ones(A)) if official else UNEVEN
    agent = make_agent(script, bounds=bounds, batch_size=8, **arguments)
    set_time(agent.actor_adam, steps_done)
    first_ema = agent.target_theta.clone()
    plain = Restatement(agent, *map(torch.tensor, bounds), steps_done)
    for _ in range(4):
        agent.advance()  # leaves its batch indices and noise behind
        for *inputs, i in zip(*(x[0] for x in (*agent.buffer.batches(), *agent.noise)), strict=True):
            plain.train(*inputs, i.item())
    networks = {
        "actor": (agent.denoise, agent.theta[0], plain.actor),
        "target actor": (agent.denoise, agent.target_theta[0], plain.ema_actor),
    }
    assert_same_learner(agent, plain, networks, limit=1e-9)
    assert (agent.target_theta != first_ema).any() == (not official)
    if not official:  # what was compared did happen
        assert all(any(factors) for factors in plain.clipped.values())


def test_target_actor_starts_at_step_1000_and_moves_at_every_fifth(float64):
    agent = make_agent(BASELINE)
    rates = []
    for steps_taken in range(1, 1022):
        agent.actor_adam.t.fill_(steps_taken)
        rates.append(agent.target_actor_rate().item())
    assert [step for step, rate in enumerate(rates) if rate] == [1000, 1005, 1010, 1015, 1020]  # counted from 0
    assert {rate for rate in rates if rate} == {0.005}


# --- The diffusion ----------------------------------------------------------------------------------------------------


@both
def test_schedule(script):
    module = load_script(script)
    assert module.T == T and module.BETAS == pytest.approx(vp_betas().tolist(), rel=1e-14)
    u = (np.arange(T) + 1) / T
    assert module.ALPHA_BARS == pytest.approx(np.exp(-0.1 * u - 9.9 * u**2 / 2), rel=1e-14)
    agent = make_agent(script)
    torch.testing.assert_close(agent.alpha_bars, torch.tensor(module.ALPHA_BARS))


@both
def test_clock(float64, script):
    clock = make_agent(script).denoise.module.clock
    expected = [[f(t / 10000 ** (i / 7)) for f in (math.sin, math.cos) for i in range(8)] for t in range(T)]
    torch.testing.assert_close(clock, torch.tensor(expected), rtol=0, atol=1e-15)


@both
def test_sampler_is_the_posterior(float64, script):
    """q(x_{t−1} | x_t, x_0) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x_0): the product of two Gaussians, by their precisions."""
    module, betas = load_script(script), vp_betas()
    bars = torch.cumprod(1 - betas, 0)
    x0, noise, seen = torch.rand(40, A) * 2 - 1, torch.randn(40, T, A), {}

    def denoise(s, x, t):  # the true noise, if x0 is the truth
        seen[t] = x
        return (x - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt()

    result = module.sample(denoise, None, noise)
    assert list(seen) == [4, 3, 2, 1, 0]
    assert torch.equal(seen[4], noise[:, 0])
    for t in range(1, T):
        forward = (1 - betas[t]) / betas[t]  # the precision in x_{t−1} of q(x_t | x_{t−1})
        prior = 1 / (1 - bars[t - 1])
        mean = (forward * seen[t] / (1 - betas[t]).sqrt() + prior * bars[t - 1].sqrt() * x0) / (forward + prior)
        expected = mean + noise[:, T - t] / (forward + prior).sqrt()
        torch.testing.assert_close(seen[t - 1], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-13)


@both
def test_sampler_clips_the_estimate_of_x0(float64, script):
    """At every step, not only at the end: what leads beyond 1 leads to 1."""
    module, bars = load_script(script), torch.cumprod(1 - vp_betas(), 0)
    noise, paths = torch.randn(40, T, A), []
    for x0 in (1.0, 7.0):
        path = []
        result = module.sample(
            lambda s, x, t: path.append(x) or (x - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt(), None, noise  # noqa: B023
        )
        paths.append(torch.stack([*path, result]))
    torch.testing.assert_close(paths[0], paths[1], rtol=0, atol=1e-13)
    assert paths[1][-1].max() == 1


@both
def test_noise_of_a_period(script):
    agent = make_agent(script, num_seeds=2, batch_size=64, max_q_backup=True)
    agent.period = lambda: None
    counts = []
    for _ in range(20):
        agent.advance()
        counts.append(agent.noise.i.clone())
        assert agent.noise.t.unique().tolist() == [0, 1, 2, 3, 4]
    coins = torch.stack(counts)  # (20, 2, 10)
    assert coins.unique().tolist() == [0, 1] and 0.4 < coins.float().mean() < 0.6
    assert (coins[:, 0] != coins[:, 1]).any()  # each seed its own
    shares = agent.noise.t.flatten().bincount() / agent.noise.t.numel()
    assert shares.sub(1 / T).abs().max() < 0.05
    assert agent.noise.next_chains.shape == (2, 10, 64, 10, T, A)
    for normal in (agent.noise.chain, agent.noise.next_chains, agent.noise.epsilon):
        assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.1
        assert (normal[:, 0] != normal[:, 1]).all() and (normal[0] != normal[1]).all()


# --- ASPC's hypergradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [3, 20, 2000])
def test_hypergradient_equals_central_differences(float64, updates):
    """Of the whole map ρ -> θ̃ -> L_outer, with what stands under a stop-gradient, also the clipping's factor, held at
    the present ρ."""
    agent = make_agent(ASPC, num_seeds=2, alpha_interval=min(updates, 20), grad_norm=0.3)
    given = stop_before_alpha(agent)
    grow(agent.actor_adam, updates - 1)
    agent.ema.fill_(1000.0)  # so that L_Q counts
    s, a, noise = given[-3:]
    alpha = F.softplus(agent.rho)

    def gradient(rho):
        return vmap(grad(agent.inner_loss, has_aux=True))(agent.theta, agent.phi, F.softplus(rho), s, a, noise)[0]

    def q_term(theta):
        return vmap(agent.q_term)(theta, agent.phi, s, noise)

    factor = 0.3 / (gradient(agent.rho).norm(dim=1, keepdim=True) + 1e-6)
    assert (factor < 1).all()
    _, scale = q_term(agent.inner_step(factor * gradient(agent.rho)))

    def outer(rho):
        new_theta = agent.inner_step(factor * gradient(rho))
        q, _ = q_term(new_theta)
        diffusion = vmap(agent.diffusion_loss)(new_theta, s, a, noise)
        return -alpha * q / scale + diffusion + (0.005 * (q - agent.ema)) ** 2

    metrics = step_on_alpha(agent, *given)
    assert relative(metrics["aspc/alpha_grad"], central_difference(lambda h: outer(agent.rho + h), 1e-2)) < 1e-6


# --- Acting -----------------------------------------------------------------------------------------------------------


@both
def test_policy_draws_one_of_fifty_by_softmax_of_the_smaller_target_q(float64, script, monkeypatch):
    agent = make_agent(script)
    agent.advance()
    plain = Restatement(agent, -torch.ones(A), torch.ones(A), 0)
    observations, given = torch.randn(4, S), []

    def multinomial(probabilities, count, generator):
        given.append((probabilities, count, generator))
        return torch.tensor([[7], [0], [49], [7]])

    monkeypatch.setattr(torch, "multinomial", multinomial)
    generator = torch.Generator().manual_seed(3)
    actions = agent.policy(0)(observations, generator)
    ((probabilities, count, used),) = given
    assert count == 1 and used is generator

    noise = torch.randn(4 * 50, T, A, generator=torch.Generator().manual_seed(3))
    s = observations.repeat_interleave(50, 0)
    candidates = plain.act(plain.actor, s, noise)
    q = torch.min(*(plain.value(p, s, candidates) for p in plain.target_q)).view(4, 50)
    torch.testing.assert_close(probabilities, q.softmax(1), rtol=0, atol=1e-12)
    expected = candidates.view(4, 50, A)[torch.arange(4), [7, 0, 49, 7]]
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-12)
