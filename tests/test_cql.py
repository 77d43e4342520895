"""CQL and ASPC on CQL against independent restatements: of the update in plain PyTorch, of the hypergradient by central
differences, of the densities by torch.distributions, of the penalty's integral by its exact value; CORL's settings."""

import functools
import json
import math
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import A, S, assert_seeds_are_independent, load_script, parts, random_data, stop_before_alpha
from test_device import NoHost
from test_update import PlainAdam
from torch import distributions
from torch.func import grad, vmap
from torch.nn import functional as F

import d4rl_gymnasium as d4rl

SCRIPTS = ["aspc_cql", "baselines/cql"]
STEPS, TOTAL = 40, 100
LOW, HIGH = np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 4.0])
LOW_, HIGH_ = torch.as_tensor(LOW), torch.as_tensor(HIGH)
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


def task_data() -> dict[str, np.ndarray]:
    """A task whose bounds are not ±1."""
    data = random_data()
    return data | {"actions": (LOW + (HIGH - LOW) * (data["actions"] + 1) / 2).astype(np.float32)}


def agent_of(script: str, **arguments):
    module = load_script(script)
    args = module.Args(**({"batch_size": 4, "total_steps": TOTAL} | arguments))
    return module.Agent(args, [task_data()], LOW, HIGH, "cpu")


# --- One update -------------------------------------------------------------------------------------------------------


