//! The HTTP server over the scheduler, for clients of OpenAI, TEI and Cohere.
//!
//! Handlers are async and cheap: they check a request, hand its work to the [`Scheduler`], and
//! pass on the results. The step loop never waits for a handler, because events go through
//! unbounded channels. When a client disconnects, its handler is dropped and with it the request's
//! ticket, and the scheduler removes the request from the batch.

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
mod error;
mod failure;
mod host;
mod input;
mod live;
mod memory;
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
mod web;
mod workers;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use budget::Budget;
use connections::Ended;
pub use error::{Error, Result};
use failure::Failure;
use gritlm::Engine;
use gritlm::schedule::{Limits, Scheduler};
use metrics::Metrics;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use workers::Workers;

/// The settings of a server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The model's name in requests and responses.
    pub name: String,
    /// Keys that grant access: a request must carry one of these or of `write_keys`. If empty, no
    /// key is needed.
    pub api_keys: Vec<String>,
    /// Keys that also allow writing to the store. If empty, every request that `api_keys` lets
    /// through may write.
    pub write_keys: Vec<String>,
    /// Origins whose pages may call this server, as browsers send them (`https://app.example`; `*`
    /// for any, `null` for pages from files). If empty, only this server's own pages may.
    pub cors: Vec<String>,
    /// Names that a request's `Host` header may have besides those of the loopback interface; `*`
    /// for any. If empty, any name is allowed if there are `api_keys` or the address is not a
    /// loopback address.
    pub allow_hosts: Vec<String>,
    /// The largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// Bytes that all bodies, results and answers under way may take together, over all
    /// connections. While they are used up, a request that needs more than a small part gets 503;
    /// a request that needs more than the whole budget always does.
    pub max_bytes_under_way: usize,
    /// The most inputs of one request.
    pub max_inputs: usize,
    /// The most simultaneous connections; further ones wait to be accepted. The system's limit on
    /// open files may lower it.
    pub connections: usize,
    /// How long a client may take to send a request's head, how long to send its body, and how
    /// long it may accept nothing of an answer.
    pub patience: Duration,
    /// How long requests under way may still take after the server is told to stop.
    pub grace: Duration,
    /// The scheduler's limits.
    pub limits: Limits,
    /// The folder of a document store (created by `gritlm index`) to answer from.
    pub store: Option<PathBuf>,
    /// Refuses every write to the store over HTTP.
    pub store_read_only: bool,
    /// The folder of the npm package `gritlm-web`, whose page is served at `/web/`.
    pub web: Option<PathBuf>,
    /// Receives a line about each request that failed for a reason of the server's own, with
    /// details that clients do not see: paths of files, who else uses the store.
    pub log: fn(&str),
}

gritlm_model::setters!(Settings {
    api_keys: Vec<String>,
    write_keys: Vec<String>,
    cors: Vec<String>,
    allow_hosts: Vec<String>,
    max_body_bytes: usize,
    max_bytes_under_way: usize,
    max_inputs: usize,
    connections: usize,
    patience: Duration,
    grace: Duration,
    limits: Limits,
    store: Option<PathBuf>,
    store_read_only: bool,
    web: Option<PathBuf>,
    log: fn(&str),
} into {
    name: String,
});

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
            web: None,
            log: |_| {},
        }
    }
}

/// The state that all handlers share.
struct App {
    settings: Settings,
    /// Names that the `Host` header may have; None for any.
    hosts: Option<Vec<String>>,
    /// `None` while the model is being loaded, also again after its device was lost.
    serving: RwLock<Option<Serving>>,
    draining: AtomicBool,
    metrics: Metrics,
    /// The memory that all requests hold.
    budget: Arc<Budget>,
    workers: Workers,
    /// Unix time of the server's start, reported as OpenAI's `created`.
    created: u64,
}

/// A loaded model.
#[derive(Clone)]
struct Serving {
    scheduler: Scheduler,
    /// The store, if there is one, opened for this scheduler's engine.
    store: Option<Arc<rag::Store>>,
}

impl App {
    /// Returns the loaded model, also while the server drains.
    fn serving(&self) -> Result<Serving, Failure> {
        // A clone cannot panic halfway, so a poisoned lock can be used.
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.clone().ok_or_else(Failure::loading)
    }

    /// Returns the loaded model for a new request.
    fn open(&self) -> Result<Serving, Failure> {
        match self.draining.load(Ordering::Relaxed) {
            true => Err(Failure::draining()),
            false => self.serving(),
        }
    }

    fn serve(&self, serving: Option<Serving>) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = serving;
    }
}

/// A bound address, not yet served.
///
/// ```
/// use gritlm_serve::{Server, Settings};
/// use gritlm::{Engine, Options};
///
/// let server = Server::bind("127.0.0.1", 0, Settings::default())?;
/// println!("http://{}", server.address());
/// // Ends at once: what is to stop it is there already.
/// server.run(|| Engine::open("demo", &Options::default()), std::future::ready(()))?;
/// # Ok::<(), gritlm_serve::Error>(())
/// ```
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    settings: Settings,
}

impl Server {
    /// Binds the address; port 0 takes a free one. From here on clients can connect, and wait.
    ///
    /// # Errors
    /// When the address cannot be bound, or a setting is invalid.
    pub fn bind(host: &str, port: u16, settings: Settings) -> Result<Self> {
        for (option, keys) in [("api_key", &settings.api_keys), ("write_key", &settings.write_keys)]
        {
            if let Some(wrong) = keys.iter().find(|key| key.is_empty() || !visible(key)) {
                let (expected, found) = ("visible ASCII".into(), format!("{wrong:?}"));
                return Err(gritlm::Error::Option { option, expected, found }.into());
            }
        }
        settings.cors.iter().try_for_each(|origin| cors::check(origin))?;
        settings.web.as_deref().map_or(Ok(()), web::check)?;
        let failed = |source| {
            Error::from(gritlm::Error::Input {
                what: format!("`host` {host} `port` {port}"),
                problem: format!("cannot listen there: {source}"),
            })
        };
        let listener = std::net::TcpListener::bind((host, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, settings })
    }

