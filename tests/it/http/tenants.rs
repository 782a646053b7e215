//! Tenants: what one project asks of a model does not show in what another one is answered.

use serde_json::{Value, json};

use crate::http::answering::{metric, until_metric};
use crate::support::server::{Server, TINY, make_key};

const PATH: &str = "/v1/completions";

/// Tokens that both know: long enough to be found in the prefix cache.
const KNOWN: usize = 20;

/// Tokens that the victim alone knows.
const SECRET: usize = 60;

/// How many tokens the attacker tries at each place; the right one is among them.
const CANDIDATES: u64 = 3;

/// The token at a place of the victim's prompt.
fn token(place: usize) -> u64 {
    40 + (place as u64 * 37) % 53
}

fn prompt(places: std::ops::Range<usize>) -> Vec<u64> {
    places.map(token).collect()
}

/// The tokens of a prompt that its reply says were cached.
async fn cached(server: &Server, prompt: &[u64], more: Value) -> u64 {
    let mut body = json!({"model": TINY, "prompt": prompt, "max_tokens": 1, "temperature": 0});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    let reply = server.post(PATH, body).await.ok();
    reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
}

/// How many tokens of the victim's prompt an attacker reads, who is given the right ones before each.
async fn recovered_tokens(server: &Server) -> usize {
    let mut recovered = 0;
    for place in KNOWN..KNOWN + SECRET {
        for candidate in 0..CANDIDATES {
            let mut guess = prompt(0..place);
            guess.push(token(place) + CANDIDATES - 1 - candidate);
            // The last token of a prompt is always computed.
            guess.push(7);
            // Never asked for before: whoever has it cached is somebody else.
            if cached(server, &guess, json!({})).await > place as u64 {
                recovered += 1;
            }
        }
    }
    recovered
}

#[tokio::test]
async fn no_token_of_a_prompt_shows_in_what_another_project_is_answered() {
    let mut server = Server::start();
    let (victim, attacker) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    server.act_with(&victim);
    let whole = prompt(0..KNOWN + SECRET);
    assert_eq!(cached(&server, &whole, json!({})).await, 0);
    // The project itself has the use of it, with any of its keys.
    server.act_with(&make_key(server.data_dir(), "team-a"));
    assert_eq!(cached(&server, &whole, json!({})).await, whole.len() as u64 - 1);

    // An attacker whose own prompts are not in the cache.
    server.act_with(&make_key(server.data_dir(), "team-c"));
    let recovered = recovered_tokens(&server).await;
    assert_eq!(recovered, 0, "of {SECRET} tokens");

    server.act_with(&attacker);
    let computed_before = metric(&server, "hone_serve_read_tokens_total").await;
    assert_eq!(cached(&server, &whole, json!({})).await, 0, "a whole prompt can be asked for");
    // Nor is it answered sooner: every token was computed.
    let all = computed_before + whole.len() as f64;
    until_metric(&server, "hone_serve_read_tokens_total", |computed| computed >= all).await;
}

#[tokio::test]
async fn a_prompt_cache_key_parts_the_users_of_one_key() {
    let server = Server::start();
    let whole = prompt(0..KNOWN + SECRET);
    let most = whole.len() as u64 - 1;
    let (ours, theirs) = (json!({"prompt_cache_key": "a"}), json!({"prompt_cache_key": "b"}));
    for alike in [&ours, &theirs, &json!({})] {
        assert_eq!(cached(&server, &whole, alike.clone()).await, 0, "{alike}");
        assert_eq!(cached(&server, &whole, alike.clone()).await, most, "{alike}");
    }
    // Chat, where OpenAI's clients have the field.
    let system = "You answer in rhymes. ".repeat(6);
    for (key, wanted) in [("a", false), ("a", true), ("b", false)] {
        let body = json!({"model": TINY, "max_tokens": 1, "prompt_cache_key": key,
            "messages": [{"role": "system", "content": system}]});
        let reply = server.post("/v1/chat/completions", body).await.ok();
        let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        assert_eq!(cached.is_some_and(|count| count > 0), wanted, "{key}");
    }
    let long = json!({"model": TINY, "prompt_cache_key": "k".repeat(513)});
    assert_eq!(server.post(PATH, long).await.error(400)["param"], "prompt_cache_key");
}

#[tokio::test]
async fn keys_of_one_project_are_parted_where_the_operator_says_so() {
    let mut server = Server::start_with(&[("HONE_PREFIX_CACHE_SCOPE", "key")]);
    let whole = prompt(0..KNOWN + SECRET);
    for _ in 0..2 {
        server.act_with(&make_key(server.data_dir(), "team-a"));
        assert_eq!(cached(&server, &whole, json!({})).await, 0);
        assert_eq!(cached(&server, &whole, json!({})).await, whole.len() as u64 - 1);
    }
}
