"""Tasks: named ones (GLUE, generation tasks and the generated `entailment-mini`), and tasks made of files.

Importing this is cheap; what needs `datasets` imports it when data is loaded.
"""

from peftprune.tasks.base import TaskInfo
from peftprune.tasks.kinds import KINDS, Kind
from peftprune.tasks.load import TASKS, load_task, task_info
from peftprune.tasks.task import Task

__all__ = ["KINDS", "TASKS", "Kind", "Task", "TaskInfo", "load_task", "task_info"]
