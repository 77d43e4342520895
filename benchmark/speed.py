"""How fast the scripts update, as ratios to a plain PyTorch loop timed in the same run; and what they need of memory.

    OMP_NUM_THREADS=1 python -m benchmark.speed --out speed
    python -m benchmark.speed --device cuda --learners 1 4 16 32 --out gpu

Times one period of each variant in turn, many times over, so that whatever else the machine does meets all of them
alike. Steps of several learners count once for each. The data are random: 17-dimensional states, 6-dimensional actions.
With JAX installed, --jax times a plain jitted TD3+BC in it as well. Writes speed.json and speed.png.
"""

import copy
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchopt.transform import scale_by_adam
from torchopt.transform.scale_by_adam import ScaleByAdamState
from tqdm import tqdm

from benchmark.page import figure
from benchmark.scripts import ROOT, command_line
from offline_run import compile_agent, graph_agent

S, A, N, B, WIDTH = 17, 6, 100_000, 256, 256
STEPS = 20  # gradient steps that the plain loop takes at a time: a period of TD3+BC and ASPC on it


@dataclass
class Args:
    scripts: tuple[str, ...] = ("baselines/td3bc", "aspc_td3bc")
    """scripts by their path without .py; of baselines/X and aspc_X the ratio is shown"""
    learners: tuple[int, ...] = (1,)
    """learners that train side by side in one process; the first of these numbers for all scripts, the others for
    --grow"""
    grow: tuple[str, ...] = ("baselines/td3bc", "aspc_td3bc")
    """scripts that are timed at every number of learners, batch size and width"""
    batch_sizes: tuple[int, ...] = (B,)
    """batch sizes, each at the first number of learners"""
    widths: tuple[int, ...] = (WIDTH,)
    """units of a hidden layer, each at the first number of learners"""
    repeats: int = 15
    """measurements of each variant"""
    compile: bool = True
    """time the compiled variants too (some minutes of compilation each)"""
    memory: bool = True
    """measure memory too, each variant in a process of its own, which compiles once more"""
    jax: bool = False
    """time benchmark/jax_td3bc.py too (pip install jax flax optax)"""
    device: str = "cpu"
    """cpu or cuda; on a GPU, periods are CUDA graphs"""
    cpu_time: bool = False
    """count what the process itself computes, for a machine that does other things too (CPU, one thread)"""
    matmul_precision: str = "high"
    """of float32 matrix products, for all variants"""
    out: Path | None = None
    """write this path with .json and .png"""


# --- The yardstick: one seed, modules, autograd, torch.optim ----------------------------------------------------------


def mlp(inputs: int, outputs: int, hidden: int, norm: bool) -> nn.Sequential:
    sizes, layers = [inputs] + [256] * hidden, []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()] + norm * [nn.LayerNorm(fan_out)]
    return nn.Sequential(*layers, nn.Linear(256, outputs))


