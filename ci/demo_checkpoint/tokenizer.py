"""Train the demo's SentencePiece tokenizer, write its tokenizer.json, check that both agree, and encode the corpus.

    python ci/demo_checkpoint/tokenizer.py --corpus .carry/demo --assets nemotron_export/assets/demo

writes tokenizer.model, tokenizer.json and tokenizer_config.json into the assets, and train.bin and heldout.bin
(uint16 token ids, every document as bos … eos) next to the corpus.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import sentencepiece
import typer
from corpus import SEPARATOR
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from typer import Option

__all__ = ["BOS", "EOS", "PAD", "UNK", "VOCAB_SIZE", "main", "mismatches", "tokenizer_json", "train_sentencepiece"]

VOCAB_SIZE = 4096
PAD, UNK, BOS, EOS = 0, 1, 2, 3
_SPACE = "\u2581"
# The corpus is ASCII; these keep byte fallback, odd spaces and long runs under test.
_HARD_TEXTS = (
    "",
    " ",
    "  two  spaces ",
    "\ttab\n\n newline\r\n",
    "na\u00efve caf\u00e9 \u2581 \U0001f600 \u6f22\u5b57",
    "-" * 71,
    "=" * 40 + " aaaaaaaaaaaaaaaaaaaaaa",
    "x = {'key': [1, 2, 3.14159e-10]}  # 0123456789",
    "\x00\x01\x7f",
)


def train_sentencepiece(lines: Iterable[str], vocab_size: int = VOCAB_SIZE) -> bytes:
    """A BPE model (serialised) with byte fallback; text is taken as it is, newlines become the byte piece <0x0A>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
        character_coverage=1.0, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, max_sentence_length=1 << 20, num_threads=1, minloglevel=1,
        pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS,
        pad_piece="<pad>", unk_piece="<unk>", bos_piece="<s>", eos_piece="</s>",
    )  # fmt: skip
    return model.getvalue()


def tokenizer_json(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same tokenizer for the tokenizers library; encoding with special tokens puts bos in front.

    SentencePiece merges the neighbours whose joint piece scores best, the leftmost first; pieces are numbered by
    falling score. So every way to split a piece into two others is a merge, ranked by the piece's id.
    """
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    ordinary = {
        piece
        for i, piece in enumerate(pieces)
        if not (processor.IsControl(i) or processor.IsUnknown(i) or processor.IsByte(i))
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(ordinary, key=vocab.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    special = [AddedToken(pieces[i], special=True, normalized=False) for i in (PAD, UNK, BOS, EOS)]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """What transformers' AutoTokenizer reads: the fast tokenizer, bos before a text, nothing after it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "padding_side": "left",
        "model_max_length": 2048, "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip


def mismatches(
    processor: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer, texts: Iterable[str]
) -> list[tuple[str, str]]:
    """(text, what differs) wherever ids, decoded text or the round trip differ."""
    wrong = []
    for text in texts:
        expected = list(processor.EncodeAsIds(text))
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            wrong.append((text, f"ids {found} instead of {expected}"))
        elif tokenizer.decode(found) != processor.DecodeIds(expected):
            wrong.append((text, f"decoded {tokenizer.decode(found)!r} instead of {processor.DecodeIds(expected)!r}"))
        elif tokenizer.decode(found) != text.replace(_SPACE, " "):
            wrong.append((text, f"came back as {tokenizer.decode(found)!r}"))
    return wrong


def main(
    corpus: Annotated[Path, Option(help="folder with train.txt and heldout.txt")],
    assets: Annotated[Path, Option(help="folder for the tokenizer's files")],
) -> None:
    """Writes the tokenizer's files and the encoded corpus."""
    documents = {name: (corpus / f"{name}.txt").read_bytes().decode().split(SEPARATOR) for name in ("train", "heldout")}
    model = train_sentencepiece(line for document in documents["train"] for line in document.split("\n"))
    assets.mkdir(parents=True, exist_ok=True)
    (assets / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = tokenizer_json(processor)
    tokenizer.save(str(assets / "tokenizer.json"))
    (assets / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n", encoding="utf-8")

    lines = [line for document in documents["heldout"] for line in document.split("\n")]
    texts = [*_HARD_TEXTS, *lines, *documents["heldout"], *documents["train"][::20]]
    wrong = mismatches(processor, tokenizer, texts)
    print(f"tokenizer.model against tokenizer.json: {len(texts)} texts, {len(wrong)} mismatches")
    if wrong:
        raise SystemExit("\n".join(f"{text[:80]!r}: {what[:300]}" for text, what in wrong[:10]))

    for name, texts in documents.items():
        ids = [[BOS, *document_ids, EOS] for document_ids in processor.Encode(texts)]
        tokens = np.concatenate([np.asarray(x, dtype=np.uint16) for x in ids])
        tokens.tofile(corpus / f"{name}.bin")
        characters = sum(map(len, texts))
        print(f"{name}: {len(tokens):,} tokens, {characters / len(tokens):.2f} characters per token")


if __name__ == "__main__":
    typer.run(main)
