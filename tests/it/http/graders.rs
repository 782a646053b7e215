//! `/v1/fine_tuning/alpha/graders`: graders are looked at and run.

use serde_json::{Value, json};

use crate::support::server::Server;

const VALIDATE: &str = "/v1/fine_tuning/alpha/graders/validate";
const RUN: &str = "/v1/fine_tuning/alpha/graders/run";

fn grader() -> Value {
    json!({"type": "multi", "name": "all", "calculate_output": "0.25 * exact + 0.75 * close",
        "graders": {
            "exact": {"type": "string_check", "name": "exact", "operation": "eq",
                "input": "{{sample.output_json.city}}", "reference": "{{item.answer}}"},
            "close": {"type": "text_similarity", "name": "close", "evaluation_metric": "rouge_l",
                "input": "{{sample.output_text}}", "reference": "city {{item.answer}}"}}})
}

#[tokio::test]
async fn a_grader_grades_an_answer_and_says_of_what_it_is_made() {
    let server = Server::start();
    let valid = server.post(VALIDATE, json!({"grader": grader()})).await.ok();
    assert_eq!(valid, json!({"grader": grader()}));

    let body = json!({"grader": grader(), "model_sample": "{\"city\": \"Paris\"}",
        "item": {"answer": "Paris"}});
    let graded = server.post(RUN, body.clone()).await.ok();
    assert_eq!(graded["reward"], 1.0);
    assert_eq!(graded["sub_rewards"], json!({"exact": 1.0, "close": 1.0}));
    let metadata = &graded["metadata"];
    assert_eq!((&metadata["name"], &metadata["type"]), (&json!("all"), &json!("multi")));
    assert!(metadata["execution_time"].is_f64());
    assert_eq!(metadata.get("token_usage"), Some(&Value::Null));
    let errors = metadata["errors"].as_object().expect("an object");
    assert_eq!(errors.len(), 14);
    assert!(errors.values().all(|error| *error == false || error.is_null()), "{errors:?}");

    let mut wrong = body.clone();
    wrong["model_sample"] = json!("It is Paris.");
    let graded = server.post(RUN, wrong).await.ok();
    assert_eq!(
        (&graded["reward"], &graded["metadata"]["errors"]["sample_parse_error"]),
        (&json!(0.0), &json!(true))
    );
    let mut wrong = body;
    wrong["item"] = json!(null);
    let graded = server.post(RUN, wrong).await.ok();
    assert_eq!(graded["metadata"]["errors"]["invalid_variable_error"], true);
}

#[tokio::test]
async fn what_cannot_be_graded_is_refused_with_the_key_at_fault() {
    let server = Server::start();
    let python = json!({"type": "python", "name": "p", "source": "def grade(s, i): return 1"});
    let mut bad_formula = grader();
    bad_formula["calculate_output"] = json!("exact + vibes");
    for path in [VALIDATE, RUN] {
        for (grader, param, code) in [
            (json!(null), "grader", "invalid_request"),
            (json!({"name": "x"}), "grader.type", "invalid_request"),
            (bad_formula.clone(), "grader.calculate_output", "invalid_request"),
            (python.clone(), "grader.type", "unsupported"),
        ] {
            let body = json!({"grader": grader, "model_sample": "x"});
            let error = server.post(path, body).await.error(400);
            assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)));
        }
        let error = server.post(path, json!({})).await.error(400);
        assert_eq!(error["param"], "grader");
    }
    for (body, param) in [
        (json!({"grader": grader()}), "model_sample"),
        (json!({"grader": grader(), "model_sample": 3}), "model_sample"),
        (json!({"grader": grader(), "model_sample": "x", "item": []}), "item"),
    ] {
        assert_eq!(server.post(RUN, body).await.error(400)["param"], param);
    }
}
