"""Turns a dataset's rows into transitions: by D4RL's rule, or as a user's own data mean it; and says what was dropped.

transitions = qlearning_dataset(env, find_dataset(env))  # float32 arrays, one row a transition
"""

from collections.abc import Mapping

import gymnasium
import numpy as np

from d4rl_gymnasium.data import DatasetFile, check_spaces, env_id_of, find_dataset
from d4rl_gymnasium.progress import say
from d4rl_gymnasium.rows import D4RL_KEYS, RAW_KEYS, DatasetError, Rows, check_arrays, read_rows, require
from d4rl_gymnasium.tasks import ALL_TASKS, OGBenchTask


def qlearning_dataset(
    env: gymnasium.Env, dataset: DatasetFile | Mapping[str, np.ndarray] | None = None, next_actions: bool = False
) -> dict[str, np.ndarray]:
    """The transitions of a dataset; of D4RL's as its function of this name gives them (`d4rl/__init__.py`).

    `dataset` is what `find_dataset` returned (looked for if None) or a dict of arrays in D4RL's raw layout.
    Returns float32 arrays `observations` (N, O), `actions` (N, A), `next_observations` (N, O), `rewards` (N,) and the
    bool array `terminals` (N,). Raises DatasetError.

    The next observation of row i is that of row i+1, so a row whose successor belongs to another episode is dropped:
    the last row and every row with a timeout. `terminals` alone ends the bootstrap. That is D4RL's rule, which holds
    for its files, OGBench's, those that this package collects, and a dict.

    A user's own file means what it says: a terminal row ends its episode and stays, even with a timeout and as the last
    row (its next observation, which nothing may use, is its own); a `next_observations` in the file is used, and then
    no row is dropped. So it is with Minari, which stores the observation after an episode's last step.

    With `next_actions` the action of row i+1 comes too, under this name, (N, A): zeros where row i is terminal, for its
    episode has no next action. Other rows that no next action follows are dropped.
    """
    if dataset is None:
        dataset = find_dataset(env)
    if isinstance(dataset, DatasetFile):
        rows, name = load(dataset, env), str(dataset.path)
    else:
        name = "the dataset"
        require(RAW_KEYS, sorted(dataset), name)
        arrays = {key: np.asarray(dataset[key]) for key in D4RL_KEYS if key in dataset}
        rows = Rows(check_arrays(arrays, name), own=False)
        check_fits(rows, env, name)
        check_bounds(rows, env, name)
    horizon = env.spec.max_episode_steps if env.spec else None
    if rows.own:
        for remark in remarks(rows, horizon, next_actions):
            say(f"{name}: {remark}")
    return make_transitions(rows, horizon, name, next_actions)


def read_dataset(dataset: DatasetFile, env: gymnasium.Env) -> dict[str, np.ndarray]:
    """The rows of a dataset in D4RL's raw layout, checked against the environment's spaces: `Rows.arrays`.

    Raises DatasetError when the file is damaged, or is not the data of such an environment.
    """
    return load(dataset, env).arrays


def load(dataset: DatasetFile, env: gymnasium.Env) -> Rows:
    task = ALL_TASKS.get(env_id_of(env))
    rows = read_rows(dataset.path, task, dataset.own)
    check_fits(rows, env, str(dataset.path))
    if dataset.own or dataset.stand_in or isinstance(task, OGBenchTask):  # D4RL's are taken as they are: it clips
        check_bounds(rows, env, str(dataset.path))
    return rows


def check_fits(rows: Rows, env: gymnasium.Env, name: str) -> None:
    """DatasetError unless the rows have the dimensions of the environment's spaces."""
    check_spaces(env)
    env_id = env_id_of(env)
    for key, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if rows.arrays[key].shape[1:] != space.shape:
            raise DatasetError(
                f"{name} is not data for {env_id}: its {key} have {rows.arrays[key].shape[1]} dimensions, "
                f"those of {env_id} have {space.shape[0]}."
            )


def check_bounds(rows: Rows, env: gymnasium.Env, name: str) -> None:
    """DatasetError unless the actions lie within the environment's bounds."""
    actions, bounds = rows.arrays["actions"], env.action_space
    slack = 1e-4 * (bounds.high - bounds.low)  # rounding, not another scale
    if ((actions < bounds.low - slack) | (actions > bounds.high + slack)).any():
        raise DatasetError(
            f"{name}: actions reach from {actions.min():.3g} to {actions.max():.3g}, but "
            f"{env_id_of(env)} takes {bounds.low.min():.3g} to {bounds.high.max():.3g}; "
            "scale or clip them as the environment would."
        )


# --- Which rows become transitions -----------------------------------------------------------------------------------


def make_transitions(
    rows: Rows, max_episode_steps: int | None, name: str, next_actions: bool = False
) -> dict[str, np.ndarray]:
    """`qlearning_dataset` of rows that were read from `name`."""
    arrays, dropped = rows.arrays, dropped_rows(rows, max_episode_steps, next_actions)
    kept = np.flatnonzero(~sum(dropped.values(), np.zeros(len(rows), bool)))
    if not len(kept):
        raise DatasetError(f"{name} holds no transition: of {len(rows):,} rows are dropped {told(dropped, rows)}.")
    terminals = arrays["terminals"][kept]
    following = np.where(terminals, kept, kept + 1) if rows.own else kept + 1
    stored = "next_observations" in arrays
    transitions = {
        "observations": arrays["observations"][kept],
        "actions": arrays["actions"][kept],
        "next_observations": arrays["next_observations"][kept] if stored else arrays["observations"][following],
        "rewards": arrays["rewards"][kept],
        "terminals": terminals,
    }
    if next_actions:
        transitions["next_actions"] = np.where(terminals[:, None], np.float32(0), arrays["actions"][following])
    return transitions


