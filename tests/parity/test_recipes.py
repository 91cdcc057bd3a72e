"""CONTRIBUTING's recipes for a weight format, a pass and a target: each works as written, in the files that it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.recipes import ROOT, Recipe

# builds the embedded checkpoint and prints what its manifest says, and every check of its parity
_BUILD = """
import json, sys
from pathlib import Path
import nemotron_formats, nemotron_graphs
from nemotron_export import build
import nemotron_export

assert Path(nemotron_graphs.__file__).is_relative_to(sys.argv[1]), nemotron_graphs.__file__
options = json.loads(sys.argv[2])
checkpoint = Path(nemotron_export.__file__).parent / "assets" / "demo"
path = build(checkpoint, Path(sys.argv[1]) / "bundle", max_seq_len=256, max_batch=2, **options)
print(json.dumps([json.loads((path / name).read_text()) for name in ("manifest.json", "parity.json")]))
"""


def build(recipe: Recipe, **options: object) -> tuple[dict, dict]:
    printed = recipe.run(_BUILD, str(recipe.folder), json.dumps(options))
    manifest, parity = json.loads(printed.splitlines()[-1])
    return manifest, parity


def test_a_weight_format_takes_five_files(tmp_path: Path) -> None:
    recipe = Recipe("Adding a weight format", tmp_path)
    assert len(set(recipe.touched)) <= 5
    manifest, parity = build(recipe, target="onnx", quantize="channel8")
    assert manifest["parity"]["state"] == "passed"
    assert manifest["quantization"]["format"] == "channel8"
    assert len(manifest["quantization"]["tensors"]) == 6 * 6 + 1
    (row,) = [row for row in parity["rows"] if row["check"] == "perplexity ratio"]
    assert row["passed"]
    assert row["tolerance"] == 1.01
    # another artefact than without the format: codes are what the graph reads
    assert (tmp_path / "bundle" / "quantized" / "quantized.safetensors").stat().st_size > 3_000_000
    # a mistake in the decoding is caught by the parity that came with the budget
    code = tmp_path / "graphs/nemotron_graphs/passes/lower/linear_to_dequantized.py"
    assert code.read_text().count('"axis", 0') == 1


def test_a_pass_takes_three_files(tmp_path: Path) -> None:
    recipe = Recipe("Adding a pass", tmp_path)
    assert len(set(recipe.touched)) <= 3
    manifest, _ = build(recipe, target="onnx")
    assert manifest["parity"]["state"] == "passed"
    counts = recipe.run(
        "import onnx, sys, collections; model = onnx.load(sys.argv[1], load_external_data=False);"
        "print(collections.Counter(node.op_type for node in model.graph.node)['Pow'])",
        str(tmp_path / "bundle" / "model.onnx"),
    )
    # one square in each layer
    assert int(counts) == 6


def test_a_fusion_that_finds_fewer_than_its_target_expects_is_an_error_that_says_why(tmp_path: Path) -> None:
    recipe = Recipe("Adding a pass", tmp_path)
    path = tmp_path / "graphs/nemotron_graphs/targets/onnx.py"
    text = path.read_text()
    assert "n.layers}" in text
    path.write_text(text.replace("n.layers}", "n.layers + 1}"))
    with pytest.raises(AssertionError, match=r"found 6 Pow in graph 'model' .*; expected 7 of 6 layers"):
        build(recipe, target="onnx")


def test_a_target_takes_two_files(tmp_path: Path) -> None:
    recipe = Recipe("Adding a target", tmp_path)
    assert len(set(recipe.touched)) <= 2
    manifest, _ = build(recipe, target="ort-cpu-plain")
    assert (manifest["target"], manifest["parity"]["state"]) == ("ort-cpu-plain", "passed")
    assert "ort-cpu-plain" in recipe.run(
        "import sys; from nemotron_export.cli import main; sys.argv[1:] = ['doctor']; main()"
    )


def test_every_recipe_of_the_page_is_tested() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    recipes = {line.removeprefix("## ") for line in lines if line.startswith("## Adding ")}
    assert recipes >= {"Adding a weight format", "Adding an op", "Adding a pass", "Adding a target", "Adding a kernel"}
    tested = "".join(path.read_text() for path in (ROOT / "tests").glob("*/test_*recipe*.py"))
    assert [name for name in recipes if name not in tested] == []
