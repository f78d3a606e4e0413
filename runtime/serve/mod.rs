//! HTTP over the scheduler: what OpenAI's, TEI's and Cohere's clients speak.
//!
//! Handlers are async and cheap: they check, hand work to the [`Scheduler`], and pass on what comes
//! back. The step loop never waits for one of them, because events go through channels without
//! bound; and when a client goes away, its handler is dropped, with it the request's ticket, and
//! the request leaves the batch.

mod answers;
mod body;
mod budget;
mod chat;
mod cohere;
mod cohere_embed;
mod completions;
mod connections;
mod conversations;
mod cors;
mod count;
mod decode;
mod echo;
mod embeddings;
mod failure;
mod host;
mod input;
mod live;
mod metrics;
mod objects;
mod openai;
mod options;
mod page;
mod params;
mod rag;
mod rag_ask;
mod rank;
mod status;
mod stream;
mod tei;
mod tokens;
mod workers;

use crate::schedule::{Limits, Scheduler};
use crate::{Engine, Error, Result};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use budget::Budget;
use connections::Ended;
use failure::Failure;
use metrics::Metrics;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use workers::Workers;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model's name in requests and answers.
    pub name: String,
    /// Keys of which a request must bear one; none for everybody.
    pub api_keys: Vec<String>,
    /// Keys that may also write to the store; none if every key of `api_keys` may.
    pub write_keys: Vec<String>,
    /// Origins of pages that may call, as browsers send them (`https://app.example`; `*` for any,
    /// `null` for pages from files); none for this server's own only.
    pub cors: Vec<String>,
    /// Names in `Host` that requests may bear beside the loopback interface's; `*` for any. None
    /// for any, too, where there are keys or the address is not a loopback one.
    pub allow_hosts: Vec<String>,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Bytes of all bodies, results and answers under way, over all connections. Where they are
    /// used up, a request that needs more than a small part gets 503; one that needs more than all
    /// never gets anything else.
    pub max_bytes_under_way: usize,
    /// Inputs of one request.
    pub max_inputs: usize,
    /// Connections at once; more wait to be accepted. At most what the system's limit on open
    /// files leaves.
    pub connections: usize,
    /// How long a client may take to send a request's head, how long its body, and how long it may
    /// take nothing of an answer.
    pub patience: Duration,
    /// How long requests under way may take once the server is to stop.
    pub grace: Duration,
    /// What the scheduler takes.
    pub limits: Limits,
    /// The folder of a store of documents (of `gritlm index`) to answer from.
    pub store: Option<PathBuf>,
    /// Whether nobody may write to the store over HTTP.
    pub store_read_only: bool,
    /// Takes a line about each request that failed for a reason of the server's own, with what
    /// clients are not told: files' paths, who else uses the store.
    pub log: fn(&str),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "gritlm".into(),
            api_keys: Vec::new(),
            write_keys: Vec::new(),
            cors: Vec::new(),
            allow_hosts: Vec::new(),
            max_body_bytes: 16 << 20,
            max_bytes_under_way: 1 << 30,
            max_inputs: 2048,
            connections: 16384,
            patience: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            limits: Limits::default(),
            store: None,
            store_read_only: false,
            log: |_| {},
        }
    }
}

/// What every handler sees.
struct App {
    settings: Settings,
    /// Names that requests may bear; None for any.
    hosts: Option<Vec<String>>,
    /// Set when the model is loaded.
    scheduler: OnceLock<Scheduler>,
    /// Set before it, where there is a store.
    store: OnceLock<Arc<rag::Store>>,
    draining: AtomicBool,
    metrics: Metrics,
    /// What all requests hold in memory.
    budget: Arc<Budget>,
    workers: Workers,
    /// Unix time of the start, which OpenAI's `created` is.
    created: u64,
}

impl App {
    fn scheduler(&self) -> Result<&Scheduler, Failure> {
        match self.scheduler.get() {
            _ if self.draining.load(Ordering::Relaxed) => Err(Failure::draining()),
            Some(scheduler) => Ok(scheduler),
            None => Err(Failure::loading()),
        }
    }
}

