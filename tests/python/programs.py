"""Programs that were written for OpenAI's service drive whole jobs through hone, unmodified.

Usage: programs.py BASE_URL dspy|litellm|wandb

Each reaches hone by its URL alone: no option of hone, no patch of the program.
"""

import json
import math
import os
import pathlib
import sys
import tempfile
import time

base_url, program = sys.argv[1:]
MODEL = "tiny-llama"
os.environ["OPENAI_BASE_URL"] = os.environ["OPENAI_API_BASE"] = f"{base_url}/v1"
os.environ["OPENAI_API_KEY"] = "any"
# Prices come with LiteLLM; it need not look for newer ones.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# The three messages that W&B's table has columns for.
EXAMPLES = [
    {
        "messages": [
            {"role": "system", "content": "You count."},
            {"role": "user", "content": f"What comes after {number}?"},
            {"role": "assistant", "content": f"{number + 1}, of course."},
        ]
    }
    for number in range(12)
]
folder = pathlib.Path(tempfile.mkdtemp())
train = folder / "train.jsonl"
train.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))


def dspy_teaches_a_model_and_answers_with_it():
    """`dspy.LM.finetune`: uploads, creates the job, follows its events, and takes its model."""
    os.environ["DSPY_CACHEDIR"] = str(folder / "cache")
    import dspy
    from dspy.clients.utils_finetune import TrainDataFormat

    model = dspy.LM(f"openai/{MODEL}", cache=False, max_tokens=8, temperature=0.0)
    job = model.finetune(EXAMPLES, TrainDataFormat.CHAT, {"n_epochs": 2})
    taught = job.result(timeout=120)
    assert isinstance(taught, dspy.LM), taught
    assert taught.model.startswith(f"ft:{MODEL}:"), taught.model
    assert job.status().name == "succeeded", job.status()
    # DSPy leaves the provider to LiteLLM, which knows OpenAI's own base models alone behind `ft:`.
    answer = taught.copy(model=f"openai/{taught.model}")("What comes after 3?")
    assert isinstance(answer[0], str), answer
    print(f"dspy {dspy.__version__}: {taught.model} says {answer}")


def litellm_uploads_trains_lists_cancels_and_answers():
    """LiteLLM's calls for files, fine-tuning and completions with OpenAI as the provider."""
    import litellm

    openai = {"custom_llm_provider": "openai"}
    file = litellm.create_file(file=train.open("rb"), purpose="fine-tune", **openai)
    assert litellm.file_retrieve(file.id, **openai).bytes == train.stat().st_size
    assert litellm.file_content(file.id, **openai).content == train.read_bytes()
    assert file.id in [one.id for one in litellm.file_list(**openai)]
    asked = {"model": MODEL, "training_file": file.id, "seed": 1, **openai}
    job = litellm.create_fine_tuning_job(hyperparameters={"n_epochs": 2}, suffix="lite", **asked)
    long_job = litellm.create_fine_tuning_job(
        hyperparameters={"n_epochs": 50, "batch_size": 1}, **asked
    )
    assert litellm.cancel_fine_tuning_job(long_job.id, **openai).status == "cancelled"
    listed = [one.id for one in litellm.list_fine_tuning_jobs(limit=10, **openai)]
    assert listed == [long_job.id, job.id], listed
    deadline = time.monotonic() + 120
    while job.status in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
        job = litellm.retrieve_fine_tuning_job(job.id, **openai)
    assert job.status == "succeeded" and ":lite:" in job.fine_tuned_model, job
    answer = litellm.completion(
        model=f"openai/{job.fine_tuned_model}",
        messages=[{"role": "user", "content": "What comes after 3?"}],
        max_tokens=8,
    )
    assert answer.usage.completion_tokens > 0 and answer.choices[0].message.content is not None
    other = litellm.create_file(file=train.open("rb"), purpose="fine-tune", **openai)
    assert litellm.file_delete(other.id, **openai).deleted
    print(f"litellm: {job.fine_tuned_model} says {answer.choices[0].message.content!r}")


def wandb_pulls_the_job_its_metrics_and_its_files():
    """`WandbLogger.sync` without W&B's service: the run is written to disk and not sent."""
    # Whether the run exists already is asked at this address, where nobody answers: that is a no.
    os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(folder)
    import openai
    import wandb
    from wandb.integration.openai.fine_tuning import WandbLogger
    from wandb.sdk.wandb_run import Run

    # Only the service itself could say that somebody is logged in.
    WandbLogger._logged_in = True

    # Looks on while the logger works: what it writes is in W&B's own file format.
    logged = {}
    log = Run.log

    def keep(run, data, step=None, **more):
        logged.setdefault(step, {}).update(data)
        log(run, data, step=step, **more)

    # A run that has ended shows its summary no longer.
    summary, config = {}, {}
    finish = Run.finish

    def look(run, *arguments, **more):
        summary.update(run.summary)
        config.update(run.config)
        finish(run, *arguments, **more)

    Run.log, Run.finish = keep, look

    client = openai.OpenAI()
    files = [client.files.create(file=train, purpose="fine-tune").id for _ in range(2)]
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=files[0],
        validation_file=files[1],
        hyperparameters={"n_epochs": 3, "batch_size": 2},
    )
    # Offline, W&B keeps no data sets beside a run; how it reads them is tried below.
    said = WandbLogger.sync(fine_tune_job_id=job.id, project="hone", log_datasets=False)
    assert "success" in said, said
    for file in files:
        _table, rows = WandbLogger._make_table(client.files.content(file).text)
        assert rows == len(EXAMPLES), rows

    assert summary["status"] == "succeeded", summary
    assert summary["fine_tuned_model"].startswith(f"ft:{MODEL}:"), summary
    assert config["id"] == job.id and config["hyperparameters"]["n_epochs"] == 3, config
    assert sorted(logged) == list(range(1, 19)), sorted(logged)
    assert all(math.isfinite(row["train_loss"]) for row in logged.values()), logged
    assert math.isfinite(logged[18]["full_valid_loss"]), logged[18]
    assert list(folder.glob(f"wandb/offline-run-*-{job.id}/*.wandb")), "the run is on disk"
    print(f"wandb {wandb.__version__}: 18 steps, the last one {logged[18]}")


{
    "dspy": dspy_teaches_a_model_and_answers_with_it,
    "litellm": litellm_uploads_trains_lists_cancels_and_answers,
    "wandb": wandb_pulls_the_job_its_metrics_and_its_files,
}[program]()
