//! Clients that nobody here wrote, unmodified: OpenAI's SDKs by section 9 of the contract, programs
//! that train through them, and schemathesis with the OpenAPI document. `tests/run` brings them;
//! without them these tests say that they did not run.

use std::path::Path;
use std::process::Command;

use crate::support::server::{Server, make_key};
use crate::train::real_model::{given, script, succeed};

#[test]
fn the_newest_openai_python_finds_section_9_of_the_contract_kept() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let server = Server::start();
    succeed(script(&python, "sdk_conformance.py").arg(&server.base));
}

#[test]
fn openai_python_1_finds_section_9_of_the_contract_kept() {
    let Some(python) = given("HONE_TEST_OPENAI_1") else { return };
    let server = Server::start();
    succeed(script(&python, "sdk_conformance.py").arg(&server.base));
}

/// Runs section 9 with one of the packages of `tests/node`.
fn node_conformance(package: &str) {
    let Some(node) = given("HONE_TEST_NODE") else { return };
    let server = Server::start();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/sdk_conformance.mjs");
    succeed(Command::new(node).arg(file).args([&server.base, package]));
}

#[test]
fn openai_node_6_finds_section_9_of_the_contract_kept() {
    node_conformance("openai-6");
}

#[test]
fn openai_node_7_finds_section_9_of_the_contract_kept() {
    node_conformance("openai-7");
}

/// Lets a program of `programs.py` do its work on a server of its own.
fn program(name: &str) {
    let Some(python) = given("HONE_TEST_CLIENTS") else { return };
    let server = Server::start();
    succeed(script(&python, "programs.py").args([&server.base, name]));
}

#[test]
fn dspy_drives_a_whole_job() {
    program("dspy");
}

#[test]
fn litellm_drives_a_whole_job() {
    program("litellm");
}

#[test]
fn wandb_pulls_a_job_and_its_metrics() {
    program("wandb");
}

#[test]
fn schemathesis_finds_the_document_kept() {
    let Some(python) = given("HONE_TEST_CLIENTS") else { return };
    let server = Server::start();
    // Without a key in the store none is demanded, and the document says that one is.
    let key = make_key(server.data_dir(), "default");
    succeed(script(&python, "schemathesis_run.py").args([&server.base, &key]));
}
