"""The likeliest tokens of a decode step on a GPU, by a small graph of their own that reads the step's logits in place.

Shapes: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.sampling.candidates import Candidates

__all__ = ["CandidateStep", "check_candidate_graph"]

_TYPES = {np.float32: "tensor(float)", np.float16: "tensor(float16)"}


class CandidateStep:
    """The graph's buffers on the device, and their binding behind one decode step's logits.

    Args:
        session: ONNX Runtime's session of the graph.
        ort: its module.
        device: name and number of where the logits are.
        logits_B1V: the decode step's output buffer.
        count: C.
        options: of the runs.

    Attributes:
        launched: whether it ran, and may have been captured.
    """

    def __init__(
        self, session: Any, ort: Any, device: tuple[str, int], logits_B1V: Any, count: int, options: Any
    ) -> None:
        def on_device(array: npt.NDArray[Any]) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(array, *device)

        shape_BC = (logits_B1V.shape()[0], count)
        self._session, self._options = session, options
        self.launched = False
        self._temperature = 1.0
        self._temperature_1 = on_device(np.ones(1, np.float32))
        self._logits_BC = on_device(np.zeros(shape_BC, np.float32))
        self._ids_BC = on_device(np.zeros(shape_BC, np.int64))
        self._mass_B = on_device(np.zeros(shape_BC[0], np.float32))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("logits", logits_B1V)
        self._binding.bind_ortvalue_input("temperature", self._temperature_1)
        self._binding.bind_ortvalue_output("candidate_logits", self._logits_BC)
        self._binding.bind_ortvalue_output("candidate_ids", self._ids_BC)
        self._binding.bind_ortvalue_output("mass", self._mass_B)

    def run(self, temperature: float) -> Candidates:
        """The candidates of the logits that the decode step left; ``temperature`` is that of their log_sum."""
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


def check_candidate_graph(bundle: Bundle, session: Any, logits_dtype: Any, count: int) -> None:
    """Raises BundleError where the graph does not take the model's logits, or does not give ``count`` tokens of each
    row."""
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
