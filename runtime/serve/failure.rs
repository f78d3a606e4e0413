//! What a client is told when it does not get what it asked for: a status, and a body in OpenAI's
//! shape.

use super::decode::CODINGS;
use crate::Error;
use crate::schedule::Refused;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::time::Duration;
use utoipa::{IntoResponses, ToSchema};

/// A refusal or an error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) error: Problem,
    pub(super) retry_after: Option<Duration>,
    /// What the log says instead of the message, which clients see.
    reason: Option<Box<str>>,
}

/// What the log says of a failure that is the server's own: its code and the whole reason. It comes
/// with the response.
#[derive(Clone)]
pub(super) struct Reason(pub(super) String);

/// The body of every answer that is none.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureBody {
    pub(super) error: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// One line: what was expected, and what was found.
    pub(super) message: String,
    /// The kind: `invalid_request_error`, `authentication_error`, `permission_error`,
    /// `rate_limit_error` or `server_error`.
    pub(super) r#type: &'static str,
    /// The field that it is about.
    #[schema(required)]
    pub(super) param: Option<String>,
    /// The reason, for programs.
    pub(super) code: &'static str,
}

/// For the description: every endpoint that takes a body may answer so.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the variants are the description")]
pub(super) enum Failures {
    /// The request is malformed, or an input is too long for the model or its cache.
    #[response(status = 400)]
    Malformed(#[to_schema] FailureBody),
    /// No key, or a wrong one.
    #[response(status = 401)]
    Unauthorized(#[to_schema] FailureBody),
    /// The key may not write to the store, or nobody may.
    #[response(status = 403)]
    Forbidden(#[to_schema] FailureBody),
    /// No such model; or there is no store of documents.
    #[response(status = 404)]
    NoModel(#[to_schema] FailureBody),
    /// The body did not come in time, or the request's own `timeout` passed.
    #[response(status = 408)]
    Slow(#[to_schema] FailureBody),
    /// The body is too large, or has too many inputs.
    #[response(status = 413)]
    TooLarge(#[to_schema] FailureBody),
    /// The body is no JSON by its `Content-Type`, or compressed in a way that is not understood.
    #[response(status = 415)]
    NoJson(#[to_schema] FailureBody),
    /// As much waits as may wait; `Retry-After` says how long to wait before trying again.
    #[response(status = 429)]
    Full(#[to_schema] FailureBody),
    /// The device failed.
    #[response(status = 500)]
    Failed(#[to_schema] FailureBody),
    /// The model is being loaded, the server is about to stop, the store has another writer, or
    /// bodies and answers under way take as many bytes as they may.
    #[response(status = 503)]
    NotReady(#[to_schema] FailureBody),
}

const INVALID: &str = "invalid_request_error";
const TOO_LONG: &str = "context_length_exceeded";
const UNKNOWN_CODING: &str = "unsupported_encoding";
/// Bytes of a message.
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

    /// What is to be logged, if anything: clients' own mistakes are not.
    pub(super) fn reason(&self) -> Option<Reason> {
        let Problem { message, code, .. } = &self.error;
        let own = self.status == StatusCode::INTERNAL_SERVER_ERROR;
        let reason = self.reason.as_deref().or(own.then_some(message))?;
        Some(Reason(format!("{code}: {reason}")))
    }

    /// 400: `field` is not as it should be; `problem` says what was expected and what was found.
    pub(super) fn field(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let field = field.into();
        let message = format!("{field}: {problem}");
        let mut failure = Self::malformed(message);
        failure.error.param = Some(line(field));
        failure
    }

    /// 400.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_request", message)
    }

    /// 401.
    pub(super) fn unauthorized() -> Self {
        let message = "expected a header \"Authorization: Bearer KEY\" with a key of this server";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    /// 403: the request bears another server's name.
    pub(super) fn wrong_host(found: &str) -> Self {
        let message = format!(
            "host: expected a loopback name such as localhost, found {found:?}; --allow-host NAME \
             lets gritlm serve answer to another name, and with --api-key KEY it answers to any"
        );
        Self::new(StatusCode::FORBIDDEN, INVALID, "host_not_allowed", message)
    }

    /// 404, about the body's `model`.
    pub(super) fn no_such_model(found: &str, name: &str) -> Self {
        let message = format!("model: expected {name:?}, found {found:?}");
        let mut failure = Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message);
        failure.error.param = Some("model".into());
        failure
    }

    /// 404.
    pub(super) fn no_such_path() -> Self {
        let message = "there is nothing at this path; /docs lists what there is";
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", message)
    }

    /// 405.
    pub(super) fn no_such_method() -> Self {
        let message = "the path does not take this method; /docs lists what there is";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", message)
    }

    /// 408.
    pub(super) fn slow_body(limit: Duration) -> Self {
        let message = format!("the body did not come within {} s", limit.as_secs_f32());
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "body_timeout", message)
    }

    /// 413.
    pub(super) fn large_body(limit: usize) -> Self {
        let message = format!("expected a body of at most {limit} bytes, found more");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large", message)
    }

    /// 413, unless there are as few as there may be.
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

    /// 415.
    pub(super) fn no_json(found: &str) -> Self {
        let message = format!("content-type: expected application/json, found {found:?}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type", message)
    }

    /// 415, with what is understood.
    pub(super) fn unknown_coding(found: &str) -> Self {
        let message =
            format!("content-encoding: expected one of {CODINGS}, or none, found {found:?}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, UNKNOWN_CODING, message)
    }

    /// 400: too long, and what to do about it.
    pub(super) fn too_long(field: &str, message: impl Into<String>) -> Self {
        let mut failure = Self::new(StatusCode::BAD_REQUEST, INVALID, TOO_LONG, message);
        failure.error.param = Some(field.into());
        failure
    }

    /// 400: longer than the model's positions or its cache, in the words that clients of OpenAI look
    /// for; `more` ends the sentence.
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

    /// 422 instead of 400 where an input is too long.
    pub(super) fn unprocessable(mut self) -> Self {
        if self.error.code == TOO_LONG {
            self.status = StatusCode::UNPROCESSABLE_ENTITY;
        }
        self
    }

    /// 503.
    pub(super) fn loading() -> Self {
        let message = "the model is being loaded; try again in a moment";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let failure = Self::new(status, SERVER, "loading", message);
        Self { retry_after: Some(Duration::from_secs(1)), ..failure }
    }

    /// 503.
    pub(super) fn draining() -> Self {
        let message = "the server is about to stop and takes no more requests";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "draining", message)
    }

    /// 503: bodies and answers under way take as many bytes as they may.
    pub(super) fn no_bytes(most: usize) -> Self {
        let message = format!(
            "bodies and answers under way take all of the {most} bytes that they may \
             (--max-bytes-under-way); try again in a moment"
        );
        Self::again(StatusCode::SERVICE_UNAVAILABLE, SERVER, "bytes_under_way", message)
    }

    /// 503, for `/ready`.
    pub(super) fn full(requests: usize) -> Self {
        let message = format!("the queue is full: {requests} requests wait");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "queue_full", message)
    }

    /// 404: the server has no store of documents.
    pub(super) fn no_store() -> Self {
        let message = "the server has no store of documents; make one with gritlm index, and start \
                       gritlm serve with --store DIR";
        Self::new(StatusCode::NOT_FOUND, INVALID, "no_store", message)
    }

    /// 403: the store takes no documents over HTTP.
    pub(super) fn read_only() -> Self {
        let message = "the store is read only here (--store-read-only)";
        Self::new(StatusCode::FORBIDDEN, "permission_error", "store_read_only", message)
    }

    /// 403: the key may ask, not write.
    pub(super) fn no_write_key() -> Self {
        let message = "expected a key that may write to the store (--write-key), found another";
        Self::new(StatusCode::FORBIDDEN, "permission_error", "write_key_required", message)
    }

    /// 429: as many wait beside the scheduler's queue as may.
    pub(super) fn many_wait(requests: usize) -> Self {
        let message = format!("the queue is full: {requests} requests to the store wait");
        Self::again(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", message)
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

    /// 500: the request's end was never told, because the engine's thread is gone.
    pub(super) fn lost() -> Self {
        Self::failed("engine_lost", "the engine ended before the request was done")
    }

    /// 500.
    fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, code, message)
    }

    /// With what the log says instead of the message: where things are on the server, and who else
    /// works there, is no client's business.
    fn because(self, reason: String) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }
}

/// A message, or a field's name, cut where it repeats what a client sent by the megabyte.
fn line(mut text: String) -> String {
    let bytes = text.len();
    if bytes > LINE {
        text.truncate(text.floor_char_boundary(LINE));
        text += &format!("… (cut; {bytes} bytes)");
    }
    text
}

/// OpenAI's words, up to the number of tokens found.
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
                       --kv-tokens";
                Self::new(StatusCode::BAD_REQUEST, INVALID, TOO_LONG, message)
            }
            Refused::Draining => Self::draining(),
            Refused::Invalid(error) => error.into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            // Named as in a request's body, where they are the same.
            Error::Option { option, expected, found } => Self::field(
                option.trim_start_matches("--").replace('-', "_"),
                format!("expected {expected}, found {found}"),
            ),
            Error::EmptyText { .. } | Error::Input { .. } | Error::NoHead => {
                Self::malformed(message)
            }
            Error::LongInstruction { .. } => Self::too_long("instruction", message),
            Error::LongText { what, .. } => Self::too_long(what, message),
            Error::LongPrompt { tokens, limit } => Self::long_context("prompt", tokens, limit, ""),
            // What is needed at once: of a request beside the scheduler, which makes others wait.
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
            Error::Busy { .. } => {
                let told = "the store has another writer at the moment; try again".into();
                Self::again(StatusCode::SERVICE_UNAVAILABLE, SERVER, "store_busy", told)
                    .because(message)
            }
            Error::Store { .. } => {
                let told = "the store cannot be used; gritlm index --verify says why";
                Self::failed("store_failed", told).because(message)
            }
            Error::Io { .. } => {
                Self::failed("failed", "the server could not read or write a file").because(message)
            }
            Error::Model(gritlm_model::Error::Tokenize(_)) => Self::malformed(message),
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
        // What was not read of a body cannot be told from the next request.
        if code == "draining" || self.status == StatusCode::PAYLOAD_TOO_LARGE {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
