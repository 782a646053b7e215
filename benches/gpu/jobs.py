"""Jobs through the API of the real server: the same job twice, one that is killed, one that does not fit."""

import hashlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

from session import Failed, children

COMPARED = ("adapter_model.safetensors", "step_metrics.csv")


class Server:
    """`hone serve` on a free port over a fresh folder."""

    def __init__(self, session, machine, tools, models, name):
        data = machine.work / f"data-{name}"
        self.log = (machine.work / f"server-{name}.log").open("w+", encoding="utf-8", errors="replace")
        self.session = session
        self.child = session.start(
            [tools.hone, "serve", "--listen", "127.0.0.1:0", "--data-dir", data, "--models-dir", models,
             "--device", machine.device],
            stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL, text=True, env=machine.environment())
        line = self.child.stdout.readline()
        if " on " not in line:
            raise Failed(f"the server does not start: {self.said()}")
        self.base = line.strip().split(" on ", 1)[1]

    def said(self):
        self.log.seek(0)
        return self.log.read()[-1500:].strip()

    def ask(self, path, body=None, headers=None):
        """The body of a reply."""
        request = urllib.request.Request(self.base + path, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            raise Failed(f"{path}: {error.code}: {error.read().decode(errors='replace')[:800]}") from error
        except OSError as error:
            raise Failed(f"{path}: {error}; the server said: {self.said()}") from error

    def json(self, path, body=None):
        headers = {"content-type": "application/json"}
        return json.loads(self.ask(path, None if body is None else json.dumps(body).encode(), headers))

    def upload(self, text):
        mark = "part-of-the-form"
        form = (f"--{mark}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n"
                f"--{mark}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"train.jsonl\"\r\n"
                f"content-type: application/jsonl\r\n\r\n{text}\r\n--{mark}--\r\n")
        headers = {"content-type": f"multipart/form-data; boundary={mark}"}
        return json.loads(self.ask("/v1/files", form.encode(), headers))["id"]

    def create(self, model, file, hyperparameters):
        body = {"model": model, "training_file": file, "seed": 1,
                "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}
        return self.json("/v1/fine_tuning/jobs", body)["id"]

    def wait(self, job, is_there=lambda job: False):
        """The job, once it has ended or is as wanted. The phase's alarm bounds the wait."""
        while True:
            state = self.json(f"/v1/fine_tuning/jobs/{job}")
            if state["finished_at"] is not None or is_there(state):
                return state
            time.sleep(0.02)

    def files(self, job):
        """The files that are compared, by name."""
        found = {}
        for file in job["result_files"]:
            name = self.json(f"/v1/files/{file}")["filename"]
            if name in COMPARED:
                found[name] = self.ask(f"/v1/files/{file}/content")
        return found

    def events(self, job):
        """What all events say, newest first."""
        found, after = [], ""
        while True:
            page = self.json(f"/v1/fine_tuning/jobs/{job}/events?limit=100&after={after}")
            found += [event["message"] for event in page["data"]]
            if not page["has_more"]:
                return found
            after = page["data"][-1]["id"]

    def kill_trainer(self):
        """SIGKILL for the server's children; how many there were."""
        trainers = children(self.child.pid)
        for trainer in trainers:
            os.kill(trainer, signal.SIGKILL)
        return len(trainers)


def summary(server, job):
    """What is told of an ended job."""
    found = {"status": job["status"], "steps": job.get("trained_steps"), "tokens": job.get("trained_tokens")}
    if job["error"] and job["error"].get("message"):
        found["error"] = job["error"]
    if job["status"] == "succeeded":
        found["sha256"] = {name: hashlib.sha256(bytes_).hexdigest() for name, bytes_ in server.files(job).items()}
    return found


def succeeded(server, job, entry, key):
    entry[key] = summary(server, job)
    server.session.save()
    if job["status"] != "succeeded":
        raise Failed(f"{key.replace('_', ' ')} ended as {job['status']}: {job['error']}")
    return entry[key]["sha256"]


def short_chats(count):
    """Examples of two dozen characters."""
    found = []
    for number in range(count):
        messages = [{"role": "user", "content": f"After {number}?"}, {"role": "assistant", "content": f"{number + 1}."}]
        found.append(json.dumps({"messages": messages}) + "\n")
    return found


def repeat_and_resume(session, machine, tools, model, tiny, entry):
    """One job three times: as it is, again, and killed in the middle. All three must leave the same bytes."""
    lines = short_chats(16) if tiny else tools.chats.read_text(encoding="utf-8").splitlines(keepends=True)[:16]
    hyperparameters = {"n_epochs": 6 if tiny else 3, "batch_size": 2, "lora_r": 8}
    entry["job"] = {"model": model.name, "examples": len(lines), **hyperparameters}
    server = Server(session, machine, tools, model.parent, "jobs")
    file = server.upload("".join(lines))

    def create():
        return server.create(model.name, file, hyperparameters)

    first = succeeded(server, server.wait(create()), entry, "first_job")
    again = succeeded(server, server.wait(create()), entry, "same_job_again")
    entry["twice_the_same_bytes"] = first == again
    session.save()

    job = create()
    state = server.wait(job, lambda job: (job.get("trained_steps") or 0) >= 10)
    entry["killed_after_step"] = state.get("trained_steps")
    entry["processes_killed"] = server.kill_trainer()
    resumed = succeeded(server, server.wait(job), entry, "killed_job")
    entry["continued"] = next((text for text in server.events(job) if "continues from" in text), None)
    entry["same_bytes_after_the_kill"] = first == resumed
    if not entry["processes_killed"] or not entry["continued"]:
        raise Failed("the job ended before it could be killed: this says nothing of resuming")
    if not (entry["twice_the_same_bytes"] and entry["same_bytes_after_the_kill"]):
        raise Failed("the bytes differ")


def does_not_fit(session, machine, tools, model, entry):
    """A job whose long examples no machine holds in a model as deep as this one: what its error says."""
    chats = tools.chats.read_text(encoding="utf-8").splitlines()
    text = " ".join(json.loads(line)["messages"][-1]["content"] for line in chats)
    text = (text * (1 + 100_000 // len(text)))[:100_000]
    line = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]}
    server = Server(session, machine, tools, model.parent, "too-large")
    file = server.upload("".join([json.dumps(line) + "\n", *short_chats(9)]))
    job = server.create(model.name, file, {"n_epochs": 1, "batch_size": 1, "context_length": 131072})
    entry["job"] = summary(server, server.wait(job))
    error = entry["job"].get("error") or {}
    if error.get("code") != "out_of_memory":
        raise Failed(f"its error is not out_of_memory: {error}")
