"""FQL and ASPC on it: every update against an independent restatement (one seed, no vmap, no torch.func, no torchopt),
flow matching and Euler's method against a flow with a known solution, ASPC's hypergradient by central differences."""

import math

import numpy as np
import pytest
import torch
from conftest import UNEVEN, A, assert_same_learner, load_script, make_agent, parts, random_data, stop_before_alpha
from test_hypergradient import central_difference, grow, relative, step_on_alpha
from test_update import PlainAdam, Scale, copies, polyak
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

ASPC, BASELINE = "aspc_fql", "baselines/fql"

both = pytest.mark.parametrize("script", [ASPC, BASELINE])


# --- The update -------------------------------------------------------------------------------------------------------


class Restatement(Scale):
    """FQL on lists of tensors: (weight, bias) of each layer, in critics LayerNorm's two after each but the last.

    The official code's joint step: one gradient of the sum of all losses, all taken at the parameters before the step.
    """

    def __init__(self, agent, low, high):
        super().__init__(agent)
        self.half, self.middle = (high - low) / 2, (high + low) / 2
        self.student, self.teacher = copies(agent.mu, agent.theta[0]), copies(agent.v, agent.psi[0])
        self.q, self.target_q = ([copies(agent.q, x[0, j]) for j in range(2)] for x in (agent.phi, agent.target_phi))
        self.adam_student = PlainAdam(self.student)
        self.adam = PlainAdam(self.teacher + self.q[0] + self.q[1])
        self.step = 0

    @staticmethod
    def gelu(x):
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def layers(self, p, x, norm=False):
        width = 4 if norm else 2
        assert len(p) == 4 * width + 2 and all(p[i].shape[0] == 512 for i in range(0, 4 * width, width))
        for i in range(0, 4 * width, width):
            x = self.gelu(x @ p[i].T + p[i + 1])
            if norm:
                centred = x - x.mean(1, keepdim=True)
                x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * p[i + 2] + p[i + 3]
        return x @ p[-2].T + p[-1]

    def velocity(self, p, s, x, t):
        return self.layers(p, torch.cat([s, x, t], 1))

    def value(self, p, s, x):
        """x: an action scaled to [−1, 1]."""
        return self.layers(p, torch.cat([s, self.middle + self.half * x], 1), norm=True)[:, 0]

    def mu(self, p, s, z):
        return self.layers(p, torch.cat([s, z], 1))

    def policy_terms(self, p, s, z, imitated):
        x = self.mu(p, s, z)
        q = sum(self.value(q, s, x.clamp(-1, 1)) for q in self.q) / 2
        return q.mean(), q.abs().mean().detach(), F.mse_loss(x, imitated)

    def train(self, s, a, next_s, r, d, z, next_z, x0, t):
        last = self.adaptive and (self.step + 1) % 10 == 0
        teacher, q1, q2, student = (
            [x.requires_grad_() for x in p] for p in (self.teacher, *self.q, self.student)
        )
        with torch.no_grad():
            next_x = self.mu(student, next_s, next_z).clamp(-1, 1)
            next_q = torch.stack([self.value(p, next_s, next_x) for p in self.target_q])
            next_q = next_q.min(0).values if self.args.q_agg == "min" else next_q.mean(0)
            y = r + self.args.discount * (1 - d) * next_q
            imitated = z
            for i in range(10):
                imitated = imitated + 0.1 * self.velocity(teacher, s, imitated, torch.full((len(s), 1), i / 10))
            imitated = imitated.clamp(-1, 1)
        x1 = (a - self.middle) / self.half
        critic = (F.mse_loss(self.value(q1, s, x1), y) + F.mse_loss(self.value(q2, s, x1), y)) / 2
        flow = F.mse_loss(self.velocity(teacher, s, (1 - t) * x0 + t * x1, t), x1 - x0)
        others = teacher + q1 + q2
        gradients = torch.autograd.grad(critic + flow, others)

        q, scale, distillation = self.policy_terms(student, s, z, imitated)
        if self.adaptive:
            loss = -F.softplus(self.rho) * q / scale + distillation
        else:
            loss = self.args.alpha * distillation - (q / scale if self.args.normalize_q_loss else q)
        student_gradients = torch.autograd.grad(loss, student, create_graph=last)
        new_student = self.adam_student.propose(student, student_gradients, 3e-4)
        if last:
            q, scale, distillation = self.policy_terms(new_student, s, z, imitated)
            ema = 0.005 * q + 0.995 * self.ema
            alpha = F.softplus(self.rho).detach()
            self.descend_rho(-alpha * q / scale + distillation + (ema - self.ema) ** 2, ema)

        # The critics before their step, as the official code has it
        self.target_q = [polyak(target, q) for target, q in zip(self.target_q, self.q, strict=True)]
        new = [x.detach() for x in self.adam.propose(others, gradients, 3e-4)]
        k, m = len(teacher), len(q1)
        self.teacher, self.q = new[:k], [new[k : k + m], new[k + m :]]
        self.student = [x.detach() for x in new_student]
        self.step += 1


