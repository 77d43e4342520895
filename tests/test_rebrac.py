"""ReBRAC against an independent restatement of the official update in plain PyTorch, and the official settings."""

import json
from collections import Counter
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from conftest import A, S, load_script, make_agent, parts, random_data
from torch import nn
from torch.nn import functional as F

import d4rl_gymnasium as d4rl

SCRIPT = "baselines/rebrac"
STEPS = 40
SETTINGS = {"actor_bc_coef": 0.2, "critic_bc_coef": 0.3, "actor_lr": 1e-3, "critic_lr": 5e-4, "discount": 0.95}


# --- One update -------------------------------------------------------------------------------------------------------


def network(function, vector: torch.Tensor, norm: bool, outputs: int) -> nn.Sequential:
    """Three hidden layers as an ordinary module with one learner's parameters; flax's LayerNorm has an ε of 1e-6."""
    sizes, layers = [S + (outputs == 1) * A, 256, 256, 256], []
    for m, n in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(m, n), nn.ReLU()] + ([nn.LayerNorm(n, eps=1e-6)] if norm else [])
    module = nn.Sequential(*layers, nn.Linear(256, outputs))
    for p, value in zip(module.parameters(), parts(function, vector), strict=True):
        p.data.copy_(value)
    return module


class Restatement:
    """One learner with modules, `backward` and torch's own Adam."""

    def __init__(self, agent):
        self.actor, self.target_actor = (network(agent.pi, agent.theta[0], False, A) for _ in range(2))
        self.q, self.target_q = ([network(agent.q, agent.phi[0, j], True, 1) for j in range(2)] for _ in range(2))
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
            y = torch.where(d.bool(), r, r + 0.95 * next_q)
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
    pairs = {
        "actor": (agent.pi, agent.theta[0], plain.actor),
        "target actor": (agent.pi, agent.target_theta[0], plain.target_actor),
        "critic 1": (agent.q, agent.phi[0, 0], plain.q[0]),
        "critic 2": (agent.q, agent.phi[0, 1], plain.q[1]),
        "target critic 1": (agent.q, agent.target_phi[0, 0], plain.target_q[0]),
        "target critic 2": (agent.q, agent.target_phi[0, 1], plain.target_q[1]),
    }
    errors = {
        name: max((p - q).abs().max().item() for p, q in zip(parts(function, ours), theirs.parameters(), strict=True))
        for name, (function, ours, theirs) in pairs.items()
    }
    assert all(error < 1e-8 for error in errors.values()), errors


def test_rows_hold_the_next_actions():
    buffer, data = make_agent(SCRIPT).buffer, random_data()
    keys = ("observations", "actions", "next_observations", "next_actions", "rewards", "terminals")
    for column, key in zip(buffer.table.split(buffer.widths, 1), keys, strict=True):
        np.testing.assert_array_equal(column.squeeze(1).numpy(), data[key])  # observations as they are


def test_next_action_counts_except_after_a_terminal(float64):
    agent = make_agent(SCRIPT, critic_bc_coef=0.5)
    s, a, next_s, next_a, r = torch.randn(4, S), torch.rand(4, A), torch.randn(4, S), torch.rand(4, A), torch.randn(4)

    def loss(d: float, next_a: torch.Tensor) -> torch.Tensor:
        rest = next_s, next_a, r, torch.full((4,), d), torch.zeros(4, A)
        y = agent.target(agent.target_theta[0], agent.target_phi[0], *rest)
        return agent.critic_loss(agent.phi[0], s, a, y)[0]

    assert loss(1.0, next_a) == loss(1.0, -next_a)
    assert abs(loss(0.0, next_a) - loss(0.0, -next_a)) > 1e-3


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


def test_layer_norm_is_that_of_flax(float64):
    """ε is 1e-6, which counts where a layer's units hardly differ: here their variance is 1e-6 as well."""
    norms = [module for module in make_agent(SCRIPT).q.module.modules() if isinstance(module, nn.LayerNorm)]
    x = torch.tensor([0.999, 1.001]).repeat(128)
    assert len(norms) == 3
    for norm in norms:
        torch.testing.assert_close(norm(x).abs(), torch.full((256,), 0.5**0.5), rtol=1e-9, atol=0)


# --- The official settings --------------------------------------------------------------------------------------------


