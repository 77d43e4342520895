"""A training run from its first directory to result.json, however often it is interrupted in between."""

import math
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
from offline_run.args import RunArgs, check, device_of, flag, found, learners, processes, refuse_others, with_paths
from offline_run.evaluation import Evaluation, Evaluator, check_environment
from offline_run.log import Log, Progress, summary
from offline_run.signals import Signals

LOG_INTERVAL = 1000  # gradient steps between two reads of the metrics
COMPILE_FROM = 300_000  # gradient steps that repay compilation
# How --resume may differ from the run's own arguments: other places, and what no number depends on
CHANGEABLE = ("dataset_path", "runs_dir", "device", "eval_workers")
CHECKPOINT = {
    "step": int, "seconds": float, "history": list, "pending": list | None,
    "dataset_sha256": list, "tensors": dict, "generators": list,
}  # fmt: skip


class Agent(Protocol):
    """What a run asks of K learners that train side by side."""

    period_steps: int
    """gradient steps of one `advance`"""
    metrics: dict[str, Tensor]
    """tag -> (K,) on the device, as of the last period"""
    generators: list[torch.Generator]
    """all that random numbers come from"""
    compiled: tuple[str, ...]
    """names of the methods that --compile compiles"""

    def advance(self) -> None:
        """Draw a period's random numbers, and call `period`."""

    def period(self) -> None:
        """One period of gradient steps, on the device alone: it reads and writes always the same tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, but for the generators, (K, ...) or scalars: the tensors themselves."""

    def policy(self, k: int) -> nn.Module:
        """Learner k's policy, a copy on the CPU: policy(observations (E, S), generator) -> actions (E, A). One that
        draws random numbers takes them from this CPU generator. Its state_dict is actor.pt.
        """


