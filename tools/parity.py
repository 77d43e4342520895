"""Each script's update beside the official code's own train step: same weights, batches and noise, float64.

    python -m tools.parity --reference DIR          # all of them, 40 updates or more each; says what DIR lacks
    python -m tools.parity --reference DIR --only td3bc

DIR holds clones of the official repositories under the names in REPOSITORIES. Their files are imported as they are and
stay so; stubs stand for the packages that no train step needs (gym, d4rl, wandb, ...). Random numbers are not theirs:
where their code draws, it is handed what the script's learner drew. ReBRAC and FQL need jax, flax and optax.
docs/exactness.md has the table and says what it compares.
"""

import argparse
import importlib
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

REPOSITORIES = {  # folder in DIR -> where it comes from
    "ASPC": "https://github.com/Colin-Jing/ASPC",
    "CORL": "https://github.com/corl-team/CORL",
    "TD3_BC": "https://github.com/sfujim/TD3_BC",
    "wPC": "https://github.com/qsa-fox/wPC",
    "A2PR": "https://github.com/ltlhuuu/A2PR",
    "Diffusion-Policies-for-Offline-RL": "https://github.com/Zhendong-Wang/Diffusion-Policies-for-Offline-RL",
    "fql": "https://github.com/seohongpark/fql",
}
STUBS = ("chex", "d4rl", "distrax", "gym", "ml_collections", "pyrallis", "tqdm", "tqdm.auto", "wandb")
S, A, ROWS, BATCH = 11, 3, 1000, 16  # dimensions, transitions, and those in a batch

# --- Their code -------------------------------------------------------------------------------------------------------


class Stub(ModuleType):
    """Has whatever is asked of it: classes that take anything and, called like a decorator, give back what they get."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_, **__: None, "__call__": lambda self, function: function})


def load(folder: Path, name: str) -> ModuleType:
    """Their module `name`, imported from the folder beside stubs. The interpreter's modules are afterwards as before,
    for two repositories may both have an `agents` or a `utils`.
    """
    before, top = dict(sys.modules), {path.stem for path in folder.iterdir()}
    for key in [key for key in before if key.split(".")[0] in top]:
        del sys.modules[key]
    sys.modules.update({stub: Stub(stub) for stub in STUBS})
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for key in [key for key in sys.modules if key.split(".")[0] in {*top, *STUBS}]:
            del sys.modules[key]
        sys.modules.update({key: module for key, module in before.items() if key not in sys.modules})


TORCH = (
    (torch, "randn"), (torch, "randn_like"), (torch, "randint"), (torch.Tensor, "uniform_"), (np.random, "uniform"),
    (torch.distributions.normal, "_standard_normal"),
)  # fmt: skip


@contextmanager
def fed(*numbers, functions: tuple = TORCH, left: int = 0) -> Iterator[None]:
    """Within it these random functions of theirs give these numbers, one a call. `left` may stay unasked for.

    Casts to float32 that their code writes out are casts to float64 here.
    """
    unused = list(numbers)

    def feed(*_, **__) -> object:
        return unused.pop(0)

    def dropout(x: Tensor, p: float, *_) -> Tensor:
        return x * (feed() >= p) / (1 - p)

    with ExitStack() as stack:
        for owner, name in functions:
            stack.enter_context(patch.object(owner, name, feed))
        stack.enter_context(patch.object(nn.functional, "dropout", dropout))
        stack.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield
    assert len(unused) <= left, f"{len(unused)} of {len(numbers)} random numbers were not asked for."


# --- The comparison ---------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A vector of the script's learner, updated in place, and how to read the same numbers of theirs."""

    ours: Tensor
    theirs: Callable[[], Tensor]


def follow(ours: Tensor, *theirs: nn.Module | Tensor) -> Part:
    """Their parameters, in the order of ours, take our values."""
    parameters = [p for x in theirs for p in (x.parameters() if isinstance(x, nn.Module) else [x])]
    vector_to_parameters(ours.flatten().clone(), parameters)
    return Part(ours, lambda: parameters_to_vector(parameters).detach())


