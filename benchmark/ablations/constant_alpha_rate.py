"""Ablation of α's schedule: a rate that stays at 2e-3 (the released code's decays to 1% of it over the run).

With it a short run is the start of a long one, and α may go on moving until the end.

    python benchmark/ablations/constant_alpha_rate.py --env-id maze2d-umaze-v1
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def __init__(self, args, *arguments):
        super().__init__(replace(args, total_steps=10**15), *arguments)  # of which no run sees a part worth a decay


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