class PlainLoop:
    """TD3+BC, or with `adaptive` ASPC, as one writes it first."""

    def __init__(self, data: dict[str, np.ndarray], adaptive: bool, device: str):
        self.data = {key: torch.as_tensor(x, dtype=torch.float32, device=device) for key, x in data.items()}
        self.actor = nn.Sequential(mlp(S, A, 2, False), nn.Tanh()).to(device)
        self.critics = [mlp(S + A, 1, 3, True).to(device) for _ in range(2)]
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), 3e-4)
        self.critic_adams = [torch.optim.Adam(critic.parameters(), 3e-4) for critic in self.critics]
        self.rho = torch.tensor(2.4143, device=device, requires_grad=True)
        self.rho_adam = torch.optim.Adam([self.rho], 2e-3)
        self.ema, self.adaptive, self.iteration = torch.zeros((), device=device), adaptive, 0

    def advance(self) -> None:
        for _ in range(STEPS):
            self.step()

    def step(self) -> None:
        self.iteration += 1
        indices = torch.randint(N, (B,), device=self.rho.device)
        s, a, next_s, r, d = (self.data[key][indices] for key in self.data)
        with torch.no_grad():
            next_a = (self.target_actor(next_s) + (0.2 * torch.randn_like(a)).clamp(-0.5, 0.5)).clamp(-1, 1)
            q1, q2 = (critic(torch.cat([next_s, next_a], 1))[:, 0] for critic in self.target_critics)
            y = r + 0.99 * (1 - d) * torch.minimum(q1, q2)
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            adam.zero_grad()
            F.mse_loss(critic(torch.cat([s, a], 1))[:, 0], y).backward()
            adam.step()
        if self.iteration % 2:
            return
        outer = self.adaptive and self.iteration % 20 == 0
        pi = self.actor(s)
        q = self.critics[0](torch.cat([s, pi], 1))
        alpha = F.softplus(self.rho) if self.adaptive else 2.5
        loss = -alpha / q.abs().mean().detach() * q.mean() + F.mse_loss(pi, a)
        gradient = torch.autograd.grad(loss, list(self.actor.parameters()), create_graph=outer)
        if outer:
            self.update_rho(gradient, alpha.detach(), s, a, pi)
        for p, g in zip(self.actor.parameters(), gradient, strict=True):
            p.grad = g.detach()
        self.actor_adam.step()
        with torch.no_grad():
            for net, target in zip([self.actor, *self.critics], [self.target_actor, *self.target_critics], strict=True):
                for p, t in zip(net.parameters(), target.parameters(), strict=True):
                    t.lerp_(p, 0.005)

    def update_rho(self, gradient, alpha, s, a, pi) -> None:
        names, parameters = zip(*self.actor.named_parameters(), strict=True)
        states = [self.actor_adam.state[p] for p in parameters]
        moments = ScaleByAdamState(*([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")))
        direction, _ = scale_by_adam(eps_root=1e-30).update(list(gradient), moments, inplace=False)
        new_actor = {n: p - 3e-4 * x for n, p, x in zip(names, parameters, direction, strict=True)}
        new_pi = functional_call(self.actor, new_actor, s)
        q = self.critics[0](torch.cat([s, new_pi], 1))
        bc, new_bc = (pi - a).square().mean(1).detach(), (new_pi - a).square().mean(1)
        delta_q = 0.005 * (q.mean() - self.ema)
        loss = -alpha / q.abs().mean().detach() * q.mean() + new_bc.mean() + delta_q.square()
        loss = loss + delta_q.detach().square() * bc.max() * (new_bc - bc).abs().max()
        (self.rho.grad,) = torch.autograd.grad(loss, self.rho)
        self.rho_adam.step()
        self.ema += delta_q.detach()


# --- Measuring --------------------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    script: str
    mode: str  # plain, jax, eager, compiled, graph, compiled graph
    learners: int = 1
    batch: int = B
    width: int = WIDTH

    def __str__(self):
        return f"{self.script} {self.mode}, {self.learners} x {self.batch}, width {self.width}"


def random_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((N, S), np.float32),
        "actions": rng.uniform(-1, 1, (N, A)).astype(np.float32),
        "next_observations": rng.standard_normal((N, S), np.float32),
        "rewards": rng.standard_normal(N, np.float32),
        "terminals": rng.random(N) < 0.01,
    }


def load(script: str, width: int) -> types.ModuleType:
    """A script as a module; another width stands in for the 256 that its networks are written with."""
    path = ROOT / f"{script}.py"
    module = types.ModuleType(f"{path.stem}_{width}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and torch.compile look for it
    exec(compile(path.read_text().replace(str(WIDTH), str(width)), path, "exec"), module.__dict__)
    return module


def build(variant: Variant, device: str):
    """What `advance` trains by one period."""
    if variant.mode == "plain":
        return PlainLoop(random_data(), variant.script == "aspc_td3bc", device)
    if variant.mode == "jax":
        from benchmark.jax_td3bc import JaxLoop

        return JaxLoop(random_data())
    script, high = load(variant.script, variant.width), np.ones(A, np.float32)
    arguments = script.Args(num_seeds=variant.learners, batch_size=variant.batch, device=device)
    data = random_data()
    data["next_actions"] = data["actions"]  # ReBRAC's alone
    agent = script.Agent(arguments, [data], -high, high, device)
    if "compiled" in variant.mode and not compile_agent(agent):
        sys.exit(f"{variant} cannot be timed.")
    if "graph" in variant.mode:
        graph_agent(agent)
    return agent


def plan(args: Args) -> list[Variant]:
    modes = ["eager"] + ["compiled"] * args.compile
    if args.device.startswith("cuda"):
        modes = ["graph"] + ["compiled graph"] * args.compile
    variants = [Variant(script, "plain") for script in args.scripts if script.endswith("td3bc")]
    variants += [Variant("baselines/td3bc", "jax")] * args.jax
    for script, mode in itertools.product(args.scripts, modes):
        sizes = [(args.learners[0], B, WIDTH)]
        if script in args.grow:
            sizes += [(learners, B, WIDTH) for learners in args.learners[1:]]
            sizes += [(args.learners[0], batch, WIDTH) for batch in args.batch_sizes if batch != B]
            sizes += [(args.learners[0], B, width) for width in args.widths if width != WIDTH]
        variants += [Variant(script, mode, *size) for size in sizes]
    return variants


def peak_memory(variant: Variant, device: str) -> float:
    """MiB that a process of its own needs at most: on a GPU of the GPU's memory, else of the machine's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_of, (variant, device))


def memory_of(variant: Variant, device: str) -> float:
    trained = build(variant, device)
    for _ in range(5):  # on a GPU three eager periods, then the graph's capture
        trained.advance()
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory, too
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def quartiles(ratios: np.ndarray) -> list[float]:
    """Median, lower and upper quartile."""
    return np.quantile(ratios, (0.5, 0.25, 0.75)).tolist()


def picture(rows: list[dict], path: Path) -> None:
    """Hours for a million steps, as in the paper's Fig. 5."""
    drawing, [[axis]] = figure(1, 1, 8, 0.6 + 0.3 * len(rows))
    axis.barh([row["variant"] for row in rows], [row["hours_per_million"] for row in rows], height=0.6)
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.set_xlabel("hours for a million gradient steps of all learners of a process (learners x batch)")
    drawing.savefig(path, dpi=100)


def main(args: Args) -> None:
    for script in args.scripts:
        if not (ROOT / f"{script}.py").is_file():
            sys.exit(f"--scripts {script}: there is no {script}.py here.")
    if min(args.repeats, *args.learners, *args.batch_sizes, *args.widths) < 1:
        sys.exit("--repeats, --learners, --batch-sizes and --widths must be at least 1.")
    if args.jax and not all(map(importlib.util.find_spec, ("jax", "flax", "optax"))):
        sys.exit("--jax needs JAX: pip install jax flax optax.")
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            sys.exit(f"--device {args.device}: PyTorch finds no GPU; measure with --device cpu.")
        torch.cuda.set_device(torch.device(args.device).index or 0)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch._dynamo.config.recompile_limit = 1000  # each variant is another compilation of `update`
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    clock = time.process_time if args.cpu_time else time.perf_counter
    variants = {variant: build(variant, args.device) for variant in plan(args)}
    for trained in tqdm(variants.values(), desc="warm-up"):
        for _ in range(5 if args.device.startswith("cuda") else 1):
            trained.advance()
    times = {variant: [] for variant in variants}  # ms a gradient step
    for _ in tqdm(range(args.repeats), desc="measuring"):
        for variant, trained in variants.items():
            synchronize()
            start = clock()
            trained.advance()
            synchronize()
            times[variant].append((clock() - start) / getattr(trained, "period_steps", STEPS) * 1e3)
    times = {variant: np.array(values) for variant, values in times.items()}

    rows = []
    for variant, values in tqdm(times.items(), desc="memory"):
        ms, plain = float(np.median(values)), times.get(Variant(variant.script, "plain"))
        row = {"variant": str(variant), "ms_per_step": ms, "hours_per_million": ms / 3.6}
        row["peak_mib"] = peak_memory(variant, args.device) if args.memory and variant.mode != "jax" else None
        row["speedup"] = quartiles(variant.learners * plain / values) if plain is not None else None
        base = times.get(variant._replace(script="baselines/" + variant.script.removeprefix("aspc_")))
        row["over_baseline"] = quartiles(values / base) if base is not None and base is not values else None
        rows.append(row)
    for row in rows:
        line = f"{row['variant']:48} {row['ms_per_step']:8.3f} ms/step {row['peak_mib'] or math.nan:6.0f} MiB"
        for key, words in (("speedup", "x plain's steps"), ("over_baseline", "of its baseline's time")):
            if row[key]:
                line += "   {:.2f} ({:.2f} to {:.2f}) {}".format(*row[key], words)
        print(line)
    print(f"{torch.get_num_threads()} threads, system load {os.getloadavg()[0]}")
    if args.out:
        about = asdict(args) | {"out": args.out.name}
        device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu"
        info = {"args": about, "device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
        info |= {"load": os.getloadavg()[0], "rows": rows}
        raw = {str(variant): values.tolist() for variant, values in times.items()}
        args.out.with_suffix(".json").write_text(json.dumps(info | {"times_ms": raw}, indent=2) + "\n")
        picture(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main(command_line(Args, "python -m benchmark.speed", __doc__))
