"""Every script as its user meets it: a whole run and what it leaves, resumption, evaluation of the saved policy, tasks
and seeds side by side, a copy of the file alone, and arguments that cannot work. test_offline_run.py tests the run."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import fields
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SCRIPTS,
    UNEVEN,
    VARIANTS,
    A,
    N,
    S,
    assert_seeds_are_independent,
    each_of,
    each_script,
    load_script,
    make_agent,
    parts,
    random_data,
    write_dataset,
)
from toy_runs import assert_same_runs, checkpoint_of, command, config_of, events_of, result_of, rows_of, stopped

import d4rl_gymnasium as d4rl
import offline_run
from benchmark.scripts import flags
from offline_run import load_state

TAG = r"(?:charts|losses|aspc|td3bc|cql)/[A-Za-z_]+"
RUN = {  # a run of two seeds: evaluations at 60, 120, 180 and 200, checkpoints at 100 and 200
    "env_id": ("hopper-medium-v2",), "num_seeds": 2, "total_steps": 200, "batch_size": 8, "device": "cpu",
    "eval_interval": 60, "eval_episodes": 1, "final_eval_episodes": 2, "checkpoint_interval": 100, "eval_workers": 0,
    "robust_critic": False, "critic_layers": 1,  # where the script has them
}  # fmt: skip
OWN = RUN | {"env_id": ("Pendulum-v1",), "num_seeds": 1, "total_steps": 40}
SHORT = RUN | {"num_seeds": 1, "total_steps": 60, "eval_interval": 20, "checkpoint_interval": 20}

pytestmark = pytest.mark.usefixtures("small_networks")
PAIR = SCRIPTS[:2]
STOCHASTIC = ["aspc_diffusionql", "baselines/diffusionql", "aspc_fql", "baselines/fql"]  # policies
WHOLE = SCRIPTS[:5]  # whose whole runs are looked at; of the others their agents, and one run of each (copied alone)
each_whole = pytest.mark.parametrize("script", WHOLE)
each_other = pytest.mark.parametrize("script", SCRIPTS[5:])
each_of_pair = pytest.mark.parametrize("script", PAIR)


# --- Helpers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "rows.hdf5", 11, 3)


def fitting(script: str, arguments: dict) -> dict:
    """Those of the arguments that the script has."""
    names = {field.name for field in fields(load_script(script).Args)}
    return {name: value for name, value in arguments.items() if name in names}


def train(script: str, dataset: Path | None, runs: Path, arguments: dict) -> list[Path]:
    """The directories of the finished run, one a seed."""
    module, path = load_script(script), str(dataset) if dataset else None
    module.main(module.Args(dataset_path=path, runs_dir=str(runs), **fitting(script, arguments)))
    return sorted(runs.iterdir())


def resume(script: str, run: Path) -> None:
    module = load_script(script)
    module.main(module.Args(resume=str(run)))


@pytest.fixture(scope="module", params=WHOLE)
def finished(request, hopper, tmp_path_factory) -> types.SimpleNamespace:
    """An uninterrupted run."""
    runs = tmp_path_factory.mktemp("finished")
    return types.SimpleNamespace(script=request.param, runs=train(request.param, hopper, runs, RUN))


@each_script
def test_text_that_all_scripts_share(script):
    """Lines that repeat are the same lines, so that a diff between two scripts shows the idea."""
    sections = (("class Function:", "class "), ("    def all(", "    # --- "), ('if __name__ == "__main__":', "~"))
    text, first = ((ROOT / f"{name}.py").read_text() + "~" for name in (script, SCRIPTS[0]))
    for start, end in sections:
        ours, theirs = (t[(i := t.index(start)) : t.index(end, i + len(start))] for t in (text, first))
        assert ours == theirs, start


@each_script
def test_size(script):
    lines = (ROOT / f"{script}.py").read_text().splitlines()
    assert len(lines) <= {"aspc_td3bc": 400, "baselines/td3bc": 330}.get(script, 480)


# --- Files of a run ---------------------------------------------------------------------------------------------------


def glossary(script: str) -> set[str]:
    """The tags in the tables of the script's page."""
    page = (ROOT / "docs" / f"{Path(script).name}.md").read_text()
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    return set(re.findall(rf"`({TAG})`", table))


