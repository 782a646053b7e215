// Section 9.8 of hone's contract with OpenAI's clients: deliveries verify with an unmodified `openai`.
//
// Usage: sdk_webhooks.mjs BASE_URL PACKAGE, where PACKAGE is `openai-6` or `openai-7`.
// The server must be allowed to deliver to 127.0.0.1.

import assert from "node:assert/strict";
import http from "node:http";
import test from "node:test";

const [baseUrl, name] = process.argv.slice(2);
const { default: OpenAI, InvalidWebhookSignatureError, toFile } = await import(name);

const client = new OpenAI({ baseURL: `${baseUrl}/v1`, apiKey: "any", adminAPIKey: "any" });
const EVENTS = ["succeeded", "failed", "cancelled"].map((end) => `fine_tuning.job.${end}`);

// What came, and whoever waits for more.
const received = [];
const waiting = [];
const answers = [];
const receiver = http.createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    response.writeHead(answers.shift() ?? 200, { "content-length": 0 }).end();
    received.push({ body: Buffer.concat(pieces).toString(), headers: request.headers });
    waiting.shift()?.();
  });
});
await new Promise((listening) => receiver.listen(0, "127.0.0.1", listening));
const url = `http://127.0.0.1:${receiver.address().port}/hook`;

const next = async () => {
  while (received.length === 0) await new Promise((come) => waiting.push(come));
  return received.shift();
};

test("section_9_8_deliveries_and_a_repetition_verify", { timeout: 60_000 }, async () => {
  // 6.x verifies deliveries and has no calls for endpoints: there they are plain requests.
  const wanted = { name: "node", url, event_types: EVENTS };
  const endpoint = client.webhooks.create
    ? await client.webhooks.create(wanted)
    : await client.post("/webhook_endpoints", { body: wanted });
  const secret = endpoint.signing_secret;

  // The first is refused, so that it comes again: signed anew, under the same id.
  answers.push(500);
  const line = { messages: [{ role: "user", content: "a" }, { role: "assistant", content: "b" }] };
  const file = await client.files.create({
    file: await toFile(Buffer.from(`${JSON.stringify(line)}\n`), "few.jsonl"),
    purpose: "fine-tune",
  });
  const job = await client.fineTuning.jobs.create({ model: "tiny-llama", training_file: file.id });
  const deliveries = [await next(), await next()];
  for (const { body, headers } of deliveries) {
    const event = await client.webhooks.unwrap(body, headers, secret);
    assert.equal(event.object, "event");
    assert.equal(event.type, "fine_tuning.job.failed");
    assert.equal(event.data.id, job.id);
  }
  const [first, second] = deliveries.map((delivery) => delivery.headers);
  assert.equal(first["webhook-id"], second["webhook-id"]);
  assert(Number(first["webhook-timestamp"]) < Number(second["webhook-timestamp"]));

  // What was changed on the way, or signed by somebody else, does not verify.
  const { body, headers } = deliveries[1];
  for (const [text, key] of [
    [body.replace("failed", "succeeded"), secret],
    [body, `whsec_${Buffer.alloc(32).toString("base64")}`],
  ]) {
    await assert.rejects(client.webhooks.unwrap(text, headers, key), InvalidWebhookSignatureError);
  }
});

test.after(() => receiver.close());