def dropped_rows(rows: Rows, max_episode_steps: int | None, next_actions: bool = False) -> dict[str, np.ndarray]:
    """The rows that become no transition, (N,) bool under each reason; a row has one reason at most."""
    stored = "next_observations" in rows.arrays
    if stored and not next_actions:
        return {}
    final = final_rows(rows, max_episode_steps)
    last = np.arange(len(rows)) == len(rows) - 1
    if rows.own:
        last &= ~rows.arrays["terminals"]
    cut = "with a timeout" if "timeouts" in rows.arrays else "at the step limit"
    dropped = {cut: final, "that nothing follows": last & ~final}
    if stored:
        dropped["without a next action"] = out_of_order(rows, max_episode_steps) & ~final & ~last
        if is_shuffled(rows, max_episode_steps):
            raise DatasetError(
                "Next actions need rows in the order in which they happened, and these are in none: most "
                "next_observations are not those of the next row."
            )
    return dropped


def final_rows(rows: Rows, max_episode_steps: int | None) -> np.ndarray:
    """The rows that a time limit ended, (N,) bool: `timeouts`, or without that key the rows that reach the horizon.

    D4RL counts the steps of an episode from 0, but from 1 after a terminal row: so does this, but of own data, whose
    terminal rows do not count as cut off, either.
    """
    terminals = rows.arrays["terminals"]
    if "timeouts" in rows.arrays:
        return rows.arrays["timeouts"] & ~terminals if rows.own else rows.arrays["timeouts"]
    final = np.zeros(len(rows), dtype=bool)
    if max_episode_steps is None:
        if "next_observations" in rows.arrays:
            return final  # no need to know: the transitions are whole
        raise DatasetError(
            "The dataset has no `timeouts`, and no step limit of an environment is known: add a `timeouts` array "
            "(`check` knows the limit with --env-id)."
        )
    start, step = 0, 0
    for end in (*np.flatnonzero(terminals) + 1, len(rows)):
        final[start + max_episode_steps - 1 - step : end : max_episode_steps] = True
        start, step = end, 0 if rows.own or final[end - 1] else 1
    return final & ~terminals if rows.own else final


def out_of_order(rows: Rows, max_episode_steps: int | None) -> np.ndarray:
    """The rows, (N,) bool, that end no episode and whose stored next observation is not the next row's observation."""
    arrays = rows.arrays
    wrong = np.zeros(len(rows), bool)
    if "next_observations" in arrays:
        near = 1e-3 * arrays["observations"].std(0)  # rounding, not another state
        wrong[:-1] = (np.abs(arrays["next_observations"][:-1] - arrays["observations"][1:]) > near).any(1)
        wrong &= ~(arrays["terminals"] | final_rows(rows, max_episode_steps))
    return wrong


def is_shuffled(rows: Rows, max_episode_steps: int | None) -> bool:
    return 2 * np.count_nonzero(out_of_order(rows, max_episode_steps)) > len(rows)


def episode_returns(rows: Rows, max_episode_steps: int | None) -> np.ndarray:
    """The undiscounted return of each episode that ends in the data, (episodes,) float64."""
    ends = np.flatnonzero(rows.arrays["terminals"] | final_rows(rows, max_episode_steps))
    return np.diff(np.cumsum(rows.arrays["rewards"], dtype=np.float64)[ends], prepend=0.0)


def return_range(rewards: np.ndarray, terminals: np.ndarray) -> float:
    """The greatest return of an episode less the least, from transitions (N,). Episodes are told apart as in CORL: by
    terminals, or 1000 rows; one that has not ended by then does not count. Raises DatasetError where the range is 0.
    """
    returns, total, length = [], 0.0, 0
    for reward, terminal in zip(rewards.tolist(), terminals.tolist(), strict=True):
        total, length = total + reward, length + 1
        if terminal or length == 1000:
            returns.append(total)
            total, length = 0.0, 0
    if len(set(returns)) < 2:
        raise DatasetError("--rewards return-range needs two episodes with different returns.")
    return max(returns) - min(returns)


# --- What is said of it ----------------------------------------------------------------------------------------------


def remarks(rows: Rows, max_episode_steps: int | None, next_actions: bool = False) -> list[str]:
    """What in the data is not used, or is used otherwise than one may think: sentences, if there are any."""
    said = []
    if rows.unread:
        said.append(f"not read: {', '.join(rows.unread[:20])}" + " and more" * (len(rows.unread) > 20) + ".")
    said.append(disorder(rows, max_episode_steps))
    dropped = told(dropped_rows(rows, max_episode_steps, next_actions), rows)
    if dropped:
        said.append(f"of {len(rows):,} rows are dropped {dropped}.")
    return [sentence for sentence in said if sentence]


def disorder(rows: Rows, max_episode_steps: int | None) -> str:
    wrong = np.count_nonzero(out_of_order(rows, max_episode_steps))
    if not wrong:
        return ""
    return (
        f"the next_observations of {wrong:,} of {len(rows):,} rows are not the observations of the next row, though no "
        "episode is said to end there: each is taken as it is stored, whatever the order of the rows."
    )


def told(dropped: Mapping[str, np.ndarray], rows: Rows) -> str:
    """Dropped rows in words: `12 with a timeout (1 terminal), 1 that nothing follows`."""
    words = []
    for reason, dropping in dropped.items():
        if dropping.any():
            terminal = np.count_nonzero(dropping & rows.arrays["terminals"])
            words.append(f"{np.count_nonzero(dropping):,} {reason}" + f" ({terminal:,} terminal)" * bool(terminal))
    return ", ".join(words)