def test_files_of_a_run(finished, hopper):
    """What they have from the script and its data; test_offline_run.py looks at all that is in them."""
    module, name = load_script(finished.script), Path(finished.script).name
    sha256 = hashlib.sha256(hopper.read_bytes()).hexdigest()
    for seed, run in enumerate(finished.runs):
        assert run.name.startswith(f"hopper-medium-v2__{name}__{seed}__")
        config = config_of(run)
        given = fitting(finished.script, RUN) | {"seed": 0, "dataset_path": str(hopper), "env_id": ["hopper-medium-v2"]}
        assert {name: config["args"][name] for name in given} == given
        assert config["args"].keys() == module.Args.__dataclass_fields__.keys()
        facts = {"path": str(hopper), "sha256": sha256, "source": "given: rows.hdf5", "stand_in": False}
        assert config["dataset"] == facts
        assert config["versions"].keys() >= {"mujoco"}
        assert all(np.isfinite(float(value)) for row in rows_of(run) for value in row.values())
        assert {column for column in rows_of(run)[0] if "/" in column} == glossary(finished.script)

        result = result_of(run)
        assert [result[key] for key in ("env_id", "script", "seed")] == ["hopper-medium-v2", name, seed]
        assert (result["steps"], result["dataset"], len(result["final_returns"])) == (200, "given: rows.hdf5", 2)
        score = 100 * d4rl.get_normalized_score("hopper-medium-v2", np.mean(result["final_returns"]))
        assert result["final_score"] == pytest.approx(score)
        policy = module.load_policy(torch.load(run / "actor.pt", weights_only=True))
        vector = torch.nn.utils.parameters_to_vector(policy.actor.parameters())
        assert any(torch.equal(vector, t[seed]) for t in checkpoint_of(finished.runs[0])["tensors"].values() if t.ndim)


@each_script
def test_metrics_are_those_of_the_glossary(script):
    agent = make_agent(script, batch_size=4)
    agent.advance()
    assert glossary(script) == {"charts/SPS", "charts/episodic_return", "charts/normalized_score", *agent.metrics}


# --- Interruptions ----------------------------------------------------------------------------------------------------


def test_resumed_run_equals_an_uninterrupted_one(finished, hopper, tmp_path, monkeypatch):
    """Ctrl-C after 100 of 200 steps."""
    agent_class = load_script(finished.script).Agent
    stopped(100, monkeypatch, lambda: train(finished.script, hopper, tmp_path, RUN), agent_class)
    runs = sorted(tmp_path.iterdir())
    assert checkpoint_of(runs[0])["step"] == 100 and not (runs[0] / "result.json").exists()
    torch.manual_seed(12345)  # a fresh process would not have the old one's global generators
    resume(finished.script, runs[1])  # any directory of the group names it
    assert_same_runs(runs, finished.runs)


@each_other
def test_agent_continues_from_its_tensors_and_generators(script):
    """All that a checkpoint holds of it, loaded into a new agent: the same from then on, bit for bit."""
    first, second = make_agent(script, batch_size=4), make_agent(script, batch_size=4)
    first.advance()
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    states = [generator.get_state() for generator in first.generators]
    first.advance()
    load_state(second, tensors, states)
    second.advance()
    other = second.tensors()
    assert not [name for name, tensor in first.tensors().items() if not torch.equal(tensor, other[name])]
    assert not all(torch.equal(tensor, tensors[name]) for name, tensor in other.items())


