//! What the store on SQLite promises beyond the trait: durability's settings, one server for each
//! folder, no locks that callers see.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use hone::domain::file::FilePurpose;
use hone::domain::job::{EventKind, EventLevel, NewEvent};
use hone::domain::project::Project;
use hone::store::{
    IdempotencyKey, KeyStore, MetadataFilter, Order, ReplayedRequest, Store, StoreError, sqlite,
};
use hone::util::clock::SystemClock;
use sqlx::{Connection, Row};

use crate::support::store::{ANY_NUMBER, Fixture, api_key, file, first, job};

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("deep/data");
    let held = sqlite::open(&data_dir, Arc::new(SystemClock)).await.expect("opens");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&data_dir).expect("is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "a folder that hone makes is for the server's user alone");
    }
    let Err(refused) = sqlite::open(&data_dir, Arc::new(SystemClock)).await else {
        panic!("a second store was opened");
    };
    let message = refused.to_string();
    assert!(matches!(refused, StoreError::Unusable(_)), "{message}");
    assert!(message.contains("in use by another hone server"), "{message}");
    assert!(message.contains(&std::process::id().to_string()), "{message}");
    held.close().await;
    drop(held);
    sqlite::open(&data_dir, Arc::new(SystemClock)).await.expect("opens when the first has ended");
}

#[tokio::test]
async fn a_command_beside_the_server_writes_and_leaves_a_foreign_schema_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
    let beside = sqlite::open_beside_a_server(folder.path(), Arc::new(SystemClock));
    let beside = beside.await.expect("opens beside the server");
    let (key, digest) = api_key("team-a");
    beside.insert_api_key(&key, &digest).await.expect("adds");
    assert_eq!(server.api_key(&digest).await.expect("reads"), Some(key.clone()));
    beside.revoke_api_key(&key.id).await.expect("revokes");
    let seen = server.api_key(&digest).await.expect("reads").expect("is there");
    assert!(seen.revoked_at.is_some(), "the server sees it at once");
    beside.close().await;

    let path = folder.path().join(sqlite::DATABASE_FILE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut outside = sqlx::SqliteConnection::connect_with(&options).await.expect("connects");
    let newest = "DELETE FROM _sqlx_migrations
                  WHERE version = (SELECT max(version) FROM _sqlx_migrations)";
    sqlx::query(newest).execute(&mut outside).await.expect("as an older server has it");
    let refused = sqlite::open_beside_a_server(folder.path(), Arc::new(SystemClock)).await;
    let message = refused.err().expect("refused").to_string();
    assert!(message.contains("another version"), "{message}");
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
    let kept = file(FilePurpose::FineTune);
    store.insert_file(&kept).await.expect("added");
    // Dropped without a clean end, as a server that is killed.
    drop(store);
    let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens again");
    assert_eq!(store.file(&kept.id).await.expect("reads"), Some(kept));
}

#[tokio::test]
async fn the_database_keeps_a_write_ahead_log_and_refuses_rows_that_contradict_themselves() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
    let training = file(FilePurpose::FineTune);
    store.insert_file(&training).await.expect("added");
    store.insert_job(&job(&training.id), &[], ANY_NUMBER).await.expect("added");

    let path = folder.path().join(sqlite::DATABASE_FILE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut outside = sqlx::SqliteConnection::connect_with(&options).await.expect("connects");
    let mode: String =
        sqlx::query("PRAGMA journal_mode").fetch_one(&mut outside).await.expect("asks").get(0);
    assert_eq!(mode, "wal");
    for contradiction in [
        "UPDATE jobs SET status = 'finished'",
        "UPDATE jobs SET status = 'succeeded'",
        "UPDATE jobs SET status = 'failed', finished_at = 1",
        "UPDATE jobs SET status = 'running'",
        "UPDATE jobs SET finished_at = 1",
        "UPDATE jobs SET cancel_requested_at = 1",
        "UPDATE jobs SET pause_requested_at = 1",
        "UPDATE jobs SET estimated_finish = 1",
    ] {
        let result = sqlx::query(contradiction).execute(&mut outside).await;
        let message = result.expect_err(contradiction).to_string();
        assert!(message.contains("CHECK"), "{contradiction}: {message}");
    }
}

/// A database as the version before projects left it: its first six migrations, and a row of each kind.
async fn before_projects(folder: &Path) {
    let migrations = tempfile::tempdir().expect("a folder");
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    for entry in std::fs::read_dir(all).expect("reads") {
        let entry = entry.expect("an entry");
        if entry.file_name().to_string_lossy().as_ref() < "0007" {
            std::fs::copy(entry.path(), migrations.path().join(entry.file_name())).expect("copies");
        }
    }
    let path = folder.join(sqlite::DATABASE_FILE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.expect("connects");
    let migrator = sqlx::migrate::Migrator::new(migrations.path()).await.expect("migrations");
    migrator.run(&pool).await.expect("an old database");
    for statement in [
        "INSERT INTO files (id, bytes, created_at, filename, purpose, sha256, blob_key)
         VALUES ('file-1', 3, 9, 'a', 'fine-tune', 'x', 'k1'), ('file-2', 3, 9, 'b', 'user_data', 'x', 'k2')",
        r#"INSERT INTO jobs (id, created_at, finished_at, model, fine_tuned_model, status,
                             training_file, result_files, hyperparameters, seed, trained_steps, attempt)
           VALUES ('ftjob-1', 9, 10, 'm', 'ft:m', 'succeeded', 'file-1', '[]', '{}', 1, 5, 1)"#,
        "INSERT INTO models (id, created_at, base_model, job_id, config_file, weights_file, is_checkpoint)
         VALUES ('ft:m', 10, 'm', 'ftjob-1', 'file-2', 'file-2', 0)",
        "INSERT INTO request_keys (key, digest, job_id, created_at) VALUES ('k', 'd', 'ftjob-1', 9)",
        "INSERT INTO uploads (id, created_at, expires_at, bytes, filename, purpose, status)
         VALUES ('upload_1', 9, 9999999999, 3, 'c', 'fine-tune', 'pending')",
    ] {
        sqlx::query(statement).execute(&pool).await.expect(statement);
    }
    pool.close().await;
}

