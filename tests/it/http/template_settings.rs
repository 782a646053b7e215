//! Variables, dates and templates that jobs and chat requests give to chat templates.

use serde_json::{Value, json};

use crate::support::server::{Server, chat_lines};
use crate::support::templates::{Models, PLAIN, ask, assert_prompt, messages, with};

const JOBS: &str = "/v1/fine_tuning/jobs";
const DRY_RUN: &str = "/v1/fine_tuning/jobs?dry_run=true";
const CHAT: &str = "/v1/chat/completions";

/// A template whose generation prompt depends on two variables.
const THINKING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if effort is defined and effort %}({{ effort }}){% endif %}\
    {% if enable_thinking is defined and not enable_thinking %}[off]{% endif %}{% endif %}";

/// A template that writes today's date.
const DATED: &str = "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}.<|im_end|>\n\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn thinking_prompt(end: &str) -> String {
    format!("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{end}")
}

fn dated_prompt(day: &str) -> String {
    format!("<|im_start|>system\nToday is {day}.<|im_end|>\n{}", thinking_prompt(""))
}

fn over(models: &Models) -> (Server, tempfile::TempDir) {
    let data = tempfile::tempdir().expect("a folder");
    (Server::start_over(data.path(), models.path()), data)
}

fn short() -> Value {
    json!({"n_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "lora_r": 2})
}

async fn create(server: &Server, model: &str, more: &Value) -> Value {
    let file = server.upload(&chat_lines(12)).await;
    let body = json!({"model": model, "training_file": file, "seed": 1,
        "hyperparameters": short()});
    let job = server.post(JOBS, with(body, more)).await.ok();
    server.ended(job["id"].as_str().expect("an id"), "succeeded").await
}

fn name_of(job: &Value) -> &str {
    job["fine_tuned_model"].as_str().expect("a name")
}

async fn read_result(server: &Server, job: &Value, name: &str) -> Value {
    serde_json::from_slice(&server.result_file(job, name).await).expect("JSON")
}

#[tokio::test]
async fn a_chat_request_sets_variables_of_the_template() {
    let models = Models::new();
    models.add("thinking", json!(THINKING));
    models.add("effort", json!(THINKING.replace("effort", "reasoning_effort")));
    let (server, _data) = over(&models);
    for (more, end) in [
        (json!({}), ""),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), "[off]"),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), ""),
        (json!({"chat_template_kwargs": null}), ""),
        (json!({"chat_template_kwargs": {"effort": "low", "other": [1, {"a": null}]}}), "(low)"),
        (json!({"reasoning_effort": "low"}), ""),
    ] {
        assert_prompt(&server, "thinking", &more, &thinking_prompt(end)).await;
    }
    for (more, end) in [
        (json!({"reasoning_effort": "low"}), "(low)"),
        (json!({"reasoning_effort": null}), ""),
        (
            json!({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}),
            "(high)",
        ),
    ] {
        assert_prompt(&server, "effort", &more, &thinking_prompt(end)).await;
    }
    for (more, param) in [
        (json!({"chat_template_kwargs": "nonsense"}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": [["enable_thinking", false]]}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
        (json!({"chat_template_kwargs": {"eos_token": "x"}}), "chat_template_kwargs.eos_token"),
        (json!({"chat_template_kwargs": {"a": "x".repeat(70_000)}}), "chat_template_kwargs"),
        (json!({"reasoning_effort": 3}), "reasoning_effort"),
        (json!({"chat_template": 3}), "chat_template"),
        (json!({"chat_template": "tool_use"}), "chat_template"),
        (json!({"chat_template_date": "yesterday"}), "chat_template_date"),
    ] {
        let error = server.post(CHAT, ask("thinking", &more)).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
}

#[tokio::test]
async fn a_jobs_variables_are_its_models_defaults_and_a_request_overrides_each() {
    let models = Models::new();
    models.add("thinking", json!(THINKING));
    let (server, _data) = over(&models);
    let kwargs = json!({"enable_thinking": false, "effort": "low", "colour": "red"});
    let job = create(&server, "thinking", &json!({"chat_template_kwargs": kwargs})).await;
    assert_eq!(job["chat_template_kwargs"], kwargs);
    let id = job["id"].as_str().expect("an id");
    let said = messages(&server, id).await;
    let unread: Vec<&String> = said.iter().filter(|text| text.contains("no effect")).collect();
    assert_eq!(unread.len(), 1, "{said:?}");
    assert!(unread[0].contains("\"colour\"") && !unread[0].contains("effort\""), "{unread:?}");
    let report = read_result(&server, &job, "report.json").await;
    assert_eq!(report["chat_template"]["kwargs"], kwargs);
    let certificate = read_result(&server, &job, "certificate.json").await;
    assert_eq!(certificate["template_kwargs"], kwargs);
    assert_eq!(certificate["template_sha256"], report["chat_template"]["sha256"]);

    let model = name_of(&job);
    for (more, end) in [
        (json!({}), "(low)[off]"),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), "(low)"),
        (json!({"chat_template_kwargs": {"effort": ""}}), "[off]"),
        (json!({"chat_template_kwargs": {"effort": null, "enable_thinking": true}}), ""),
    ] {
        assert_prompt(&server, model, &more, &thinking_prompt(end)).await;
    }
    assert_prompt(&server, "thinking", &json!({}), &thinking_prompt("")).await;

    // A job that goes on from the model goes on with its variables, but for those that it sets.
    let more = json!({"chat_template_kwargs": {"effort": "high"}});
    let next = create(&server, model, &more).await;
    assert_eq!(next["chat_template_kwargs"], more["chat_template_kwargs"]);
    assert_prompt(&server, name_of(&next), &json!({}), &thinking_prompt("(high)[off]")).await;

    // So does a model of its own.
    let values = json!({"n_epochs": 1, "batch_size": 4, "tuning": "full"});
    let more = json!({"chat_template_kwargs": {"effort": "mid"}, "hyperparameters": values});
    let whole = create(&server, "thinking", &more).await;
    assert_prompt(&server, name_of(&whole), &json!({}), &thinking_prompt("(mid)")).await;

    // A job that says nothing shows nothing.
    let plain = create(&server, "thinking", &json!({})).await;
    assert!(plain.get("chat_template_kwargs").is_none(), "{plain}");
    let certificate = read_result(&server, &plain, "certificate.json").await;
    assert!(certificate.get("template_kwargs").is_none(), "{certificate}");
}

