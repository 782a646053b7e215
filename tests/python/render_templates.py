"""Writes tests/data/golden_families.json: what transformers renders with tests/data/templates.

For each template and conversation: the text of the whole conversation and of the prompt for an answer
to it, or null where the template refuses it; for `marked`, also the spans that it marks.
"""

import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parent.parent / "data"
BORDERS = {
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "gemma2": ("<bos>", "<eos>"),
    "gemma3": ("<bos>", "<eos>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "zephyr": ("<s>", "</s>"),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <two> numbers & \"returns\" the sum: x + y",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 1.5}},
                "required": ["x"],
            },
        },
    }
]


def call(number, arguments):
    function = {"name": "add", "arguments": arguments}
    return [{"id": f"callid00{number}", "type": "function", "function": function}]


CONVERSATIONS = [
    {
        "name": "two turns",
        "messages": [
            {"role": "user", "content": "  What is 1 + 2?\n"},
            {"role": "assistant", "content": "\n3, of course.  "},
            {"role": "user", "content": "Très bien! 漢字 \"quoted\" {{ x }} <b>&amp;</b>"},
            {"role": "assistant", "content": "{% if %} '\\n' </s"},
        ],
    },
    {
        "name": "system",
        "messages": [
            {"role": "system", "content": " Be brief. "},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    },
    {
        "name": "tools",
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": None, "tool_calls": call(1, {"x": 1, "y": [2, "é"]})},
            {"role": "tool", "tool_call_id": "callid001", "content": "{\"sum\": 3}"},
            {"role": "assistant", "content": "It is 3."},
            {"role": "user", "content": "and 4 + 5?"},
            {"role": "assistant", "content": None, "tool_calls": call(2, {"x": 4.0, "y": True})},
        ],
    },
    {
        "name": "reasoning",
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nb"},
        ],
    },
]


def render(template, name, conversation, **more):
    beginning, end = BORDERS.get(name, ("", "<|im_end|>"))
    try:
        texts, spans = render_jinja_template(
            conversations=[conversation["messages"]],
            chat_template=template,
            tools=conversation.get("tools"),
            bos_token=beginning,
            eos_token=end,
            **more,
        )
    except Exception:
        return None, None
    return texts[0], spans[0] if spans else None


golden = []
for path in sorted((ROOT / "templates").glob("*.jinja")):
    template = path.read_text()
    for conversation in CONVERSATIONS:
        text, _ = render(template, path.stem, conversation)
        prompt, _ = render(template, path.stem, conversation, add_generation_prompt=True)
        case = {"template": path.stem, **conversation, "text": text, "prompt": prompt}
        if path.stem == "marked" and text is not None:
            mask = render(template, path.stem, conversation, return_assistant_tokens_mask=True)[1]
            case["marked"] = [text[start:end] for start, end in mask]
        golden.append(case)
json.dump(golden, sys.stdout, ensure_ascii=False, indent=1)
