"""Ablation of ΔQ: what the one policy step changed, as the paper writes it (section 4.1, eq. 7).

    ΔQ = mean Q_1(s, π_θ̃(s)) − mean Q_1(s, π_θ(s))

On one batch and with one critic. The main script has the released code's ΔQ instead, the step of an average (--ema) of
mean Q over the updates of α: it contains the critic's drift, and its gradient is 0.005 that of this one. --ema has
no part in this one.

    python benchmark/ablations/one_step_delta_q.py --env-id halfcheetah-medium-v2
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
        delta_q = q.mean() - self.q(phi[0], s, pi).mean()  # the method: (1 − ema) (q.mean() − average)
        l_alpha = -alpha / q.abs().mean().detach() * q.mean() + new_bc.mean()  # eq. 6
        l_q = delta_q.square()  # eq. 7
        l_bc = self.l_bc(delta_q, bc, new_bc)
        loss = l_alpha + self.args.l_q_coef * l_q + self.args.l_bc_coef * l_bc  # eq. 9
        return loss, {
            "losses/outer": loss, "losses/L_alpha": l_alpha, "losses/L_Q": l_q, "losses/L_BC": l_bc,
            "aspc/delta_q": delta_q, "aspc/bc": new_bc.mean(),
        }  # fmt: skip


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
