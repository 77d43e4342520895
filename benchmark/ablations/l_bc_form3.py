"""Ablation of L_BC, form 3 of 5: the change of the BC loss times ΔQ² (paper, appendix E.2, Table 13 (3)).

    L_BC = ΔQ² · max | ‖π_θ̃(s) − a‖² − ‖π_θ(s) − a‖² |

Eq. 8 without its factor max ‖π_θ(s) − a‖², to see whether that matters. ΔQ² is a constant.
The paper does not say what stands beside this term; here L_alpha and L_Q do, as in the method.

    python benchmark/ablations/l_bc_form3.py --env-id halfcheetah-medium-v2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def outer_loss(self, new_theta, theta, phi, alpha, ema, s, a):
        pi, new_pi = self.pi(theta, s), self.pi(new_theta, s)
        q = self.q(phi[0], s, new_pi)
        bc, new_bc = (pi - a).square().mean(-1), (new_pi - a).square().mean(-1)  # (B,)
        delta_q = (1 - self.args.ema) * (q.mean() - ema)
        l_alpha = -alpha / q.abs().mean().detach() * q.mean() + new_bc.mean()  # eq. 6
        l_q = delta_q.square()  # eq. 7
        l_bc = delta_q.detach().square() * (new_bc - bc).abs().max()  # Table 13 (3); the method: times bc.max(), eq. 8
        loss = l_alpha + self.args.l_q_coef * l_q + self.args.l_bc_coef * l_bc  # eq. 9
        return loss, {
            "losses/outer": loss, "losses/L_alpha": l_alpha, "losses/L_Q": l_q, "losses/L_BC": l_bc,
            "aspc/delta_q": delta_q, "aspc/bc": new_bc.mean(),
        }  # fmt: skip


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
