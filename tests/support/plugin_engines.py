"""TensorRT engines of one node, to compare plugins with the definitions of their ops, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from nemotron_graphs.ops import OPS
from nemotron_plugins.build import build_library
from nemotron_plugins.requests import request_of
from nemotron_plugins.tensorrt import register, take_error, use_library

from support.torch_kernels import gpu_of

__all__ = ["NodeEngine"]

_ONNX_TYPES = {
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.float32: onnx.TensorProto.FLOAT,
    torch.int64: onnx.TensorProto.INT64,
}
# smallest, likeliest and largest size of a dynamic axis
Range = tuple[int, int, int]


class NodeEngine:
    """An engine of one node of the dialect, built, serialized and loaded again without its library.

    Args:
        op: its name.
        dtype: run dtype.
        inputs: dtype and sizes of each input; names of dynamic sizes are keys of ``ranges``.
        outputs: likewise.
        ranges: of dynamic sizes.
        attributes: of the node.
    """

    def __init__(
        self,
        op: str,
        dtype: torch.dtype,
        inputs: Sequence[tuple[torch.dtype, tuple[int | str, ...]]],
        outputs: Sequence[tuple[torch.dtype, tuple[int | str, ...]]],
        ranges: Mapping[str, Range],
        attributes: Mapping[str, Any],
    ) -> None:
        import tensorrt as trt

        register()
        known = [tuple(None if isinstance(size, str) else size for size in each) for _, each in inputs]
        request = request_of(
            op, known, str(dtype).removeprefix("torch."), attributes,
            sequences=ranges["B"][2], capacity=ranges["T"][2] if "T" in ranges else 0,
        )  # fmt: skip
        gpu = gpu_of(torch.empty(0, device="cuda"))
        library = build_library([request], [gpu])[gpu.architecture]
        definition = OPS[op]
        self._inputs = [each.name for each in definition.inputs[: len(inputs)]]
        self._outputs = [name for name, _ in definition.outputs]
        self._stream = torch.cuda.Stream()
        # builder, runtime and engine point to it
        self._logger = logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        take_error()
        with use_library(library):
            parsed = parser.parse(self._model(op, inputs, outputs, {**attributes, "kernel": request.to_json()}))
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            assert parsed, (take_error(), errors)
            config = builder.create_builder_config()
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
            profile = builder.create_optimization_profile()
            for name, (_, sizes) in zip(self._inputs, inputs, strict=True):
                if any(isinstance(size, str) for size in sizes):
                    shapes = [[ranges[s][i] if isinstance(s, str) else s for s in sizes] for i in range(3)]
                    profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
            plan = builder.build_serialized_network(network, config)
        assert plan is not None, take_error()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        assert self._engine is not None, take_error()
        self._context = self._engine.create_execution_context()

    def _model(self, op: str, inputs: Any, outputs: Any, attributes: Mapping[str, Any]) -> bytes:
        helper = onnx.helper

        def infos(names: list[str], tensors: Any) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], sizes)
                for name, (dtype, sizes) in zip(names, tensors, strict=True)
            ]

        node = helper.make_node(op, self._inputs, self._outputs, domain="nemotron", **attributes)
        graph = helper.make_graph([node], "one_node", infos(self._inputs, inputs), infos(self._outputs, outputs))
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nemotron", 1)]
        model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return model

    def bind(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Takes the tensors of the next passes; they must stay alive."""
        for name, tensor in zip(self._inputs, inputs, strict=True):
            assert tensor.is_contiguous()
            assert self._context.set_input_shape(name, tuple(tensor.shape)), name
            assert self._context.set_tensor_address(name, tensor.data_ptr()), name
        for name, tensor in zip(self._outputs, outputs, strict=True):
            assert self._context.set_tensor_address(name, tensor.data_ptr()), name

    def run(self) -> None:
        """One pass, to its end."""
        torch.cuda.synchronize()
        done = self._context.execute_async_v3(self._stream.cuda_stream)
        assert done, take_error()
        assert take_error() is None
        self._stream.synchronize()

    def record(self) -> torch.cuda.CUDAGraph:
        """A graph of one pass over the tensors that are bound; :meth:`run` was called before."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            done = self._context.execute_async_v3(self._stream.cuda_stream)
        assert done, take_error()
        assert take_error() is None
        return graph
