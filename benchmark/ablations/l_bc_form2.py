"""Ablation of L_BC, form 2 of 5: the change of the BC loss times its bound (paper, appendix E.2, Table 13 (2)).

    L_BC = max ‖π_θ(s) − a‖² · max | ‖π_θ̃(s) − a‖² − ‖π_θ(s) − a‖² |

Eq. 8 without its factor ΔQ², to see whether that matters; L_BC then does not scale with the rewards. The first maximum
is a constant. The paper does not say what stands beside this term; here L_alpha and L_Q do, as in the method.

    python benchmark/ablations/l_bc_form2.py --env-id halfcheetah-medium-v2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def l_bc(self, delta_q, bc, new_bc):
        return bc.max() * (new_bc - bc).abs().max()  # Table 13 (2); the method: times ΔQ² as well, eq. 8


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
