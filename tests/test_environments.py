"""The environments, against transitions recorded from D4RL's own (tests/parity), and the data that maze2d collects.

Recorded with D4RL 1.1, gym 0.23.1, mujoco-py and MuJoCo 2.1.0: 80 transitions an environment. `pytest -s -k recorded`
prints how far each environment is from its recording.
"""

import re
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco import half_cheetah_v4, hopper_v4, walker2d_v4

import d4rl_gymnasium as d4rl
from d4rl_gymnasium import antmaze, locomotion, maze2d, physics
from tools import mazes

PARITY = Path(__file__).parent / "parity"
COLLECTED_ROWS = 50_000
ADROIT = ("pen", "door", "hammer", "relocate")

# The thirteen environments behind the 39 tasks: one task each.
ENVIRONMENTS = list({(task.entry_point, str(task.kwargs)): env_id for env_id, task in d4rl.TASKS.items()}.values())


def make(env_id: str) -> gymnasium.Env:
    if env_id.startswith(ADROIT):
        pytest.importorskip("gymnasium_robotics")
    return gymnasium.make(env_id)


def one_step_errors(env, name: str, place) -> tuple[np.ndarray, np.ndarray]:
    """Per recorded transition: largest error of the next observation, error of the reward. Asserts on `terminal`.

    `place(env, row)` puts the environment into the recorded state.
    """
    with np.load(PARITY / f"{name}.npz") as file:
        recorded = dict(file)
    errors = []
    env.reset(seed=0)
    for t in range(len(recorded["reward"])):
        place(env, {key: value[t] for key, value in recorded.items()})
        observation, reward, terminal, truncated, _ = env.step(recorded["action"][t])
        off = np.abs(observation - recorded["next_observation"][t]).max()
        errors.append((off, abs(reward - recorded["reward"][t])))
        assert terminal == recorded["terminal"][t] and not truncated
    observation_error, reward_error = np.array(errors).T
    print(f"\n{name}: {len(errors)} transitions, {recorded['terminal'].sum()} terminal; "
          f"max error: observation {observation_error.max():.1e}, reward {reward_error.max():.1e}; "
          f"observations off by more than 1e-6: {(observation_error > 1e-6).sum()}")  # fmt: skip
    return observation_error, reward_error


def set_qpos_and_qvel(env, row):
    env.set_state(row["qpos"], row["qvel"])
    if "goal" in row:
        env.goal = row["goal"]


# --- One step from a recorded state -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("halfcheetah-v2", locomotion.HalfCheetahEnv),
        ("hopper-v2", locomotion.HopperEnv),
        ("walker2d-v2", locomotion.Walker2dEnv),
        *((f"maze2d-{maze}-v1", lambda maze=maze: maze2d.Maze2dEnv(maze)) for maze in maze2d.MAZES),
        *((f"antmaze-{maze}-v2", lambda maze=maze: antmaze.AntMazeEnv(maze)) for maze in antmaze.MAZES),
    ],
)
def test_recorded_transition(name, build):
    observation_error, reward_error = one_step_errors(build(), name, set_qpos_and_qvel)
    assert observation_error.max() < 1e-9
    assert reward_error.max() < 1e-9


def test_recorded_transition_needs_the_capsule_correction():
    stock = half_cheetah_v4.HalfCheetahEnv()
    assert one_step_errors(stock, "halfcheetah-v2", set_qpos_and_qvel)[0].max() > 0.1


@pytest.mark.parametrize(
    ("task", "rows_off", "max_observation_error", "max_reward_error"),
    [
        ("pen", 0, 1e-9, 1e-9),
        ("door", 7, 0.029, 0.0014),  # fingers or palm on the table, where MuJoCo's box contacts have changed
        ("hammer", 0, 1e-9, 1e-9),
        ("relocate", 2, 0.0013, 2.5e-6),  # fingers on the table
    ],
)
def test_recorded_transition_of_the_hand(task, rows_off, max_observation_error, max_reward_error):
    pytest.importorskip("gymnasium_robotics")
    from d4rl_gymnasium.adroit import AdroitEnv

    def place(env, row):
        recorded = {"action", "next_observation", "reward", "terminal"}
        env.set_env_state({key: value for key, value in row.items() if key not in recorded})

    observation_error, reward_error = one_step_errors(AdroitEnv(task), f"{task}-v1", place)
    assert np.median(observation_error) < 1e-9 and np.median(reward_error) < 1e-9
    assert (observation_error > 1e-6).sum() <= rows_off
    assert observation_error.max() < max_observation_error
    assert reward_error.max() < max_reward_error


