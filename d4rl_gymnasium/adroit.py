"""D4RL's Adroit tasks: a simulated hand turns a pen, opens a door, drives in a nail or carries a ball to a target.

gymnasium-robotics' AdroitHand classes have D4RL's models, observations and resets. Three things differ:
- In door, hammer and relocate they reward the distance between hand and object. D4RL charges for it, as do the
  tasks' authors (Rajeswaran et al. 2018, arXiv:1709.10087).
- They let an episode of pen go on once the pen has been dropped.
- Today's MuJoCo has a new collision routine for convex shapes such as the pen and the hammer's head (`nativeccd`).
  Without it the old one is used.
"""

import contextlib
import io

import gymnasium
import mujoco
import numpy as np

from d4rl_gymnasium.physics import require_mujoco_version, restore_contacts

try:
    # On import the package prints a notice about the reward's sign, which is dealt with below.
    with contextlib.redirect_stderr(io.StringIO()):
        from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv
        from gymnasium_robotics.envs.adroit_hand.adroit_hammer import AdroitHandHammerEnv
        from gymnasium_robotics.envs.adroit_hand.adroit_pen import AdroitHandPenEnv
        from gymnasium_robotics.envs.adroit_hand.adroit_relocate import AdroitHandRelocateEnv
except ImportError as error:
    raise ImportError("D4RL's Adroit tasks need one more package: `pip install gymnasium-robotics==1.4.2`.") from error


class PenEnv(AdroitHandPenEnv):
    """Observation (45,), action (24,), terminal once the pen has fallen below 0.075 m."""

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        fallen = bool(self.data.xpos[self.obj_body_id][2] < 0.075)
        return observation, float(reward), fallen, False, info


class ChargeForDistance:
    """Mixed in where the parent's reward has +0.1 |hand - object| and D4RL's has -0.1 |hand - object|."""

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        distance = np.linalg.norm(self.object_position() - self.hand_position())
        return observation, float(reward - 0.2 * distance), False, False, info


class DoorEnv(ChargeForDistance, AdroitHandDoorEnv):
    """Observation (39,), action (28,), never terminal."""

    def hand_position(self):
        return self.data.site_xpos[self.grasp_site_id]

    def object_position(self):
        return self.data.site_xpos[self.handle_site_id]


class LooseObject(ChargeForDistance):
    """The object is a body of its own, which the hand can take up."""

    def hand_position(self):
        return self.data.site_xpos[self.S_grasp_site_id]

    def object_position(self):
        return self.data.xpos[self.obj_body_id]


class HammerEnv(LooseObject, AdroitHandHammerEnv):
    """Observation (46,), action (26,), never terminal."""


class RelocateEnv(LooseObject, AdroitHandRelocateEnv):
    """Observation (39,), action (30,), never terminal."""


def AdroitEnv(task: str, **kwargs) -> gymnasium.Env:
    """The environment of `task`: "pen", "door", "hammer" or "relocate". Actions lie in [-1, 1]; 0.01 s a step.

    Raises: RuntimeError where mujoco is none of the versions for which D4RL's physics has been shown.
    """
    require_mujoco_version()
    env = {"pen": PenEnv, "door": DoorEnv, "hammer": HammerEnv, "relocate": RelocateEnv}[task](**kwargs)
    restore_contacts(env.model)
    env.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_NATIVECCD
    return env
