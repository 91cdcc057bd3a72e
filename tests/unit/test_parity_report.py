"""The parity report: verdict, numbers, escaped names, every plot's points, and nothing that is fetched."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from nemotron_errors import BundleError, RequestError

import nemotron_export.parity.report as report
from nemotron_export.parity.report import render_html, write_html

SCHEMA = json.loads((Path(report.__file__).parent / "schema.json").read_text(encoding="utf-8"))
POSITIONS = [0, 1, 4, 11]


class Page(HTMLParser):
    """Texts of elements with an id, and how many circles each figure has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.dots: Counter[str] = Counter()
        self.crosses: Counter[str] = Counter()
        self.cloud: dict[str, int] = {}
        self.bars: Counter[str] = Counter()
        self.marks: list[str] = []
        self.text = ""
        self._figure, self._mark = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] += 1
        self.ids |= {found["id"] or ""} if "id" in found else set()
        if tag == "figure":
            self._figure = found["id"] or ""
        if tag == "g":
            self._mark = found.get("class") == "mark"
        self.dots[self._figure] += tag == "circle" and not self._mark
        self.crosses[self._figure] += found.get("class") == "cross"
        self.bars[self._figure] += tag == "rect" and bool(self._figure)
        if "data-points" in found:
            drawn = (found["d"] or "").count("M")
            assert drawn == int(found["data-points"] or 0)
            self.cloud[self._figure] = drawn

    def handle_endtag(self, tag: str) -> None:
        self._mark = self._mark and tag != "g"
        if tag == "figure":
            self._figure = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._mark and data.strip():
            self.marks.append(data.strip())


def _point(point: str, layer: int | None, error: float | None, stage: str = "prefill") -> dict[str, Any]:
    passed = error is not None and error <= 1e-5
    return {
        "stage": stage, "point": point, "layer": layer, "computed_by": "MatMul", "error": error, "tolerance": 1e-5,
        "passed": passed,
    }  # fmt: skip


def _walk(errors: list[float | None], stage: str = "prefill") -> list[dict[str, Any]]:
    names = [("model.embed_tokens: Gather", None), *((f"model.layers.{i}: Add (mlp)", i) for i in range(3))]
    names += [("model.norm: LayerNorm1P", None), ("lm_head: Linear", None)]
    return [_point(name, layer, error, stage) for (name, layer), error in zip(names, errors, strict=True)]


def _row(check: str, measured: float | None, tolerance: float, passed: bool = True) -> dict[str, Any]:
    return {
        "check": check, "prompt": "12 tokens", "measured": measured, "tolerance": tolerance, "passed": passed,
        "note": "",
    }  # fmt: skip


@pytest.fixture
def passing() -> dict[str, Any]:
    good: list[float | None] = [0.0, 1e-7, 2e-7, 2e-7, 3e-7, 4e-7]
    prompt = {"tokens": 12, "positions": POSITIONS, "max_error": [1e-7, 2e-7, 0.0, 3e-7], "rmse": [1e-6] * 4}
    return {
        "passed": True,
        "dtype": "float32",
        "logit_range": 40.0,
        "rows": [_row("prefill", 2.5e-7, 1e-4), _row("greedy, 8 tokens differing", 0.0, 0.0)],
        "judged_by": "parity",
        "environment": {
            "python": "3.11.7", "system": "Linux x86_64", "cpu": "a processor", "cores": 2, "threads": None,
            "versions": {"numpy": "2.4.6"},
        },
        "bundle": {
            "name": "mini.bundle", "target": "ort-cpu", "task": "causal-lm", "dtype": "float32",
            "limits": {"max_seq_len": 64}, "model": {"parameters": 1_500_000, "layers": 3, "hidden_size": 96},
        },
        "bisection": {
            "tokens": 12, "layers": _walk(good) + _walk(good, "decode"), "inside": [], "first": None, "before": 4e-7,
            "ops": [],
        },
        "drift": {
            "prompts": [{**prompt, "eager_rmse": None}, {**copy.deepcopy(prompt), "tokens": 13, "eager_rmse": None}],
            "scatter": {"reference": [-3.0, 0.5, 7.0], "measured": [-3.0, 0.5, 7.000001]},
            "flips": [],
            "positions_compared": 8,
            "margins": {"compared": [0.01, 0.5, 0.5, 3.0]},
        },
    }  # fmt: skip


