//! Counters and histograms for Prometheus.

use super::App;
use super::failure::Failures;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use gritlm::schedule::{Event, Stats, StepTokens, Timings, Work};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Upper bounds of histogram buckets, in seconds.
const SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds of histogram buckets, in tokens.
const TOKENS: [f64; 9] = [8.0, 32.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 8192.0, 32768.0];

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label<const N: usize> = [(&'static str, String); N];
type Histograms = Family<Label<1>, Histogram, fn() -> Histogram>;

/// The metrics that the scheduler's own [`Stats`] do not have.
pub(super) struct Metrics {
    answers: Family<Label<2>, Counter>,
    durations: Histograms,
    first_token: Histogram,
    each_token: Histogram,
    latency: Histograms,
    queued: Histograms,
    prompt_tokens: Histograms,
}

/// A request under observation.
pub(super) struct Watch {
    start: Instant,
    /// Whether the answer's first token is still to come.
    waits: bool,
    first_token: Histogram,
    each_token: Histogram,
    latency: Histogram,
    queued: Histogram,
    prompt_tokens: Histogram,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn tokens() -> Histogram {
    Histogram::new(TOKENS)
}

fn kind(kind: &str) -> Label<1> {
    [("kind", kind.into())]
}

impl Metrics {
    pub(super) fn new() -> Self {
        let all = Self {
            answers: Family::default(),
            durations: Family::new_with_constructor(seconds),
            first_token: seconds(),
            each_token: seconds(),
            latency: Family::new_with_constructor(seconds),
            queued: Family::new_with_constructor(seconds),
            prompt_tokens: Family::new_with_constructor(tokens),
        };
        // A series that exists from the start has a rate from its first request on.
        for family in [&all.latency, &all.queued, &all.prompt_tokens] {
            for name in ["embed", "rank", "generate"] {
                drop(family.get_or_create(&kind(name)));
            }
        }
        all
    }

    /// Starts to observe a request.
    pub(super) fn watch(&self, work: &Work) -> Watch {
        self.watch_kind(match work {
            Work::Embed { .. } => "embed",
            Work::Rank { .. } => "rank",
            Work::Generate { .. } => "generate",
        })
    }

    /// Starts to observe a request of this kind.
    pub(super) fn watch_kind(&self, name: &str) -> Watch {
        let kind = kind(name);
        Watch {
            start: Instant::now(),
            waits: true,
            first_token: self.first_token.clone(),
            each_token: self.each_token.clone(),
            latency: self.latency.get_or_create_owned(&kind),
            queued: self.queued.get_or_create_owned(&kind),
            prompt_tokens: self.prompt_tokens.get_or_create_owned(&kind),
        }
    }

    /// Counts a response by path and status.
    pub(super) fn answered(&self, path: &str, status: StatusCode) {
        let labels = [("path", path.into()), ("status", status.as_str().into())];
        self.answers.get_or_create(&labels).inc();
    }

    /// Records how long a response took.
    pub(super) fn took(&self, path: &str, time: Duration) {
        self.durations.get_or_create(&[("path", path.into())]).observe(time.as_secs_f64());
    }

    fn registry(&self, scheduler: Snapshot) -> Registry {
        let mut all = Registry::with_prefix("gritlm");
        all.register("http_requests", "HTTP requests by path and status", self.answers.clone());
        for (name, help, metric) in [
            (
                "time_to_first_token",
                "From submission to an answer's first token",
                &self.first_token,
            ),
            ("time_per_output_token", "An answer's mean after its first token", &self.each_token),
        ] {
            all.register_with_unit(name, help, Unit::Seconds, metric.clone());
        }
        let durations = self.durations.clone();
        let help = "HTTP requests by path, to the last byte";
        all.register_with_unit("http_request_duration", help, Unit::Seconds, durations);
        let help = "From submission to a finished request's end";
        all.register_with_unit("request_latency", help, Unit::Seconds, self.latency.clone());
        let help = "From submission to a finished request's first pass";
        all.register_with_unit("queue_time", help, Unit::Seconds, self.queued.clone());
        let help = "Tokens of a finished request's prompt, or of all its texts";
        all.register("prompt_tokens", help, self.prompt_tokens.clone());
        all.register_collector(Box::new(scheduler));
        all
    }
}

impl Watch {
    /// Records an event.
    pub(super) fn see(&mut self, event: &Event) {
        match event {
            Event::Piece(_) if self.waits => {
                self.waits = false;
                self.first_token.observe(self.start.elapsed().as_secs_f64());
            }
            Event::Finished(summary) => {
                // These are the engine's times: they do not depend on how fast the client reads.
                let Timings { queued, prefill, decode } = summary.timings;
                self.queued.observe(queued.as_secs_f64());
                self.latency.observe((queued + prefill + decode).as_secs_f64());
                self.prompt_tokens.observe(summary.prompt_tokens as f64);
                if summary.output_tokens > 1 {
                    let tokens = (summary.output_tokens - 1) as f64;
                    self.each_token.observe(decode.as_secs_f64() / tokens);
                }
            }
            _ => {}
        }
    }
}

/// The server and its scheduler at one moment.
#[derive(Debug)]
struct Snapshot {
    ready: bool,
    bytes_under_way: usize,
    stats: Stats,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Stats { last, total, refused, .. } = self.stats;
        let stats = &self.stats;
        let kinds = |tokens: StepTokens| {
            [("decode", tokens.decode), ("prefill", tokens.prefill), ("embed", tokens.embed)]
        };
        let mut one = |name, help, value: usize| {
            let metric = ConstGauge::new(value as u64);
            metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        one("ready", "Whether the model is loaded and requests are taken.", self.ready.into())?;
        let help = "Bytes of bodies, results and answers under way.";
        one("bytes_under_way", help, self.bytes_under_way)?;
        one("tokens_waiting", "Tokens of all waiting prompts and texts.", stats.waiting_tokens)?;
        one("answers_running", "Answers under way.", stats.running)?;
        one("kv_pages", "KV pages.", stats.pages)?;
        one("kv_pages_free", "KV pages that nobody holds.", stats.pages_free)?;
        one("kv_pages_prefix", "KV pages kept for prompts to come.", stats.pages_prefix)?;
        let mut count = |name, help, value| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
        };
        count("steps", "Passes.", stats.steps)?;
        count("prefix_tokens", "Prompts' tokens found computed.", stats.prefix_tokens)?;
        count("past_tokens", "Tokens whose keys and values came along.", stats.past_tokens)?;
        count("preemptions", "Answers that gave their pages to a text.", stats.preemptions)?;
        count("requests_taken", "Requests that the scheduler took.", stats.submitted)?;
        let (help, unit) = ("Time in passes.", Some(&Unit::Seconds));
        let busy = encoder.encode_descriptor("busy", help, unit, MetricType::Counter)?;
        ConstCounter::new(stats.busy.as_secs_f64()).encode(busy)?;

        let waiting = [("embed", stats.waiting_embed), ("generate", stats.waiting_generate)];
        let waiting = waiting.map(|(kind, requests)| (kind, requests as u64));
        let ended = [
            ("finished", stats.finished),
            ("failed", stats.failed),
            ("cancelled", stats.cancelled),
            ("expired", stats.expired),
        ];
        let reasons = [
            ("queue_full", refused.queue_full),
            ("too_long", refused.too_long),
            ("never_fits", refused.never_fits),
            ("draining", refused.draining),
            ("invalid", refused.invalid),
        ];
        let mut each = |name, help, is, label, rows: &[(&str, u64)]| {
            let mut family = encoder.encode_descriptor(name, help, None, is)?;
            for &(value, number) in rows {
                let labels = [(label, value)];
                let row = family.encode_family(&labels)?;
                match is {
                    MetricType::Gauge => ConstGauge::new(number).encode(row)?,
                    _ => ConstCounter::new(number).encode(row)?,
                }
            }
            Ok(())
        };
        let (gauge, counter) = (MetricType::Gauge, MetricType::Counter);
        let help = "Waiting requests by kind; ranking counts as embed.";
        each("requests_waiting", help, gauge, "kind", &waiting)?;
        each("step_tokens", "Tokens of the last pass, by kind.", gauge, "kind", &kinds(last))?;
        each("tokens", "Tokens computed, by kind.", counter, "kind", &kinds(total))?;
        each("requests_ended", "Requests that are over, by end.", counter, "end", &ended)?;
        each("requests_refused", "Requests not taken, by reason.", counter, "reason", &reasons)
    }
}

/// Returns the metrics for Prometheus.
///
/// The format is OpenMetrics text if the client accepts it, else Prometheus text. It also answers
/// while the model is being loaded.
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, content((String = "text/plain"), (String = "application/openmetrics-text"))),
    Failures))]
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> impl IntoResponse {
    let serving = app.serving();
    let ready = serving.is_ok() && !app.draining.load(Ordering::Relaxed);
    let stats = serving.map_or_else(|_| Stats::default(), |serving| serving.scheduler.stats());
    let registry =
        app.metrics.registry(Snapshot { ready, bytes_under_way: app.budget.under_way(), stats });
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let open = accepted
        .flat_map(|v| v.split(','))
        .any(|kind| kind.trim_start().starts_with("application/openmetrics-text"));
    let mut out = String::new();
    let (kind, written) = match open {
        true => (OPEN_METRICS, text::encode(&mut out, &registry)),
        false => (prometheus_text::CONTENT_TYPE, prometheus_text::encode(&mut out, &registry)),
    };
    match written {
        Ok(()) => ([(header::CONTENT_TYPE, kind)], out).into_response(),
        // Writing to a string cannot fail.
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
