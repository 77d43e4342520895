"""What is shown and logged while training goes on: TensorBoard, Weights & Biases, a bar or lines of progress."""

import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm

from offline_run.args import RunArgs

Scalars = dict[str, float | None]  # tag -> value; None: there is none


class Log:
    """TensorBoard events and, with --track, a Weights & Biases run for each learner.

    Both want steps in order. So what comes between `hold` and `release` waits.
    """

    def __init__(self, paths: list[Path], first_step: int, configs: list[dict], args: RunArgs):
        """first_step: events of that step and later ones, from before the run was resumed, are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and the processes that evaluate need none

        self.writers, self.trackers = [SummaryWriter(str(path), purge_step=first_step) for path in paths], []
        self.held: list[tuple[int, list[Scalars]]] | None = None
        if args.track:
            import wandb

            for path, config in zip(paths, configs, strict=True):
                tracker = wandb.init(
                    project=args.track_project, entity=args.track_entity, group=args.track_group,
                    name=path.name, id=path.name, config=config, resume="allow", reinit="create_new",
                )  # fmt: skip
                self.trackers.append(tracker)

    def scalars(self, step: int, learners: list[Scalars]) -> None:
        """Log what each learner has to say at a step."""
        if self.held is not None:
            self.held.append((step, learners))
            return
        for k, values in enumerate(learners):
            values = {tag: value for tag, value in values.items() if value is not None}
            for tag, value in values.items():
                self.writers[k].add_scalar(tag, value, step)
            if self.trackers:
                self.trackers[k].log(values, step=step)

    def hold(self) -> None:
        self.held = []

    def release(self, step: int, learners: list[Scalars]) -> None:
        """Log these scalars, and then what was held back."""
        held, self.held = self.held or [], None
        for earlier in [(step, learners), *held]:
            self.scalars(*earlier)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        for tracker in self.trackers:
            tracker.finish()


class Progress:
    """A bar on a terminal; elsewhere a line for each evaluation."""

    def __init__(self, step: int, total: int):
        self.first, self.total, self.start = step, total, time.perf_counter()
        lines = sys.stderr is None or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, mininterval=1, disable=lines)

    def show(self, rows: list[dict]) -> None:
        """The learners' latest evaluations in the bar."""
        self.bar.set_postfix_str(describe(rows))

    def evaluated(self, rows: list[dict], step: int) -> None:
        """A line on these evaluations. step: where training stands meanwhile."""
        if self.bar.disable:
            elapsed = time.perf_counter() - self.start
            left = timedelta(seconds=round(elapsed * max(0, self.total - step) / max(1, step - self.first)))
            print(f"Step {rows[0]['step']:,} of {self.total:,}: {describe(rows)}, {left} to go", flush=True)


def describe(rows: list[dict]) -> str:
    """One row of metrics.csv a learner, in words."""
    column = lambda tag: np.array([row.get(tag) for row in rows], float)  # noqa: E731
    scores = column("charts/normalized_score")
    known = np.isfinite(scores).all()
    text = f"score {scores.round(1)}" if known else f"return {column('charts/episodic_return').round(1)}"
    return text + (f", alpha {column('aspc/alpha').round(2)}" if "aspc/alpha" in rows[0] else "")


def summary(returns: np.ndarray, score: float | None, source: str) -> str:
    """The returns (E,) of an evaluation in words. source: of the dataset."""
    text = f"return {returns.mean():.1f} +- {returns.std():.1f} over {returns.size} episodes"
    text += "" if score is None else f", normalized score {score:.1f}"
    return text + " (trained on stand-in data)" * ("stand-in" in source)
