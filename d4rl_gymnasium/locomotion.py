"""D4RL's HalfCheetah, Hopper and Walker2d (their `-v2` tasks).

gymnasium's `-v4` classes have D4RL's observations, rewards, terminations and resets; `-v5` has not. What differs is the
physics (see physics.py), and that D4RL clips actions to [-1, 1] before anything else, the control cost included.
"""

import mujoco
import numpy as np
from gymnasium.envs.mujoco import half_cheetah_v4, hopper_v4, walker2d_v4

from d4rl_gymnasium.physics import compile_model


class D4RLPhysics:
    """Mixed into a gymnasium `-v4` class: D4RL's model and D4RL's clipped actions."""

    def _initialize_simulation(self):
        return compile_model(mujoco.MjSpec.from_file(self.fullpath), self.width, self.height)

    def step(self, action):
        return super().step(np.clip(action, -1.0, 1.0))


class HalfCheetahEnv(D4RLPhysics, half_cheetah_v4.HalfCheetahEnv):
    """Observation (17,), action (6,) in [-1, 1], 0.05 s a step, never terminal."""


class HopperEnv(D4RLPhysics, hopper_v4.HopperEnv):
    """Observation (11,), action (3,) in [-1, 1], 0.008 s a step, terminal once the hopper has fallen."""


class Walker2dEnv(D4RLPhysics, walker2d_v4.Walker2dEnv):
    """Observation (17,), action (6,) in [-1, 1], 0.008 s a step, terminal once the walker has fallen."""
