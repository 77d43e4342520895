"""Evaluation: a return is a pure function of policy, task, seed and episode, here or in another process."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import gymnasium
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from offline_run.args import first_line

CHUNK = 5  # episodes stepped together: always as many rows, for how a matrix product rounds depends on its size


def episodes(
    policy: nn.Module, env_id: str, seed: int, first: int, number: int, max_episode_steps: int | None = None
) -> np.ndarray:
    """Undiscounted returns (number,) of a seed's evaluation episodes first, first + 1, ...: one chunk, so `first` is a
    multiple of CHUNK, and `number` at most CHUNK.

    policy(observations (CHUNK, S), generator) -> actions (CHUNK, A), on the CPU. Every evaluation of a seed starts from
    the same initial states and draws the same numbers. Exits with a sentence at a reward or observation that is NaN.
    """
    envs = [gymnasium.make(env_id, max_episode_steps=max_episode_steps) for _ in range(number)]
    returns = play(policy, envs, seed, first)
    for env in envs:
        env.close()
    return returns


def play(policy: nn.Module, envs: list[gymnasium.Env], seed: int, first: int) -> np.ndarray:
    """Returns (len(envs),) of the seed's episodes from `first` on, one in each environment, stepped together."""
    policy.eval()
    floating = (t.dtype for t in policy.state_dict().values() if t.is_floating_point())
    space = envs[0].action_space
    rows = torch.zeros(CHUNK, *envs[0].observation_space.shape, dtype=next(floating, torch.get_default_dtype()))
    observations = rows.numpy()  # the same memory
    returns, running = np.zeros(len(envs)), list(range(len(envs)))
    generator = torch.Generator().manual_seed((1000 * seed + first) % 2**63)
    for e, env in enumerate(envs):
        observations[e] = env.reset(seed=1000 * seed + first + e)[0]
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)  # whatever training uses: the same numbers in every process
    torch.set_float32_matmul_precision("highest")
    try:
        while running:
            with torch.no_grad():
                actions = policy(rows, generator).numpy()
            actions = np.clip(actions, space.low, space.high)  # rounding may lead out by one unit in the last place
            if np.issubdtype(space.dtype, np.integer):
                actions = actions.round().astype(space.dtype)
            for e in running.copy():
                observations[e], reward, terminated, truncated, _ = envs[e].step(actions[e])
                returns[e] += reward
                if not (np.isfinite(returns[e]) and np.isfinite(observations[e]).all()):
                    sys.exit(f"{envs[e].spec.id}: a reward or observation of episode {first + e} is not finite.")
                if terminated or truncated:
                    running.remove(e)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    return returns


def check_environment(env_id: str, max_episode_steps: int | None) -> None:
    """Exit with a sentence where there is no such environment, or its episodes may never end; say so if it takes whole
    numbers.
    """
    try:
        env = gymnasium.make(env_id, max_episode_steps=max_episode_steps)
    except (gymnasium.error.Error, ImportError) as error:
        sys.exit(f"There is no environment {env_id} here: {first_line(error)}.")
    if env.spec.max_episode_steps is None:
        sys.exit(f"{env_id} has no step limit, so an episode may never end: give one with --max-episode-steps.")
    if np.issubdtype(env.action_space.dtype, np.integer):
        print(f"{env_id} takes whole numbers as actions: those of the policy are rounded.")
    env.close()


# --- Processes --------------------------------------------------------------------------------------------------------


def begin_worker() -> None:
    """A worker outlives Ctrl-C and a closing terminal, which its parent answers, but never its parent."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def play_chunk(policy: bytes, *arguments) -> np.ndarray:
    """`episodes` with the policy as bytes: reading them imports the script, which registers its tasks."""
    return episodes(pickle.loads(policy), *arguments)


class Evaluator:
    """Plays episodes, one evaluation at a time: in processes, started when first needed, or in place (workers 0)."""

    def __init__(self, workers: int, max_episode_steps: int | None = None):
        context = multiprocessing.get_context("spawn")  # a fork would inherit the GPU's state, and every lock
        self.pool = ProcessPoolExecutor(workers, context, begin_worker) if workers else None
        self.max_episode_steps = max_episode_steps

    def begin(self, policies: list[nn.Module], learners: list[tuple[str, int]], number: int) -> "Evaluator":
        """Let each policy play `number` episodes of its learner's (env_id, seed). Returns itself."""
        self.shape, self.chunks = (len(learners), number), []
        for policy, (env_id, seed) in zip(policies, learners, strict=True):
            saved = pickle.dumps(policy)
            for first in range(0, number, CHUNK):
                arguments = (saved, env_id, seed, first, min(CHUNK, number - first), self.max_episode_steps)
                self.chunks.append((arguments, self.submit(arguments)))
        return self

    def submit(self, arguments: tuple) -> Future | None:
        """The future of a chunk; None if there are no processes, so that `returns` plays it."""
        mask = getattr(signal, "pthread_sigmask", None)  # a process inherits it: no Ctrl-C while it starts
        if mask:
            mask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.pool and self.pool.submit(play_chunk, *arguments)
        except BrokenProcessPool:
            self.give_up()
        finally:
            if mask:
                mask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def give_up(self) -> None:
        if self.pool:
            tqdm.write("A process that evaluates has died (out of memory?): from now on, training waits.", sys.stderr)
            self.close()
        self.pool = None

    def done(self) -> bool:
        """Whether `returns` need not wait for another process."""
        return all(future is None or future.done() for _, future in self.chunks)

    def returns(self) -> np.ndarray:
        """The returns (K, number), when all are there. On a terminal there is a bar if that takes over two seconds."""
        results, total = [], int(np.prod(self.shape))
        with tqdm(desc="evaluation", total=total, unit="episode", leave=False, delay=2, disable=None) as bar:
            for arguments, future in self.chunks:
                try:
                    results.append(future.result() if future else play_chunk(*arguments))
                except BrokenProcessPool:
                    self.give_up()
                    results.append(play_chunk(*arguments))
                bar.update(len(results[-1]))
        return np.concatenate(results).reshape(self.shape)

    def close(self) -> None:
        """End the processes, whatever they are at."""
        if self.pool:
            for process in list((self.pool._processes or {}).values()):  # private until Python 3.14
                process.kill()
            if sys.version_info < (3, 11, 5):  # else it may wait for ever to write what nobody reads (gh-94777)
                self.pool._call_queue._reader.close()
            self.pool.shutdown(cancel_futures=True)
