"""D4RL's antmaze (its `-v2` tasks): an eight-jointed ant walks through a maze to a goal that it does not see."""

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

from d4rl_gymnasium.physics import compile_model

# Rows of the map: `1` wall, `0` free, `R` where the robot starts, `G` around which its goal is drawn.
MAZES = {
    "umaze": "11111 1R001 11101 1G001 11111".split(),
    "medium": "11111111 1R011001 10010001 11000111 10010001 10100101 100010G1 11111111".split(),
    "large": (
        "111111111111 1R0001000001 101101010101 100000010001 101111011101 "
        "100101000001 110101010111 100100010G01 111111111111"
    ).split(),
}
CELL = 4.0  # metres
MOTOR_TORQUE = 30.0  # N m, at an action of 1


class AntMazeEnv(MujocoEnv):
    """Observation (29,) = qpos (15,), qvel (14,), x and y first; action (8,) in [-1, 1]; 0.1 s a step.

    Reward 1 and terminal once within 0.5 m of `goal`, (x, y) in metres; else 0. A reset puts the ant at R, every
    coordinate U(-0.1, 0.1) and every velocity N(0, 0.1) away from rest, and draws `goal` anew: G's centre plus U(0, 1)
    plus U(0, 0.5) on each axis. `maze` is "umaze", "medium" or "large". The start is at (0, 0); x runs along columns.

    The robot is gymnasium's own ant.xml with D4RL's changes. (gymnasium-robotics' AntMaze is another robot.)
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 10}

    def __init__(self, maze: str = "umaze", **kwargs):
        self.layout = MAZES[maze]
        self.goal = self.find_cells("G")[0]
        farthest = self.find_cells("1")[-1]  # the corner opposite to the one above and left of R, at (-4, -4)
        super().__init__(
            "ant.xml",
            frame_skip=5,
            observation_space=Box(-np.inf, np.inf, shape=(29,), dtype=np.float64),
            default_camera_config={
                "lookat": np.array([*((farthest - CELL) / 2), 0]),
                "distance": 1.5 * max(farthest),
                "elevation": -90.0,
                "azimuth": 90.0,
            },
            **kwargs,
        )
        self.action_space = Box(-1.0, 1.0, shape=(8,), dtype=np.float32)  # not the motors' torques

    def find_cells(self, kind: str) -> np.ndarray:
        """Centres (x, y) in metres of every cell of `kind`, a character of the map. The robot's cell is the origin."""
        cells = np.array([list(line) for line in self.layout])
        return CELL * (np.argwhere(cells == kind) - np.argwhere(cells == "R"))[:, ::-1]

    def _initialize_simulation(self):
        spec = mujoco.MjSpec.from_file(self.fullpath)
        spec.option.timestep = 0.02
        for motor in spec.actuators:
            motor.gear[0] = 1
            motor.ctrlrange = [-MOTOR_TORQUE, MOTOR_TORQUE]
        for x, y in self.find_cells("1"):
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[x, y, 1],
                size=[CELL / 2, CELL / 2, 1],
                rgba=[0.4, 0.4, 0.4, 1],
                contype=1,
                conaffinity=1,
            )
        for geom in spec.geoms:
            geom.solimp[:3] = [0.8, 0.8, 0.01]
        return compile_model(spec, self.width, self.height)

    def step(self, action):
        self.data.ctrl[:] = MOTOR_TORQUE * action  # MuJoCo clips to the motors' range
        mujoco.mj_step(self.model, self.data, self.frame_skip)  # do_simulation adds forces that nobody reads
        observation = self._get_obs()
        reached = bool(np.linalg.norm(observation[:2] - self.goal) <= 0.5)
        if self.render_mode == "human":
            self.render()
        return observation, float(reached), reached, False, {}

    def reset_model(self):
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, size=15)
        self.set_state(qpos, 0.1 * self.np_random.standard_normal(14))
        self.goal = self.find_cells("G")[0] + self.np_random.uniform(0, 1, size=2) + self.np_random.uniform(0, 0.5, 2)
        return self._get_obs()

    def _get_obs(self):
        return np.concatenate([self.data.qpos, self.data.qvel])
