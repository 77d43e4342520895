"""A training run from its first directory to result.json, however often it is interrupted in between."""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from offline_run import files
from offline_run.acceleration import compile_agent, graph_agent, load_state
from offline_run.args import RunArgs, check, device_of, found, learners, processes, refuse_others, with_paths
from offline_run.evaluation import Evaluator, check_environment
from offline_run.log import RETURN, SCORE, STD, Log, Progress, in_words, summary
from offline_run.signals import Signals

LOG_INTERVAL = 1000  # gradient steps between two reads of the metrics
COMPILE_FROM = 300_000  # gradient steps that repay compilation
CHANGEABLE = ("dataset_path", "runs_dir", "device", "eval_workers")  # by --resume: no number depends on them


class Agent(Protocol):
    """What a run asks of K learners that train side by side."""

    period_steps: int  # gradient steps of one `advance`
    metrics: dict[str, Tensor]  # tag -> (K,) on the device, as of the last period
    generators: list[torch.Generator]  # all that random numbers come from
    compiled: tuple[str, ...]  # names of the methods that --compile compiles

    def advance(self) -> None:
        """Draw a period's random numbers, and call `period`."""

    def period(self) -> None:
        """One period of gradient steps, on the device alone: it reads and writes always the same tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, but for the generators, (K, ...) or scalars: the tensors themselves."""

    def policy(self, k: int) -> nn.Module:
        """Learner k's policy, a copy on the CPU: policy(observations (E, S), generator) -> actions (E, A), which takes
        its random numbers, if any, from that CPU generator. Its state_dict is actor.pt.
        """


