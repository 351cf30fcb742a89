"""The registry of tasks, and what every task in it keeps to."""

import importlib

import msgspec
import pytest

from server.recognition.sample import UNHEALTHY, Sample
from server.recognition.tasks import TASK_NAMES, TaskName
from server.recognition.tasks.task import all_tasks, find_task


@pytest.mark.parametrize("name", TASK_NAMES)
def test_task_is_found_by_its_name(name: TaskName) -> None:
    task = find_task(name)
    assert task.name == name
    assert task is importlib.import_module(f"server.recognition.tasks.{name}").TASK


def test_metrics_of_one_name_are_the_same() -> None:
    """Tasks may share a metric, not its name alone."""
    metrics = {metric.name: metric for task in all_tasks() for metric in task.metrics}
    assert all(metric == metrics[metric.name] for task in all_tasks() for metric in task.metrics)


def test_sample_reasons_are_all_read() -> None:
    schema = msgspec.json.schema(Sample)["$defs"]["Sample"]["properties"]["reason"]["enum"]
    assert {"random", UNHEALTHY}.union(*(task.sample_reasons for task in all_tasks())) == set(
        schema
    )


def test_answer_fields_can_be_left_out() -> None:
    """The answer to one frame has the fields of all tasks."""
    for task in all_tasks():
        if task.answer_type is not None:
            assert all(not field.required for field in msgspec.structs.fields(task.answer_type))
