"""What each pass of a lowering did to the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["OnStage", "PassRecord", "run_passes"]

# told of the dialect graph (number 0, "dialect") and after every pass: (graph, number, pass, the model as it is)
OnStage = Callable[[str, int, str, ir.Model], None]


@dataclass(frozen=True)
class PassRecord:
    """One pass.

    Attributes:
        name: the pass.
        modified: whether it says that it changed the graph.
        nodes: nodes before and after.
        added: op type → how many more there are.
        removed: op type → how many fewer.
        inputs: graph inputs before and after.
        initializers: before and after.
    """

    name: str
    modified: bool
    nodes: tuple[int, int]
    added: dict[str, int]
    removed: dict[str, int]
    inputs: tuple[int, int]
    initializers: tuple[int, int]


def run_passes(
    model: ir.Model, passes: Sequence[ir.passes.PassBase], graph: str = "model", on_stage: OnStage | None = None
) -> tuple[ir.Model, tuple[PassRecord, ...]]:
    """Runs passes in order and notes what each did; ``graph`` is what ``on_stage`` is told of it."""
    records = []
    if on_stage:
        on_stage(graph, 0, "dialect", model)
    before = _Census(model)
    for number, each in enumerate(passes, start=1):
        result = each(model)
        model = result.model
        after = _Census(model)
        records.append(
            PassRecord(
                _name(each),
                result.modified,
                (before.ops.total(), after.ops.total()),
                dict(after.ops - before.ops),
                dict(before.ops - after.ops),
                (before.inputs, after.inputs),
                (before.initializers, after.initializers),
            )
        )
        if on_stage:
            on_stage(graph, number, records[-1].name, model)
        before = after
    return model, tuple(records)


class _Census:
    def __init__(self, model: ir.Model) -> None:
        nodes = model.graph.all_nodes()
        self.ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
        self.inputs, self.initializers = len(model.graph.inputs), len(model.graph.initializers)


def _name(each: ir.passes.PassBase) -> str:
    # onnx-ir's own sequence of clean-up passes has no name of its own
    name = type(each).__name__
    return "Cleanup" if name == "Sequential" else name.removesuffix("Pass")
