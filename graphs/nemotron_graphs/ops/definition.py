"""What one op of the dialect is: schema, eager PyTorch, fake and portable ONNX body, in one object."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
import torch

__all__ = ["DOMAIN", "DOMAIN_VERSION", "OpDefinition", "OpInput"]

DOMAIN = "nemotron"
DOMAIN_VERSION = 1

_TYPES = {
    "T": ("tensor(float)", "tensor(float16)", "tensor(bfloat16)"),
    "I": ("tensor(int64)",),
}


@dataclass(frozen=True)
class OpInput:
    """One input of an op: its name, its type variable (``T`` activations, ``I`` indices) and its shape in letters."""

    name: str
    type: str
    shape: str
    optional: bool = False


@dataclass(frozen=True)
class OpDefinition:
    """One op of the ``nemotron`` domain, defined once.

    Attributes:
        name: the op type, in the ONNX domain ``nemotron`` and the torch library ``nemotron`` alike.
        inputs: in order; optional ones trail.
        outputs: name and shape letters of each output; all are of type ``T``.
        eager: the definition that all others are held against.
        fake: its shapes and dtypes, for fake and meta tensors.
        body: gives the portable ONNX function body for the set of optional inputs that are present; it may use other
            ops of the dialect, as nodes of its domain.
        doc: one paragraph for the schema.
    """

    name: str
    inputs: tuple[OpInput, ...]
    outputs: tuple[tuple[str, str], ...]
    eager: Callable[..., Any]
    fake: Callable[..., Any]
    body: Callable[[Collection[str]], str]
    doc: str

    def __post_init__(self) -> None:
        optional = [i.optional for i in self.inputs]
        assert optional == sorted(optional), "optional inputs trail"

    @cached_property
    def torch_op(self) -> Any:
        """The op as ``torch.ops.nemotron.<name>``, registered on first use together with its fake."""
        op = torch.library.custom_op(f"{DOMAIN}::{self.name}", self.eager, mutates_args=())
        op.register_fake(self.fake)
        return op

    def __call__(self, *args: torch.Tensor | None) -> Any:
        """Runs the op in PyTorch, so that a trace records one node of the dialect: a tensor, or a tuple of them."""
        return self.torch_op(*args)

    @cached_property
    def schema(self) -> onnx.defs.OpSchema:
        """The ONNX schema; :func:`nemotron_graphs.ops.register_schemas` makes it known to ONNX."""
        option = onnx.defs.OpSchema.FormalParameterOption
        parameter = onnx.defs.OpSchema.FormalParameter
        return onnx.defs.OpSchema(
            self.name,
            DOMAIN,
            DOMAIN_VERSION,
            doc=self.doc,
            inputs=[
                parameter(i.name, i.type, i.shape, param_option=option.Optional if i.optional else option.Single)
                for i in self.inputs
            ],
            outputs=[parameter(name, "T", shape) for name, shape in self.outputs],
            type_constraints=[(name, list(types), "") for name, types in _TYPES.items()],
        )

    def function_text(self, opset: int, present: Collection[str] = ()) -> str:
        """The ONNX function in ONNX's text syntax.

        Args:
            opset: version of the default domain, which must equal the model's.
            present: names of the optional inputs that the node has.
        """
        names = [i.name for i in self.inputs if not i.optional or i.name in present]
        results = ", ".join(name for name, _ in self.outputs)
        head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}, "{DOMAIN}": {DOMAIN_VERSION}]>'
        return f"{head}\n{self.name} ({', '.join(names)}) => ({results}) {{\n{self.body(present)}\n}}"
