"""What a manifest says of engines, and which manifests are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle.manifest import Manifest
from support.tensorrt_fakes import make_tensorrt_bundle


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Manifest.read(make_tensorrt_bundle(tmp_path_factory.mktemp("bundle"))).to_dict()


def changed(document: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made = copy.deepcopy(document)
    change(made)
    return made


def as_rtx(document: dict[str, Any]) -> None:
    """Makes the document one of engines for RTX."""
    document["session"]["executor"] = "tensorrt-rtx"
    document["tensorrt_rtx"] = {
        "version": "1.7.1", "engines": {"sm_89": "decode.engine"}, "cache_capacity": 64,
        "weights": document["tensorrt"]["weights"],
    }  # fmt: skip
    document["tensorrt"] = None


def test_records_of_engines_are_read_as_they_were_written(document: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(document)
    assert manifest.tensorrt is not None
    assert manifest.tensorrt_rtx is None
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    rtx = Manifest.from_dict(changed(document, as_rtx))
    assert rtx.tensorrt is None
    assert rtx.tensorrt_rtx is not None
    assert rtx.tensorrt_rtx.engines == {"sm_89": "decode.engine"}
    assert rtx.tensorrt_rtx.weights == manifest.tensorrt.weights


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(tensorrt=None), "found tensorrt and 0 engines"),
        (lambda d: d["session"].update(executor="onnxruntime"), "found onnxruntime and 2 engines"),
        (lambda d: d["session"].update(executor="tensorrt-rtx"), "found tensorrt-rtx and 2 engines"),
        (lambda d: d["tensorrt"].update(decode_engine="../decode.engine"), "a name inside the folder"),
        (lambda d: d["tensorrt"].update(decode_engine="other.engine"), r"no record of other\.engine"),
        (
            lambda d: d["tensorrt"]["weights"][0]["parts"][0].update(file="other"),
            r"tensorrt\.weights: found FileSpan",
        ),
        (lambda d: d["tensorrt"]["weights"][0]["parts"][0].update(length=1 << 40), "a piece of a weights file"),
        (lambda d: d["tensorrt"].pop("version"), "no version"),
        (lambda d: (as_rtx(d), d["tensorrt_rtx"]["engines"].update(sm_86="/sm_86.engine")), "a name inside the folder"),
    ],
)
def test_records_that_cannot_be_are_refused(document: dict[str, Any], change: Any, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        Manifest.from_dict(changed(document, change))
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
