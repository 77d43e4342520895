"""D4RL's tasks on today's Python, and ten of OGBench's: `import d4rl_gymnasium as d4rl` registers them with gymnasium.

    env = gymnasium.make("halfcheetah-medium-v2")
    dataset = d4rl.qlearning_dataset(env)
    score = d4rl.percent_score("halfcheetah-medium-v2", episode_returns)

Each module's docstring says what it holds; docs/tasks.md and docs/data.md are the pages for users.
"""

import gymnasium

from d4rl_gymnasium.data import DatasetFile, find_dataset
from d4rl_gymnasium.rows import DatasetError
from d4rl_gymnasium.tasks import ALL_TASKS, OGBENCH_TASKS, TASKS, Task, get_normalized_score, percent_score
from d4rl_gymnasium.training import Tasks, load_tasks
from d4rl_gymnasium.transitions import qlearning_dataset, read_dataset, return_range

__all__ = [
    "ALL_TASKS",
    "OGBENCH_TASKS",
    "TASKS",
    "DatasetError",
    "DatasetFile",
    "Task",
    "Tasks",
    "find_dataset",
    "get_normalized_score",
    "load_tasks",
    "percent_score",
    "qlearning_dataset",
    "read_dataset",
    "return_range",
]

for _task in ALL_TASKS.values():
    if _task.env_id not in gymnasium.registry:
        gymnasium.register(
            _task.env_id,
            entry_point=_task.entry_point,  # a string: MuJoCo is loaded when an environment is made, not before
            max_episode_steps=_task.max_episode_steps,
            kwargs=dict(_task.kwargs),
            disable_env_checker=True,
        )
