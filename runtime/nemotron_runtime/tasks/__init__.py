"""What bundles of the other heads are asked: classify, tag, answer, embed."""

from __future__ import annotations

from nemotron_runtime.tasks.answering import Answer
from nemotron_runtime.tasks.calls import TaskCalls
from nemotron_runtime.tasks.classification import Classification
from nemotron_runtime.tasks.tagging import Tag

__all__ = ["Answer", "Classification", "Tag", "TaskCalls"]
