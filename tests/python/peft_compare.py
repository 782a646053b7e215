"""Loads an adapter of hone's into Hugging Face PEFT, or a whole model of hone's into transformers, and
compares logits with hone's own.

Usage: peft_compare.py BASE MADE_DIR LOGITS_SAFETENSORS

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

base, made, theirs = (pathlib.Path(argument) for argument in sys.argv[1:])
torch.manual_seed(0)
if base.is_dir():
    base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
else:
    base = AutoModelForCausalLM.from_pretrained(
        base.parent, gguf_file=base.name, dtype=torch.float32
    )
base.eval()
tensors = load_file(theirs)
cases = [name.removeprefix("ids.") for name in tensors if name.startswith("ids.")]
assert len(cases) >= 3, cases


def logits(model, ids):
    with torch.no_grad():
        return model(ids.to(torch.long)[None]).logits[0]


plain = {case: logits(base, tensors[f"ids.{case}"]) for case in cases}
if (made / "adapter_config.json").exists():
    tuned = PeftModel.from_pretrained(base, made)
else:
    tuned = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
tuned.eval()
largest, effect = 0.0, 0.0
for case in cases:
    ours = logits(tuned, tensors[f"ids.{case}"])
    largest = max(largest, (ours - tensors[f"logits.{case}"]).abs().max().item())
    effect = max(effect, (ours - plain[case]).abs().max().item())
print(f"largest difference {largest:.2e}; what was trained changes logits by up to {effect:.2f}")
assert effect > 0.1, "what was trained has hardly an effect: the comparison would prove nothing"
assert largest < 1e-3, "hone and PEFT differ"
