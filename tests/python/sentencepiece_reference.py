"""Writes tests/data/sentencepiece.json: two small vocabularies and what SentencePiece makes of texts.

`llama` puts a space before a text, as Llama 2 does, `gemma` does not. Both fall back to bytes. Of a text
with symbols in it, `llama` puts the space before each part between them, as llama.cpp and Llama 2's own
tokenizer.json do.
"""

import io
import json
import re
import sys

import sentencepiece

CORPUS = [
    "the quick brown fox jumps over the lazy dog near the river bank",
    "a model reads tokens and writes the next token after the other tokens",
    "training on a small set of examples makes the loss fall step by step",
    "she sells sea shells by the sea shore and the shells she sells are sea shells",
    "numbers such as 12 and 345 and 6789 are split into digits",
    "def function(argument): return argument + 1",
    "Über Straßen fährt ein Auto; où est la bibliothèque?",
]
TEXTS = [
    "",
    "a",
    " a",
    "the other river",
    "the  other   river ",
    "  leading and trailing  ",
    "line one\nline two\n\n\tindented",
    "She sells sea-shells, 1234 of them!",
    "aaaa aaaaa aaaaaa",
    "Straßen où 漢字 🚀 é",
    "def f(x): return x + 1  # ok",
    "<start>hello<end> the next",
    "hello<start> the <end>",
    "under_score and ▁ itself",
]


def train(**more):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=model,
        vocab_size=480,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<start>", "<end>"],
        minloglevel=2,
        **more,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def encode(model, text, prefix):
    if not prefix:
        return model.EncodeAsIds(text)
    ids = []
    for part in re.split("(<start>|<end>)", text):
        ids += [model.PieceToId(part)] if part.startswith("<") else model.EncodeAsIds(part)
    return ids


def kind(model, piece):
    if model.IsUnknown(piece):
        return 2
    if model.IsControl(piece):
        return 3
    if model.IsByte(piece):
        return 6
    return 4 if model.IdToPiece(piece) in ("<start>", "<end>") else 1


reference = {}
for name, prefix in [("llama", True), ("gemma", False)]:
    model = train(add_dummy_prefix=prefix)
    pieces = range(model.GetPieceSize())
    reference[name] = {
        "pieces": [model.IdToPiece(piece) for piece in pieces],
        "scores": [model.GetScore(piece) for piece in pieces],
        "kinds": [kind(model, piece) for piece in pieces],
        "cases": [{"text": text, "ids": encode(model, text, prefix)} for text in TEXTS],
    }
json.dump(reference, sys.stdout, ensure_ascii=False)
