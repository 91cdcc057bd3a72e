"""What the nodes of a lowered graph ask of the kernels, and that they name it."""

from __future__ import annotations

import onnx_ir as ir
from nemotron_plugins.requests import KernelRequest
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.kernels import bind_kernels

LIMITS = Limits(max_seq_len=64, max_batch=3, prefill_chunk=16)
TEXT = """
<ir_version: 10, opset_import: ["" : 20, "nemotron" : 1]>
main (bfloat16[batch, 1, 8] x, bfloat16[8] gamma, bfloat16[8] beta, bfloat16[12, 8] w0, bfloat16[12, 8] w1,
      bfloat16[8, 12] w2) => (bfloat16[batch, 1, 8] y)
<bfloat16[batch, 1, 12] a, bfloat16[batch, 1, 12] b, bfloat16[batch, 1, 12] c>
{
  a = nemotron.LayerNormLinear <epsilon = 0.00001, activation = "none", output = "same"> (x, gamma, beta, w0)
  b = nemotron.LayerNormLinear <epsilon = 0.00001, activation = "none", output = "same"> (x, gamma, beta, w1)
  c = Add (a, b)
  y = nemotron.LinearResidual (c, w2, x)
}
"""


def test_equal_nodes_share_a_request_and_each_names_its_own() -> None:
    model = ir.from_onnx_text(TEXT)
    requests = bind_kernels(model, LIMITS)
    assert requests == [
        KernelRequest(
            "LayerNormLinear", ((None, 1, 8), (8,), (8,), (12, 8)), "bfloat16",
            (("activation", "none"), ("epsilon", 1e-5), ("output", "same")), sequences=3, capacity=64,
        ),
        KernelRequest("LinearResidual", ((None, 1, 12), (8, 12), (None, 1, 8)), "bfloat16", sequences=3, capacity=64),
    ]  # fmt: skip
    first, second, add, last = model.graph
    assert "kernel" not in add.attributes
    texts = [node.attributes["kernel"].as_string() for node in (first, second, last)]
    assert texts == [requests[0].to_json()] * 2 + [requests[1].to_json()]
    # what a node is bound by is no attribute of its request
    assert bind_kernels(model, LIMITS) == requests