#[tokio::test]
async fn a_variable_changes_what_a_job_trains_on() {
    let models = Models::new();
    let template = PLAIN.replace("{% for", "{{ greeting | default('') }}{% for");
    models.add("greeting", json!(template));
    let (server, _data) = over(&models);
    let file = server.upload(&chat_lines(12)).await;
    let body = json!({"model": "greeting", "training_file": file, "seed": 1});
    let count = async |more: Value| {
        let dry = server.post(DRY_RUN, with(body.clone(), &more)).await.ok();
        assert_eq!(dry["is_valid"], true, "{dry:#}");
        dry["training"]["tokens"].as_u64().expect("a number")
    };
    let plain = count(json!({})).await;
    let greeting = json!({"chat_template_kwargs": {"greeting": "<|im_end|>"}});
    assert_eq!(count(greeting).await, plain + 12, "a token for each line");
    let more = json!({"chat_template_kwargs": {"greetings": "a"}});
    let dry = server.post(DRY_RUN, with(body.clone(), &more)).await.ok();
    let notes = dry["notes"].as_array().expect("a list");
    assert!(notes.iter().any(|note| note["message"].to_string().contains("greetings")), "{dry:#}");
}

#[tokio::test]
async fn training_writes_the_date_of_the_job_and_answers_that_of_their_request() {
    let models = Models::new();
    models.add("dated", json!(DATED));
    models.add("plain", json!(PLAIN));
    let (server, _data) = over(&models);
    let today = || chrono::Utc::now().format("%d %B %Y").to_string();
    let job = create(&server, "dated", &json!({})).await;
    let said = messages(&server, job["id"].as_str().expect("an id")).await;
    let day = chrono::Utc::now().date_naive().to_string();
    let is_about_it = |text: &&String| text.contains("strftime_now") && text.contains(&day);
    assert_eq!(said.iter().filter(is_about_it).count(), 1, "{said:?}");
    let certificate = read_result(&server, &job, "certificate.json").await;
    assert_eq!(certificate["template_date"], day);
    assert!(job.get("chat_template_date").is_none(), "{job}");
    for model in [name_of(&job), "dated"] {
        assert_prompt(&server, model, &json!({}), &dated_prompt(&today())).await;
        let more = json!({"chat_template_date": "2024-07-06"});
        assert_prompt(&server, model, &more, &dated_prompt("06 July 2024")).await;
    }

    // A day that the job sets is its model's.
    let job = create(&server, "dated", &json!({"chat_template_date": "2023-01-31"})).await;
    assert_eq!(job["chat_template_date"], "2023-01-31");
    let certificate = read_result(&server, &job, "certificate.json").await;
    assert_eq!(certificate["template_date"], "2023-01-31");
    let model = name_of(&job);
    assert_prompt(&server, model, &json!({}), &dated_prompt("31 January 2023")).await;
    let more = json!({"chat_template_date": "today"});
    assert_prompt(&server, model, &more, &dated_prompt(&today())).await;

    // Templates without a date say nothing of it, unless a job sets one.
    let job = create(&server, "plain", &json!({})).await;
    let said = messages(&server, job["id"].as_str().expect("an id")).await;
    assert!(!said.iter().any(|text| text.contains("strftime_now")), "{said:?}");
    let job = create(&server, "plain", &json!({"chat_template_date": "2023-01-31"})).await;
    let said = messages(&server, job["id"].as_str().expect("an id")).await;
    assert!(said.iter().any(|text| text.contains("chat_template_date has no effect")), "{said:?}");
}

