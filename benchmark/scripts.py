"""What the scripts can be asked for, read from their text, and the paper's domains: shared by `run` and `report`.

Reading a script takes milliseconds; importing it would load PyTorch.
"""

import ast
import contextlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import d4rl_gymnasium.tasks as d4rl
from d4rl_gymnasium.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
ROBOTS = {
    "MuJoCo": ("halfcheetah", "hopper", "walker2d"),
    "Maze2d": ("maze2d",),
    "AntMaze": ("antmaze",),
    "Adroit": ("pen", "door", "hammer", "relocate"),
}
DOMAINS = {name: [task for task in TASKS if task.split("-")[0] in robots] for name, robots in ROBOTS.items()}
# Arguments that belong to no experiment: they say which learners, where, how fast, and what is done with the run
HOUSEKEEPING = (
    "env_id", "seed", "num_seeds", "stand_in", "runs_dir", "checkpoint_interval", "resume", "eval", "render_video",
    "track", "track_project", "track_entity", "track_group", "device", "compile", "cudagraph", "eval_workers",
)  # fmt: skip


@cache
def read(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


@cache
def read_arguments(path: Path) -> dict[str, tuple[str, Any]]:
    """A script's arguments, name -> (type as written, default), from its class Args and what that inherits from
    offline_run; an ablation's are those of aspc_td3bc.py. {} for a file that is no script.
    """
    if any(isinstance(node, ast.ImportFrom) and node.module == "benchmark.ablations.common" for node in read(path)):
        return read_arguments(ROOT / "aspc_td3bc.py")
    nodes = [*read(ROOT / "offline_run" / "args.py"), *read(path)]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def fields(name: str) -> list[ast.AnnAssign]:
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
        own = [node for node in classes[name].body if isinstance(node, ast.AnnAssign) and node.value]
        return [field for base in bases for field in fields(base)] + own

    try:
        named = fields("Args") if "Args" in classes else []
        return {field.target.id: (ast.unparse(field.annotation), ast.literal_eval(field.value)) for field in named}
    except ValueError:  # a default that is not a plain value, which scripts do not have
        return {}


def script_arguments(script: str) -> dict[str, tuple[str, Any]]:
    """A script's arguments, name -> (type as written, default). Exits with a sentence if it is none that trains."""
    path = ROOT / f"{script}.py"
    if not path.is_file():
        sys.exit(f"--scripts {script}: there is no {path}.")
    arguments = read_arguments(path)
    if not {"env_id", "seed", "num_seeds", "total_steps", "resume"} <= arguments.keys():
        sys.exit(f"--scripts {script}: {path} does not train: its Args lack env_id, seed, total_steps or resume.")
    return arguments


def command_line(Args: type, program: str, doc: str | None) -> Any:
    """`Args` from a program's command line, with `~` in a path expanded."""
    import tyro  # slow

    def paths(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        spec = tyro.constructors.PrimitiveConstructorSpec(
            1, "PATH", lambda words: Path(words[0]).expanduser(), lambda x: isinstance(x, Path), lambda x: [str(x)]
        )
        return spec if info.type is Path else None

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(paths)
    return tyro.cli(Args, prog=program, description=doc, registry=registry)


@cache
def tuned(path: Path) -> dict[str, dict[str, Any]]:
    """What a script's --tuned sets, by task: its table TUNED. What it assigns outside of its functions is run to see,
    and nothing else of it.
    """
    space = {"d4rl": d4rl}
    for node in read(path):
        if isinstance(node, ast.Assign | ast.AugAssign):
            with contextlib.suppress(NameError):  # it needs more of the script, as no table does
                exec(compile(ast.Module([node], []), path, "exec"), space)
    return space.get("TUNED", {})


def tuned_arguments(path: Path) -> frozenset[str]:
    """The arguments that a script's --tuned replaces by the task's settings.

    A run with --tuned records the settings, which differ from task to task; what was asked for is --tuned.
    """
    return frozenset(name for settings in tuned(path).values() for name in settings)


def flags(arguments: dict[str, Any]) -> list[str]:
    """As on a command line: {"alpha_init": 10, "track": False} -> ["--alpha-init", "10", "--no-track"]."""
    line = []
    for name, value in arguments.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{'' if value else 'no-'}{name}")
        else:
            line += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return line
