"""Chooses tokens on a GPU for ONNX Runtime.

The graph itself gives the likeliest tokens; a small graph next to it reads a step's logits where they are and finds the
top-k candidates.

Shapes: B sequences, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.batch import Ids, Logits
from nemotron_runtime.sampling.candidates import Candidates
from nemotron_runtime.sampling.device import DeviceSampler

__all__ = ["OnnxRuntimeSampler", "check_candidate_graph", "on_device"]

_TYPES = {np.float32: "tensor(float)", np.float16: "tensor(float16)"}


def on_device(ort: Any, device: tuple[str, int], array: npt.NDArray[Any]) -> Any:
    """A copy of an array in a device's memory."""
    return ort.OrtValue.ortvalue_from_numpy(array, *device)


class OnnxRuntimeSampler(DeviceSampler):
    """The buffers of one decode step's outputs on the device, and the binding of what reads its logits.

    Args:
        ort: the module onnxruntime.
        device: name and number of where the buffers are.
        logits_BV: zeros like the logits of a step.
        options: of the runs.
        session: ONNX Runtime's session of the graph of candidates; None where a bundle has none.
        candidate_count: C.

    Attributes:
        logits_B1V: what the step writes its logits to.
        tokens_B1: what it writes the likeliest tokens to.
        chooses: whether it does write them.
        launched: whether the graph of candidates ran, and may have been captured.
    """

    def __init__(
        self,
        ort: Any,
        device: tuple[str, int],
        logits_BV: npt.NDArray[Any],
        options: Any,
        *,
        chooses: bool,
        session: Any = None,
        candidate_count: int = 0,
    ) -> None:
        B = len(logits_BV)
        self.chooses, self.launched = chooses, False
        self.logits_B1V = on_device(ort, device, logits_BV[:, None])
        self.tokens_B1 = on_device(ort, device, np.zeros((B, 1), np.int64))
        self._session, self._options = session, options
        if session is None:
            return
        shape_BC = (B, candidate_count)
        self._temperature = 1.0
        self._temperature_1 = on_device(ort, device, np.ones(1, np.float32))
        self._logits_BC = on_device(ort, device, np.zeros(shape_BC, np.float32))
        self._ids_BC = on_device(ort, device, np.zeros(shape_BC, np.int64))
        self._mass_B = on_device(ort, device, np.zeros(B, np.float32))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("logits", self.logits_B1V)
        self._binding.bind_ortvalue_input("temperature", self._temperature_1)
        self._binding.bind_ortvalue_output("candidate_logits", self._logits_BC)
        self._binding.bind_ortvalue_output("candidate_ids", self._ids_BC)
        self._binding.bind_ortvalue_output("mass", self._mass_B)

    def greedy(self) -> Ids:
        """See :meth:`DeviceSampler.greedy`: the logits stay on the device where the graph chooses."""
        chosen_B: Ids = self.tokens_B1.numpy()[:, 0] if self.chooses else self.logits().argmax(-1)
        return chosen_B

    def candidates(self, temperature: float) -> Candidates:
        """See :meth:`DeviceSampler.candidates`: the logits stay on the device."""
        assert self._session is not None, "a bundle with a graph of candidates"
        if temperature != self._temperature:
            self._temperature_1.update_inplace(np.array([temperature], np.float32))
            self._temperature = temperature
        self.launched = True
        self._session.run_with_iobinding(self._binding, self._options)
        logits_BC: npt.NDArray[np.float32] = self._logits_BC.numpy()
        # the sum is relative to the largest: a float32 log of it all would lose what is below a large score's last bit
        largest_B = (logits_BC[:, 0] / np.float32(temperature)).astype(np.float64)
        log_sum_B = largest_B + np.log(self._mass_B.numpy().astype(np.float64))
        return Candidates(self._ids_BC.numpy(), logits_BC, log_sum_B)

    def logits(self) -> Logits:
        """See :meth:`DeviceSampler.logits`."""
        logits_B1V: npt.NDArray[Any] = self.logits_B1V.numpy()
        return logits_B1V[:, 0].astype(np.float32, copy=False)


def check_candidate_graph(bundle: Bundle, session: Any, logits_dtype: Any, count: int) -> None:
    """Raises BundleError where the graph does not take the model's logits, or does not give ``count`` tokens of each
    sequence."""
    dims_V = f"[batch, 1, {bundle.manifest.model.vocab_size}]"
    expected_inputs = f"logits {_TYPES[logits_dtype]} {dims_V}, temperature tensor(float) [1]"
    expected_outputs = (
        f"candidate_logits tensor(float) [batch, {count}], candidate_ids tensor(int64) [batch, {count}], "
        "mass tensor(float) [batch]"
    )
    record = bundle.manifest.session.candidates
    assert record is not None
    for what, values, expected in (
        ("inputs", session.get_inputs(), expected_inputs),
        ("outputs", session.get_outputs(), expected_outputs),
    ):
        found = _describe(values)
        if found != expected:
            raise BundleError(
                f"{what} {found}", expected, "build the bundle again", where=str(bundle.file(record.graph))
            )


def _describe(values: Iterable[Any]) -> str:
    def dims(shape: Iterable[Any]) -> str:
        return ", ".join(str(dim) if isinstance(dim, int) else "batch" for dim in shape)

    return ", ".join(f"{value.name} {value.type} [{dims(value.shape)}]" for value in values)
