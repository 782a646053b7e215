//! `/v1/fine_tuning/jobs`: what a client sees of a job, from its creation to its model.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::server::{Server, TINY, chat_lines};

/// A run of twelve short steps.
fn short() -> Value {
    json!({"n_epochs": 2, "batch_size": 2})
}

/// A run that lasts until it is cancelled.
fn long() -> Value {
    json!({"n_epochs": 50, "batch_size": 1})
}

#[tokio::test]
async fn a_job_has_every_key_that_clients_require_and_ends_as_a_model_that_answers() {
    let server = Server::start();
    let training_file = server.upload(&chat_lines(12)).await;
    let validation_file = server.upload(&chat_lines(3)).await;
    let created = server
        .post(
            "/v1/fine_tuning/jobs",
            json!({"model": TINY, "training_file": training_file,
                "validation_file": validation_file, "suffix": "mine", "seed": 42,
                "metadata": {"team": "blue"}, "integrations": null, "colour": "red",
                "method": {"type": "supervised", "supervised": {"hyperparameters":
                    {"n_epochs": 2, "batch_size": "auto", "lora_r": 4}}}}),
        )
        .await
        .ok();
    assert_eq!(created["object"], "fine_tuning.job");
    assert_eq!(created["status"], "queued");
    assert_eq!(created["error"], Value::Null, "null, not an empty object");
    assert_eq!(created["hyperparameters"]["n_epochs"], 2);
    assert_eq!(created["hyperparameters"]["batch_size"], "auto");
    assert_eq!(created["metadata"], json!({"team": "blue"}));
    assert_eq!((&created["seed"], &created["user_provided_suffix"]), (&json!(42), &json!("mine")));
    for nullable in ["fine_tuned_model", "finished_at", "trained_tokens", "estimated_finish"] {
        assert_eq!(created.get(nullable), Some(&Value::Null), "{nullable} is there, as null");
    }
    assert_eq!(created["result_files"], json!([]));

    let id = created["id"].as_str().expect("an id");
    let job = server.ended(id, "succeeded").await;
    assert_eq!(job["hyperparameters"]["batch_size"], 1, "auto is resolved and shown");
    assert_eq!(job["method"]["supervised"]["hyperparameters"]["lora_r"], 4);
    assert_eq!(job["trained_steps"], 24);
    assert!(job["trained_tokens"].as_u64().is_some_and(|tokens| tokens > 100));
    let model = job["fine_tuned_model"].as_str().expect("a model");
    assert!(model.starts_with("ft:tiny-llama:local:mine:"), "{model}");

    // At the moment `succeeded` is visible, all of it works.
    let csv_id = job["result_files"][0].as_str().expect("a file");
    let csv = server.get(&format!("/v1/files/{csv_id}/content")).await.text;
    check_csv(&csv, 24);
    let body = json!({"model": model, "max_tokens": 3,
        "messages": [{"role": "user", "content": "What comes after 3?"}]});
    let reply = server.post("/v1/chat/completions", body).await.ok();
    assert_eq!(reply["model"], model);

    let checkpoints = server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await.ok();
    let steps: Vec<&Value> = checkpoints["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|checkpoint| &checkpoint["step_number"])
        .collect();
    assert_eq!(steps, [24, 12], "newest first, one for each epoch");
    let first = &checkpoints["data"][0];
    assert_eq!(first["object"], "fine_tuning.job.checkpoint");
    assert!(first["metrics"]["full_valid_loss"].is_f64(), "{first}");
    assert_eq!(first["result_files"].as_array().map(Vec::len), Some(3), "with its template");
    let name = first["fine_tuned_model_checkpoint"].as_str().expect("a name");
    assert_eq!(server.get(&format!("/v1/models/{name}")).await.ok()["parent"], TINY);

    let events = server.events(id).await;
    let messages: Vec<&str> = events.iter().filter_map(|event| event["message"].as_str()).collect();
    assert_eq!(messages[0], "The job has successfully completed", "newest first");
    assert_eq!(messages[messages.len() - 1], format!("Created fine-tuning job: {id}"));
    let is_about_colour = |event: &&Value| {
        event["level"] == "warn"
            && event["message"].as_str().is_some_and(|text| text.contains("\"colour\""))
    };
    assert!(events.iter().any(|event| is_about_colour(&event)), "an unknown field is said");
    let metrics: Vec<&Value> = events.iter().filter(|event| event["type"] == "metrics").collect();
    assert_eq!(metrics.len(), 24);
    assert_eq!(metrics[0]["data"]["step"], 24);
    assert!(metrics[0]["data"]["train_loss"].is_f64());
    assert!(messages.iter().any(|text| text.contains("batch_size is 1")), "auto is explained");
}

/// Numbers or nothing in every cell, the documented five columns first.
fn check_csv(csv: &str, steps: usize) {
    let mut lines = csv.lines();
    let header = lines.next().expect("a header");
    assert!(
        header.starts_with("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,"),
        "{header}"
    );
    let mut count = 0;
    for line in lines {
        count += 1;
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells.len(), header.split(',').count());
        assert!(cells.iter().all(|cell| cell.is_empty() || cell.parse::<f64>().is_ok()), "{line}");
        assert_eq!(cells[0], count.to_string());
    }
    assert_eq!(count, steps);
}

