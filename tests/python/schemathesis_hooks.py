"""What schemathesis checks beside its own checks: every reply fits OpenAI's schema too."""

import urllib.parse

import requests
import schemathesis

from openai_schema import Specification

specification = Specification()


@schemathesis.check
def fits_openais_schema(_context, response, case):
    content_type = response.headers.get("content-type", [""])[0]
    problems = specification.problems(
        response.request.method,
        response.request.path_url,
        response.status_code,
        content_type,
        response.content,
    )
    assert not problems, "; ".join(problems)


@schemathesis.hook
def filter_query(_context, query):
    """Leaves out an empty `limit`: openai-node sends null as nothing, so it means the default, which
    JSON Schema cannot say. Of a repeated parameter the last one counts."""
    if not query or "limit" not in query:
        return True
    sent = requests.Request("GET", "http://hone", params={"limit": query["limit"]}).prepare().url
    values = urllib.parse.parse_qs(urllib.parse.urlsplit(sent).query, keep_blank_values=True)
    return values.get("limit", [""])[-1] != ""
