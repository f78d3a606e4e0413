//! The errors that clients get: a status, and a JSON body in OpenAI's shape.

use super::decode::CODINGS;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gritlm::Error;
use gritlm::schedule::Refused;
use gritlm_rag::Error as RagError;
use serde::Serialize;
use std::time::Duration;
use utoipa::{IntoResponses, ToSchema};

/// A refusal or an error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) error: Problem,
    pub(super) retry_after: Option<Duration>,
    /// The reason that is logged in place of the message, which clients see.
    reason: Option<Box<str>>,
}

/// The log line of a failure that is the server's own: its code and the whole reason. It is an
/// extension of the response.
#[derive(Clone)]
pub(super) struct Reason(pub(super) String);

/// The JSON body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureBody {
    pub(super) error: Problem,
}

/// The error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// One line: what was expected, and what was found.
    pub(super) message: String,
    /// The kind of error: `invalid_request_error`, `authentication_error`, `permission_error`,
    /// `rate_limit_error` or `server_error`.
    pub(super) r#type: &'static str,
    /// The field that the error is about.
    #[schema(required)]
    pub(super) param: Option<String>,
    /// A code for programs.
    pub(super) code: &'static str,
}

/// The errors of every endpoint that takes a body, for `/openapi.json`.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the variants are the description")]
pub(super) enum Failures {
    /// The request is malformed, or an input is too long for the model or its cache.
    #[response(status = 400)]
    Malformed(#[to_schema] FailureBody),
    /// The key is missing or wrong.
    #[response(status = 401)]
    Unauthorized(#[to_schema] FailureBody),
    /// The key may not write to the store, the store is read-only, or the `Host` header has a name
    /// that is not allowed.
    #[response(status = 403)]
    Forbidden(#[to_schema] FailureBody),
    /// There is no such model, or there is no store of documents.
    #[response(status = 404)]
    NoModel(#[to_schema] FailureBody),
    /// The body did not arrive in time, or the request's own `timeout` passed.
    #[response(status = 408)]
    Slow(#[to_schema] FailureBody),
    /// The body is too large, or has too many inputs.
    #[response(status = 413)]
    TooLarge(#[to_schema] FailureBody),
    /// The `Content-Type` is not JSON, or the body is compressed in a way that is not supported.
    #[response(status = 415)]
    NoJson(#[to_schema] FailureBody),
    /// The queue is full, or the KV cache has no room at the moment; `Retry-After` says how long to
    /// wait before trying again.
    #[response(status = 429)]
    Full(#[to_schema] FailureBody),
    /// The server failed, for example its device, its store or a file.
    #[response(status = 500)]
    Failed(#[to_schema] FailureBody),
    /// The model is loading, the server is shutting down, the store has another writer, or bodies
    /// and answers under way have used up their budget of bytes.
    #[response(status = 503)]
    NotReady(#[to_schema] FailureBody),
}

const INVALID: &str = "invalid_request_error";
const TOO_LONG: &str = "context_length_exceeded";
const UNKNOWN_CODING: &str = "unsupported_encoding";
/// Maximum bytes of a message.
const LINE: usize = 1000;
const SERVER: &str = "server_error";

impl Failure {
    fn new(
        status: StatusCode,
        r#type: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let error = Problem { message: line(message.into()), r#type, param: None, code };
        Self { status, error, retry_after: None, reason: None }
    }

    /// Returns the reason to log, if there is one: clients' own mistakes are not logged.
    pub(super) fn reason(&self) -> Option<Reason> {
        let Problem { message, code, .. } = &self.error;
        let own = self.status == StatusCode::INTERNAL_SERVER_ERROR;
        let reason = self.reason.as_deref().or(own.then_some(message))?;
        Some(Reason(format!("{code}: {reason}")))
    }

    /// Returns 400: `field` is invalid; `problem` says what was expected and what was found.
    pub(super) fn field(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let field = field.into();
        let message = format!("{field}: {problem}");
        let mut failure = Self::malformed(message);
        failure.error.param = Some(line(field));
        failure
    }

    /// Returns 400: the request is malformed.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_request", message)
    }

    /// Returns 401: the key is missing or wrong.
    pub(super) fn unauthorized() -> Self {
        let message = "expected a header \"Authorization: Bearer KEY\" with a key of this server";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    /// Returns 403: the request's `Host` names another server.
    pub(super) fn wrong_host(found: &str) -> Self {
        let message = format!(
            "host: expected a loopback name such as localhost, found {found:?}; with `allow_host` NAME \
             the server answers to another name, and with `api_key` KEY to any"
        );
        Self::new(StatusCode::FORBIDDEN, INVALID, "host_not_allowed", message)
    }

    /// Returns 404: the body's `model` is not the one that is served.
    pub(super) fn no_such_model(found: &str, name: &str) -> Self {
        let message = format!("model: expected {name:?}, found {found:?}");
        let mut failure = Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message);
        failure.error.param = Some("model".into());
        failure
    }

    /// Returns 404: no route has this path.
    pub(super) fn no_such_path() -> Self {
        let message = "there is nothing at this path; /docs lists what there is";
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", message)
    }

    /// Returns 405: the path does not take this method.
    pub(super) fn no_such_method() -> Self {
        let message = "the path does not take this method; /docs lists what there is";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", message)
    }

    /// Returns 408: the body did not arrive within `limit`.
    pub(super) fn slow_body(limit: Duration) -> Self {
        let message = format!("the body did not come within {} s", limit.as_secs_f32());
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "body_timeout", message)
    }

    /// Returns 413: the body has more than `limit` bytes.
    pub(super) fn large_body(limit: usize) -> Self {
        let message = format!("expected a body of at most {limit} bytes, found more");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large", message)
    }

    /// Returns `Err` with 413 if `found` exceeds `limit`.
    pub(super) fn check_inputs(field: &str, found: usize, limit: usize) -> Result<(), Self> {
        if found <= limit {
            return Ok(());
        }
        let message = format!("{field}: expected at most {limit} inputs, found {found}");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let mut failure = Self::new(status, INVALID, "too_many_inputs", message);
        failure.error.param = Some(field.into());
        Err(failure)
    }

    /// Returns 415: the `Content-Type` is not JSON.
    pub(super) fn no_json(found: &str) -> Self {
        let message = format!("content-type: expected application/json, found {found:?}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type", message)
    }

    /// Returns 415: the body's coding is not supported. The answer lists those that are.
    pub(super) fn unknown_coding(found: &str) -> Self {
        let message =
            format!("content-encoding: expected one of {CODINGS}, or none, found {found:?}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, UNKNOWN_CODING, message)
    }

    /// Returns 400: an input is too long; `message` says what to do about it.
    pub(super) fn too_long(field: &str, message: impl Into<String>) -> Self {
        let mut failure = Self::new(StatusCode::BAD_REQUEST, INVALID, TOO_LONG, message);
        failure.error.param = Some(field.into());
        failure
    }

    /// Returns 400: an input is longer than the model's positions or its KV cache, in the wording
    /// that OpenAI's clients look for; `more` ends the sentence.
    pub(super) fn long_context(
        field: &str,
        found: impl std::fmt::Display,
        limit: usize,
        more: &str,
    ) -> Self {
        let input = field.split(['[', '.']).next().unwrap_or(field);
        let message =
            format!("{field}: {}", context(limit, &format!("your {input} resulted in"), found));
        Self::too_long(field, message + more)
    }

    /// Changes 400 to 422 if the failure is that an input is too long.
    pub(super) fn unprocessable(mut self) -> Self {
        if self.error.code == TOO_LONG {
            self.status = StatusCode::UNPROCESSABLE_ENTITY;
        }
        self
    }

    /// Returns 503: the model is loading.
    pub(super) fn loading() -> Self {
        let message = "the model is being loaded; try again in a moment";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let failure = Self::new(status, SERVER, "loading", message);
        Self { retry_after: Some(Duration::from_secs(1)), ..failure }
    }

    /// Returns 503: the server is shutting down.
    pub(super) fn draining() -> Self {
        let message = "the server is about to stop and takes no more requests";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "draining", message)
    }

    /// Returns 503: bodies and answers under way have used up their budget of `most` bytes.
    pub(super) fn no_bytes(most: usize) -> Self {
        let message = format!(
            "bodies and answers under way take all of the {most} bytes that they may \
             (`max_bytes_under_way`); try again in a moment"
        );
        Self::again(StatusCode::SERVICE_UNAVAILABLE, SERVER, "bytes_under_way", message)
    }

    /// Returns 503: the queue is full, for `/ready`.
    pub(super) fn full(requests: usize) -> Self {
        let message = format!("the queue is full: {requests} requests wait");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "queue_full", message)
    }

    /// Returns 404: the server has no store of documents.
    pub(super) fn no_store() -> Self {
        let message = "the server has no store of documents: its setting `store` names no folder \
                       that gritlm index has made";
        Self::new(StatusCode::NOT_FOUND, INVALID, "no_store", message)
    }

    /// Returns 403: the store takes no documents over HTTP.
    pub(super) fn read_only() -> Self {
        let message = "the store is read only here (`store_read_only`)";
        Self::new(StatusCode::FORBIDDEN, "permission_error", "store_read_only", message)
    }

    /// Returns 403: the key may ask questions but not write to the store.
    pub(super) fn no_write_key() -> Self {
        let message = "expected a key that may write to the store (`write_key`), found another";
        Self::new(StatusCode::FORBIDDEN, "permission_error", "write_key_required", message)
    }

    fn again(
        status: StatusCode,
        r#type: &'static str,
        code: &'static str,
        message: String,
    ) -> Self {
        let failure = Self::new(status, r#type, code, message);
        Self { retry_after: Some(Duration::from_secs(1)), ..failure }
    }

    /// Returns 500: the request's last event never came, because the engine's thread is gone.
    pub(super) fn lost() -> Self {
        Self::failed("engine_lost", "the engine ended before the request was done")
    }

    /// Returns 500: the server failed.
    fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, code, message)
    }

    /// Sets the reason that is logged in place of the message. Clients must not learn where files
    /// are on the server or who else works there.
    fn because(self, reason: String) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }
}

/// Cuts a message or a field's name to `LINE` bytes, because it may repeat megabytes that a client
/// sent.
fn line(mut text: String) -> String {
    let bytes = text.len();
    if bytes > LINE {
        text.truncate(text.floor_char_boundary(LINE));
        text += &format!("… (cut; {bytes} bytes)");
    }
    text
}

/// Returns OpenAI's wording, up to the number of tokens found.
fn context(limit: usize, what: &str, found: impl std::fmt::Display) -> String {
    format!("This model's maximum context length is {limit} tokens. However, {what} {found} tokens")
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::QueueFull { retry_after, .. } => {
                let (status, kind) = (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error");
                let failure = Self::new(status, kind, "queue_full", message);
                Self { retry_after: Some(retry_after), ..failure }
            }
            Refused::TooLong { tokens, limit } => {
                let message = context(limit, "your input resulted in", tokens);
                Self::new(StatusCode::BAD_REQUEST, INVALID, TOO_LONG, message)
            }
            Refused::NeverFits { tokens, kv_tokens } => {
                let message = context(kv_tokens, "your request needs room for", tokens)
                    + ", those to be generated counted; shorten it, ask for fewer tokens or raise \
                       `kv_tokens`";
                Self::new(StatusCode::BAD_REQUEST, INVALID, TOO_LONG, message)
            }
            Refused::Draining => Self::draining(),
            Refused::Invalid(error) => error.into(),
            _ => Self::malformed(message),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Option { option, expected, found } => {
                Self::field(option, format!("expected {expected}, found {found}"))
            }
            Error::EmptyText { .. } | Error::Input { .. } | Error::NoHead => {
                Self::malformed(message)
            }
            Error::LongInstruction { .. } => Self::too_long("instruction", message),
            Error::LongText { what, .. } => Self::too_long(what, message),
            Error::LongPrompt { tokens, limit } => Self::long_context("prompt", tokens, limit, ""),
            // Requests in the scheduler wait for room instead, so this error comes from a request
            // beside it. `needed` is what that request needs at once.
            Error::NoRoom { needed, total, .. } if needed > total => {
                Self::too_long("max_tokens", message)
            }
            Error::NoRoom { needed, free, total } => {
                let message = format!(
                    "the KV cache has room for {free} of {needed} more tokens (of {total} in all) \
                     because other requests have it at the moment; try again"
                );
                Self::again(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "no_room", message)
            }
            Error::Io { .. } => {
                Self::failed("failed", "the server could not read or write a file").because(message)
            }
            Error::Model(gritlm_model::Error::Tokenize(_) | gritlm_model::Error::Template(_)) => {
                Self::malformed(message)
            }
            Error::Model(_) | Error::NoModel { .. } => {
                Self::failed("failed", "the model cannot be used").because(message)
            }
            Error::Expired => {
                Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "deadline_passed", message)
            }
            _ => Self::failed("failed", message),
        }
    }
}

impl From<RagError> for Failure {
    fn from(error: RagError) -> Self {
        let message = error.to_string();
        match error {
            RagError::Engine(error) => error.into(),
            RagError::Refused(refused) => refused.into(),
            RagError::Busy { .. } => {
                let told = "the store has another writer at the moment; try again".into();
                Self::again(StatusCode::SERVICE_UNAVAILABLE, SERVER, "store_busy", told)
                    .because(message)
            }
            RagError::Store { .. } => {
                let told = "the store cannot be used; the log of the server says why";
                Self::failed("store_failed", told).because(message)
            }
            _ => Self::failed("failed", message),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (code, reason) = (self.error.code, self.reason());
        let mut response = (self.status, Json(FailureBody { error: self.error })).into_response();
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if code == UNKNOWN_CODING {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
        }
        // The part of a body that was not read cannot be told apart from the next request.
        if code == "draining" || self.status == StatusCode::PAYLOAD_TOO_LARGE {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
