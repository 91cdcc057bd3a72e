"""onnxruntime's module on a machine without a GPU: CUDA is asked for and noted, the CPU computes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from nemotron_runtime.executors.onnxruntime import cuda as onnxruntime_cuda
from nemotron_runtime.executors.onnxruntime import graph as onnxruntime_graph
from nemotron_runtime.executors.onnxruntime.placement import RECORD_PLACEMENT

__all__ = ["CPU", "CUDA", "Recorded", "record"]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Recorded:
    """onnxruntime's module: CUDA is asked for and noted, the CPU computes."""

    def __init__(self, on_cpu: tuple[str, ...] = ()) -> None:
        self.on_cpu = on_cpu
        self.providers: list[Any] = []
        self.graphs: list[str] = []
        # of each run of model.onnx; of another graph with its name in front
        self.run_ids: list[str] = []
        self.released: list[int | str] = []
        self.preloaded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def preload_dlls(self, directory: str) -> None:
        assert directory == ""
        self.preloaded += 1
        print("Failed to load something")

    def InferenceSession(  # noqa: N802
        self, graph: Any, options: Any, providers: list[Any], enable_fallback: int
    ) -> RecordedSession:
        # a second try would be on the CPU, or without the options
        assert enable_fallback == 0
        self.providers += providers
        # the graph with the weights comes as bytes
        self.graphs.append("model.onnx" if isinstance(graph, bytes) else Path(graph).name)
        assert options.get_session_config_entry(RECORD_PLACEMENT) == "1"
        real = onnxruntime.InferenceSession(graph, options, providers=[CPU])
        return RecordedSession(self, real, "" if self.graphs[-1] == "model.onnx" else f"{self.graphs[-1]} ")


class RecordedSession:
    """A session on the CPU that says it is on CUDA, and notes the number of each run's CUDA graph."""

    def __init__(self, ort: Recorded, real: Any, mark: str) -> None:
        self.ort, self.real, self.mark = ort, real, mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=CPU if node.op_type in self.ort.on_cpu else CUDA, get_nodes=lambda node=node: [node]
            )
            for part in self.real.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        try:
            number = options.get_run_config_entry("gpu_graph_id")
        except Exception:
            number = "none"
        self.ort.run_ids.append(f"{self.mark}{number}")
        self.real.run_with_iobinding(binding, options)

    def release_captured_graph(self, number: int) -> None:
        self.ort.released.append(f"{self.mark}{number}" if self.mark else number)


def record(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Puts the recorded module in the place of onnxruntime for the session on CUDA, and the host in the device's."""
    ort = Recorded()
    monkeypatch.setattr(onnxruntime_cuda, "import_onnxruntime", lambda: ort)
    monkeypatch.setattr(onnxruntime_graph, "import_onnxruntime", lambda: ort)
    monkeypatch.setattr(onnxruntime_cuda, "_DEVICE", ("cpu", 0))
    return ort


def memcpy_nodes(profile: Iterable[dict[str, Any]]) -> list[str]:
    """Copies between host and device in the events of a session's profile, each name once, in order."""
    found = (
        str(event.get("name", ""))
        for event in profile
        if event.get("cat") == "Node" and str(event.get("args", {}).get("op_name", "")).startswith("Memcpy")
    )
    return list(dict.fromkeys(found))
