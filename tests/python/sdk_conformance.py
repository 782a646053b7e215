"""Section 9 of hone's contract with OpenAI's clients, item by item, through an unmodified `openai`.

Usage: sdk_conformance.py BASE_URL

Runs with `openai` 1.x and newest. Each function whose name begins with `section_9_` is an item; all
of them run, in order, and the names of those that fail are printed. Item 8 is `sdk_webhooks.py`.
"""

import csv
import http.client
import io
import json
import math
import pathlib
import sys
import tempfile
import time
import traceback
import urllib.parse

import openai

from openai_schema import Specification

(base_url,) = sys.argv[1:]
MODEL = "tiny-llama"
specification = Specification()
replies = []
against_schema = []


def note(response):
    """Keeps every reply, and what OpenAI's schema says of it."""
    request = response.request
    content_type = response.headers.get("content-type", "")
    path = request.url.raw_path.decode()
    replies.append((request.method, path, response.status_code))
    if content_type.startswith("application/json"):
        response.read()
        against_schema.extend(
            specification.problems(
                request.method, path, response.status_code, content_type, response.content
            )
        )


def connect():
    return openai.OpenAI(
        base_url=f"{base_url}/v1",
        api_key="any",
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [note]}),
    )


client = connect()
folder = pathlib.Path(tempfile.mkdtemp())


def lines(count):
    """Training data of `count` examples."""
    return "".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What comes after {number}?"},
                    {"role": "assistant", "content": f"{number + 1}, of course."},
                ]
            }
        )
        + "\n"
        for number in range(count)
    ).encode()


CONTENT = lines(12)
train = folder / "train.jsonl"
train.write_bytes(CONTENT)


def until(job, wanted):
    """Polls the job as users do."""
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline, job
        job = client.fine_tuning.jobs.retrieve(job.id)
        if wanted(job):
            return job
        time.sleep(0.02)


def new_job(**more):
    file = client.files.create(file=train, purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, seed=1, **more)


_trained = []


def trained():
    """A job that has succeeded, made once."""
    if not _trained:
        valid = client.files.create(file=("valid.jsonl", lines(10)), purpose="fine-tune")
        job = new_job(
            validation_file=valid.id,
            suffix="nine",
            hyperparameters={"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 2.0},
            metadata={"a b": "c&d=e/f"},
        )
        _trained.append(until(job, lambda job: job.status not in ("queued", "running")))
        assert _trained[0].status == "succeeded", _trained[0]
    return _trained[0]


def raises(exception, call, *arguments, **named):
    """The error that a call must end in."""
    try:
        outcome = call(*arguments, **named)
    except exception as error:
        return error
    raise AssertionError(f"no {exception.__name__}, but {outcome}")


def raw(method, path, body=None, headers=None):
    """A request that no SDK sends: exactly these headers, and a body that may be an iterator."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(base_url).netloc, timeout=120)
    is_chunked = body is not None and not isinstance(body, bytes)
    headers = dict(headers or {})
    if is_chunked:
        headers["transfer-encoding"] = "chunked"
    connection.request(method, path, body, headers, encode_chunked=is_chunked)
    reply = connection.getresponse()
    content = reply.read()
    content_type = reply.headers["content-type"]
    assert content_type == "application/json", (path, content_type, content)
    against_schema.extend(specification.problems(method, path, reply.status, content_type, content))
    connection.close()
    return reply, json.loads(content)


def form(*fields):
    """A multipart body of (name, filename or None, bytes), in this order, and its content type."""
    body = b""
    for name, filename, content in fields:
        shown = f'; filename="{filename}"' if filename else ""
        body += (
            f'--frontier\r\ncontent-disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode()
        )
        body += content + b"\r\n"
    return body + b"--frontier--\r\n", {"content-type": "multipart/form-data; boundary=frontier"}


def error_of(reply, body, status):
    """The error of a reply: OpenAI's envelope, whole, with a request id."""
    assert reply.status == status, (reply.status, body)
    assert reply.headers["x-request-id"], dict(reply.headers)
    assert sorted(body["error"]) == ["code", "message", "param", "type"], body
    assert isinstance(body["error"]["message"], str), body
    return body["error"]


# 9.1: the SDK's own calls.


def section_9_1_upload_of_a_path_a_handle_and_bytes():
    for file, name in [
        (train, "train.jsonl"),
        (train.open("rb"), "train.jsonl"),
        (CONTENT, "upload"),
        (("named.jsonl", CONTENT), "named.jsonl"),
        (io.BytesIO(CONTENT), "upload"),
    ]:
        made = client.files.create(file=file, purpose="fine-tune")
        assert (made.filename, made.bytes, made.status) == (name, len(CONTENT), "processed"), made
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).read() == CONTENT
        assert client.files.wait_for_processing(made.id).status == "processed"
        assert client.files.delete(made.id).deleted
        raises(openai.NotFoundError, client.files.retrieve, made.id)


