"""Tasks: named ones (GLUE, generation tasks and the generated `entailment-mini`), and tasks made of files.

Importing this is cheap; what needs `datasets` imports it when data is loaded.
"""

from peftprune.tasks.base import Kind, TaskInfo
from peftprune.tasks.load import TASKS, load_task, task_info
from peftprune.tasks.task import Task

__all__ = ["TASKS", "Kind", "Task", "TaskInfo", "load_task", "task_info"]