def random_data(high: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(1, 2, (ROWS, S)),
        "actions": rng.uniform(-high, high, (ROWS, A)),
        "next_observations": rng.normal(1, 2, (ROWS, S)),
        "rewards": rng.normal(0.5, 1, ROWS),
        "terminals": rng.random(ROWS) < 0.1,
        "next_actions": rng.uniform(-high, high, (ROWS, A)),  # ReBRAC's alone
    }


def make_agent(script: ModuleType, high: float = 1.0, **options):
    args = script.Args(**{"batch_size": BATCH} | options)
    return script.Agent(args, [random_data(high)], np.full(A, -high), np.full(A, high), "cpu")


def compare(agent, parts: list[Part], step: Callable, updates: int) -> tuple[float, float]:
    """The largest difference over all parts after so many updates of both, and how far the parts have moved.

    step(i, s, a, s', r, d) trains theirs once, on a batch with r and d as columns; i counts within the period.
    """
    start = [part.ours.flatten().clone() for part in parts]
    for _ in range(-(-updates // agent.period_steps)):
        agent.advance()  # leaves its batches and noise behind
        batches = [x[0] if x.ndim > 3 else x[0, ..., None] for x in agent.buffer.batches()]
        for i in range(agent.period_steps):
            step(i, *(x[i] for x in batches))
    return (
        farthest((part.ours.flatten(), part.theirs().flatten()) for part in parts),
        farthest((part.ours.flatten(), before) for part, before in zip(parts, start, strict=True)),
    )


def farthest(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The largest difference between the two of a pair; NaN if there is one."""
    return torch.stack([(x - y).abs().max() for x, y in pairs]).max().item()


# --- Each algorithm: the learner, its parts beside theirs, and a step of theirs ---------------------------------------

Sides = tuple[object, list[Part], Callable]


def adam(net: nn.Module, lr: float = 3e-4) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=lr)


def td3_parts(agent, trainer, target_actor: nn.Module, critics: list, target_critics: list) -> list[Part]:
    parts = [
        follow(agent.theta, trainer.actor), follow(agent.target_theta, target_actor),
        follow(agent.phi, *critics), follow(agent.target_phi, *target_critics),
    ]  # fmt: skip
    if hasattr(agent, "psi") and hasattr(trainer, "vnet"):
        parts.append(follow(agent.psi, trainer.vnet))
    return parts


def corl_td3(script: ModuleType, folder: Path, file: str, name: str, high: float = 1.0, **options) -> Sides:
    """CORL's TD3+BC, and those of the authors of ASPC, which have its form."""
    module = load(folder / "algorithms/offline", file)
    accelerated, alpha = options.pop("accelerated", False), options.pop("loss_function", None)
    if alpha:  # which of L_Q and L_BC take part
        options |= {"l_q_coef": float(alpha in (2, 4)), "l_bc_coef": float(alpha in (3, 4))}
    agent = make_agent(script, high, **options)
    nets = [module.Actor(S, A, high), module.Critic(S, A), module.Critic(S, A)]
    nets += [module.Vnet(S)] if hasattr(module, "Vnet") else []
    optimizers, more = [adam(net) for net in nets], {}
    if alpha:
        # Without such a 1e-30 as is in ours, plain Adam has no derivative where a gradient has always been 0
        plain = {"eps_root": 1e-30}
        optimizers[0] = module.torchopt.adam(3e-4, **{"use_accelerated_op": True} if accelerated else plain)
        more = {"loss_function": alpha, "alpha_freq": agent.args.alpha_interval}
    trainer = getattr(module, name)(
        high, *itertools.chain(*zip(nets, optimizers, strict=True)), policy_noise=0.2 * high, noise_clip=0.5 * high,
        **more,
    )  # fmt: skip
    critics = [trainer.critic_1, trainer.critic_2], [trainer.critic_1_target, trainer.critic_2_target]
    parts = td3_parts(agent, trainer, trainer.actor_target, *critics)
    if alpha:
        trainer.reward_mean = 0.0  # which their code never sets
        parts += [follow(agent.rho, trainer.alpha), Part(agent.ema, lambda: trainer.ema_q.detach())]

    def step(i: int, s: Tensor, a: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> None:
        with fed(agent.noise[0, i]):
            trainer.train([s, a, r, next_s, d])

    return agent, parts, step


def fujimoto_td3(script: ModuleType, folder: Path, file: str, high: float = 1.0) -> Sides:
    """TD3+BC by its authors, and wPC, which grew out of that."""
    module = load(folder, file)
    agent = make_agent(script, high, robust_critic=False)
    trainer = module.TD3_BC(S, A, high, policy_noise=0.2 * high, noise_clip=0.5 * high)
    parts = td3_parts(agent, trainer, trainer.actor_target, [trainer.critic], [trainer.critic_target])

    def step(i: int, s: Tensor, a: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> None:
        with fed(agent.noise[0, i]):
            trainer.train(SimpleNamespace(sample=lambda _: (s, a, next_s, r, 1 - d)), BATCH)

    return agent, parts, step


def iql(script: ModuleType, folder: Path, **options) -> Sides:
    """CORL's."""
    module, agent = load(folder / "algorithms/offline", "iql"), make_agent(script, **options)
    args = agent.args
    policy = module.DeterministicPolicy if args.deterministic else module.GaussianPolicy
    actor, qf, vf = policy(S, A, 1.0, dropout=args.actor_dropout or None), module.TwinQ(S, A), module.ValueFunction(S)
    trainer = module.ImplicitQLearning(
        1.0, actor, adam(actor), qf, adam(qf), vf, adam(vf), iql_tau=args.expectile, beta=args.beta,
        max_steps=args.total_steps, tau=args.tau,
    )  # fmt: skip
    log_std = [] if hasattr(actor, "log_std") else [torch.zeros(A)]  # of which our deterministic policy makes no use
    parts = [
        follow(agent.theta, *log_std, actor), follow(agent.phi, qf), follow(agent.target_phi, trainer.q_target),
        follow(agent.psi, vf),
    ]  # fmt: skip

    def step(i: int, s: Tensor, a: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> None:
        with fed(*agent.noise[0, i].unbind(-2) if args.actor_dropout else ()):
            trainer.train([s, a, r, next_s, d])

    return agent, parts, step


def cql(script: ModuleType, folder: Path, **options) -> Sides:
    """CORL's."""
    module, agent = load(folder / "algorithms/offline", "cql"), make_agent(script, **options)
    args, m = agent.args, script.M
    actor = module.TanhGaussianPolicy(S, A, 1.0)
    critics = [module.FullyConnectedQFunction(S, A, True, args.critic_layers) for _ in range(2)]
    trainer = module.ContinuousCQL(
        critics[0], adam(critics[0]), critics[1], adam(critics[1]), actor, adam(actor, args.policy_lr),
        target_entropy=-float(A), policy_lr=args.policy_lr, qf_lr=3e-4, bc_steps=0, cql_lagrange=args.lagrange,
        cql_target_action_gap=args.target_action_gap, cql_temp=args.temperature, cql_alpha=args.alpha,
        cql_max_target_backup=args.max_target_backup,
        cql_clip_diff_min=-np.inf if args.clip_diff_min is None else args.clip_diff_min,
    )  # fmt: skip
    parts = [
        follow(agent.theta, actor.log_std_multiplier, actor.log_std_offset, actor.base_network),
        follow(agent.phi, *critics), follow(agent.target_phi, trainer.target_critic_1, trainer.target_critic_2),
        follow(agent.log_eta, trainer.log_alpha),
    ]  # fmt: skip
    if args.lagrange:
        parts.append(follow(agent.log_lagrange, trainer.log_alpha_prime))

    def step(i: int, s: Tensor, a: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> None:
        noise, uniform = agent.noise[0, i], 2 * agent.uniform[0, i] - 1
        at_s, at_next_s, target = (x.transpose(0, 1) for x in (noise[:m], noise[m : 2 * m], noise[2 * m : -1]))
        target = target if args.max_target_backup else target.squeeze(1)
        with fed(noise[-1], target, uniform.transpose(0, 1), at_s, at_next_s):
            trainer.train([s, a, r, next_s, d])

    return agent, parts, step


def a2pr(script: ModuleType, folder: Path, **options) -> Sides:
    module, agent = load(folder, "A2PR"), make_agent(script, official_networks=True, **options)
    args = agent.args
    trainer = module.A2PR(
        S, A, 1.0, "cpu", discount=args.discount, alpha=args.alpha, mask=args.mask, vae_weight=args.vae_weight
    )
    vae = trainer.vae
    parts = td3_parts(agent, trainer, trainer.actor_target, [trainer.critic], [trainer.critic_target])
    heads = vae.mean.weight, vae.log_std.weight, vae.mean.bias, vae.log_std.bias  # one layer of ours
    parts += [
        follow(agent.psi, trainer.value), follow(agent.omega, vae.e1, vae.e2, *heads, vae.d1, vae.d2, vae.d3)
    ]  # fmt: skip

    def step(i: int, s: Tensor, a: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> None:
        with fed(*agent.noise[0, i].split(agent.noises, -1), left=1):  # the third at policy steps alone
            trainer.train(SimpleNamespace(sample=lambda _: (s, a, r, next_s, 1 - d)), BATCH)

    return agent, parts, step


def diffusionql(script: ModuleType, folder: Path, **options) -> Sides:
    """The target policy moves from step 10 on instead of 1000, on both sides."""
    module = load(folder, "agents.ql_diffusion")
    script.EMA_START = 10
    agent = make_agent(script, **options)
    args, schedule = agent.args, module.Diffusion.__init__.__globals__
    schedule["vp_beta_schedule"] = partial(schedule["vp_beta_schedule"], dtype=torch.float64)
    trainer = module.Diffusion_QL(
        S, A, 1.0, "cpu", 0.99, 0.005, max_q_backup=args.max_q_backup, eta=args.eta, beta_schedule="vp",
        n_timesteps=script.T, step_start_ema=script.EMA_START, lr=args.actor_lr, grad_norm=args.grad_norm,
    )  # fmt: skip
    parts = td3_parts(agent, trainer, trainer.ema_model, [trainer.critic], [trainer.critic_target])

    def chain(noise: Tensor) -> list[Tensor]:
        """(..., T, A): they draw once more after the last step, and multiply that by 0."""
        return [*noise.unbind(-2), torch.zeros_like(noise[..., 0, :])]

    def step(i: int, s: Tensor, a: Tensor, next_s: Tensor, r: Tensor, d: Tensor) -> None:
        noise = script.Noise(*(x[0, i] for x in agent.noise))
        coin = 1.0 if noise.i == 0 else 0.0
        with fed(*chain(noise.next_chains.flatten(0, 1)), noise.t, noise.epsilon, *chain(noise.chain), coin):
            trainer.train(SimpleNamespace(sample=lambda _: (s, a, next_s, r, 1 - d)), 1, BATCH)

    return agent, parts, step


# --- The same through JAX, on the CPU ---------------------------------------------------------------------------------

# A network there is {"Dense_0": {"kernel": (..., in, out), "bias": (..., out)}, "LayerNorm_0": {"scale", "bias"}, ...};
# both critics have one together, the first axis of which counts them.


def layers(net: dict) -> Iterator[tuple[str, str, tuple, tuple]]:
    """Of each layer, in PyTorch's order: its name, its weight's name, and the shapes of weight and bias."""
    for name in sorted(net, key=lambda name: (int(name.split("_")[1]), name)):
        weight = "kernel" if "kernel" in net[name] else "scale"
        yield name, weight, net[name][weight].shape, net[name]["bias"].shape


def to_jax(x: Tensor):
    """A copy, for JAX may read later, and the learner's tensors change in place."""
    import jax

    return jax.block_until_ready(jax.numpy.array(x.detach().numpy().copy()))


def to_flax(net: dict, vector: Tensor) -> dict:
    """A vector (..., n) in the form of the network."""
    new = {}
    for name, weight, shape, bias_shape in layers(net):
        axes = len(bias_shape) - 1
        sizes = int(np.prod(shape[axes:])), shape[-1]
        w, b, vector = vector.split([*sizes, vector.shape[-1] - sum(sizes)], -1)
        w = w.reshape(*shape[:axes], *reversed(shape[axes:]))
        w = w.transpose(-1, -2) if weight == "kernel" else w
        new[name] = {weight: to_jax(w), "bias": to_jax(b)}
    return new


def from_flax(net: dict) -> Tensor:
    """The vector (..., n) of a network."""
    found = []
    for name, weight, _, bias_shape in layers(net):
        w, b = (torch.tensor(np.array(net[name][key])) for key in (weight, "bias"))
        w = w.transpose(-1, -2) if weight == "kernel" else w
        found += [w.reshape(*bias_shape[:-1], -1), b]
    return torch.cat(found, -1)


class NoMetrics(NamedTuple):
    """What their step adds its metrics to."""

    def update(self, _) -> "NoMetrics":
        return self


def rebrac(script: ModuleType, folder: Path, **options) -> Sides:
    """CORL's."""
    import jax
    import optax

    module, agent = load(folder / "algorithms/offline", "rebrac"), make_agent(script, **options)
    args, key, s, a = agent.args, jax.random.PRNGKey(0), np.zeros((1, S)), np.zeros((1, A))
    actor, critic = module.DetActor(A, layernorm=False), module.EnsembleCritic(num_critics=2)
    actor_tree, critic_tree = actor.init(key, s)["params"], critic.init(key, s, a)["params"]["VmapCritic_0"]

    def actor_params(theta: Tensor) -> dict:
        return {"params": to_flax(actor_tree, theta[0])}

    def critic_params(phi: Tensor) -> dict:
        return {"params": {"VmapCritic_0": to_flax(critic_tree, phi[0])}}

    theirs = SimpleNamespace(
        actor=module.ActorTrainState.create(
            apply_fn=actor.apply, params=actor_params(agent.theta), target_params=actor_params(agent.target_theta),
            tx=optax.adam(args.actor_lr),
        ),
        critic=module.CriticTrainState.create(
            apply_fn=critic.apply, params=critic_params(agent.phi), target_params=critic_params(agent.target_phi),
            tx=optax.adam(args.critic_lr),
        ),
    )  # fmt: skip
    parts = [
        Part(agent.theta, lambda: from_flax(theirs.actor.params["params"])),
        Part(agent.target_theta, lambda: from_flax(theirs.actor.target_params["params"])),
        Part(agent.phi, lambda: from_flax(theirs.critic.params["params"]["VmapCritic_0"])),
        Part(agent.target_phi, lambda: from_flax(theirs.critic.target_params["params"]["VmapCritic_0"])),
    ]
    settings = dict(
        gamma=args.discount, actor_bc_coef=args.actor_bc_coef, critic_bc_coef=args.critic_bc_coef, tau=0.005,
        policy_noise=0.2, noise_clip=0.5, metrics=NoMetrics(),
    )  # fmt: skip

    def step(i: int, *batch: Tensor) -> None:
        names = "states", "actions", "next_states", "next_actions", "rewards", "dones"  # as in our buffer
        batch = {name: to_jax(x) for name, x in zip(names, batch, strict=True)}
        batch["rewards"], batch["dones"] = args.reward_scale * batch["rewards"][:, 0], batch["dones"][:, 0]
        inputs, noise = (key, theirs.actor, theirs.critic, batch), to_jax(agent.noise[0, i])
        with fed(noise, functions=((jax.random, "normal"),)):
            if i % 2:
                _, theirs.actor, theirs.critic, _ = module.update_td3_no_targets(*inputs, **settings)
            else:
                _, theirs.actor, theirs.critic, _ = module.update_td3(*inputs, normalize_q=True, **settings)

    return agent, parts, step


def fql(script: ModuleType, folder: Path, **options) -> Sides:
    import jax

    module, agent = load(folder, "agents.fql"), make_agent(script, **options)
    args = agent.args
    hidden = {"actor_hidden_dims": (512,) * 4, "value_hidden_dims": (512,) * 4, "actor_layer_norm": False}
    config = hidden | dict(
        lr=3e-4, layer_norm=True, discount=args.discount, tau=0.005, q_agg=args.q_agg, alpha=args.alpha, flow_steps=10,
        normalize_q_loss=args.normalize_q_loss, encoder=None,
    )  # fmt: skip
    theirs = SimpleNamespace(agent=module.FQLAgent.create(0, np.zeros((1, S)), np.zeros((1, A)), config))
    nets = {
        ("modules_actor_onestep_flow", "mlp"): agent.theta,
        ("modules_actor_bc_flow", "mlp"): agent.psi,
        ("modules_critic", "value_net"): agent.phi,
        ("modules_target_critic", "value_net"): agent.target_phi,
    }
    network = theirs.agent.network
    params = {name: {net: to_flax(network.params[name][net], x[0])} for (name, net), x in nets.items()}
    network = network.replace(params=params, opt_state=network.tx.init(params))
    theirs.agent = theirs.agent.replace(network=network)
    parts = [
        Part(x, lambda name=name, net=net: from_flax(theirs.agent.network.params[name][net]))
        for (name, net), x in nets.items()
    ]

    def step(i: int, *batch: Tensor) -> None:
        s, a, next_s, r, d = map(to_jax, batch)
        z, next_z, x0 = (to_jax(x) for x in agent.normal[:, 0, i])
        t = to_jax(agent.uniform[0, i])
        batch = dict(observations=s, actions=a, next_observations=next_s, rewards=r[:, 0], masks=1 - d[:, 0])
        # Their step is compiled, so that numbers must come in as its random key: a tree of them, split as they split it
        actor_key, critic_key = (((z, z), z), x0, t), (z, (next_z, z))
        with (
            patch.object(jax.random, "split", lambda key, num=2: key),
            patch.object(jax.random, "normal", lambda key, shape: key),
            patch.object(jax.random, "uniform", lambda key, shape: key),
        ):
            theirs.agent, _ = theirs.agent.replace(rng=(z, (z, actor_key, critic_key))).update(batch)

    return agent, parts, step


# --- Main -------------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    script: str
    repository: str
    sides: Callable[..., Sides]
    options: dict = {}
    updates: int = 40
    theirs: dict = {}  # what `sides` is told beside the options
    limit: float = 1e-11  # a larger difference makes the command fail


JAX = (rebrac, fql)
CORL_TD3, ASPC_TD3 = {"file": "td3_bc", "name": "TD3_BC"}, {"file": "aspc", "name": "Adaptive_TD3_BC"}
PLAIN = {"robust_critic": False}
ANTMAZE = {
    "lagrange": True, "target_action_gap": 0.8, "alpha": 5.0, "policy_lr": 1e-4, "critic_layers": 5,
    "clip_diff_min": -200.0, "max_target_backup": True,
}  # fmt: skip
COMPARISONS = [
    *(Comparison("aspc_td3bc", "ASPC", corl_td3, {"loss_function": n}, 400, ASPC_TD3) for n in (4, 3, 2, 1)),
    Comparison("aspc_td3bc", "ASPC", corl_td3, {"loss_function": 4, "alpha_interval": 5}, 400, ASPC_TD3),
    Comparison("aspc_td3bc", "ASPC", corl_td3, {"loss_function": 4, "accelerated": True}, 400, ASPC_TD3, 1e-7),
    Comparison("baselines/td3bc", "ASPC", corl_td3, {}, 40, CORL_TD3),
    Comparison("baselines/td3bc", "CORL", corl_td3, PLAIN, 40, CORL_TD3),
    Comparison("baselines/td3bc", "CORL", corl_td3, PLAIN | {"high": 2.0}, 40, CORL_TD3),
    Comparison("baselines/td3bc", "TD3_BC", fujimoto_td3, {}, 400, {"file": "TD3_BC"}),
    Comparison("baselines/td3bc", "TD3_BC", fujimoto_td3, {"high": 2.0}, 400, {"file": "TD3_BC"}),
    Comparison("baselines/wpc", "ASPC", corl_td3, {}, 40, {"file": "wpc", "name": "TD3_BC"}),
    Comparison("baselines/wpc", "wPC", fujimoto_td3, {}, 40, {"file": "TD3_wBC"}),
    Comparison("baselines/a2pr", "A2PR", a2pr),
    Comparison("baselines/a2pr", "A2PR", a2pr, {"alpha": 40.0, "mask": 0.4, "vae_weight": 1.5, "discount": 0.995}),
    Comparison("baselines/iql", "CORL", iql, {"total_steps": 40}),
    Comparison("baselines/iql", "CORL", iql, {"total_steps": 40, "beta": 10.0, "expectile": 0.9}),
    Comparison("baselines/iql", "CORL", iql, {"deterministic": True, "tau": 0.001}),
    Comparison("baselines/iql", "CORL", iql, {"actor_dropout": 0.1}),
    Comparison("baselines/cql", "CORL", cql),
    Comparison("baselines/cql", "CORL", cql, {"lagrange": True, "target_action_gap": 5.0}),
    Comparison("baselines/cql", "CORL", cql, ANTMAZE),
    Comparison("baselines/diffusionql", "Diffusion-Policies-for-Offline-RL", diffusionql),
    Comparison("baselines/diffusionql", "Diffusion-Policies-for-Offline-RL", diffusionql, {"max_q_backup": True,
               "eta": 2.0, "grad_norm": 1.0}),
    Comparison("baselines/rebrac", "CORL", rebrac),
    Comparison("baselines/rebrac", "CORL", rebrac, {"critic_bc_coef": 0.1, "reward_scale": 100.0, "discount": 0.999}),
    Comparison("baselines/fql", "fql", fql, {}, 20),
    Comparison("baselines/fql", "fql", fql, {"q_agg": "min", "normalize_q_loss": True}, 20),
]  # fmt: skip


def commit(clone: Path) -> str:
    found = subprocess.run(["git", "-C", clone, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder of the clones")
    parser.add_argument("--only", default="", help="scripts whose name contains this")
    parser.add_argument("--updates", type=int, help="in place of each comparison's own number")
    args = parser.parse_args()
    sys.dont_write_bytecode = True  # nothing of ours among their files
    torch.set_default_dtype(torch.float64)
    chosen = [x for x in COMPARISONS if args.only in x.script]
    for folder in dict.fromkeys(x.repository for x in chosen):
        if not (args.reference / folder).is_dir():
            print(f"Left out: {args.reference / folder} is not there; git clone {REPOSITORIES[folder]} there.")
    chosen = [x for x in chosen if (args.reference / x.repository).is_dir()]
    if any(x.sides in JAX for x in chosen):
        if all(map(importlib.util.find_spec, ("jax", "flax", "optax"))):
            import flax.linen  # noqa: F401  these before the stubs
            import flax.training.train_state  # noqa: F401
            import jax
            import optax  # noqa: F401

            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_enable_x64", True)
        else:
            print("Left out: ReBRAC and FQL, for jax, flax and optax are not installed.")
            chosen = [x for x in chosen if x.sides not in JAX]
    print("\n| script | official code | commit | options | updates | largest difference | moved by |")
    print("|---|---|---|---|---|---|---|")
    failed = False
    for x in chosen:
        clone, script = args.reference / x.repository, importlib.import_module(x.script.replace("/", "."))
        with patch.dict(vars(script)), redirect_stdout(sys.stderr):  # for constants that `sides` sets; and their prints
            agent, parts, step = x.sides(script, clone, **x.theirs, **x.options)
            updates = -(-(args.updates or x.updates) // agent.period_steps) * agent.period_steps
            difference, moved = compare(agent, parts, step, updates)
        options = ", ".join(f"{name} {value}" for name, value in x.options.items()) or "the script's own"
        print(
            f"| {x.script} | {x.repository} | {commit(clone)} | {options} | {updates} | {difference:.1e} | "
            f"{moved:.1e} |", flush=True,
        )  # fmt: skip
        failed |= not difference <= x.limit
    if failed:
        sys.exit("A difference is larger than rounding explains.")


if __name__ == "__main__":
    main()
