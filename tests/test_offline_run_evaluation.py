"""Evaluation: the same returns in whatever process, however many are asked for, and again from the saved actor. And
compilation, which must leave no trace.
"""

import json
import multiprocessing
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import toy
from toy_runs import (
    RUN,
    SHORT,
    after_steps,
    assert_same_runs,
    checkpoint_of,
    command,
    config_of,
    result_of,
    resume,
    send,
    train,
)

from offline_run import compile_agent, episodes
from offline_run import run as run_module
from offline_run.evaluation import CHUNK, Evaluator


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> list[Path]:
    """The directories of an uninterrupted run."""
    return train(tmp_path_factory.mktemp("finished"))


def policy(noise: float = 0.2, scale: float = 1.0, dtype=torch.float32) -> toy.Policy:
    weight = torch.tensor([[-0.5, 0.1], [0.2, -0.4]], dtype=dtype)
    return toy.Policy(scale * weight, torch.tensor(noise, dtype=dtype), torch.zeros(()))


# --- Episodes ---------------------------------------------------------------------------------------------------------


def returns_of(number: int, evaluator: Evaluator) -> np.ndarray:
    learners = [("Toy/Walk-v0", 3), ("Toy/Walk-v0", 4)]
    return evaluator.begin([policy(), policy(0)], learners, number).returns()


def test_same_returns_in_any_process_for_any_number():
    here = Evaluator(0)
    most = returns_of(23, here)
    assert most.shape == (2, 23) and len(set(most.flatten())) == 46
    for number in (1, 4, 5, 6, 12):
        np.testing.assert_array_equal(returns_of(number, here), most[:, :number])
    there = Evaluator(2)
    try:
        np.testing.assert_array_equal(returns_of(23, there), most)
        np.testing.assert_array_equal(returns_of(7, there), most[:, :7])
        assert there.done() and len(multiprocessing.active_children()) == 2
    finally:
        there.close()
    assert not multiprocessing.active_children()