#[tokio::test]
async fn a_malformed_line_seven_fails_the_job_with_its_number_and_nothing_is_lost() {
    let server = Server::start();
    let mut lines: Vec<String> = chat_lines(12).lines().map(str::to_owned).collect();
    lines[6] = r#"{"messages": [{"role": "user", "content": "no answer"}"#.to_owned();
    let content = lines.join("\n");
    let file = server.upload(&content).await;
    assert_eq!(server.get(&format!("/v1/files/{file}")).await.ok()["status"], "processed");
    let body = json!({"model": TINY, "training_file": file});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    assert_eq!(job["status"], "failed");
    let error = &job["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_training_file"), &json!("training_file"))
    );
    assert!(error["message"].as_str().expect("a text").contains("line 7: "), "{error}");
    let id = job["id"].as_str().expect("an id");
    assert_eq!(server.events(id).await[0]["level"], "error");
    let kept = server.get(&format!("/v1/files/{file}/content")).await.text;
    assert_eq!(kept, content);

    // The server goes on.
    let next = server.create_job(&chat_lines(12), short()).await;
    server.ended(&next, "succeeded").await;
}

#[tokio::test]
async fn nine_examples_fail_the_job_and_ten_train() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(9), short()).await;
    let job = server.ended(&id, "failed").await;
    assert_eq!(job["error"]["code"], "invalid_n_examples");
    let message = job["error"]["message"].as_str().expect("a text");
    assert!(message.contains("9 examples") && message.contains("10"), "{message}");
    let id = server.create_job(&chat_lines(10), short()).await;
    server.ended(&id, "succeeded").await;
}

#[tokio::test]
async fn a_control_token_in_content_is_read_as_letters_and_a_warning_names_its_line() {
    let server = Server::start();
    let mut lines: Vec<String> = chat_lines(12).lines().map(str::to_owned).collect();
    lines[4] = json!({"messages": [{"role": "user", "content": "ends <|im_end|> here"},
        {"role": "assistant", "content": "x"}]})
    .to_string();
    let id = server.create_job(&lines.join("\n"), short()).await;
    server.ended(&id, "succeeded").await;
    let events = server.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=100")).await.ok();
    let said =
        |event: &&Value| event["message"].as_str().is_some_and(|text| text.contains("line 5"));
    let events = events["data"].as_array().expect("a list");
    let warning = events.iter().find(said).expect("a warning about the line");
    assert_eq!(warning["level"], "warn", "{warning}");
    let message = warning["message"].as_str().expect("a text");
    assert!(message.contains("messages[0].content") && message.contains("<|im_end|>"), "{message}");

    // A job may refuse such texts.
    let file = server.upload(&lines.join("\n")).await;
    let body = json!({"model": TINY, "training_file": file, "control_tokens": "refuse"});
    let strict = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let job = server.ended(strict["id"].as_str().expect("an id"), "failed").await;
    let message = job["error"]["message"].as_str().expect("a text");
    assert!(message.contains("line 5") && message.contains("<|im_end|>"), "{message}");
    assert_eq!(job["control_tokens"], "refuse");

    // An end user's message is no error, and it ends no turn.
    let tokens = async |content: &str| {
        let body = json!({"model": TINY, "max_tokens": 1, "messages": [{"role": "user", "content": content}]});
        server.post("/v1/chat/completions", body).await.ok()["usage"]["prompt_tokens"].clone()
    };
    let letters = tokens("ends <|im_end|> here").await.as_u64();
    let none = tokens("ends  here").await.as_u64();
    assert!(letters > none.map(|none| none + 1), "{letters:?} {none:?}");
}

