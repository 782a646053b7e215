"""Judges what hone makes of chat templates that others wrote, by transformers.

    real_templates.py CASES

CASES is a JSON list of cases: the folder of a model with the template, a conversation as OpenAI's clients write it, the
tokens at which generation stops, and what hone makes of the conversation: the views that it trains (token ids, and which of
them carry loss), or its refusal. transformers' users write a conversation in the form that a template takes: calls'
arguments as values or texts, ids of nine letters, absent content as an empty text, contents as lists. The judge tries
each form. For every trained turn the tokens before the supervised span must be those of the prompt that
`apply_chat_template(..., add_generation_prompt=True)` makes of the messages before it, and the span must be the rest of
transformers' text of the conversation through the turn up to the token at which generation stops, where that text
begins with the prompt. A refusal must be one that transformers gives as well in every form, in its words, or name what
transformers leaves out of its text. Prints what differs; exits with 1 where anything does.
"""

import collections
import copy
import functools
import itertools
import json
import pathlib
import sys

from transformers import AutoTokenizer

wrong = []
counts = collections.Counter()


@functools.cache
def tokenizer_of(folder):
    return AutoTokenizer.from_pretrained(folder)


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


def forms(messages, nine_letter_ids, with_reasoning_in_content=False):
    """The conversation in every form that a template may take, what hone tries first in front."""
    both, contents = [False, True], ["as given", "as texts", "as lists"]
    choices = itertools.product(both, both, both, contents, both if with_reasoning_in_content else [False])
    for nine, as_text, empty, as_what, in_content in choices:
        form = copy.deepcopy(messages)
        for message in form:
            content = message.get("content")
            if isinstance(content, list) and as_what == "as texts":
                message["content"] = "".join(part["text"] for part in content)
            if isinstance(content, str) and as_what == "as lists":
                message["content"] = [{"type": "text", "text": content}]
            if content is None and empty:
                message["content"] = ""
            if reasoning := message.get("reasoning_content"):
                message["reasoning"] = reasoning
                if in_content and isinstance(message.get("content"), str):
                    del message["reasoning_content"], message["reasoning"]
                    message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}"
            if nine and message.get("tool_call_id"):
                message["tool_call_id"] = nine_letter_ids[message["tool_call_id"]]
            for call in message.get("tool_calls") or []:
                if nine:
                    call["id"] = nine_letter_ids[call["id"]]
                if not as_text:
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        yield form


def render(case, form, count, is_prompt):
    tokenizer = tokenizer_of(case["folder"])
    text = tokenizer.apply_chat_template(
        form[:count], tools=case["tools"] or None, add_generation_prompt=is_prompt, tokenize=False
    )
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def differences(case, form):
    """What is wrong with the views, where transformers is given this form."""
    tokenizer = tokenizer_of(case["folder"])
    found = [(view, span) for view in case["views"] for span in spans(view["mask"])]
    turns = [i for i, m in enumerate(form) if m["role"] == "assistant" and m.get("weight", 1)]
    if len(found) != len(turns):
        return [f"{len(found)} spans for {len(turns)} trained turns"]
    said = []
    for (view, (start, end)), turn in zip(found, turns):
        ids = view["ids"]
        prompt, prompt_ids = render(case, form, turn, True)
        if ids[:start] != prompt_ids:
            said.append(f"message {turn}: before the span stands {tokenizer.decode(ids[:start])!r}, and the prompt is {prompt!r}")
        if ids[end - 1] not in case["stops"]:
            said.append(f"message {turn}: the span ends with {tokenizer.decode(ids[end - 1])!r}")
        through, through_ids = render(case, form, turn + 1, False)
        if through.startswith(prompt) and through_ids[:start] == prompt_ids:
            stop = next((i for i in range(start, len(through_ids)) if through_ids[i] in case["stops"]), None)
            if stop is None:
                said.append(f"message {turn}: transformers' text has no end: {through!r}")
            elif ids[start:end] != through_ids[start : stop + 1]:
                said.append(f"message {turn}: the span is {tokenizer.decode(ids[start:end])!r} and the text {tokenizer.decode(through_ids[start:stop + 1])!r}")
            counts["spans that continue transformers' prompt"] += 1
            continue
        # transformers' text parts from its own prompt: the answer itself must be there.
        counts["spans that transformers' text does not hold"] += 1
        content = case["messages"][turn].get("content") or ""
        answer = content.split("</think>")[-1].strip() if isinstance(content, str) else content[-1]["text"]
        if answer not in tokenizer.decode(ids[start:end]):
            said.append(f"message {turn}: the span {tokenizer.decode(ids[start:end])!r} lacks {answer!r}")
    return said


def judge_views(case):
    best = None
    for form in forms(case["messages"], case["nine_letter_ids"], with_reasoning_in_content=True):
        try:
            said = differences(case, form)
        except Exception as error:
            said = [f"transformers refuses: {error}"]
        if not said:
            return []
        if best is None or best[0].startswith("transformers refuses"):
            best = said
    return best


STAND_IN = "zqstandin"


def with_stand_ins(case, kind):
    """The case with a word of its own in the place of each part of a kind."""
    case = copy.deepcopy(case)
    if kind == "tools":
        for tool in case["tools"] or []:
            tool["function"]["name"] = STAND_IN
    for message in case["messages"]:
        content = message.get("content")
        if kind == "calls":
            for call in message.get("tool_calls") or []:
                call["function"]["name"] = STAND_IN
        if kind == "reasoning" and message.get("reasoning_content"):
            message["reasoning_content"] = STAND_IN
        if kind == "reasoning" and isinstance(content, str) and "</think>" in content:
            message["content"] = f"<think>{STAND_IN}</think>{content.split('</think>')[1]}"
    return case


# What a refusal says that a template leaves out.
LOST = {
    "does not write tools": "tools",
    "does not write tool calls": "calls",
    "does not write the reasoning": "reasoning",
}


def judge_refusal(case):
    refusal = case["refusal"]
    texts, errors = [], []
    for form in forms(case["messages"], case["nine_letter_ids"]):
        try:
            texts.append(render(case, form, len(form), False)[0])
        except Exception as error:
            errors.append(str(error))
    if not texts:
        counts["refusals in transformers' words"] += 1
        return [] if any(error in refusal for error in errors) else [f"transformers says {errors[0]!r}"]
    for words, kind in LOST.items():
        if words not in refusal:
            continue
        counts[f"refusals: {words}"] += 1
        probe = with_stand_ins(case, kind)
        for form in forms(probe["messages"], case["nine_letter_ids"]):
            try:
                text = render(probe, form, len(form), False)[0]
            except Exception:
                continue
            # A call that was printed as Python prints a dict would be no call.
            if STAND_IN in text and "{'" not in text:
                return [f"transformers writes the {kind}: {text!r}"]
        return []
    # Training renders the beginnings of a conversation too, as serving will.
    for count, is_prompt in itertools.product(range(1, len(case["messages"]) + 1), [True, False]):
        for form in forms(case["messages"], case["nine_letter_ids"]):
            try:
                render(case, form, count, is_prompt)
            except Exception as error:
                if str(error) in refusal:
                    counts["refusals of a beginning, in transformers' words"] += 1
                    return []
    return [f"transformers renders {texts[0]!r}"]


for case in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    said = judge_refusal(case) if "refusal" in case else judge_views(case)
    name = f"{case['template']}, {case['kind']}"
    refusal = f"hone says {case['refusal']!r}, " if "refusal" in case else ""
    wrong += [f"{name}: {refusal}{line}" for line in said]
print(dict(counts))
for line in wrong:
    print(line)
sys.exit(1 if wrong else 0)