@pytest.mark.parametrize("case", ["official", "other settings and bounds"])
@both
def test_equals_an_independent_restatement(float64, script, case):
    """40 gradient steps (of other settings 20): all parameters and targets, α and the average of Q."""
    official = case == "official"
    arguments = {} if official else {"discount": 0.9, "q_agg": "min"}
    if not official and script == BASELINE:
        arguments |= {"alpha": 0.5, "normalize_q_loss": True}
    bounds = (-np.ones(A), np.ones(A)) if official else UNEVEN
    agent = make_agent(script, bounds=bounds, batch_size=8, **arguments)
    plain = Restatement(agent, *map(torch.tensor, bounds))
    for _ in range(4 if official else 2):
        agent.advance()  # leaves its batch indices and noise behind
        for step in zip(*(x[0] for x in (*agent.buffer.batches(), *agent.normal, agent.uniform)), strict=True):
            plain.train(*step)
    networks = {
        "student": (agent.mu, agent.theta[0], plain.student),
        "teacher": (agent.v, agent.psi[0], plain.teacher),
    }
    assert_same_learner(agent, plain, networks)


@both
def test_initial_weights(script):
    """Flax's variance_scaling(1, "fan_avg", "uniform"): U(−b, b), b = √(6 / (in + out)); biases 0."""
    agent = make_agent(script)
    for f, vector in ((agent.mu, agent.theta[0]), (agent.v, agent.psi[0]), (agent.q, agent.phi[0, 0])):
        params = dict(zip(f.shapes, parts(f, vector), strict=True))
        matrices = [p for p in params.values() if p.ndim == 2]
        assert len(matrices) == 5
        for w in matrices:
            bound = math.sqrt(6 / sum(w.shape))
            assert w.abs().max() <= bound
            if w.numel() > 10_000:
                assert w.abs().max() > 0.99 * bound
                assert w.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        for name, p in params.items():
            if name.endswith("bias"):
                assert (p == 0).all(), name


@both
def test_actions_of_the_data_stay_off_the_bounds(script):
    """By 1e-5 of half the range, as in the official code; what lies inside is not touched."""
    module, data = load_script(script), random_data()
    data["actions"][:2] = [[-1.0, 1.0, 0.25], [1.0, -1.0, -0.5]]
    before = data["actions"].copy()
    low, high = np.array([-1, -1, -1], np.float32), np.array([1, 1, 1], np.float32)
    agent = module.Agent(module.Args(batch_size=4), [data], low, high, "cpu")
    stored = agent.buffer.table.split(agent.buffer.widths, 1)[1]
    assert stored.abs().max().item() == pytest.approx(1 - 1e-5, abs=1e-7)
    assert torch.equal(stored[2:], torch.as_tensor(before[2:])) and stored[:2, 2].tolist() == [0.25, -0.5]
    assert (data["actions"] == before).all()  # the caller's array


@both
def test_rewards_are_shifted(script):
    """Each learner's, whichever task is its own; nothing else of the data, nor the caller's array, is touched."""
    module, tasks = load_script(script), [random_data(0), random_data(1)]
    shifted, plain = (
        module.Agent(module.Args(batch_size=4, reward_shift=shift), tasks, -np.ones(A), np.ones(A), "cpu")
        for shift in (-1.0, 0.0)
    )
    ours, theirs = (agent.buffer.table.split(agent.buffer.widths, 1) for agent in (shifted, plain))
    assert torch.equal(ours[3], theirs[3] - 1)
    assert all(torch.equal(ours[i], theirs[i]) for i in (0, 1, 2, 4))
    assert torch.equal(theirs[3][:, 0], torch.as_tensor(np.concatenate([data["rewards"] for data in tasks])))


# --- The flow ---------------------------------------------------------------------------------------------------------

# From N(0, 1) to N(m, σ²) along straight paths with independent ends, x_t is Gaussian with mean t m and variance
# (1 − t)² + t² σ², and E[x_1 − x_0 | x_t] is linear in x_t: its flow carries x to m + σ x.
MEAN, SIGMA = 0.7, 0.3


def slope(t):
    return (t * SIGMA**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * SIGMA**2)


def gaussian_velocity(x, t):
    return MEAN + slope(t) * (x - t * MEAN)