#[tokio::test]
async fn a_job_brings_its_own_template() {
    let models = Models::new();
    models.add("plain", json!(PLAIN));
    models.add("none", Value::Null);
    let (server, _data) = over(&models);
    let own = "{% for m in messages %}<|im_start|>{{ m.role | upper }}: {{ m.content }}<|endoftext|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>ASSISTANT: {% endif %}";
    let prompt = "<|im_start|>USER: hi<|endoftext|>\n<|im_start|>ASSISTANT: ";
    let more = json!({"chat_template": own});
    for base in ["plain", "none"] {
        let file = server.upload(&chat_lines(12)).await;
        let body = json!({"model": base, "training_file": file, "chat_template": own});
        let dry = server.post(DRY_RUN, body).await.ok();
        assert_eq!(dry["is_valid"], true, "{dry:#}");
        let values = json!({"n_epochs": 1, "batch_size": 4, "tuning": "full"});
        for more in [more.clone(), with(more.clone(), &json!({"hyperparameters": values}))] {
            let job = create(&server, base, &more).await;
            assert_eq!(job["chat_template"], own);
            assert_prompt(&server, name_of(&job), &json!({}), prompt).await;
            let kept = server.result_file(&job, "chat_template.jinja").await;
            assert_eq!(String::from_utf8(kept).expect("a text"), own);
        }
    }
    let plain = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_prompt(&server, "plain", &json!({}), plain).await;

    let file = server.upload(&chat_lines(12)).await;
    for (template, said) in [
        (json!("{% for m in messages %}"), "the chat template cannot be read"),
        (json!("tool_use"), "default"),
        (json!("x{{ '' }}".repeat(100_000)), "262144"),
        (json!(""), "1 to"),
        (json!({"default": "a"}), "must be a text"),
    ] {
        let body = json!({"model": "plain", "training_file": file, "chat_template": template});
        let error = server.post(JOBS, body).await.error(400);
        assert_eq!(error["param"], "chat_template");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(said)), "{error}");
    }
    // One that leaves out what was said is refused by the job, by line.
    let body = json!({"model": "plain", "training_file": file, "chat_template": "{{ 'a' }}"});
    let dry = server.post(DRY_RUN, body).await.ok();
    assert_eq!((&dry["is_valid"], &dry["problem_count"]), (&json!(false), &json!(12)), "{dry:#}");
}
