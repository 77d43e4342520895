"""IQL and ASPC on IQL against independent restatements: of the update in plain PyTorch, of the hypergradient by central
differences, of the policy's density by torch.distributions, of the schedule by torch's own, of CORL's settings."""

import functools
import json
import math
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import A, S, assert_seeds_are_independent, load_script, make_agent, parts, random_data, stop_before_alpha
from test_device import NoHost
from test_update import PlainAdam
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

import d4rl_gymnasium as d4rl

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


class Restatement:
    """IQL as CORL has it, and ASPC by autograd through everything: one seed, ordinary modules, a hand-written Adam."""

    def __init__(self, agent, adaptive, scale=3.0, deterministic=False, actor_dropout=0.0):
        def network(tensors):
            sizes = [tensors[0].shape[1], 256, 256, len(tensors[-1])]
            module = nn.Sequential(*(nn.Linear(m, n) for m, n in zip(sizes, sizes[1:], strict=False)))
            for p, value in zip(module.parameters(), tensors, strict=True):
                p.data.copy_(value)
            return module

        s = torch.as_tensor(random_data()["observations"], dtype=torch.float64)
        self.mean, self.std = s.mean(0), s.std(0, correction=0) + 1e-3
        self.v = network(parts(agent.v, agent.psi[0]))
        self.q, self.target_q = ([network(parts(agent.q, agent.phi[0, j])) for j in range(2)] for _ in range(2))
        self.actor = network(parts(agent.pi, agent.theta[0])[1:])
        self.log_std = nn.Parameter(torch.zeros(A))
        self.policy = [self.log_std, *self.actor.parameters()]
        self.adam_v, self.adam_policy = PlainAdam(list(self.v.parameters())), PlainAdam(self.policy)
        self.adam_q = [PlainAdam(list(q.parameters())) for q in self.q]
        self.rate = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)  # carries the schedule only
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.rate, TOTAL)
        self.adaptive, self.scale, self.deterministic = adaptive, torch.tensor(scale), deterministic
        self.actor_dropout = actor_dropout
        self.rho = torch.tensor(math.log(math.expm1(scale)), requires_grad=True)
        self.rho_adam = torch.optim.Adam([self.rho], lr=2e-3)
        self.rho_schedule = torch.optim.lr_scheduler.ExponentialLR(self.rho_adam, 0.01 ** (1 / (TOTAL // 10)))
        self.ema = torch.tensor(0.0)
        self.iteration, self.clipped = 0, []

    def values(self, module, s, *a):
        layers = list(module)
        x = torch.cat([(s - self.mean) / self.std, *a], 1)
        return layers[2](layers[1](layers[0](x).relu()).relu())[:, 0]

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
            (self.rho.grad,) = torch.autograd.grad(l_alpha + L_Q_COEF * l_q, self.rho)
            self.rho_adam.step()
            self.rho_schedule.step()
            self.ema = new_ema.detach()
        for p, value in zip(self.policy, new, strict=True):
            p.data.copy_(value.detach())
        self.rate.step()
        self.schedule.step()


@each_script
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_restatement(float64, script, variant):
    adaptive, arguments = script == "aspc_iql", VARIANTS[variant]
    agent = agent_of(script, total_steps=TOTAL, **arguments)
    plain = Restatement(agent, adaptive, **arguments)
    first_rho = plain.rho.item()
    columns = ("observations", "actions", "next_observations", "rewards", "terminals")
    data = [torch.as_tensor(random_data()[key], dtype=torch.float64) for key in columns]
    for _ in range(STEPS // agent.period_steps):
        agent.advance()  # leaves its batch indices and noise behind
        for rows, noise in zip(agent.buffer.indices[0], agent.noise[0], strict=True):
            plain.train(*(column[rows] for column in data), noise)
    pairs = {
        "actor": (agent.pi, agent.theta[0], plain.policy),
        "V": (agent.v, agent.psi[0], plain.v.parameters()),
        "critic 1": (agent.q, agent.phi[0, 0], plain.q[0].parameters()),
        "critic 2": (agent.q, agent.phi[0, 1], plain.q[1].parameters()),
        "target critic 1": (agent.q, agent.target_phi[0, 0], plain.target_q[0].parameters()),
        "target critic 2": (agent.q, agent.target_phi[0, 1], plain.target_q[1].parameters()),
    }
    errors = {
        name: max((p - q).abs().max().item() for p, q in zip(parts(function, ours), theirs, strict=True))
        for name, (function, ours, theirs) in pairs.items()
    }
    if adaptive:
        errors |= {"rho": abs(agent.rho.item() - plain.rho.item()), "ema": abs(agent.ema.item() - plain.ema.item())}
        assert abs(agent.rho.item() - first_rho) > 1e-4  # α did move
    assert all(error < 1e-8 for error in errors.values()), errors
    assert np.mean(plain.clipped) == 0 if variant == "Gaussian" else 0.02 < np.mean(plain.clipped) < 0.9


# --- The hypergradient ------------------------------------------------------------------------------------------------


@functools.cache  # the tests leave the agent as it was
def agent_at(updates: int, scale: float, deterministic: bool = False):
    """Two seeds whose next policy update is their `updates`-th and moves α, and what it will see."""
    agent = agent_of("aspc_iql", scale, num_seeds=2, alpha_interval=updates, deterministic=deterministic)
    seen = stop_before_alpha(agent)
    assert agent.actor_adam.t == updates - 1
    return agent, seen


@pytest.mark.parametrize(
    ("updates", "scale", "deterministic"),
    [(3, 3.0, False), (100, 3.0, False), (3, 200.0, False), (100, 200.0, True)],
)
def test_hypergradient_equals_central_differences(float64, updates, scale, deterministic):
    """Of the whole map ρ -> θ̃ -> L_outer, with every quantity under a stop-gradient held at its value for this ρ."""
    agent, seen = agent_at(updates, scale, deterministic)
    _, alpha, advantage, _, s, a, noise, actor_rate = seen
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    metrics = agent.update_alpha(*seen)
    for name, tensor in agent.tensors().items():
        tensor.copy_(before[name])
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
    error = ((metrics["aspc/alpha_grad"] - expected) / expected).abs().max().item()
    assert error < 1e-5


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
    module = load_script(script)
    low, high = np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 4.0])
    agent = module.Agent(module.Args(batch_size=4), [random_data()], low, high, "cpu")
    theta, s, noise = agent.theta[0], torch.randn(64, S), torch.rand(64, 2, 1)
    parts(agent.pi, theta)[0].copy_(torch.tensor([-25.0, 0.3, 3.0]))
    mu, _ = agent.pi(theta, s)
    assert ((mu > torch.tensor(low)) & (mu < torch.tensor(high))).all()
    std = torch.tensor([-20.0, 0.3, 2.0]).exp() * torch.tensor([2.0, 1.0, 2.0])
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


@each_script
@pytest.mark.parametrize("deterministic", [False, True])
def test_saved_actor_acts_like_the_agent(float64, script, deterministic):
    agent = make_agent(script, num_seeds=2, actor_dropout=0.1, deterministic=deterministic)
    agent.advance()
    s = torch.as_tensor(random_data()["observations"], dtype=torch.float64)
    observations = s.mean(0) + 2 * s.std(0) * torch.randn(7, S)
    normalised = (observations - s.mean(0)) / (s.std(0, correction=0) + 1e-3)
    for k in range(2):
        saved = agent.policy(k).state_dict()
        with torch.no_grad():
            actions = load_script(script).load_policy(saved)(observations)
        torch.testing.assert_close(actions, agent.pi(agent.theta[k], normalised)[0], rtol=0, atol=1e-12)
        assert (saved["actor.log_std"] == 0).all() == deterministic


# --- What a graph and a group of seeds demand, with the options that the generic tests leave off ----------------------


@each_script
@pytest.mark.parametrize("deterministic", [False, True])
def test_options_stay_on_the_device_and_in_place(script, deterministic):
    agent = make_agent(script, num_seeds=2, actor_dropout=0.1, deterministic=deterministic)
    before = {name: tensor.data_ptr() for name, tensor in agent.tensors().items()}
    agent.advance()
    with NoHost():
        agent.period()
    assert before == {name: tensor.data_ptr() for name, tensor in agent.tensors().items()}


@each_script
def test_seeds_with_dropout_are_independent(float64, script):
    together, alone = make_agent(script, num_seeds=3, actor_dropout=0.1), make_agent(script, seed=1, actor_dropout=0.1)
    assert_seeds_are_independent(together, alone)
    if script.startswith("aspc"):
        assert {"rho", "ema"} <= alone.tensors().keys()


# --- CORL's settings --------------------------------------------------------------------------------------------------


def test_table_of_settings():
    module = load_script("baselines/iql")
    assert module.TUNED.keys() == d4rl.TASKS.keys()
    assert module.CORL == {name: getattr(module.Args(), name) for name in module.CORL}
    used = lambda env_id: module.tuned(module.Args(env_id=(env_id,), tuned=True, seed=7, beta=99.0), module.TUNED)  # noqa: E731
    for env_id in module.TUNED:
        beta = 10.0 if "antmaze" in env_id else 6.0 if env_id == "hopper-medium-expert-v2" else 3.0
        assert (used(env_id).beta, used(env_id).seed) == (beta, 7)
    assert used("antmaze-large-play-v2").rewards == "minus-one"
    assert (used("door-human-v1").expectile, used("door-human-v1").actor_dropout) == (0.8, 0.1)
    assert [env_id for env_id in module.TUNED if used(env_id).deterministic] == [
        "hopper-medium-v2", "hopper-medium-replay-v2"
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="no settings for Pendulum-v1"):
        used("Pendulum-v1")


def test_settings_of_several_tasks():
    module = load_script("baselines/iql")
    used = lambda *env_ids: module.tuned(module.Args(env_id=env_ids, tuned=True), module.TUNED)  # noqa: E731
    assert used("pen-human-v1", "pen-cloned-v1").expectile == 0.8
    with pytest.raises(SystemExit, match="hopper-random-v2 and hopper-medium-v2 want other settings; train them in"):
        used("hopper-random-v2", "hopper-expert-v2", "hopper-medium-v2")


def test_changed_rewards():
    module, rng = load_script("baselines/iql"), np.random.default_rng(0)
    rewards = rng.normal(1, 1, 5000).astype(np.float32)
    terminals = np.zeros(5000, bool)
    terminals[[10, 1500, 1510]] = True  # episodes end at rows 10, 1010 (by length), 1500, 1510, 2510, 3510, 4510
    ends = np.array([11, 1011, 1501, 1511, 2511, 3511, 4511])
    returns = [part.sum(dtype=np.float64) for part in np.split(rewards, ends)[:-1]]
    scaled = module.changed_rewards(rewards, terminals, "return-range")
    np.testing.assert_allclose(scaled, rewards / (max(returns) - min(returns)) * 1000, rtol=1e-5)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(module.changed_rewards(rewards, terminals, "minus-one"), rewards - 1)
    assert module.changed_rewards(rewards, terminals, "raw") is rewards
    with pytest.raises(SystemExit, match="two episodes"):
        module.changed_rewards(rewards[:900], terminals[:900] & False, "return-range")


def test_each_task_has_a_scale_of_its_own(monkeypatch):
    """Of rewards, by its own returns: the second task's data are those of the first with rewards times 10."""
    module, agents = load_script("baselines/iql"), []
    transitions = [random_data() | {"rewards": scale * random_data()["rewards"]} for scale in (1, 10)]
    tasks = SimpleNamespace(transitions=transitions, low=-np.ones(A), high=np.ones(A))
    monkeypatch.setattr(d4rl, "load_tasks", lambda *_: tasks)
    run = {"device": "cpu", "goes_on": lambda: False, "start": lambda agent, *_: agents.append(agent)}
    monkeypatch.setattr(module, "Run", lambda args, _: SimpleNamespace(args=args, finish=lambda: None, **run))
    module.main(module.Args(env_id=("a", "b"), rewards="return-range"))
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
    module, agents = load_script("baselines/iql"), []
    agent_class = module.Agent
    monkeypatch.setattr(module, "Agent", lambda *args: agents.append(agent_class(*args)) or agents[-1])
    run = {"env_id": ("hopper-medium-v2",), "dataset_path": str(tmp_path / "rows.hdf5"), "device": "cpu"}
    run |= {"total_steps": 20, "batch_size": 32, "runs_dir": str(tmp_path / "runs")}
    run |= {"eval_episodes": 1, "final_eval_episodes": 1, "eval_workers": 0}
    module.main(module.Args(tuned=True, **run))
    (path,) = (tmp_path / "runs").iterdir()
    recorded = json.loads((path / "config.json").read_text())["args"]
    expected = {"beta": 3.0, "expectile": 0.7, "deterministic": True, "actor_dropout": 0.0, "tau": 0.001}
    expected |= {"rewards": "return-range"}
    assert {name: recorded[name] for name in expected} == expected
    printed = capsys.readouterr().out.splitlines()[0]
    assert all(f"{name} {value}" in printed for name, value in expected.items())
    scaled = module.changed_rewards(rewards, terminals, "return-range")  # own data: a terminal last row stays
    np.testing.assert_allclose(agents[0].buffer.table[:, -2].numpy(), scaled, rtol=1e-6)
    assert agents[0].args.tau == 0.001

    (path / "result.json").unlink()  # as if killed in the final evaluation
    monkeypatch.setitem(module.TUNED, "hopper-medium-v2", {"beta": 77.0})
    module.main(module.Args(resume=str(path), eval_workers=0))
    assert agents[1].args == agents[0].args
