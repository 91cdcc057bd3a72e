"""CONTRIBUTING's recipe for a new kernel, followed to the letter over a copy of the packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.recipes import ROOT, Recipe

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")

_OP = """
import os, re, sys
from pathlib import Path
sys.path.append(sys.argv[1] + "/tests")
page = (Path(sys.argv[1]) / "CONTRIBUTING.md").read_text(encoding="utf-8")
(code,) = re.findall(r"```python\\n(.*?)```", page.partition("## Adding an op\\n")[2].partition("\\n## ")[0], re.DOTALL)
names = {}
exec(code, names)
definition = names["squared_relu"]
"""
_RUN = (
    """
import os
os.environ["TRITON_INTERPRET"] = "1"
"""
    + _OP
    + """
import torch
import nemotron_plugins
from support.torch_kernels import run_op
assert Path(nemotron_plugins.__file__).is_relative_to(Path.cwd()), nemotron_plugins.__file__
torch.manual_seed(0)
for dtype in (torch.float32, torch.float16):
    for shape in ((1, 1, 5), (3, 1, 64), (2, 7, 100)):
        x = torch.randn(shape).to(dtype)
        (y,) = run_op("SquaredRelu", (x,))
        assert torch.equal(y, definition.eager(x)), (dtype, shape)
        assert not torch.equal(y, x)
print("equal")
"""
)
_COMPILE = """
import json
from nemotron_plugins.build import build_library
from nemotron_plugins.launches.launch import Gpu
from nemotron_plugins.requests import request_of
from nemotron_plugins.tensorrt import PLUGIN_OPS, use_library
from nemotron_plugins.tensorrt.fields import kernel_fields, request_field
from nemotron_plugins.tensorrt.plugin import make_op

request = request_of("SquaredRelu", [(None, None, 100)], "bfloat16", {}, sequences=4, capacity=64)
library = build_library([request], [Gpu(90, 132)])[90]
# of a node, and of an engine
node = [request_field(request.to_json())]
with use_library(library):
    built = make_op(PLUGIN_OPS["SquaredRelu"], node)
loaded = make_op(PLUGIN_OPS["SquaredRelu"], node + kernel_fields(built.kernels))
record = loaded.records["all"]
print(json.dumps({"keys": list(library), "grid": record.grid_of(B=2, S=3), "constexprs": record.constexprs}))
"""


def test_a_kernel_takes_three_files_and_is_its_ops_definition(tmp_path: Path) -> None:
    recipe = Recipe("Adding a kernel", tmp_path)
    assert len(set(recipe.touched)) <= 3
    assert recipe.run(_RUN, str(ROOT)) == "equal\n"
    made = json.loads(recipe.run(_COMPILE))
    (key,) = made.pop("keys")
    assert key.startswith("SquaredRelu.100.bfloat16.dense.")
    assert key.endswith(".all")
    assert made == {"grid": [6], "constexprs": {"INPUTS": 100, "BLOCK": 128}}


def test_the_operands_are_those_of_the_ops_recipe(tmp_path: Path) -> None:
    recipe = Recipe("Adding a kernel", tmp_path)
    printed = recipe.run(
        _OP
        + """
from nemotron_plugins.tensorrt import PLUGIN_OPS
op = PLUGIN_OPS["SquaredRelu"]
assert [(each.dtype, "[" + ", ".join(each.sizes) + "]") for each in op.inputs] == [
    (each.type, each.shape) for each in definition.inputs
]
print("agree")
""",
        str(ROOT),
    )
    assert printed == "agree\n"