#[tokio::test]
async fn what_does_not_exist_or_is_unknown_is_refused_and_no_job_is_made() {
    let server = Server::start();
    let file = server.upload(&chat_lines(12)).await;
    let create = async |body: Value| server.post("/v1/fine_tuning/jobs", body).await;
    let error = create(json!({"model": "gpt-9", "training_file": file})).await.error(404);
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    assert!(error["message"].as_str().is_some_and(|text| text.contains(TINY)), "{error}");

    let error = create(json!({"model": TINY, "training_file": "file-none"})).await.error(400);
    assert_eq!(error["param"], "training_file");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("file-none")));
    let body = json!({"model": TINY, "training_file": file, "validation_file": "file-none"});
    assert_eq!(create(body).await.error(400)["param"], "validation_file");

    for (place, body) in [
        (
            "hyperparameters.nepochs",
            json!({"model": TINY, "training_file": file, "hyperparameters": {"nepochs": 1}}),
        ),
        (
            "method.supervised.hyperparameters.lora_rank",
            json!({"model": TINY, "training_file": file, "method": {"type": "supervised",
                "supervised": {"hyperparameters": {"lora_rank": 1}}}}),
        ),
        (
            "hyperparameters.n_epochs",
            json!({"model": TINY, "training_file": file, "hyperparameters": {"n_epochs": 51}}),
        ),
        (
            "method.dpo.hyperparameters.compute_multiplier",
            json!({"model": TINY, "training_file": file, "method": {"type": "dpo",
                "dpo": {"hyperparameters": {"compute_multiplier": 1}}}}),
        ),
    ] {
        let error = create(body).await.error(400);
        assert_eq!(error["param"], place);
        assert_eq!(error["code"], "invalid_hyperparameter");
    }
    // What OpenAI's API has and hone does not: said, never accepted silently.
    let wandb = json!({"type": "wandb", "wandb": {"project": "mine", "tags": ["a"]}});
    let grader = json!({"type": "string_check", "name": "g", "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}", "operation": "eq"});
    for (param, code, extra) in [
        ("integrations", "unsupported", json!({"integrations": [wandb]})),
        ("integrations[0].type", "invalid_request", json!({"integrations": [{"type": "x"}]})),
        (
            "method.type",
            "unsupported",
            json!({"method": {"type": "reinforcement", "reinforcement": {"grader": grader}}}),
        ),
    ] {
        let mut body = json!({"model": TINY, "training_file": file});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("one").clone());
        let error = create(body).await.error(400);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{error}");
    }
    let jobs = server.get("/v1/fine_tuning/jobs").await.ok();
    assert_eq!(jobs["data"], json!([]));
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn queued_running_and_ended_jobs_answer_cancel_as_openai_does() {
    let server = Server::start();
    let running = server.create_job(&chat_lines(12), long()).await;
    let queued = server.create_job(&chat_lines(12), long()).await;
    server.under_way(&running).await;
    // The Python SDK sends a content type and no body, others send neither.
    let cancel = async |id: &str, content_type: Option<&str>| {
        let url = format!("{}/v1/fine_tuning/jobs/{id}/cancel", server.base);
        let mut request = server.client.post(url);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        crate::support::server::Reply::read(request.send().await.expect("a reply")).await
    };
    assert_eq!(cancel(&queued, Some("application/json")).await.ok()["status"], "cancelled");
    assert_eq!(cancel(&running, None).await.ok()["status"], "cancelled");
    assert_eq!(cancel(&running, None).await.ok()["status"], "cancelled", "again is no error");
    for id in [&queued, &running] {
        let last = server.events(id).await.swap_remove(0);
        assert_eq!(
            last["message"], "Fine-tuning job cancelled",
            "the last event says how it ended"
        );
    }
    let job = server.ended(&running, "cancelled").await;
    assert_eq!((&job["error"], &job["fine_tuned_model"]), (&Value::Null, &Value::Null));

    let next = server.create_job(&chat_lines(12), short()).await;
    server.ended(&next, "succeeded").await;
    let error = cancel(&next, None).await.error(400);
    assert_eq!(error["code"], "job_not_cancellable");
    assert_eq!(cancel("ftjob-none", None).await.error(404)["code"], "fine_tune_not_found");
}

