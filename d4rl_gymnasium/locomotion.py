"""D4RL's HalfCheetah, Hopper and Walker2d (their `-v2` tasks).

gymnasium's `-v4` classes have D4RL's observations, rewards, terminations and resets; `-v5` has not. What differs is the
physics (see physics.py), and that D4RL clips actions to [-1, 1] before anything else, the control cost included.
"""

import mujoco
import numpy as np
from gymnasium.envs.mujoco import half_cheetah_v4, hopper_v4, walker2d_v4

from d4rl_gymnasium.physics import compile_model


class D4RLPhysics:
    """Mixed into a gymnasium `-v4` class: D4RL's model, D4RL's clipped actions, and a step with D4RL's numbers.

    The class's own step would take as long again as the physics: it checks the state twice and computes forces that
    nobody reads. Its arguments for other rewards and other terminations have no effect here.
    """

    alive_bonus, speed_limit = 1.0, 10.0  # the reward of not having fallen; the bound of observed velocities

    def _initialize_simulation(self):
        return compile_model(mujoco.MjSpec.from_file(self.fullpath), self.width, self.height)

    def step(self, action):
        action = np.minimum(np.maximum(action, -1.0), 1.0)  # np.clip is slow on small arrays
        before = float(self.data.qpos[0])
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        after = float(self.data.qpos[0])
        velocity = (after - before) / self.dt
        reward = velocity + self.alive_bonus - self._ctrl_cost_weight * float(np.square(action).sum())
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), reward, self.has_fallen(), False, {"x_position": after, "x_velocity": velocity}

    def _get_obs(self):
        velocities = np.minimum(np.maximum(self.data.qvel, -self.speed_limit), self.speed_limit)
        return np.concatenate([self.data.qpos[1:], velocities])


class HalfCheetahEnv(D4RLPhysics, half_cheetah_v4.HalfCheetahEnv):
    """Observation (17,), action (6,) in [-1, 1], 0.05 s a step, never terminal."""

    alive_bonus, speed_limit = 0.0, np.inf

    def has_fallen(self):
        return False


class HopperEnv(D4RLPhysics, hopper_v4.HopperEnv):
    """Observation (11,), action (3,) in [-1, 1], 0.008 s a step, terminal once the hopper has fallen."""

    def has_fallen(self):
        _, z, angle, *joints = self.data.qpos.tolist()
        rest = joints + self.data.qvel.tolist()
        return not (0.7 < z and -0.2 < angle < 0.2 and all(-100 < x < 100 for x in rest))


class Walker2dEnv(D4RLPhysics, walker2d_v4.Walker2dEnv):
    """Observation (17,), action (6,) in [-1, 1], 0.008 s a step, terminal once the walker has fallen."""

    def has_fallen(self):
        _, z, angle, *_ = self.data.qpos.tolist()
        return not (0.8 < z < 2.0 and -1.0 < angle < 1.0)
