"""What schemathesis checks beside its own checks: every reply fits OpenAI's schema too."""

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
