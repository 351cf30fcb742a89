"""The tasks that a bundle may have, each a module of this folder that says what outputs mean.

This file is the registry. A new task is a module with its `Task` as `TASK`, and its name here.
Modules are imported when first needed: bundle.json names its task before the rest of it is read.
"""

from importlib import import_module
from typing import Any, Literal, get_args

TaskName = Literal["classify", "detect", "anomaly", "tensor"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)


def load_task(name: TaskName) -> Any:
    """Returns the task called `name`; typed, it is `task.find_task`'s."""
    return import_module(f"{__name__}.{name}").TASK
