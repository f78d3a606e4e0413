//! The state of the server: whether it is alive and ready, and which model it serves.

use super::App;
use super::failure::{Failure, FailureBody, Failures};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The server's models; there is always one.
#[derive(Serialize, ToSchema)]
pub(super) struct Models {
    /// Always `list`.
    object: &'static str,
    data: Vec<ModelCard>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelCard {
    /// The model's name, as requests give it.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// Unix time of the server's start.
    created: u64,
    owned_by: &'static str,
    /// Positions of the model: the most tokens of a text, or of a prompt with its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
}

/// Lists the one model of this server, also while it is being loaded.
#[utoipa::path(get, path = "/v1/models", tag = "server",
    responses((status = 200, body = Models), Failures))]
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Models> {
    Json(Models { object: "list", data: vec![ModelCard::of(&app)] })
}

/// Returns the model of this name, which may contain slashes.
///
/// The answer is 404 if it is not this server's model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "server",
    params(("id" = String, Path, description = "The name, as `/v1/models` tells it.")),
    responses((status = 200, body = ModelCard), Failures))]
pub(super) async fn model(
    State(app): State<Arc<App>>,
    parts: Result<Path<Vec<String>>, PathRejection>,
) -> Result<Json<ModelCard>, Failure> {
    // A path that is not UTF-8 names no model.
    let id = parts.map(|Path(parts)| parts.join("/")).unwrap_or_default();
    match id == app.settings.name {
        true => Ok(Json(ModelCard::of(&app))),
        false => Err(Failure::no_such_model(&id, &app.settings.name)),
    }
}

impl ModelCard {
    fn of(app: &App) -> Self {
        Self {
            id: app.settings.name.clone(),
            object: "model",
            created: app.created,
            owned_by: "gritlm",
            max_model_len: app.serving().ok().map(|s| s.scheduler.engine().config().max_positions),
        }
    }
}

/// Returns `ok` while the process runs.
#[utoipa::path(get, path = "/health", tag = "server", responses((status = 200, body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The status; `status` is always `ok`.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    status: &'static str,
}

/// Returns whether the server would take a request now.
///
/// It would if the model is loaded, the queue is not full, and the server is not draining.
#[utoipa::path(get, path = "/ready", tag = "server",
    responses((status = 200, body = Health), (status = 503, body = FailureBody)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Health>, Failure> {
    let scheduler = app.open()?.scheduler;
    let stats = scheduler.stats();
    let (waiting, limits) = (stats.waiting_generate + stats.waiting_embed, scheduler.limits());
    if waiting >= limits.queue_requests || stats.waiting_tokens >= limits.queue_tokens {
        return Err(Failure::full(waiting));
    }
    Ok(Json(Health { status: "ok" }))
}
