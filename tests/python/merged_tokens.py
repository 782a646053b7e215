"""Looks that a folder of hone's gives transformers the tokens that hone itself has.

Usage: merged_tokens.py MODEL_DIR QUESTIONS_JSON

QUESTIONS_JSON holds [{"question": ..., "tokens": [...]}, ...]: what hone's template and tokenizer make of
a chat with one question.
"""

import json
import sys

from transformers import AutoTokenizer

folder, questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(questions) as file:
    asked = json.load(file)
for one in asked:
    chat = [{"role": "user", "content": one["question"]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens == one["tokens"], (one["question"], tokens, one["tokens"])
# Digits are cut one by one, which a file that has lost the rule for words does not do.
assert len(tokenizer("1234567", add_special_tokens=False)["input_ids"]) == 7
print(f"{len(asked)} chats have the same tokens")
