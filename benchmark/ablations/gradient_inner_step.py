"""Ablation of θ̃: a step of plain gradient descent, as the paper writes it (eq. 5).

    θ̃(α) = θ − η ∇_θ L_inner(θ; α),    η = 3e-4

The main script, like the released code, judges the step that Adam is about to take. The policy itself goes on by Adam;
only what α is judged by changes.

    python benchmark/ablations/gradient_inner_step.py --env-id maze2d-umaze-v1
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def inner_step(self, g):
        return self.theta - aspc_td3bc.LEARNING_RATE * g  # the method: Adam's next step


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
