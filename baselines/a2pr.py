"""A2PR: TD3+BC that imitates the better of the data's action and a generative model's, if one is good.

A2PR (adaptive Advantage-guided Policy Regularization) learns V beside the critics, and a conditional VAE of the data's
better actions. With A(s, a) = Q(s, a) − V(s) it trains a policy π_θ on a fixed dataset D of (s, a) with the loss

    L(θ) = E_D[ −λ Q(s, π_θ(s)) + m ‖π_θ(s) − ā‖² ],    λ = α / E_D|Q(s, π_θ(s))|
    ā = â if A(s, â) ≥ A(s, a), else a,    â = VAE(s, π_θ(s)),    m = 1{A(s, â) ≥ 0 or A(s, a) > 0}

and a constant α that weighs "maximise Q" against "stay near good actions". By default the networks have the sizes that
the ASPC paper's comparisons give them; --official-networks gives the original ones.

Paper: Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning, ICML 2024, arXiv:2405.19909.
Method, metrics and differences from the official code: docs/a2pr.md.

    python baselines/a2pr.py --env-id halfcheetah-medium-v2
"""

import sys
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._pytree import tree_map

import d4rl_gymnasium as d4rl
from offline_run import Run, RunArgs, evaluate_saved, launch, tuned

# TD3's and the VAE's constants, the same on every task
TAU = 0.005  # Polyak rate of the target networks
POLICY_NOISE, NOISE_CLIP = 0.2, 0.5  # target policy smoothing, in units of the action's half range
POLICY_FREQ = 2  # critic updates for each policy update
LEARNING_RATE, VAE_LEARNING_RATE = 3e-4, 1e-3
LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0  # of the VAE's latent variables
Metrics = dict[str, Tensor]  # tag -> a number of one learner, or (K,) of all


@dataclass
class Args(RunArgs):
    env_id: tuple[str, ...] = ("halfcheetah-medium-v2",)
    """tasks of D4RL or OGBench (`python -m d4rl_gymnasium list`), or one of gymnasium with --dataset-path"""
    seed: int = 0
    """the first seed: it fixes initial weights, batches, noise and evaluation episodes"""
    num_seeds: int = 1
    """seeds of each task: seed, seed+1, ... All tasks and seeds train side by side, for one leaves a GPU almost idle"""
    total_steps: int = 1_000_000
    """gradient steps (critic updates), rounded up to whole periods of 20"""
    batch_size: int = 256
    """transitions in a batch"""
    alpha: float = 2.5
    """weight of Q against staying near the data"""
    mask: float = 1.0
    """weight of imitation in the states where m is 1"""
    vae_weight: float = 1.0
    """weight of the VAE's reconstruction error against its KL divergence"""
    discount: float = 0.99
    """γ"""
    official_networks: bool = False
    """critics and V of four hidden layers and a policy of three, instead of the ASPC paper's three, three and two"""
    tuned: bool = False
    """alpha, mask, vae-weight and discount as the official code's examples set them for three tasks"""

    def check(self) -> None:
        if min(self.alpha, self.mask, self.vae_weight) < 0 or not 0 < self.discount < 1:
            sys.exit("--alpha, --mask and --vae-weight must be at least 0, and --discount between 0 and 1.")


# --- The official code's examples -------------------------------------------------------------------------------------

TUNED = {
    "halfcheetah-medium-v2": {"alpha": 40.0, "mask": 1.0, "vae_weight": 1.0, "discount": 0.99},
    "hopper-medium-v2": {"alpha": 2.5, "mask": 0.4, "vae_weight": 1.0, "discount": 0.995},
    "walker2d-medium-v2": {"alpha": 2.5, "mask": 1.0, "vae_weight": 1.5, "discount": 0.99},
}


# --- Networks: written for one learner --------------------------------------------------------------------------------


def mlp(inputs: int, units: int, layers: int, outputs: int) -> nn.Sequential:
    """Hidden layers with ReLU and a linear one, with PyTorch's initial weights."""
    sizes, hidden = [inputs] + [units] * layers, []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        hidden += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(units, outputs))


class Actor(nn.Module):
    """Deterministic policy π: normalised states (..., S) -> actions (..., A) within the action space's bounds."""

    def __init__(self, state_dim: int, low: Tensor, high: Tensor, layers: int):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        self.net = mlp(state_dim, 256, layers, len(low))

    def forward(self, s: Tensor) -> Tensor:
        return self.action_bias + self.action_scale * self.net(s).tanh()


