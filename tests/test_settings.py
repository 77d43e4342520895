"""Published settings: --tuned gives each task its own, value by value; tasks train together where they want the same; a
run trains on what it records, resumed or not. And the rewards that some of them change."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import A, load_script, random_data, write_dataset

import d4rl_gymnasium as d4rl
from benchmark.scripts import flags
from offline_run import parse

IQL, CQL, REBRAC, A2PR = (f"baselines/{name}" for name in ("iql", "cql", "rebrac", "a2pr"))
DIFFUSIONQL, FQL, ASPC_FQL = "baselines/diffusionql", "baselines/fql", "aspc_fql"

each_tuned = pytest.mark.parametrize("script", [IQL, CQL, REBRAC, A2PR, DIFFUSIONQL, FQL, ASPC_FQL])
each_corl = pytest.mark.parametrize("script", [IQL, CQL])


def used(script: str, *env_ids: str, **given):
    """The arguments with which the script trains these tasks when --tuned is given beside others."""
    module = load_script(script)
    return module.tuned(module.Args(env_id=env_ids, tuned=True, **given), module.TUNED)


# --- The tables -------------------------------------------------------------------------------------------------------


@each_tuned
def test_all_that_the_table_has_is_set(script):
    """Over whatever else is asked for; and nothing but that."""
    module = load_script(script)
    for env_id, settings in module.TUNED.items():
        args = module.Args(env_id=(env_id,), tuned=True, seed=7)
        other = {name: None for name in settings}
        assert module.tuned(replace(args, **other), module.TUNED) == replace(args, **settings)


@pytest.mark.parametrize(("script", "table"), [(IQL, "CORL"), (CQL, "CORL"), (REBRAC, "OFFICIAL")])
def test_what_settings_differ_from_are_the_defaults(script, table):
    module = load_script(script)
    defaults = getattr(module, table)
    assert defaults == {name: getattr(module.Args(), name) for name in defaults}


def test_iql():
    assert load_script(IQL).TUNED.keys() == d4rl.TASKS.keys()
    for env_id in d4rl.TASKS:
        beta = 10.0 if "antmaze" in env_id else 6.0 if env_id == "hopper-medium-expert-v2" else 3.0
        assert used(IQL, env_id).beta == beta
    assert used(IQL, "antmaze-large-play-v2").rewards == "minus-one"
    for env_id in ("door-human-v1", "pen-human-v1", "pen-cloned-v1"):
        assert (used(IQL, env_id).expectile, used(IQL, env_id).actor_dropout) == (0.8, 0.1)
    assert [env_id for env_id in d4rl.TASKS if used(IQL, env_id).deterministic] == [
        "hopper-medium-v2", "hopper-medium-replay-v2"
    ]  # fmt: skip


def test_cql():
    assert load_script(CQL).TUNED.keys() == d4rl.TASKS.keys()
    for env_id in d4rl.TASKS:
        ant, maze, arm = "antmaze" in env_id, "maze2d" in env_id, env_id.endswith("v1") and "maze2d" not in env_id
        args = used(CQL, env_id)
        assert args.alpha == (5.0 if ant else 1.0 if arm else 10.0)
        assert args.policy_lr == (1e-4 if ant or arm else 3e-5)
        assert args.target_action_gap == (0.8 if ant else 5.0 if maze else -1.0)
        assert args.lagrange == (ant or maze)
        assert (args.max_target_backup, args.normalize) == (ant, not ant)
        assert (args.critic_layers, args.clip_diff_min) == ((5, -200.0) if ant else (3, None))
        assert args.rewards == ("10r-5" if ant else "return-range" if env_id == "hopper-medium-v2" else "raw")


def test_rebrac():
    module = load_script(REBRAC)
    assert list(module.PENALTIES) == list(d4rl.TASKS)
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
        assert tuple(getattr(used(REBRAC, env_id), name) for name in names) == values


def test_a2pr():
    module, names = load_script(A2PR), ("alpha", "mask", "vae_weight", "discount")
    assert tuple(getattr(module.Args(), name) for name in names) == (2.5, 1.0, 1.0, 0.99)
    expected = {
        "halfcheetah-medium-v2": (40.0, 1.0, 1.0, 0.99),
        "hopper-medium-v2": (2.5, 0.4, 1.0, 0.995),
        "walker2d-medium-v2": (2.5, 1.0, 1.5, 0.99),
    }
    assert module.TUNED.keys() == expected.keys()
    for env_id, values in expected.items():
        assert tuple(getattr(used(A2PR, env_id), name) for name in names) == values


def test_diffusionql():
    tasks = load_script(DIFFUSIONQL).TUNED
    assert set(tasks) <= set(d4rl.TASKS)
    for env_id in tasks:
        args = used(DIFFUSIONQL, env_id)
        assert args.grad_norm >= 1 and args.rewards in ("raw", "antmaze", "standardised")


@pytest.mark.parametrize("script", [FQL, ASPC_FQL])
def test_fql(script):
    tasks = load_script(script).TUNED
    assert set(tasks) <= set(d4rl.ALL_TASKS) and set(d4rl.OGBENCH_TASKS) <= set(tasks)
    for env_id in tasks:
        args = used(script, env_id)
        assert args.discount == (0.995 if "giant" in env_id else 0.99)
        mean = env_id in d4rl.TASKS and env_id.startswith("antmaze")
        assert (args.q_agg, args.reward_shift) == (("mean", -1.0) if mean else ("min", 0.0))
        if script == FQL:
            hand = env_id.endswith("-v1")
            assert args.alpha >= 3e3 if hand else args.alpha == (3 if "large" in env_id and mean else 10)
    if script == FQL:
        assert set(load_script(FQL).ALPHAS) <= set(tasks)


# --- Several tasks ----------------------------------------------------------------------------------------------------

SEVERAL = {  # tasks that want the same, one that wants other settings than they, and one for which there are none
    IQL: (("hopper-random-v2", "hopper-expert-v2"), "hopper-medium-v2", "Pendulum-v1"),
    CQL: (("hopper-random-v2", "hopper-expert-v2"), "hopper-medium-v2", "Pendulum-v1"),
    REBRAC: (("maze2d-umaze-v1", "maze2d-medium-v1", "maze2d-large-v1"), "hopper-expert-v2", "Pendulum-v1"),
    A2PR: (("hopper-medium-v2",), "walker2d-medium-v2", "hopper-expert-v2"),
    DIFFUSIONQL: (("halfcheetah-medium-v2", "hopper-medium-v2"), "walker2d-medium-v2", "hopper-random-v2"),
    FQL: (("pen-human-v1", "pen-cloned-v1"), "pen-expert-v1", "hopper-medium-v2"),
    ASPC_FQL: (("pen-human-v1", "pen-expert-v1"), "antmaze-large-play-v2", "hopper-medium-v2"),
}


@each_tuned
def test_several_tasks_want_the_same(script):
    same, other, unknown = SEVERAL[script]
    assert used(script, *same) == replace(used(script, same[0]), env_id=same)
    with pytest.raises(SystemExit, match=f"{same[0]} and {other} want other settings; train them in runs of their own"):
        used(script, *same, other)
    for env_ids in ((unknown,), (*same, unknown)):
        with pytest.raises(SystemExit, match=f"there are no settings for {unknown}; set --[a-z-]+, .* yourself"):
            used(script, *env_ids)


# --- Rewards ----------------------------------------------------------------------------------------------------------


def test_return_range():
    rng = np.random.default_rng(0)
    rewards = rng.normal(1, 1, 5000).astype(np.float32)
    terminals = np.zeros(5000, bool)
    terminals[[10, 1500, 1510]] = True  # episodes end at rows 10, 1010 (by length), 1500, 1510, 2510, 3510, 4510
    ends = np.array([11, 1011, 1501, 1511, 2511, 3511, 4511])
    returns = [part.sum(dtype=np.float64) for part in np.split(rewards, ends)[:-1]]
    assert d4rl.return_range(rewards, terminals) == pytest.approx(max(returns) - min(returns), rel=1e-12)
    with pytest.raises(d4rl.DatasetError, match="two episodes"):
        d4rl.return_range(rewards[:900], terminals[:900] & False)
    with pytest.raises(d4rl.DatasetError, match="two episodes"):
        d4rl.return_range(np.ones(2000, np.float32), np.zeros(2000, bool))


@each_corl
def test_corls_rewards(script):
    data = random_data()
    rewards, terminals = data["rewards"], data["terminals"]
    change = lambda name: load_script(script).changed_rewards(rewards, terminals, name)  # noqa: E731
    assert change("raw") is rewards
    scaled = change("return-range")
    np.testing.assert_allclose(scaled, rewards / d4rl.return_range(rewards, terminals) * 1000, rtol=1e-5)
    assert scaled.dtype == np.float32
    name, expected = {IQL: ("minus-one", rewards - 1), CQL: ("10r-5", 10 * rewards - 5)}[script]
    np.testing.assert_array_equal(change(name), expected)


def test_diffusionqls_rewards():
    change = load_script(DIFFUSIONQL).changed_rewards
    rewards = np.random.default_rng(0).normal(3, 2, 1000).astype(np.float32)
    assert (change(rewards, "raw") == rewards).all()
    assert change(np.array([0, 1], np.float32), "antmaze").tolist() == [-2, 2]
    expected = torch.as_tensor(rewards)
    expected = (expected - expected.mean()) / expected.std()
    torch.testing.assert_close(torch.as_tensor(change(rewards, "standardised")).float(), expected)
    with pytest.raises(SystemExit, match="--rewards"):
        change(np.ones(3, np.float32), "standardised")


@each_corl
def test_each_task_has_a_scale_of_its_own(script, monkeypatch):
    """Of rewards, by its own returns: the second task's data are those of the first with rewards times 10."""
    module, agents = load_script(script), []
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


