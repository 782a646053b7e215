//! What a disk that is full or broken for a moment does to a server: one request fails, and no other.

use std::time::{Duration, Instant};

use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::support::machine_faults::{EIO, ENOSPC, Fault, MachineFaults};
use crate::support::server::{Reply, Server, chat_lines};

/// The database and its log.
const DATABASE: &str = "hone.db";

/// Every call by which SQLite writes, with each error that a disk gives: within a transaction, at its
/// beginning (`lock`) and at its end (`sync`).
const FAULTS: [Fault; 6] = [
    Fault { call: "write", errno: ENOSPC },
    Fault { call: "write", errno: EIO },
    Fault { call: "sync", errno: ENOSPC },
    Fault { call: "sync", errno: EIO },
    Fault { call: "lock", errno: EIO },
    Fault { call: "lock", errno: ENOSPC },
];

fn start(faults: &MachineFaults) -> Server {
    faults.start(&[])
}

async fn upload(server: &Server, bytes: usize) -> Reply {
    let part = Part::bytes(vec![b'x'; bytes]).file_name("notes.txt");
    server.form(Form::new().text("purpose", "user_data").part("file", part)).await
}

#[tokio::test]
async fn a_write_that_fails_fails_alone_and_the_next_one_succeeds_within_a_second() {
    let faults = MachineFaults::new();
    let server = start(&faults);
    upload(&server, 10).await.ok();
    for fault in FAULTS {
        for round in 0..3 {
            faults.fail_once(fault, DATABASE);
            // A lock may be that of a reader, which fails alone as well.
            let began = Instant::now();
            let mut failed = 0;
            while !faults.has_failed() {
                failed += u32::from(upload(&server, 10).await.status != 200);
                assert!(began.elapsed() < Duration::from_secs(20), "{fault:?} does not come");
            }
            assert!(failed <= 1, "{fault:?}: {failed} requests failed");
            let healed = Instant::now();
            for _ in 0..3 {
                let reply = upload(&server, 10).await;
                assert_eq!(reply.status, 200, "{fault:?}, round {round}: {}", reply.text);
            }
            assert!(healed.elapsed() < Duration::from_secs(1), "{fault:?}: {:?}", healed.elapsed());
            server.get("/readyz").await.ok();
        }
    }
}

#[tokio::test]
async fn readiness_is_denied_as_long_as_nothing_can_be_written() {
    let faults = MachineFaults::new();
    let server = start(&faults);
    server.get("/readyz").await.ok();
    for fault in FAULTS {
        faults.fail_always(fault, DATABASE);
        // What was written a moment ago proves nothing for longer than a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(server.get("/readyz").await.status.is_server_error(), "{fault:?}");
        server.get("/healthz").await.ok();
        let reply = upload(&server, 10).await;
        assert!(reply.status.is_server_error(), "{fault:?}: {}", reply.text);
        if (fault.call, fault.errno) == ("write", ENOSPC) {
            assert_eq!(reply.error(507)["code"], "insufficient_storage");
        }
        faults.heal();
        let healed = Instant::now();
        server.get("/readyz").await.ok();
        upload(&server, 10).await.ok();
        assert!(healed.elapsed() < Duration::from_secs(1), "{fault:?}: {:?}", healed.elapsed());
    }
}

#[tokio::test]
async fn a_job_whose_end_could_not_be_written_ends_when_writing_works_again() {
    let faults = MachineFaults::new();
    let server = start(&faults);
    let hyperparameters = json!({"n_epochs": 4, "batch_size": 4, "lora_r": 4});
    let id = server.create_job(&chat_lines(12), hyperparameters).await;
    server.under_way(&id).await;
    faults.fail_always(Fault { call: "sync", errno: EIO }, DATABASE);
    let work = server.data_dir().join("work").join(&id).join("run/report.json");
    let began = Instant::now();
    while !work.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "the run does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.job(&id).await["status"], "running");
    faults.heal();
    let healed = Instant::now();
    server.ended(&id, "succeeded").await;
    assert!(healed.elapsed() < Duration::from_secs(10), "{:?}", healed.elapsed());
}

/// Uploads files until the disk is full; how many there are.
async fn fill(server: &Server) -> Vec<String> {
    let mut files = Vec::new();
    for bytes in [4 << 20, 256 << 10, 16 << 10, 1000] {
        loop {
            let reply = upload(server, bytes).await;
            if reply.status != 200 {
                assert_eq!(reply.error(507)["code"], "insufficient_storage");
                break;
            }
            files.push(reply.json()["id"].as_str().expect("an id").to_owned());
            assert!(files.len() < 10_000, "the disk is never full");
        }
    }
    files
}

#[tokio::test]
async fn a_client_that_fills_a_small_disk_can_delete_and_goes_on() {
    let Some(server) = Server::start_on_a_disk_of(64) else {
        eprintln!("not run: this user may not mount a disk");
        return;
    };
    let files = fill(&server).await;
    // Something else takes what is left, to the last byte.
    let inside = format!("/proc/{}/root{}", server.pid(), server.data_dir().display());
    let other = std::path::Path::new(&inside).join("other");
    let mut block = 1 << 20;
    let mut taken = std::fs::File::create(&other).expect("made");
    while block > 0 {
        if std::io::Write::write_all(&mut taken, &vec![1; block]).is_err() {
            block /= 2;
        }
    }
    assert_eq!(upload(&server, 10).await.error(507)["code"], "insufficient_storage");
    for id in &files {
        let began = Instant::now();
        let reply = server.delete(&format!("/v1/files/{id}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    upload(&server, 1 << 20).await.ok();
    server.get("/readyz").await.ok();
}
