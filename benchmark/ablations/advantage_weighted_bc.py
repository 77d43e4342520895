"""Ablation of the BC term: weighted by advantage, for sparse rewards (paper, appendix E.1, Fig. 9).

    ‖π(s) − a‖²  becomes  w ‖π(s) − a‖²  in L_inner (eq. 4) and L_alpha (eq. 6),    w = 1 if Q_1(s, a) > V(s), else 0

The paper gives no formula ("high-advantage samples receive larger weights"). The released code still holds a network V
that it never uses and a weight commented out of L_alpha, so we read: the weights of wPC. As there, V has two layers and
regresses on the critics' target y; Q_1 and V are those before their step on the batch. L_BC (eq. 8) keeps all samples.
`losses/critic` includes V's error, `aspc/bc_weight` is mean w, `aspc/bc` has no weights.

    python benchmark/ablations/advantage_weighted_bc.py --env-id antmaze-medium-play-v2
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository, for a script that is started from anywhere
import aspc_td3bc  # noqa: E402
from benchmark.ablations.common import run  # noqa: E402


class Agent(aspc_td3bc.Agent):
    def __init__(self, args, data, low, high, device):
        super().__init__(args, data, low, high, device)
        values = []
        for k in range(len(self.theta)):
            torch.manual_seed(2**32 + args.seed + k % args.num_seeds)  # not the other networks' numbers
            value = aspc_td3bc.Critic(self.buffer.widths[0], 0, robust=False).to(device)  # V is a critic of no action
            values.append(parameters_to_vector(value.parameters()))
        self.psi, self.value = torch.stack(values).detach(), aspc_td3bc.Function(value)
        self.value_adam = aspc_td3bc.Adam(self.psi)

    def v(self, psi, s):
        return self.value(psi, s, s[:, :0])

    def bc_weights(self, phi, psi, s, a):
        """w (B,): 1 where the data's action is better than what is expected of its state, else 0."""
        return (self.q(phi[0], s, a) > self.v(psi, s)).to(s.dtype)

    def value_loss(self, psi, s, y):
        loss = (self.v(psi, s) - y).square().mean()
        return loss, {"losses/value": loss}

    def critic_steps(self, s, a, next_s, r, d, noise):
        both = [x.flatten(1, 2) for x in (next_s, r, d, noise)]
        y = self.all(self.target)(self.target_theta, self.target_phi, *both).unflatten(1, (2, -1))
        for i in range(2):
            w = self.all(self.bc_weights)(self.phi, self.psi, s[:, i], a[:, i])
            g, metrics = self.gradient(self.critic_loss, self.phi, s[:, i], a[:, i], y[:, i])
            value_g, more = self.gradient(self.value_loss, self.psi, s[:, i], y[:, i])
            self.critic_adam.step(self.phi, g)
            self.value_adam.step(self.psi, value_g)
        return {"losses/critic": metrics["losses/critic"] + more["losses/value"], "w": w}

    def update(self, s, a, next_s, r, d, noise, move_alpha=False):
        metrics, alpha = self.critic_steps(s, a, next_s, r, d, noise), F.softplus(self.rho)
        s, a = s[:, 1], (a[:, 1], metrics.pop("w"))  # the method: no w beside a
        g, more = self.gradient(self.inner_loss, self.theta, self.phi, alpha, s, a)
        if move_alpha:
            more |= self.update_alpha(g, alpha, s, a)
        self.actor_adam.step(self.theta, g)
        self.target_theta.lerp_(self.theta, aspc_td3bc.TAU)
        self.target_phi.lerp_(self.phi, aspc_td3bc.TAU)
        return metrics | more

    def weighting(self, theta, s, a, w):
        """What w changes in mean ‖π(s) − a‖²."""
        return ((w - 1) * (self.pi(theta, s) - a).square().mean(-1)).mean()

    def inner_loss(self, theta, phi, alpha, s, a):
        a, w = a
        loss, metrics = super().inner_loss(theta, phi, alpha, s, a)
        loss = loss + self.weighting(theta, s, a, w)
        return loss, metrics | {"losses/actor": loss}

    def outer_loss(self, new_theta, theta, phi, alpha, ema, s, a):
        a, w = a
        loss, metrics = super().outer_loss(new_theta, theta, phi, alpha, ema, s, a)
        change = self.weighting(new_theta, s, a, w)  # of L_alpha, eq. 6
        metrics |= {"losses/outer": loss + change, "losses/L_alpha": metrics["losses/L_alpha"] + change}
        return loss + change, metrics | {"aspc/bc_weight": w.mean()}

    def tensors(self):
        adam = {f"value.adam.{key}": tensor for key, tensor in vars(self.value_adam).items()}
        return super().tensors() | {"value": self.psi} | adam


if __name__ == "__main__":
    run(Agent, __doc__, __file__)
