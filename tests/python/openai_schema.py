"""Compares replies with OpenAI's own schema: `tests/data/openai/finetune-subset.yaml`, the part of
OpenAI's published OpenAPI document (MIT licence) that hone answers.
"""

import json
import pathlib
import re

import jsonschema
import yaml

SPECIFICATION = pathlib.Path(__file__).parent.parent / "data/openai/finetune-subset.yaml"

# Where hone's replies differ on purpose: operation, the place in the reply (a pattern), and why.
DEVIATIONS = [
    # A message has no numbers: null is what the SDKs' types say, the document knows an object alone.
    ("listFineTuningEvents", r"data/\d+/data", "None is not of type 'object'"),
    # The document lacks `paused`, and has routes that lead to it; only an explicit pause shows it.
    ("*", r"(data/\d+/)?status", "'paused' is not one of"),
    # Files for `evals` may be uploaded (CreateFileRequest has it), the file object's enum lacks it.
    ("*", r"(data/\d+/|file/)?purpose", "'evals' is not one of"),
    # Nothing precedes the first token of an echoed prompt: OpenAI's own replies have null there.
    (
        "createCompletion",
        r"choices/\d+/logprobs/(token|top)_logprobs/0",
        "None is not of type",
    ),
    # The same gap in the purpose of an upload in parts: the SDKs' types have it.
    ("*", r"purpose", "'user_data' is not one of"),
]


class Specification:
    """OpenAI's document, ready to judge replies."""

    def __init__(self):
        document = yaml.load(SPECIFICATION.read_text(), Loader=yaml.CSafeLoader)
        as_json_schema(document)
        self.components = document["components"]
        self.routes = []
        for path, item in document["paths"].items():
            # A parameter is one part of the path, but a model's name may have a slash in it.
            pattern = re.sub(r"\\{(model|fine_tuned_model_checkpoint)\\}", "(.+)", re.escape(path))
            pattern = re.compile(re.sub(r"\\{[^}]*\\}", "([^/]+)", pattern))
            for method, operation in item.items():
                if method in ("get", "post", "delete"):
                    self.routes.append((method.upper(), pattern, operation))
        # Fixed paths go before patterns that would match them too.
        self.routes.sort(key=lambda route: route[1].pattern.count("("))

    def operation(self, method, path):
        """OpenAI's operation at this path, or `None` for a route of our own."""
        path = path.split("?")[0].removeprefix("/v1")
        for known, pattern, operation in self.routes:
            if known == method and pattern.fullmatch(path):
                return operation
        return None

    def problems(self, method, path, status, content_type, body):
        """What of a JSON reply contradicts the document, without the known deviations."""
        if not content_type.startswith("application/json"):
            return []
        if status >= 400:
            schema = {"$ref": "#/components/schemas/ErrorResponse"}
            name = "error"
        else:
            operation = self.operation(method, path)
            if operation is None:
                return []
            name = operation["operationId"]
            answers = operation["responses"].get(str(status), {}).get("content", {})
            schema = answers.get("application/json", {}).get("schema")
            if schema is None:
                return [f"{name}: OpenAI's document has no JSON reply {status}"]
        reply = json.loads(body)
        if reply.get("object") == "fine_tuning.job.dry_run":
            # Of a parameter and a kind of reply that are hone's own.
            return []
        whole = {"components": self.components, **schema}
        validator = jsonschema.Draft202012Validator(whole)
        found = []
        for error in validator.iter_errors(reply):
            found += [f"{name}: {reason}" for reason in unknown(name, error)]
        return found


def as_json_schema(node):
    """Turns what OpenAPI 3.0 said otherwise, and the document still does, into JSON Schema."""
    if isinstance(node, list):
        for inner in node:
            as_json_schema(inner)
    if not isinstance(node, dict):
        return
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if node.get(exclusive) is True:
            node[exclusive] = node.pop(bound)
    for inner in node.values():
        as_json_schema(inner)


def unknown(name, error):
    """The innermost reasons of an error that are no known deviations, by the branch with the fewest."""
    if not error.context:
        place = "/".join(str(part) for part in error.absolute_path)
        if is_known(name, place, error.message):
            return []
        return [f"{place or 'the reply'}: {error.message[:300]}"]
    branches = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).extend(unknown(name, inner))
    return min(branches.values(), key=len)


def is_known(name, place, message):
    return any(
        operation in ("*", name) and re.fullmatch(pattern, place) and text in message
        for operation, pattern, text in DEVIATIONS
    )