#[tokio::test]
async fn what_was_made_before_there_were_projects_lies_in_the_default_one() {
    let folder = tempfile::tempdir().expect("a folder");
    before_projects(folder.path()).await;
    let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
    let default = Project::default();
    let files = store.list_files(&default, None, Order::Ascending, &first(9)).await.expect("lists");
    assert_eq!(
        files.items.iter().map(|file| file.id.as_str()).collect::<Vec<_>>(),
        ["file-1", "file-2"]
    );
    let none = MetadataFilter::Pairs(BTreeMap::new());
    let jobs = store.list_jobs(&default, &none, &first(9)).await.expect("lists");
    assert_eq!(jobs.items.len(), 1);
    assert_eq!(store.list_models(&default).await.expect("lists")[0].id, "ft:m");
    let upload = store.upload("upload_1").await.expect("reads").expect("is there");
    assert_eq!(upload.project, default);
    let request = |project: &Project| IdempotencyKey {
        project: project.clone(),
        key: "k".to_owned(),
        digest: "d".to_owned(),
    };
    let earlier = store.earlier_request(&request(&default)).await.expect("looks");
    assert!(matches!(earlier, Some(ReplayedRequest::Same(job)) if job.id == "ftjob-1"));
    let other = Project::stored("other".to_owned());
    assert_eq!(store.earlier_request(&request(&other)).await.expect("looks"), None);
    assert!(
        store
            .list_files(&other, None, Order::Ascending, &first(9))
            .await
            .expect("lists")
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn metrics_of_jobs_before_the_column_of_steps_are_found_by_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
    let training = file(FilePurpose::FineTune);
    store.insert_file(&training).await.expect("added");
    let job = job(&training.id);
    let event = |step: u64| NewEvent {
        level: EventLevel::Info,
        kind: EventKind::Metrics,
        message: format!("step {step}"),
        data: Some(serde_json::json!({"step": step})),
    };
    let events = [1, 7].map(event);
    store.insert_job(&job, &events, ANY_NUMBER).await.expect("added");
    store.close().await;
    drop(store);

    // As an older version left it.
    let path = folder.path().join(sqlite::DATABASE_FILE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut outside = sqlx::SqliteConnection::connect_with(&options).await.expect("connects");
    for statement in [
        "DROP INDEX events_by_step",
        "ALTER TABLE events DROP COLUMN step",
        "DELETE FROM _sqlx_migrations WHERE version = 9",
    ] {
        sqlx::query(statement).execute(&mut outside).await.expect(statement);
    }
    outside.close().await.expect("closes");

    let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens again");
    let page = store.list_metrics(&job.id, 1, 10).await.expect("lists");
    let steps: Vec<&str> = page.items.iter().map(|event| event.event.message.as_str()).collect();
    assert_eq!(steps, ["step 7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_readers_and_writers_at_once_never_meet_a_lock() {
    let fixture = Fixture::sqlite().await;
    let training = fixture.add_file().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let store = fixture.store.clone();
        let training = training.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                match number % 5 {
                    0 => store.insert_file(&file(FilePurpose::UserData)).await.map(|()| 0),
                    1 => store.insert_job(&job(&training), &[], ANY_NUMBER).await.map(|()| 0),
                    2 => store.claim("tests", 60).await.map(|found| found.iter().count()),
                    3 => store
                        .list_files(&Project::default(), None, Order::Descending, &first(100))
                        .await
                        .map(|page| page.items.len()),
                    _ => store
                        .list_jobs(
                            &Project::default(),
                            &MetadataFilter::Pairs(BTreeMap::new()),
                            &first(100),
                        )
                        .await
                        .map(|page| page.items.len()),
                }?;
            }
            Ok::<(), StoreError>(())
        });
    }
    for result in tasks.join_all().await {
        result.expect("no call fails");
    }
    let files = fixture
        .store
        .list_files(&Project::default(), None, Order::Ascending, &first(1000))
        .await
        .expect("ok");
    assert_eq!(files.items.len(), 1 + 10 * 20);
    let jobs = fixture
        .store
        .list_jobs(&Project::default(), &MetadataFilter::Pairs(BTreeMap::new()), &first(1000))
        .await
        .expect("ok");
    assert_eq!(jobs.items.len(), 10 * 20);
}
