"""Ablation of the target: rewards without their mean (released code, `reward_mean`).

    y = r − mean r + γ (1 − d) min_j Q'_j(s', π'(s') + ε)

The released code subtracts a `reward_mean` that it never sets, so that its first step crashes; the main script takes it
as 0. Here it is the mean of the dataset's rewards, which lowers Q's level by mean r / (1 − γ), and with it mean |Q|, by
which the policy's loss divides.

    python benchmark/ablations/reward_mean.py --env-id maze2d-umaze-v1
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        rewards = self.buffer.table[:, -2]  # s, a, s', r, d
        for first, end in set(self.buffer.ranges):
            rewards[first:end] -= rewards[first:end].mean()


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