@pytest.fixture
def failing(passing: dict[str, Any]) -> dict[str, Any]:
    inside = [_point("model.layers.1.mlp.up_proj: Linear", 1, 2e-7), _point("model.layers.1.mlp: relu²", 1, 0.25)]
    flip = {
        "prompt": 12, "position": 4, "reference": 3, "measured": 5, "reference_text": "<script>alert(1)</script>",
        "measured_text": "\u202e\n", "margin": 0.5, "allowed": False,
    }  # fmt: skip
    passing["passed"] = False
    passing["rows"] = [_row("prefill", 0.2, 1e-4, False), _row("greedy, 8 tokens differing", 7.0, 0.0, False)]
    passing["bisection"] |= {
        "layers": _walk([0.0, 1e-7, 0.1, 0.2, None, 0.3]), "inside": inside, "first": inside[1], "before": 2e-7,
        "ops": ["relu²"],
    }  # fmt: skip
    passing["drift"]["prompts"][0]["max_error"][2] = None
    passing["drift"]["flips"] = [flip]
    return passing


@pytest.fixture
def low(passing: dict[str, Any]) -> dict[str, Any]:
    passing["dtype"] = passing["bundle"]["dtype"] = "bfloat16"
    passing["rows"] = [_row("prefill and cached decode, RMSE ratio to PyTorch", 0.98, 1.05)]
    for prompt in passing["drift"]["prompts"]:
        prompt |= {"rmse": [0.03, 0.02, 0.03, 0.04], "eager_rmse": [0.03, 0.03, 0.03, 0.03]}
    for point in passing["bisection"]["layers"]:
        point["tolerance"] = 1e-3 * (1 + len(point["point"]))
    return passing


def test_a_pass(passing: dict[str, Any]) -> None:
    html = render_html(passing)
    page = Page(html)
    assert '<strong class="verdict" id="verdict">PASSED</strong>' in html
    for text in ("mini.bundle", "ort-cpu · float32 · causal-lm · 1.5 M parameters", "2.50e-07", "1.00e-04", "0.2 %"):
        assert text in page.text
    for text in (
        "All 2 checks hold",
        "a processor",
        "numpy",
        "2.4.6",
        "the runtime's choice",
        "No value leaves PyTorch",
    ):
        assert text in page.text
    assert page.dots["drift-by-position"] == 2 * len(POSITIONS)
    assert page.dots["drift-by-layer"] == 2 * 6
    assert page.cloud == {"scatter": 3, "differences": 3}
    assert page.bars["margins"] == 3, "two of the four margins are equal"
    assert not page.marks
    assert html.count("tolerance, 1.00e-04") >= 1


def test_a_failure_names_layer_and_op(failing: dict[str, Any]) -> None:
    html = render_html(failing)
    page = Page(html)
    assert '<strong class="verdict" id="verdict">FAILED</strong>' in html
    assert '<b id="first-op">relu²</b>' in html
    assert '<code id="first-module">model.layers.1.mlp</code>' in html
    assert "error before it 2.00e-07" in page.text
    assert "after it 0.25" in page.text
    assert "2,000 times" in page.text, "0.2 of 1e-4"
    assert page.marks == ["first past the tolerance: layers.1, prefill"]
    assert page.crosses["drift-by-position"] == page.crosses["drift-by-layer"] == 1, "what is not finite"
    assert page.dots["drift-by-position"] == 2 * len(POSITIONS) - 1
    assert page.dots["margins"] == 1
    assert "past the margin" in page.text
    assert "Decode was not walked" in page.text


def test_a_lower_precision_stands_beside_pytorchs_own(low: dict[str, Any]) -> None:
    html = render_html(low)
    page = Page(html)
    assert html.count('class="series s1 own"') == 2, "PyTorch's RMSE by position, tolerances by layer"
    assert "1.05 × PyTorch's RMSE over all, 0.0315" in page.text
    assert "flips allowed up to 0.12" in page.text
    assert "in bfloat16 against fp32" in page.text