def section_9_1_upload_that_expires():
    made = client.files.create(
        file=train,
        purpose="evals",
        # An argument of newer versions; in older ones the fields themselves.
        extra_body={"expires_after": {"anchor": "created_at", "seconds": 7200}},
    )
    assert made.model_dump()["expires_at"] == made.created_at + 7200, made
    client.files.delete(made.id)


def section_9_1_files_are_paged_through():
    made = {client.files.create(file=train, purpose="user_data").id for _ in range(7)}
    walked = [file.id for file in client.files.list(limit=2, purpose="user_data")]
    assert len(walked) == 7 and set(walked) == made
    ascending = [file.id for file in client.files.list(limit=3, purpose="user_data", order="asc")]
    assert ascending == walked[::-1]
    for file_id in made:
        client.files.delete(file_id)


def section_9_1_upload_in_parts_by_the_helper():
    big = folder / "big.bin"
    content = bytes(range(256)) * ((64 << 20) // 256) + b"and a little more"
    big.write_bytes(content)
    upload = client.uploads.upload_file_chunked(
        file=big, mime_type="application/octet-stream", purpose="user_data"
    )
    assert upload.status == "completed" and upload.file.bytes == len(content), upload
    assert client.files.content(upload.file.id).read() == content
    client.files.delete(upload.file.id)
    pending = client.uploads.create(
        bytes=5, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    assert client.uploads.cancel(pending.id).status == "cancelled"


def section_9_1_job_create_list_retrieve():
    job = trained()
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:") and ":nine:" in job.fine_tuned_model
    assert job.trained_tokens > 0 and job.finished_at >= job.created_at and job.error is None
    assert job.method.supervised.hyperparameters.n_epochs == 3, job.method
    assert job.hyperparameters.batch_size == 2, job.hyperparameters
    others = [new_job(hyperparameters={"n_epochs": 1}).id for _ in range(3)]
    walked = [one.id for one in client.fine_tuning.jobs.list(limit=2)]
    assert walked == [*others[::-1], job.id], walked
    for other in others:
        until(client.fine_tuning.jobs.retrieve(other), lambda job: job.finished_at)


def section_9_1_jobs_filtered_by_metadata():
    job = trained()
    found = list(client.fine_tuning.jobs.list(metadata={"a b": "c&d=e/f"}))
    assert [one.id for one in found] == [job.id]
    assert not list(client.fine_tuning.jobs.list(metadata={"a b": "c"}))


def section_9_1_job_cancel_pause_resume():
    job = new_job(hyperparameters={"n_epochs": 50, "batch_size": 1})
    until(job, lambda job: job.status == "running")
    if hasattr(client.fine_tuning.jobs, "pause"):
        client.fine_tuning.jobs.pause(job.id)
        paused = until(job, lambda job: job.status != "running")
        assert paused.status == "paused", paused
        assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled", "a repetition is harmless"
    assert until(job, lambda job: job.finished_at).fine_tuned_model is None


def section_9_1_auto_paging_events_over_three_pages():
    job = trained()
    before = len(replies)
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    assert len(replies) - before >= 3, "three pages at least"
    assert len({event.id for event in events}) == len(events) > 15
    assert events[0].message == "The job has successfully completed", events[0]
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == sorted(steps, reverse=True) and steps[-1] == 1, steps


def section_9_1_checkpoints():
    job = trained()
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in checkpoints] == [18, 12, 6], checkpoints
    for one in checkpoints:
        assert one.fine_tuning_job_id == job.id
        assert one.metrics.train_loss > 0 and one.metrics.full_valid_loss > 0, one
        assert client.models.retrieve(one.fine_tuned_model_checkpoint).id
        names = [client.files.retrieve(id).filename for id in one.model_dump()["result_files"]]
        assert "adapter_model.safetensors" in names, names


def section_9_1_model_get_and_delete_with_a_slash_in_the_id():
    for call in (client.models.retrieve, client.models.delete):
        error = raises(openai.NotFoundError, call, "Qwen/Qwen2.5-0.5B")
        assert error.code == "model_not_found" and '"Qwen/Qwen2.5-0.5B"' in error.message, error
    assert client.models.retrieve(MODEL).id == MODEL
    raises(openai.PermissionDeniedError, client.models.delete, MODEL)
    job = until(new_job(hyperparameters={"n_epochs": 1}), lambda job: job.finished_at)
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.delete(job.fine_tuned_model).deleted
    raises(openai.NotFoundError, client.models.retrieve, job.fine_tuned_model)


def section_9_1_chat_with_usage():
    answer = client.chat.completions.create(
        model=trained().fine_tuned_model,
        messages=[{"role": "user", "content": "What comes after 3?"}],
        max_tokens=8,
    )
    assert answer.choices[0].finish_reason in ("stop", "length"), answer
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0, usage


QUESTION = [{"role": "user", "content": "What comes after 3?"}]


def section_9_1_chat_stream():
    asked = {"model": trained().fine_tuned_model, "messages": QUESTION, "max_tokens": 8, "seed": 1}
    whole = client.chat.completions.create(**asked)
    for _repetition in range(2):
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert all(chunk.object == "chat.completion.chunk" for chunk in chunks), chunks
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1, chunks
        assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content, (text, whole)
        last = chunks[-1].choices[0]
        assert last.finish_reason == whole.choices[0].finish_reason, chunks[-1]
        assert all(chunk.usage is None for chunk in chunks), chunks


def section_9_1_chat_stream_with_usage():
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    *chunks, last = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == [], last
    # The prompt is the one that was read before, but for its last token at least.
    cached = last.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < whole.usage.prompt_tokens, last
    whole.usage.prompt_tokens_details.cached_tokens = cached
    assert last.usage == whole.usage, (last, whole)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks), chunks


