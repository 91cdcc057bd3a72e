"""Opens a graph with ONNX Runtime, its weights from the bundle's mapped files."""

from __future__ import annotations

import logging
import mmap
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError, MissingDependencyError
from nemotron_formats.dtypes import DTYPES

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.weights import checked_chunks, map_weights, packed_weights
from nemotron_runtime.executors.onnxruntime.initializers import ExternalTensor, external_tensors

__all__ = ["import_onnxruntime", "open_graph"]

_log = logging.getLogger(__name__)

_ERRORS_ONLY = 3
# the session's configuration: where the weights' files of a graph lie that comes as bytes
_FOLDER = "session.model_external_initializers_file_folder_path"
# what the graph calls the weights that are put together at load
_PACKED_FILE = "packed"
# what holds the values of ONNX's types, by their numbers
_STORED = {dtype.onnx: dtype.storage for dtype in DTYPES.values()}


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
    on_device: bool = False,
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
        on_device: the provider copies weights to a device. What it finds in memory, ONNX Runtime copies on the host
            first, which takes longer than all else: it then opens by itself what it can.

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
            values: dict[str, Any] = {}
            if has_weights:
                opened = _opened_files(bundle, isinstance(graph, str), on_device)
                if on_device and opened.locations:
                    options.add_session_config_entry(_FOLDER, str(opened.folder))
                    graph = Path(graph).read_bytes() if isinstance(graph, str) else graph
                values = _weight_values(bundle, graph, views, opened.locations)
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


@dataclass(frozen=True)
class _Opened:
    """Files that ONNX Runtime opens itself, by what the graph calls them, in the folder where these names start."""

    folder: Path
    locations: frozenset[str] = frozenset()


def _opened_files(bundle: Bundle, has_path: bool, on_device: bool) -> _Opened:
    """Which weights ONNX Runtime may open itself; on the CPU, where it keeps them once, those that the bundle holds.

    It opens what lies in one folder, and follows no link out of it: a checkpoint in a hub's cache consists of such.
    """
    folder = bundle.manifest.session.weights_folder
    if not on_device:
        opens = has_path and folder and bundle.weights_directory == bundle.directory / folder
        placed = bundle.placed_weights() if opens else []
        return _Opened(bundle.directory, frozenset(_location(bundle, file.record.name) for file in placed))
    by_folder: dict[Path, dict[str, int]] = defaultdict(dict)
    for placed_file in bundle.placed_weights():
        location = _location(bundle, placed_file.record.name)
        start = placed_file.path.absolute().parents[location.count("/")]
        if placed_file.path.resolve().is_relative_to(start.resolve()):
            by_folder[start][location] = placed_file.record.size
        else:
            _log.info("%s: a link, copied on the host before it goes to the device", placed_file.path)
    if not by_folder:
        return _Opened(bundle.directory)
    # the others are given in memory
    start, sizes = max(by_folder.items(), key=lambda found: sum(found[1].values()))
    return _Opened(start, frozenset(sizes))


def _location(bundle: Bundle, name: str) -> str:
    """What the graph calls a weights file."""
    folder = bundle.manifest.session.weights_folder
    return f"{folder}/{name}" if folder and "/" not in name else name


def _weight_values(
    bundle: Bundle, graph: str | bytes, views: Mapping[str, mmap.mmap], opened: frozenset[str]
) -> dict[str, Any]:
    """Initializer → the mapped or packed bytes that it refers to, for those that ONNX Runtime does not open itself.

    Given whole files in memory instead, it would copy every weight on the host before it does anything with it.

    Raises:
        ValueError: a graph that refers to what the weights do not have.
    """
    ort = import_onnxruntime()
    located = {_location(bundle, name): view for name, view in views.items()}
    files: dict[str, Any] = {name: view for name, view in located.items() if name not in opened}
    if bundle.manifest.session.packed:
        files[_PACKED_FILE] = packed_weights(bundle, views)
    if not files:
        return {}
    model = Path(graph).read_bytes() if isinstance(graph, str) else graph
    values = {}
    for tensor in external_tensors(model):
        if tensor.location not in opened:
            array = _array(tensor, files.get(tensor.location, b""))
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)
    return values


def _array(tensor: ExternalTensor, file: Any) -> npt.NDArray[Any]:
    """A tensor's bytes in its file, not copied."""
    stored = _STORED.get(tensor.data_type, np.dtype(np.void))
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if count * stored.itemsize != tensor.length or tensor.offset + tensor.length > len(file):
        raise ValueError(
            f"initializer '{tensor.name}' of type {tensor.data_type} and shape {list(tensor.shape)} at byte "
            f"{tensor.offset} of '{tensor.location}', which has {len(file)} bytes in this bundle"
        )
    return np.frombuffer(file, stored, count, tensor.offset).reshape(tensor.shape)