@both
def test_euler_against_the_flow_between_two_gaussians(float64, script, monkeypatch):
    module = load_script(script)
    z, times = torch.randn(40, A), []

    def velocity(x, t):
        assert t.shape == (40, 1) and (t == t[0]).all()
        times.append(t[0, 0].item())
        return gaussian_velocity(x, t)

    # Ten steps have a closed form, too: each multiplies the distance from t m.
    factor = math.prod(1 + slope(i / 10) / 10 for i in range(10))
    torch.testing.assert_close(module.euler(velocity, z), MEAN + factor * z, rtol=0, atol=1e-13)
    assert times == pytest.approx([i / 10 for i in range(10)], abs=1e-15)
    # And more steps come to the flow itself, in first order.
    errors = []
    for steps in (1000, 2000):
        monkeypatch.setattr(module, "FLOW_STEPS", steps)
        errors.append((module.euler(gaussian_velocity, z) - (MEAN + SIGMA * z)).abs().max().item())
    assert errors[1] < 2e-3 and errors[0] / errors[1] == pytest.approx(2, rel=0.02)


class LinearField(nn.Module):
    """v(s, x, t) = a + b x, for one t."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, observations, x, t):
        return self.a + self.b * x


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
@both
def test_flow_matching_finds_that_flow(float64, script, t):
    """L_flow is least where the field is E[x_1 − x_0 | x_t]: on a million samples its minimum is that line."""
    module, agent = load_script(script), make_agent(script)
    generator, n = torch.Generator().manual_seed(0), 1_000_000
    x1 = MEAN + SIGMA * torch.randn(n, 1, generator=generator)
    x0, times = torch.randn(n, 1, generator=generator), torch.full((n, 1), t)
    student = agent.mu.module
    student.action_bias, student.action_scale = torch.tensor([0.3]), torch.tensor([2.0])
    agent.v = module.Function(LinearField(0.0, 0.0))
    a = student.action_bias + student.action_scale * x1
    loss = lambda psi: agent.flow_loss(psi, torch.zeros(n, 1), a, x0, times)[0]  # noqa: E731
    origin = torch.zeros(2)
    gradient = grad(loss)(origin)
    minimum = -torch.linalg.solve(torch.func.hessian(loss)(origin), gradient)  # of a quadratic: Newton's step
    expected = torch.tensor([MEAN - slope(t) * t * MEAN, slope(t)])
    error = (minimum - expected).abs().max().item()
    assert error < 5e-3, error  # five standard errors: the residual's deviation is below 1, x_t's above 0.3


@both
def test_noise_of_a_period(script):
    agent = make_agent(script, num_seeds=2, batch_size=64)
    agent.period = lambda: None
    agent.advance()
    for normal in agent.normal:
        assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.1
        assert (normal[:, 0] != normal[:, 1]).all() and (normal[0] != normal[1]).all()
    z, next_z, x0 = agent.normal
    assert (z != next_z).all() and (z != x0).all() and (next_z != x0).all()
    t = agent.uniform
    assert t.shape == (2, 10, 64, 1) and (t >= 0).all() and (t < 1).all()
    assert abs(t.mean() - 0.5) < 0.05 and abs(t.std() - 12**-0.5) < 0.03
    assert (t[0] != t[1]).any() and (t[:, 0] != t[:, 1]).any()


# --- ASPC's hypergradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [3, 20, 2000])
def test_hypergradient_equals_central_differences(float64, updates):
    """Of the whole map ρ -> θ̃ -> L_outer, with what stands under a stop-gradient held at the present ρ."""
    agent = make_agent(ASPC, num_seeds=2, batch_size=16, alpha_interval=min(updates, 20))
    _, _, s, z, imitated = stop_before_alpha(agent)
    grow(agent.actor_adam, updates - 1)
    agent.ema.fill_(1000.0)  # so that L_Q counts
    alpha = F.softplus(agent.rho)

    def inner_gradient(alpha):
        return vmap(grad(agent.inner_loss, has_aux=True))(agent.theta, agent.phi, alpha, s, z, imitated)[0]

    def terms(rho):
        """Q(s, μ(s, z)) (K, B) and L_distill (K,) of θ̃(ρ)."""
        x = vmap(agent.mu)(agent.inner_step(inner_gradient(F.softplus(rho))), s, z)
        return vmap(agent.value)(agent.phi, s, x), (x - imitated).square().mean((1, 2))

    scale = terms(agent.rho)[0].abs().mean(1)

    def outer(rho):
        q, distillation = terms(rho)
        return -alpha * q.mean(1) / scale + distillation + (0.005 * (q.mean(1) - agent.ema)) ** 2

    metrics = step_on_alpha(agent, inner_gradient(alpha), alpha, s, z, imitated)
    assert relative(metrics["aspc/alpha_grad"], central_difference(lambda h: outer(agent.rho + h), 1e-2)) < 1e-5