/// A bound address, not yet served.
///
/// ```
/// use gritlm::serve::{Server, Settings};
/// use gritlm::{Engine, Options};
///
/// let server = Server::bind("127.0.0.1", 0, Settings::default())?;
/// println!("http://{}", server.address());
/// // Ends at once: what is to stop it is there already.
/// server.run(|| Engine::open("demo", &Options::default()), std::future::ready(()))?;
/// # Ok::<(), gritlm::Error>(())
/// ```
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    settings: Settings,
}

impl Server {
    /// Binds; port 0 takes a free one. Clients may connect from here on, and wait.
    ///
    /// # Errors
    /// When the address cannot be bound, or a setting means nothing.
    pub fn bind(host: &str, port: u16, settings: Settings) -> Result<Self> {
        for (option, keys) in
            [("--api-key", &settings.api_keys), ("--write-key", &settings.write_keys)]
        {
            if let Some(wrong) = keys.iter().find(|key| key.is_empty() || !visible(key)) {
                let (expected, found) = ("visible ASCII".into(), format!("{wrong:?}"));
                return Err(Error::Option { option, expected, found });
            }
        }
        settings.cors.iter().try_for_each(|origin| cors::check(origin))?;
        let failed = |source| Error::Input {
            what: format!("--host {host} --port {port}"),
            problem: format!("cannot listen there: {source}"),
        };
        let listener = std::net::TcpListener::bind((host, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, settings })
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; then new requests get 503, those under way have
    /// [`Settings::grace`] to finish, and it returns. `load` runs on a thread of its own, while
    /// requests get 503 and `/health` answers.
    ///
    /// # Errors
    /// What `load` returns, or when requests were cut off at the end of the grace time.
    pub fn run(
        self,
        load: impl FnOnce() -> Result<Engine> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let failed = |e| Error::Input { what: "serve".into(), problem: format!("no runtime: {e}") };
        // Handlers do little; the cores are the engine's.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("gritlm-http")
            .enable_all()
            .build()
            .map_err(failed)?;
        let ended = runtime.block_on(self.serve(load, stop));
        runtime.shutdown_background();
        ended
    }

    async fn serve(
        self,
        load: impl FnOnce() -> Result<Engine> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let failed = |e: std::io::Error| Error::Input {
            what: self.address.to_string(),
            problem: format!("cannot be served: {e}"),
        };
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(failed)?;
        let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let workers = Workers::new().map_err(|e| failed(std::io::Error::other(e)))?;
        let (keys, names) = (&self.settings.api_keys, &self.settings.allow_hosts);
        let app = Arc::new(App {
            hosts: host::allowed(self.address.ip(), keys, names),
            budget: Budget::new(self.settings.max_bytes_under_way),
            workers,
            settings: self.settings,
            scheduler: OnceLock::new(),
            store: OnceLock::new(),
            draining: AtomicBool::new(false),
            metrics: Metrics::new(),
            created: created.unwrap_or_default().as_secs(),
        });
        let settings = &app.settings;
        let connections = connections::serve(
            listener,
            router(Arc::clone(&app)),
            settings.connections,
            settings.patience,
        );
        let (limits, folder) = (settings.limits.clone(), settings.store.clone());
        let open = move || -> Result<_> {
            let engine = load()?;
            let waiting = limits.queue_requests;
            let store = folder.map(|folder| rag::Store::open(&engine, folder, waiting));
            Ok((store.transpose()?, Scheduler::start(engine, limits)?))
        };
        let loading = tokio::task::spawn_blocking(open);
        tokio::pin!(stop);
        let (store, scheduler): (_, Scheduler) = tokio::select! {
            loaded = loading => loaded.map_err(|e| failed(e.into()))??,
            () = &mut stop => return Ok(()),
        };
        store.into_iter().for_each(|store| drop(app.store.set(Arc::new(store))));
        let scheduler = app.scheduler.get_or_init(|| scheduler).clone();
        stop.await;

        let deadline = Instant::now() + settings.grace;
        app.draining.store(true, Ordering::Relaxed);
        let drained = tokio::task::spawn_blocking(move || scheduler.drain());
        // Late by a little, so that what has come to its end is also written.
        let finished = tokio::time::timeout_at(deadline.into(), drained).await.is_ok();
        let written = connections.end(deadline.max(Instant::now() + Duration::from_millis(200)));
        match (finished, written.await) {
            (true, Ended::Written) => Ok(()),
            _ => Err(Error::Input {
                what: format!("--grace {}", settings.grace.as_secs_f32()),
                problem: "the time was over before all requests were done; they were cut off"
                    .into(),
            }),
        }
    }
}

fn visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

/// Everything that is served. Whoever calls an endpoint with `/v1`, `/v2` and the like in front of
/// it needs a key, where there are keys; what says how the server is, and the pages, are open.
fn router(app: Arc<App>) -> axum::Router {
    let writing = OpenApiRouter::new()
        .routes(routes!(rag::index))
        .route_layer(from_fn_with_state(Arc::clone(&app), may_write));
    let locked = OpenApiRouter::new()
        .routes(routes!(status::models))
        .routes(routes!(status::model))
        // Names on Hugging Face have a slash, which clients need not encode.
        .route("/v1/models/{id}/{*rest}", axum::routing::get(status::model))
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(tei::embed))
        .routes(routes!(tei::similarity))
        .routes(routes!(tei::rerank))
        .routes(routes!(tei::info))
        .routes(routes!(cohere_embed::embed))
        .routes(routes!(cohere::rerank))
        .routes(routes!(cohere::rerank_v1))
        .routes(routes!(tokens::tokenize))
        .routes(routes!(tokens::detokenize))
        .routes(routes!(tokens::tokenizer_info))
        .routes(routes!(metrics::metrics))
        .routes(routes!(live::stats))
        .routes(routes!(chat::chat))
        .routes(routes!(completions::completions))
        .routes(routes!(rag_ask::ask))
        .merge(writing)
        .route_layer(from_fn_with_state(Arc::clone(&app), authorized));
    let open = OpenApiRouter::new().routes(routes!(status::health)).routes(routes!(status::ready));
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(locked)
        .merge(open)
        .split_for_parts();
    let docs = utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", description);
    let router = router
        .merge(docs)
        .merge(page::routes())
        .fallback(async || Failure::no_such_path())
        .method_not_allowed_fallback(async || Failure::no_such_method())
        .layer(from_fn_with_state(Arc::clone(&app), budget::hold))
        .layer(from_fn_with_state(Arc::clone(&app), count::count));
    let router = match cors::layer(&app.settings.cors) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router.layer(from_fn_with_state(Arc::clone(&app), host::check)).with_state(app)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "gritlm",
        description = "Embeddings and generation from one copy of GritLM's weights, in one batch."
    ),
    components(schemas(rag_ask::AskPart))
)]
struct Description;

/// Lets a request through that bears one of the keys.
async fn authorized(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Settings { api_keys, write_keys, .. } = &app.settings;
    if api_keys.is_empty() || bears(&request, api_keys) || bears(&request, write_keys) {
        return next.run(request).await;
    }
    Failure::unauthorized().into_response()
}

/// Lets a request through that may write to the store.
async fn may_write(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Settings { store_read_only, write_keys, .. } = &app.settings;
    if *store_read_only {
        return Failure::read_only().into_response();
    }
    if !write_keys.is_empty() && !bears(&request, write_keys) {
        return Failure::no_write_key().into_response();
    }
    next.run(request).await
}

/// Whether a request bears one of the keys.
fn bears(request: &Request, keys: &[String]) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| bearer(v.as_bytes()));
    let given = given.unwrap_or_default();
    keys.iter().any(|key| equal(key.as_bytes(), given))
}

/// The key behind the scheme's name, which HTTP spells in either case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// In a time that does not tell how much of it is right.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}