class Run:
    """One run of K learners, tasks x seeds: learner k has env_id[k // num_seeds] and seed + k % num_seeds.

    `args` are its arguments, with --resume those that it was begun with; `device` is cpu, cuda or cuda:N.
    """

    def __init__(self, args: RunArgs, script: str):
        """A new run of the script (a path), or the one that args.resume continues. Exits with a sentence where an
        argument cannot work, or where there is nothing to continue.
        """
        self.script, self.checkpoint = Path(script), None
        self.args = args = self.reopen(args) if args.resume else with_paths(args)
        check(args)
        self.learners, self.device = learners(args), device_of(args)
        if self.checkpoint is not None:
            path, trained = self.paths[0], self.configs[0]["device"]
            if (trained == "cpu") != (self.device == "cpu"):
                sys.exit(f"{path} was trained on {trained}, whose random numbers {self.device} cannot continue.")
        if self.device != "cpu":
            torch.cuda.set_device(torch.device(self.device).index or 0)
        torch.set_float32_matmul_precision(args.matmul_precision)

    def reopen(self, given: RunArgs) -> RunArgs:
        """Find the run that args.resume names, and read its arguments and its checkpoint."""
        refuse_others(given, "resume", *CHANGEABLE)
        changed = [name for name in CHANGEABLE if getattr(given, name) != getattr(type(given)(), name)]
        given = with_paths(given)
        self.paths, self.configs, args = files.find_group(Path(given.resume), self.script.stem, type(given))
        path = self.paths[0] / "checkpoint.pt"
        if (self.paths[-1] / "result.json").exists():
            sys.exit(f"{given.resume} is complete: see its result.json.")
        if not path.exists():
            sys.exit(f"{path.parent} holds no checkpoint.pt: the run ended before its first one, so start it anew.")
        self.lock = files.lock(path.parent)
        self.checkpoint = files.load_tensors(path)
        return replace(args, **{name: getattr(given, name) for name in changed})

    def start(self, agent: Agent, tasks: Any, percent_score: Callable[[str, np.ndarray], float | None]) -> None:
        """Begin, or go on where the checkpoint stands: files, logs, signals; and faster updates where they pay.

        tasks: `files`, one a task, with `path`, `sha256`, `source` and `stand_in`; and `transitions`, a dict of arrays
        a task. percent_score(env_id, returns) -> the mean episode's score, None where there are no reference scores.
        Exits with a sentence where that cannot be.
        """
        args, self.agent, self.percent_score = self.args, agent, percent_score
        self.datasets = [dataset for dataset in tasks.files for _ in range(args.num_seeds)]  # one a learner
        for env_id in args.env_id:
            check_environment(env_id, args.max_episode_steps)
        self.step, self.seconds = 0, 0.0
        self.history: list[list[dict]] = [[] for _ in self.learners]  # each learner's rows of metrics.csv
        self.pending: list[dict] | None = None  # a row for each learner, whose evaluation is not there yet
        if self.checkpoint is not None:
            self.restore()
        else:
            self.paths = files.create(args, self.script, self.device, self.datasets)
            self.lock = files.lock(self.paths[0])
        self.signals = Signals()  # before the directories are told: from now on a run can be continued
        for env_id, transitions, dataset in zip(args.env_id, tasks.transitions, tasks.files, strict=True):
            print(f"{env_id}: {len(transitions['rewards']):,} transitions ({dataset.source}), on {self.device}")
        print(*self.paths, sep="\n", flush=True)

        busy = torch.get_num_threads() if self.device == "cpu" else 1
        self.evaluator = Evaluator(processes(args, busy), args.max_episode_steps)
        self.log = Log(self.paths, self.step + (self.pending is None), args)
        pays = self.device != "cpu" and args.total_steps >= COMPILE_FROM and found("cc", "gcc", "clang", "cl")
        if args.compile == "on" or (args.compile == "auto" and pays):
            self.signals.unless_stopped(compile_agent, agent)
        if args.cudagraph and self.device != "cpu":
            graph_agent(agent)
        self.progress = Progress(self.step, args.total_steps)
        if self.pending:  # the checkpoint was written while this evaluation was under way
            self.log.scalars(self.step, self.pending)
            self.evaluate(self.pending)
        self.clock, self.clock_step = time.perf_counter(), self.step

    def goes_on(self) -> bool:
        """Whether there is a period of training to go."""
        return self.step < self.args.total_steps and not self.signals.received

    def advanced(self) -> None:
        """To be called after each `agent.advance()`: metrics, evaluation and checkpoint where they are due."""
        self.step += self.agent.period_steps
        self.progress.bar.update(self.agent.period_steps)
        log_due, evaluation_due, checkpoint_due = (
            self.step % interval < self.agent.period_steps or self.step >= self.args.total_steps
            for interval in (LOG_INTERVAL, self.args.eval_interval, self.args.checkpoint_interval)
        )
        if not (log_due or evaluation_due or checkpoint_due or self.signals.received):
            return
        metrics = self.read_metrics()
        elapsed = time.perf_counter() - self.clock
        self.seconds += elapsed
        row = {"step": self.step, "seconds": self.seconds}
        row |= {"charts/SPS": (self.step - self.clock_step) / max(elapsed, 1e-9), RETURN: None, SCORE: None, STD: None}
        rows = [row | values for values in metrics]
        self.collect(wait=evaluation_due)
        self.log.scalars(self.step, rows)
        if evaluation_due:
            self.evaluate(rows)
        if checkpoint_due:
            self.save_checkpoint()
        latest = [rows[-1] | values for rows, values in zip(self.history, metrics, strict=True) if rows]
        self.progress.bar.set_postfix_str(in_words(latest or metrics))
        self.clock, self.clock_step = time.perf_counter(), self.step

    def finish(self) -> None:
        """The final evaluation and result.json; or, after a signal, a checkpoint and the end of the process."""
        if not self.signals.received:
            self.collect(wait=True)
        self.progress.bar.close()
        final_returns = self.signals.unless_stopped(lambda: self.begin(self.args.final_eval_episodes).returns())
        if final_returns is None:
            self.stop()
        for k, (env_id, seed) in enumerate(self.learners):
            score, dataset = self.percent_score(env_id, final_returns[k]), self.datasets[k]
            result = {
                "env_id": env_id, "script": self.script.stem, "seed": seed, "dataset": dataset.source,
                "steps": self.step, "seconds": self.seconds, "final_score": score,
                "final_returns": final_returns[k].tolist(), "last": self.history[k][-1],
                "best": max(self.history[k], key=lambda row: row[RETURN]),
            }  # fmt: skip
            files.save_json(self.paths[k] / "result.json", result)
            print(f"{self.name(k)}: {summary(final_returns[k], score, dataset.stand_in)}")
        self.close()

    # --- Parts of the above ---

    def name(self, k: int) -> str:
        env_id, seed = self.learners[k]
        return f"{env_id}, seed {seed}" if len(self.args.env_id) > 1 else f"Seed {seed}"

    def restore(self) -> None:
        """Load the checkpoint, and let each config.json tell of the resumption with what it went on."""
        path = self.paths[0] / "checkpoint.pt"
        try:
            saved = {**self.checkpoint}
            for sha256, dataset in zip(saved["dataset_sha256"], self.datasets, strict=True):
                if sha256 != dataset.sha256:
                    sys.exit(f"{dataset.path} is not the file that this run was trained on: its sha256 differs.")
            history, pending, fixed = saved["history"], saved["pending"], self.state()
            del fixed["history"], fixed["pending"]
            fits = all(outline(saved[name]) == outline(value) for name, value in fixed.items())
            fits &= len(history) == len(self.paths) == len(pending or self.paths)
            if not fits or any(RETURN not in row.keys() for rows in (*history, pending or []) for row in rows):
                raise ValueError
            load_state(self.agent, saved["tensors"], saved["generators"])
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
            sys.exit(f"{path} is not a checkpoint of this version of the script.")
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.history, self.pending = history, pending
        here = {"step": self.step} | files.describe_machine(self.script, self.device)
        for path, config in zip(self.paths, self.configs, strict=True):
            config |= {"args": asdict(self.args), "group": [path.name for path in self.paths]}
            config["resumed"] = [*config.get("resumed", []), here]
            files.save_json(path / "config.json", config)

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {
            "step": self.step, "seconds": self.seconds, "history": self.history, "pending": self.pending,
            "dataset_sha256": [dataset.sha256 for dataset in self.datasets], "tensors": self.agent.tensors(),
            "generators": [generator.get_state() for generator in self.agent.generators],
        }  # fmt: skip

    def read_metrics(self) -> list[dict[str, float]]:
        """Each learner's metrics, by one transfer from the device. Exits with a sentence if one of them, or of all that
        training changes, is not finite: before it reaches an evaluation or a checkpoint.
        """
        metrics = self.agent.metrics
        tensors = {name: tensor for name, tensor in (metrics | self.agent.tensors()).items() if tensor.ndim}
        finite = [tensor.isfinite().reshape(len(self.learners), -1).all(1) for tensor in tensors.values()]
        table = torch.stack([column.double() for column in (*finite, *metrics.values())]).tolist()  # waits
        for name, column in zip(tensors, table, strict=False):
            if 0 in column:
                self.close()
                sys.exit(f"{self.name(column.index(0))} diverged: {name} is not finite at step {self.step}. The last "
                         f"checkpoint before, if there is one, is in {self.paths[0]}.")  # fmt: skip
        return [dict(zip(metrics, values, strict=True)) for values in zip(*table[len(tensors) :], strict=True)]

    def begin(self, episodes: int) -> Evaluator:
        return self.evaluator.begin([self.agent.policy(k) for k in range(len(self.learners))], self.learners, episodes)

    def evaluate(self, rows: list[dict]) -> None:
        """Let the policies play as they are now; these rows of metrics.csv wait for it."""
        self.pending = rows
        self.log.hold()
        if not self.signals.received:  # else the run that is resumed does it
            self.begin(self.args.eval_episodes)
            self.collect(wait=False)  # at once where there are no processes

    def collect(self, wait: bool) -> None:
        """Complete the pending rows, if there are any and their evaluation is done, or wait for it."""
        if self.pending is None or not (wait or self.evaluator.done()):
            return
        if self.pending[0]["step"] == self.step:  # a signal need not wait: the checkpoint will hold the same policies
            returns = self.signals.unless_stopped(self.evaluator.returns)
        else:
            returns = self.evaluator.returns()
        if returns is None:
            return
        rows, self.pending = self.pending, None
        for k, row in enumerate(rows):
            row[RETURN], row[STD] = returns[k].mean().item(), returns[k].std().item()
            row[SCORE] = self.percent_score(self.learners[k][0], returns[k])
            self.history[k].append(row)
            files.save_csv(self.paths[k] / "metrics.csv", self.history[k])
        self.log.release(rows[0]["step"], [{tag: row[tag] for tag in (RETURN, SCORE)} for row in rows])
        self.progress.evaluated(rows, self.step)

    def save_checkpoint(self) -> None:
        """What the run needs to be resumed. An evaluation that was begun at this very step stays pending: its policies
        are in the checkpoint, and the resumed run lets them play again.
        """
        if self.pending and self.pending[0]["step"] != self.step:
            self.collect(wait=True)
        for k, path in enumerate(self.paths):  # before the checkpoint, so that an actor.pt is never older
            files.save_tensors(path / "actor.pt", self.agent.policy(k).state_dict())
        files.save_tensors(self.paths[0] / "checkpoint.pt", self.state())

    def stop(self) -> None:
        """After a signal."""
        self.read_metrics()  # exits where they are not finite
        self.save_checkpoint()
        command = f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(self.paths[0]))}"
        print(f"Stopped at step {self.step}. To continue: {command}", flush=True)
        self.close()
        sys.exit(128 + self.signals.received)

    def close(self) -> None:
        self.progress.bar.close()
        self.evaluator.close()
        self.log.close()
        self.signals.restore()
        files.unlock(self.lock)


def outline(value: Any) -> Any:
    """The names, types and shapes in a checkpoint, without its numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, dict):
        return {name: outline(item) for name, item in value.items()}
    return [outline(item) for item in value] if isinstance(value, list) else type(value)
