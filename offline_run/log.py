"""What is logged and shown while training goes on: TensorBoard, Weights & Biases, a bar or lines of progress."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm

from offline_run.args import RunArgs

RETURN, SCORE, STD = "charts/episodic_return", "charts/normalized_score", "episodic_return_std"  # of an evaluation
Scalars = dict[str, float | None]  # tag -> value, or None where there is none


class Log:
    """TensorBoard events and, with --track, a Weights & Biases run for each learner. Both want steps in order: what is
    logged between `hold` and `release` waits.
    """

    def __init__(self, paths: list[Path], first_step: int, args: RunArgs):
        """first_step: what a run that is now resumed had logged for this step and later ones is dropped."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and the processes that evaluate need none

        self.writers, self.trackers = [SummaryWriter(str(path), purge_step=first_step) for path in paths], []
        self.held: list[tuple[int, list[Scalars]]] | None = None
        configs = [json.loads((path / "config.json").read_text()) for path in paths]
        for config, writer in zip(configs, self.writers, strict=True):
            rows = [f"| {name} | {value} |" for name, value in config["args"].items()]
            writer.add_text("hyperparameters", "\n".join(["| argument | value |", "|---|---|", *rows]), first_step)
        if args.track:
            import wandb

            where = {"project": args.track_project, "entity": args.track_entity, "group": args.track_group}
            for path, config in zip(paths, configs, strict=True):
                run = {"name": path.name, "id": path.name, "resume": "allow", "reinit": "create_new"}
                self.trackers.append(wandb.init(**where, **run, config=config))

    def scalars(self, step: int, learners: list[Scalars]) -> None:
        """Log each learner's scalars: those of its entries whose name is a tag."""
        if self.held is not None:
            self.held.append((step, learners))
            return
        for k, values in enumerate(learners):
            values = {tag: value for tag, value in values.items() if "/" in tag and value is not None}
            for tag, value in values.items():
                self.writers[k].add_scalar(tag, value, step)
            if self.trackers:
                self.trackers[k].log(values, step=step)

    def hold(self) -> None:
        self.held = []

    def release(self, step: int, learners: list[Scalars]) -> None:
        """Log these scalars, and then what was held back."""
        held, self.held = self.held, None
        for entry in [(step, learners), *held]:
            self.scalars(*entry)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        for tracker in self.trackers:
            tracker.finish()


class Progress:
    """A bar on a terminal; elsewhere a line for each evaluation."""

    def __init__(self, step: int, total: int):
        self.first, self.total, self.start = step, total, time.perf_counter()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, mininterval=1, disable=not terminal)

    def evaluated(self, rows: list[dict], step: int) -> None:
        """Tell of an evaluation (a row of metrics.csv a learner). step: where training stands meanwhile."""
        if self.bar.disable:
            elapsed = time.perf_counter() - self.start
            left = timedelta(seconds=round(elapsed * max(0, self.total - step) / max(1, step - self.first)))
            print(f"Step {rows[0]['step']:,} of {self.total:,}: {in_words(rows)}, {left} to go", flush=True)


def in_words(rows: list[dict]) -> str:
    """`score [..], alpha [..]` of the learners' latest values; the return where there are no reference scores."""
    words = []
    for name, tag, digits in ("score", SCORE, 1), ("return", RETURN, 1), ("alpha", "aspc/alpha", 2):
        values = [row.get(tag) for row in rows]
        if None not in values and (name != "return" or not words):
            words.append(f"{name} [{' '.join(f'{value:.{digits}f}' for value in values)}]")
    return ", ".join(words)


def summary(returns: np.ndarray, score: float | None, stand_in: bool) -> str:
    """The returns (E,) of an evaluation in words. stand_in: what the policy was trained on."""
    text = f"return {returns.mean():.1f} +- {returns.std():.1f} over {returns.size} episodes"
    text += "" if score is None else f", normalized score {score:.1f}"
    return text + " (trained on stand-in data)" * stand_in