def test_table_of_settings():
    module = load_script(SCRIPT)
    assert list(module.PENALTIES) == list(d4rl.TASKS)
    assert module.OFFICIAL == {name: getattr(module.Args(), name) for name in module.OFFICIAL}
    for i, name in enumerate(("actor_bc_coef", "critic_bc_coef")):  # the defaults are the commonest values
        counts = Counter(pair[i] for pair in module.PENALTIES.values())
        assert counts.most_common(1)[0][0] == getattr(module.Args(), name)
    names = ("actor_bc_coef", "critic_bc_coef", "batch_size", "actor_lr", "critic_lr", "discount", "reward_scale")
    expected = {
        "halfcheetah-medium-v2": (0.001, 0.01, 1024, 1e-3, 1e-3, 0.99, 1.0),
        "hopper-medium-replay-v2": (0.05, 0.5, 1024, 1e-3, 1e-3, 0.99, 1.0),
        "walker2d-random-v2": (0.01, 0.0, 1024, 1e-3, 1e-3, 0.99, 1.0),
        "maze2d-large-v1": (0.003, 0.001, 256, 3e-4, 3e-4, 0.99, 1.0),
        "antmaze-medium-play-v2": (0.001, 0.0005, 256, 3e-4, 5e-5, 0.999, 100.0),
        "antmaze-large-diverse-v2": (0.002, 0.002, 256, 3e-4, 5e-5, 0.999, 100.0),
        "hammer-cloned-v1": (0.1, 0.5, 256, 3e-4, 3e-4, 0.99, 1.0),
    }
    for env_id, values in expected.items():
        args = module.tuned(module.Args(env_id=(env_id,), tuned=True, seed=7, actor_bc_coef=99.0), module.TUNED)
        assert tuple(getattr(args, name) for name in names) == values and args.seed == 7
    with pytest.raises(SystemExit, match="no settings for Pendulum-v1"):
        module.tuned(module.Args(env_id=("Pendulum-v1",), tuned=True), module.TUNED)


def test_tuned_tasks_that_train_together_want_the_same():
    module = load_script(SCRIPT)
    several = lambda *env_ids: module.tuned(module.Args(env_id=env_ids, tuned=True), module.TUNED)  # noqa: E731
    mazes = several("maze2d-umaze-v1", "maze2d-medium-v1", "maze2d-large-v1")
    assert replace(mazes, env_id=("maze2d-umaze-v1",)) == several("maze2d-umaze-v1")
    with pytest.raises(SystemExit, match="hopper-medium-v2 and hopper-expert-v2 want other settings"):
        several("hopper-medium-v2", "hopper-expert-v2")


def test_tuned_run_trains_on_what_it_records(tmp_path, monkeypatch):
    """On an AntMaze task: rewards times 100 and next actions reach the agent, and a resumed run has the same."""
    rng, rows = np.random.default_rng(0), 300
    raw = {
        "observations": rng.normal(size=(rows, 29)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 8)).astype(np.float32),
        "rewards": (rng.random(rows) < 0.1).astype(np.float32),
        "terminals": np.arange(rows) % 50 == 49,
        "timeouts": np.zeros(rows, bool),
    }
    with h5py.File(tmp_path / "rows.hdf5", "w") as file:
        for key, array in raw.items():
            file[key] = array
    module, agents = load_script(SCRIPT), []
    agent_class = module.Agent
    monkeypatch.setattr(module, "Agent", lambda *args: agents.append(agent_class(*args)) or agents[-1])
    monkeypatch.setattr("offline_run.evaluation.play", lambda policy, envs, seed, first: np.zeros(len(envs)))
    rows_path = str(tmp_path / "rows.hdf5")
    run = {"env_id": ("antmaze-umaze-v2",), "dataset_path": rows_path, "device": "cpu", "eval_workers": 0}
    module.main(module.Args(tuned=True, total_steps=20, runs_dir=str(tmp_path / "runs"), **run))
    (path,) = (tmp_path / "runs").iterdir()
    recorded = json.loads((path / "config.json").read_text())["args"]
    expected = {"actor_bc_coef": 0.003, "critic_bc_coef": 0.002, "critic_lr": 5e-5, "reward_scale": 100.0}
    assert {name: recorded[name] for name in expected} == expected
    (agent,) = agents
    _, _, next_s, next_a, rewards, _ = agent.buffer.table.split(agent.buffer.widths, 1)
    np.testing.assert_array_equal(rewards[:, 0], raw["rewards"])  # own data: a terminal last row stays
    np.testing.assert_array_equal(next_a, np.where(raw["terminals"][:, None], 0, np.roll(raw["actions"], -1, 0)))
    networks, ended = (agent.target_theta[0], agent.target_phi[0]), torch.ones(len(rewards))
    y = agent.target(*networks, next_s, next_a, rewards[:, 0], ended, torch.zeros_like(next_a))
    np.testing.assert_array_equal(y, 100 * raw["rewards"])

    (path / "result.json").unlink()  # as if killed in the final evaluation
    monkeypatch.setitem(module.PENALTIES, "antmaze-umaze-v2", (77.0, 77.0))
    module.main(module.Args(resume=str(path)))
    assert agents[1].args == agents[0].args