class Critic(nn.Module):
    """One Q function: normalised states (..., S), actions (..., A) -> values (...)."""

    def __init__(self, state_dim: int, action_dim: int, layers: int):
        super().__init__()
        self.net = mlp(state_dim + action_dim, 256, layers, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)


class Value(nn.Module):
    """V: normalised states (..., S) -> values (...)."""

    def __init__(self, state_dim: int, layers: int):
        super().__init__()
        self.net = mlp(state_dim, 256, layers, 1)

    def forward(self, s: Tensor) -> Tensor:
        return self.net(s).squeeze(-1)


class VAE(nn.Module):
    """Conditional VAE: normalised states (..., S), actions (..., A), noise (..., 2A) -> actions within the bounds.

    They are decoded from z = mean + exp(log_std) noise; z's mean and log_std (..., 2A) come with them.
    """

    def __init__(self, state_dim: int, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)
        latent_dim = 2 * len(low)
        self.encoder = mlp(state_dim + len(low), 750, 2, 2 * latent_dim)
        self.decoder = mlp(state_dim + latent_dim, 750, 2, len(low))

    def forward(self, s: Tensor, a: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_std = self.encoder(torch.cat([s, a], -1)).chunk(2, -1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        z = mean + log_std.exp() * noise
        return self.action_bias + self.action_scale * self.decoder(torch.cat([s, z], -1)).tanh(), mean, log_std


class Policy(nn.Module):
    """What acts and what a run saves: an actor with the normalisation of the states that it was trained on."""

    def __init__(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor, layers: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.actor = Actor(len(mean), low, high, layers)

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (E, S) -> actions (E, A). It draws nothing from the generator."""
        return self.actor((observations - self.mean) / self.std)


def load_policy(saved: dict[str, Tensor]) -> Policy:
    """The policy of a run's actor.pt."""
    scale, bias = saved["actor.action_scale"], saved["actor.action_bias"]
    layers = sum(name.endswith("weight") for name in saved) - 1
    policy = Policy(saved["mean"], saved["std"], bias - scale, bias + scale, layers)
    policy.load_state_dict(saved)
    return policy


# --- A network is a vector: the tools of all learners -----------------------------------------------------------------


class Function:
    """A module as a function of its parameters: Function(actor)(theta, s) with theta (n,)."""

    def __init__(self, module: nn.Module):
        self.module, self.shapes = module, {name: p.shape for name, p in module.named_parameters()}

    def __call__(self, theta: Tensor, *inputs: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return functional_call(self.module, named, inputs, tie_weights=False)  # none are tied, and looking is slow


class Adam:
    """Adam for the vectors of all learners, (K, n): in place and on the device, so that a CUDA graph can replay it."""

    def __init__(self, theta: Tensor):
        self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        # float32 is too coarse for 1 − 0.999^t; a power would, compiled, be taken anew for every element
        zero = torch.zeros((), dtype=torch.float64, device=theta.device)
        self.t, self.beta1_t, self.beta2_t = zero, zero + 1, zero + 1  # t, 0.9^t, 0.999^t

    def step(self, theta: Tensor, g: Tensor, learning_rate: float | Tensor = LEARNING_RATE) -> None:
        self.t += 1
        self.beta1_t *= 0.9
        self.beta2_t *= 0.999
        self.m.lerp_(g, 0.1)
        self.v.mul_(0.999).addcmul_(g, g, value=0.001)
        root = (self.v / (1 - self.beta2_t)).sqrt_().add_(1e-8)
        theta -= (self.m / root).mul_(learning_rate / (1 - self.beta1_t))


class ReplayBuffer:
    """The datasets as one table on the device, states normalised. Each learner draws from the rows of its own task."""

    def __init__(self, data: list[dict[str, np.ndarray]], num_seeds: int, steps: int, batch_size: int, device: str):
        """data: D4RL's transitions of each task; steps: batches that are drawn at once."""
        dtype, tables, first = torch.get_default_dtype(), [], 0
        self.mean, self.std, self.ranges = [], [], []  # of each learner, task by task
        for transitions in data:
            s, a, next_s, r, d = (
                torch.as_tensor(transitions[key], dtype=dtype).reshape(len(transitions["rewards"]), -1)
                for key in ("observations", "actions", "next_observations", "rewards", "terminals")
            )
            mean, std = s.double().mean(0).to(dtype), (s.double().std(0, correction=0) + 1e-3).to(dtype)
            tables.append(torch.cat([(s - mean) / std, a, (next_s - mean) / std, r, d], 1))
            self.mean += num_seeds * [mean]
            self.std += num_seeds * [std]
            self.ranges += num_seeds * [(first, first + len(r))]
            first += len(r)
        self.table, self.widths = torch.cat(tables).to(device), [x.shape[1] for x in (s, a, next_s, r, d)]
        self.indices = torch.zeros(len(self.ranges), steps, batch_size, dtype=torch.int64, device=device)

    def draw(self, generators: list[torch.Generator]) -> None:
        """Choose the rows of the next batches, each learner's by its own generator."""
        for indices, (first, end), generator in zip(self.indices, self.ranges, generators, strict=True):
            indices.random_(first, end, generator=generator)

    def batches(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s (K, steps, B, S), a (K, steps, B, A), s', r (K, steps, B), d."""
        s, a, next_s, r, d = self.table[self.indices].split(self.widths, -1)
        return s, a, next_s, r.squeeze(-1), d.squeeze(-1)


# --- The agent: losses of one learner, updates of all -----------------------------------------------------------------


class Agent:
    """K learners, tasks x seeds, side by side: a network of theirs is a matrix (K, n), its rows independent."""

    compiled = ("update",)  # what torch.compile takes whole
    period_steps = 20  # gradient steps in one unit of work, a multiple of POLICY_FREQ

    def __init__(self, args: Args, data: list[dict[str, np.ndarray]], low: np.ndarray, high: np.ndarray, device: str):
        """data: D4RL's transitions of each task; low, high: (A,) bounds of the actions."""
        self.args, self.device, dtype = args, torch.device(device), torch.get_default_dtype()
        self.buffer = ReplayBuffer(data, args.num_seeds, self.period_steps, args.batch_size, device)
        self.low, self.high = (torch.as_tensor(bound, dtype=dtype, device=device) for bound in (low, high))
        state_dim, action_dim = self.buffer.widths[:2]
        seeds = [args.seed + k for k in range(args.num_seeds)] * len(data)
        theta, phi, psi, omega = [], [], [], []
        layers = 4 if args.official_networks else 3
        for seed in seeds:
            torch.manual_seed(seed)
            actor = Actor(state_dim, self.low, self.high, layers - 1)
            twins = [Critic(state_dim, action_dim, layers) for _ in range(2)]
            value, vae = Value(state_dim, layers), VAE(state_dim, self.low, self.high)
            theta.append(parameters_to_vector(actor.parameters()))
            phi.append(torch.stack([parameters_to_vector(critic.parameters()) for critic in twins]))
            psi.append(parameters_to_vector(value.parameters()))
            omega.append(parameters_to_vector(vae.parameters()))
        self.theta, self.phi = torch.stack(theta).detach().to(device), torch.stack(phi).detach().to(device)
        self.psi, self.omega = torch.stack(psi).detach().to(device), torch.stack(omega).detach().to(device)
        self.target_theta, self.target_phi = self.theta.clone(), self.phi.clone()  # (K, n) and (K, 2, m)
        self.actor_adam, self.critic_adam = Adam(self.theta), Adam(self.phi)
        self.value_adam, self.vae_adam = Adam(self.psi), Adam(self.omega)
        self.pi, self.q = Function(actor.to(device)), Function(twins[0].to(device))
        self.v, self.vae = Function(value.to(device)), Function(vae.to(device))

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.noises = [action_dim, 2 * action_dim, 2 * action_dim]  # of target policy, VAE's loss, VAE's offer
        self.noise = torch.zeros(*self.buffer.indices.shape, sum(self.noises), dtype=dtype, device=device)
        self.metrics: Metrics = {}  # tag -> (K,), as of the last period

    def all(self, function):
        """A function of one learner for all K: the first axis of what it takes and gives counts the learners."""
        if len(self.theta) > 1:
            return vmap(function)
        return lambda *inputs: tree_map(lambda x: x[None], function(*tree_map(lambda x: x[0], inputs)))  # quicker

    def gradient(self, loss, theta: Tensor, *inputs) -> tuple:
        """Of a loss of one learner, for all K: its gradient in theta, (K, n), and what it gives beside (metrics)."""
        if torch.compiler.is_compiling():  # it can trace torch.func alone; without it that is slower
            return self.all(grad(loss, has_aux=True))(theta, *inputs)
        theta = theta.detach().requires_grad_()
        losses, metrics = self.all(loss)(theta, *inputs)
        (g,) = torch.autograd.grad(losses.sum(), theta)  # the rows of theta are independent
        return g, tree_map(Tensor.detach, metrics)

    # --- Losses of one learner ---

    def twins(self, phi: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """Both Q_j(s, a): (2, m), (B, S), (B, A) -> (2, B)."""
        if self.device.type == "cpu":  # where two products are faster than a batched one
            return torch.stack([self.q(phi[0], s, a), self.q(phi[1], s, a)])
        return vmap(lambda critic: self.q(critic, s, a))(phi)

    def next_action(self, theta: Tensor, next_s: Tensor, noise: Tensor) -> Tensor:
        """TD3's ã' = π'(s') + ε: (B, A)."""
        epsilon = (POLICY_NOISE * noise).clamp(-NOISE_CLIP, NOISE_CLIP) * self.pi.module.action_scale
        return (self.pi(theta, next_s) + epsilon).clamp(self.low, self.high)

    def target(self, phi: Tensor, next_s: Tensor, next_a: Tensor, r: Tensor, d: Tensor) -> Tensor:
        """r + γ (1 − d) min_j Q_j(s', ã'): with the target critics TD3's y."""
        return r + self.args.discount * (1 - d) * self.twins(phi, next_s, next_a).amin(0)

    def critic_loss(self, phi: Tensor, s: Tensor, a: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Sum over the twins of mean (Q_j(s, a) − y)²."""
        loss = (self.twins(phi, s, a) - y).square().mean(1).sum()
        return loss, {"losses/critic": loss}

    def value_loss(self, psi: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        """Mean (V(s) − y)²; beside it V(s), (B,)."""
        v = self.v(psi, s)
        loss = (v - y).square().mean()
        return loss, (v, {"losses/value": loss})

    def vae_loss(
        self, omega: Tensor, advantage: Tensor, s: Tensor, a: Tensor, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """w mean 1{A(s, a) > 0} ‖â − a‖² + KL(z's distribution | N(0, 1)) / 2, the mean over z's dimensions too."""
        decoded, mean, log_std = self.vae(omega, s, a, noise)
        better = (advantage > 0).to(a)
        reconstruction = self.args.vae_weight * (better[:, None] * (decoded - a).square()).mean()
        kl = (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).mean() / 2
        loss = reconstruction + kl / 2
        return loss, {"losses/vae": loss, "losses/reconstruction": reconstruction}

    def actor_loss(
        self, theta: Tensor, phi: Tensor, omega: Tensor, v: Tensor, advantage: Tensor, s: Tensor, a: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Metrics]:  # fmt: skip
        """−λ mean Q_1(s, π(s)) + mean m ‖π(s) − ā‖²,  λ = α / mean |Q_1(s, π(s))| without gradient.

        As in the official code the gradient reaches the policy also through ā where that is â = VAE(s, π(s)).
        """
        pi = self.pi(theta, s)
        q = self.q(phi[0], s, pi)
        offered, _, _ = self.vae(omega, s, pi, noise)  # â
        offered_advantage = self.q(phi[0], s, offered.detach()) - v
        take = offered_advantage >= advantage
        target = torch.where(take[:, None], offered, a)  # ā
        imitated = ((offered_advantage >= 0) | (advantage > 0)).to(q)
        bc = self.args.mask * (imitated[:, None] * (pi - target).square()).mean()
        loss = -self.args.alpha / q.abs().mean().detach() * q.mean() + bc
        return loss, {
            "losses/actor": loss, "losses/q": q.mean(), "losses/imitated": imitated.mean(),
            "losses/offered": take.to(q).mean(),
        }  # fmt: skip

    # --- Updates of all learners ---

    def update(self, s, a, next_s, r, d, noise) -> Metrics:
        """Two gradient steps, from batches (K, 2, B, ...): critics, V and VAE twice, policy and targets once."""
        noise, vae_noise, offer_noise = noise.split(self.noises, -1)
        # The targets rest, so that one pass gives ã' and y of both: (K, 2B, ...)
        next_a = self.all(self.next_action)(self.target_theta, next_s.flatten(1, 2), noise.flatten(1, 2))
        both = next_s.flatten(1, 2), next_a, r.flatten(1, 2), d.flatten(1, 2)
        y = self.all(self.target)(self.target_phi, *both).unflatten(1, (POLICY_FREQ, -1))
        next_a = next_a.unflatten(1, (POLICY_FREQ, -1))
        for i in range(POLICY_FREQ):
            g, metrics = self.gradient(self.critic_loss, self.phi, s[:, i], a[:, i], y[:, i])
            self.critic_adam.step(self.phi, g)
            online_y = self.all(self.target)(self.phi, next_s[:, i], next_a[:, i], r[:, i], d[:, i])
            least_y = torch.minimum(y[:, i], online_y)
            g, (v, value_metrics) = self.gradient(self.value_loss, self.psi, s[:, i], least_y)
            self.value_adam.step(self.psi, g)
            # of the critics after their step and V before its
            advantage = self.all(lambda phi, s, a: self.q(phi[0], s, a))(self.phi, s[:, i], a[:, i]) - v
            g, vae_metrics = self.gradient(self.vae_loss, self.omega, advantage, s[:, i], a[:, i], vae_noise[:, i])
            self.vae_adam.step(self.omega, g, VAE_LEARNING_RATE)
        s, a = s[:, 1], a[:, 1]  # the second batch, to which v and the advantage belong
        g, more = self.gradient(
            self.actor_loss, self.theta, self.phi, self.omega, v, advantage, s, a, offer_noise[:, 1]
        )
        self.actor_adam.step(self.theta, g)
        self.target_theta.lerp_(self.theta, TAU)
        self.target_phi.lerp_(self.phi, TAU)
        return metrics | value_metrics | vae_metrics | more

    def period(self) -> None:
        """One unit of work, from static inputs and on the device alone: what a CUDA graph records."""
        for pair in zip(*(x.split(POLICY_FREQ, 1) for x in (*self.buffer.batches(), self.noise)), strict=True):
            self.metrics = self.update(*pair)

    # --- What a run needs ---

    def advance(self) -> None:
        """Draw one period's batches and noise, each learner's from its own generator, and run it."""
        self.buffer.draw(self.generators)
        for noise, generator in zip(self.noise, self.generators, strict=True):
            noise.normal_(generator=generator)
        self.period()

    def policy(self, k: int) -> Policy:
        """The k-th learner's, on the CPU and detached from training."""
        low, high, layers = self.low.cpu(), self.high.cpu(), len(self.pi.shapes) // 2 - 1
        policy = Policy(self.buffer.mean[k], self.buffer.std[k], low, high, layers)
        vector_to_parameters(self.theta[k].cpu(), policy.actor.parameters())
        return deepcopy(policy)  # its parameters are views of one vector, which a file would hold whole

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, except the generators, by name: the tensors themselves, not copies."""
        state = {"actor": self.theta, "target_actor": self.target_theta, "value": self.psi, "vae": self.omega}
        state |= {"critics": self.phi, "target_critics": self.target_phi}
        adams = {
            "actor": self.actor_adam, "critics": self.critic_adam, "value": self.value_adam, "vae": self.vae_adam
        }  # fmt: skip
        for name, adam in adams.items():
            state |= {f"{name}.adam.{key}": tensor for key, tensor in vars(adam).items()}
        return state


# --- Main -------------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    if args.eval:
        return evaluate_saved(args, __file__, load_policy, d4rl.percent_score)
    run = Run(tuned(args, TUNED), __file__)  # a new run, or with --resume one that stopped
    tasks = d4rl.load_tasks(run.args.env_id, run.args.dataset_path, run.args.stand_in)
    agent = Agent(run.args, tasks.transitions, tasks.low, tasks.high, run.device)
    run.start(agent, tasks, d4rl.percent_score)
    while run.goes_on():
        agent.advance()  # one period of gradient steps
        run.advanced()  # metrics, evaluation and checkpoint where they are due
    run.finish()  # the final evaluation


if __name__ == "__main__":
    launch(main, Args, __doc__, d4rl.DatasetError)