def test_names_and_tokens_of_strangers_are_text(failing: dict[str, Any]) -> None:
    evil = '"><img onerror=x><script>1</script>\u202e'
    failing["bundle"] |= {"name": evil, "target": evil, "model": {evil: evil}}
    failing["environment"]["versions"] = {evil: evil}
    failing["judged_by"] = evil
    for row in failing["rows"]:
        row |= {"check": evil, "note": evil}
    for point in failing["bisection"]["layers"] + failing["bisection"]["inside"]:
        point |= {"computed_by": evil, "point": evil + point["point"]}
    failing["bisection"]["ops"] = [evil]
    html = render_html(failing)
    page = Page(html)
    assert not page.tags["script"]
    assert not page.tags["img"]
    assert "\u202e" not in html
    assert "\\u202e" in page.text
    assert "'<script>alert(1)</script>'" in page.text


@pytest.mark.parametrize("kind", ["passing", "failing", "low"])
def test_nothing_is_fetched(kind: str, request: pytest.FixtureRequest) -> None:
    html = render_html(request.getfixturevalue(kind))
    for reference in ("http:", "https:", "//", "src=", "href", "url(", "@import", "<script", "<link", "xmlns"):
        assert reference not in html, reference
    assert "default-src 'none'" in html


def test_without_the_optional_parts(passing: dict[str, Any]) -> None:
    bare = {key: passing[key] for key in ("passed", "dtype", "logit_range", "rows")}
    page = Page(render_html(bare))
    assert "PASSED" in page.text
    assert "nemotron-export parity BUNDLE --report FILE.html" in page.text
    assert not page.tags["figure"]
    assert "bisection" not in page.ids
    assert {"checks", "judgement"} <= page.ids
    only_walk = Page(render_html({**bare, "bisection": passing["bisection"]}))
    assert only_walk.tags["figure"] == 1


def test_nothing_judged_is_pending(passing: dict[str, Any]) -> None:
    page = Page(render_html({"passed": False, "dtype": "float32", "logit_range": 1.0, "rows": []}))
    assert "pending" in page.text
    assert "FAILED" not in page.text


def test_equal_outputs_have_axes(passing: dict[str, Any]) -> None:
    for prompt in passing["drift"]["prompts"]:
        prompt["max_error"] = [0.0] * len(POSITIONS)
    passing["drift"]["scatter"] = {"reference": [1.0, 1.0], "measured": [1.0, 1.0]}
    passing["drift"]["margins"]["compared"] = [0.0, None]
    page = Page(render_html(passing))
    assert page.dots["drift-by-position"] == 2 * len(POSITIONS)
    assert page.cloud == {"scatter": 2, "differences": 2}


def test_a_long_stack_thins_its_ticks(passing: dict[str, Any]) -> None:
    walk = [_point(f"model.layers.{i}: Add (mlp)", i, 1e-7) for i in range(96)]
    passing["bisection"]["layers"] = [_point("model.embed_tokens: Gather", None, 0.0), *walk]
    html = render_html(passing)
    assert Page(html).dots["drift-by-layer"] == 97
    places = [float(tick.split('"')[0]) for tick in html.partition('id="drift-by-layer"')[2].split('<text x="')[1:]]
    assert len(places) < 40


def test_what_is_written_is_the_page(passing: dict[str, Any], tmp_path: Path) -> None:
    write_html(passing, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render_html(passing)
    with pytest.raises(BundleError, match="while writing"):
        write_html(passing, tmp_path / "absent" / "page.html")


@pytest.mark.parametrize("broken", [{}, {"passed": True, "dtype": "float32", "logit_range": 1, "rows": [{}]}, []])
def test_another_document_is_refused(broken: Any) -> None:
    with pytest.raises(RequestError, match="does not fit"):
        render_html(broken)


@pytest.mark.parametrize("kind", ["passing", "failing", "low"])
def test_the_schema_holds_and_is_strict(kind: str, request: pytest.FixtureRequest) -> None:
    document = request.getfixturevalue(kind)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(document)
    for change in ({"unknown": 1}, {"rows": [{}]}, {"dtype": "int8"}, {"bisection": {}}, {"drift": []}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**copy.deepcopy(document), **change})
    for key in ("passed", "dtype", "logit_range", "rows"):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({name: value for name, value in document.items() if name != key})


def test_documents_hold_no_nan(failing: dict[str, Any]) -> None:
    failing["rows"][0]["measured"] = None
    page = Page(render_html(failing))
    assert "not finite" in page.text
    assert not math.isnan(json.loads(json.dumps(failing, allow_nan=False))["logit_range"])
