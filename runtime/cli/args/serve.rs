//! Arguments of `serve`.

use super::values::seconds;
use clap::Args as Group;
use gritlm::schedule::Limits;
use gritlm_serve::Settings;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Group)]
#[command(next_help_heading = "Serving")]
pub(crate) struct Serve {
    /// Address to listen on; 0.0.0.0 for all interfaces
    #[arg(long, value_name = "H", default_value = "127.0.0.1", env = "GRITLM_HOST")]
    pub(crate) host: String,
    /// Port to listen on; 0 for a free one
    #[arg(long, value_name = "P", default_value_t = 8080, env = "GRITLM_PORT")]
    pub(crate) port: u16,
    /// The model's name in requests and answers [default: --model, or the last part of its
    /// folder]
    #[arg(long, value_name = "NAME", env = "GRITLM_MODEL_NAME")]
    pub(crate) model_name: Option<String>,
    /// A key that requests must carry; several with commas, or given again
    #[arg(long, value_name = "K", env = "GRITLM_API_KEY", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    pub(crate) api_key: Vec<String>,
    /// A key that may also add documents to the store; if there is one, keys of --api-key may
    /// only ask; several with commas, or given again
    #[arg(long, value_name = "K", env = "GRITLM_WRITE_KEY", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    pub(crate) write_key: Vec<String>,
    /// An origin whose pages may call the server, as browsers send it (https://app.example), *
    /// for any or null for pages from files; several with commas, or given again
    #[arg(long, value_name = "URL", env = "GRITLM_CORS_ORIGIN", value_delimiter = ',')]
    pub(crate) cors_origin: Vec<String>,
    /// A host name that requests may carry in Host, * for any; several with commas, or given
    /// again [default: on a loopback address without a key only localhost and the like, else any]
    #[arg(long, value_name = "NAME", env = "GRITLM_ALLOW_HOST", value_delimiter = ',')]
    pub(crate) allow_host: Vec<String>,
    /// A folder made by web/build, whose page computes in the visitor's browser, at /web/
    #[arg(long, value_name = "DIR", env = "GRITLM_WEB")]
    pub(crate) web: Option<PathBuf>,
    /// A store made by `gritlm index`, to answer from and to add documents to
    #[arg(long, value_name = "DIR", env = "GRITLM_STORE")]
    pub(crate) store: Option<PathBuf>,
    /// Only answer from the store; requests to add documents are refused with 403
    #[arg(long, env = "GRITLM_STORE_READ_ONLY", requires = "store")]
    pub(crate) store_read_only: bool,
    /// Maximum requests in the queue; more are refused with 429
    #[arg(long, value_name = "N", env = "GRITLM_MAX_QUEUE")]
    #[arg(default_value_t = Limits::default().queue_requests)]
    pub(crate) max_queue: usize,
    /// Maximum tokens in the queue, over all requests
    #[arg(long, value_name = "N", env = "GRITLM_MAX_QUEUE_TOKENS")]
    #[arg(default_value_t = Limits::default().queue_tokens)]
    pub(crate) max_queue_tokens: usize,
    /// Maximum tokens per step, over all requests [default: --batch-tokens]
    #[arg(long, value_name = "N", env = "GRITLM_MAX_BATCH_TOKENS")]
    pub(crate) max_batch_tokens: Option<usize>,
    /// Maximum inputs per request; more are refused with 413
    #[arg(long, value_name = "N", env = "GRITLM_MAX_INPUTS")]
    #[arg(default_value_t = Settings::default().max_inputs)]
    pub(crate) max_inputs: usize,
    /// Maximum bytes of a request's body; more are refused with 413
    #[arg(long, value_name = "N", env = "GRITLM_MAX_BODY_BYTES")]
    #[arg(default_value_t = Settings::default().max_body_bytes)]
    pub(crate) max_body_bytes: usize,
    /// Maximum bytes of all bodies and answers in flight; requests for which too few are left get
    /// 503
    #[arg(long, value_name = "N", env = "GRITLM_MAX_BYTES_UNDER_WAY")]
    #[arg(default_value_t = Settings::default().max_bytes_under_way)]
    pub(crate) max_bytes_under_way: usize,
    /// Maximum concurrent connections; more wait
    #[arg(long, value_name = "N", env = "GRITLM_MAX_CONNECTIONS")]
    #[arg(default_value_t = Settings::default().connections)]
    pub(crate) max_connections: usize,
    /// Seconds that a client may take to send a request's head, and then its body, and for which
    /// it may read nothing of an answer
    #[arg(long, value_name = "S", env = "GRITLM_PATIENCE", default_value = "30")]
    #[arg(value_parser = seconds)]
    pub(crate) patience: Duration,
    /// Seconds that requests in flight have after SIGTERM
    #[arg(long, value_name = "S", env = "GRITLM_GRACE", default_value = "30")]
    #[arg(value_parser = seconds)]
    pub(crate) grace: Duration,
}