def pairs_that_can_touch(model) -> list[tuple[int, int]]:
    """Pairs of geoms that MuJoCo tests for contact, besides those that a model names one by one."""
    kind, affinity = model.geom_contype, model.geom_conaffinity
    welded = model.body_weldid[model.geom_bodyid]  # bodies without a joint between them are one
    parent = model.body_weldid[model.body_parentid[welded]]
    return [
        (i, j)
        for i in range(model.ngeom)
        for j in range(i)
        if (kind[i] & affinity[j] or kind[j] & affinity[i])
        and welded[i] != welded[j]
        and not (welded[i] and welded[j] and (welded[i] == parent[j] or welded[j] == parent[i]))
    ]


MARGINS = {"hopper": 0.001, "maze2d": 0.002, "antmaze": 0.01, "pen": 0.0005, "door": 0.0005, "hammer": 0.0005,
           "relocate": 0.0005, "halfcheetah": 0.0, "walker2d": 0.0}  # fmt: skip


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_contact_margins_are_those_of_mujoco_before_3_5(env_id):
    """Of any two geoms, whichever way this version of MuJoCo combines their margins: the recordings touch only some."""
    model = make(env_id).unwrapped.model
    margin = model.geom_margin
    combine = np.add if physics.mujoco_version() >= (3, 5) else np.maximum
    pairs = np.array(pairs_that_can_touch(model))
    assert len(pairs) > 5
    assert np.unique(combine(*margin[pairs.T])).tolist() == [MARGINS[env_id.split("-")[0]]]
    assert not model.geom_gap.any()


def test_recordings_have_what_they_should_show():
    def count(name, key):
        with np.load(PARITY / f"{name}.npz") as file:
            return np.count_nonzero(file[key])

    assert [count(name, "terminal") for name in ("hopper-v2", "walker2d-v2", "pen-v1")] == [11, 7, 3]
    assert [count(f"maze2d-{maze}-v1", "reward") for maze in ("umaze", "medium")] == [20, 10]


@pytest.mark.parametrize(("distance", "reached"), [(0.4, True), (0.6, False)])
def test_antmaze_rewards_and_ends_at_the_goal(distance, reached):
    env = antmaze.AntMazeEnv("umaze")
    env.reset(seed=0)
    env.set_state(env.init_qpos, env.init_qvel)
    env.goal = np.array([0.0, -distance])  # a step that starts at rest moves the ant by a centimetre at most
    _, reward, terminal, _, _ = env.step(np.zeros(8))
    assert (reward, terminal) == (float(reached), reached)


def test_maze2d_bounds_the_velocity_before_the_step():
    env = maze2d.Maze2dEnv("umaze")
    env.reset(seed=0)
    steps = []
    for velocity in ([8.0, -7.0], [5.0, -5.0]):
        env.set_state(np.array([1.0, 1.0]), np.array(velocity))
        steps.append(env.step(np.zeros(2))[0])
    np.testing.assert_array_equal(*steps)
    assert steps[0] == pytest.approx([1.05, 0.95, 5, -5], abs=0.02)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_actions_are_clipped(env_id):
    env = make(env_id).unwrapped
    outcomes = []
    for scale in (1, 5):
        env.reset(seed=0)
        signs = np.where(np.arange(env.action_space.shape[0]) % 2, -1.0, 1.0)
        observation, reward, *_ = env.step(scale * signs)
        outcomes.append([*observation, reward])
    assert outcomes[0] == outcomes[1]


