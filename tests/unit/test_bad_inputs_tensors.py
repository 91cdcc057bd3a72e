"""Configs that are no Nemotron, and weights that do not fit their config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemotron_errors import ConfigError
from support.bad_inputs import Case, check, parametrize
from support.raw_checkpoints import TINY, Tensors, draw, tensors_of, write_checkpoint, write_config

SINGLE = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def config(**changes: Any) -> Callable[[Path], None]:
    """A config.json with some keys changed; None removes a key."""
    changed = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
    return lambda folder: write_config(folder, changed)


def config_text(text: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)


def of_config(name: str, change: Callable[[Path], Any], found: str, expected: str, remedy: str) -> Case:
    return Case(name, change, "config.json", found, expected, remedy, ConfigError)


def weights(change: Callable[[Tensors], Any], config: dict[str, Any] = TINY) -> Callable[[Path], None]:
    """The good tensors after a change, under a config."""

    def break_it(folder: Path) -> None:
        tensors = tensors_of(TINY)
        change(tensors)
        (folder / SINGLE).unlink()
        write_checkpoint(folder, config, tensors)

    return break_it


def put(name: str, dtype: str = "BF16", shape: tuple[int, ...] = (24,)) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: (dtype, shape, draw(shape, dtype))})


def drop(*endings: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(endings)]:
            del tensors[name]

    return change


def drop_layer(layer: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if f"layers.{layer}." in name]:
            del tensors[name]

    return change


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def cast(names: Callable[[str], bool], dtype: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name, (_, shape, _) in list(tensors.items()):
            if names(name):
                tensors[name] = (dtype, shape, draw(shape, dtype))

    return change


def gated(tensors: Tensors) -> None:
    put("model.layers.0.mlp.gate_proj.weight", shape=(32, 24))(tensors)
    put("model.layers.1.mlp.gate_proj.weight", shape=(32, 24))(tensors)


def nothing(tensors: Tensors) -> None:
    pass


TIED = {**TINY, "tie_word_embeddings": True}
BIASED = {**TINY, "mlp_bias": True}
TWICE = '{"model_type": "nemotron", "vocab_size": 40, "vocab_size": 41}'

CONFIGS = [
    of_config("another model", config(model_type="llama"), "'llama'", "'nemotron'", "Nemotron checkpoint"),
    of_config("no model_type", config(model_type=None), "model_type None", "'nemotron'", "Nemotron checkpoint"),
    of_config("another architecture", config(architectures=["LlamaForCausalLM"]), "LlamaForCausalLM",
              "NemotronForCausalLM", "Nemotron checkpoint"),
    of_config("architectures a text", config(architectures="NemotronForCausalLM"), "'NemotronForCausalLM'", "a list",
              "correct"),
    of_config("silu", config(hidden_act="silu"), "'silu'", "'relu2'", "correct"),
    of_config("negative size", config(hidden_size=-24), "-24", "whole number", "correct"),
    of_config("zero layers", config(num_hidden_layers=0), "= 0", "whole number", "correct"),
    of_config("size a text", config(vocab_size="40"), "'40'", "whole number", "correct"),
    of_config("size a float", config(intermediate_size=32.0), "32.0", "whole number", "correct"),
    of_config("size a bool", config(num_attention_heads=True), "True", "whole number", "correct"),
    of_config("size past 2^31", config(num_hidden_layers=1 << 40), str(1 << 40), "whole number", "correct"),
    of_config("heads do not divide", config(num_key_value_heads=3), "num_key_value_heads 3", "multiple", "correct"),
    of_config("hidden size by heads", config(head_dim=None, num_attention_heads=5, num_key_value_heads=5),
              "no head_dim", "a head_dim", "add head_dim"),
    of_config("odd rotary width", config(partial_rotary_factor=0.4), "3", "even", ""),
    of_config("no rotation", config(partial_rotary_factor=0.0), "0", "", ""),
    of_config("unknown rope", config(rope_scaling={"rope_type": "spiral", "factor": 2.0}), "spiral", "linear", ""),
    of_config("rope theta a text", config(rope_theta="1e4"), "1e4", "number", ""),
    of_config("two rope layouts", config(rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 5e5,
              "partial_rotary_factor": 0.5}), "rope_theta", "", ""),
    of_config("eps zero", config(norm_eps=0), "norm_eps = 0", "above 0", "correct"),
    of_config("eps a text", config(norm_eps="1e-5"), "'1e-5'", "number", "correct"),
    of_config("tie a text", config(tie_word_embeddings="false"), "'false'", "true or false", "correct"),
    of_config("eos past the vocabulary", config(eos_token_id=40), "40", "0 to 39", "correct"),
    of_config("unknown key", config(sliding_window=128), "sliding_window = 128", "only keys", "remove"),
    of_config("quantization", config(quantization_config={"bits": 4}), "quantization_config", "only keys", "remove"),
    of_config("dtype fp8", config(dtype="float8_e4m3fn"), "float8_e4m3fn", "bfloat16", "correct"),
    of_config("kv_channels differ", config(kv_channels=16), "kv_channels 16", "one value", "remove"),
    Case("labels a number", config(id2label=5), "config.json", "id2label = 5", "object", "correct", ConfigError,
         task="sequence-classification"),
    Case("no labels", config(id2label={}), "config.json", "id2label = {}", "object", "correct", ConfigError,
         task="token-classification"),
    Case("labels negative", config(num_labels=-3), "config.json", "num_labels = -3", "1 or more", "correct",
         ConfigError, task="sequence-classification"),
    Case("broken config", config_text("{"), "config.json", "broken JSON", "JSON object", "again"),
    Case("config a list", config_text("[]"), "config.json", "list", "JSON object", "again"),
    Case("config twice", config_text(TWICE), "config.json", "'vocab_size' twice", "JSON object", "again"),
    Case("config not utf-8", config_text(b"\xff\xfe{}"), "config.json", "not UTF-8", "JSON object", "again"),
    Case("config infinite", config_text('{"rope_theta": Infinity}'), "config.json", "Infinity", "JSON object", "again"),
    Case("config empty", config_text(""), "config.json", "broken JSON", "JSON object", "again"),
]  # fmt: skip

TENSORS = [
    Case("missing norm", weights(drop("model.norm.weight")), "", "1 tensor missing: 'model.norm.weight'",
         "NemotronForCausalLM", "one checkpoint"),
    Case("missing lm_head", weights(drop("lm_head.weight")), "", "'lm_head.weight'", "24",
         "tie_word_embeddings to true"),
    Case("unexpected tensor", weights(put("model.extra")), "", "1 unexpected: 'model.extra'", "exactly the",
         "one checkpoint"),
    Case("unprintable name", weights(put("a\n\x1b[31m" + "x" * 300)), "", "'a\\n\\x1b[31mxxx", "exactly the", "one"),
    Case("gated mlp", weights(gated), "", "gate_proj", "exactly the", "gated MLP"),
    Case("biases unsaid", weights(put("model.layers.0.mlp.up_proj.bias", shape=(32,))), "", "up_proj.bias", "exactly",
         "mlp_bias to true"),
    Case("biases missing", weights(nothing, BIASED), "", "4 tensors missing", "exactly the", "mlp_bias to false"),
    Case("packed quantized", weights(put("model.layers.0.mlp.up_proj.qweight", "U8")), "", "qweight", "exactly the",
         "quantized"),
    Case("adapter tensors", weights(put("model.layers.0.mlp.up_proj.lora_A.weight")), "", "lora_A", "exactly", "merge"),
    Case("other names", weights(rename("model.", "gpt.")), "", "tensors missing", "exactly the", "one checkpoint"),
    Case("layer gap", weights(drop_layer(0)), "", "layer 0", "layers 0 to 1", "all of its shards"),
    Case("fewer layers", weights(nothing, {**TINY, "num_hidden_layers": 3}), "", "2 layers (0 to 1)", "3 layers",
         "one checkpoint"),
    Case("more layers", weights(nothing, {**TINY, "num_hidden_layers": 1}), "", "2 layers", "1 layer (",
         "one checkpoint"),
    Case("many layers", weights(nothing, {**TINY, "num_hidden_layers": 2**31 - 1}), "", "2 layers", "2147483647",
         "one checkpoint"),
    Case("a layer incomplete", weights(drop("layers.1.mlp.up_proj.weight")), "", f"missing: '{UP}'", "exactly the",
         "one"),
    Case("mis-shaped", weights(put(UP, shape=(24, 32))), "",
         f"1 tensor of another shape: '{UP}' of shape [24, 32] where config.json says [32, 24]",
         "config.json", "one checkpoint"),
    Case("another vocabulary", weights(nothing, {**TINY, "vocab_size": 41}), "", "2 tensors of another shape",
         "config.json", "one checkpoint"),
    Case("flattened", weights(put(UP, shape=(768,))), "", "[768]", "config.json", "one checkpoint"),
    Case("integer tensor", weights(put(NORM, "I64")), "", "of I64", "BF16, F16 or F32", "convert"),
    Case("int8 matrix", weights(put(UP, "I8", (32, 24))), "", "of I8", "BF16, F16 or F32", "quantized"),
    Case("fp8 matrix", weights(put(UP, "F8_E4M3", (32, 24))), "", "of F8_E4M3", "BF16, F16 or F32", "quantized"),
    Case("doubles", weights(put(UP, "F64", (32, 24))), "", "of F64", "BF16, F16 or F32", "convert"),
    Case("mixed matrices", weights(put(UP, "F16", (32, 24))), "", "1 of F16", "one dtype", ".to(dtype)"),
    Case("mixed half norms", weights(put(NORM, "F16")), "", f"'{NORM}' of F16", "BF16 or F32", "one dtype"),
    Case("tied and different", weights(nothing, TIED), "lm_head.weight", "differs", "equal tensors",
         "tie_word_embeddings to false"),
    Case("tied and another shape", weights(put("lm_head.weight", shape=(40, 12)), TIED), "lm_head", "differs", "equal",
         "tie_word_embeddings"),
    Case("another task", weights(nothing), "", "'score.weight'", "NemotronForSequenceClassification",
         "task causal-lm", task="sequence-classification"),
    Case("question answering from causal", weights(nothing), "", "tensors missing", "NemotronForQuestionAnswering",
         "task causal-lm", task="question-answering"),
    Case("no tensors", weights(lambda tensors: tensors.clear()), "", "24 tensors missing", "exactly the 24", "one"),
]  # fmt: skip


@parametrize([*CONFIGS, *TENSORS])
def test_refused_with_where_found_expected_remedy(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path / "checkpoint")


def test_the_good_checkpoint_is_good(tmp_path: Path) -> None:
    # Else every case above could fail for a reason of the fixture's.
    from nemotron_export.checkpoint import Checkpoint

    write_checkpoint(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == TINY
    assert len(Checkpoint.open(tmp_path / "a").tensors) == 24
