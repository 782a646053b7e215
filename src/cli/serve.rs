//! `hone serve`: HTTP and the executor in one process.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, ensure};
use clap::Args;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::base_models::{Catalog, SharedCatalog};
use crate::blobs::Blobs;
use crate::config::{Cors, Folders, Limits, Listen, Priority, Serving, TrainingDevice, Webhooks};
use crate::domain::project::Project;
use crate::executor::{DryRuns, Executor, ExecutorContext, Timeouts};
use crate::http::{self, RequestLimiter};
use crate::queue::Queue;
use crate::serve::ModelServer;
use crate::store::{KeyStore, Store, sqlite};
use crate::train::device;
use crate::util::clock::{Clock, SystemClock};
use crate::webhooks::{DeliveryWorker, Policy, WebhookClient};

/// Settings of the server.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// How it listens.
    #[command(flatten)]
    pub listen: Listen,
    /// Where it keeps things.
    #[command(flatten)]
    pub folders: Folders,
    /// What trains.
    #[command(flatten)]
    pub training: TrainingDevice,
    /// How models are served beside jobs.
    #[command(flatten)]
    pub serving: Serving,
    /// Where webhooks may be delivered.
    #[command(flatten)]
    pub webhooks: Webhooks,
    /// How much clients may ask for.
    #[command(flatten)]
    pub limits: Limits,
    /// Which web pages may use the API.
    #[command(flatten)]
    pub cors: Cors,
}

/// A server that runs in this process.
pub struct RunningServer {
    /// Where it listens.
    pub address: SocketAddr,
    shutdown: CancellationToken,
    store: Arc<sqlite::SqliteStore>,
    http: JoinHandle<()>,
    executor: JoinHandle<()>,
    webhooks: JoinHandle<()>,
}

/// Runs until a signal asks it to end.
pub fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let server = start(args).await?;
        // Before the address is printed, because whoever reads it may end the server.
        let mut signals = EndSignals::listen()?;
        print_address(server.address);
        signals.next().await;
        tracing::info!(
            "shutting down: running requests end, the running job stops at a checkpoint"
        );
        // A second signal means now.
        tokio::select! {
            ended = server.shutdown() => ended,
            () = signals.next() => {
                anyhow::bail!("ended at once by a second signal; the running job resumes from its last \
                               checkpoint at the next start")
            }
        }
    })
}

/// The async runtime, with few threads: requests mostly wait, and computation (validation of uploads,
/// grading, chat templates, models) has threads of its own. More threads wake each other and take caches from
/// the training job. On two cores a request beside a job costs 47 microseconds with one thread and 53 with
/// two (Zen 5).
fn runtime() -> anyhow::Result<Runtime> {
    /// Cores per thread.
    const CORES_PER_THREAD: usize = 4;
    let cores = available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.div_ceil(CORES_PER_THREAD))
        .enable_all()
        .build()
        .context("starting the async runtime")
}

/// The one line on standard output. Programs that start the server wait for it.
#[expect(clippy::print_stdout, reason = "the command's product")]
fn print_address(address: SocketAddr) {
    println!("hone listens on http://{address}");
}

