"""Ablation of L_outer's data: a batch of its own (the paper's eqs. 6 to 8 are expectations over the dataset).

The main script, like the released code, judges the step θ → θ̃(α) on the very batch that made it. Both then share their
noise: a larger step along this batch's own ∇Q looks better than it is, and pushes α upwards. Here L_outer has an
independent batch, drawn by the same generator: one batch more in each period.

    python benchmark/ablations/fresh_outer_batch.py --env-id halfcheetah-medium-v2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        indices = self.buffer.indices  # (K, steps, B), and one more
        self.buffer.indices = indices.new_zeros(len(indices), self.period_steps + 1, self.args.batch_size)

    def period(self) -> None:
        batches = self.buffer.batches()
        self.outer_batch = batches[0][:, -1], batches[1][:, -1]  # s, a
        *pairs, last = zip(
            *(x[:, : self.period_steps].split(aspc_td3bc.POLICY_FREQ, 1) for x in (*batches, self.noise)), strict=True
        )
        for pair in pairs:
            self.update(*pair)
        self.metrics = self.update(*last, move_alpha=True)

    def update_alpha(self, g, alpha, s, a):
        outer_s, outer_a = self.outer_batch
        return super().update_alpha(g, alpha, (s, outer_s), (a, outer_a))

    def inner_slope(self, theta, phi, s):
        return super().inner_slope(theta, phi, s[0])

    def outer_loss(self, new_theta, theta, phi, alpha, ema, s, a):
        return super().outer_loss(new_theta, theta, phi, alpha, ema, s[1], a[1])


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
