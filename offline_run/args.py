"""The arguments that only the run uses, the command line, and the sentences that end a script which cannot go on."""

import ast
import contextlib
import importlib.util
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, get_type_hints

import torch
import tyro
from tqdm import tqdm

RESUMABLE = "A run that has a checkpoint continues with --resume RUN_DIR."

# One section of --help each. A script's `Args` adds env_id, seed, num_seeds, total_steps and what its method takes.


@dataclass
class Evaluation:
    eval_interval: int = 5_000
    """gradient steps between evaluations"""
    eval_episodes: int = 10
    """episodes of an evaluation during training"""
    final_eval_episodes: int = 100
    """episodes of the evaluation at the end"""
    eval_workers: int | None = None
    """processes that evaluate while training goes on; by default the cores that training leaves, at most 8; 0: none, so
    training waits. No number depends on it"""
    max_episode_steps: int | None = None
    """end an episode after so many steps, for environments without a limit of their own"""
    eval: str | None = None
    """evaluate the actor saved in this run directory (with --final-eval-episodes and --render-video, if you like)"""
    render_video: str | None = None
    """with --eval: record the first episode into this .mp4 file"""


@dataclass
class Files:
    dataset_path: str | None = None
    """an HDF5 file in D4RL's layout, or minari:NAME, instead of the task's own data"""
    stand_in: bool = True
    """a MuJoCo task whose D4RL file cannot be had: train on a stand-in that is collected here, and mark the run so"""
    runs_dir: str = "runs"
    """the folder that receives one run directory per learner (a task and a seed)"""
    checkpoint_interval: int = 5_000
    """gradient steps between checkpoints (Ctrl-C and SIGTERM write one too)"""
    resume: str | None = None
    """continue the run in this directory, exactly where its checkpoint stands; takes no other argument but
    --dataset-path, --device and --eval-workers"""


@dataclass
class Device:
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU where there is one"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the updates: 1 to 5 minutes of compilation, then faster steps (needs a C++ compiler on a CPU); auto
    does so where it pays: on a GPU, from 300,000 steps on"""
    cudagraph: bool = True
    """on a GPU: replay one period of updates as one CUDA graph"""
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    """of float32 matrix products: high is TF32 on a GPU, medium bfloat16 where the processor has it"""


@dataclass
class Tracking:
    track: bool = False
    """log to Weights & Biases as well (pip install wandb)"""
    track_project: str = "aspc"
    """with --track: the project there"""
    track_entity: str | None = None
    """with --track: the user or team there"""
    track_group: str | None = None
    """with --track: the group of runs there"""


@dataclass
class RunArgs(Tracking, Device, Files, Evaluation):
    """What a run needs to know beside its method. `--help` shows a class of fields as a section."""

    def check(self) -> None:
        """Exit with a sentence where an argument of the method cannot work: a script's own."""


# --- The command line -------------------------------------------------------------------------------------------------


def parse(Args: type[RunArgs], doc: str | None, argv: list[str] | None = None) -> RunArgs:
    """`Args` from the command line: one section of --help for each dataclass among its bases, its own fields first.

    The string literal below a field is its help text. Integers may be written as 1e6 or 1_000_000.
    """
    sections = [(Args, "method"), *((cls, cls.__name__.lower()) for cls in reversed(Args.__mro__[1:]))]
    sections = [
        (title, tyro.conf.OmitArgPrefixes[section], field(default_factory=section))
        for cls, title in sections
        if is_dataclass(cls) and (section := own_fields(cls))
    ]
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(integer)
    given = tyro.cli(make_dataclass("Sections", sections), args=argv, description=doc, registry=registry)
    return Args(**{name: value for section in vars(given).values() for name, value in vars(section).items()})


