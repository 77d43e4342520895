"""D4RL's maze2d: a force-driven point in a maze, rewarded near one goal; and the controller that collects its data.

A position is (row, column) in units of cells. The point starts at (1.2, 1.2) in MuJoCo's frame and the walls lie one
cell further out than their (row, column), so qpos equals a cell's (row, column) at 0.2 beyond the middle of the cell
in both directions: the point can be anywhere in [-0.6, 0.2] around it. D4RL calls this place the cell's centre, and
so do we: starts, goals and waypoints refer to it.
"""

import copy
import functools
import math
from collections import deque

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from tqdm import tqdm

from d4rl_gymnasium.physics import compile_model
from d4rl_gymnasium.tasks import TASKS

# Rows of the maze from top to bottom: `#` wall, `O` free, `G` goal (free, too).
MAZES = {
    "umaze": "##### #GOO# ###O# #OOO# #####".split(),
    "medium": "######## #OO##OO# #OO#OOO# ##OOO### #OO#OOO# #O#OO#O# #OOO#OG# ########".split(),
    "large": (
        "############ #OOOO#OOOOO# #O##O#O#O#O# #OOOOOO#OOO# #O####O###O# "
        "#OO#O#OOOOO# ##O#O#O#O### #OO#OOO#OGO# ############"
    ).split(),
}
MAX_SPEED = 5.0

# What D4RL's generate_maze2d_datasets.py adds to the controller's actions: standard deviation. Drawn so many rows at
# a time, for speed; another number would give other data.
NOISE = 0.5
NOISE_BLOCK = 4096

POINT = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <visual> <headlight ambient=".4 .4 .4" diffuse=".8 .8 .8"/> </visual>
  <default>
    <geom density="1000" friction=".5 .1 .1" margin="0.002" condim="1"/>
    <joint type="slide" damping="1"/>
    <motor gear="100" ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
    <geom type="plane" size="40 40 1" pos="0 0 -0.1" rgba=".2 .3 .4 1" contype="0" conaffinity="0"/>
    <body name="point" pos="1.2 1.2 0">
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
      <geom type="sphere" size="0.1" rgba=".3 .6 .3 1" contype="1"/>
    </body>
  </worldbody>
  <actuator> <motor joint="x"/> <motor joint="y"/> </actuator>
</mujoco>
"""


class Maze2dEnv(MujocoEnv):
    """D4RL's sparse maze2d. Observation (4,) = x, y, vx, vy; action (2,) in [-1, 1]; 0.01 s a step; never terminal.

    Reward 1 while the point is within 0.5 of the goal G, which never moves. A reset draws a free cell (G included),
    the position within 0.1 of its centre on each axis, and a velocity from N(0, 0.1).
    `maze` is "umaze", "medium" or "large".
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 100}

    def __init__(self, maze: str = "umaze", **kwargs):
        self.maze, self.layout = maze, MAZES[maze]
        self.cells = find_cells(self.layout, "O") + find_cells(self.layout, "G")
        self.goal = self.cells[-1]
        rows, columns = len(self.layout), len(self.layout[0])
        super().__init__(
            __file__,  # MujocoEnv wants a model file; ours is compiled below, from POINT and the maze
            frame_skip=1,
            observation_space=Box(-np.inf, np.inf, shape=(4,), dtype=np.float64),
            default_camera_config={
                "lookat": np.array([(rows + 1) / 2, (columns + 1) / 2, 0]),
                "distance": 1.3 * columns,
                "elevation": -90.0,
                "azimuth": 180.0,  # the first row of the maze at the top
            },
            **kwargs,
        )

    def _initialize_simulation(self):
        model = copy.copy(compile_maze(self.maze, self.width, self.height))  # its own: a user may change it
        return model, mujoco.MjData(model)

    def step(self, action):
        self.data.ctrl[:] = action  # MuJoCo clips it to the motors' [-1, 1]
        step_point(self.model, self.data)
        observation = self._get_obs()
        reward = float(math.dist(self.data.qpos.tolist(), self.goal) <= 0.5)
        if self.render_mode == "human":
            self.render()
        return observation, reward, False, False, {}

    def reset_model(self):
        cell = self.cells[self.np_random.integers(len(self.cells))]
        self.set_state(cell + self.np_random.uniform(-0.1, 0.1, size=2), 0.1 * self.np_random.standard_normal(2))
        return self._get_obs()

    def _get_obs(self):
        return np.concatenate([self.data.qpos, self.data.qvel])