# --- Resets and horizons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (locomotion.HalfCheetahEnv, half_cheetah_v4.HalfCheetahEnv),
        (locomotion.HopperEnv, hopper_v4.HopperEnv),
        (locomotion.Walker2dEnv, walker2d_v4.Walker2dEnv),
    ],
)
def test_locomotion_starts_where_gymnasium_starts(ours, stock):
    np.testing.assert_array_equal(ours().reset(seed=5)[0], stock().reset(seed=5)[0])


@pytest.mark.parametrize("env_class", [locomotion.HopperEnv, locomotion.Walker2dEnv])
def test_a_fall_is_what_gymnasium_calls_unhealthy(env_class):
    env, rng, outcomes = env_class(), np.random.default_rng(0), []
    for scale in (0.05, 0.3, 40.0, np.nan):
        for _ in range(50):
            env.reset(seed=0)
            env.data.qpos[1:3] += rng.normal(0, 0.4, 2)
            env.data.qpos[3:] += scale * rng.normal(size=env.model.nq - 3)
            env.data.qvel[:] += scale * rng.normal(size=env.model.nv)
            outcomes.append(env.has_fallen())
            assert outcomes[-1] == (not env.is_healthy)
    assert 20 < sum(outcomes) < 180  # both happen


@pytest.mark.parametrize("maze", maze2d.MAZES)
def test_maze2d_starts_in_free_cells(maze):
    env = maze2d.Maze2dEnv(maze)
    starts = np.array([env.reset(seed=0 if i == 0 else None)[0] for i in range(1000)])
    cells = np.round(starts[:, :2])
    assert np.abs(starts[:, :2] - cells).max() <= 0.1
    assert {tuple(cell) for cell in cells.astype(int)} == set(env.cells)  # all of them, and no other
    assert starts[:, 2:].std() == pytest.approx(0.1, rel=0.1)  # six standard errors
    assert all(maze2d.MAZES[maze][row][column] in "OG" for row, column in env.cells)


@pytest.mark.parametrize(("maze", "cell"), [("umaze", (0, 8)), ("medium", (20, 20)), ("large", (32, 24))])
def test_antmaze_starts_and_goals(maze, cell):
    env = antmaze.AntMazeEnv(maze)
    starts, goals = [], []
    for i in range(300):
        starts.append(env.reset(seed=0 if i == 0 else None)[0])
        goals.append(env.goal - cell)
    offsets = np.array(starts)[:, :15] - [0, 0, 0.75, 1, *[0] * 11]
    assert 0.09 < np.abs(offsets).max() <= 0.1
    assert np.array(starts)[:, 15:].std() == pytest.approx(0.1, rel=0.1)
    assert np.min(goals) >= 0 and np.max(goals) <= 1.5
    assert np.mean(goals, axis=0) == pytest.approx([0.75, 0.75], abs=0.1)  # U(0, 1) + U(0, 0.5); five standard errors
    assert len({tuple(goal) for goal in goals}) == 300


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_seeded_episodes_repeat_and_end_at_the_horizon(env_id):
    env = make(env_id)
    task = d4rl.TASKS[env_id]
    first, _ = env.reset(seed=11)
    assert first.shape == (task.observation_dim,) and first.dtype == np.float64
    actions = [env.action_space.sample() for _ in range(20)]
    episode = [first, *(env.step(action)[0] for action in actions)]
    np.testing.assert_array_equal(episode, [env.reset(seed=11)[0], *(env.step(action)[0] for action in actions)])
    assert not np.array_equal(first, env.reset()[0])

    state = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
    for step in range(1, task.max_episode_steps + 1):
        env.unwrapped.set_state(*state)  # so that nothing falls over before the horizon
        _, _, terminal, truncated, _ = env.step(np.zeros(task.action_dim))
        assert not terminal
        assert truncated == (step == task.max_episode_steps)


@pytest.mark.parametrize("env_id", d4rl.TASKS)
def test_every_task_makes_and_steps(env_id):
    env, task = make(env_id), d4rl.TASKS[env_id]
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (task.observation_dim,), np.float64)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (task.action_dim,), np.float32)
    env.reset(seed=0)
    observation, reward, terminal, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation) and isinstance(reward, float)
    assert type(terminal) is bool and type(truncated) is bool


