"""What `benchmark.run` knows by name: sets of tasks, and the runs behind the paper's tables and figures."""

from typing import Any

import d4rl_gymnasium as d4rl
from benchmark.scripts import DOMAINS, ROBOTS

TASK_SETS = {
    "paper": list(d4rl.TASKS),  # stands in the order of the paper's Table 1
    "locomotion": DOMAINS["MuJoCo"],
    "maze2d": DOMAINS["Maze2d"],
    "antmaze": DOMAINS["AntMaze"],
    "adroit": DOMAINS["Adroit"],
    "table3": [f"{robot}-medium{more}-v2" for robot in ROBOTS["MuJoCo"] for more in ("", "-expert", "-replay")],
    "ogbench": list(d4rl.OGBENCH_TASKS),  # as in Table 4
    "ogbench-large": [task for task in d4rl.OGBENCH_TASKS if "large" in task],
    "ogbench-giant": [task for task in d4rl.OGBENCH_TASKS if "giant" in task],
}
TASK_SETS |= {"d4rl": TASK_SETS["paper"], "locomotion-9": TASK_SETS["table3"]}

ASPC, TD3BC = "aspc_td3bc", "baselines/td3bc"
REACHED = "REACHED"  # stands for the α that ASPC reached on the same task, mean over the seeds; known when these end
VARIANTS = "benchmark/ablations"
# OGBench's protocol, and what FQL's authors chose there for ReBRAC and IQL
OGBENCH = {"eval_interval": 100_000, "eval_episodes": 50, "final_eval_episodes": 50}
IQL_OGBENCH = OGBENCH | {"expectile": 0.9, "beta": 10.0}
REBRAC_OGBENCH = OGBENCH | {"actor_bc_coef": 0.003, "critic_bc_coef": 0.01}
# name: (task sets, [(script, arguments)])
SUITES: dict[str, tuple[list[str], list[tuple[str, dict[str, Any]]]]] = {
    "table1": (["paper"], [
        *((s, {}) for s in (ASPC, TD3BC, "baselines/wpc", "baselines/a2pr")),
        *((s, {"tuned": True}) for s in ("baselines/iql", "baselines/rebrac")),
    ]),
    "table2": (["paper"], [  # dynamic, naive, converged, linear
        (ASPC, {}), (TD3BC, {}), (TD3BC, {"alpha": REACHED}), (TD3BC, {"alpha_final": REACHED}),
    ]),
    "table3": (["table3"], [
        pair for base in ("iql", "cql", "diffusionql")
        for pair in ((f"baselines/{base}", {"tuned": True}), (f"aspc_{base}", {}))
    ]),
    **{f"table4-{maze}": ([f"ogbench-{maze}"], [
        (TD3BC, OGBENCH), ("baselines/iql", IQL_OGBENCH), ("baselines/rebrac", REBRAC_OGBENCH | discount),
        (ASPC, OGBENCH), ("baselines/fql", OGBENCH | {"tuned": True}), ("aspc_fql", OGBENCH | {"tuned": True}),
    ]) for maze, discount in (("large", {}), ("giant", {"discount": 0.995}))},
    "table13": (["paper"], [(ASPC, {}), *((f"{VARIANTS}/l_bc_form{n}", {}) for n in (1, 2, 3, 5))]),  # form 4 is ASPC's
    "mazes": (["maze2d"], [
        *((s, {}) for s in (ASPC, TD3BC, "baselines/wpc", "baselines/a2pr")),  # A2PR has no settings of mazes
        *((s, {"tuned": True}) for s in ("baselines/rebrac", "baselines/iql")),
    ]),
    "fig1b": (["paper"], [  # settings of each task, and one setting for all
        (ASPC, {}), (TD3BC, {}),
        *((f"baselines/{name}", {"tuned": tuned}) for name in ("iql", "rebrac") for tuned in (True, False)),
    ]),
    "fig5": (["halfcheetah-medium-v2"], [  # run times: give the machine nothing else to do, and --jobs 1
        *((f"baselines/{name}", {}) for name in ("td3bc", "cql", "iql", "wpc", "a2pr")),
        *((ASPC, {"alpha_interval": n}) for n in (5, 10, 20, 30)),
    ]),
    "fig6a": (["paper"], [(s, {"robust_critic": rc}) for s in (ASPC, "baselines/wpc") for rc in (True, False)]),
    "fig6b": (["paper"], [(ASPC, {"l_q_coef": q, "l_bc_coef": bc}) for q in (0.0, 1.0) for bc in (0.0, 1.0)]),
    "fig9": (["antmaze", "adroit"], [(ASPC, {}), (f"{VARIANTS}/advantage_weighted_bc", {})]),
    "fig10": (["halfcheetah-medium-v2"], [(ASPC, {}), (TD3BC, {})]),
    # The values of the paper's Figs. 11 and 12 are in its pictures only: these are ours, around its setting.
    "fig11": (["locomotion", "antmaze", "adroit"], [(ASPC, {"alpha_init": a}) for a in (0.5, 1.0, 2.5, 5.0, 10.0)]),
    "fig12": (["paper"], [(ASPC, {"alpha_lr": rate}) for rate in (2e-4, 1e-3, 2e-3, 5e-3, 1e-2)]),
    # Where the paper's text and the released code differ: the text's reading beside the code's.
    "readings": (["paper"], [(s, {}) for s in (ASPC, f"{VARIANTS}/one_step_delta_q", f"{VARIANTS}/fresh_outer_batch")]),
    "smoke": (["maze2d-umaze-v1"], [  # needs no download, and ends in minutes
        (s, {"total_steps": 2000, "eval_interval": 1000, "eval_episodes": 2, "final_eval_episodes": 5})
        for s in (ASPC, TD3BC)
    ]),
}  # fmt: skip
# Suites of suites; what two of them share is run once, and --tasks picks among the tasks of each
UNIONS = {"table4": ("table4-large", "table4-giant"), "paper": ("table1", "table3", "table4-large", "table4-giant")}
UNIONS["everything"] = tuple(name for name in SUITES if name != "smoke")
