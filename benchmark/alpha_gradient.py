"""What moves α: the share of each term of L_outer in α's gradient, on the batch of the step itself and on a fresh one.

    python -m benchmark.alpha_gradient runs/maze2d-umaze-v1__aspc_td3bc__0__... --updates 300 --out alpha-gradient.csv

Goes on with runs of aspc_td3bc.py from their checkpoints, as they would have gone on, and takes ∂L_alpha/∂ρ, ∂L_Q/∂ρ
and ∂L_BC/∂ρ at each update of α. L_outer has the batch of the policy's step, as in the script ("same"), and beside it
an independent one ("fresh"), on which nothing acts. The runs themselves stay as they are.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np
import torch
import tyro
from torch.func import grad, vmap
from torch.nn import functional as F
from tqdm import tqdm

import aspc_td3bc
import d4rl_gymnasium as d4rl
from benchmark.ablations import fresh_outer_batch
from benchmark.page import write_csv

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
        self.term_gradients = {term: vmap(grad(self.term(term))) for term in TERMS}

    def term(self, name: str):
        return lambda *arguments: self.outer_loss(*arguments)[1][name]

    def update_alpha(self, batch, outer_batch):
        alpha = F.softplus(self.rho)
        gradient, _ = self.inner_gradient(self.actor, self.critics, alpha, batch)
        slope = self.mixed_gradient(self.actor, self.critics, alpha, batch)
        g = {k: v.detach().requires_grad_() for k, v in gradient.items()}
        new_actor = self.inner_step(g)
        inputs = ({k: p.detach() for k, p in new_actor.items()}, self.actor, self.critics, alpha, self.ema)
        for which, judged in (("same", batch), ("fresh", outer_batch)):
            for name, term_gradient in self.term_gradients.items():
                through_adam = torch.autograd.grad(
                    list(new_actor.values()), list(g.values()), list(term_gradient(*inputs, judged).values()),
                    retain_graph=True,
                )  # fmt: skip
                terms = [(x * slope[k]).flatten(1).sum(1) for k, x in zip(g, through_adam, strict=True)]
                self.notes.setdefault((which, name), []).append(sum(terms) * self.rho.sigmoid())
        return super().update_alpha(batch, batch)


def load(run: Path) -> tuple[Probe, dict]:
    """The agent of a run, and its group's config, where its checkpoint stands. Exits with a sentence."""
    config = aspc_td3bc.read_config(str(run))
    if not (run / "checkpoint.pt").exists():
        sys.exit(f"{run} holds no checkpoint.pt: of seeds trained together it is the first's.")
    if config["device"] != "cpu":
        sys.exit(f"{run} was trained on {config['device']}, whose random numbers a CPU cannot continue.")
    args, checkpoint = aspc_td3bc.Args(**config["args"]), aspc_td3bc.load_tensors(run / "checkpoint.pt")
    env = gymnasium.make(args.env_id)
    dataset = d4rl.find_dataset(env, config["dataset"]["path"])
    if dataset.sha256 != checkpoint["dataset_sha256"]:
        sys.exit(f"{dataset.path} is not the file that {run} was trained on: its sha256 differs.")
    data = d4rl.qlearning_dataset(env, dataset)
    probe = Probe(args, data, env.action_space.low, env.action_space.high, "cpu")
    probe.load(checkpoint["tensors"], checkpoint["generators"])
    return probe, config | {"step": checkpoint["step"]}


def table(probe: Probe, config: dict) -> Iterator[list]:
    """A row for each seed, batch and term: mean and its standard error with draws taken as independent, the share of
    updates that push α up, and mean / root mean square, which is about what Adam makes of it in units of its rate.
    """
    for (which, term), notes in probe.notes.items():
        for k, values in enumerate(torch.stack(notes, 1).double().numpy()):
            error = values.std(ddof=1) / math.sqrt(len(values))
            bias = values.mean() / max(np.sqrt(np.square(values).mean()), np.finfo(float).tiny)
            alpha = F.softplus(probe.rho[k]).item()
            about = [config["group"][k], config["args"]["env_id"], config["args"]["seed"] + k, config["step"], alpha]
            yield [*about, which, term.split("/")[1], values.mean(), error, (values < 0).mean(), bias]


def main(args: Args) -> None:
    if args.updates < 2:
        sys.exit("--updates must be at least 2.")
    if not args.runs:
        sys.exit("Name at least one run directory of aspc_td3bc.py.")
    rows = []
    for run in args.runs:
        probe, config = load(run)
        for _ in tqdm(range(args.updates), desc=config["args"]["env_id"], unit="update"):
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
        main(tyro.cli(Args, prog="python -m benchmark.alpha_gradient", description=__doc__))
    except (d4rl.DatasetError, OSError) as error:
        sys.exit(str(error))
