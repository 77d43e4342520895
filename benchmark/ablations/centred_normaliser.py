"""Ablation of λ: Q measured by its spread, not by its level.

    λ = α / mean |Q_1(s, π(s)) − mean Q_1(s, π(s))|        in L_inner (eq. 4) and L_alpha (eq. 6)

The method divides by mean |Q|, which climbs with Q's level as training goes on and so weakens Q's pull at a given α,
though the level says nothing of which action is better.

    python benchmark/ablations/centred_normaliser.py --env-id maze2d-umaze-v1
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


def spread(q):
    return (q - q.mean()).abs().mean().detach()  # the method: q.abs().mean().detach()


class Agent(aspc_td3bc.Agent):
    def inner_loss(self, theta, phi, alpha, s, a):
        pi = self.pi(theta, s)
        q, bc = self.q(phi[0], s, pi), (pi - a).square().mean()
        loss = -alpha / spread(q) * q.mean() + bc
        return loss, {"losses/actor": loss, "losses/q": q.mean()}

    def inner_slope(self, theta, phi, s):
        q = self.q(phi[0], s, self.pi(theta, s))
        return -q.mean() / spread(q), {}

    def outer_loss(self, new_theta, theta, phi, alpha, ema, s, a):
        pi, new_pi = self.pi(theta, s), self.pi(new_theta, s)
        q = self.q(phi[0], s, new_pi)
        bc, new_bc = (pi - a).square().mean(-1), (new_pi - a).square().mean(-1)  # (B,)
        delta_q = (1 - self.args.ema) * (q.mean() - ema)
        l_alpha = -alpha / spread(q) * q.mean() + new_bc.mean()  # eq. 6
        l_q = delta_q.square()  # eq. 7
        l_bc = self.l_bc(delta_q, bc, new_bc)
        loss = l_alpha + self.args.l_q_coef * l_q + self.args.l_bc_coef * l_bc  # eq. 9
        return loss, {
            "losses/outer": loss, "losses/L_alpha": l_alpha, "losses/L_Q": l_q, "losses/L_BC": l_bc,
            "aspc/delta_q": delta_q, "aspc/bc": new_bc.mean(),
        }  # fmt: skip


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
