//! `/v1/fine_tuning/checkpoints/{checkpoint}/permissions`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Server, TINY, chat_lines};

/// A server with a finished job of two epochs, and the name of its model.
async fn server_with_model() -> (Server, String) {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 2, "batch_size": 4})).await;
    let job = server.ended(&id, "succeeded").await;
    let model = job["fine_tuned_model"].as_str().expect("a model").to_owned();
    (server, model)
}

fn permissions(checkpoint: &str) -> String {
    format!("/v1/fine_tuning/checkpoints/{checkpoint}/permissions")
}

fn projects(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().expect("a list");
    data.iter().map(|one| one["project_id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn permissions_are_granted_once_listed_in_pages_and_taken_back() {
    let (server, model) = server_with_model().await;
    let path = permissions(&model);
    let empty = server.get(&path).await.ok();
    assert_eq!(
        empty,
        json!({"object": "list", "data": [], "first_id": null, "last_id": null,
            "has_more": false})
    );
    let made = server.post(&path, json!({"project_ids": ["proj_a", "proj_b"]})).await.ok();
    assert_eq!((projects(&made), &made["has_more"]), (vec!["proj_a", "proj_b"], &json!(false)));
    let one = &made["data"][0];
    assert!(one["id"].as_str().is_some_and(|id| id.starts_with("cp_")), "{one}");
    assert_eq!(one["object"], "checkpoint.permission");
    assert!(one["created_at"].is_i64());
    assert_eq!((&made["first_id"], &made["last_id"]), (&one["id"], &made["data"][1]["id"]));

    // The same grant again is the same permission, also beside a new one and twice in a request.
    let body = json!({"project_ids": ["proj_a", "proj_c", "proj_a"]});
    let again = server.post(&path, body).await.ok();
    assert_eq!(projects(&again), ["proj_a", "proj_c"]);
    assert_eq!(again["data"][0], made["data"][0]);

    assert_eq!(projects(&server.get(&path).await.ok()), ["proj_c", "proj_b", "proj_a"]);
    let mut walked = Vec::new();
    let mut after = String::new();
    loop {
        let page = format!("{path}?order=ascending&limit=2&after={after}");
        let page = server.get(&page).await.ok();
        walked.extend(projects(&page).into_iter().map(str::to_owned));
        if page["has_more"] == false {
            break;
        }
        after = page["last_id"].as_str().expect("an id").to_owned();
    }
    assert_eq!(walked, ["proj_a", "proj_b", "proj_c"]);
    let of_one = server.get(&format!("{path}?project_id=proj_b")).await.ok();
    assert_eq!(of_one["data"], json!([made["data"][1]]));
    assert_eq!(projects(&server.get(&format!("{path}?project_id=proj_x")).await.ok()).len(), 0);

    let id = one["id"].as_str().expect("an id");
    // Not through another model's path.
    let checkpoint = permissions(&format!("{model}:ckpt-step-3"));
    let error = server.delete(&format!("{checkpoint}/{id}")).await.error(404);
    assert_eq!(error["param"], "permission_id");
    assert_eq!(
        server.delete(&format!("{path}/{id}")).await.ok(),
        json!({"id": id, "object": "checkpoint.permission", "deleted": true})
    );
    let error = server.delete(&format!("{path}/{id}")).await.error(404);
    assert_eq!(error["code"], "permission_not_found");
    assert_eq!(projects(&server.get(&path).await.ok()), ["proj_c", "proj_b"]);
}

#[tokio::test]
async fn a_name_with_slashes_is_found_encoded_and_raw() {
    let (server, model) = server_with_model().await;
    // No base model has a name with slashes today, so the store is told of one.
    server.set_time("UPDATE models SET id = 'ft:acme/small:local::x' WHERE id = $1", &model).await;
    let model = "ft:acme/small:local::x";
    let encoded = permissions(&model.replace('/', "%2F"));
    let made = server.post(&encoded, json!({"project_ids": ["proj_a"]})).await.ok();
    assert_eq!(server.get(&permissions(model)).await.ok()["data"], made["data"]);
    assert_eq!(server.get(&encoded).await.ok()["data"], made["data"]);
    let id = made["first_id"].as_str().expect("an id");
    server.delete(&format!("{}/{id}", permissions(model))).await.ok();
    assert_eq!(server.get(&encoded).await.ok()["data"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_shared_is_refused_with_the_reason() {
    let (server, model) = server_with_model().await;
    let path = permissions(&model);
    let grant = json!({"project_ids": ["proj_a"]});
    for (method, unknown) in [(Method::GET, "ft:none"), (Method::POST, "ft:none")] {
        let request =
            server.client.request(method, format!("{}{}", server.base, permissions(unknown)));
        let reply = request.json(&grant).send().await.expect("a reply");
        let error = crate::support::server::Reply::read(reply).await.error(404);
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "fine_tuned_model_checkpoint");
    }
    let error = server.delete(&format!("{}/cp_1", permissions("ft:none"))).await.error(404);
    assert_eq!(error["code"], "model_not_found");
    let error = server.post(&permissions(TINY), grant.clone()).await.error(400);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("base model")), "{error}");
    let error = server.post(&path, json!({"project_ids": []})).await.error(400);
    assert_eq!(error["param"], "project_ids");
    for (query, param) in [("order=asc", "order"), ("after=cp_none", "after"), ("limit=0", "limit")]
    {
        let error = server.get(&format!("{path}?{query}")).await.error(400);
        assert_eq!(error["param"], param, "{query}");
    }
    // What is no path of permissions is no route, and a method that none takes is said.
    let error = server.get(&format!("/v1/fine_tuning/checkpoints/{model}")).await.error(404);
    assert_eq!(error["code"], "route_not_found");
    for (method, path, allowed) in [
        (Method::DELETE, path.clone(), "GET,HEAD,POST"),
        (Method::GET, format!("{path}/cp_1"), "DELETE"),
        (Method::POST, format!("{path}/cp_1"), "DELETE"),
    ] {
        let reply = server.send(method, &path).await;
        assert_eq!(reply.headers["allow"], allowed, "{path}");
        reply.error(405);
    }
    server.send(Method::PUT, &path).await.error(405);

    // With the model goes what was allowed of it.
    server.post(&path, grant).await.ok();
    server.delete(&format!("/v1/models/{model}")).await.ok();
    assert_eq!(server.get(&path).await.error(404)["code"], "model_not_found");
}
