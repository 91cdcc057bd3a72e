"""Lowers a trace to a target's graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from nemotron_errors import GraphError
from nemotron_formats.cache import find_cache
from nemotron_formats.dtypes import dtype_of_onnx
from nemotron_formats.tensors import FileSpan, WeightInput

from nemotron_graphs import passes
from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.bind.weights import is_weight, stored_parts
from nemotron_graphs.passes.matching import dtype_of, nodes_of, produced_by
from nemotron_graphs.targets.record import OnStage, PassRecord, run_passes
from nemotron_graphs.targets.target import GraphRecipe, LoweringContext, ModelCounts, Passes, Target

__all__ = ["Lowered", "LoweredGraph", "lower", "weight_inputs"]


@dataclass(frozen=True)
class LoweredGraph:
    """One graph, the file that it goes to, and what each pass did."""

    model: ir.Model
    file: str
    passes: tuple[PassRecord, ...] = ()


@dataclass(frozen=True)
class Lowered:
    """What a target makes of a trace.

    Attributes:
        graphs: by the target's names of them, and those added to them.
        session: the manifest's session entry.
        weights: inputs of every graph that are weights, in order; none where the graphs refer to the weights' files.
    """

    graphs: Mapping[str, LoweredGraph]
    session: dict[str, Any]
    weights: tuple[WeightInput, ...] = ()

    @property
    def main(self) -> LoweredGraph:
        """The graph that the session's entry describes."""
        return next(graph for graph in self.graphs.values() if graph.file == self.session["graph"])

    def save(self, folder: Path) -> None:
        """Writes the graphs into a bundle's folder; no weight is read."""
        for graph in self.graphs.values():
            path = folder / graph.file
            path.parent.mkdir(exist_ok=True)
            ir.save(graph.model, path)


def lower(target: Target, model: ir.Model, context: LoweringContext, on_stage: OnStage | None = None) -> Lowered:
    """Makes the target's graphs of a dialect graph, which a target of one graph uses up.

    Args:
        model: the dialect graph, as ``trace`` gave it.
        context: what is bound to it.
        on_stage: told of every graph after each pass.

    Raises:
        GraphError: another dtype than the target's, weights in another dtype than an engine reads, or a fusion that
            found fewer places than the model has.
    """
    caches = [v for v in model.graph.inputs if find_cache(v.name) is not None]
    dtype = _dtype_name(caches[0])
    target.check_dtype(dtype)
    counts = _counts(model, context)
    graphs: dict[str, LoweredGraph] = {}
    bound: Sequence[Sequence[FileSpan]] = ()
    for name, recipe in target.graphs.items():
        own = model if len(target.graphs) == 1 else model.clone()
        chosen = recipe.passes(context)
        own, records = run_passes(own, chosen, name, on_stage)
        _check(target, name, recipe, own, chosen, counts)
        graphs[name] = LoweredGraph(own, recipe.file, records)
        bound = next((each.packed for each in chosen if isinstance(each, passes.BindWeightsPass)), ())
    weights = [weight_inputs(graph.model, context) for graph in graphs.values()]
    assert all([w.name for w in each] == [w.name for w in weights[0]] for each in weights)
    main = graphs[name]
    session = {
        "executor": target.executor,
        "provider": target.provider,
        "device": target.device,
        "graph": main.file,
        "cache_dtype": dtype,
        "inputs": [v.name for v in main.model.graph.inputs],
        "outputs": [v.name for v in main.model.graph.outputs],
        "weights_folder": context.weights_folder,
        "packed": [[asdict(span) for span in spans] for spans in bound],
        **target.session,
    }
    return target.add(Lowered(graphs, session, weights[0]), context)


def _check(
    target: Target, name: str, recipe: GraphRecipe, model: ir.Model, chosen: Passes, counts: ModelCounts
) -> None:
    """Refuses a graph in which a fusion found fewer places than it must, or that has ops that nothing lowers."""
    fusions = {each.forms: each for each in chosen if isinstance(each, passes.FusionPass)}
    for form, count in recipe.forms.items():
        assert form in fusions, f"no pass of graph '{name}' forms {form}"
        each, wanted = fusions[form], count(counts)
        if each.found < wanted:
            reasons = "; ".join(each.missed[:3]) or "no node that it could begin at"
            raise GraphError(
                f"{each.found} {form} in graph '{name}' ({reasons})",
                f"{wanted} of {counts.layers} layers",
                "report it with the checkpoint's config.json: the graph would be slower than it says",
                where=f"target {target.name}",
            )
    left = {node.op_type for node in model.graph if node.domain == DOMAIN}
    assert left <= set(recipe.keeps), f"ops that nothing lowers: {', '.join(sorted(left - set(recipe.keeps)))}"


def _counts(model: ir.Model, context: LoweringContext) -> ModelCounts:
    layers = len(nodes_of(model.graph, "CachedAttention", DOMAIN))
    head = produced_by(model.graph.outputs[0], "Linear", DOMAIN) is not None
    return ModelCounts(layers, context.fp32_mlp_layers, int(head), bool(context.encoded), context.cos.shape[1])


def weight_inputs(model: ir.Model, context: LoweringContext) -> tuple[WeightInput, ...]:
    """The inputs that are weights, or several weights put together.

    Raises:
        GraphError: a weight that is stored in another dtype than the graph's.
    """
    found = []
    for value in model.graph.inputs:
        if not is_weight(value, context.weights):
            continue
        parts, shape = stored_parts(value, context.weights)
        run, stored = _dtype_name(value), {part.dtype_name for part in parts}
        if stored != {run}:
            disk = ", ".join(sorted(stored))
            raise GraphError(
                f"weight '{value.name}' stored in {disk}",
                f"{run}: an engine reads the checkpoint's weights as they are",
                f"build with --dtype {disk}, or convert the checkpoint to {run} first",
                where="--dtype",
            )
        found.append(WeightInput(str(value.name), run, shape, tuple(part.span for part in parts)))
    return tuple(found)


def _dtype_name(value: ir.Value) -> str:
    """numpy's name of a value's dtype."""
    return dtype_of_onnx(int(dtype_of(value))).name
