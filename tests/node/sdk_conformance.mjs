// Section 9 of hone's contract with OpenAI's clients, item by item, through an unmodified `openai`.
//
// Usage: sdk_conformance.mjs BASE_URL PACKAGE, where PACKAGE is `openai-6` or `openai-7`
// (package.json says which versions these are). Needs nothing but Node and that package.

import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import test from "node:test";

const [baseUrl, name] = process.argv.slice(2);
const { default: OpenAI, toFile } = await import(name);
const { version } = JSON.parse(
  fs.readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url)),
);
console.log(`openai-node ${version} on Node ${process.version}`);

const MODEL = "tiny-llama";
let requests = 0;
const client = new OpenAI({
  baseURL: `${baseUrl}/v1`,
  apiKey: "any",
  adminAPIKey: "any",
  fetch: (...call) => {
    requests += 1;
    return fetch(...call);
  },
});

let content = "";
for (let number = 0; number < 12; number += 1) {
  const messages = [
    { role: "user", content: `What comes after ${number}?` },
    { role: "assistant", content: `${number + 1}, of course.` },
  ];
  content += `${JSON.stringify({ messages })}\n`;
}
const train = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "hone-node-")), "train.jsonl");
fs.writeFileSync(train, content);

const collect = async (pages) => {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
};

const until = async (job, wanted) => {
  const deadline = Date.now() + 120_000;
  while (!wanted(job)) {
    assert(Date.now() < deadline, JSON.stringify(job));
    await new Promise((resume) => setTimeout(resume, 20));
    job = await client.fineTuning.jobs.retrieve(job.id);
  }
  return job;
};

const newJob = async (more) => {
  const file = await client.files.create({
    file: fs.createReadStream(train),
    purpose: "fine-tune",
  });
  return client.fineTuning.jobs.create({
    model: MODEL,
    training_file: file.id,
    seed: 1,
    ...more,
  });
};

let made;
const trained = async () => {
  made ??= await until(
    await newJob({
      suffix: "nine",
      method: {
        type: "supervised",
        supervised: { hyperparameters: { n_epochs: 3, batch_size: 2 } },
      },
      metadata: { "a b": "c&d=e/f" },
    }),
    (job) => !["queued", "running"].includes(job.status),
  );
  assert.equal(made.status, "succeeded", JSON.stringify(made));
  return made;
};

// 9.1: the SDK's own calls.

test("section_9_1_upload_of_a_node_stream_and_of_bytes", async () => {
  for (const [file, filename] of [
    [fs.createReadStream(train), "train.jsonl"],
    [await toFile(Buffer.from(content), "bytes.jsonl"), "bytes.jsonl"],
    [new File([content], "file.jsonl"), "file.jsonl"],
  ]) {
    const uploaded = await client.files.create({ file, purpose: "fine-tune" });
    assert.equal(uploaded.filename, filename);
    assert.equal(uploaded.bytes, content.length);
    assert.equal(uploaded.status, "processed");
    assert.deepEqual(await client.files.retrieve(uploaded.id), uploaded);
    assert.equal(await (await client.files.content(uploaded.id)).text(), content);
    assert.equal((await client.files.waitForProcessing(uploaded.id)).status, "processed");
    assert((await client.files.delete(uploaded.id)).deleted);
    await assert.rejects(client.files.retrieve(uploaded.id), OpenAI.NotFoundError);
  }
});

test("section_9_1_files_are_paged_through", async () => {
  for (let number = 0; number < 7; number += 1) {
    await client.files.create({
      file: fs.createReadStream(train),
      purpose: "user_data",
      expires_after: { anchor: "created_at", seconds: 7200 },
    });
  }
  const files = await collect(client.files.list({ limit: 2, purpose: "user_data" }));
  assert.equal(new Set(files.map((file) => file.id)).size, 7);
  assert.equal(files.length, 7);
  assert(files.every((file) => file.expires_at === file.created_at + 7200));
});

test("section_9_1_upload_in_parts", async () => {
  const upload = await client.uploads.create({
    bytes: content.length,
    filename: "parts.jsonl",
    mime_type: "text/jsonl",
    purpose: "fine-tune",
  });
  const parts = [];
  for (const piece of [content.slice(0, 100), content.slice(100)]) {
    parts.push(await client.uploads.parts.create(upload.id, { data: new File([piece], "piece") }));
  }
  const done = await client.uploads.complete(upload.id, {
    part_ids: parts.map((part) => part.id),
  });
  assert.equal(done.status, "completed");
  assert.equal(await (await client.files.content(done.file.id)).text(), content);
});

