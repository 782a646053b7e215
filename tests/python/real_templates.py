"""Judges what hone makes of chat templates that others wrote, by transformers.

    real_templates.py CASES DATE

DATE is the day that templates write as today's. CASES is a JSON list of cases: the folder of a model with the template, a conversation as OpenAI's clients write it, the
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
import datetime
import functools
import itertools
import json
import pathlib
import re
import sys

from transformers import AutoTokenizer
from transformers.utils import chat_template_utils


class FixedDate(datetime.datetime):
    """The day on which hone renders the cases."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(sys.argv[2])


chat_template_utils.datetime = FixedDate
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


def refused_turn(case):
    """The index of the message that a refusal names."""
    return int(re.search(r"message (\d+)", case["refusal"]).group(1))


def with_stand_ins(case, kind):
    """The case with a word of its own in the place of each part of a kind."""
    case = copy.deepcopy(case)
    if kind == "content":
        case["messages"][refused_turn(case)]["content"] = STAND_IN
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
    "does not write the content": "content",
}


def texts_through(case):
    """Of each form: the prompt of the refused turn, and the text through it."""
    index = refused_turn(case)
    for form in forms(case["messages"], case["nine_letter_ids"]):
        if type(form[index].get("content")) is not type(case["messages"][index].get("content")):
            continue
        try:
            yield index, render(case, form, index, True)[0], render(case, form, index + 1, False)[0]
        except Exception:
            continue


def never_ends(case):
    """Whether no token at which generation stops follows the refused turn's answer."""
    tokenizer = tokenizer_of(case["folder"])
    stops = [tokenizer.decode([stop]) for stop in case["stops"]]
    for index, prompt, text in texts_through(case):
        message = case["messages"][index]
        calls = [call["function"]["name"] for call in message.get("tool_calls") or []]
        content = message.get("content")
        last = calls[-1] if calls else content if isinstance(content, str) else content[-1]["text"]
        behind = text.rsplit(last.split("</think>")[-1].strip(), 1)[-1]
        if any(stop in behind for stop in stops):
            return False
    return True


def never_meets(case):
    """Whether the refused turn's text never begins with its prompt."""
    return not any(text.startswith(prompt) for _, prompt, text in texts_through(case))


def stops_within(case):
    """Whether a token at which generation stops stands before the end of the refused turn's content."""
    stop = re.search(r'writes "([^"]+)", at which', case["refusal"]).group(1)
    for index, prompt, text in texts_through(case):
        message = case["messages"][index]
        calls = [call["function"]["name"] for call in message.get("tool_calls") or []]
        last = calls[-1] if calls else message["content"].split("</think>")[-1].strip()
        if stop in text[len(prompt) : text.rfind(last)]:
            return True
    return False


# What a refusal says of a turn, and how it is looked for in transformers' texts.
REASONS = {
    "no end-of-turn token follows": never_ends,
    "unlike the prompt that serving sends": never_meets,
    "at which the model stops, within this turn": stops_within,
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
        return [] if any(error.rstrip(".") in refusal for error in errors) else [f"transformers says {errors[0]!r}"]
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
    for words, is_right in REASONS.items():
        if words in refusal:
            counts[f"refusals: {words}"] += 1
            return [] if is_right(case) else [f"transformers renders {texts[0]!r}"]
    # Training renders the beginnings of a conversation too, as serving will.
    for count, is_prompt in itertools.product(range(1, len(case["messages"]) + 1), [True, False]):
        for form in forms(case["messages"], case["nine_letter_ids"]):
            try:
                render(case, form, count, is_prompt)
            except Exception as error:
                if str(error).rstrip(".") in refusal:
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