    /// Returns the address that clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready. Then new requests get 503, those under way have
    /// [`Settings::grace`] to finish, and the function returns. `load` runs on a thread of its
    /// own; meanwhile `/health` answers and requests get 503. It runs again when the device is lost,
    /// as after a reset by its driver: the requests under way fail, and later ones are answered.
    ///
    /// # Errors
    /// When `load` fails, the first time or later, or when requests were cut off at the end of the
    /// grace time.
    pub fn run(
        self,
        load: impl FnMut() -> gritlm::Result<Engine> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let failed = |e| {
            Error::from(gritlm::Error::Input {
                what: "serve".into(),
                problem: format!("no runtime: {e}"),
            })
        };
        // Handlers do little work; the cores are left to the engine.
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
        mut load: impl FnMut() -> gritlm::Result<Engine> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::from(gritlm::Error::Input {
                what: self.address.to_string(),
                problem: format!("cannot be served: {e}"),
            })
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
            serving: RwLock::default(),
            draining: AtomicBool::new(false),
            metrics: Metrics::new(),
            created: created.unwrap_or_default().as_secs(),
        });
        // Ends with the runtime.
        tokio::spawn(memory::give_back(Arc::clone(&app.budget)));
        let settings = &app.settings;
        let connections = connections::serve(
            listener,
            router(Arc::clone(&app)),
            settings.connections,
            settings.patience,
        );
        let (limits, folder) = (settings.limits.clone(), settings.store.clone());
        let open = Arc::new(Mutex::new(move || -> Result<_> {
            let engine = load()?;
            let store = folder.clone().map(|folder| rag::Store::open(&engine, folder));
            let store = store.transpose()?.map(Arc::new);
            Ok(Serving { scheduler: Scheduler::start(engine, limits.clone())?, store })
        }));
        tokio::pin!(stop);
        let scheduler = loop {
            let open = Arc::clone(&open);
            let loading = tokio::task::spawn_blocking(move || {
                // Nobody else opens meanwhile.
                (open.lock().unwrap_or_else(PoisonError::into_inner))()
            });
            let serving = tokio::select! {
                loaded = loading => loaded.map_err(|e| failed(e.into()))??,
                () = &mut stop => return Ok(()),
            };
            app.serve(Some(serving.clone()));
            tokio::select! {
                () = serving.scheduler.lost() => {}
                () = &mut stop => break serving.scheduler,
            }
            app.serve(None);
            (settings.log)("the device is lost; the model is opened again");
            // What was taken meanwhile fails, and frees the device's memory for the new model.
            let ended = tokio::task::spawn_blocking(move || serving.scheduler.drain());
            ended.await.map_err(|e| failed(e.into()))?;
        };

        let deadline = Instant::now() + settings.grace;
        app.draining.store(true, Ordering::Relaxed);
        let drained = tokio::task::spawn_blocking(move || scheduler.drain());
        // The deadline is at least 200 ms away, so that answers that have just ended are also
        // written.
        let finished = tokio::time::timeout_at(deadline.into(), drained).await.is_ok();
        let written = connections.end(deadline.max(Instant::now() + Duration::from_millis(200)));
        match (finished, written.await) {
            (true, Ended::Written) => Ok(()),
            _ => Err(gritlm::Error::Input {
                what: format!("`grace` {}", settings.grace.as_secs_f32()),
                problem: "the grace period ended before all requests were done, and the rest were cut off"
                    .into(),
            }
            .into()),
        }
    }
}

fn visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

/// Builds the routes. Where there are keys, every API endpoint needs one: `/v1/…` and `/v2/…`, and
/// also `/embed`, `/similarity`, `/rerank`, `/info`, `/tokenize`, `/detokenize`,
/// `/tokenizer_info`, `/metrics` and `/stats`. Only `/health`, `/ready`, `/docs`, `/openapi.json`
/// and the pages at `/` and `/web/` with their files are open.
fn router(app: Arc<App>) -> axum::Router {
    let writing = OpenApiRouter::new()
        .routes(routes!(rag::index))
        .route_layer(from_fn_with_state(Arc::clone(&app), may_write));
    let locked = OpenApiRouter::new()
        .routes(routes!(status::models))
        .routes(routes!(status::model))
        // Model names on Hugging Face contain a slash, which clients need not encode.
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
        .merge(web::routes(app.settings.web.as_deref()))
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

/// Lets a request through if it carries one of the keys, or if there are no `api_keys`.
async fn authorized(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Settings { api_keys, write_keys, .. } = &app.settings;
    if api_keys.is_empty() || bears(&request, api_keys) || bears(&request, write_keys) {
        return next.run(request).await;
    }
    Failure::unauthorized().into_response()
}

/// Lets a request through if it may write to the store.
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

/// Returns whether a request carries one of the keys.
fn bears(request: &Request, keys: &[String]) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| bearer(v.as_bytes()));
    let given = given.unwrap_or_default();
    keys.iter().any(|key| equal(key.as_bytes(), given))
}

/// Returns the key after the scheme's name, whose case does not matter in HTTP.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// Compares keys in a time that does not reveal how many bytes match.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}
