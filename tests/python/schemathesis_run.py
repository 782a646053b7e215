"""Lets schemathesis look for requests that hone answers otherwise than its OpenAPI document says.

Usage: schemathesis_run.py BASE_URL KEY [SECONDS]

All of its checks in all of its phases, and `schemathesis_hooks.py`. Things that exist are made first
and their ids shown to it, or it would hardly see anything but 404.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import openai

base_url, key = sys.argv[1:3]
seconds = sys.argv[3] if len(sys.argv) > 3 else "60"
client = openai.OpenAI(base_url=f"{base_url}/v1", api_key=key)

content = "".join(
    json.dumps({"prompt": f"What comes after {number}?", "completion": f" {number + 1}"}) + "\n"
    for number in range(12)
).encode()


def ids():
    """A thing of each kind that a path can name, and what its name is in the document."""
    for _repetition in range(3):
        file = client.files.create(file=("t.jsonl", content), purpose="fine-tune")
        upload = client.uploads.create(
            bytes=1000, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        )
        part = client.uploads.parts.create(upload.id, data=content[:100])
        endpoint = client.post(
            "/webhook_endpoints",
            body={
                "name": "hook",
                "url": "https://example.com/hook",
                "event_types": ["fine_tuning.job.failed"],
            },
            cast_to=object,
        )
        job = client.fine_tuning.jobs.create(
            model="tiny-llama", training_file=file.id, hyperparameters={"n_epochs": 1}
        )
        deadline = time.monotonic() + 120
        while job.status in ("queued", "running"):
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
            job = client.fine_tuning.jobs.retrieve(job.id)
        yield {
            "file_id": file.id,
            "upload_id": upload.id,
            "part_ids": part.id,
            "webhook_endpoint_id": endpoint["id"],
            "fine_tuning_job_id": job.id,
            "model": job.fine_tuned_model,
        }


made = list(ids())
config = [
    # Rules that JSON Schema cannot say (files that must exist, values that exclude each other) are
    # told with a 400 that names the field.
    "[checks.positive_data_acceptance]",
    'expected-statuses = ["2xx", "400", "401", "403", "404"]',
]
for name in made[0]:
    values = json.dumps([one[name] for one in made])
    config += [f"[dictionaries.{name}]", f"values = {values}"]
config.append("[parameters]")
for name in made[0]:
    if name != "part_ids":
        config.append(f'"path.{name}" = {{ dictionary = "{name}", probability = 0.7 }}')

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "schemathesis.toml").write_text("\n".join(config) + "\n")
here = pathlib.Path(__file__).parent
command = [
    pathlib.Path(sys.executable).parent / "schemathesis",
    "--config-file",
    folder / "schemathesis.toml",
    "run",
    f"{base_url}/openapi.json",
    "--url",
    base_url,
    "--header",
    f"Authorization: Bearer {key}",
    "--checks",
    "all",
    # A checkpoint's name may have slashes, so one pattern takes all that is below them, and a 405 there
    # cannot tell which of the methods a path has. tests/it/http_protocol.rs looks at the others.
    "--exclude-checks",
    "allow_header_conformance",
    "--max-time",
    seconds,
    "--seed",
    "1",
    "--continue-on-failure",
    "--request-timeout",
    "30",
]
environment = {
    **os.environ,
    "PYTHONPATH": str(here),
    "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
}
ran = subprocess.run(command, cwd=folder, env=environment)
assert client.models.list().data, "the server still answers"
sys.exit(ran.returncode)
