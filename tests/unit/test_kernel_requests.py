"""Requests for kernels: names that tell them apart, and launches as they were measured."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from nemotron_errors import GraphError
from nemotron_plugins.build import launches_of
from nemotron_plugins.launches.launch import Gpu, GridAxis, Launch
from nemotron_plugins.launches.linear import row_bucket
from nemotron_plugins.requests import KernelRequest, logits_request, request_of
from support.kernel_requests import H100, MINITRON_4B, TINY, ModelSizes

ROWS = (1, 2, 4, 8)


def _chosen(launch: Launch, *names: str) -> tuple[Any, ...]:
    return (*(launch.constexprs[name] for name in names), launch.num_warps, launch.num_stages)


def test_keys_tell_requests_apart_and_name_files() -> None:
    up = MINITRON_4B.requests["up"]
    others = [
        dataclasses.replace(up, **changes)
        for changes in (
            {"op": "Other"}, {"shapes": (*up.shapes, (9216,))}, {"dtype": "float16"}, {"attributes": up.attributes[1:]},
            {"sequences": 4}, {"capacity": 8}, {"format": "int4"},
        )
    ]  # fmt: skip
    requests = [up, *others, *MINITRON_4B.requests.values()]
    assert len({request.key for request in requests}) == len(set(requests))
    for request in requests:
        assert re.fullmatch(r"[A-Za-z0-9_.]{1,100}", request.key)
        assert KernelRequest.from_json(request.to_json(), where="here") == request
    assert re.fullmatch(r"LayerNormLinear\.9216x3072\.relu_squared\.same\.bfloat16\.dense\.[0-9a-f]{8}", up.key)


def test_a_stored_attribute_means_the_same_number() -> None:
    # 1e-5 in fp32, as a graph that was stored gives it back
    for epsilon in (1e-5, 9.999999747378752e-06):
        request = request_of("X", [], "float16", {"epsilon": epsilon, "a": 3}, sequences=1, capacity=1)
        assert request.attributes == (("a", 3), ("epsilon", 1e-5))
    odd = request_of("X", [], "float16", {"epsilon": 1 / 3, "none": 0.0}, sequences=1, capacity=1)
    assert odd.attributes == (("epsilon", 0.33333333), ("none", 0.0))


def test_the_launches_of_minitron_4b_are_those_that_were_measured() -> None:
    launches = MINITRON_4B.launches(H100)
    kinds = {
        "update": ("decode", "many"),
        "attention": ("prefill", *(f"{kind}{rows}" for rows in ROWS for kind in ("r", "combine"))),
        "fused": tuple(f"{kind}{rows}" for rows in ROWS for kind in ("r", "combine")),
        **{name: ("norm", *(f"r{rows}" for rows in ROWS)) for name in ("qkv", "up", "head")},
        **{name: tuple(f"r{rows}" for rows in ROWS) for name in ("o", "down")},
        "Argmax": ("argmax", "argmax_combine"),
        "TopCandidates": ("candidates", "candidates_merge"),
    }
    assert set(launches) == {f"{name}.{variant}" for name, variants in kinds.items() for variant in variants}
    assert all(launch.pdl for launch in launches.values())
    # heads of a block, warps and stages
    assert _chosen(launches["update.decode"], "BLOCK_HEADS") == (2, 1, 1)
    assert _chosen(launches["update.many"], "BLOCK_HEADS") == (8, 4, 1)
    assert launches["update.many"].constexprs == {
        "QUERY_HEADS": 24, "KV_HEADS": 8, "HEAD_DIM": 128, "Q_STRIDE": 5120, "KV_STRIDE": 5120, "K_OFFSET": 3072,
        "V_OFFSET": 4096, "HALF": 32, "BLOCK_HEADS": 8, "BLOCK_HALF": 32, "BLOCK_TAIL": 64, "BLOCK_DIM": 128,
        "PDL": True,
    }  # fmt: skip
    prefill = launches["attention.prefill"]
    assert _chosen(prefill, "GROUP", "BLOCK_M", "BLOCK_N") == (3, 128, 64, 8, 2)
    assert prefill.grid == (GridAxis(3, ("S",), 128), GridAxis(8, ("B",)))
    for rows, splits, block, stages in ((1, 64, 32, 2), (2, 16, 32, 2), (4, 8, 64, 3), (8, 4, 64, 3)):
        for name in ("attention", "fused"):
            decode, combine = launches[f"{name}.r{rows}"], launches[f"{name}.combine{rows}"]
            assert _chosen(decode, "SPLITS", "BLOCK_M", "BLOCK_N", "PREFETCH") == (splits, 16, block, block, 4, stages)
            assert decode.grid == (GridAxis(8, ("B",)), GridAxis(splits))
            assert decode.constexprs["SCALE_LOG2"] == 0.12751743082459868
            assert _chosen(combine, "SPLITS", "HEAD_DIM", "BLOCK_DIM") == (splits, 128, 128, 2 if rows == 1 else 1, 1)
    # outputs and inputs of a block, what is asked of the cache, warps and stages
    blocks = ("BLOCK_OUT", "BLOCK_IN", "PREFETCH")
    for name, first in {
        "qkv": (4, 1024, 0, 4, 1), "up": (8, 1024, 0, 4, 1), "head": (8, 1024, 0, 4, 1), "o": (4, 1024, 512, 2, 1),
        "down": (2, 1024, 512, 8, 1),
    }.items():  # fmt: skip
        assert _chosen(launches[f"{name}.r1"], *blocks) == first
        for rows in ROWS[1:]:
            assert _chosen(launches[f"{name}.r{rows}"], *blocks) == (16, 256, 512, 2, 5)
    sizes = {"qkv": (5120, 3072), "up": (9216, 3072), "head": (256000, 3072), "o": (3072, 3072), "down": (3072, 9216)}
    for name, (outputs, inputs) in sizes.items():
        for rows in ROWS:
            launch = launches[f"{name}.r{rows}"]
            assert (launch.constexprs["OUTPUTS"], launch.constexprs["INPUTS"]) == (outputs, inputs)
            assert launch.constexprs["ROWS"] == rows
            assert launch.constexprs["HAS_BIAS"] is False
            if name in ("qkv", "up", "head"):
                assert launch.constexprs["EPSILON"] == launches[f"{name}.norm"].constexprs["EPSILON"] == 1e-5
                assert launch.constexprs["RELU_SQUARED"] is (name == "up")
                assert launch.constexprs["HAS_NORM"] is (rows == 1)
                assert dict(launch.arguments)["out_ptr"] == ("*fp32" if name == "head" else "*T")
    assert _chosen(launches["up.norm"], "BLOCK_IN") == (4096, 8, 1)
    assert _chosen(launches["Argmax.argmax"], "VOCAB", "PARTS", "BLOCK") == (256000, 256, 1024, 4, 1)
    assert _chosen(launches["Argmax.argmax_combine"], "PARTS") == (256, 4, 1)
    assert launches["TopCandidates.candidates"].grid == (GridAxis(1, ("B",)), GridAxis(125))
    assert _chosen(launches["TopCandidates.candidates_merge"], "LOG_BLOCK", "LOG_COUNT") == (11, 7, 8, 1)
    exact = {"update.decode", "update.many", "TopCandidates.candidates", "TopCandidates.candidates_merge"}
    assert {key for key, launch in launches.items() if not launch.fp_fusion} == exact
    assert not any(launch.pdl for launch in MINITRON_4B.launches(Gpu(80, 108)).values())


def test_nothing_is_compiled_that_no_node_asks_for() -> None:
    headless = dataclasses.replace(MINITRON_4B, outputs=0, sequences=3)
    assert not {"head", "Argmax", "TopCandidates"} & set(headless.requests)
    assert {"o.r4", "up.norm"} < set(headless.launches())
    assert "o.r8" not in headless.launches()
    # of one sequence no row is normalised apart
    assert set(TINY.launches()) == {
        "update.decode", "update.many", "attention.prefill", "attention.r1", "attention.combine1", "fused.r1",
        "fused.combine1", "qkv.r1", "up.r1", "head.r1", "o.r1", "down.r1", "Argmax.argmax", "Argmax.argmax_combine",
        "TopCandidates.candidates", "TopCandidates.candidates_merge",
    }  # fmt: skip
    # one part is not combined
    short = dataclasses.replace(TINY, capacity=32)
    assert not [key for key in short.launches() if key.startswith(("attention.c", "fused.c"))]
    update = TINY.requests["update"]
    for tokens, variants in ((1, {"decode"}), (7, {"many"})):
        qkv, cos, sin, _, *rest = update.shapes
        shapes = ((None, tokens, qkv[2]), cos, sin, (None, tokens), *rest)
        assert set(launches_of(dataclasses.replace(update, shapes=shapes), H100)) == variants
    # any number of tokens has any number of rows
    shapes = tuple((None, None, *shape[2:]) if len(shape) == 3 else shape for shape in TINY.requests["up"].shapes)
    assert {f"r{rows}" for rows in ROWS} < set(
        launches_of(dataclasses.replace(TINY.requests["up"], shapes=shapes), H100)
    )


def test_an_op_without_kernels_is_refused() -> None:
    with pytest.raises(GraphError, match=r"Gelu: found no kernels; expected one of Packed.*TopCandidates"):
        launches_of(logits_request("Gelu", 5), H100)


def _odd() -> ModelSizes:
    return dataclasses.replace(MINITRON_4B, hidden=1100, head_dim=40, rotary_dim=20, intermediate=1032, outputs=70)


def test_what_is_asked_of_the_l2_cache_ends_with_the_row_and_is_aligned() -> None:
    wanted = {}
    for sizes in (MINITRON_4B, TINY, _odd()):
        for key, launch in sizes.launches().items():
            if key.split(".")[0] not in ("qkv", "up", "head", "o", "down") or key.endswith("norm"):
                continue
            inputs, tile, count = (int(launch.constexprs[name]) for name in ("INPUTS", "BLOCK_IN", "PREFETCH"))
            assert count == 0 or tile + count <= inputs
            assert inputs * 2 % 16 == count * 2 % 16 == 0 or count == 0
            wanted[sizes.hidden, key] = count
    assert wanted[3072, "o.r1"] == wanted[3072, "up.r8"] == 512
    # a row with a norm reads ahead by itself
    assert wanted[3072, "up.r1"] == 0
    # 2,200 bytes a row are no multiple of 16; 2,064 are, of which the first tile leaves 16
    assert wanted[1100, "up.r8"] == 0
    assert wanted[1100, "down.r1"] == 8
    # before sm_90 there is neither the request nor a kernel that waits
    assert not any(launch.constexprs.get("PREFETCH") for launch in MINITRON_4B.launches(Gpu(89, 142)).values())


def test_rows_and_their_buckets() -> None:
    assert [row_bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 64)] == [1, 2, 4, 4, 8, 8, 8, 8]
    launch = MINITRON_4B.launches()["o.r8"]
    assert launch.grid_of(B=8, S=1)[1] == 1
    assert launch.grid_of(B=9, S=1)[1] == 2
