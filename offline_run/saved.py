"""--eval: what a saved actor is worth."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from offline_run.args import RunArgs, check, processes, refuse_others, with_paths
from offline_run.evaluation import CHUNK, Evaluator, check_environment
from offline_run.files import load_tensors, read_config
from offline_run.log import summary


def evaluate_saved(
    args: RunArgs,
    script: str,
    load_policy: Callable[[dict[str, Tensor]], nn.Module],
    percent_score: Callable[[str, np.ndarray], float | None],
) -> None:
    """Evaluate the actor.pt in the run directory args.eval, print what came out, and record a video if asked to.

    The episodes are those of the run's final evaluation, to the last digit. load_policy: the script's policy from the
    tensors of an actor.pt. Exits with a sentence where there is no such run or actor.
    """
    refuse_others(args, "eval", "final_eval_episodes", "render_video", "eval_workers")
    args = with_paths(args)
    check(args)
    run = Path(args.eval)
    config, trained = read_config(run, Path(script).stem, type(args))
    env_id, seed, saved = config["env_id"], config["seed"], load_tensors(run / "actor.pt")
    try:
        policy = load_policy(saved)
    except Exception as error:  # whatever the script makes of tensors that are not its own
        sys.exit(f"{run / 'actor.pt'} is not an actor of this version of the script ({type(error).__name__}).")
    check_environment(env_id, trained.max_episode_steps)
    camera = None
    if args.render_video:
        from offline_run.video import Camera

        camera = Camera(args.render_video, env_id, trained.max_episode_steps)
    workers = processes(args, busy=0) if args.final_eval_episodes > CHUNK else 0
    evaluator = Evaluator(workers, trained.max_episode_steps)
    try:
        (returns,) = evaluator.submit([policy], [(env_id, seed)], args.final_eval_episodes).returns()
    finally:
        evaluator.close()
    print(f"{env_id}, seed {seed}: {summary(returns, percent_score(env_id, returns), config['dataset']['source'])}")
    if camera:
        camera.record(policy, seed)
