"""What one op of the dialect is: schema, eager PyTorch, fake and portable ONNX body, in one object."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
import torch
from nemotron_errors import GraphError

__all__ = ["DOMAIN", "DOMAIN_VERSION", "Attribute", "OpAttribute", "OpDefinition", "OpInput", "contiguous_like"]

DOMAIN = "nemotron"
DOMAIN_VERSION = 1

Attribute = int | float | str

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
# "U" is float32 or the run dtype, as an attribute says
_TYPES = {"T": _FLOATS, "I": ("tensor(int64)",), "U": _FLOATS}


def contiguous_like(x: torch.Tensor) -> torch.Tensor:
    """Shape and dtype for a fake: contiguous, since x may be a view whose strides the real op would not keep."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class OpInput:
    """One input of an op: its name, its type variable (``T`` activations, ``I`` indices) and its shape in letters."""

    name: str
    type: str
    shape: str
    optional: bool = False


@dataclass(frozen=True)
class OpAttribute:
    """One attribute of an op; its type is that of ``example``, which is also what it is where it may be left out.

    Attributes:
        name: also of the keyword argument of ``eager`` and ``fake``.
        example: a value.
        required: whether every node must have it.
        choices: what it may be, where that is a list.
    """

    name: str
    example: Attribute
    required: bool = False
    choices: tuple[Attribute, ...] = ()


@dataclass(frozen=True)
class OpDefinition:
    """One op of the ``nemotron`` domain, defined once.

    Attributes:
        name: the op type, in the ONNX domain ``nemotron`` and the torch library ``nemotron`` alike.
        inputs: in order; optional ones trail.
        outputs: name and shape letters of each output; all are of type ``output_type``.
        eager: the definition that all others are held against; attributes are keyword arguments.
        body: the portable ONNX function body, which may use other ops of the dialect, as nodes of its domain; or,
            where it depends on them, what gives it for the optional inputs that are present and the attributes, which
            are keyword arguments.
        doc: one paragraph for the schema.
        attributes: their values are known when a body is made.
        output_type: ``T``, or ``U`` where the outputs may have another dtype.
        fake: shapes and dtypes of the outputs, for fake and meta tensors; may be left out where every output has the
            shape and dtype of an input with the same letters.
    """

    name: str
    inputs: tuple[OpInput, ...]
    outputs: tuple[tuple[str, str], ...]
    eager: Callable[..., Any]
    body: str | Callable[..., str]
    doc: str
    attributes: tuple[OpAttribute, ...] = ()
    output_type: str = "T"
    fake: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        optional = [i.optional for i in self.inputs]
        assert optional == sorted(optional), "optional inputs trail"

    @cached_property
    def torch_op(self) -> Any:
        """The op as ``torch.ops.nemotron.<name>``, registered on first use together with its fake."""
        op = torch.library.custom_op(f"{DOMAIN}::{self.name}", self.eager, mutates_args=())
        op.register_fake(self.fake or self._fake_like_inputs)
        return op

    def _fake_like_inputs(self, *inputs: torch.Tensor, **attributes: Attribute) -> Any:
        letters = [i.shape for i in self.inputs]
        outputs = tuple(contiguous_like(inputs[letters.index(shape)]) for _, shape in self.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def __call__(self, *args: torch.Tensor | None, **attributes: Attribute) -> Any:
        """Runs the op in PyTorch, so that a trace records one node of the dialect: a tensor, or a tuple of them."""
        return self.torch_op(*args, **attributes)

    @cached_property
    def schema(self) -> onnx.defs.OpSchema:
        """The ONNX schema; :func:`nemotron_graphs.ops.register_schemas` makes it known to ONNX."""
        option = onnx.defs.OpSchema.FormalParameterOption
        parameter = onnx.defs.OpSchema.FormalParameter
        kinds = onnx.defs.OpSchema.AttrType
        kind_of = {int: kinds.INT, float: kinds.FLOAT, str: kinds.STRING}
        attribute = onnx.defs.OpSchema.Attribute
        return onnx.defs.OpSchema(
            self.name,
            DOMAIN,
            DOMAIN_VERSION,
            doc=self.doc,
            inputs=[
                parameter(i.name, i.type, i.shape, param_option=option.Optional if i.optional else option.Single)
                for i in self.inputs
            ],
            outputs=[parameter(name, self.output_type, shape) for name, shape in self.outputs],
            attributes=[
                attribute(a.name, kind_of[type(a.example)], required=True)
                if a.required
                else attribute(a.name, onnx.helper.make_attribute(a.name, a.example))
                for a in self.attributes
            ],
            type_constraints=[(name, list(types), "") for name, types in _TYPES.items()],
        )

    def attributes_of(self, found: Mapping[str, Any]) -> dict[str, Attribute]:
        """Every attribute's value: that of ``found``, or its default.

        Raises:
            GraphError: an attribute that is missing, or a value that it may not have.
        """
        values: dict[str, Attribute] = {}
        for each in self.attributes:
            if each.required and each.name not in found:
                expected = f"attribute {each.name}"
                raise GraphError(f"{self.name} without it", expected, "make the node with it", where=self.name)
            value = values[each.name] = found.get(each.name, each.example)
            if each.choices and value not in each.choices:
                expected = f"one of {', '.join(map(str, each.choices))}"
                raise GraphError(f"{each.name} '{value}'", expected, "make the node with one of them", where=self.name)
        return values

    def function_text(
        self, opset: int, present: Collection[str] = (), attributes: Mapping[str, Attribute] | None = None
    ) -> str:
        """The ONNX function in ONNX's text syntax.

        Args:
            opset: version of the default domain, which must equal the model's.
            present: names of the optional inputs that the node has.
            attributes: of the node; the function is one for these values.
        """
        values = self.attributes_of(attributes or {})
        names = [i.name for i in self.inputs if not i.optional or i.name in present]
        body = self.body if isinstance(self.body, str) else self.body(present, **values)
        results = ", ".join(name for name, _ in self.outputs)
        head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}, "{DOMAIN}": {DOMAIN_VERSION}]>'
        return f"{head}\n{self.name} ({', '.join(names)}) => ({results}) {{\n{body}\n}}"
