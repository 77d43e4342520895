"""--eval and --render-video: what a saved actor is worth, and how it looks."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
from torch import Tensor, nn

from offline_run.args import RunArgs, check, first_line, processes, refuse_others, with_paths
from offline_run.evaluation import CHUNK, Evaluator, check_environment, play
from offline_run.files import load_tensors, read_config
from offline_run.log import summary


def evaluate_saved(
    args: RunArgs,
    script: str,
    load_policy: Callable[[dict[str, Tensor]], nn.Module],
    percent_score: Callable[[str, np.ndarray], float | None],
) -> None:
    """Print what the actor.pt in the run directory args.eval is worth. The episodes are those of the run's final
    evaluation, with the same returns to the last digit. Record the first one if args.render_video names a file.

    load_policy: the script's policy from the tensors of an actor.pt. Exits with a sentence if there is no such run.
    """
    refuse_others(args, "eval", "final_eval_episodes", "render_video", "eval_workers")
    args = with_paths(args)
    check(args)
    run = Path(args.eval)
    config, trained = read_config(run, Path(script).stem, type(args))
    env_id, seed, saved = config["env_id"], config["seed"], load_tensors(run / "actor.pt")
    try:
        policy = load_policy(saved)
    except Exception as error:  # whatever the script makes of other tensors than its own
        sys.exit(f"{run / 'actor.pt'} is not an actor of this version of the script ({type(error).__name__}).")
    check_environment(env_id, trained.max_episode_steps)
    camera = Camera(args.render_video, env_id, trained.max_episode_steps) if args.render_video else None
    evaluator = Evaluator(processes(args, busy=0) if args.final_eval_episodes > CHUNK else 0, trained.max_episode_steps)
    try:
        (returns,) = evaluator.begin([policy], [(env_id, seed)], args.final_eval_episodes).returns()
    finally:
        evaluator.close()
    data, score = config["dataset"], percent_score(env_id, returns)
    stand_in = data.get("stand_in", "stand-in" in data["source"])  # a config of old has the words alone
    print(f"{env_id}, seed {seed}: {summary(returns, score, stand_in)}")
    if camera:
        play(policy, [camera], seed, 0)
        camera.close()
        print(f"{args.render_video}: {camera.frames} frames")


class Camera(gymnasium.Wrapper):
    """An environment whose pictures go into an .mp4 file. All that can be missing is found out before an episode."""

    def __init__(self, path: str, env_id: str, max_episode_steps: int | None):
        """Exits with a sentence if the path will not do or there is no imageio, no render mode or no OpenGL."""
        folder = Path(path).absolute().parent
        if Path(path).suffix != ".mp4" or not (folder.is_dir() and os.access(folder, os.W_OK)):
            sys.exit(f"--render-video {path}: it must name an .mp4 file in a folder that can be written to.")
        missing = [name for name in ("imageio", "imageio_ffmpeg") if importlib.util.find_spec(name) is None]
        if missing:
            sys.exit(f"--render-video needs {missing[0]}: pip install imageio imageio-ffmpeg.")
        import imageio  # needed here alone

        if "rgb_array" not in gymnasium.make(env_id).metadata.get("render_modes", []):
            sys.exit(f"--render-video: {env_id} has no render mode rgb_array, so it cannot be filmed.")
        try:
            super().__init__(gymnasium.make(env_id, max_episode_steps=max_episode_steps, render_mode="rgb_array"))
            self.env.reset()
            self.env.render()
        except Exception as error:  # MuJoCo raises many types where it finds no OpenGL
            chosen = os.environ.get("MUJOCO_GL")
            advice = {
                "egl": "MUJOCO_GL=egl needs a driver with EGL (apt install libegl1)",
                "osmesa": "MUJOCO_GL=osmesa needs OSMesa (apt install libosmesa6)",
            }.get(chosen, "without a display set MUJOCO_GL=egl, or MUJOCO_GL=osmesa without a GPU")
            sys.exit(f"Rendering failed ({type(error).__name__}: {first_line(error)}): {advice}.")
        self.frames = 0
        self.film = imageio.get_writer(path, fps=self.env.metadata.get("render_fps") or 30, macro_block_size=1)

    def reset(self, **options):
        return self.picture_after(self.env.reset(**options))

    def step(self, action):
        return self.picture_after(self.env.step(action))

    def picture_after(self, result: tuple) -> tuple:
        self.film.append_data(self.env.render())
        self.frames += 1
        return result

    def close(self) -> None:
        self.film.close()
        self.env.close()
