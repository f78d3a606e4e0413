//! The live batch, for the page at `/` and other monitors.

use super::App;
use super::failure::{Failure, Failures};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use gritlm::schedule::{Stats, Step, StepTokens};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// The steps to return.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Since {
    /// Number of the last step that the client knows. If left out or 0, all recorded steps are
    /// returned.
    #[serde(default)]
    #[param(required = false)]
    since: u64,
}

/// Counters, and the most recent steps.
#[derive(Serialize, ToSchema)]
pub(super) struct Live {
    stats: Stats,
    /// Steps after `since`, oldest first; at most the last 256.
    steps: Vec<LiveStep>,
}

/// A step: one forward pass over texts, parts of prompts and the next tokens of answers.
#[derive(Serialize, ToSchema)]
pub(super) struct LiveStep {
    /// Its number, from 1.
    step: u64,
    /// Tokens of answers (decode).
    decode: u64,
    /// Tokens of prompts (prefill).
    prefill: u64,
    /// Tokens of texts to embed.
    embed: u64,
    /// Those of `decode` and `prefill` that belong to answers from documents' caches.
    from_cache: u64,
    /// The time that it took, in milliseconds.
    #[schema(minimum = 0)]
    ms: f64,
}

impl From<Step> for LiveStep {
    fn from(Step { step, tokens, time }: Step) -> Self {
        let StepTokens { decode, prefill, embed, from_cache } = tokens;
        Self { step, decode, prefill, embed, from_cache, ms: time.as_secs_f64() * 1e3 }
    }
}

/// Returns the scheduler's counters and its most recent steps.
///
/// It also answers while the server drains.
#[utoipa::path(get, path = "/stats", tag = "server", params(Since),
    responses((status = 200, body = Live), Failures))]
pub(super) async fn stats(
    State(app): State<Arc<App>>,
    since: Result<Query<Since>, QueryRejection>,
) -> Result<Json<Live>, Failure> {
    let expected = |e| Failure::field("since", format!("expected a step's number: {e}"));
    let Query(Since { since }) = since.map_err(expected)?;
    let scheduler = app.serving()?.scheduler;
    // The steps are read first, so that the counters include all of them.
    let steps = scheduler.steps_since(since).into_iter().map(LiveStep::from).collect();
    Ok(Json(Live { stats: scheduler.stats(), steps }))
}