def test_returns_are_those_of_a_plain_loop():
    """Without noise, an episode is what anyone would write."""
    env, act, expected = gymnasium.make("Toy/Walk-v0"), policy(0), []
    for e in range(7):
        (observation, _), total, done = env.reset(seed=1000 * 3 + e), 0.0, False
        while not done:
            action = act(torch.as_tensor(observation).expand(CHUNK, 2), torch.Generator())[0].numpy().clip(-1, 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + reward, terminated or truncated
        expected.append(total)
    found = [*episodes(act, "Toy/Walk-v0", 3, 0, 5), *episodes(act, "Toy/Walk-v0", 3, 5, 2)]
    assert found == expected


def test_training_keeps_its_threads_and_its_precision():
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    seen = []

    class Watching(toy.Policy):
        def forward(self, *inputs):
            seen.append((torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()))
            return super().forward(*inputs)

    try:
        episodes(Watching(*policy().state_dict().values()), "Toy/Walk-v0", 0, 0, 1)
        assert set(seen) == {(1, "highest", False)}
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")


@pytest.mark.filterwarnings("ignore:.*The obs returned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_observations_come_in_the_dtype_of_the_policy(dtype):
    """Also those of an environment whose observations are integers; integer actions are rounded."""
    (one,) = episodes(policy(dtype=dtype), "Toy/Whole-v0", 0, 0, 1)
    assert -100 < one < 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_stay_within_uneven_bounds(dtype):
    """Of -0.1 and 0.7: scaled to them by rounded numbers, an action may come out beyond. The toy would refuse it."""

    class Edge(torch.nn.Module):
        def forward(self, observations, generator):
            low, high = (torch.tensor(x, dtype=torch.float32).to(dtype) for x in (-0.1, 0.7))
            outside = [torch.nextafter(low, low - 1), torch.nextafter(high, high + 1)]
            return torch.stack(outside).expand(len(observations), 2)

    assert np.isfinite(episodes(Edge(), "Toy/Uneven-v0", 0, 0, 5)).all()


@pytest.mark.parametrize("kind, workers", [("NanReward", 0), ("NanObservation", 0), ("NanReward", 1)])
def test_nan_gets_a_sentence(kind, workers, tmp_path):
    with pytest.raises(SystemExit, match=f"^Toy/{kind}-v0: a reward or observation of episode [01] is not finite"):
        train(tmp_path, env_id=(f"Toy/{kind}-v0",), eval_workers=workers)


def test_step_limit(tmp_path, capsys):
    """An environment without one needs the argument, which --eval takes from the run."""
    (run,) = train(tmp_path, **(SHORT | {"env_id": ("Toy/Endless-v0",), "max_episode_steps": 7}))
    assert -28 < np.mean(result_of(run)["final_returns"]) < 0
    toy.main(toy.Args(eval=str(run), final_eval_episodes=7, eval_workers=0))
    assert f"return {np.mean(result_of(run)['final_returns']):.1f} " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.filterwarnings("ignore:.*The obs returned")
def test_rounded_actions_are_announced(tmp_path, capsys):
    train(tmp_path, env_id=("Toy/Whole-v0",))
    assert capsys.readouterr().out.count("Toy/Whole-v0 takes whole numbers as actions") == 1


def test_worker_that_dies(capsys):
    """Its chunk, and all that follow, are played in place."""
    evaluator = Evaluator(1)
    try:
        returns = evaluator.begin([policy()], [("Toy/Deadly-v0", 0)], 7).returns()
        np.testing.assert_array_equal(returns, Evaluator(0).begin([policy()], [("Toy/Deadly-v0", 0)], 7).returns())
        evaluator.begin([policy()], [("Toy/Walk-v0", 0)], 2)
        assert evaluator.done() and evaluator.returns().shape == (1, 2)
    finally:
        evaluator.close()
    assert capsys.readouterr().err.count("has died") == 1


def test_ended_while_a_policy_is_on_its_way():
    """Larger than a pipe, so that it waits there for a process that is gone: Python 3.10 would wait with it."""
    evaluator = Evaluator(1)
    policy = toy.Policy(torch.zeros(2, 2), torch.zeros(()), torch.zeros(10**6))
    evaluator.begin([policy], [("Toy/Walk-v0", 0)], 50)
    closing = threading.Thread(target=evaluator.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_workers_that_training_leaves(monkeypatch):
    from offline_run.args import processes

    for cores, busy, expected in ((1, 1, 0), (2, 1, 1), (4, 4, 0), (4, 8, 0), (64, 1, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: range(cores), raising=False)
        assert processes(toy.Args(), busy) == expected
    assert processes(toy.Args(eval_workers=3), 64) == 3


# --- The saved actor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_saved_actor_repeats_the_result(workers, finished, monkeypatch, capsys):
    returns, original = [], Evaluator.returns
    monkeypatch.setattr(Evaluator, "returns", lambda self: returns.append(original(self)) or returns[-1])
    for run in finished[workers:]:
        toy.main(toy.Args(eval=str(run), final_eval_episodes=7, eval_workers=workers))
        result, printed = result_of(run), capsys.readouterr().out
        assert returns[-1][0].tolist() == result["final_returns"]
        assert printed == (
            f"Toy/Walk-v0, seed {result['seed']}: return {returns[-1].mean():.1f} +- {returns[-1].std():.1f} over 7 "
            f"episodes, normalized score {result['final_score']:.1f}\n"
        )


def test_damaged_actor(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished[0], tmp_path / "run")
    whole = (run / "actor.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no actor", b""):
        (run / "actor.pt").write_bytes(damaged)
        message = command(monkeypatch, "--eval", run)
        assert "actor.pt" in message and "\n" not in message
    for other in ({}, [1], {"weight": torch.zeros(2, 2)}):
        torch.save(other, run / "actor.pt")
        assert "actor.pt is not an actor of this version" in command(monkeypatch, "--eval", run)
    (run / "actor.pt").unlink()
    assert "actor.pt" in command(monkeypatch, "--eval", run)


# --- Video ------------------------------------------------------------------------------------------------------------


def test_video(finished, tmp_path, monkeypatch):
    """30 pictures a second where the environment does not say; the film is the first evaluation episode."""
    imageio = pytest.importorskip("imageio")
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(gymnasium.logger, "warn", lambda *_: None)
    steps, original = [], toy.Walk.step
    monkeypatch.setattr(toy.Walk, "step", lambda env, action: steps.append(env.render_mode) or original(env, action))
    toy.main(toy.Args(eval=str(finished[0]), final_eval_episodes=1, render_video="~/film.mp4", eval_workers=0))
    film = imageio.get_reader(tmp_path / "film.mp4")
    assert film.get_meta_data()["fps"] == 30
    assert len([frame for frame in film]) == steps.count("rgb_array") + 1 == steps.count(None) + 1 > 2


@pytest.mark.filterwarnings("ignore:.*render")
def test_video_that_cannot_be(finished, tmp_path, monkeypatch):
    """Every message fits its cause, and comes before an episode is played."""
    monkeypatch.setattr(toy.Walk, "step", lambda *_: pytest.fail("an episode was spent"))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    run = shutil.copytree(finished[0], tmp_path / "run")

    def filmed(path: str = "film.mp4") -> str:
        with pytest.raises(SystemExit) as stop:
            toy.main(toy.Args(eval=str(run), render_video=str(tmp_path / path)))
        assert "\n" not in stop.value.code
        return stop.value.code

    assert ".mp4" in filmed("film.gif")
    assert "folder" in filmed("nowhere/film.mp4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio", None)
        assert "pip install imageio" in filmed()
    with monkeypatch.context() as patch:
        patch.setattr(toy.Walk, "render", lambda env: 1 / 0)
        assert "MUJOCO_GL=egl" in filmed() and "ZeroDivisionError" in filmed()
        patch.setenv("MUJOCO_GL", "osmesa")
        assert "libosmesa6" in filmed()
        patch.setenv("MUJOCO_GL", "egl")
        assert "libegl1" in filmed()
    config = config_of(run)
    config |= {"env_id": "Toy/Dark-v0", "args": config["args"] | {"env_id": ["Toy/Dark-v0"]}}
    (run / "config.json").write_text(json.dumps(config))
    assert "has no render mode rgb_array" in filmed()
    assert not list(tmp_path.glob("*.mp4"))


# --- Compilation ------------------------------------------------------------------------------------------------------


def identity(function, fullgraph):
    assert fullgraph
    return lambda *inputs: function(*inputs)


def failing(function, fullgraph):
    def fail(*inputs):
        function(*inputs)  # so that there is a state to put back
        try:
            raise OSError("no compiler\nwith a long explanation")
        except OSError as error:
            raise RuntimeError("wrapped:\n\nin more") from error

    return fail


@pytest.mark.parametrize("compiler", [identity, failing])
def test_compilation_leaves_no_trace(compiler, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", compiler)
    agent, other = (toy.Agent(toy.Args(num_seeds=2), "cpu") for _ in range(2))
    agent.advance(), other.advance()
    assert compile_agent(agent) == (compiler is identity)
    assert ("update" in vars(agent)) == (compiler is identity)
    for name, tensor in agent.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])
    for ours, theirs in zip(agent.generators, other.generators, strict=True):
        assert torch.equal(ours.get_state(), theirs.get_state())
    capsys.readouterr()

    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert_same_runs(train(tmp_path, compile="on"), finished)
    printed = capsys.readouterr().out
    assert "Compiling the updates, which takes some minutes ...\n" in printed
    assert ("Compiled in 0 s.\n" in printed) == (compiler is identity)
    failure = "Compiling failed (OSError: no compiler): training goes on without.\n"
    assert (failure in printed) == (compiler is failing)


def test_interrupted_compilation(finished, tmp_path, monkeypatch):
    def compiler(function, fullgraph):
        def interrupt(*inputs):
            function(*inputs)
            send()
            pytest.fail("the signal waits for the compiler")

        return interrupt

    monkeypatch.setattr(shutil, "which", lambda name: name)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(torch, "compile", compiler)
        train(tmp_path, compile="on")
    assert stop.value.code == 128 + signal.SIGINT
    runs = sorted(tmp_path.iterdir())
    assert checkpoint_of(runs[0])["step"] == 0
    monkeypatch.setattr(torch, "compile", identity)
    resume(runs[0])
    assert_same_runs(runs, finished)


@pytest.mark.parametrize(
    ("mode", "device", "steps", "compiler", "compiles"),
    [
        ("auto", "cpu", 300_000, True, False),
        ("auto", "cuda", 299_980, True, False),
        ("auto", "cuda", 300_000, True, True),
        ("auto", "cuda", 300_000, False, False),
        ("on", "cuda", 200, False, True),
        ("on", "cpu", 200, True, True),
        ("off", "cuda", 300_000, True, False),
    ],
)
def test_when_it_compiles_and_records_a_graph(mode, device, steps, compiler, compiles, tmp_path, monkeypatch):
    done, agent_class = [], toy.Agent
    monkeypatch.setattr(run_module, "compile_agent", lambda agent: done.append("compiled"))
    monkeypatch.setattr(run_module, "graph_agent", lambda agent: done.append("graph"))
    monkeypatch.setattr(shutil, "which", lambda name: name if compiler else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    after_steps(monkeypatch, 20, lambda agent: send())
    monkeypatch.setattr(toy, "Agent", lambda args, device: agent_class(args, "cpu"))
    with pytest.raises(SystemExit):
        toy.main(toy.Args(runs_dir=str(tmp_path), **(RUN | {"device": device, "total_steps": steps, "compile": mode})))
    assert done == ["compiled"] * compiles + ["graph"] * (device == "cuda")
    (run, _) = tmp_path.iterdir()
    assert config_of(run)["device"] == ("cpu" if device == "cpu" else "a GPU")


def test_real_compiler(tmp_path, capsys):
    """Once through torch.compile itself, without its slow half."""
    agent = toy.Agent(toy.Args(), "cpu")
    original, before = torch.compile, agent.theta.clone()
    torch.compile = lambda function, fullgraph: original(function, fullgraph=fullgraph, backend="eager")
    try:
        assert compile_agent(agent) and torch.equal(agent.theta, before)
        agent.advance()
        assert not torch.equal(agent.theta, before)
    finally:
        torch.compile = original
    assert re.search(r"Compiled in \d+ s\.", capsys.readouterr().out)