class Run:
    """One run of K learners, tasks x seeds: learner k has env_id[k // num_seeds] and seed + k % num_seeds.

    `args` are the run's arguments (those of the run that --resume continues), `device` is cpu, cuda or cuda:N, `paths`
    are the learners' directories, `step` counts gradient steps.
    """

    def __init__(self, args: RunArgs, script: str):
        """A new run of the script (a path), or with args.resume one that stopped. Exits with a sentence where an
        argument cannot work, or where there is nothing to resume.
        """
        self.script, self.checkpoint = Path(script), None
        args = with_paths(args)
        if args.resume:
            args = self.reopen(args)
        check(args)
        args.check()
        self.args, self.learners, self.device = args, learners(args), device_of(args)
        if self.checkpoint and (self.configs[0]["device"] == "cpu") != (self.device == "cpu"):
            sys.exit(f"{self.paths[0]} was trained on {self.configs[0]['device']}, whose random numbers {self.device} "
                     "cannot continue.")  # fmt: skip
        if self.device != "cpu":
            torch.cuda.set_device(torch.device(self.device).index or 0)
        torch.set_float32_matmul_precision(args.matmul_precision)

    def reopen(self, given: RunArgs) -> RunArgs:
        """Find the run that args.resume names, and read its arguments and checkpoint."""
        refuse_others(given, "resume", *CHANGEABLE)
        run = Path(given.resume)
        self.paths, self.configs, args = files.find_group(run, self.script.stem, type(given))
        if (self.paths[-1] / "result.json").exists():
            sys.exit(f"{run} is complete: see its result.json.")
        path = self.paths[0] / "checkpoint.pt"
        if not path.exists():
            sys.exit(f"{path.parent} holds no checkpoint.pt: the run ended before its first one, so start it anew.")
        self.lock = files.lock(self.paths[0])
        self.checkpoint = files.load_tensors(path)
        if not isinstance(self.checkpoint, dict) or not all(
            files.fits(self.checkpoint.get(name), kind) for name, kind in CHECKPOINT.items()
        ):
            sys.exit(f"{path} is not a checkpoint of this version of the script.")
        default = type(given)()
        changes = {name: getattr(given, name) for name in CHANGEABLE if hasattr(given, name)}
        return replace(args, **{name: value for name, value in changes.items() if value != getattr(default, name)})

    def start(self, agent: Agent, tasks: Any, percent_score: Callable[[str, np.ndarray], float | None]) -> None:
        """Begin, or go on where the checkpoint stands: files, logs, signals, and compilation where it pays.

        tasks: `files`, one a task, each with `path`, `sha256` and `source`; `transitions`, one dict of arrays a task.
        percent_score(env_id, returns) -> the mean
        episode's score, or None where there are no reference scores. Exits with a sentence where the run cannot be.
        """
        self.agent, self.datasets, self.percent_score = agent, tasks.files, percent_score
        args = self.args
        for name, value in vars(args).items():
            if isinstance(value, float) and not math.isfinite(value):
                sys.exit(f"{flag(name)} must be a finite number.")
        for env_id in args.env_id:
            check_environment(env_id, args.max_episode_steps)
        self.step, self.seconds = 0, 0.0
        self.history: list[list[dict]] = [[] for _ in self.learners]  # each learner's rows of metrics.csv
        self.pending: list[dict] | None = None  # one row a learner, whose evaluation is not there yet
        self.evaluation: Evaluation | None = None  # the one under way
        if self.checkpoint:
            self.restore()
        else:
            self.paths = files.create(args, self.script, self.device, self.datasets)
            self.lock = files.lock(self.paths[0])
            self.configs = [files.read_config(path, self.script.stem, type(args))[0] for path in self.paths]
        for env_id, transitions, dataset in zip(args.env_id, tasks.transitions, self.datasets, strict=True):
            print(f"{env_id}: {len(transitions['rewards']):,} transitions ({dataset.source}), on {self.device}")
        print(*self.paths, sep="\n", flush=True)

        busy = torch.get_num_threads() if self.device == "cpu" else 1
        self.evaluator = Evaluator(processes(args, busy), args.max_episode_steps)
        self.log = Log(self.paths, self.step + (self.pending is None), self.configs, args)
        self.signals = Signals()
        self.progress = Progress(self.step, args.total_steps)
        self.accelerate()
        if self.pending:  # the checkpoint was written while this evaluation was under way
            self.log.scalars(self.step, [logged(row) for row in self.pending])
            self.evaluate(self.pending)
        self.clock, self.clock_step = time.perf_counter(), self.step

    def goes_on(self) -> bool:
        """Whether training has a period to go."""
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
        metrics = [{"charts/SPS": (self.step - self.clock_step) / max(elapsed, 1e-9)} | values for values in metrics]
        self.collect(wait=evaluation_due)
        self.log.scalars(self.step, metrics)
        if evaluation_due:
            self.evaluate([row_of(self.step, self.seconds, values) for values in metrics])
        if checkpoint_due:
            self.save_checkpoint()
        if self.history[0]:
            self.progress.show([rows[-1] | values for rows, values in zip(self.history, metrics, strict=True)])
        self.clock, self.clock_step = time.perf_counter(), self.step

    def finish(self) -> None:
        """The final evaluation and result.json; or, after a signal, a checkpoint and the process's end."""
        if self.signals.received:
            self.stop()
        self.collect(wait=True)
        self.progress.bar.close()
        try:
            with self.signals.interrupting():
                policies = [self.agent.policy(k) for k in range(len(self.learners))]
                evaluation = self.evaluator.submit(policies, self.learners, self.args.final_eval_episodes)
                final_returns = evaluation.returns()
        except KeyboardInterrupt:
            self.stop()
        for k, (env_id, seed) in enumerate(self.learners):
            score, source = self.percent_score(env_id, final_returns[k]), self.source(k)
            result = {
                "env_id": env_id, "script": self.script.stem, "seed": seed, "dataset": source,
                "steps": self.step, "seconds": self.seconds, "final_score": score,
                "final_returns": final_returns[k].tolist(), "last": self.history[k][-1],
                "best": max(self.history[k], key=lambda row: row["charts/episodic_return"]),
            }  # fmt: skip
            files.save_json(self.paths[k] / "result.json", result)
            print(f"{self.name(k)}: {summary(final_returns[k], score, source)}")
        self.close()

    # --- Parts of the above ---

    def name(self, k: int) -> str:
        env_id, seed = self.learners[k]
        return f"{env_id}, seed {seed}" if len(self.args.env_id) > 1 else f"Seed {seed}"

    def source(self, k: int) -> str:
        return self.datasets[k // self.args.num_seeds].source

    def restore(self) -> None:
        """Load the checkpoint, and let each config.json tell of the resumption with what it went on."""
        checkpoint, path, agent = self.checkpoint, self.paths[0] / "checkpoint.pt", self.agent
        if len(checkpoint["dataset_sha256"]) != len(self.datasets):
            sys.exit(f"{path} is not of this run: it has other datasets.")
        for sha256, dataset in zip(checkpoint["dataset_sha256"], self.datasets, strict=True):
            if sha256 != dataset.sha256:
                sys.exit(f"{dataset.path} is not the file that this run was trained on: its sha256 differs.")
        shapes = lambda tensors: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}  # noqa: E731
        try:
            theirs, ours = shapes(checkpoint["tensors"]), shapes(agent.tensors())
            if differing := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
                raise ValueError(f"{differing[0]} is missing, or is not what this agent has")
            columns = row_of(0, 0.0, {}).keys()
            for rows in (*checkpoint["history"], *([checkpoint["pending"]] * (checkpoint["pending"] is not None))):
                if any(not columns <= row.keys() for row in rows):
                    raise ValueError("its history is another")
            if {len(checkpoint["history"]), len(checkpoint["pending"] or self.paths)} != {len(self.paths)}:
                raise ValueError("it is of another number of learners")
            load_state(agent, checkpoint["tensors"], checkpoint["generators"])
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            sys.exit(f"{path} is not a checkpoint of this version of the script: {cause}.")
        self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
        self.history, self.pending = checkpoint["history"], checkpoint["pending"]
        here = files.describe_machine(self.script, self.device)
        for path, config in zip(self.paths, self.configs, strict=True):
            config |= {"args": asdict(self.args), "group": [path.name for path in self.paths]}
            config["resumed"] = [*config.get("resumed", []), {"step": self.step} | here]
            files.save_json(path / "config.json", config)

    def accelerate(self) -> None:
        args = self.args
        pays = self.device != "cpu" and args.total_steps >= COMPILE_FROM and found("cc", "gcc", "clang", "cl")
        if args.compile == "on" or (args.compile == "auto" and pays):
            try:
                with self.signals.interrupting():
                    compile_agent(self.agent)
            except KeyboardInterrupt:
                pass  # training ends before it begins
        if args.cudagraph and self.device != "cpu":
            graph_agent(self.agent)

    def read_metrics(self) -> list[dict[str, float]]:
        """Each learner's metrics, by one transfer from the device. Exits with a sentence if one of them, or of all that
        training changes, is not finite: before it reaches an evaluation or a checkpoint.
        """
        metrics = self.agent.metrics
        tensors = {name: tensor for name, tensor in (metrics | self.agent.tensors()).items() if tensor.ndim}
        finite = [tensor.isfinite().reshape(len(self.learners), -1).all(1) for tensor in tensors.values()]
        table = torch.stack([column.double() for column in [*finite, *metrics.values()]]).tolist()  # waits
        for name, column in zip(tensors, table, strict=False):
            if 0 in column:
                self.progress.bar.close()
                self.close()
                sys.exit(f"{self.name(column.index(0))} diverged: {name} is not finite at step {self.step}. The last "
                         f"checkpoint before, if there is one, is in {self.paths[0]}.")  # fmt: skip
        return [dict(zip(metrics, values, strict=True)) for values in zip(*table[len(tensors) :], strict=True)]

    def evaluate(self, rows: list[dict]) -> None:
        """Let the policies, as they are now, play for these rows of metrics.csv."""
        self.pending = rows
        self.log.hold()
        if self.signals.received:
            return  # the run that is resumed will do it
        policies = [self.agent.policy(k) for k in range(len(self.learners))]
        self.evaluation = self.evaluator.submit(policies, self.learners, self.args.eval_episodes)
        if not self.evaluator.workers:
            self.collect(wait=True)

    def collect(self, wait: bool) -> None:
        """Complete the pending rows if their evaluation is there, or wait for it."""
        if self.evaluation is None or not (wait or self.evaluation.done()):
            return
        try:
            # A signal need not wait for policies that the checkpoint, of the same step, will hold.
            with self.signals.interrupting(self.pending[0]["step"] == self.step):
                returns = self.evaluation.returns()
        except KeyboardInterrupt:
            self.evaluation = None
            return
        rows, self.pending, self.evaluation = self.pending, None, None
        for k, row in enumerate(rows):
            row["charts/episodic_return"] = returns[k].mean().item()
            row["charts/normalized_score"] = self.percent_score(self.learners[k][0], returns[k])
            row["episodic_return_std"] = returns[k].std().item()
            self.history[k].append(row)
            files.save_csv(self.paths[k] / "metrics.csv", self.history[k])
        evaluated = [{tag: row[tag] for tag in ("charts/episodic_return", "charts/normalized_score")} for row in rows]
        self.log.release(rows[0]["step"], evaluated)
        self.progress.evaluated(rows, self.step)

    def save_checkpoint(self) -> None:
        """What a resumed run needs. An evaluation that was begun at this very step need not be awaited: its policies
        are in the checkpoint, and the resumed run has them play again.
        """
        if self.pending and self.pending[0]["step"] != self.step:
            self.collect(wait=True)
        for k, path in enumerate(self.paths):  # before the checkpoint: an actor.pt is never older
            files.save_tensors(path / "actor.pt", self.agent.policy(k).state_dict())
        state = {
            "step": self.step, "seconds": self.seconds, "history": self.history, "pending": self.pending,
            "dataset_sha256": [dataset.sha256 for dataset in self.datasets], "tensors": self.agent.tensors(),
            "generators": [generator.get_state() for generator in self.agent.generators],
        }  # fmt: skip
        files.save_tensors(self.paths[0] / "checkpoint.pt", state)

    def stop(self) -> None:
        """After a signal."""
        self.progress.bar.close()
        self.read_metrics()  # exits if they are not finite
        self.save_checkpoint()
        print(f"Stopped at step {self.step}. To continue: "
              f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(self.paths[0]))}", flush=True)  # fmt: skip
        self.close()
        sys.exit(128 + self.signals.received)

    def close(self) -> None:
        self.progress.bar.close()
        self.evaluator.close()
        self.log.close()
        self.signals.restore()
        self.lock.release()


def row_of(step: int, seconds: float, metrics: dict[str, float]) -> dict:
    """A row of metrics.csv, as yet without its evaluation."""
    evaluation = {"charts/episodic_return": None, "charts/normalized_score": None, "episodic_return_std": None}
    speed = {"charts/SPS": metrics.get("charts/SPS")}
    return {"step": step, "seconds": seconds} | speed | evaluation | metrics


def logged(row: dict) -> dict:
    """The metrics in a row that is not evaluated yet."""
    return {tag: value for tag, value in row.items() if "/" in tag}