# --- What is missing is said in one sentence --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.3.7", "3.11.0", "4.0.0"])
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_other_mujoco_versions_are_refused(env_id, version, monkeypatch):
    make(env_id)
    maze2d.compile_maze.cache_clear()  # an earlier test may have compiled it, with the right version
    monkeypatch.setattr(mujoco, "__version__", version)
    sentence = f'this is mujoco {version}: run `pip install "mujoco>=3.4,<3.11"`.'
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        gymnasium.make(env_id)


def test_the_hand_names_its_package(monkeypatch):
    for module in {"gymnasium_robotics", *sys.modules}:
        if module.startswith("gymnasium_robotics"):
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "d4rl_gymnasium.adroit", raising=False)
    with pytest.raises(ImportError, match=re.escape("pip install gymnasium-robotics==1.4.2")):
        gymnasium.make("pen-human-v1")


# --- maze2d's data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected():
    return maze2d.collect("umaze", COLLECTED_ROWS, seed=0, progress=False)


def test_collected_layout(collected):
    shapes = {key: (value.shape[1:], value.dtype) for key, value in collected.items()}
    assert shapes == {
        "observations": ((4,), np.float32),
        "actions": ((2,), np.float32),
        "rewards": ((), np.float32),
        "terminals": ((), bool),
        "timeouts": ((), bool),
        "infos/goal": ((2,), np.float32),
        "infos/qpos": ((2,), np.float32),
        "infos/qvel": ((2,), np.float32),
    }
    assert all(len(value) == COLLECTED_ROWS for value in collected.values())
    # D4RL's slip: the first row of a walk has the observation of the row before. `infos` have the state in truth.
    states = np.c_[collected["infos/qpos"], collected["infos/qvel"]]
    slips = np.flatnonzero(collected["timeouts"][:-1]) + 1
    np.testing.assert_array_equal(collected["observations"][slips], collected["observations"][slips - 1])
    assert (collected["observations"][slips] != states[slips]).any(axis=1).all()
    np.testing.assert_array_equal(*(np.delete(rows, slips, axis=0) for rows in (collected["observations"], states)))
    assert np.abs(collected["actions"]).max() == 1
    assert not collected["terminals"].any()


def test_collected_rewards(collected):
    near = np.linalg.norm(collected["observations"][:, :2] - [1, 1], axis=1) <= 0.5
    np.testing.assert_array_equal(collected["rewards"], near)


def test_collected_walks_end_at_their_targets(collected):
    """The horizon, 300 steps, ends none of them."""
    ends = np.flatnonzero(collected["timeouts"])
    distance = np.linalg.norm(collected["observations"][:, :2] - np.round(collected["infos/goal"]), axis=1)
    assert distance[ends].max() < 0.1
    inside = ~collected["timeouts"]
    inside[ends[-1] :] = False  # the last walk is cut off by the end of the data
    assert distance[inside].min() >= 0.1 - 1e-6
    assert np.all(np.diff(collected["infos/goal"], axis=0).any(axis=1) == collected["timeouts"][:-1])


def test_collected_actions_are_noisy(collected):
    """Near the target one knows what the controller wants: what is added to that is 0.5 N(0, 1), and clipped."""
    target = np.round(collected["infos/goal"])
    position, velocity = np.hsplit(collected["observations"].astype(np.float64), 2)
    near = np.linalg.norm(position - target, axis=1) < 0.5
    wanted = np.clip(10 * (target - position) - velocity, -1, 1)[near]
    actions = collected["actions"][near]
    assert (actions[wanted == 1] == 1).mean() == pytest.approx(0.5, abs=0.03)  # clipped before and after
    noise = (actions - wanted)[np.abs(wanted) < 0.2]
    assert np.median(noise) == pytest.approx(0, abs=0.05)
    assert np.quantile(noise, [0.159, 0.841]) == pytest.approx([-0.5, 0.5], abs=0.05)


