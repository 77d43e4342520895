"""Ablation of L_BC, form 5 of 5: means over the batch for both suprema (paper, appendix E.2, Table 13 (5)).

    L_BC = ΔQ² · mean ‖π_θ(s) − a‖² · mean | ‖π_θ̃(s) − a‖² − ‖π_θ(s) − a‖² |

Eq. 8 with means for its two maxima, to see whether the worst case matters. ΔQ² and the first mean are constants.
The paper does not say what stands beside this term; here L_alpha and L_Q do, as in the method.

    python benchmark/ablations/l_bc_form5.py --env-id halfcheetah-medium-v2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def l_bc(self, delta_q, bc, new_bc):
        return delta_q.detach().square() * bc.mean() * (new_bc - bc).abs().mean()  # Table 13 (5); the method: max, max


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
