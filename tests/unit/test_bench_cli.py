"""`bench` on a bundle of one layer: tables, the JSON document, the plot, and what it refuses before it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nemotron_runtime.bundle.folder import Bundle, set_parity_state, write_manifest
from nemotron_runtime.bundle.manifest import Manifest
from support.bundles import TinyModel, make_bundle
from typer.testing import CliRunner

from nemotron_export.bench import run
from nemotron_export.bench.backends import BACKENDS, BenchRequest
from nemotron_export.bench.backends.bundle import BundleBackend
from nemotron_export.bench.backends.eager import EagerBackend
from nemotron_export.bench.options import BenchOptions
from nemotron_export.cli import app

ROOT = Path(__file__).parents[2]
CONFIG = {
    "model_type": "nemotron", "vocab_size": TinyModel.V, "hidden_size": TinyModel.E, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": TinyModel.H, "num_key_value_heads": TinyModel.G,
    "head_dim": TinyModel.D, "max_position_embeddings": 256,
}  # fmt: skip
SMALL = ("--prompt-tokens", "8", "--new-tokens", "3", "--rounds", "2", "--warmup", "0", "--threads", "1")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two bundles of one target, in folders `one/bundle` and `two/second`."""
    made = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp(name)
        bundle = make_bundle(folder)
        manifest = Manifest.read(bundle)
        write_manifest(bundle, replace(manifest, model=replace(manifest.model, config=CONFIG)))
        made.append(bundle.rename(folder / "second") if name == "two" else bundle)
    return str(made[0]), str(made[1])


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture(scope="module")
def document(bundles: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plot = tmp_path_factory.mktemp("plot") / "speed.svg"
    result = bench(*bundles, *SMALL, "--context", "16, 8,32", "--batch", "2", "--json", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    drawn = plot.read_text(encoding="utf-8")
    assert drawn.count("<svg") == 1
    for text in ("bundle ort-cpu float32 (second)", "tokens per second, batch 2", "1 threads"):
        assert text in drawn
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_the_document_says_what_ran_and_how(document: dict[str, Any], bundles: tuple[str, str]) -> None:
    assert document["format"] == 1
    assert document["contexts"] == [8, 16, 32]
    assert (document["rounds"], document["warmup"], document["batch"], document["new_tokens"]) == (2, 0, 2, 3)
    assert document["machine"]["threads"] == 1
    assert document["machine"]["memory_bytes"] > 1 << 30
    assert document["versions"]["onnxruntime"]
    assert len(document["read_bytes_per_second"]["rounds"]) == 2
    assert document["read_buffer_bytes"] >= 256 << 20
    assert not any(str(Path(bundle).parent) in json.dumps(document) for bundle in bundles), "no paths of this machine"


def test_the_document_holds_each_backend_at_each_shape(document: dict[str, Any]) -> None:
    found = document["contenders"]
    assert [c["name"] for c in found] == ["bundle ort-cpu float32 (bundle)", "bundle ort-cpu float32 (second)"]
    E, HD, GD, V, F = 64, 128, 64, 96, 16
    for backend in found:
        assert (backend["kind"], backend["dtype"]) == ("bundle", "float32")
        assert backend["weight_bytes"] == 4 * (2 * E * HD + 2 * E * GD + 2 * E * F + 6 * E + V * E)
        assert backend["kv_bytes_per_token"] == 2 * GD * 4
        assert backend["load_seconds"] > 0
        assert backend["peak_bytes"] > 1 << 20
        assert [m["shape"]["prompt_tokens"] for m in backend["measurements"]] == [8, 16, 32]
        for measured in backend["measurements"]:
            assert measured["shape"] == {**measured["shape"], "new_tokens": 3, "batch": 2}
            speed = measured["decode_tokens_per_second"]
            assert 0 < speed["minimum"] <= speed["median"] <= speed["maximum"]
            assert len(speed["rounds"]) == 2
            bandwidth = document["read_bytes_per_second"]["median"]
            share = measured["decode_bytes_per_second"]["median"] / bandwidth
            assert measured["bandwidth_share"] == pytest.approx(share)


def keys(value: Any, prefix: str = "") -> set[str]:
    if isinstance(value, list):
        return set().union(*(keys(item, prefix) for item in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return {f"{prefix}{key}" for key in value}.union(
        *(keys(item, f"{prefix}{key}.") for key, item in value.items() if key != "versions")
    )


def test_every_field_is_documented_and_kept_results_have_the_same(document: dict[str, Any]) -> None:
    folder = ROOT / "ci" / "benchmarks"
    text = (folder / "README.md").read_text(encoding="utf-8")
    spread = {"minimum", "median", "maximum", "rounds"}
    for key in keys(document):
        name = key.rpartition(".")[2]
        assert name in spread or f"`{name}`" in text, key
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    kept = [found for found in documents if "contenders" in found]
    assert kept
    for result in kept:
        assert keys(result) == keys(document)


def test_tables_are_printed_and_say_what_the_numbers_mean(bundles: tuple[str, str]) -> None:
    result = bench(bundles[0], *SMALL, "--context", "16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "8 prompt tokens, 3 new, batch 1 (median of 2 rounds)"
    assert [cell.strip() for cell in lines[1].split("┃")] == [
        "what runs", "prefill ms", "tok/s", "TTFT ms", "decode tok/s", "min-max", "GB/s", "of read bw", "load s",
        "peak memory",
    ]  # fmt: skip
    assert lines[3].startswith("bundle ort-cpu float32 ")
    text = " ".join(lines)
    for part in ("after so many prompt tokens", "all weights but the input embedding", "Read bandwidth", "1 threads"):
        assert part in text
    assert "vs eager" not in text


def test_one_context_needs_no_second_table(bundles: tuple[str, str]) -> None:
    result = bench(bundles[0], *SMALL)
    assert result.exit_code == 0, result.output
    assert "after so many" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        ([], 2, ["nothing to measure"]),
        (["BUNDLE", "--against", "others"], 2, ["--against", "'others'", "eager"]),
        (["BUNDLE", "--context", "8,many"], 2, ["--context", "'8,many'"]),
        (["BUNDLE", "--context", "0"], 2, ["--context", "at least 1"]),
        (["BUNDLE", "--batch", "5"], 2, ["--batch 5", "at most 4 rows"]),
        (["BUNDLE", "--context", "8,200"], 2, ["200 prompt tokens and 64 new ones", "at most 256 tokens"]),
        (["BUNDLE", "--plot", "speed.pdf"], 2, ["speed.pdf", ".png or .svg"]),
        (["BUNDLE", "--plot", "nowhere/speed.png"], 2, ["nowhere", "existing folder"]),
        (["nowhere"], 2, ["nowhere"]),
        (["--against", "eager"], 2, ["no checkpoint", "--checkpoint"]),
        (["--against", "eager", "--checkpoint", "DEMO", "--eager-dtype", "int8"], 2, ["--eager-dtype", "'int8'"]),
        (["--against", "eager", "--checkpoint", "DEMO", "--eager-cache", "none"], 2, ["--eager-cache", "'none'"]),
        (["--against", "eager", "--checkpoint", "DEMO", "--eager-cache", ""], 2, ["--eager-cache", "nothing"]),
        (["BUNDLE", "--against", "eager", "--checkpoint", "DEMO"], 2, ["was built from another model"]),
    ],
)
def test_what_it_refuses_before_it_starts_a_process(
    bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, texts: list[str]
) -> None:
    def started(*args: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(run, "BackendProcess", started)
    names = {"BUNDLE": bundles[0], "DEMO": str(ROOT / "nemotron_export" / "assets" / "demo")}
    result = bench(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == code, result.output
    said = " ".join(result.stderr.split())
    assert all(text in said for text in texts), said


def test_a_bundle_that_is_not_proved_is_refused_unless_allowed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    manifest = Manifest.read(bundle)
    write_manifest(bundle, replace(manifest, model=replace(manifest.model, config=CONFIG)))
    set_parity_state(bundle, "pending", reason="not checked yet")
    refused = bench(str(bundle), *SMALL)
    assert (refused.exit_code, "parity pending" in refused.stderr) == (2, True)
    assert bench(str(bundle), *SMALL, "--allow-unverified").exit_code == 0


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [("matplotlib", ("--plot", "speed.png"), "report"), ("torch", ("--against", "eager"), "build")],
)
def test_a_missing_package_is_named_with_its_extra(
    bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = bench(bundles[0], *SMALL, *arguments)
    assert result.exit_code == 3
    assert f'pip install "nemotron-export[{extra}]"' in result.stderr


def test_too_little_memory_is_said_with_both_numbers(bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "available_memory", lambda: 1000)
    result = bench(*bundles, *SMALL)
    assert result.exit_code == 4
    assert "0.0 GB for the weights of 2 backends" in result.stderr


def test_the_plot_is_a_picture_too(bundles: tuple[str, str], tmp_path: Path) -> None:
    assert bench(bundles[0], *SMALL, "--plot", str(tmp_path / "speed.PNG")).exit_code == 0
    assert (tmp_path / "speed.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_bundles_process_loads_no_torch(bundles: tuple[str, str]) -> None:
    code = f"""
import sys
from nemotron_export.bench import worker
from nemotron_export.bench.backends import BACKENDS
from nemotron_export.bench.options import Shape
options = {{"path": {bundles[0]!r}, "weights_dir": None, "allow_unverified": False, "executor": "onnxruntime"}}
backend = BACKENDS["bundle"](options, 1)
backend.prepare()
worker.measure(backend, backend.load().vocab_size, Shape(4, 2, 1))
backend.close()
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "onnx", "matplotlib", "transformers"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_bundles_that_look_the_same_are_told_apart(bundles: tuple[str, str]) -> None:
    opened = tuple(Bundle.open(path) for path in (*bundles, bundles[0]))
    specs = BundleBackend.specs(BenchRequest(opened, None, None, False, BenchOptions(4, 2)))
    names = ["(bundle) #1", "(second)", "(bundle) #2"]
    assert [spec.name for spec in specs] == [f"bundle ort-cpu float32 {name}" for name in names]
    assert [spec.options["path"] for spec in specs] == [bundles[0], bundles[1], bundles[0]]


def test_a_bundle_computes_where_its_session_does(bundles: tuple[str, str]) -> None:
    opened = Bundle.open(bundles[0])
    session = replace(opened.manifest.session, device="cuda")
    on_gpu = replace(opened, manifest=replace(opened.manifest, session=session))
    specs = BundleBackend.specs(BenchRequest((opened, on_gpu), None, None, False, BenchOptions(4, 2)))
    assert [spec.device for spec in specs] == ["cpu", "cuda"]


def test_weights_inside_two_engines_count_twice(bundles: tuple[str, str]) -> None:
    opened = Bundle.open(bundles[0])
    weights = replace(opened.manifest.weights, mode="embedded")
    embedded = replace(opened, manifest=replace(opened.manifest, weights=weights))
    once, twice = BundleBackend.specs(BenchRequest((opened, embedded), None, None, False, BenchOptions(4, 2)))
    assert twice.weight_bytes == 2 * once.weight_bytes > 0


def test_it_is_a_command_with_help() -> None:
    assert " bench " in " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    text = " ".join(bench("--help").stdout.split())
    for option in ("--against", "--checkpoint", "--prompt-tokens", "--context", "--plot", "--json", "Exit codes"):
        assert option in text


def test_kinds_are_named_as_they_are_registered() -> None:
    assert BACKENDS["eager"] is EagerBackend
    assert all(cls.kind == kind for kind, cls in BACKENDS.items())
