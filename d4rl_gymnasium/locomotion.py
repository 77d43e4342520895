"""D4RL's HalfCheetah, Hopper and Walker2d (their `-v2` tasks); and the policies that collect stand-ins for their data.

gymnasium's `-v4` classes have D4RL's observations, rewards, terminations and resets; `-v5` has not. What differs is the
physics (see physics.py), and that D4RL clips actions to [-1, 1] before anything else, the control cost included.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import mujoco
import numpy as np
from gymnasium.envs.mujoco import half_cheetah_v4, hopper_v4, walker2d_v4

from d4rl_gymnasium.physics import compile_model
from d4rl_gymnasium.progress import Progress


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


# --- Data -------------------------------------------------------------------------------------------------------------

ROBOTS = {"halfcheetah": HalfCheetahEnv, "hopper": HopperEnv, "walker2d": Walker2dEnv}
HORIZON = 1000
# Snapshots of one agent per robot, in the order of its training, and what is known of them: tools/behaviour.py
WEIGHTS, RECORD = (Path(__file__).with_name(f"behaviour.{suffix}") for suffix in ("npz", "json"))


class Policy:
    """A snapshot of a SAC agent: action = tanh(mean(s) + std(s) * noise), two hidden layers with ReLU, in float64.

    `arrays` holds NAME_weight (inputs, outputs) and NAME_bias (outputs,) for the NAMEs hidden1, hidden2, mean, log_std.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.hidden1, self.hidden2, self.mean, self.log_std = (
            (arrays[f"{name}_weight"].astype(np.float64), arrays[f"{name}_bias"].astype(np.float64))
            for name in ("hidden1", "hidden2", "mean", "log_std")
        )

    def __call__(self, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """observation (O,), noise (A,) from N(0, 1) -> action (A,) in [-1, 1]."""
        x = observation
        for weight, bias in (self.hidden1, self.hidden2):
            x = np.maximum(x @ weight + bias, 0.0)
        log_std = np.minimum(np.maximum(x @ self.log_std[0] + self.log_std[1], -20.0), 2.0)  # the trainer's bounds
        return np.tanh(x @ self.mean[0] + self.mean[1] + np.exp(log_std) * noise)


def load_policies(robot: str, level: str) -> list[Policy]:
    """The policies whose data a dataset of this level holds, in the order of training.

    random: the untrained one; medium; expert: the best; medium-replay: all up to medium; full-replay: all;
    medium-expert: these two.
    """
    roles = [snapshot["role"] for snapshot in json.loads(RECORD.read_text(encoding="utf-8"))[robot]["snapshots"]]
    medium = roles.index("medium")
    chosen = {
        "random": [0],
        "medium": [medium],
        "expert": [len(roles) - 1],
        "medium-expert": [medium, len(roles) - 1],
        "medium-replay": range(medium + 1),
        "full-replay": range(len(roles)),
    }[level]
    with np.load(WEIGHTS) as file:
        arrays = {key.removeprefix(f"{robot}_"): file[key] for key in file if key.startswith(f"{robot}_")}
    return [Policy({key: stacked[i] for key, stacked in arrays.items()}) for i in chosen]


def run_episode(
    env: D4RLPhysics, policy: Policy, rng: np.random.Generator, limit: int = HORIZON
) -> dict[str, np.ndarray]:
    """One episode of at most `limit` steps, T rows, as D4RL's files record it.

    Returns float32 arrays `observations`, `actions`, `next_observations`, `rewards` and the bool arrays `terminals`,
    `timeouts`: one of these two is True, in the last row. At the limit it is the timeout, even if the robot has just
    fallen. Source: D4RL's collect_data.py.
    """
    observation, _ = env.reset()
    noise = rng.standard_normal((limit, env.action_space.shape[0]))
    observations, actions, rewards, fallen = [observation], [], [], False
    while not fallen and len(rewards) < limit:
        action = policy(observation, noise[len(rewards)]).astype(np.float32)  # what is stored is what is done
        observation, reward, fallen, _, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    observations = np.array(observations, np.float32)
    last = np.arange(len(rewards)) == len(rewards) - 1
    return {
        "observations": observations[:-1],
        "actions": np.array(actions),
        "next_observations": observations[1:],
        "rewards": np.array(rewards, np.float32),
        "terminals": last & (len(rewards) < limit),
        "timeouts": last & (len(rewards) == limit),
    }


def collect(robot: str, level: str, rows: int, seed: int, progress: bool = True) -> dict[str, np.ndarray]:
    """Run the policies of `load_policies` in turn, each for an equal share of `rows`, and record it as D4RL does.

    Returns `run_episode`'s arrays, episode after episode, with `rows` rows. The last episode of each policy is cut
    short where its share ends: by a timeout, though the robot has neither fallen nor reached the horizon.

    The same arguments give the same data on the same machine.
    """
    env = ROBOTS[robot]()
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    policies = load_policies(robot, level)
    ends = [rows * (i + 1) // len(policies) for i in range(len(policies))]
    arrays, row = {}, 0
    with Progress(total=rows, desc=f"collecting {robot}-{level}", unit=" rows", disable=not progress) as bar:
        for policy, end in zip(policies, ends, strict=True):
            while row < end:
                episode = run_episode(env, policy, rng, min(HORIZON, end - row))
                length = len(episode["rewards"])
                for key, values in episode.items():
                    if key not in arrays:
                        arrays[key] = np.empty((rows, *values.shape[1:]), values.dtype)
                    arrays[key][row : row + length] = values
                row += length
                bar.update(length)
    env.close()
    return arrays
