"""What the builder of engines tells TensorRT, and what it makes of TensorRT's answers."""

from __future__ import annotations

import _thread
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
from nemotron_errors import BundleError, MissingDependencyError, NemotronError, ResourceError
from nemotron_runtime.bundle.limits import Limits
from support.tensorrt_builder import FakeBuilderModule

from nemotron_export.config.config import NemotronConfig
from nemotron_export.tensorrt import EngineError, EngineJob, build_engine, load_product
from nemotron_export.tensorrt import gpu as gpu_module
from nemotron_export.tensorrt.gpu import Gpu, check_device_memory, estimate_device, find_gpu
from nemotron_export.tensorrt.messages import node_ops
from nemotron_export.tensorrt.monitor import BuildWatch, run_cancellable
from nemotron_export.tensorrt.shapes import MAX_LOGITS, decode_ranges, input_shapes, pass_ranges, prefill_ranges
from nemotron_export.tensorrt.timing_cache import TimingCacheFile

LIMITS = Limits(max_seq_len=600, max_batch=4, prefill_chunk=128)
TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (int64[batch,tokens] input_ids, int64[batch] query_start, int64[batch,positions] logits_index,
   float16[batch,2,cache_len,8] k_cache0, float16[30,16] weight, int64[batch,1] one)
  => (float16[batch,tokens,16] logits) {
  logits = Gather<axis=0>(weight, input_ids)
}
"""


def model() -> ir.Model:
    made = ir.from_onnx_text(TEXT)
    next(iter(made.graph)).name = "model.embed/Gather"
    return made


def job(**changes: Any) -> EngineJob:
    made = model()
    shapes = input_shapes(made.graph.inputs, prefill_ranges(LIMITS))
    graph = ir.to_proto(made).SerializeToString()
    return EngineJob(**{"name": "prefill", "graph": graph, "profiles": (shapes,), "in_place": True,
                        "nodes": node_ops(made.graph), **changes})  # fmt: skip


def refuse(trt: FakeBuilderModule, error: type[NemotronError], match: str, **changes: Any) -> NemotronError:
    with pytest.raises(error, match=match) as caught:
        build_engine(trt, job(**changes))
    assert all((caught.value.found, caught.value.expected, caught.value.remedy, caught.value.where))
    return caught.value


def test_every_dynamic_input_has_its_shapes_and_weights_have_none() -> None:
    assert input_shapes(model().graph.inputs, prefill_ranges(LIMITS)) == {
        "input_ids": ((1, 1), (1, 128), (4, 128)),
        "query_start": ((1,), (1,), (4,)),
        "logits_index": ((1, 1), (1, 1), (4, MAX_LOGITS)),
        "k_cache0": ((1, 2, 1, 8), (1, 2, 600, 8), (4, 2, 600, 8)),
        "one": ((1, 1), (1, 1), (4, 1)),
    }
    with pytest.raises(KeyError, match="tokens"):
        input_shapes(model().graph.inputs, decode_ranges(LIMITS))


@pytest.mark.parametrize(
    ("max_batch", "chunk", "expected"),
    [
        # (rows, tokens, positions) at most
        (8, 2048, (4, 2048, 16)),
        (3, 2048, (3, 2048, 16)),
        (8, 4096, (2, 4096, 16)),
        (8, 10000, (1, 10000, 16)),
        (64, 512, (16, 512, 8)),
        (500, 64, (128, 64, 1)),
        (1, 2048, (1, 2048, 16)),
        (32, 20, (32, 20, 4)),
    ],
)
def test_a_pass_takes_rows_up_to_some_thousand_tokens(
    max_batch: int, chunk: int, expected: tuple[int, int, int]
) -> None:
    sizes = pass_ranges(Limits(max_seq_len=16384, max_batch=max_batch, prefill_chunk=chunk))
    assert tuple(sizes[dim].most for dim in ("batch", "tokens", "positions")) == expected
    assert all(size.least == 1 and size.least <= size.best <= size.most for size in sizes.values())


def test_the_builder_is_told_profiles_and_flags() -> None:
    trt = FakeBuilderModule()
    built = build_engine(trt, job())
    (told,) = trt.builds
    assert told.config.profiles == [input_shapes(model().graph.inputs, prefill_ranges(LIMITS))]
    assert told.config.features == {"aliased": True}
    assert told.config.max_aux_streams == 0
    assert told.cache is None
    assert built.plan == b"plan of logits"
    assert built.workspace == 4321
    assert built.inputs == tuple(value.name for value in model().graph.inputs)
    assert built.outputs == ("logits",)
    assert build_engine(trt, job(in_place=False, loads=False)).workspace == 0
    assert trt.builds[1].config.features == {}


def test_context_and_kernels_are_those_of_the_thread_that_builds() -> None:
    trt, inside = FakeBuilderModule(), []

    @contextmanager
    def around() -> Iterator[None]:
        inside.append(threading.current_thread())
        yield

    build_engine(trt, job(around=around))
    assert inside == [trt.builds[0].thread]
    assert inside[0] is not threading.current_thread()


def test_progress_is_one_rising_number() -> None:
    seen: list[tuple[str, int, int]] = []
    build_engine(FakeBuilderModule(), job(), progress=lambda *each: seen.append(each))
    stages, done, totals = zip(*seen, strict=True)
    assert set(stages) == {"build prefill engine"}
    assert set(totals) == {1000}
    assert list(done) == sorted(set(done))
    assert (done[0], done[-1]) == (0, 1000)
    assert 500 in done


def test_an_interrupt_stops_the_builder_at_its_next_step() -> None:
    trt = FakeBuilderModule()

    def press(step: int) -> None:
        if step == 1:
            _thread.interrupt_main()
            # the main thread tells the monitor; until then the builder computes
            pause = threading.Event()
            while not watch_of(trt).cancelled:
                pause.wait(0.01)

    # Python's own handler, whatever the process that started the tests set
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    trt.on_step = press
    trt.steps = 50
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(trt, job())
    finally:
        signal.signal(signal.SIGINT, before)
    assert trt.cancelled_at == 1


def watch_of(trt: FakeBuilderModule) -> BuildWatch:
    watch: BuildWatch = trt.builds[0].config.progress_monitor.watch
    return watch


def test_a_progress_that_fails_stops_the_builder_and_is_raised() -> None:
    trt = FakeBuilderModule()

    def progress(stage: str, done: int, total: int) -> None:
        if done:
            raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        build_engine(trt, job(), progress=progress)
    assert trt.cancelled_at == 0


def test_work_is_waited_for_and_its_error_is_raised() -> None:
    def fail() -> None:
        raise BundleError("one", "two", "three")

    with pytest.raises(BundleError, match="found one"):
        run_cancellable(fail, lambda: None)
    assert run_cancellable(lambda: 3, lambda: None) == 3


def test_parser_errors_name_node_and_op() -> None:
    trt = FakeBuilderModule()
    trt.parser_errors = [
        (13, "layer 0", "CachedAttention", 'creator && "Plugin not found"'),
        *((20 + i, f"layer {i}", "Other", "no such op") for i in range(5)),
    ]
    error = refuse(trt, EngineError, r"CachedAttention 'layer 0' \(node 13\): creator && \"Plugin not found\"; Other")
    assert error.found.endswith("and 2 more")
    assert error.expected == "ops that the parser of version 10.6.0.post1 takes"
    assert error.where == "prefill.onnx"
    trt.parser_errors = [(-1, "", "", "broken model")]
    assert refuse(trt, EngineError, "node -1: broken model").exit_code == 2


def test_builder_errors_name_the_node_they_speak_of() -> None:
    trt = FakeBuilderModule()
    trt.build_errors = ["Error Code 10: could not find any\n implementation for node model.embed/Gather.", "Error 2"]
    error = refuse(trt, EngineError, "found Gather 'model.embed/Gather': Error Code 10: could not find any implem")
    assert error.found.endswith("; Error 2")
    trt.build_errors = ["[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 4 bytes.)"]
    assert refuse(trt, ResourceError, "OutOfMemory").exit_code == 4
    trt.build_errors = []
    trt.load_errors = ["magic tag does not match"]
    refuse(trt, EngineError, "magic tag")


def test_what_a_plugin_raised_is_the_error() -> None:
    def once(error: Exception | None) -> Any:
        # the first call drops what came before the build
        answers = [None, error]
        return lambda: answers.pop(0) if answers else None

    trt = FakeBuilderModule()
    refuse(trt, EngineError, "KeyError: 'cached_attention.r1'", plugin_error=once(KeyError("cached_attention.r1")))
    trt.parser_errors = [(1, "a", "B", "create_plugin failed")]
    found = refuse(trt, BundleError, "another kernel", plugin_error=once(BundleError("another kernel", "this", "again",
                                                                                    where="kernel")))  # fmt: skip
    assert found.remedy == "again"


def test_timing_is_kept_between_builds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trt = FakeBuilderModule()
    timing = TimingCacheFile(tmp_path / "cache", "10.6.0", "NVIDIA H100 80GB HBM3", "570.86.15")
    assert timing.path.name == "timing_10.6.0_NVIDIA-H100-80GB-HBM3_570.86.15.cache"
    for cache in (b"", b"measured;", b"measured;measured;"):
        build_engine(trt, job(), timing=timing)
        assert trt.builds[-1].cache == cache
    assert [path.name for path in timing.path.parent.iterdir()] == [timing.path.name]
    assert not caplog.records
    timing.path.write_bytes(timing.path.read_bytes()[:-1])
    build_engine(trt, job(), timing=timing)
    assert trt.builds[-1].cache == b""
    assert "discarded (it is not what was written)" in caplog.text
    trt.refuses_cache = b"measured;"
    build_engine(trt, job(), timing=timing)
    assert trt.builds[-1].cache == b""
    assert "discarded (TensorRT refuses it)" in caplog.text
    trt.build_errors = ["no"]
    before = timing.path.read_bytes()
    refuse(trt, EngineError, "found no")
    assert timing.path.read_bytes() == before


def test_a_folder_that_takes_no_timing_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    timing = TimingCacheFile(tmp_path / "file", "10.6.0", "gpu", "1")
    assert build_engine(FakeBuilderModule(), job(), timing=timing).plan
    assert "cannot be written" in caplog.text


def test_versions_that_are_not_proven_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", FakeBuilderModule())
    assert load_product("tensorrt").__version__ == "10.6.0.post1"
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "tensorrt", FakeBuilderModule("10.60.1"))
    load_product("tensorrt")
    assert "TensorRT 10.60.1 is not proven: this project was run with 10.6" in caplog.text
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"expected TensorRT 10\.6; pip install") as caught:
        load_product("tensorrt")
    assert caught.value.exit_code == 3


def test_messages_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    from nemotron_export.tensorrt.messages import Messages

    caplog.set_level(logging.DEBUG)
    messages = Messages(FakeBuilderModule())
    severity = messages.logger.Severity
    for kind, text in ((severity.WARNING, "careful"), (severity.INFO, "by the way"), (severity.VERBOSE, "chatter")):
        messages.logger.log(kind, text)
    assert [(r.levelname, r.message) for r in caplog.records] == [("INFO", "careful"), ("DEBUG", "by the way")]
    messages.logger.log(severity.ERROR, "one\n two")
    messages.logger.log(severity.ERROR, "one\n two")
    assert messages.take() == "one two"
    assert messages.take() == ""


def test_too_little_gpu_memory_is_refused_with_the_numbers() -> None:
    config = NemotronConfig(
        vocab_size=256000, hidden_size=3072, intermediate_size=9216, num_hidden_layers=32, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    limits = Limits(max_seq_len=4096, max_batch=8, prefill_chunk=2048)
    needed = estimate_device(config, 8_382_000_000, limits, "bfloat16")
    # 128 KiB per token of a 4B model
    assert needed.caches == 128 * 1024 * 4096 * 8
    # a pass of 4 rows of 2048 tokens, and logits of 4 rows
    logits = 4 * 16 * 256_000 * 10
    assert needed.workspace == 4 * 2048 * (2 * 3072 + 3 * 9216) * 2 + logits
    alone = estimate_device(config, 8_382_000_000, Limits(4096, 1, 2048), "bfloat16")
    assert alone.workspace == needed.workspace // 4
    gpu = Gpu("NVIDIA H100", "sm_90", 132, "570.86", free=needed.memory, total=80_000_000_000)
    assert gpu.capability == 90
    check_device_memory(needed, gpu)
    with pytest.raises(ResourceError, match=r"weights 8\.38 GB, caches at the limits 4\.29 GB") as caught:
        check_device_memory(needed, Gpu("NVIDIA H100", "sm_90", 132, "570.86", needed.memory - 1, 80_000_000_000))
    assert "of 80.00 GB free on the NVIDIA H100" in caught.value.found


def test_a_machine_without_a_gpu_is_told_of_the_target_that_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def device() -> Any:
        raise MissingDependencyError("CUDA_ERROR_NO_DEVICE from cuInit", "a GPU", "install a driver", where="CUDA")

    monkeypatch.setattr(gpu_module, "Device", device)
    with pytest.raises(MissingDependencyError, match=r"CUDA_ERROR_NO_DEVICE.*--target tensorrt-rtx") as caught:
        find_gpu()
    assert caught.value.where == "--target tensorrt"
    assert caught.value.remedy.startswith("install a driver; ")

    @contextmanager
    def found() -> Iterator[Any]:
        yield SimpleNamespace(
            name="A GPU", architecture="sm_86", multiprocessors=28, driver_version="12.8", memory=lambda: (5, 6)
        )

    monkeypatch.setattr(gpu_module, "Device", found)
    monkeypatch.setattr(gpu_module, "driver_version", lambda: None)
    assert find_gpu() == Gpu("A GPU", "sm_86", 28, "12.8", 5, 6)