#[tokio::test]
async fn looks_checkpoints_and_the_last_rate_can_be_stated_as_other_services_have_it() {
    let server = Server::start();
    let training_file = server.upload(&chat_lines(12)).await;
    let validation_file = server.upload(&chat_lines(3)).await;
    let hyperparameters = json!({"n_epochs": 2, "batch_size": 1, "learning_rate": 1e-3, "packing": true,
        "min_lr_ratio": 0.5, "n_evals": 2, "n_checkpoints": 3, "early_stopping_enabled": false});
    let body = json!({"model": TINY, "training_file": training_file,
        "validation_file": validation_file, "hyperparameters": hyperparameters});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id");
    let job = server.ended(id, "succeeded").await;
    let values = &job["method"]["supervised"]["hyperparameters"];
    for (name, value) in [
        ("min_lr_ratio", json!(0.5)),
        ("n_evals", json!(2)),
        ("n_checkpoints", json!(3)),
        ("early_stopping_patience", json!(0)),
    ] {
        assert_eq!(values[name], value, "{values}");
    }
    let rows = server.get(&format!("/v1/fine_tuning/jobs/{id}/metrics?limit=100")).await.ok();
    let rows = rows["data"].as_array().expect("a list").clone();
    let numbered = |row: &Value| row["step"].as_u64().expect("a number");
    let mut looks: Vec<u64> =
        rows.iter().filter(|row| row["full_valid_loss"].is_f64()).map(numbered).collect();
    looks.sort_unstable();
    assert_eq!(looks, [12, 24]);
    let last = rows.iter().find(|row| numbered(row) == 24).expect("the last step");
    let rate = last["learning_rate"].as_f64().expect("a number");
    assert!((5e-4..6e-4).contains(&rate), "{rate}");
    let checkpoints = server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await.ok();
    let checkpoints = checkpoints["data"].as_array().expect("a list");
    let saved: Vec<&Value> = checkpoints.iter().map(|one| &one["step_number"]).collect();
    for step in [8, 16, 24] {
        assert!(saved.contains(&&json!(step)), "{saved:?}");
    }
    let said = server.events(id).await;
    let mut said = said.iter().filter_map(|event| event["message"].as_str());
    assert!(said.any(|text| text.contains("packing changes nothing")));
}

#[tokio::test]
async fn lists_walk_from_new_to_old_and_filter_by_metadata() {
    let server = Server::start();
    let file = server.upload(&chat_lines(9)).await;
    let mut made = Vec::new();
    for number in 0..5 {
        let body = json!({"model": TINY, "training_file": file,
            "metadata": {"a b": format!("c&{}", number % 2), "n": number.to_string()}});
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        made.push(job["id"].as_str().expect("an id").to_owned());
    }
    made.reverse();
    let page = server.get("/v1/fine_tuning/jobs?limit=3").await.ok();
    assert_eq!((&page["object"], &page["has_more"]), (&json!("list"), &json!(true)));
    let after = made[2].clone();
    assert_eq!(page["data"][2]["id"], after);
    let rest = server.get(&format!("/v1/fine_tuning/jobs?limit=3&after={after}")).await.ok();
    assert_eq!(rest["has_more"], false);
    assert_eq!(
        (&rest["data"][0]["id"], &rest["data"][1]["id"]),
        (&json!(made[3]), &json!(made[4]))
    );

    // As Python, Node and curl write the same filter.
    for query in ["metadata%5Ba+b%5D=c%261", "metadata%5Ba%20b%5D=c%261", "metadata[a%20b]=c%261"] {
        let page = server.get(&format!("/v1/fine_tuning/jobs?{query}")).await.ok();
        let ids: Vec<&Value> =
            page["data"].as_array().expect("a list").iter().map(|job| &job["id"]).collect();
        assert_eq!(ids, [made[1].as_str(), made[3].as_str()], "{query}");
    }
    // Without metadata, with an empty value, and what is no filter.
    let mut others = Vec::new();
    for metadata in [json!(null), json!({"a b": ""}), json!({})] {
        let body = json!({"model": TINY, "training_file": file, "metadata": metadata});
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        others.push(job["id"].as_str().expect("an id").to_owned());
    }
    for (query, expected) in [
        ("metadata=null", &others[..1]),
        ("metadata[a+b]=", &others[1..2]),
        ("metadata%5Ba+b%5D=c%261&metadata%5Bn%5D=3", &made[1..2]),
        ("metadata[n]=null", &[]),
        ("metadata[null]=null", &[]),
    ] {
        let page = server.get(&format!("/v1/fine_tuning/jobs?{query}")).await.ok();
        let jobs = page["data"].as_array().expect("a list");
        let ids: Vec<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).collect();
        assert_eq!(ids, expected, "{query}");
    }
    for query in ["metadata=", "", "metadata=&limit=9999999999999"] {
        let page = server.get(&format!("/v1/fine_tuning/jobs?{query}")).await.ok();
        assert_eq!(page["data"].as_array().map(Vec::len), Some(8), "{query}");
    }
    for (query, param) in [
        ("metadata=blue", "metadata"),
        ("metadata[n=1", "metadata"),
        ("metadata=null&metadata[n]=1", "metadata"),
        ("metadata[n]=1&metadata[n]=2", "metadata[n]"),
        ("limit=0", "limit"),
        ("limit=2.5", "limit"),
    ] {
        let error = server.get(&format!("/v1/fine_tuning/jobs?{query}")).await.error(400);
        assert_eq!(error["param"], param, "{query}");
    }
    let error = server.get("/v1/fine_tuning/jobs?after=ftjob-none").await.error(400);
    assert_eq!(error["param"], "after");
    for route in ["", "/events", "/checkpoints"] {
        let error = server.get(&format!("/v1/fine_tuning/jobs/ftjob-none{route}")).await.error(404);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("fine_tune_not_found"), &json!("fine_tune_id"))
        );
    }
}

