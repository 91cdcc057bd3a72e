"""Weights inside engines: the network's surgery, what the builder reads, and the session that uploads nothing."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from nemotron_errors import BundleError, CheckpointError
from nemotron_formats.tensors import FileSpan, WeightInput
from nemotron_graphs.targets import get_target
from nemotron_graphs.targets.lowering import Lowered
from nemotron_runtime.bundle.folder import Bundle, write_manifest
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from nemotron_runtime.sampling.device import GREEDY
from support.checkpoints import write_checkpoint
from support.tensorrt_builder import FakeBuilderModule
from support.tensorrt_fakes import install, make_tensorrt_bundle, toy

from nemotron_export.building.graph import make_graphs
from nemotron_export.building.host_weights import host_constants
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.tensorrt import BuiltEngine, EngineError, EngineJob, build_engine, load_product
from nemotron_export.tensorrt.constants import Constant
from nemotron_export.tensorrt.shapes import input_shapes, prefill_ranges

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (int64[4] ids, float16[8,2] table, float16[8,2] head, float16[2] gamma, float16[2] other) => (float16[4,8] out) {
  row = Gather<axis=0>(table, ids)
  scaled = Mul(row, gamma)
  clipped = Clip(scaled, , other)
  again = Mul(clipped, gamma)
  out = Gemm<transB=1>(again, head)
}
"""


def constant(*shape: int, dtype: str = "float16", data: Any = None) -> Constant:
    count = int(np.prod(shape)) * (4 if dtype == "float32" else 2)
    return Constant(dtype, shape, np.arange(count, dtype=np.uint8) if data is None else data)


def made(trt: FakeBuilderModule, constants: dict[str, Constant]) -> BuiltEngine:
    graph = ir.to_proto(ir.from_onnx_text(TEXT)).SerializeToString()
    return build_engine(trt, EngineJob("decode", graph, (), constants=constants))


def test_inputs_become_constants_wherever_they_are_read() -> None:
    trt, table = FakeBuilderModule(), constant(8, 2)
    constants = {"table": table, "head": replace(table), "gamma": constant(2)}
    assert made(trt, constants).inputs == ("ids", "other")
    (told,) = trt.builds
    # a tied head has its constant once
    assert told.constants == {
        "table (constant)": bytes(range(32)),
        "gamma (constant)": bytes(range(4)),
    }
    reads = [[tensor and tensor.name for tensor in layer.reads] for layer in told.network.layers if layer.reads]
    assert reads == [
        ["table (constant)", "ids"],
        ["row", "gamma (constant)"],
        ["scaled", None, "other"],
        ["clipped", "gamma (constant)"],
        ["again", "table (constant)"],
    ]


def test_without_constants_a_network_stays_what_it_was() -> None:
    trt = FakeBuilderModule()
    assert made(trt, {}).inputs == ("ids", "table", "head", "gamma", "other")
    assert trt.builds[0].constants == {}


@pytest.mark.parametrize(
    ("constants", "match"),
    [
        ({"beta": constant(2)}, "no input for 1 weights, for example beta"),
        ({"gamma": constant(3)}, r"gamma of .* \[2\] for float16 \[3\]"),
        ({"gamma": constant(2, dtype="bfloat16")}, r"gamma of .* for bfloat16 \[2\]"),
    ],
)
def test_constants_that_do_not_fit_are_refused(constants: dict[str, Constant], match: str) -> None:
    trt = FakeBuilderModule()
    with pytest.raises(EngineError, match=match) as caught:
        made(trt, constants)
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
    assert trt.builds == []


def test_what_tensorrt_does_not_do_is_found_out() -> None:
    trt = FakeBuilderModule()
    trt.takes_constants = False
    with pytest.raises(EngineError, match="a constant for gamma that it does not take"):
        made(trt, {"gamma": constant(2)})
    trt.takes_constants, trt.keeps_inputs = True, True
    with pytest.raises(EngineError, match="1 weights that stay inputs, for example gamma"):
        made(trt, {"gamma": constant(2)})
    assert trt.builds == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, torch.bfloat16)
    return Checkpoint.open(path)