def alone(tmp_path: Path) -> tuple[Path, dict]:
    """The scripts in an empty directory, with no other part of this repository than the installed packages; the
    directory and how a subprocess runs there.
    """
    packages, project = tmp_path / "packages", tmp_path / "project"
    packages.mkdir()
    project.mkdir()
    for package in ("d4rl_gymnasium", "offline_run"):
        shutil.copytree(ROOT / package, packages / package, ignore=shutil.ignore_patterns("__pycache__"))
    for script in SCRIPTS:
        shutil.copy(ROOT / f"{script}.py", project)
    environment = os.environ | {"PYTHONPATH": str(packages), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment["GIT_CEILING_DIRECTORIES"] = str(tmp_path)
    options = {"cwd": project, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return project, options


def test_copied_alone(hopper, tmp_path):
    """Every script in one process, one after the other."""
    project, options = alone(tmp_path)
    given = SHORT | {"total_steps": 20, "dataset_path": str(hopper)}
    lines = [[f"{Path(script).name}.py", *flags(fitting(script, given))] for script in SCRIPTS]
    (project / "lines.json").write_text(json.dumps(lines))
    program = (
        "import json, runpy, sys\n"
        "for sys.argv in json.load(open('lines.json')): runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", program], **options)
    assert process.returncode == 0, process.stderr
    names = [json.loads(path.read_text())["script"] for path in project.glob("runs/*/result.json")]
    assert sorted(names) == sorted(Path(script).name for script in SCRIPTS)


def test_copied_alone_stopped_and_continued(hopper, tmp_path):
    """With a process that evaluates beside it."""
    script, (project, options) = PAIR[0], alone(tmp_path)
    given = SHORT | {"total_steps": 300, "checkpoint_interval": 300, "eval_workers": 1, "dataset_path": str(hopper)}
    line = [sys.executable, f"{script}.py", *flags(fitting(script, given))]
    process = subprocess.Popen(line, **options)
    try:
        while process.poll() is None and not list(project.glob("runs/*/metrics.csv")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    (run,) = project.glob("runs/*")
    assert 20 <= checkpoint_of(run)["step"] < 300
    assert config_of(run)["commit"] is None

    following = re.search(r"python (.*--resume .*)", output)[1]
    again = subprocess.run([sys.executable, *shlex.split(following)], **options)
    assert again.returncode == 0, again.stderr
    assert result_of(run)["steps"] == 300
    assert [int(row["step"]) for row in rows_of(run)] == list(range(20, 301, 20))
    assert len(list(project.glob("runs/*"))) == 1


def test_copied_without_the_packages(tmp_path):
    """The README's lines: networks, replay buffer and agent of the file, and arrays."""
    section = (ROOT / "README.md").read_text().split("## Copy it into your project")[1]
    lines = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    text = (ROOT / "aspc_td3bc.py").read_text()
    assert len(lines.splitlines()) <= 12 and "d4rl" not in lines and "offline_run" not in lines
    for line in ("import d4rl_gymnasium as d4rl\n", "from offline_run import Run, RunArgs, evaluate_saved, launch\n"):
        assert text.count(line) == 1
        text = text.replace(line, "")
    text = text[: text.index("# --- Main")].replace("class Args(RunArgs):", "class Args:")
    (tmp_path / "my_aspc.py").write_text(text)
    data = {name: array for name, array in random_data().items() if name != "next_actions"}
    np.savez(tmp_path / "data.npz", **data)
    program = "import numpy as np; data = dict(np.load('data.npz')); observations = data['observations']; steps = 40\n"
    environment = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    blocked = "import sys; sys.modules |= dict.fromkeys(('d4rl_gymnasium', 'offline_run', 'gymnasium'))\n"
    process = subprocess.run(
        [sys.executable, "-c", blocked + program + lines + "print(actions.shape)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == f"torch.Size([500, {A}])"


# --- Learners ---------------------------------------------------------------------------------------------------------


def pick(agent, k: int) -> dict[str, torch.Tensor]:
    return {name: tensor[k] for name, tensor in agent.tensors().items() if tensor.ndim}


@each_of([(script, options) for script, options in VARIANTS if options or not script.endswith(("iql", "cql", "fql"))])
def test_seeds_are_independent(float64, script, options):
    together, alone = (
        make_agent(script, batch_size=8, **options, **seeds) for seeds in ({"num_seeds": 3}, {"seed": 1})
    )
    least = 1e-7 if script.endswith("cql") else 1e-6
    slow = {"q_agg": 20, "max_q_backup": 10, "official_networks": 20}
    assert_seeds_are_independent(together, alone, least, steps=slow.get(next(iter(options), ""), 40))
    learned = {"rho", "ema"} if script.startswith("aspc") else {"log_lagrange"} if "lagrange" in options else set()
    assert learned | ({"log_eta"} if script.endswith("cql") else set()) <= alone.tensors().keys()


@each_of_pair
def test_seeds_are_independent_in_float32(script):
    """The rounding of a batched product differs from that of a single one. Adam makes up to LEARNING_RATE of it at each
    step where a gradient is itself no more than rounding; a tenth of one step is far below what a foreign batch does.
    """
    together, alone = (make_agent(script, robust_critic=False, **seeds) for seeds in ({"num_seeds": 3}, {"seed": 1}))
    for agent in (together, alone):
        for _ in range(40 // agent.period_steps):
            agent.advance()
    one, other, expected = pick(together, 1), pick(together, 2), pick(alone, 0)
    for name, tensor in expected.items():
        if ".adam." not in name:
            assert (one[name] - tensor).abs().max() < 0.1 * load_script(script).LEARNING_RATE, name
    for name in ("actor", "critics"):
        assert (other[name] - expected[name]).abs().max() > 0.1


def test_every_script_is_tested():
    paths = (path for folder in ("", "baselines/") for path in ROOT.glob(f"{folder}*.py"))
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in paths} == set(SCRIPTS)


@each_script
def test_tasks_are_independent(float64, script):
    """Two tasks, two seeds: the second task's second seed sees what it sees alone; its rows, its normalisation."""
    data = [random_data(0), {name: array[:-100] for name, array in random_data(1).items()}]
    together = make_agent(script, data=data, num_seeds=2, batch_size=8)
    alone = make_agent(script, data=data[1:], seed=1, batch_size=8)
    for agent in (together, alone):
        agent.advance()
    ours, other = pick(together, 3), pick(together, 1)
    for name, tensor in pick(alone, 0).items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-12, atol=1e-12, msg=name)
    assert (ours["critics"] != other["critics"]).any(), "the other task's learner must differ"
    mine, its = together.policy(3).state_dict(), alone.policy(0).state_dict()
    for name, tensor in its.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


def test_two_tasks_in_one_run(tmp_path, monkeypatch):
    """One directory a learner, each with its own task; stopped, and resumed as a group."""
    levels = ("medium", "expert")
    rows = {level: write_dataset(tmp_path / f"{level}.hdf5", 11, 3, seed=k) for k, level in enumerate(levels)}
    tasks, script = tuple(f"hopper-{level}-v2" for level in rows), PAIR[0]
    find = lambda env, *_: d4rl.DatasetFile(rows[env.spec.id.split("-")[1]], env.spec.id, "tests")  # noqa: E731
    monkeypatch.setattr("d4rl_gymnasium.training.find_dataset", find)
    arguments = RUN | {"env_id": tasks, "total_steps": 80, "checkpoint_interval": 40}

    def group(runs: Path) -> list[Path]:
        """The directories, in the order of the learners."""
        return [runs / name for name in config_of(next(runs.iterdir()))["group"]]

    train(script, None, tmp_path / "whole", arguments)
    whole = group(tmp_path / "whole")
    assert [path.name.split("__")[:3:2] for path in whole] == [[task, seed] for task in tasks for seed in "01"]
    for path in whole:
        assert [result_of(path)["env_id"], str(result_of(path)["seed"])] == path.name.split("__")[:3:2]
    stopped(40, monkeypatch, lambda: train(script, None, tmp_path / "resumed", arguments), load_script(script).Agent)
    resumed = group(tmp_path / "resumed")
    resume(script, resumed[1])
    assert_same_runs(resumed, whole)


# --- Bad input --------------------------------------------------------------------------------------------------------

ASPC = [script for script in SCRIPTS if script.startswith("aspc")]
TUNED = ["aspc_fql", *(f"baselines/{name}" for name in ("iql", "cql", "diffusionql", "rebrac", "a2pr", "fql"))]


def both(name: str) -> list[str]:
    return [f"aspc_{name}", f"baselines/{name}"]


BAD_INPUT = {  # the scripts, what they are told, and words of the sentence
    "another task's data": (SCRIPTS, "--env-id walker2d-medium-v2", "not data for walker2d-medium-v2"),
    "no settings for the task": (TUNED, "--env-id Pendulum-v1 --tuned", "no settings for Pendulum-v1"),
    "alpha starts at 0": (ASPC, "--alpha-init 0", "--alpha-init must be positive"),
    "alpha is no number": (ASPC, "--alpha-init nan", "--alpha-init must be positive"),
    "alpha learns backwards": (ASPC, "--alpha-lr -1", "--alpha-lr at least 0"),
    "no average": (ASPC, "--ema 1", "--ema"),
    "minimise Q": (["baselines/td3bc", "baselines/wpc", "baselines/a2pr"], "--alpha -1", "--alpha"),
    "no expectile": (both("iql"), "--expectile 1", "--expectile"),
    "all dropped": (both("iql"), "--actor-dropout 1", "--actor-dropout"),
    "imitation of the worst": (["baselines/iql"], "--beta -1", "--beta"),
    "no policy rate": (both("cql"), "--policy-lr 0", "--policy-lr"),
    "no temperature": (both("cql"), "--temperature 0", "--temperature"),
    "negative penalty": (["baselines/cql"], "--alpha -1", "--alpha"),
    "alpha starts out of bounds": (["aspc_cql"], "--alpha-init 30", "--alpha-max"),
    "alpha may reach 0": (["aspc_cql"], "--alpha-min 0", "--alpha-min"),
    "negative norm": (both("diffusionql"), "--grad-norm -1", "--grad-norm must be at least 0"),
    "minimise Q_j": (["baselines/diffusionql"], "--eta -1", "--eta must be at least 0"),
    "no actor rate": (["baselines/diffusionql", "baselines/rebrac"], "--actor-lr 0", "--actor-lr"),
    "keep away from the data": (["baselines/rebrac"], "--critic-bc-coef -1", "--critic-bc-coef must be at least 0"),
    "keep away from good actions": (["baselines/a2pr"], "--mask -1", "--mask"),
    "no horizon": (["baselines/rebrac", "baselines/a2pr"], "--discount 1", "--discount between 0 and 1"),
    "no horizon of FQL": (both("fql"), "--discount 1", "--discount must lie between 0 and 1"),
    "keep away from the teacher": (["baselines/fql"], "--alpha -1", "--alpha must be at least 0"),
}


@pytest.mark.parametrize(
    ("script", "line", "words"),
    [
        pytest.param(script, line, words, id=f"{name}-{script}")
        for name, (scripts, line, words) in BAD_INPUT.items()
        for script in scripts
    ],
)
def test_bad_input_gets_a_sentence(script, line, words, hopper, tmp_path, monkeypatch):
    rest = flags(fitting(script, SHORT) | {"total_steps": 20, "dataset_path": hopper, "runs_dir": tmp_path / "runs"})
    given = *rest, *shlex.split(line)  # of two values the last counts
    message = command(monkeypatch, *given, script=ROOT / f"{script}.py")
    assert isinstance(message, str), f"exit status {message}"
    assert words in message
    assert "\n" not in message and len(message) < 500
    assert not list(tmp_path.glob("runs/*")), "refused only after the run had begun"


@each_script
def test_agent_is_on_the_runs_device(monkeypatch, hopper, script):
    """With PyTorch told of two GPUs, of which test_offline_run.py tests the choice."""
    module, given = load_script(script), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda index: None, raising=False)

    def agent(args, data, low, high, device):
        given.append(device)
        raise StopIteration

    monkeypatch.setattr(module, "Agent", agent)
    with pytest.raises(StopIteration):
        module.main(module.Args(env_id=("hopper-medium-v2",), dataset_path=str(hopper), device="cuda:1"))
    assert given == ["cuda:1"]


# --- The saved actor --------------------------------------------------------------------------------------------------


def test_saved_actor_repeats_the_result(finished, capsys):
    """`--eval`: the final evaluation's returns, to the last digit, whoever computes them."""
    module = load_script(finished.script)
    for run, workers in zip(finished.runs, (0, 1), strict=True):
        module.main(module.Args(eval=str(run), final_eval_episodes=2, eval_workers=workers))
        returns = np.array(result_of(run)["final_returns"])
        printed = capsys.readouterr().out
        assert f"return {returns.mean():.1f} +- {returns.std():.1f} over 2 episodes" in printed
        assert f"normalized score {d4rl.percent_score('hopper-medium-v2', returns):.1f}" in printed
        policy = module.load_policy(torch.load(run / "actor.pt", weights_only=True))
        seed = config_of(run)["seed"]
        assert offline_run.episodes(policy, "hopper-medium-v2", seed, 0, 2).tolist() == returns.tolist()


def learners_action(script: str, agent, k: int, observations: torch.Tensor, generator) -> torch.Tensor:
    """By the vector that learner k trains, on observations that are normalised here."""
    if script.endswith("fql"):
        low, high = map(torch.tensor, UNEVEN)
        z = torch.randn(len(observations), A, generator=generator)
        return (high + low) / 2 + (high - low) / 2 * agent.mu(agent.theta[k], observations, z).clamp(-1, 1)
    if script != "baselines/rebrac" and getattr(agent.args, "normalize", True):
        own = torch.as_tensor(random_data()["observations"], dtype=torch.float64)
        observations = (observations - own.mean(0)) / (own.std(0, correction=0) + 1e-3)
    actions = agent.pi(agent.theta[k], observations)
    return actions[0] if script.endswith("iql") else actions  # IQL's has a deviation beside


@each_of([(script, options) for script, options in VARIANTS if "q_agg" not in options])  # which critics alone know
def test_saved_policy_acts_like_the_learner(float64, script, options):
    """A copy with the parameters of one learner alone, on bounds that are neither ±1 nor alike."""
    agent = make_agent(script, bounds=UNEVEN, num_seeds=2, batch_size=4, **options)
    agent.advance()
    observations, acted = 1 + 4 * torch.randn(7, S), []
    global_state = torch.get_rng_state()
    policies = [agent.policy(k) for k in range(2)]
    if script.endswith("fql"):  # the others' networks draw initial weights, which the learner's replace
        assert torch.equal(torch.get_rng_state(), global_state)
    saved = [{name: tensor.clone() for name, tensor in policy.state_dict().items()} for policy in policies]
    for k, policy in enumerate(policies):
        loaded = load_script(script).load_policy(saved[k])
        actions, same, other = (
            acts(observations, torch.Generator().manual_seed(seed))
            for acts, seed in ((loaded, 5), (policy, 5), (policy, 6))
        )
        torch.testing.assert_close(actions, same, rtol=0, atol=1e-12)
        assert actions.shape == (7, A)
        assert ((actions >= torch.tensor(UNEVEN[0])) & (actions <= torch.tensor(UNEVEN[1]))).all()
        if script in STOCHASTIC:
            assert (actions != other).any(1).all()
        if script.endswith("diffusionql"):  # test_diffusionql.py restates how it acts
            for network, function, vector in (
                (loaded.actor, agent.denoise, agent.theta[k]),
                (loaded.critics[0], agent.q, agent.target_phi[k, 0]),
                (loaded.critics[1], agent.q, agent.target_phi[k, 1]),
            ):
                assert all(map(torch.equal, network.parameters(), parts(function, vector)))
        else:
            expected = learners_action(script, agent, k, observations, torch.Generator().manual_seed(5))
            torch.testing.assert_close(actions, expected, rtol=0, atol=1e-12)
        for p in policy.parameters():  # what is saved or sent holds no other learner, and nothing twice
            assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
        acted.append(actions)
    assert (acted[0] != acted[1]).any(1).all()
    agent.advance()  # which must not reach what was handed out
    for k, policy in enumerate(policies):
        assert all(torch.equal(tensor, saved[k][name]) for name, tensor in policy.state_dict().items())
        assert any(not torch.equal(tensor, saved[k][name]) for name, tensor in agent.policy(k).state_dict().items())


@pytest.mark.parametrize("script", STOCHASTIC)
def test_evaluation_repeats_and_leaves_training_alone(script):
    rng = np.random.default_rng(0)
    data = {key: rng.normal(size=(N, 11)) for key in ("observations", "next_observations")}
    data |= {"actions": rng.uniform(-1, 1, (N, 3)), "rewards": rng.normal(size=N), "terminals": np.zeros(N, bool)}
    agent = make_agent(script, data=[data], num_seeds=2, batch_size=8)
    agent.advance()
    policies, generators = [agent.policy(k) for k in range(2)], [*agent.generators, torch.default_generator]
    before = [generator.get_state() for generator in generators]
    first, second = (
        np.stack([offline_run.episodes(policy, "hopper-medium-v2", k, 0, 2) for k, policy in enumerate(policies)])
        for _ in range(2)
    )
    assert (first == second).all() and len(set(first.flatten())) == 4
    assert all(map(torch.equal, before, [generator.get_state() for generator in generators]))
    alone = offline_run.episodes(policies[1], "hopper-medium-v2", 1, 0, 1)
    assert alone == first[1, 0]  # whatever else is evaluated


# --- Own data ---------------------------------------------------------------------------------------------------------


@each_whole
def test_own_task_with_other_bounds(script, tmp_path):
    dataset = write_dataset(tmp_path / "pendulum.hdf5", 3, 1, bound=2.0)
    (run,) = train(script, dataset, tmp_path / "runs", OWN)
    result = result_of(run)
    assert result["final_score"] is None and result["last"]["charts/normalized_score"] is None
    assert all(-2000 < value < 0 for value in result["final_returns"])
    assert "charts/normalized_score" not in events_of(run)
    saved = torch.load(run / "actor.pt", weights_only=True)
    policy = load_script(script).load_policy(saved)
    actions = policy(1000 * torch.randn(100, 3), torch.Generator())
    assert 1 < actions.abs().max() <= 2
    space = gymnasium.make("Pendulum-v1").action_space
    assert (actions.min() >= space.low.item()) and (actions.max() <= space.high.item())


@each_of_pair
def test_target_noise_scales_with_the_bounds(float64, script, monkeypatch):
    """TD3's smoothing: at most half of the half range, and never beyond the bounds."""
    agent, (low, high) = make_agent(script, bounds=UNEVEN, batch_size=4), map(torch.tensor, UNEVEN)
    next_s, theta = torch.randn(4, S), agent.target_theta[0].clone()
    theta[-A:] = torch.tensor([0.1, 2.0, 0.1])  # the last layer's bias: the second action is near its bound
    seen, twins = [], agent.twins
    monkeypatch.setattr(agent, "twins", lambda phi, s, a: seen.append(a) or twins(phi, s, a))
    noise = torch.tensor([100.0, 1.0, -1.0])
    agent.target(theta, agent.target_phi[0], next_s, torch.randn(4), torch.zeros(4), noise.expand(4, A))
    pi = agent.pi(theta, next_s)
    expected = pi + torch.tensor([0.5, 0.2, -0.2]) * (high - low) / 2
    expected = expected.clamp(low, high)
    torch.testing.assert_close(seen[0], expected)
    assert (expected[:, 1] == 1).all() and (pi[:, 1] < 1).all()
