"""Judges what hone trains on, turn by turn, by transformers.

    template_rule.py MODEL CASES LOSSES

MODEL is the folder of a tiny model; CASES a JSON list of cases: a template, a conversation, and the views that hone
makes of it (token ids, and which of them carry loss). For every trained turn the tokens before the supervised span
must be those of the prompt that `apply_chat_template(..., add_generation_prompt=True)` makes of the messages before
it, and the span must end with the token at which generation stops. Where transformers' text of the conversation
through the turn begins with that prompt, the span must be the rest of that text. LOSSES is for the mean loss of
each view in transformers, to be compared with hone's. Prints what differs; exits with 1 where anything does.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, cases_file, losses_file = (pathlib.Path(argument) for argument in sys.argv[1:4])
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
wrong, losses, joined = [], [], 0


def spans(mask):
    """First and last-but-one index of each run of supervised tokens."""
    found, start = [], None
    for index, counts in enumerate(mask + [0]):
        if counts and start is None:
            start = index
        if not counts and start is not None:
            found.append((start, index))
            start = None
    return found


def render(case, count, is_prompt):
    text = tokenizer.apply_chat_template(
        case["messages"][:count],
        tools=case["tools"] or None,
        chat_template=case["template"],
        add_generation_prompt=is_prompt,
        tokenize=False,
        **case["settings"],
    )
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


for case in json.loads(cases_file.read_text()):
    name = f"{case['name']}, {case['kind']}"
    found = [(view, span) for view in case["views"] for span in spans(view["mask"])]
    turns = [i for i, m in enumerate(case["messages"]) if m["role"] == "assistant" and m.get("weight", 1)]
    if len(found) != len(turns):
        wrong.append(f"{name}: {len(found)} spans for {len(turns)} trained turns")
        continue
    for (view, (start, end)), turn in zip(found, turns):
        ids = view["ids"]
        prompt, prompt_ids = render(case, turn, True)
        if ids[:start] != prompt_ids:
            wrong.append(f"{name}, message {turn}: before the span stands {tokenizer.decode(ids[:start])!r}, and the prompt is {prompt!r}")
        if ids[end - 1] != tokenizer.eos_token_id:
            wrong.append(f"{name}, message {turn}: the span ends with {tokenizer.decode(ids[end - 1])!r}")
        through, through_ids = render(case, turn + 1, False)
        if through.startswith(prompt) and through_ids[:start] == prompt_ids:
            stop = through_ids.index(tokenizer.eos_token_id, start) + 1
            if ids[start:end] != through_ids[start:stop]:
                wrong.append(f"{name}, message {turn}: the span is {tokenizer.decode(ids[start:end])!r} and the text {tokenizer.decode(through_ids[start:stop])!r}")
        else:
            joined += 1
            said = case["messages"][turn].get("content") or ""
            answer = said.split("</think>")[-1].strip() if isinstance(said, str) else said[-1]["text"]
            if answer not in tokenizer.decode(ids[start:end]):
                wrong.append(f"{name}, message {turn}: the span {tokenizer.decode(ids[start:end])!r} lacks {answer!r}")
    for view in case["views"]:
        labels = torch.tensor([[i if m else -100 for i, m in zip(view["ids"], view["mask"])]])
        with torch.no_grad():
            losses.append(float(model(torch.tensor([view["ids"]]), labels=labels).loss))
losses_file.write_text(json.dumps(losses))
print(f"{len(losses)} views, {joined} turns whose text transformers does not begin with the prompt")
for line in wrong:
    print(line)
sys.exit(1 if wrong else 0)
