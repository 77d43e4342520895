"""The arguments that only the run uses, the command line, and the sentences that end a script which cannot go on."""

import contextlib
import importlib.util
import inspect
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, make_dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TextIO, get_type_hints

import torch
import tyro
from tqdm import tqdm

RESUMABLE = "A run that has a checkpoint continues with --resume RUN_DIR."

# Each class is a section of --help. A script's `Args` adds env_id, seed, num_seeds, total_steps and its method's own.


@dataclass
class Evaluation:
    eval_interval: int = 5_000
    """gradient steps between evaluations"""
    eval_episodes: int = 10
    """episodes of an evaluation during training"""
    final_eval_episodes: int = 100
    """episodes of the evaluation at the end"""
    eval_workers: int | None = None
    """processes that evaluate beside training, which change no number: by default as many as training leaves cores, at
    most 8; with 0 training waits"""
    max_episode_steps: int | None = None
    """end an episode after so many steps, instead of the task's own limit"""
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
    """the folder that receives one run directory per learner (a seed on a task)"""
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
    """torch.compile the updates: some minutes of compilation, then faster steps (needs a C++ compiler on a CPU); auto
    does it where it pays, on a GPU from 300000 steps on"""
    cudagraph: bool = True
    """on a GPU: replay one period of updates as one CUDA graph"""
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    """of float32 matrix products: high is TF32 on a GPU, medium bfloat16 where the processor has it"""


@dataclass
class Tracking:
    track: bool = False
    """log to Weights & Biases as well (pip install wandb)"""
    track_project: str = "aspc"
    """the project there"""
    track_entity: str | None = None
    """the user or team there"""
    track_group: str | None = None
    """the group of runs there"""


@dataclass
class RunArgs(Tracking, Device, Files, Evaluation):
    """What a run needs to know beside its method."""

    def check(self) -> None:
        """Exit with a sentence where an argument of the method cannot work: a script's own."""


# --- The command line -------------------------------------------------------------------------------------------------


def parse(Args: type[RunArgs], doc: str | None, argv: list[str] | None = None) -> RunArgs:
    """`Args` from the command line. Each dataclass among its bases is a section of --help, after its own fields; the
    string literal below a field is its help text. Integers may be written as 1e6 or 1_000_000.
    """
    sections = []
    for cls in (Args, *reversed(Args.__mro__[1:])):
        own = inspect.get_annotations(cls, eval_str=True) if is_dataclass(cls) else {}
        if own:
            own = [(name, kind, field(default=getattr(cls, name))) for name, kind in own.items()]
            section = make_dataclass(cls.__name__, own)
            section.__module__, section.__qualname__ = cls.__module__, cls.__qualname__  # where tyro finds the literals
            title = "method" if cls is Args else cls.__name__.lower()
            sections.append((title, tyro.conf.OmitArgPrefixes[section], field(default_factory=section)))
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(integers)
    given = tyro.cli(make_dataclass("Sections", sections), args=argv, description=doc, registry=registry)
    return Args(**{name: value for section in vars(given).values() for name, value in vars(section).items()})


def integers(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """tyro's rule for `int`, which knows 1e6 as well."""

    def read(words: list[str]) -> int:
        number = Fraction(words[0].replace("_", ""))
        if number.denominator != 1:
            raise ValueError(f"{words[0]} is not an integer")
        return int(number)

    spec = tyro.constructors.PrimitiveConstructorSpec(1, "INT", read, lambda n: isinstance(n, int), lambda n: [str(n)])
    return spec if info.type is int else None


def launch(main: Callable[[Any], None], Args: type[RunArgs], doc: str | None, *errors: type[Exception]) -> None:
    """Run `main(args)` with the arguments of the command line. `errors`, whose messages are sentences for users, and
    what can happen to any run (a full disk, too little memory, Ctrl-C) end the process with one sentence.
    """
    with contextlib.redirect_stdout(Unbroken(sys.stdout)), contextlib.redirect_stderr(Unbroken(sys.stderr)):
        try:
            main(parse(Args, doc))
        except errors as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(f"Interrupted. {RESUMABLE}")
        except OSError as error:
            sys.exit(f"{error}. A run that has a checkpoint is intact: continue with --resume RUN_DIR.")
        except (MemoryError, RuntimeError) as error:  # PyTorch has a type of its own for a GPU's memory alone
            known = re.search("allocate memory|not enough memory|out of memory|ALLOC_FAILED", str(error))
            if not (known or isinstance(error, MemoryError | torch.OutOfMemoryError)):
                raise
            sys.exit(f"Out of memory ({first_line(error)}): take fewer seeds at once, or smaller batches. {RESUMABLE}")
        finally:
            for bar in list(tqdm._instances):  # the sentence gets a line of its own
                bar.close()


class Unbroken:
    """A standard stream whose reader may leave (`| head`, a terminal that closes): training goes on in silence.

    Where it knows ASCII alone, ? stands for the rest.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115 (a process can be started without one)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        def attempt(*arguments: str) -> Any:
            try:
                return getattr(self.stream, name)(*arguments)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

        return attempt if name in ("write", "flush") else getattr(self.stream, name)


# --- What the arguments mean ------------------------------------------------------------------------------------------


def check(args: RunArgs) -> None:
    """Exit with a sentence where an argument cannot work, the run's or the method's."""
    types = get_type_hints(type(args))
    for name, value in vars(args).items():
        least = 0 if name in ("seed", "eval_workers") else 1
        if types[name] in (int, int | None) and value is not None and value < least:
            sys.exit(f"{flag(name)} must be at least {least}.")
    if args.seed + args.num_seeds > 2**64:
        sys.exit("--seed must be below 2^64.")
    if not args.env_id or len(set(args.env_id)) < len(args.env_id):
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
    args.check()
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            sys.exit(f"{flag(name)} must be a finite number.")


def tuned(args: Any, settings: dict[str, dict[str, Any]]) -> Any:
    """A new run's arguments, with --tuned those published for its tasks, which must be the same for all of them.

    settings: by env_id, all that --tuned sets there.
    """
    if not args.tuned or args.resume:
        return args
    for env_id in args.env_id:
        if env_id not in settings:
            own = ", ".join(map(flag, next(iter(settings.values()))))
            sys.exit(f"--tuned: there are no settings for {env_id}; set {own} yourself.")
        if settings[env_id] != settings[args.env_id[0]]:
            sys.exit(f"--tuned: {args.env_id[0]} and {env_id} want other settings; train them in runs of their own.")
    print("Published settings:", ", ".join(f"{name} {value}" for name, value in settings[env_id].items()))
    return replace(args, **settings[env_id])


def refuse_others(args: RunArgs, *own: str) -> None:
    """Exit with a sentence if an argument was given that this mode, own[0], takes from the run instead."""
    given = [name for name, value in vars(args).items() if name not in own and value != getattr(type(args)(), name)]
    if given:
        sys.exit(f"{flag(own[0])} takes this from the run itself: drop {' '.join(map(flag, given))}.")


def with_paths(args: RunArgs) -> RunArgs:
    """The arguments with `~` expanded in paths, and existing ones absolute: the run may be resumed from elsewhere."""
    names = ("runs_dir", "resume", "eval", "render_video", "dataset_path")
    paths = {name: Path(getattr(args, name)).expanduser() for name in names if getattr(args, name, None)}
    return replace(args, **{name: str(path.resolve() if path.exists() else path) for name, path in paths.items()})


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def found(*programs: str) -> bool:
    return any(map(shutil.which, programs))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


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
