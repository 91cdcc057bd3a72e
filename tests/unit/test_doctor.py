"""What doctor says of an environment, with the installed distributions faked."""

from __future__ import annotations

import json
import re
from importlib.metadata import requires

import pytest
from nemotron_graphs.targets import TARGETS
from typer.testing import CliRunner

from nemotron_export.cli import app
from nemotron_export.installation import doctor
from nemotron_export.installation.extras import EXTRAS, extra_of, install_command


def _installed(monkeypatch: pytest.MonkeyPatch, *, without: tuple[str, ...] = (), plus: tuple[str, ...] = ()) -> None:
    real = doctor._version

    def version(name: str) -> str | None:
        if name in without:
            return None
        return "9.9" if name in plus else real(name)

    monkeypatch.setattr(doctor, "_version", version)


def test_every_target_is_known_and_works_in_a_full_environment() -> None:
    report = doctor.examine()
    assert {target.name for target in report.targets} == set(TARGETS)
    for target in report.targets:
        if target.name == "tensorrt":
            # needs a GPU and NVIDIA's packages
            assert target.builds is target.runs
            continue
        assert target.builds
        # a GPU's packages and a CPU's exclude each other; engines for RTX run elsewhere
        assert target.runs is not target.name.endswith(("-cuda", "-rtx"))
        assert (target.remedy is None) is target.runs
    assert report.problems == ()


def test_missing_extras_are_named_by_their_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, without=("torch", "onnxruntime"))
    states = {target.name: target for target in doctor.examine().targets}
    assert not states["ort-cpu"].builds
    assert not states["ort-cpu"].runs
    assert states["ort-cpu"].remedy == 'pip install "nemotron-export[build,ort]"'


def test_the_gpu_build_of_onnx_runtime_runs_cpu_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, without=("onnxruntime",), plus=("onnxruntime-gpu",))
    report = doctor.examine()
    assert all(target.runs for target in report.targets if not target.name.endswith(("-cuda", "tensorrt", "-rtx")))
    assert report.problems == ()


@pytest.mark.parametrize(
    ("without", "plus", "runs", "remedy"),
    [
        (("onnxruntime-genai",), (), {"ort-cpu"}, {"genai-cpu": "genai", "genai-cuda": "genai-cuda"}),
        (
            ("onnxruntime", "onnxruntime-genai"),
            ("onnxruntime-gpu", "onnxruntime-genai-cuda"),
            {"ort-cpu", "genai-cpu", "genai-cuda"},
            {},
        ),
    ],
)
def test_genai_targets_need_their_own_extras(
    monkeypatch: pytest.MonkeyPatch,
    without: tuple[str, ...],
    plus: tuple[str, ...],
    runs: set[str],
    remedy: dict[str, str],
) -> None:
    _installed(monkeypatch, without=without, plus=plus)
    monkeypatch.setattr(doctor, "_gpus", lambda: ("NVIDIA H100 80GB HBM3, 81559 MiB, 570.86.15",))
    states = {target.name: target for target in doctor.examine().targets}
    assert {name for name in ("ort-cpu", "genai-cpu", "genai-cuda") if states[name].runs} == runs
    for name, extra in remedy.items():
        assert states[name].remedy == f'pip install "nemotron-export[{extra}]"'


def test_a_tensorrt_target_needs_packages_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> doctor.TargetState:
        return next(target for target in doctor.examine().targets if target.name == "tensorrt")

    _installed(monkeypatch, without=("tensorrt-cu12", "tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13"))
    monkeypatch.setattr(doctor, "_gpus", lambda: ())
    assert not state().builds
    assert state().remedy == 'pip install "nemotron-export[tensorrt]"; an NVIDIA GPU and its driver'
    assert doctor.driver_version() is None
    _installed(monkeypatch, plus=("tensorrt-cu12-bindings", "cuda-bindings"))
    assert state().remedy == "an NVIDIA GPU and its driver"
    monkeypatch.setattr(doctor, "_gpus", lambda: ("NVIDIA H100 80GB HBM3, 81559 MiB, 570.86.15",))
    assert (state().builds, state().runs, state().remedy) == (True, True, None)
    assert doctor.driver_version() == "570.86.15"


def test_proven_versions_are_named() -> None:
    proven = {package.name: package.proven for package in doctor.examine().packages if package.proven}
    assert proven["tensorrt-cu12"] == "10.6"
    assert set(proven) == {
        "tensorrt-cu12", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs", "onnxruntime-gpu",
        "onnxruntime-genai-cuda",
    }  # fmt: skip


def test_both_builds_of_onnx_runtime_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, plus=("onnxruntime-gpu",))
    (problem,) = doctor.examine().problems
    assert "onnxruntime-gpu" in problem
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["problems"] == [problem]


def test_json_is_the_report() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {package["name"] for package in found["packages"]} >= {"torch", "onnxruntime", "numpy"}
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_total"] > found["machine"]["memory_available"] > 0


def test_extras_are_found_by_module() -> None:
    assert extra_of("torch.nn") == "build"
    assert extra_of("onnxruntime.capi") == "ort"
    assert extra_of("somewhere.else") is None
    assert install_command("build", "ort") == 'pip install "nemotron-export[build,ort]"'


def test_extras_are_those_of_the_distribution() -> None:
    declared = {re.split(r"[<>=;,]", line)[0] for line in requires("nemotron-export") or [] if "extra" in line}
    assert {dist for modules in EXTRAS.values() for dist in modules.values()} <= declared
