"""What the scripts can be asked for, read from their text, and the paper's domains: shared by `run` and `report`."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

from d4rl_gymnasium.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
ROBOTS = {
    "MuJoCo": ("halfcheetah", "hopper", "walker2d"),
    "Maze2d": ("maze2d",),
    "AntMaze": ("antmaze",),
    "Adroit": ("pen", "door", "hammer", "relocate"),
}
DOMAINS = {name: [task for task in TASKS if task.split("-")[0] in robots] for name, robots in ROBOTS.items()}


@cache
def read_arguments(path: Path) -> dict[str, tuple[str, Any]]:
    """A script's arguments, name -> (type as written, default), from its class Args; {} for a file that is no script.

    Reading takes milliseconds; importing would load PyTorch, once for each script.
    """
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    fields = [field for node in nodes if isinstance(node, ast.ClassDef) and node.name == "Args" for field in node.body]
    fields = [field for field in fields if isinstance(field, ast.AnnAssign) and field.value]
    try:
        return {field.target.id: (ast.unparse(field.annotation), ast.literal_eval(field.value)) for field in fields}
    except ValueError:  # a default that is not a plain value, which scripts do not have
        return {}


@cache
def tuned_arguments(path: Path) -> frozenset[str]:
    """The arguments that a script's --tuned replaces by the task's settings: the keys of its tables of these.

    A run with --tuned records the settings, which differ from task to task; what was asked for is --tuned.
    """
    body = ast.parse(path.read_text(encoding="utf-8")).body
    tables = [x for x in body if isinstance(x, ast.Assign) or (isinstance(x, ast.FunctionDef) and x.name == "tuned")]
    nodes = [node for table in tables for node in ast.walk(table) if isinstance(node, ast.Dict)]
    keys = {key.value for node in nodes for key in node.keys if isinstance(key, ast.Constant)}
    return frozenset(keys & read_arguments(path).keys()) if "tuned" in read_arguments(path) else frozenset()


def flags(arguments: dict[str, Any]) -> list[str]:
    """As on a command line: {"alpha_init": 10, "track": False} -> ["--alpha-init", "10", "--no-track"]."""
    line = []
    for name, value in arguments.items():
        name = name.replace("_", "-")
        line += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return line
