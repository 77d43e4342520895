"""How fast the scripts update, as ratios to a plain PyTorch loop timed in the same run.

    OMP_NUM_THREADS=1 python -m benchmark.speed --out speed.json

Times 20 gradient steps of each variant in turn, many times over, so that whatever else the machine does meets all of
them alike. The data are random: 17-dimensional states, 6-dimensional actions, batch 256, the robust critic.
"""

import copy
import importlib
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchopt.transform import scale_by_adam
from torchopt.transform.scale_by_adam import ScaleByAdamState
from tqdm import tqdm

S, A, N, B = 17, 6, 100_000, 256
STEPS = 20  # gradient steps in one measurement: one period of every variant


@dataclass
class Args:
    seeds: tuple[int, ...] = (1,)
    """seeds trained together, one variant for each number"""
    repeats: int = 15
    """measurements of each variant"""
    compile: bool = True
    """time the compiled variants too (minutes of compilation on a CPU)"""
    device: str = "cpu"
    """cpu or cuda"""
    matmul_precision: str = "high"
    """of float32 matrix products, for all variants"""
    out: str | None = None
    """write the figures into this JSON file"""


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
        moments = ScaleByAdamState(
            *([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        )
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


def main(args: Args) -> None:
    torch.set_float32_matmul_precision(args.matmul_precision)
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.standard_normal((N, S), np.float32),
        "actions": rng.uniform(-1, 1, (N, A)).astype(np.float32),
        "next_observations": rng.standard_normal((N, S), np.float32),
        "rewards": rng.standard_normal(N, np.float32),
        "terminals": rng.random(N) < 0.01,
    }
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    high = np.ones(A, np.float32)
    variants = {}
    for name in ("baselines.td3bc", "aspc_td3bc"):
        script = importlib.import_module(name)
        variants[f"{name} plain"] = PlainLoop(data, name == "aspc_td3bc", args.device)
        for seeds in args.seeds:
            for mode in ("eager", "compiled")[: 1 + args.compile]:
                arguments = script.Args(num_seeds=seeds, compile=mode == "compiled", device=args.device)
                agent = script.Agent(arguments, data, -high, high, args.device)
                variants[f"{name} {mode}, {seeds} seeds"] = agent
    times = {name: [] for name in variants}
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    for variant in tqdm(variants.values(), desc="warm-up"):
        for _ in range(5 if args.device.startswith("cuda") else 1):  # three eager periods, then the graph's capture
            variant.advance()
    for _ in tqdm(range(args.repeats), desc="measuring"):
        for name, variant in variants.items():
            synchronize()
            start = time.perf_counter()
            variant.advance()
            synchronize()
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)

    rows = []
    for name, values in times.items():
        plain = np.array(times[name.split()[0] + " plain"])
        ratio = np.quantile(plain / np.array(values), (0.5, 0.25, 0.75))
        rows.append({"variant": name, "ms_per_step": float(np.median(values)), "speedup": ratio.tolist()})
        print(f"{name:40} {np.median(values):8.3f} ms/step   {ratio[0]:.2f}x plain ({ratio[1]:.2f} to {ratio[2]:.2f})")
    for mode in [name.removeprefix("aspc_td3bc ") for name in times if name.startswith("aspc_td3bc ")]:
        ratios = np.array(times[f"aspc_td3bc {mode}"]) / times[f"baselines.td3bc {mode}"]
        overhead = np.quantile(ratios, (0.5, 0.25, 0.75))
        rows.append({"variant": f"ASPC over TD3+BC, {mode}", "time_ratio": overhead.tolist()})
        print(f"ASPC's time over TD3+BC's, {mode:14} {overhead[0]:.3f} ({overhead[1]:.3f} to {overhead[2]:.3f})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(f"{torch.get_num_threads()} threads, system load {os.getloadavg()[0]}, peak memory of all {peak:.0f} MiB")
    if args.out:
        info = {"args": vars(args), "torch": torch.__version__, "threads": torch.get_num_threads(), "peak_mib": peak}
        Path(args.out).write_text(json.dumps(info | {"rows": rows, "times_ms": times}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