def section_9_1_chat_logprobs():
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 4}
    answer = client.chat.completions.create(**asked).choices[0]
    tokens = answer.logprobs.content
    assert len(tokens) == 8 or answer.finish_reason == "stop", tokens
    spelt = b"".join(bytes(token.bytes) for token in tokens if not token.token.startswith("<|"))
    assert spelt.decode(errors="replace") == answer.message.content, (spelt, answer)
    for token in tokens:
        likeliest = token.top_logprobs
        assert len(likeliest) == 4 and token.logprob < 0, token
        assert likeliest[0].logprob == token.logprob == max(one.logprob for one in likeliest), token
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == tokens, (streamed, tokens)


def section_9_1_chat_stream_that_is_left_ends():
    # Nothing but the context ends these answers, which take far longer than one token.
    endless = {"model": MODEL, "messages": QUESTION, "n": 8, "max_tokens": 400}
    endless["logit_bias"] = {"0": -100, "1": -100, "2": -100}
    started = time.monotonic()
    client.chat.completions.create(**endless)
    whole = time.monotonic() - started
    with client.chat.completions.create(**endless, stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    started = time.monotonic()
    client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert time.monotonic() - started < whole / 3, (time.monotonic() - started, whole)


def section_9_1_completions_whole_streamed_and_scored():
    asked = {"model": trained().fine_tuned_model, "prompt": "What comes after", "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.choices[0].finish_reason in ("stop", "length"), whole
    assert whole.usage.completion_tokens <= 16, whole
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text, chunks
    asked |= {"prompt": [68, 69, 70], "max_tokens": 0}
    scored = client.completions.create(**asked, echo=True, logprobs=2).choices[0]
    columns = scored.logprobs
    assert (scored.text, columns.tokens) == ("ABC", ["A", "B", "C"]), scored
    assert columns.token_logprobs[0] is None and columns.top_logprobs[0] is None, columns
    assert all(logprob < 0 for logprob in columns.token_logprobs[1:]), columns
    assert columns.text_offset == [0, 1, 2], columns


# 9.2: forms as other clients send them.


def section_9_2_a_form_with_the_file_first_and_chunked_without_length():
    body, headers = form(("file", "t.jsonl", CONTENT), ("purpose", None, b"fine-tune"))
    _reply, made = raw("POST", "/v1/files", body, headers)
    assert made["bytes"] == len(CONTENT), made
    pieces = (body[start : start + 100] for start in range(0, len(body), 100))
    _reply, made = raw("POST", "/v1/files", pieces, headers)
    assert made["bytes"] == len(CONTENT), made
    assert client.files.content(made["id"]).read() == CONTENT


def section_9_2_a_part_of_64_mib_and_data_without_a_filename():
    size = 64 << 20
    for filename in ("upload", None):
        upload = client.uploads.create(
            bytes=size, filename="x.bin", mime_type="text/plain", purpose="user_data"
        )
        body, headers = form(("data", filename, bytes(size)))
        _reply, part = raw("POST", f"/v1/uploads/{upload.id}/parts", body, headers)
        assert part["object"] == "upload.part", part
        done = client.uploads.complete(upload.id, part_ids=[part["id"]])
        assert done.file.bytes == size, done
        client.files.delete(done.file.id)


def section_9_2_a_file_over_the_limit_stops_early_with_a_json_413():
    sent = 0
    piece = (b'{"prompt": "' + b"x" * 1000 + b'", "completion": "y"}\n') * 1000

    def pieces():
        nonlocal sent
        yield b'--frontier\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        while sent < 4 << 30:
            sent += len(piece)
            yield piece

    # The reply is there before all is sent, so it is read although the rest cannot be written.
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(base_url).netloc, timeout=120)
    headers = {"content-type": "multipart/form-data; boundary=frontier"}
    headers["transfer-encoding"] = "chunked"
    try:
        connection.request("POST", "/v1/files", pieces(), headers, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        pass
    reply = connection.response_class(connection.sock, method="POST")
    reply.begin()
    error = error_of(reply, json.loads(reply.read()), 413)
    assert error["code"] == "file_too_large", error
    # 512 MiB that it may have, as many that are read on so that the reply is seen, and buffers.
    assert sent < 1100 << 20, sent


# 9.3: bodies as they come.


def section_9_3_an_empty_post_with_and_without_a_content_type():
    for headers in ({}, {"content-type": "application/json"}, {"content-type": "text/plain"}):
        job = new_job(hyperparameters={"n_epochs": 50})
        reply, body = raw("POST", f"/v1/fine_tuning/jobs/{job.id}/cancel", b"", headers)
        assert reply.status == 200 and body["status"] == "cancelled", body
        upload = client.uploads.create(
            bytes=5, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        )
        reply, body = raw("POST", f"/v1/uploads/{upload.id}/cancel", b"", headers)
        assert reply.status == 200 and body["status"] == "cancelled", body


def section_9_3_json_with_a_forms_content_type():
    body = {"filename": "x.jsonl", "purpose": "fine-tune", "bytes": 5, "mime_type": "text/jsonl"}
    headers = {"content-type": "application/x-www-form-urlencoded"}
    reply, upload = raw("POST", "/v1/uploads", json.dumps(body).encode(), headers)
    assert reply.status == 200 and upload["status"] == "pending", upload


# 9.4: what is wrong.


def section_9_4_every_fallback_has_the_error_shape_and_a_request_id():
    # A panic cannot be asked for from outside; its reply is made by the same code as an internal error.
    for method, path, body, status in [
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/", None, 404),
        ("PATCH", "/v1/files", None, 405),
        ("DELETE", "/v1/fine_tuning/jobs", None, 405),
        ("POST", "/v1/fine_tuning/jobs", b'{"model": ', 400),
        ("POST", "/v1/fine_tuning/jobs", b"\xff", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("GET", "/v1/fine_tuning/jobs?limit=x", None, 400),
        ("GET", "/v1/files?order=up", None, 400),
        ("GET", "/v1/files?after=none", None, 400),
        ("GET", "/v1/files/%ff", None, 400),
        ("POST", "/v1/files", b"{}", 415),
        ("POST", "/v1/responses", b"{}", 404),
    ]:
        reply, content = raw(method, path, body)
        error_of(reply, content, status)
    error = raises(openai.NotFoundError, client.fine_tuning.jobs.retrieve, "ftjob-none")
    assert (error.code, error.param) == ("fine_tune_not_found", "fine_tune_id"), error
    assert error.request_id, error


# 9.5: no useless repetitions.


def section_9_5_a_state_conflict_is_asked_about_once():
    job = trained()
    before = len(replies)
    raises(openai.BadRequestError, client.fine_tuning.jobs.cancel, job.id)
    assert len(replies) - before == 1, replies[before:]


# 9.6 and 9.7: the end of a job.


def section_9_6_at_the_moment_of_success_the_csv_downloads_and_the_model_answers():
    for _repetition in range(3):
        job = new_job(hyperparameters={"n_epochs": 2})
        job = until(job, lambda job: job.status == "succeeded")
        assert job.fine_tuned_model and job.trained_tokens and job.finished_at, job
        assert client.files.content(job.result_files[0]).text.startswith("step,train_loss,")
        answer = client.chat.completions.create(
            model=job.fine_tuned_model,
            messages=[{"role": "user", "content": "What comes after 3?"}],
            max_tokens=2,
        )
        assert answer.model == job.fine_tuned_model, answer


def section_9_7_the_csv_has_openais_columns_and_numbers_or_nothing_in_every_cell():
    text = client.files.content(trained().result_files[0]).text
    rows = list(csv.reader(io.StringIO(text)))
    documented = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert rows[0][:5] == documented.split(","), rows[0]
    assert [row[0] for row in rows[1:]] == [str(step) for step in range(1, 19)], rows
    for row in rows[1:]:
        assert len(row) == len(rows[0]), row
        assert all(cell == "" or math.isfinite(float(cell)) for cell in row), row


# The routes beside, so that item 9 sees a reply of each.


def section_9_9_graders_answer_as_openai_describes():
    grader = {
        "type": "string_check",
        "name": "same",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "operation": "eq",
    }
    made = client.fine_tuning.alpha.graders.validate(grader=grader)
    assert made.grader.name == "same", made
    ran = client.fine_tuning.alpha.graders.run(
        grader=grader, model_sample="4", item={"answer": "4"}
    )
    assert ran.reward == 1.0 and not ran.metadata.errors.other_error, ran


def section_9_9_every_reply_fits_openais_schema():
    assert len(replies) > 100, len(replies)
    assert not against_schema, "\n".join(sorted(set(against_schema)))


failed = []
for name, item in list(globals().items()):
    if not name.startswith("section_9_"):
        continue
    started = time.monotonic()
    try:
        item()
    except Exception:
        traceback.print_exc()
        failed.append(name)
    print(f"{'FAILED' if name in failed else 'ok'} {name} ({time.monotonic() - started:.1f} s)")
print(f"openai {openai.__version__}: {len(replies)} replies to the SDK")
sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
