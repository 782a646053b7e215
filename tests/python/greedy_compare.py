"""Says whether transformers in 32-bit floats would have written the same answers, token for token.

Usage: greedy_compare.py BASE TOKENS_SAFETENSORS

BASE is a .gguf file or a folder in Hugging Face layout. The safetensors file holds pairs `prompt.N` and
`answer.N` of token ids, which hone wrote greedily. One pass over prompt and answer is enough: where the
likeliest token of every position is the one that follows, greedy decoding writes just these.
"""

import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base, tokens = (pathlib.Path(argument) for argument in sys.argv[1:])
if base.is_dir():
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
else:
    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)
model.eval()
tensors = load_file(tokens)
cases = sorted(int(name.removeprefix("prompt.")) for name in tensors if name.startswith("prompt."))
compared = 0
for case in cases:
    prompt, answer = (tensors[f"{part}.{case}"].to(torch.long) for part in ("prompt", "answer"))
    with torch.no_grad():
        logits = model(torch.cat([prompt, answer])[None]).logits[0]
    places = logits[len(prompt) - 1 : -1]
    wrong = (places.argmax(-1) != answer).nonzero().flatten().tolist()
    if wrong:
        first = wrong[0]
        best = places[first].topk(2).values
        raise SystemExit(f"question {case}: token {first} differs; transformers' two likeliest are "
                         f"{(best[0] - best[1]).item():.1e} apart")
    compared += len(answer)
print(f"{len(cases)} answers, {compared} tokens: all the same")