def find_cells(layout: list[str], kind: str) -> list[tuple[int, int]]:
    """(row, column) of every cell of `kind`, a character of the layout."""
    return [(row, column) for row, line in enumerate(layout) for column, c in enumerate(line) if c == kind]


@functools.cache
def compile_maze(maze: str, width: int, height: int) -> mujoco.MjModel:
    """The point in the maze, once for all environments: compiling takes longer than all else that makes one."""
    spec = mujoco.MjSpec.from_string(POINT)
    for row, column in find_cells(MAZES[maze], "#"):
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[row + 1, column + 1, 0],
            size=[0.5, 0.5, 0.2],
            rgba=[0.7, 0.5, 0.3, 1],
            contype=2,
            conaffinity=1,
        )
    ((x, y),) = find_cells(MAZES[maze], "G")
    spec.worldbody.add_site(pos=[x + 1.2, y + 1.2, 0], size=[0.2, 0.2, 0.2], rgba=[0.6, 0.3, 0.3, 1])
    model, _ = compile_model(spec, width, height)
    # How hard a contact pushes depends on the body's mean inverse mass. MuJoCo 2.1.0 averaged over three axes,
    # though the point slides along two; today's compiler knows that and gives 1 / mass.
    model.body("point").invweight0[0] = 2 / (3 * model.body("point").mass[0])
    return model


