"""What moves α: the share of each term of L_outer in α's gradient, on the batch of the step itself and on a fresh one.

    python -m benchmark.alpha_gradient runs/maze2d-umaze-v1__aspc_td3bc__0__... --updates 300 --out alpha-gradient.csv

Goes on with runs of aspc_td3bc.py from their checkpoints, as they would have gone on, and takes ∂L_alpha/∂ρ, ∂L_Q/∂ρ
and ∂L_BC/∂ρ at each update of α. L_outer has the batch of the policy's step, as in the script ("same"), and beside it
an independent one ("fresh"), on which nothing acts. The runs themselves stay as they are.
"""

import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch.func import grad, jvp
from torch.nn import functional as F
from tqdm import tqdm

import aspc_td3bc
import d4rl_gymnasium as d4rl
from benchmark.ablations import fresh_outer_batch
from benchmark.page import write_csv
from benchmark.scripts import command_line
from offline_run import load_state
from offline_run.args import learners
from offline_run.files import load_tensors, read_config

TERMS = ("losses/L_alpha", "losses/L_Q", "losses/L_BC")
COLUMNS = ("run", "task", "seed", "step", "alpha", "batch", "term", "mean", "standard_error", "negative", "bias")


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories of aspc_td3bc.py that hold a checkpoint.pt: with --num-seeds the first of a group, for all"""
    updates: int = 300
    """updates of α, each of them 2 x alpha-interval gradient steps"""
    out: Path | None = None
    """write the table into this CSV file"""


class Probe(fresh_outer_batch.Agent):
    """The main script's agent, which notes what each term contributes to ∂L_outer/∂ρ on either batch.

    The ablation lends the second batch; α moves by the first, as in the main script.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.notes: dict[tuple[str, str], list[torch.Tensor]] = {}  # (batch, term) -> a (K,) for each update of α

    def term(self, name: str):
        return lambda *inputs: aspc_td3bc.Agent.outer_loss(self, *inputs)[1][name]

    def update_alpha(self, g, alpha, s, a):
        slope_of = functools.partial(aspc_td3bc.Agent.inner_slope, self)
        g_slope, _ = self.gradient(slope_of, self.theta, self.phi, s)
        new_theta, slope = jvp(self.inner_step, (g,), (g_slope,))
        for which, judged in (("same", (s, a)), ("fresh", self.outer_batch)):
            for name in TERMS:
                outer_g = self.all(grad(self.term(name)))(new_theta, self.theta, self.phi, alpha, self.ema, *judged)
                self.notes.setdefault((which, name), []).append((outer_g * slope).sum(1) * self.rho.sigmoid())
        self.outer_batch = s, a
        return super().update_alpha(g, alpha, s, a)


def load(run: Path) -> tuple[Probe, dict]:
    """The agent of a run, and its group's config, where its checkpoint stands. Exits with a sentence."""
    config, args = read_config(run, "aspc_td3bc", aspc_td3bc.Args)
    if not (run / "checkpoint.pt").exists():
        sys.exit(f"{run} holds no checkpoint.pt: of learners trained together it is the first's.")
    if config["device"] != "cpu":
        sys.exit(f"{run} was trained on {config['device']}, whose random numbers a CPU cannot continue.")
    checkpoint, path = load_tensors(run / "checkpoint.pt"), config["dataset"]["path"] if len(args.env_id) == 1 else None
    tasks = d4rl.load_tasks(args.env_id, path)
    datasets = [dataset for dataset in tasks.files for _ in range(args.num_seeds)]  # one a learner
    for dataset, sha256 in zip(datasets, checkpoint["dataset_sha256"], strict=True):
        if dataset.sha256 != sha256:
            sys.exit(f"{dataset.path} is not the file that {run} was trained on: its sha256 differs.")
    probe = Probe(args, tasks.transitions, tasks.low, tasks.high, "cpu")
    load_state(probe, checkpoint["tensors"], checkpoint["generators"])
    return probe, config | {"step": checkpoint["step"], "learners": learners(args)}


def table(probe: Probe, config: dict) -> Iterator[list]:
    """A row for each seed, batch and term: mean and its standard error with draws taken as independent, the share of
    updates that push α up, and mean / root mean square, which is about what Adam makes of it in units of its rate.
    """
    for (which, term), notes in probe.notes.items():
        for k, values in enumerate(torch.stack(notes, 1).double().numpy()):
            error = values.std(ddof=1) / math.sqrt(len(values))
            bias = values.mean() / max(np.sqrt(np.square(values).mean()), np.finfo(float).tiny)
            alpha = F.softplus(probe.rho[k]).item()
            about = [config["group"][k], *config["learners"][k], config["step"], alpha]
            yield [*about, which, term.split("/")[1], values.mean(), error, (values < 0).mean(), bias]


def main(args: Args) -> None:
    if args.updates < 2:
        sys.exit("--updates must be at least 2.")
    if not args.runs:
        sys.exit("Name at least one run directory of aspc_td3bc.py.")
    rows = []
    for run in args.runs:
        probe, config = load(run)
        for _ in tqdm(range(args.updates), desc=config["env_id"], unit="update"):
            probe.advance()
        rows += table(probe, config)
    print("| task | seed | α | batch | term | mean ± standard error | negative | mean / root mean square |")
    print("|---|---|---|---|---|---|---|---|")
    for _, task, seed, _, alpha, which, term, mean, error, negative, bias in rows:
        numbers = f"{mean:.1e} ± {error:.0e} | {negative:.0%} | {bias:+.2f}"
        print(f"| {task} | {seed} | {alpha:.2f} | {which} | {term} | {numbers} |")
    if args.out:
        write_csv(args.out, COLUMNS, rows)


if __name__ == "__main__":
    try:
        main(command_line(Args, "python -m benchmark.alpha_gradient", __doc__))
    except (d4rl.DatasetError, OSError) as error:
        sys.exit(str(error))