# --- A run ------------------------------------------------------------------------------------------------------------


def scaled(rewards: np.ndarray, terminals: np.ndarray) -> np.ndarray:
    return rewards * 1000 / d4rl.return_range(rewards, terminals)


RUNS = {  # env_id, dimensions, other arguments that --tuned overrides, some of what it sets, and the rewards then
    IQL: ("hopper-medium-v2", 11, 3, {}, {"beta": 3.0, "expectile": 0.7, "deterministic": True, "actor_dropout": 0.0,
          "tau": 0.001, "rewards": "return-range"}, scaled),
    CQL: ("hopper-medium-v2", 11, 3, {"policy_lr": 1.0}, {"policy_lr": 3e-5, "rewards": "return-range"}, scaled),
    REBRAC: ("antmaze-umaze-v2", 29, 8, {}, {"actor_bc_coef": 0.003, "critic_bc_coef": 0.002, "critic_lr": 5e-5,
             "reward_scale": 100.0}, lambda rewards, _: rewards),  # its agent multiplies
    DIFFUSIONQL: ("pen-human-v1", 45, 24, {"rewards": "antmaze"}, {"grad_norm": 7.0, "rewards": "standardised"},
                  lambda rewards, _: (rewards - rewards.mean(dtype=float)) / rewards.std(dtype=float, ddof=1)),
    FQL: ("pen-human-v1", 45, 24, {}, {"alpha": 1e4, "q_agg": "min"}, lambda rewards, _: rewards),
}  # fmt: skip