class Restatement:
    """CQL as CORL has it, and ASPC by autograd through everything: one seed, plain tensors, a hand-written Adam."""

    def __init__(self, agent, adaptive):
        pick = lambda f, vectors: [p.clone() for p in parts(f, vectors)]  # noqa: E731
        self.actor = [torch.tensor(1.0), torch.tensor(-1.0), *pick(agent.pi, agent.theta[0])[2:]]  # multiplier, offset
        self.q = [pick(agent.q, agent.phi[0, j]) for j in range(2)]
        self.target_q = [pick(agent.q, agent.target_phi[0, j]) for j in range(2)]
        s = torch.as_tensor(task_data()["observations"], dtype=torch.float64)
        self.mean, self.std, self.args, self.adaptive = s.mean(0), s.std(0, correction=0) + 1e-3, agent.args, adaptive
        if not getattr(agent.args, "normalize", True):
            self.mean, self.std = torch.zeros(S), torch.ones(S)
        self.log_eta, self.log_lagrange = torch.tensor(0.0), torch.tensor(1.0)
        self.adam_actor, self.adam_q = PlainAdam(self.actor), [PlainAdam(q) for q in self.q]
        self.adam_eta, self.adam_lagrange = PlainAdam([self.log_eta]), PlainAdam([self.log_lagrange])
        self.scale, self.uniform = (HIGH_ - LOW_) / 2, distributions.Uniform(LOW_, HIGH_)
        self.transform = distributions.ComposeTransform(
            [distributions.TanhTransform(), distributions.AffineTransform((HIGH_ + LOW_) / 2, self.scale)]
        )
        if adaptive:
            self.rho = torch.tensor(math.log(math.expm1(10.0)), requires_grad=True)
            self.rho_adam = torch.optim.Adam([self.rho], lr=2e-3)
            self.rho_schedule = torch.optim.lr_scheduler.ExponentialLR(self.rho_adam, 0.01 ** (1 / (TOTAL // 10)))
            self.ema = torch.tensor(0.0)
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
            u = LOW_ + (HIGH_ - LOW_) * uniform.transpose(0, 1)
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
            (self.rho.grad,) = torch.autograd.grad(l_alpha + l_q, self.rho)
            self.rho_adam.step()
            self.rho_schedule.step()
            low, high = (math.log(math.expm1(x)) for x in (self.args.alpha_min, self.args.alpha_max))
            self.at_bound.append(not low <= self.rho.item() <= high)
            self.rho.data.clamp_(low, high)
            self.ema = new_ema.detach()

        (self.log_eta,) = self.adam_eta.propose([self.log_eta], [eta_gradient], self.args.policy_lr)
        if self.args_lagrange():  # the loss is linear in α', so that its derivative in log α' is the loss itself
            gradient = torch.as_tensor(lagrange_loss)
            (self.log_lagrange,) = self.adam_lagrange.propose([self.log_lagrange], [gradient], 3e-4)
        self.actor = [x.detach() for x in self.adam_actor.propose(p, policy_gradients, self.args.policy_lr)]
        self.q = [[x.detach() for x in q] for q in new_q]
        for j in range(2):
            self.target_q[j] = [0.995 * t + 0.005 * x for t, x in zip(self.target_q[j], self.q[j], strict=True)]

    def args_lagrange(self):
        return not self.adaptive and self.args.lagrange


@pytest.mark.parametrize(("script", "name", "arguments"), VARIANTS)
def test_equals_the_restatement(float64, script, name, arguments, record_property):
    adaptive = script == "aspc_cql"
    agent = agent_of(script, **arguments)
    plain = Restatement(agent, adaptive)
    first_rho = plain.rho.item() if adaptive else None
    columns = ("observations", "actions", "next_observations", "rewards", "terminals")
    data = [torch.as_tensor(task_data()[key], dtype=torch.float64) for key in columns]
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and random numbers behind
        for rows, noise, uniform in zip(agent.buffer.indices[0], agent.noise[0], agent.uniform[0], strict=True):
            plain.train(*(column[rows] for column in data), noise, uniform)
    pairs = {
        "actor": (parts(agent.pi, agent.theta[0]), plain.actor),
        "critic 1": (parts(agent.q, agent.phi[0, 0]), plain.q[0]),
        "critic 2": (parts(agent.q, agent.phi[0, 1]), plain.q[1]),
        "target critic 1": (parts(agent.q, agent.target_phi[0, 0]), plain.target_q[0]),
        "target critic 2": (parts(agent.q, agent.target_phi[0, 1]), plain.target_q[1]),
        "log eta": (agent.log_eta, [plain.log_eta]),
    }
    if name == "lagrange":
        pairs["log lagrange"] = (agent.log_lagrange, [plain.log_lagrange])
        assert abs(plain.log_lagrange - 1) > 1e-3
    if adaptive:
        pairs |= {"rho": (agent.rho, [plain.rho.detach()]), "ema": (agent.ema, [plain.ema])}
        assert abs(agent.rho.item() - first_rho) > 1e-4  # α did move
        assert any(plain.at_bound) == (name == "options")
    errors = {
        key: max((x - y).abs().max().item() for x, y in zip(ours, theirs, strict=True))
        for key, (ours, theirs) in pairs.items()
    }
    record_property("largest error", max(errors.values()))
    assert all(error < 1e-8 for error in errors.values()), errors
    assert (0.05 < np.mean(plain.clipped) < 0.95) == (name == "options")


# --- The hypergradient ------------------------------------------------------------------------------------------------


@functools.cache  # the tests leave the agent as it was
def agent_at(updates: int):
    """Two seeds whose next step is their `updates`-th and moves α, and what update_alpha will see."""
    agent = agent_of("aspc_cql", num_seeds=2, alpha_interval=updates, alpha_init=3.0)
    seen = stop_before_alpha(agent)
    assert agent.critic_adam.t == updates - 1
    return agent, seen


@pytest.mark.parametrize("updates", [3, 100])
def test_hypergradient_equals_central_differences(float64, updates, record_property):
    """Of the whole map ρ -> φ̃ -> L_outer, with every quantity under a stop-gradient held at its value for this ρ; and
    of its terms in Q̄ and in the penalty, one by one, as the metrics tell them."""
    agent, (g, alpha, s, actions, log_u) = agent_at(updates)
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    agent.ema.fill_(-40.0)  # far from Q̄, lest L_Q drown in the rest
    metrics = agent.update_alpha(g, alpha, s, actions, log_u)
    for name, tensor in agent.tensors().items():
        tensor.copy_(before[name])
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

    wide, narrow = ((outer(agent.rho + h) - outer(agent.rho - h)) / (2 * h) for h in (2e-3, 1e-3))
    expected = (4 * narrow - wide) / 3  # Richardson: the error falls as h^4
    ours = torch.stack([metrics["aspc/alpha_grad_q"], metrics["aspc/alpha_grad_penalty"]])
    error = ((ours - expected) / expected).abs().max().item()
    total = (metrics["aspc/alpha_grad"] / expected.sum(0) - 1).abs().max().item()
    record_property("relative error of the terms", error)
    record_property("relative error", total)
    assert error < 1e-5 and total < 1e-5


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
    affine = distributions.AffineTransform((HIGH_ + LOW_) / 2, (HIGH_ - LOW_) / 2, cache_size=1)
    transforms = [distributions.TanhTransform(cache_size=1), affine]  # cached, for they cannot invert a rounded tanh
    policy = distributions.TransformedDistribution(distributions.Normal(mean, log_std.clamp(-20, 2).exp()), transforms)
    expected = affine(transforms[0](mean + log_std.clamp(-20, 2).exp() * noise))
    actions, log_pi = agent.pi(agent.theta[0], s, noise)
    torch.testing.assert_close(actions, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_pi, policy.log_prob(expected).sum(-1), rtol=1e-12, atol=1e-12)
    assert ((actions >= LOW_) & (actions <= HIGH_)).all()
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
        for low, h, m in zip(LOW, HIGH, c.tolist(), strict=True)
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


@each_script
def test_saved_policy_acts_like_the_agent(float64, script):
    agent = agent_of(script, num_seeds=2)
    agent.advance()
    s = torch.as_tensor(task_data()["observations"], dtype=torch.float64)
    observations = s.mean(0) + 2 * s.std(0) * torch.randn(7, S)
    normalised = (observations - s.mean(0)) / (s.std(0, correction=0) + 1e-3)
    actions = [agent.pi(agent.theta[k], normalised) for k in range(2)]
    assert (actions[0] != actions[1]).all()
    for k in range(2):
        policy = agent.policy(k)
        with torch.no_grad():
            ours = load_script(script).load_policy(policy.state_dict())(observations)
            torch.testing.assert_close(ours, actions[k], rtol=0, atol=1e-12)
        agent.advance()
        with torch.no_grad():
            torch.testing.assert_close(policy(observations), actions[k], rtol=0, atol=1e-12)  # it is a copy
        actions = [agent.pi(agent.theta[k], normalised) for k in range(2)]


# --- What a graph and a group of seeds demand, with the options that the generic tests leave off ----------------------

OPTIONS = {"max_target_backup": True, "clip_diff_min": 1.0}


def options(script: str) -> dict:
    return OPTIONS | ({} if script == "aspc_cql" else {"lagrange": True, "target_action_gap": 3.0, "normalize": False})


@each_script
def test_options_stay_on_the_device_and_in_place(script):
    agent = agent_of(script, num_seeds=2, **options(script))
    before = {name: tensor.data_ptr() for name, tensor in agent.tensors().items()}
    agent.advance()
    with NoHost():
        agent.period()
    assert before == {name: tensor.data_ptr() for name, tensor in agent.tensors().items()}


@each_script
def test_seeds_are_independent(float64, script):
    together, alone = agent_of(script, num_seeds=3, **options(script)), agent_of(script, seed=1, **options(script))
    assert_seeds_are_independent(together, alone, least=1e-7)
    expected = {"log_eta", "rho", "ema"} if script == "aspc_cql" else {"log_eta", "log_lagrange"}
    assert expected <= alone.tensors().keys()


# --- CORL's settings --------------------------------------------------------------------------------------------------


def test_table_of_settings():
    module = load_script("baselines/cql")
    assert module.TUNED.keys() == d4rl.TASKS.keys()
    assert module.CORL == {name: getattr(module.Args(), name) for name in module.CORL}
    used = lambda env_id: module.tuned(module.Args(env_id=(env_id,), tuned=True, seed=7, alpha=99.0), module.TUNED)  # noqa: E731
    for env_id in module.TUNED:
        ant, maze, arm = "antmaze" in env_id, "maze2d" in env_id, env_id.endswith("v1") and "maze2d" not in env_id
        args = used(env_id)
        assert (args.alpha, args.seed) == (5.0 if ant else 1.0 if arm else 10.0, 7)
        assert args.policy_lr == (1e-4 if ant or arm else 3e-5)
        assert args.target_action_gap == (0.8 if ant else 5.0 if maze else -1.0)
        assert args.lagrange == (ant or maze)
        assert (args.max_target_backup, args.normalize) == (ant, not ant)
        assert (args.critic_layers, args.clip_diff_min) == ((5, -200.0) if ant else (3, None))
        assert args.rewards == ("10r-5" if ant else "return-range" if env_id == "hopper-medium-v2" else "raw")
    with pytest.raises(SystemExit, match="no settings for Pendulum-v1"):
        used("Pendulum-v1")


def test_settings_of_several_tasks():
    module = load_script("baselines/cql")
    used = lambda *env_ids: module.tuned(module.Args(env_id=env_ids, tuned=True), module.TUNED)  # noqa: E731
    assert used("pen-human-v1", "pen-cloned-v1").alpha == 1.0
    with pytest.raises(SystemExit, match="hopper-random-v2 and hopper-medium-v2 want other settings; train them in"):
        used("hopper-random-v2", "hopper-expert-v2", "hopper-medium-v2")


def test_changed_rewards():
    module, rng = load_script("baselines/cql"), np.random.default_rng(0)
    rewards = rng.normal(1, 1, 5000).astype(np.float32)
    terminals = np.zeros(5000, bool)
    terminals[[10, 1500, 1510]] = True  # episodes end at rows 10, 1010 (by length), 1500, 1510, 2510, 3510, 4510
    ends = np.array([11, 1011, 1501, 1511, 2511, 3511, 4511])
    returns = [part.sum(dtype=np.float64) for part in np.split(rewards, ends)[:-1]]
    scaled = module.changed_rewards(rewards, terminals, "return-range")
    np.testing.assert_allclose(scaled, rewards / (max(returns) - min(returns)) * 1000, rtol=1e-5)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(module.changed_rewards(rewards, terminals, "10r-5"), 10 * rewards - 5)
    assert module.changed_rewards(rewards, terminals, "raw") is rewards
    with pytest.raises(SystemExit, match="two episodes"):
        module.changed_rewards(rewards[:900], terminals[:900] & False, "return-range")


def test_observations_are_normalised_unless_told(float64):
    raw, normal = agent_of("baselines/cql", normalize=False), agent_of("baselines/cql")
    observations = torch.as_tensor(random_data()["observations"], dtype=torch.float64)
    assert (raw.buffer.mean[0] == 0).all() and (raw.buffer.std[0] == 1).all()
    torch.testing.assert_close(raw.buffer.table[:, :S], observations)
    torch.testing.assert_close(normal.buffer.mean[0], observations.mean(0))
    torch.testing.assert_close(normal.buffer.table[:, :S].mean(0), torch.zeros(S))
    torch.testing.assert_close(normal.buffer.table[:, :S].std(0, correction=0), torch.ones(S), rtol=0, atol=1e-3)


def test_each_task_has_a_scale_of_its_own(monkeypatch):
    """Of rewards, by its own returns: the second task's data are those of the first with rewards times 10."""
    module, agents = load_script("baselines/cql"), []
    transitions = [random_data() | {"rewards": scale * random_data()["rewards"]} for scale in (1, 10)]
    tasks = SimpleNamespace(transitions=transitions, low=-np.ones(A), high=np.ones(A))
    monkeypatch.setattr(d4rl, "load_tasks", lambda *_: tasks)
    run = {"device": "cpu", "goes_on": lambda: False, "start": lambda agent, *_: agents.append(agent)}
    monkeypatch.setattr(module, "Run", lambda args, _: SimpleNamespace(args=args, finish=lambda: None, **run))
    module.main(module.Args(env_id=("a", "b"), rewards="return-range", batch_size=4))
    first, second = agents[0].buffer.table[:, -2].chunk(2)
    torch.testing.assert_close(first, second)
    expected = module.changed_rewards(random_data()["rewards"], random_data()["terminals"], "return-range")
    np.testing.assert_array_equal(first.numpy(), expected)


def test_tuned_run_trains_on_what_it_records(tmp_path, monkeypatch, capsys):
    """And a resumed one on the same, whatever the table says by then."""
    rng, rows = np.random.default_rng(0), 300
    rewards, terminals = rng.normal(size=rows).astype(np.float32), np.arange(rows) % 50 == 49
    with h5py.File(tmp_path / "rows.hdf5", "w") as file:
        file["observations"] = rng.normal(size=(rows, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"] = rewards
        file["terminals"] = terminals
        file["timeouts"] = np.zeros(rows, bool)
    module, agents = load_script("baselines/cql"), []
    agent_class = module.Agent
    monkeypatch.setattr(module, "Agent", lambda *args: agents.append(agent_class(*args)) or agents[-1])
    run = {"env_id": ("hopper-medium-v2",), "dataset_path": str(tmp_path / "rows.hdf5"), "device": "cpu"}
    run |= {"total_steps": 20, "batch_size": 8, "runs_dir": str(tmp_path / "runs")}
    run |= {"eval_episodes": 1, "final_eval_episodes": 1, "eval_workers": 0}
    module.main(module.Args(tuned=True, policy_lr=1.0, **run))
    (path,) = (tmp_path / "runs").iterdir()
    recorded = json.loads((path / "config.json").read_text())["args"]
    expected = module.CORL | {"rewards": "return-range"}
    assert {name: recorded[name] for name in expected} == expected
    printed = capsys.readouterr().out.splitlines()[0]
    assert all(f"{name} {value}" in printed for name, value in expected.items())
    scaled = module.changed_rewards(rewards, terminals, "return-range")  # own data: a terminal last row stays
    np.testing.assert_allclose(agents[0].buffer.table[:, -2].numpy(), scaled, rtol=1e-6)
    assert agents[0].args.policy_lr == 3e-5

    (path / "result.json").unlink()  # as if killed in the final evaluation
    monkeypatch.setitem(module.TUNED, "hopper-medium-v2", {"alpha": 77.0})
    module.main(module.Args(resume=str(path), eval_workers=0))
    assert agents[1].args == agents[0].args