def own_fields(cls: type) -> type | None:
    """A dataclass of the fields that `cls` adds to its bases, with their help texts, for tyro. None: it adds none."""
    own = [f for f in fields(cls) if f.name in vars(cls).get("__annotations__", {})]
    if not own:
        return None
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    texts = {
        line.target.id: " ".join(below.value.value.split())
        for line, below in zip(body, body[1:], strict=False)
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    types, name = get_type_hints(cls), cls.__name__
    options = [(f.name, Annotated[types[f.name], tyro.conf.arg(help=texts.get(f.name))], f) for f in own]
    return make_dataclass(name, [(name, hint, field(default=f.default)) for name, hint, f in options])


def integer(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """tyro's rule for `int`, which takes 1e6 as well."""

    def read(words: list[str]) -> int:
        with contextlib.suppress(ValueError):
            return int(words[0])
        if not float(words[0]).is_integer():
            raise ValueError(f"{words[0]} is not an integer")
        return int(float(words[0]))

    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="INT", instance_from_str=read,
        is_instance=lambda value: isinstance(value, int), str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


def launch(main: Callable[[Any], None], Args: type[RunArgs], doc: str | None, *errors: type[Exception]) -> None:
    """Run `main(args)` with the arguments of the command line. `errors`, whose messages are sentences for users, and
    what can happen to any run (a full disk, too little memory, Ctrl-C) end the process with one sentence.
    """
    out, err = Unbroken(sys.stdout), Unbroken(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(parse(Args, doc))
        except errors as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(f"Interrupted. {RESUMABLE}")
        except OSError as error:
            sys.exit(f"{error}. A run that has a checkpoint is intact: continue with --resume RUN_DIR.")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            cause = (str(error).splitlines() or ["no more is to be had"])[0].rstrip(".")
            sys.exit(f"Out of memory ({cause}): train fewer learners together, or smaller batches. {RESUMABLE}")
        finally:
            for bar in list(tqdm._instances):  # so that the sentence has a line of its own
                bar.close()


class Unbroken:
    """A standard stream whose reader may leave (`| head`, a terminal that closes): training goes on in silence.

    It also prints in a terminal that knows ASCII alone, with ? in the place of what that lacks.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115 (a process may be started without one)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, act: Callable, *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


# --- What the arguments mean ------------------------------------------------------------------------------------------


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check(args: RunArgs) -> None:
    """Exit with a sentence where an argument cannot work."""
    types = get_type_hints(type(args))
    for name, value in vars(args).items():
        least = 0 if name in ("seed", "eval_workers") else 1
        if types[name] in (int, int | None) and value is not None and value < least:
            sys.exit(f"{flag(name)} must be at least {least}.")
    if args.seed + args.num_seeds > 2**64:
        sys.exit("--seed must be below 2^64.")
    if len(set(args.env_id)) != len(args.env_id) or not args.env_id:
        sys.exit("--env-id takes one task or several, each of them once.")
    if args.render_video and not args.eval:
        sys.exit("--render-video records a saved actor: name its run directory with --eval.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        sys.exit("--device must be auto, cpu, cuda or cuda:N.")
    if args.device.startswith("cuda") and int(args.device[5:] or 0) >= torch.cuda.device_count():
        sys.exit(f"--device {args.device}: PyTorch finds no such GPU; use --device cpu, or a CUDA build of PyTorch.")
    if args.track and importlib.util.find_spec("wandb") is None:
        sys.exit("--track needs Weights & Biases: pip install wandb.")
    if args.compile == "on" and device_of(args) == "cpu" and not found("c++", "g++", "clang++", "cl"):
        sys.exit("--compile on needs a C++ compiler, and none is on the PATH: install g++, or take --compile off.")


def refuse_others(args: RunArgs, *own: str) -> None:
    """Exit with a sentence if an argument was given that this mode, own[0], takes from the run instead."""
    given = [name for name, value in vars(args).items() if name not in own and value != getattr(type(args)(), name)]
    if given:
        sys.exit(f"{flag(own[0])} takes this from the run itself: drop {' '.join(map(flag, given))}.")


def with_paths(args: RunArgs) -> RunArgs:
    """The arguments with `~` expanded in paths, and existing ones absolute: a run can be resumed from elsewhere."""
    changes = {}
    for name in ("runs_dir", "resume", "eval", "render_video", "dataset_path"):
        if value := getattr(args, name, None):
            path = Path(value).expanduser()
            changes[name] = str(path.resolve() if path.exists() else path if value.startswith("~") else value)
    return replace(args, **changes)


def found(*programs: str) -> bool:
    return any(map(shutil.which, programs))


def device_of(args: RunArgs) -> str:
    """cpu, cuda or cuda:N."""
    return args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def learners(args: RunArgs) -> list[tuple[str, int]]:
    """(env_id, seed) of each learner, task by task."""
    return [(env_id, args.seed + k) for env_id in args.env_id for k in range(args.num_seeds)]


def processes(args: RunArgs, busy: int) -> int:
    """How many processes evaluate, where `busy` cores have other work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(0, cores - busy)) if args.eval_workers is None else args.eval_workers
