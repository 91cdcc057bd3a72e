"""Writes a checkpoint of a published shape with random weights, for measurements that no real weight is needed for.

    python ci/gpu/random_checkpoint.py FOLDER --model Minitron-4B [--layers 2] [--set hidden_size=4608]

Projections and embeddings are drawn from N(0, 0.02²), norms around weight 0 and bias 0 (gamma is weight + 1), so that
activations keep an ordinary size through all layers. Numbers are made on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from safetensors.torch import save_file
from support.raw_checkpoints import PUBLISHED

from nemotron_export.checkpoint.expected import expected_tensors
from nemotron_export.config.config import NemotronConfig

_DEVIATION = 0.02
_EXTRA_TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def main() -> None:
    """One checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(PUBLISHED), default="Minitron-4B")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values of config.json")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", action="store_true", help="a byte-level one, which some tools insist on")
    arguments = parser.parse_args()
    raw = {**PUBLISHED[arguments.model], **_EXTRA_TOKENS, "dtype": arguments.dtype}
    if arguments.layers is not None:
        raw["num_hidden_layers"] = arguments.layers
    raw |= {key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)}
    config = NemotronConfig.from_dict(raw)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(arguments.seed)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        drawn = torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * _DEVIATION
        tensors[name] = drawn.to(getattr(torch, arguments.dtype)).cpu()
    arguments.folder.mkdir(parents=True)
    (arguments.folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, arguments.folder / "model.safetensors", metadata={"format": "pt"})
    if arguments.tokenizer:
        # it imports transformers
        from support.checkpoints import write_tokenizer

        write_tokenizer(arguments.folder / "tokenizer.json")
        named = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (arguments.folder / "tokenizer_config.json").write_text(json.dumps(named) + "\n", encoding="utf-8")
    print(f"{arguments.folder}: {sum(t.nbytes for t in tensors.values()) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
