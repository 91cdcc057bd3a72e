"""Opens a graph with ONNX Runtime, its weights from the bundle's mapped files."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from nemotron_errors import BundleError, MissingDependencyError

from nemotron_runtime.bundle import Bundle
from nemotron_runtime.weights import checked_chunks, map_weights, packed_weights

__all__ = ["import_onnxruntime", "open_graph"]

_ERRORS_ONLY = 3
# what the graph calls the weights that are put together at load
_PACKED_FILE = "packed"


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
) -> Any:
    """ONNX Runtime's session of a graph over the bundle's weights, on the provider that the bundle names.

    Args:
        bundle: whose weights the graph's initializers refer to.
        graph: a file, or a serialized model.
        threads: threads within an op; ONNX Runtime's choice where None.
        provider_options: of the provider.
        config: entries of the session's configuration.

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
    views = map_weights(bundle, verify_chunks=False)
    folder = bundle.manifest.session.weights_folder
    files: dict[str, Any] = {}
    # where ONNX Runtime can open the files itself it holds the weights once; given memory, it keeps copies beside it,
    # and then every file must be given
    opens = isinstance(graph, str) and folder and bundle.weights_directory == bundle.directory / folder
    if not opens or bundle.manifest.session.packed:
        files |= {f"{folder}/{name}" if folder and "/" not in name else name: view for name, view in views.items()}
    if bundle.manifest.session.packed:
        files[_PACKED_FILE] = np.frombuffer(packed_weights(bundle, views), np.uint8)
    if files:
        options.add_external_initializers_from_files_in_memory(
            list(files), list(files.values()), [len(view) for view in files.values()]
        )
    with checked_chunks(bundle, views):
        try:
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
    return session