class TestHost:
    """What the builder is given of a checkpoint."""

    def graphs(self, checkpoint: Checkpoint, name: str) -> Lowered:
        return make_graphs(checkpoint, get_target(name), "bfloat16", Limits(64, 2, 32))

    def test_bytes_are_the_checkpoints_and_only_packed_ones_are_copied(self, checkpoint: Checkpoint) -> None:
        weights = self.graphs(checkpoint, "tensorrt").weights
        found = host_constants(checkpoint, weights)
        assert list(found) == [weight.name for weight in weights]
        files = {shard.path.name: shard.path.read_bytes() for shard in checkpoint.shards}
        for weight in weights:
            each = found[weight.name]
            assert (each.dtype, each.shape) == (weight.dtype, weight.shape)
            expected = b"".join(files[part.file][part.offset : part.offset + part.length] for part in weight.parts)
            assert each.data.tobytes() == expected, weight.name
            assert each.data.flags.owndata == (len(weight.parts) > 1), "mapped, where it is one piece"
        assert any(len(weight.parts) > 1 for weight in weights)

    def test_equal_parts_are_one_array_and_odd_places_are_copied(self, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(bytes(range(64)))

        def weight(name: str, *places: tuple[int, int]) -> WeightInput:
            parts = tuple(FileSpan("w", *place) for place in places)
            return WeightInput(name, "float16", (sum(n for _, n in places) // 2,), parts)

        shards: Any = SimpleNamespace(shards=[SimpleNamespace(path=tmp_path / "w")])
        weights = [weight("a", (8, 8)), weight("b", (8, 8)), weight("odd", (3, 6)), weight("packed", (20, 4), (0, 2))]
        found = host_constants(shards, weights)
        assert found["a"].address == found["b"].address
        assert found["odd"].data.tolist() == [3, 4, 5, 6, 7, 8]
        assert found["packed"].data.tolist() == [20, 21, 22, 23, 0, 1]
        assert all(each.address % 2 == 0 for each in found.values())
        (tmp_path / "w").write_bytes(b"")
        with pytest.raises(CheckpointError, match="cannot be mapped"):
            host_constants(shards, weights)

    def test_nvidias_own_builder_takes_them(self, checkpoint: Checkpoint) -> None:
        pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA has no TensorRT for RTX for this system")
        trt = load_product("tensorrt-rtx")
        graphs = self.graphs(checkpoint, "tensorrt-rtx")
        model = graphs.main.model
        inputs = model.graph.inputs

        def options(config: Any) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM89, 0)

        def engine(constants: dict[str, Constant]) -> BuiltEngine:
            shapes = input_shapes(inputs, prefill_ranges(Limits(64, 2, 32)))
            graph = ir.to_proto(model).SerializeToString()
            return build_engine(
                trt, EngineJob("prefill", graph, (shapes,), constants=constants, options=options, loads=False)
            )

        constants = host_constants(checkpoint, graphs.weights)
        without, within = engine({}), engine(constants)
        assert set(without.inputs) - set(within.inputs) == set(constants)
        assert set(within.inputs) < set(without.inputs)
        assert within.outputs == without.outputs
        # as it is stored, since a step multiplies by it as it is
        down = constants["model.layers.1.mlp.down_proj.weight"].data.tobytes()
        assert down in bytes(within.plan)
        assert down not in bytes(without.plan)


class TestSession:
    """Over a CUDA and a TensorRT of numpy."""

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        path = make_tensorrt_bundle(tmp_path)
        manifest = Manifest.read(path)
        assert manifest.tensorrt is not None
        weights = replace(manifest.weights, mode="embedded")
        write_manifest(
            path, replace(manifest, weights=weights, tensorrt=replace(manifest.tensorrt, embedded=True, weights=()))
        )
        return path

    def test_it_needs_no_weights_file_and_uploads_nothing(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cuda, trt = install(monkeypatch)
        trt.embedded = True
        shutil.rmtree(tmp_path / "checkpoint")
        opened = Bundle.open(bundle)
        assert opened.placed_weights() == []
        loads, real = [], cuda.cuMemGetInfo

        def less_with_each_engine() -> Any:
            # two engines are loaded between the first call and the second
            loads.append(trt.living)
            error, free, total = real()
            return error, free - 1000 * trt.living, total

        monkeypatch.setattr(cuda, "cuMemGetInfo", less_with_each_engine)
        with Engine(TensorRTExecutor(opened)) as session:
            assert loads == [0, 2]
            assert (session.executor.weights.uploaded, session.executor.weights.bytes_per_second) == (0, 0.0)
            assert session.executor.device.allocated == cuda.used + 2000, "what TensorRT took for the weights counts"
            session.reset(1, 20)
            prompt = [1, 2, 3]
            np.testing.assert_array_equal(session.prefill([prompt])[0], toy().logits(prompt)[-1])
            assert session.decode([5], sampling=GREEDY).tokens[0] == toy().logits([*prompt, 5])[-1].argmax()
        assert session.executor.device.allocated == 0
        gc.collect()
        assert cuda.leaks() == (0, 0, 0, 0)

    def test_engines_with_other_inputs_than_the_record_are_refused(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(monkeypatch)
        with pytest.raises(BundleError, match=r"inputs missing or unknown: lm_head\.weight"):
            TensorRTExecutor(Bundle.open(bundle))

    def test_a_manifest_that_contradicts_itself_is_refused(self, bundle: Path) -> None:
        document = Manifest.read(bundle).to_dict()
        assert Manifest.from_dict(document).tensorrt is not None
        for changes in (
            {"weights": {**document["weights"], "mode": "reference"}},
            {"tensorrt": {**document["tensorrt"], "embedded": False}},
        ):
            with pytest.raises(BundleError, match="expected weights inside the engines, or inputs of theirs"):
                Manifest.from_dict({**document, **changes})

    def test_a_manifest_from_before_says_nothing_of_it(self, tmp_path: Path) -> None:
        document = Manifest.read(make_tensorrt_bundle(tmp_path)).to_dict()
        del document["tensorrt"]["embedded"]
        record = Manifest.from_dict(document).tensorrt
        assert record is not None
        assert record.embedded is False
