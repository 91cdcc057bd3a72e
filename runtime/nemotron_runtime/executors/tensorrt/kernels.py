"""The kernels of a bundle that the executor launches itself: where they are looked up, and the check of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle

__all__ = ["find_kernel", "load_library"]

_FOLDER = "kernels"


def load_library(bundle: Bundle, architecture: str, vocab_size: int) -> tuple[Mapping[str, Any], str]:
    """The bundle's kernels that choose among logits, by key, and the folder of its kernels.

    Raises:
        BundleError: none for this architecture, or changed ones.
    """
    # needs no Triton
    from nemotron_plugins.library import KernelLibrary
    from nemotron_plugins.requests import logits_request

    folder = bundle.file(_FOLDER)
    wanted = (logits_request(op, vocab_size) for op in ("Argmax", "TopCandidates"))
    return KernelLibrary.load(folder, architecture).of(*wanted), str(folder)


def find_kernel(library: Mapping[str, Any], key: str, arguments: Sequence[str], where: str) -> tuple[Any, Any]:
    """A kernel ready to launch, and its record.

    Args:
        library: kernels by key.
        key: of the kernel.
        arguments: names of what it takes, in order.
        where: the folder of the kernels, which errors name.

    Raises:
        BundleError: no such kernel, or one that takes other arguments.
    """
    # needs no Triton; the plugins need it too
    from nemotron_plugins.driver.kernel import LoadedKernel

    kernel = library.get(key)
    names = () if kernel is None else tuple(name for name, _ in kernel.record.arguments)
    if kernel is None or names != tuple(arguments):
        found = f"no kernel {key}" if kernel is None else f"a kernel {key} of {', '.join(names)}"
        raise BundleError(found, f"one that takes {', '.join(arguments)}", "build the bundle again", where=where)
    return LoadedKernel(kernel.record, kernel.cubin), kernel.record
