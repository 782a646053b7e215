"""Drives one whole fine-tuning job with the unmodified `openai` SDK, as its users do.

Usage: sdk_job.py BASE_URL MODEL TRAIN_JSONL VALID_JSONL OUT_DIR

Asserts on the way; writes the adapter and the results CSV into OUT_DIR.
"""

import csv
import io
import pathlib
import sys
import time

import openai

base_url, model, train, valid, out = sys.argv[1:]
out = pathlib.Path(out)
client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="any")

assert model in [one.id for one in client.models.list()]

# What is wrong is refused as the SDK's own exceptions.
for wrong, exception in [
    ({"model": "gpt-9", "training_file": "file-x"}, openai.NotFoundError),
    ({"model": model, "training_file": "file-x"}, openai.BadRequestError),
    (
        {"model": model, "training_file": "file-x", "hyperparameters": {"nepochs": 1}},
        openai.BadRequestError,
    ),
]:
    try:
        client.fine_tuning.jobs.create(**wrong)
    except exception as error:
        assert error.body["message"], error
    else:
        raise AssertionError(f"{wrong} was taken")

training_file = client.files.create(file=pathlib.Path(train), purpose="fine-tune")
validation_file = client.files.create(file=open(valid, "rb"), purpose="fine-tune")
assert client.files.wait_for_processing(training_file.id).status == "processed"
assert client.files.content(training_file.id).read() == pathlib.Path(train).read_bytes()

job = client.fine_tuning.jobs.create(
    model=model,
    training_file=training_file.id,
    validation_file=validation_file.id,
    suffix="gsm8k",
    seed=7,
    method={
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}},
    },
    metadata={"made-by": "sdk_job"},
)
assert job.status == "queued" and job.error is None, job
started = time.monotonic()
while job.status in ("validating_files", "queued", "running"):
    time.sleep(0.5)
    job = client.fine_tuning.jobs.retrieve(job.id)
assert job.status == "succeeded", job
assert job.method.supervised.hyperparameters.batch_size == 8
assert [one.id for one in client.fine_tuning.jobs.list(metadata={"made-by": "sdk_job"})] == [job.id]

# Auto-paging: small pages, each event once, newest first.
events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
assert len({event.id for event in events}) == len(events) > 16
assert events[0].message == "The job has successfully completed"

# The loss falls, in training and on what was not trained on.
results = client.files.content(job.result_files[0]).text
(out / "step_metrics.csv").write_text(results)
rows = list(csv.DictReader(io.StringIO(results)))
assert len(rows) == 16, len(rows)
losses = [float(row["train_loss"]) for row in rows]
assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses
whole = [float(row["full_valid_loss"]) for row in rows if row["full_valid_loss"]]
assert len(whole) == 2 and whole[1] < whole[0], whole

checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
assert [one.step_number for one in checkpoints] == [16, 8]
assert client.models.retrieve(checkpoints[1].fine_tuned_model_checkpoint).id

for file_id in job.result_files[1:]:
    name = client.files.retrieve(file_id).filename
    client.files.content(file_id).write_to_file(out / name)

answer = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=[{"role": "user", "content": "Tom has 3 apples and buys 4. How many has he?"}],
    max_tokens=32,
    temperature=0,
)
assert answer.choices[0].message.content
assert answer.usage.completion_tokens > 0

tokens = job.trained_tokens
seconds = time.monotonic() - started
print(f"{tokens} tokens in {seconds:.0f} s; train loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
      f"validation loss {whole[0]:.4f} -> {whole[1]:.4f}")