/// Starts a server in this process; it runs until [`RunningServer::shutdown`].
pub async fn start(args: &ServeArgs) -> anyhow::Result<RunningServer> {
    let device = device::choose(args.training.device).context("choosing the device (--device)")?;
    tracing::info!(%device, "jobs are trained on this device");
    let Folders { data_dir, models } = args.folders.clone();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Arc::new(sqlite::open(&data_dir, clock.clone()).await?);
    check_api_keys(&store, args.listen.listen, &data_dir).await?;
    let blobs = Blobs::local(&data_dir.join("blobs"))?;
    let shared: Arc<dyn Store> = store.clone();
    let owner = format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
    let queue = Arc::new(Queue::new(shared.clone(), owner));
    let base_models = Catalog::new(models.models_dir.clone());
    check_base_models(&base_models, &models.models_dir);

    let Serving { serve_memory, serve_priority: priority, prefix_cache_scope } = args.serving;
    if priority == Priority::Train {
        lower_serving_priority()?;
    }
    let models = ModelServer::start(Handle::current(), serve_memory)?;
    let context = ExecutorContext {
        store: shared.clone(),
        queue: queue.clone(),
        blobs: blobs.clone(),
        base_models: Arc::new(SharedCatalog::new(base_models.clone())),
        clock: clock.clone(),
        work_dir: data_dir.join("work"),
        trainer_binary: this_binary()?,
        device,
        timeouts: Timeouts::default(),
        priority,
        yields_to: (priority == Priority::Serve).then(|| models.serving_load().clone()),
        serving_memory: Some(models.memory()),
        resource_wait: args.limits.resource_wait,
    };
    let dry_runs =
        DryRuns::new(context.clone()).context("finding the folder of work in progress")?;
    let executor = Executor::prepare(context).await?;

    let listener = TcpListener::bind(args.listen.listen)
        .await
        .with_context(|| format!("listening on {}", args.listen.listen))?;
    let address = listener.local_addr()?;
    let webhook_client = Arc::new(WebhookClient::new(Policy::new(args.webhooks.allowed.clone()))?);
    let worker = DeliveryWorker::new(store.clone(), webhook_client.clone(), clock.clone());
    let shutdown = CancellationToken::new();
    let state = Arc::new(http::ServerState {
        store: shared,
        blobs,
        queue,
        base_models: SharedCatalog::new(base_models),
        dry_runs: Arc::new(dry_runs),
        models: Arc::new(models),
        prefix_cache_scope,
        webhook_client,
        limiter: Arc::new(RequestLimiter::new(args.limits.requests_per_minute)),
        running_requests: Arc::default(),
        most_queued_jobs: args.limits.max_queued_jobs.get(),
        clock,
        shutdown: shutdown.clone(),
    });
    let router = http::router(state, args.cors.origins.clone());
    Ok(RunningServer {
        address,
        http: tokio::spawn(http::server::accept::serve(listener, router, shutdown.clone())),
        executor: tokio::spawn(executor.run(shutdown.clone())),
        webhooks: tokio::spawn(worker.run(shutdown.clone())),
        shutdown,
        store,
    })
}

impl RunningServer {
    /// Whether requests need an API key.
    pub async fn requires_keys(&self) -> anyhow::Result<bool> {
        Ok(self.store.has_api_keys().await?)
    }

    /// Stops the running job at a checkpoint, lets running requests end, closes the database.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.executor.await.context("the executor")?;
        self.http.await.context("the accept loop")?;
        self.webhooks.await.context("the deliveries of webhooks")?;
        self.store.close().await;
        Ok(())
    }
}

/// Lowers the priority of the threads that serve models, in favour of the training job.
fn lower_serving_priority() -> anyhow::Result<()> {
    /// Lower than the priority of a trainer, which is the server's.
    const NICENESS: i32 = 10;
    let lower = |_thread| {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "a serving thread keeps the server's priority");
        }
    };
    let pool = rayon::ThreadPoolBuilder::new().start_handler(lower);
    pool.build_global().context("starting the serving threads (--serve-priority train)")
}

/// Warns that requests need no key as long as there are none. Fails if the server could be reached from other
/// machines then.
async fn check_api_keys(
    store: &sqlite::SqliteStore,
    listen: SocketAddr,
    data_dir: &Path,
) -> anyhow::Result<()> {
    if store.has_api_keys().await? {
        return Ok(());
    }
    let make = format!("hone keys create --project NAME --data-dir {}", data_dir.display());
    ensure!(
        listen.ip().is_loopback(),
        "{listen} is reachable from other machines, and there is no API key: create one with `{make}`, or \
         listen on 127.0.0.1 (--listen)"
    );
    tracing::warn!(
        "there are no API keys: any key is accepted, and everything belongs to the project \"{}\"; \
         `{make}` creates a key, and from then on requests need one",
        Project::default()
    );
    Ok(())
}

/// Warns that there is no base model, which may be a wrong `--models-dir`.
fn check_base_models(base_models: &Catalog, models_dir: &Path) {
    let folder = models_dir.display();
    match base_models.list() {
        Ok(found) if found.is_empty() => tracing::warn!(
            "there is no base model in {folder} (--models-dir): `hone models pull` downloads one"
        ),
        Ok(_found) => {}
        Err(error) => tracing::warn!(%error, "the base models in {folder} cannot be read"),
    }
}

/// The running binary, whose command `trainer` runs a job.
fn this_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("finding the path of this program")
}

/// The signals that end the server.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// From now on SIGTERM and SIGINT do not end the process: [`Self::next`] returns instead.
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
        })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