#[tokio::test]
async fn ignored_fields_are_named_in_one_event_however_many_there_are() {
    let server = Server::start();
    let file = server.upload(&chat_lines(9)).await;
    let mut body = json!({"model": TINY, "training_file": file, "colour": "red", "n_epochs": 3});
    let job = server.post("/v1/fine_tuning/jobs", body.clone()).await.ok();
    let ignored = async |job: &Value| -> Vec<String> {
        let events = server.events(job["id"].as_str().expect("an id")).await;
        let texts = events.iter().filter_map(|event| event["message"].as_str());
        texts.filter(|text| text.contains("ignored")).map(str::to_owned).collect()
    };
    let expected =
        "The request's fields \"colour\", \"n_epochs\" are not used by hone and were ignored";
    assert_eq!(ignored(&job).await, [expected]);

    // Inside the method too, where another method's settings stand beside this one's.
    let inner = json!({"model": TINY, "training_file": file, "method": {"type": "supervised",
        "dpo": {"hyperparameters": {"beta": 0.1}}, "reinforcement": null,
        "supervised": {"foo": 1, "hyperparameters": {"n_epochs": 2}}}});
    let job = server.post("/v1/fine_tuning/jobs", inner).await.ok();
    let expected = "The request's fields \"method.dpo\", \"method.supervised.foo\" are not used by \
                    hone and were ignored";
    assert_eq!(ignored(&job).await, [expected]);

    for number in 0..20_000 {
        body[format!("field-{number}")] = json!(1);
    }
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let texts = ignored(&job).await;
    assert!(texts.len() == 1 && texts[0].contains("and 19952 more"), "{texts:?}");
    assert!(texts[0].len() < 2000);
}

#[tokio::test]
async fn events_come_in_pages_that_meet() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), short()).await;
    server.ended(&id, "succeeded").await;
    let all: Vec<Value> = server.events(&id).await;
    let mut walked = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/fine_tuning/jobs/{id}/events?limit=4&after={after}");
        let page = server.get(&path).await.ok();
        walked.extend(page["data"].as_array().expect("a list").clone());
        if page["has_more"] == false {
            break;
        }
        after = walked[walked.len() - 1]["id"].as_str().expect("an id").to_owned();
    }
    assert_eq!(walked, all);
}