test("section_9_1_job_create_list_retrieve", async () => {
  const job = await trained();
  assert.deepEqual(await client.fineTuning.jobs.retrieve(job.id), job);
  assert(job.fine_tuned_model.startsWith(`ft:${MODEL}:`) && job.error === null);
  assert.equal(job.method.supervised.hyperparameters.n_epochs, 3);
  const others = [];
  for (let number = 0; number < 3; number += 1) others.push(await newJob({ hyperparameters: { n_epochs: 1 } }));
  const walked = await collect(client.fineTuning.jobs.list({ limit: 2 }));
  assert.deepEqual(
    walked.map((one) => one.id).slice(0, 4),
    [...others.map((one) => one.id).reverse(), job.id],
  );
  for (const other of others) await until(other, (one) => one.finished_at);
});

test("section_9_1_jobs_filtered_by_metadata", async () => {
  const job = await trained();
  const found = await collect(
    client.fineTuning.jobs.list({ metadata: { "a b": "c&d=e/f" } }),
  );
  assert.deepEqual(found.map((one) => one.id), [job.id]);
});

test("section_9_1_job_cancel_pause_resume", async () => {
  const job = await newJob({ hyperparameters: { n_epochs: 50, batch_size: 1 } });
  await until(job, (one) => one.status === "running");
  await client.fineTuning.jobs.pause(job.id);
  const paused = await until(
    await client.fineTuning.jobs.retrieve(job.id),
    (one) => one.status !== "running",
  );
  assert.equal(paused.status, "paused");
  const resumed = await client.fineTuning.jobs.resume(job.id);
  assert(["queued", "running"].includes(resumed.status));
  assert.equal((await client.fineTuning.jobs.cancel(job.id)).status, "cancelled");
  assert.equal((await client.fineTuning.jobs.cancel(job.id)).status, "cancelled");
});

test("section_9_1_auto_paging_events_over_three_pages", async () => {
  const job = await trained();
  const before = requests;
  const events = await collect(client.fineTuning.jobs.listEvents(job.id, { limit: 5 }));
  assert(requests - before >= 3, "three pages at least");
  assert.equal(new Set(events.map((event) => event.id)).size, events.length);
  assert.equal(events[0].message, "The job has successfully completed");
});

test("section_9_1_checkpoints", async () => {
  const job = await trained();
  const checkpoints = await collect(
    client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }),
  );
  assert.deepEqual(checkpoints.map((one) => one.step_number), [18, 12, 6]);
  for (const one of checkpoints) {
    assert((await client.models.retrieve(one.fine_tuned_model_checkpoint)).id);
  }
});

