"""--render-video: an episode as an .mp4 file. All that can be missing is found out before an episode is played."""

import importlib.util
import os
import sys
from pathlib import Path

import gymnasium
from torch import nn

from offline_run.evaluation import play


class Camera(gymnasium.Wrapper):
    """Films the first picture and every one after a step. Exits with a sentence if that is impossible."""

    def __init__(self, path: str, env_id: str, max_episode_steps: int | None):
        if Path(path).suffix != ".mp4":
            sys.exit(f"--render-video {path}: the file's name must end in .mp4.")
        if not Path(path).absolute().parent.is_dir():
            sys.exit(f"--render-video {path}: there is no folder {Path(path).absolute().parent}.")
        for package in ("imageio", "imageio_ffmpeg"):
            if importlib.util.find_spec(package) is None:
                sys.exit(f"--render-video needs {package}: pip install imageio imageio-ffmpeg.")
        import imageio  # needed for this alone

        plain = gymnasium.make(env_id, max_episode_steps=max_episode_steps)
        if "rgb_array" not in plain.metadata.get("render_modes", []):
            sys.exit(f"--render-video: {env_id} has no render mode rgb_array, so it cannot be filmed.")
        plain.close()
        try:
            super().__init__(gymnasium.make(env_id, max_episode_steps=max_episode_steps, render_mode="rgb_array"))
            self.env.reset()
            self.env.render()
        except Exception as error:  # MuJoCo raises many types where it finds no OpenGL
            opengl = os.environ.get("MUJOCO_GL", "")
            advice = "without a display set MUJOCO_GL=egl, or MUJOCO_GL=osmesa without a GPU"
            if opengl in ("egl", "osmesa"):
                library = {"egl": "libegl1", "osmesa": "libosmesa6"}[opengl]
                advice = f"MUJOCO_GL={opengl} needs its library (apt install {library})"
            cause = (str(error).strip().splitlines() or [""])[0]
            sys.exit(f"Rendering failed ({type(error).__name__}: {cause}): {advice}.")
        self.path, self.frames = path, 0
        fps = self.env.metadata.get("render_fps") or 30
        self.film = imageio.get_writer(path, fps=fps, macro_block_size=1)

    def take(self) -> None:
        self.film.append_data(self.env.render())
        self.frames += 1

    def reset(self, **options):
        result = self.env.reset(**options)
        self.take()
        return result

    def step(self, action):
        result = self.env.step(action)
        self.take()
        return result

    def record(self, policy: nn.Module, seed: int) -> None:
        """The seed's first evaluation episode."""
        play(policy, [self], seed, 0)
        self.film.close()
        print(f"{self.path}: {self.frames} frames")