def step_point(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """One step of 0.01 s under `data.ctrl`. D4RL bounds the velocity before the step, not after it."""
    for axis, speed in enumerate(data.qvel.tolist()):  # two plain numbers: numpy would take as long as the physics
        if abs(speed) > MAX_SPEED:
            data.qvel[axis] = math.copysign(MAX_SPEED, speed)
    mujoco.mj_step(model, data)


# --- Data -------------------------------------------------------------------------------------------------------------


def plan(cells: set, start: tuple[int, int], target: tuple[int, int]) -> list[tuple[int, int]]:
    """The cells of a shortest path from `start` (left out) to `target` (always there). Moves are along rows, columns.

    Of several shortest paths it is D4RL's: where two steps come equally near, the first in the order below.
    """
    moves = ((0, -1), (0, 1), (-1, 0), (1, 0))

    def neighbours(cell):
        return [n for dr, dc in moves if (n := (cell[0] + dr, cell[1] + dc)) in cells]

    distance, queue = {target: 0}, deque([target])
    while queue:
        cell = queue.popleft()
        for neighbour in neighbours(cell):
            if neighbour not in distance:
                distance[neighbour] = distance[cell] + 1
                queue.append(neighbour)

    path = [start]
    while path[-1] != target:
        path.append(min(neighbours(path[-1]), key=distance.get))
    return path[1:] or [target]


def collect(maze: str, rows: int, seed: int, progress: bool = True) -> dict[str, np.ndarray]:
    """Walk through the maze to random cells, `rows` steps long, and record it as D4RL's maze2d files do.

    The controller follows a shortest path: the waypoints are the cells' centres, each moved by up to 0.2 towards the
    middle of its cell on both axes, except for the last. It wants 10 * (waypoint - position) - velocity, clipped to
    [-1, 1]; the action is that plus 0.5 N(0, 1) on both axes, clipped again. The next waypoint is due within 0.1 of
    the last. At the target, or after the task's horizon, it turns to another target from where it is: the point is
    never reset, so the rows are one long trajectory.

    The first row of a walk repeats the observation of the row before, and the controller acts on it: a slip of D4RL's
    script, kept since D4RL's files come from it.

    Returns float32 arrays of `rows` rows and two bool ones:
        observations (4,), actions (2,)    before the step, but for the slip; the action as it was executed
        infos/qpos (2,), infos/qvel (2,)   before the step, always
        infos/goal (2,)    the target that is walked to; the task's own goal plays no part in the walk
        rewards            1 where the stored observation, the one before the step, is within 0.5 of the task's goal
        terminals          all False
        timeouts           True on the last row of each walk, as in D4RL's released files (D4RL's issue #85): it cuts
                           the trajectory into walks, though the simulation does go on

    The same `maze`, `rows` and `seed` give the same data on the same machine, and fewer rows give the first of them.
    Whoever changes what the rows are counts up `collected_rule` in tasks.py.
    Source: D4RL's generate_maze2d_datasets.py --noisy, waypoint_controller.py, relabel_maze2d_rewards.py.
    """
    env = Maze2dEnv(maze)
    horizon = TASKS[f"maze2d-{maze}-v1"].max_episode_steps
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    qpos, qvel, ctrl = env.data.qpos, env.data.qvel, env.data.ctrl  # views: they follow the simulation

    states = np.empty((rows, 4))
    actions = np.empty((rows, 2), np.float32)
    goals = np.empty((rows, 2), np.float32)
    timeouts = np.zeros(rows, bool)
    slips, true_states = [], []  # rows that repeat an observation, and the state they have in truth

    waypoints, walk_start = [], 0
    for row in tqdm(range(rows), desc=f"collecting maze2d-{maze}", unit=" rows", disable=not progress):
        if row % NOISE_BLOCK == 0:
            noise = rng.normal(0.0, NOISE, size=(NOISE_BLOCK, 2)).tolist()

        if waypoints or row == 0:
            # Plain numbers: for two of them numpy would take four times as long as the physics.
            (x, y), (vx, vy) = qpos.tolist(), qvel.tolist()
        else:
            slips.append(row)
            true_states.append((*qpos, *qvel))

        if not waypoints:
            cell = env.cells[rng.integers(len(env.cells))]
            goal = cell + rng.uniform(-0.1, 0.1, size=2)
            path = np.array(plan(set(env.cells), (round(x + 0.2), round(y + 0.2)), cell), dtype=float)
            path[:-1] -= rng.uniform(0.0, 0.2, size=(len(path) - 1, 2))
            waypoints, target, walk_start = path.tolist(), path[-1].tolist(), row

        (wx, wy), (noise_x, noise_y) = waypoints[0], noise[row % NOISE_BLOCK]
        action = (
            min(max(10 * (wx - x) - vx, -1.0), 1.0) + noise_x,
            min(max(10 * (wy - y) - vy, -1.0), 1.0) + noise_y,
        )
        states[row] = x, y, vx, vy
        actions[row] = action
        goals[row] = goal

        ctrl[:] = action  # MuJoCo clips it
        step_point(env.model, env.data)

        arrived = (x - target[0]) ** 2 + (y - target[1]) ** 2 < 0.1**2
        if arrived or row - walk_start == horizon:
            timeouts[row] = True
            waypoints = []
        elif (x - wx) ** 2 + (y - wy) ** 2 < 0.1**2:
            waypoints.pop(0)
    env.close()

    observations = states.astype(np.float32)
    if slips:
        states[slips] = true_states
    return {
        "observations": observations,
        "actions": np.clip(actions, -1.0, 1.0),
        "rewards": (np.linalg.norm(observations[:, :2] - env.goal, axis=1) <= 0.5).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": timeouts,
        "infos/goal": goals,
        "infos/qpos": states[:, :2].astype(np.float32),
        "infos/qvel": states[:, 2:].astype(np.float32),
    }
