"""Loads adapters of hone's into Hugging Face PEFT, or whole models of hone's into transformers, and
compares logits with hone's own.

Usage: peft_compare.py BASE MADE_DIR LOGITS_SAFETENSORS [BASE MADE_DIR LOGITS_SAFETENSORS ...]

BASE is a .gguf file or a folder in Hugging Face layout; MADE_DIR holds the adapter or the model.

The safetensors file holds pairs `ids.N` (token ids) and `logits.N` (`[tokens, vocabulary]`), which
hone computed in 32-bit floating point.
"""

import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def load_base(base):
    if base.is_dir():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            base.parent, gguf_file=base.name, dtype=torch.float32
        )
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(ids.to(torch.long)[None]).logits[0]


def compare(base, made, theirs):
    torch.manual_seed(0)
    model = load_base(base)
    tensors = load_file(theirs)
    cases = [name.removeprefix("ids.") for name in tensors if name.startswith("ids.")]
    assert len(cases) >= 3, cases
    plain = {case: logits(model, tensors[f"ids.{case}"]) for case in cases}
    if (made / "adapter_config.json").exists():
        tuned = PeftModel.from_pretrained(model, made)
    else:
        tuned = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    tuned.eval()
    largest, effect = 0.0, 0.0
    for case in cases:
        ours = logits(tuned, tensors[f"ids.{case}"])
        largest = max(largest, (ours - tensors[f"logits.{case}"]).abs().max().item())
        effect = max(effect, (ours - plain[case]).abs().max().item())
    print(f"{made}: largest difference {largest:.2e}")
    print(f"what was trained changes logits by up to {effect:.2f}")
    assert effect > 0.1, "what was trained has hardly an effect: the comparison would prove nothing"
    assert largest < 1e-3, "hone and PEFT differ"


arguments = [pathlib.Path(argument) for argument in sys.argv[1:]]
assert arguments and len(arguments) % 3 == 0, "three arguments for each comparison"
for place in range(0, len(arguments), 3):
    compare(*arguments[place : place + 3])
