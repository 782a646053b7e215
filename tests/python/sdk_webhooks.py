"""Manages webhook endpoints with the unmodified `openai` SDK, and verifies what they are told.

Usage: sdk_webhooks.py BASE_URL

The server must be allowed to deliver to 127.0.0.1.
"""

import http.server
import io
import json
import queue
import sys
import threading

import openai

(base_url,) = sys.argv[1:]
client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="any")
EVENTS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
received = queue.Queue()
answers = queue.Queue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        received.put((body, dict(self.headers)))
        self.send_response(answers.get())
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=receiver.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{receiver.server_port}/hook"


def unwrap(secret):
    """The next delivery, which the secret must verify; its id, time and event."""
    body, headers = received.get(timeout=60)
    event = client.webhooks.unwrap(body, headers, secret=secret)
    headers = {name.lower(): value for name, value in headers.items()}
    return headers["webhook-id"], int(headers["webhook-timestamp"]), event


assert client.webhooks.event_types.list().data == EVENTS
endpoint = client.webhooks.create(name="first", url=url, event_types=EVENTS)
assert endpoint.object == "webhook_endpoint" and endpoint.event_types == EVENTS
assert endpoint.signing_secret.startswith("whsec_")
assert client.webhooks.retrieve(endpoint.id).signing_secret_hint == endpoint.signing_secret_hint
for wrong in [{"url": "http://10.0.0.1/"}, {"event_types": ["nothing"]}]:
    try:
        client.webhooks.create(**{"name": "n", "url": url, "event_types": EVENTS, **wrong})
    except openai.BadRequestError as error:
        assert error.body["message"], error
    else:
        raise AssertionError(f"{wrong} was taken")

answers.put(200)
sample = client.webhooks.test(endpoint.id, event_type=EVENTS[0])
assert sample.success and sample.status_code == 200 and sample.event_type == EVENTS[0]
_, _, event = unwrap(endpoint.signing_secret)
assert isinstance(event, openai.types.webhooks.FineTuningJobSucceededWebhookEvent), event

# A delivery that is refused once: the repetition verifies too, under the same id.
answers.put(500)
answers.put(200)
line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
content = io.BytesIO((json.dumps(line) + "\n").encode())
file = client.files.create(file=("few.jsonl", content), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="tiny-llama", training_file=file.id)
first, second = unwrap(endpoint.signing_secret), unwrap(endpoint.signing_secret)
assert first[0] == second[0] and first[1] < second[1] and first[2] == second[2]
assert isinstance(second[2], openai.types.webhooks.FineTuningJobFailedWebhookEvent), second
assert second[2].data.id == job.id and second[2].object == "event"

rotated = client.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
answers.put(200)
client.webhooks.test(endpoint.id, event_type=EVENTS[2])
body, headers = received.get(timeout=60)
for secret in [endpoint.signing_secret, rotated.signing_secret]:
    client.webhooks.unwrap(body, headers, secret=secret)
again = client.webhooks.rotate_secret(endpoint.id)
answers.put(200)
client.webhooks.test(endpoint.id, event_type=EVENTS[2])
body, headers = received.get(timeout=60)
client.webhooks.unwrap(body, headers, secret=again.signing_secret)
try:
    client.webhooks.unwrap(body, headers, secret=rotated.signing_secret)
except openai.InvalidWebhookSignatureError:
    pass
else:
    raise AssertionError("a secret that was rotated away still verifies")

assert client.webhooks.update(endpoint.id, name="renamed").name == "renamed"
for number in range(4):
    client.webhooks.create(name=str(number), url=url, event_types=EVENTS[:1])
listed = list(client.webhooks.list(limit=2))
assert [one.name for one in listed] == ["3", "2", "1", "0", "renamed"]
for one in listed:
    deleted = client.webhooks.delete(one.id)
    assert deleted.deleted and deleted.object == "webhook_endpoint.deleted"
assert list(client.webhooks.list()) == []
print("the openai SDK", openai.__version__, "manages and verifies webhooks")
