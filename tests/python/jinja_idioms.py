"""Writes tests/data/jinja_idioms.json anew: what transformers renders of each idiom in it.

Reads the file and writes it to standard output, one idiom a line: the kind of the idiom, its template, its
variables (a JSON text, so that numbers stay as they are written) and the text, or null where transformers
refuses it. A new idiom needs the first three.
"""

import json
import pathlib
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

FILE = pathlib.Path(__file__).resolve().parent.parent / "data" / "jinja_idioms.json"


def render(idiom):
    try:
        template = _compile_jinja_template(idiom["template"])
        return template.render(**json.loads(idiom["variables"]))
    except Exception:
        return None


idioms = [
    {
        "kind": idiom["kind"],
        "template": idiom["template"],
        "variables": idiom["variables"],
        "text": render(idiom),
    }
    for idiom in json.loads(FILE.read_text())
]
lines = (json.dumps(idiom, ensure_ascii=False) for idiom in idioms)
sys.stdout.write("[\n" + ",\n".join(lines) + "\n]\n")