test("section_9_1_model_get_and_delete_with_a_slash_in_the_id", async () => {
  for (const call of ["retrieve", "delete"]) {
    await assert.rejects(client.models[call]("Qwen/Qwen2.5-0.5B"), (error) => {
      assert(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      assert(error.message.includes('"Qwen/Qwen2.5-0.5B"'), error.message);
      return true;
    });
  }
  const job = await until(
    await newJob({ hyperparameters: { n_epochs: 1 } }),
    (one) => one.finished_at,
  );
  const listed = await collect(client.models.list());
  assert(listed.some((model) => model.id === job.fine_tuned_model));
  assert((await client.models.delete(job.fine_tuned_model)).deleted);
  await assert.rejects(client.models.delete(MODEL), OpenAI.PermissionDeniedError);
});

test("section_9_1_chat_with_usage", async () => {
  const answer = await client.chat.completions.create({
    model: (await trained()).fine_tuned_model,
    messages: [{ role: "user", content: "What comes after 3?" }],
    max_tokens: 8,
  });
  const { total_tokens: total, prompt_tokens: read, completion_tokens: written } = answer.usage;
  assert(written > 0 && total === read + written);
});

const question = {
  model: MODEL,
  messages: [{ role: "user", content: "What comes after 3?" }],
  max_tokens: 8,
  temperature: 0,
};

test("section_9_1_chat_stream_with_usage", async () => {
  const whole = await client.chat.completions.create(question);
  const stream = await client.chat.completions.create({
    ...question,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await collect(stream);
  const last = chunks.pop();
  // The prompt is the one that was read before, but for its last token at least.
  const cached = last.usage.prompt_tokens_details.cached_tokens;
  assert(cached > 0 && cached < whole.usage.prompt_tokens);
  const usage = { ...whole.usage, prompt_tokens_details: { cached_tokens: cached } };
  assert.deepEqual([last.choices, last.usage], [[], usage]);
  assert(chunks.every((chunk) => chunk.usage === null && chunk.id === last.id));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
});

test("section_9_1_chat_logprobs", async () => {
  const answer = await client.chat.completions.create({
    ...question,
    logprobs: true,
    top_logprobs: 2,
  });
  for (const token of answer.choices[0].logprobs.content) {
    assert.equal(token.top_logprobs.length, 2);
    assert.equal(token.logprob, token.top_logprobs[0].logprob);
    assert(Array.isArray(token.bytes));
  }
});

test("section_9_1_chat_stream_that_is_left_ends", async () => {
  // Nothing but the context ends these answers, which take far longer than one token.
  const bias = { 0: -100, 1: -100, 2: -100 };
  const endless = { ...question, n: 8, max_tokens: 400, logit_bias: bias };
  const timed = async (call) => {
    const started = performance.now();
    await call();
    return performance.now() - started;
  };
  const whole = await timed(() => client.chat.completions.create(endless));
  const stream = await client.chat.completions.create({ ...endless, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.choices[0].delta.role, "assistant");
    break;
  }
  const waited = await timed(() => client.chat.completions.create({ ...question, max_tokens: 1 }));
  assert(waited < whole / 3, `${waited} of ${whole}`);
});

test("section_9_1_completions_whole_streamed_and_scored", async () => {
  const asked = { model: MODEL, prompt: "What comes after", temperature: 0 };
  const whole = await client.completions.create(asked);
  const chunks = await collect(await client.completions.create({ ...asked, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
  const scored = await client.completions.create({
    ...asked,
    prompt: [68, 69, 70],
    echo: true,
    logprobs: 1,
    max_tokens: 0,
  });
  const { text, logprobs } = scored.choices[0];
  assert.deepEqual([text, logprobs.tokens], ["ABC", ["A", "B", "C"]]);
  assert.equal(logprobs.token_logprobs[0], null);
  assert(logprobs.token_logprobs.slice(1).every((logprob) => logprob < 0));
});

// 9.2 is what `files.create` of a stream sends: the file before its purpose, chunked, without length.

// 9.3 and 9.4: empty bodies without a content type, and errors.

test("section_9_3_an_empty_post_without_a_content_type", async () => {
  const job = await newJob({ hyperparameters: { n_epochs: 50 } });
  assert.equal((await client.fineTuning.jobs.cancel(job.id)).status, "cancelled");
});

test("section_9_4_errors_have_their_class_code_param_and_request_id", async () => {
  await assert.rejects(client.fineTuning.jobs.retrieve("ftjob-none"), (error) => {
    assert(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "fine_tune_not_found");
    assert.equal(error.param, "fine_tune_id");
    assert(error.requestID);
    return true;
  });
  await assert.rejects(newJob({ hyperparameters: { nepochs: 1 } }), (error) => {
    assert(error instanceof OpenAI.BadRequestError);
    assert(error.param.includes("nepochs"), error.param);
    return true;
  });
  await assert.rejects(client.get("/nothing"), OpenAI.NotFoundError);
});

// 9.5: no useless repetitions.

test("section_9_5_a_state_conflict_is_asked_about_once", async () => {
  const job = await trained();
  const before = requests;
  await assert.rejects(client.fineTuning.jobs.cancel(job.id), OpenAI.BadRequestError);
  assert.equal(requests - before, 1);
});

test("section_9_5_a_refused_part_of_20_mib_is_sent_once", async () => {
  const upload = await client.uploads.create({
    filename: "cancelled.jsonl",
    purpose: "fine-tune",
    bytes: 20 << 20,
    mime_type: "text/jsonl",
  });
  await client.uploads.cancel(upload.id);
  const data = await toFile(new Uint8Array(20 << 20), "part");
  const before = requests;
  await assert.rejects(client.uploads.parts.create(upload.id, { data }), OpenAI.BadRequestError);
  // The SDK asks `data:,` once whether its fetch can send forms.
  assert(requests - before <= 2, `${requests - before} requests`);
});

// 9.6 and 9.7: the end of a job.

test("section_9_6_at_the_moment_of_success_the_csv_downloads_and_the_model_answers", async () => {
  const job = await until(
    await newJob({ hyperparameters: { n_epochs: 2 } }),
    (one) => one.status === "succeeded",
  );
  const answer = await client.chat.completions.create({
    model: job.fine_tuned_model,
    messages: [{ role: "user", content: "What comes after 3?" }],
    max_tokens: 2,
  });
  assert.equal(answer.model, job.fine_tuned_model);
  const text = await (await client.files.content(job.result_files[0])).text();
  assert(text.startsWith("step,train_loss,train_accuracy,valid_loss,"), text);
});

test("section_9_7_every_cell_of_the_csv_is_a_number_or_empty", async () => {
  const text = await (await client.files.content((await trained()).result_files[0])).text();
  const [head, ...rows] = text.trim().split("\n").map((line) => line.split(","));
  assert.equal(rows.length, 18);
  for (const row of rows) {
    assert.equal(row.length, head.length);
    assert(row.every((cell) => cell === "" || Number.isFinite(Number(cell))), row.join());
  }
});