@pytest.mark.parametrize("script", RUNS)
def test_tuned_run_trains_on_what_it_records(script, tmp_path, monkeypatch, capsys):
    """And a resumed one on the same, whatever the table says by then."""
    env_id, *dimensions, others, expected, changed = RUNS[script]
    module, dataset, agents = load_script(script), write_dataset(tmp_path / "rows.hdf5", *dimensions), []
    agent_class = module.Agent
    monkeypatch.setattr(module, "Agent", lambda *args: agents.append(agent_class(*args)) or agents[-1])
    monkeypatch.setattr("offline_run.evaluation.play", lambda policy, envs, seed, first: np.zeros(len(envs)))
    given = {"env_id": env_id, "dataset_path": dataset, "runs_dir": tmp_path / "runs", "device": "cpu", "tuned": True}
    given |= {"total_steps": 10, "batch_size": 8, "eval_episodes": 1, "final_eval_episodes": 1, "eval_workers": 0}
    module.main(parse(module.Args, module.__doc__, flags(given | others)))
    (run,) = (tmp_path / "runs").iterdir()
    recorded = json.loads((run / "config.json").read_text())["args"]
    printed = capsys.readouterr().out.splitlines()[0]
    assert module.TUNED[env_id].items() >= expected.items()
    for name, value in (module.TUNED[env_id] | {"tuned": True}).items():
        assert recorded[name] == getattr(agents[0].args, name) == value
        assert f"{name} {value}" in printed or name == "tuned"

    with h5py.File(dataset) as file:
        rows = {name: array[:] for name, array in file.items()}
    kept = rows["terminals"] | ~rows["timeouts"]  # own data: terminal rows stay
    buffer = agents[0].buffer
    *_, trained_on, _ = buffer.table.split(buffer.widths, 1)
    rewards = changed(rows["rewards"][kept], rows["terminals"][kept])
    np.testing.assert_allclose(trained_on[:, 0], rewards, rtol=1e-5, atol=1e-6)
    if script == REBRAC:
        next_actions = np.where(rows["terminals"][:, None], 0, np.roll(rows["actions"], -1, 0))
        np.testing.assert_array_equal(buffer.table.split(buffer.widths, 1)[3], next_actions[kept])

    (run / "result.json").unlink()  # as if killed in the final evaluation
    monkeypatch.setitem(module.TUNED, env_id, {name: 77.0 for name in expected})
    module.main(module.Args(resume=str(run), eval_workers=0))
    assert agents[1].args == agents[0].args