#[tokio::test]
async fn a_running_job_survives_the_servers_death_and_its_orderly_end() {
    let server = Server::start();
    let disturbed =
        server.create_job(&chat_lines(12), json!({"n_epochs": 20, "batch_size": 1})).await;
    let undisturbed =
        server.create_job(&chat_lines(12), json!({"n_epochs": 20, "batch_size": 1})).await;
    server.under_way(&disturbed).await;
    let server = server.kill_and_restart();
    server.until(&disturbed, |job| job["status"] == "running").await;
    let server = server.stop_and_restart();
    let job = server.ended(&disturbed, "succeeded").await;
    let other = server.ended(&undisturbed, "succeeded").await;
    assert_eq!(job["trained_steps"], 240);
    assert_eq!(job["trained_tokens"], other["trained_tokens"]);
    let name = "adapter_model.safetensors";
    let bytes = server.result_file(&job, name).await;
    assert!(bytes == server.result_file(&other, name).await, "an interruption changes no bit");
}

#[tokio::test]
async fn a_bad_file_lists_every_problem_with_line_message_and_key() {
    let server = Server::start();
    let good = chat_lines(3);
    let bad = [
        r#"{"messages": [{"role": "user", "content": "a"}"#,
        r#"{"messages": []}"#,
        r#"{"messages": [{"role": "user", "content": "a"}]}"#,
        r#"{"messages": [{"role": "king", "content": "a"}, {"role": "assistant"}]}"#,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 2}]}"#,
        r#"{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"prompt": "a"}"#,
        r#"{"prompt": "a", "completion": "b"}"#,
        r#"{"text": {"messages": []}}"#,
        r#"["not an object"]"#,
    ];
    let content = format!("\u{feff}{good}\r\n\n{}", bad.join("\n"));
    let id = server.create_job(&content, short()).await;
    let job = server.ended(&id, "failed").await;
    assert_eq!(job["error"]["code"], "invalid_training_file");
    insta::assert_snapshot!(job["error"]["message"].as_str().expect("a text"));
}

#[tokio::test]
async fn a_file_that_is_no_jsonl_is_named_in_one_sentence_with_what_to_do() {
    let server = Server::start();
    let good = chat_lines(12);
    let lines: Vec<&str> = good.lines().collect();
    let utf16 = |mark: &str| {
        let text = format!("{mark}{good}");
        text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()
    };
    let pretty: Vec<String> = lines
        .iter()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            serde_json::to_string_pretty(&line).expect("JSON")
        })
        .collect();
    for (content, wanted) in [
        (utf16("\u{feff}"), "the file is UTF-16LE, and JSONL is UTF-8: save it as UTF-8"),
        (utf16(""), "the file is UTF-16LE, and JSONL is UTF-8: save it as UTF-8"),
        (format!("[{}]", lines.join(", ")).into_bytes(), "one JSON list of 12 examples: JSONL has"),
        (format!("[\n{}\n]\n", lines.join(",\n")).into_bytes(), "one JSON list of 12 examples"),
        (
            pretty.join("\n").into_bytes(),
            "12 JSON objects over several lines: JSONL has one object",
        ),
        (good.replace('\n', "\r").into_bytes(), "the lines of the file end in CR alone"),
        (b"prompt,completion\na,b\nc,d\n".to_vec(), "a table with the separator ',' (CSV)"),
        (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "packed with gzip: unpack it"),
        (b"PK\x03\x04".to_vec(), "a zip archive: unpack it"),
        (b"PAR1....".to_vec(), "a Parquet table: write its rows as JSONL"),
    ] {
        let part = Part::bytes(content).file_name("train.jsonl");
        let form = Form::new().text("purpose", "fine-tune").part("file", part);
        let file = server.form(form).await.ok();
        let body = json!({"model": TINY, "training_file": file["id"]});
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        let job = server.ended(job["id"].as_str().expect("an id"), "failed").await;
        assert_eq!(job["error"]["code"], "invalid_training_file");
        let message = job["error"]["message"].as_str().expect("a text");
        assert!(message.starts_with("there is a problem in the file:\nline 1: "), "{message}");
        assert!(message.contains(wanted) && message.lines().count() == 2, "{message}");
    }
}

#[tokio::test]
async fn prompts_with_completions_train_too() {
    let server = Server::start();
    let mut lines = String::from("\u{feff}");
    for number in 0..10 {
        let line =
            json!({"prompt": format!("{number} + 1 ="), "completion": format!(" {}", number + 1)});
        lines.push_str(&format!("{line}\r\n\r\n"));
    }
    let id = server.create_job(&lines, short()).await;
    let job = server.ended(&id, "succeeded").await;
    assert_eq!(job["trained_steps"], 10);
}
