"""Opens a graph with ONNX Runtime, its weights from the bundle's mapped files."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError, MissingDependencyError

from nemotron_runtime.bundle import Bundle
from nemotron_runtime.sessions.onnxruntime_initializers import ExternalTensor, external_tensors
from nemotron_runtime.weights import checked_chunks, map_weights, packed_weights

__all__ = ["import_onnxruntime", "open_graph"]

_ERRORS_ONLY = 3
# what the graph calls the weights that are put together at load
_PACKED_FILE = "packed"
# numpy's stand-ins of ONNX's types, by their numbers: numpy has no bfloat16
_STORED: Mapping[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64, 16: np.uint16,
}  # fmt: skip


def import_onnxruntime() -> ModuleType:
    """The module, or MissingDependencyError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"no onnxruntime ({error})",
            "ONNX Runtime, which runs this bundle",
            "pip install nemotron-export[ort]",
            where="onnxruntime",
        ) from error
    return onnxruntime


def open_graph(
    bundle: Bundle,
    graph: str | bytes,
    threads: int | None = None,
    *,
    provider_options: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    has_weights: bool = True,
) -> Any:
    """ONNX Runtime's session of a graph over the bundle's weights, on the provider that the bundle names.

    The session's attribute ``weights`` keeps alive what it may read in place.

    Args:
        bundle: whose weights the graph's initializers refer to.
        graph: a file, or a serialized model.
        threads: threads within an op; ONNX Runtime's choice where None.
        provider_options: of the provider.
        config: entries of the session's configuration.
        has_weights: False where all of the graph's initializers are in its file: no weight is then mapped or checked.

    Raises:
        MissingDependencyError: no onnxruntime, or none with the provider.
        BundleError: a graph that ONNX Runtime refuses, or a changed chunk of the weights.
    """
    ort = import_onnxruntime()
    provider = bundle.manifest.session.provider
    available = ort.get_available_providers()
    if provider not in available:
        remedy = "install the onnxruntime package that has it, or build for another target"
        raise MissingDependencyError(f"providers {', '.join(available)}", provider, remedy, where="onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    chosen = (provider, dict(provider_options)) if provider_options else provider
    views = map_weights(bundle, verify_chunks=False) if has_weights else {}
    with checked_chunks(bundle, views) if has_weights else nullcontext():
        try:
            values = _weight_values(bundle, graph, views) if has_weights else {}
            if values:
                options.add_external_initializers(list(values), list(values.values()))
            # without its second try on the CPU, or with a provider's defaults, which would hide the error
            session = ort.InferenceSession(graph, options, providers=[chosen], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no base class but this one
            remedy = f"build the bundle again, or use the onnxruntime it was checked with (here: {ort.__version__})"
            raise BundleError(
                f"a graph that fails to load: {error}", "a valid graph", remedy, where=str(bundle.directory)
            ) from error
    if session.get_providers()[0] != provider:
        remedy = "`nemotron-export doctor` tells what the provider needs"
        raise MissingDependencyError(f"{session.get_providers()[0]}", provider, remedy, where="onnxruntime")
    session.weights = values
    return session


def _weight_values(bundle: Bundle, graph: str | bytes, views: Mapping[str, mmap.mmap]) -> dict[str, Any]:
    """Initializer → the mapped or packed bytes that it refers to, for those that ONNX Runtime does not open itself.

    Given whole files in memory instead, it would copy every weight on the host before it does anything with it.

    Raises:
        ValueError: a graph that refers to what the weights do not have.
    """
    ort, record = import_onnxruntime(), bundle.manifest.session
    folder = record.weights_folder
    # what it opens by path on the CPU, it holds once
    opens = isinstance(graph, str) and folder and bundle.weights_directory == bundle.directory / folder
    files: dict[str, Any] = {}
    if not opens:
        files |= {f"{folder}/{name}" if folder and "/" not in name else name: view for name, view in views.items()}
    if record.packed:
        files[_PACKED_FILE] = packed_weights(bundle, views)
    if not files:
        return {}
    model = Path(graph).read_bytes() if isinstance(graph, str) else graph
    values = {}
    for tensor in external_tensors(model):
        if tensor.location in files or not opens:
            array = _array(tensor, files.get(tensor.location, b""))
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)
    return values


def _array(tensor: ExternalTensor, file: Any) -> npt.NDArray[Any]:
    """A tensor's bytes in its file, not copied."""
    stored = np.dtype(_STORED.get(tensor.data_type, np.void))
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if count * stored.itemsize != tensor.length or tensor.offset + tensor.length > len(file):
        raise ValueError(
            f"initializer '{tensor.name}' of type {tensor.data_type} and shape {list(tensor.shape)} at byte "
            f"{tensor.offset} of '{tensor.location}', which has {len(file)} bytes in this bundle"
        )
    return np.frombuffer(file, stored, count, tensor.offset).reshape(tensor.shape)
