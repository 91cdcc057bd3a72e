"""What is installed on this machine, which targets work here, and what would make the others work."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from nemotron_graphs.targets import TARGETS, Target

from nemotron_export.installation.extras import EXTRAS, PROVEN, install_command

__all__ = ["Machine", "Package", "Report", "TargetState", "cpu_name", "driver_version", "examine", "installed_version"]

_BASE = ("numpy", "safetensors", "tokenizers", "sentencepiece", "typer", "rich", "psutil")

# Extra -> groups of packages, of each of which one must be there. A GPU build holds the CPU provider too.
_SESSION_PACKAGES = {
    "ort": (("onnxruntime", "onnxruntime-gpu"),),
    "ort-gpu": (("onnxruntime-gpu",),),
    "genai": (("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-genai", "onnxruntime-genai-cuda")),
    "genai-cuda": (("onnxruntime-gpu",), ("onnxruntime-genai-cuda",)),
    "tensorrt": (("tensorrt-cu12", "tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13"), ("cuda-bindings",)),
    "tensorrt-rtx": (
        ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
        ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu12-libs"),
    ),
}  # fmt: skip

# Distributions that hold the same files, with the extras that bring them.
_EXCLUSIVE = (
    ("onnxruntime", "onnxruntime-gpu", "ort", "ort-gpu"),
    ("onnxruntime-genai", "onnxruntime-genai-cuda", "genai", "genai-cuda"),
)


@dataclass(frozen=True)
class Package:
    """A package of the base install or an extra.

    Attributes:
        version: None where it is not installed.
        extra: what brings it; None for the base install.
        proven: the version that this project was run with, where that matters.
    """

    name: str
    version: str | None
    extra: str | None
    proven: str | None = None


@dataclass(frozen=True)
class TargetState:
    """Whether a target can be built and run here, and the command that would make both possible."""

    name: str
    builds: bool
    runs: bool
    remedy: str | None


@dataclass(frozen=True)
class Machine:
    """The hardware. Memory in bytes; `gpus` as the NVIDIA driver names them."""

    cpu: str
    cores: int
    instructions: str
    memory_total: int
    memory_available: int
    system: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that `doctor` found; `problems` are things that are broken, not things that are merely absent."""

    packages: tuple[Package, ...]
    targets: tuple[TargetState, ...]
    machine: Machine
    problems: tuple[str, ...]


def examine() -> Report:
    """Looks at the installed distributions and the hardware; imports none of the optional packages."""
    packages = [Package("nemotron-export", installed_version("nemotron-export"), None)]
    packages += [Package(name, installed_version(name), None) for name in _BASE]
    packages += [
        Package(dist, installed_version(dist), extra, None if dist.startswith("cuda") else PROVEN.get(extra))
        for extra, names in EXTRAS.items()
        for dist in names.values()
    ]
    machine = _machine()
    installed = {p.name: p.version for p in packages}
    # other distributions that bring the same modules
    others = {name for groups in _SESSION_PACKAGES.values() for group in groups for name in group} - set(installed)
    installed |= {name: installed_version(name) for name in others}
    targets = tuple(_target(target, installed, bool(machine.gpus)) for target in TARGETS.values())
    return Report(tuple(packages), targets, machine, tuple(_problems(installed)))


def installed_version(name: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _target(target: Target, installed: dict[str, str | None], gpu: bool) -> TargetState:
    builds = all(installed[dist] for dist in EXTRAS["build"].values())
    runs = all(any(installed[dist] for dist in group) for group in _SESSION_PACKAGES[target.extra])
    missing = [e for e, there in (("build", builds), (target.extra, runs)) if not there]
    remedies = [install_command(*missing)] if missing else []
    builds = builds and (runs or not target.builds_with)
    if not target.extra_runs:
        runs = False
        remedies.append(f"{target.runner} runs its bundles")
    elif target.device == "cuda" and not gpu:
        builds, runs = builds and target.builds_with != "device", False
        remedies.append("an NVIDIA GPU and its driver")
    return TargetState(target.name, builds, runs, "; ".join(remedies) or None)


def _problems(installed: dict[str, str | None]) -> list[str]:
    problems = [
        f"{one} and {other} are both installed and overwrite each other's files; "
        f"pip uninstall both, then install one of the extras '{extra}' and '{other_extra}'"
        for one, other, extra, other_extra in _EXCLUSIVE
        if installed[one] and installed[other]
    ]
    problems += [
        f"the base package {name} is missing; pip install --force-reinstall nemotron-export"
        for name in _BASE
        if not installed[name]
    ]
    for name in ("torch", "onnx", "onnxruntime"):
        if installed[name] and not _files_present(name):
            problems.append(
                f"{name} is listed as installed but its files are gone; pip install --force-reinstall {name}"
            )
    return problems


def _files_present(name: str) -> bool:
    root = distribution(name).locate_file(name)
    return (Path(str(root)) / "__init__.py").is_file()


def _machine() -> Machine:
    import psutil

    memory = psutil.virtual_memory()
    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instructions=_instructions(),
        memory_total=memory.total,
        memory_available=memory.available,
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        gpus=_gpus(),
    )


def _cpuinfo(*keys: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def _instructions() -> str:
    """The instruction sets that decide how fast matrix kernels are."""
    flags = set(_cpuinfo("flags", "Features").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
    return " ".join(flag for flag in wanted if flag in flags)


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None where nvidia-smi does not tell."""
    gpus = _gpus()
    fields = gpus[0].split(", ") if gpus else []
    return fields[2] if len(fields) == 3 else None


def _gpus() -> tuple[str, ...]:
    """Name, memory and driver of each GPU, by nvidia-smi; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return (f"nvidia-smi failed: {error}",)
    return tuple(line.strip() for line in result.stdout.splitlines() if line.strip())
