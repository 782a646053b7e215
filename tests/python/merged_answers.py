"""Looks that a folder of hone's answers in transformers as hone taught it, and stops there.

Usage: merged_answers.py MODEL_DIR QUESTION ANSWER

Everything comes from the folder: model, tokenizer, chat template and where generation stops, by
transformers' own rules and by those of vLLM's loader.
"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder, question, answer = sys.argv[1:]
MOST = 60


def ids(value):
    return set(value if isinstance(value, list) else [] if value is None else [value])


# Code of the base's would be asked for here.
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
text = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
)
prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
with torch.no_grad():
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=MOST,
        do_sample=False,
        temperature=None,
        top_p=None,
    )
written = made[0, prompt.shape[1] :].tolist()
said = tokenizer.decode(written, skip_special_tokens=True)
assert said == answer, (said, answer)
assert len(written) < MOST, "it did not stop"
# vLLM stops at the tokenizer's end of text, and at the tokens of generation_config.json, or without
# that file at those of config.json.
try:
    generation = GenerationConfig.from_pretrained(folder)
except OSError:
    generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
stops = ids(tokenizer.eos_token_id) | ids(generation.eos_token_id)
assert written[-1] in stops, (written, stops)
print(f"{folder}: answers {said!r} in {model.dtype} and stops at {written[-1]}")