def test_collected_walks_pass_cells_off_centre(monkeypatch):
    """Waypoints are up to 0.2 short of the centre, at random. The middle of the corridor of row 1 is at column 2."""
    monkeypatch.setattr(maze2d, "NOISE", 0.0)
    x, y = maze2d.collect("umaze", COLLECTED_ROWS, seed=0, progress=False)["infos/qpos"].T
    off_centre = (x - 1)[(np.abs(y - 2) < 0.1) & (np.abs(x - 1) < 0.7)]
    assert -0.21 < off_centre.min() < -0.18 and -0.01 < off_centre.max() < 0.02


def test_collected_transitions_are_the_environments(collected):
    """The stored state is rounded to float32; a step adds little to that, contacts included."""
    env = maze2d.Maze2dEnv("umaze")
    env.reset(seed=0)
    rows = np.r_[0:300, np.flatnonzero(collected["timeouts"])[:100]]
    for row in rows:
        env.set_state(collected["infos/qpos"][row], collected["infos/qvel"][row])
        observation, *_ = env.step(collected["actions"][row])
        after = np.r_[collected["infos/qpos"][row + 1], collected["infos/qvel"][row + 1]]
        np.testing.assert_allclose(observation, after, rtol=0, atol=1e-6)


def test_collection_repeats(collected):
    again = maze2d.collect("umaze", 3000, seed=0, progress=False)
    other = maze2d.collect("umaze", 3000, seed=1, progress=False)
    for key, value in again.items():
        np.testing.assert_array_equal(value, collected[key][:3000])
    assert not np.array_equal(other["observations"], again["observations"])


# How far 200,000 rows may be from D4RL's file: counts by a share of them, ranges at either end. Over seeds the standard
# deviations are 0.8% of the walks and 3.6% of the times the goal is left in umaze, 0.05 of the least x in the large
# maze, 0.004 of its greatest y. (Without noise umaze's goal is left 8% more often, which shows in a million rows only.)
SHARE = {"walks": 0.04, "times the goal is left": 0.15}
ENDS = {"x": (0.25, 0.03), "y": (0.25, 0.03), "vx": (1e-6, 1e-6), "vy": (1e-6, 1e-6)}


@pytest.mark.parametrize(
    ("maze", "names", "noise_free"),
    [("umaze", {*SHARE, *ENDS}, {"walks", "x", "y"}), ("large", {"x", "y"}, {"x", "y"})],
)
def test_collections_have_the_statistics_of_d4rls_files(maze, names, noise_free, monkeypatch):
    published, rows = mazes.PUBLISHED[maze], 200_000

    def unlike() -> set[str]:
        ours = mazes.statistics(maze, maze2d.collect(maze, rows, seed=0, progress=False))
        share = rows / d4rl.TASKS[f"maze2d-{maze}-v1"].collected_rows
        far = {name for name in names & {*SHARE} if abs(ours[name] / share / published[name] - 1) > SHARE[name]}
        return far | {
            name for name in names & {*ENDS} if (np.abs(np.subtract(ours[name], published[name])) > ENDS[name]).any()
        }

    assert unlike() == set()
    monkeypatch.setattr(maze2d, "NOISE", 0.0)
    assert unlike() == noise_free


@pytest.mark.parametrize("maze", maze2d.MAZES)
def test_plans_are_shortest_paths(maze):
    cells = maze2d.find_cells(maze2d.MAZES[maze], "O") + maze2d.find_cells(maze2d.MAZES[maze], "G")
    adjacent = np.abs(np.array(cells)[:, None] - np.array(cells)[None]).sum(axis=-1) == 1
    steps = np.where(adjacent, 1.0, np.inf)  # all-pairs distances by Floyd and Warshall, another way than the planner's
    np.fill_diagonal(steps, 0)
    for k in range(len(cells)):
        steps = np.minimum(steps, steps[:, k, None] + steps[None, k])
    for i, start in enumerate(cells):
        for j, target in enumerate(cells):
            path = maze2d.plan(set(cells), start, target)
            assert len(path) == max(steps[i, j], 1) and path[-1] == target
            hops = np.abs(np.diff([start, *path], axis=0)).sum(axis=1)
            assert start == target or (hops == 1).all()
