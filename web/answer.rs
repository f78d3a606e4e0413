//! The events of a request, one after the other.

use crate::exception;
use futures_core::Stream;
use gritlm::schedule::{self, Event, EventStream, Scheduler, Summary, Work};
use js_sys::{Float32Array, Object, Reflect};
use std::future::poll_fn;
use std::pin::Pin;
use wasm_bindgen::prelude::*;

/// Cancels the requests that it was given to: their events end.
#[wasm_bindgen]
#[derive(Default)]
pub struct Cancel(schedule::Cancel);

#[wasm_bindgen]
impl Cancel {
    /// Makes one that has not been used.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Cancel {
        Self::default()
    }

    /// Cancels.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

impl Cancel {
    pub(crate) fn inner(&self) -> schedule::Cancel {
        self.0.clone()
    }
}

/// The events of a request. Freeing it cancels the request.
#[wasm_bindgen]
pub struct Events {
    stream: EventStream,
}

/// Queues work.
pub(crate) fn submit(
    scheduler: &Scheduler,
    work: Work,
    cancel: &Cancel,
) -> Result<Events, JsError> {
    let stream = scheduler.stream(crate::request(work, cancel)).map_err(exception)?;
    Ok(Events { stream })
}

/// Waits for the next event of a stream.
pub(crate) async fn next(stream: &mut EventStream) -> Option<Event> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}

#[wasm_bindgen]
impl Events {
    /// Returns the next event, or nothing where there is none: the last one has come, or the request
    /// was cancelled. Wait for it before asking for another.
    ///
    /// # Errors
    /// When the request has failed.
    pub async fn next(&mut self) -> Result<JsValue, JsError> {
        let Some(event) = next(&mut self.stream).await else { return Ok(JsValue::UNDEFINED) };
        Ok(match event {
            Event::Piece(piece) => {
                let finish = piece.finish.map(|finish| format!("{finish:?}").to_lowercase());
                object(&[
                    ("text", piece.text.into()),
                    ("token", piece.token.token.into()),
                    ("finish", finish.map_or(JsValue::NULL, JsValue::from)),
                ])
            }
            Event::Embedding { index, embedding } => object(&[
                ("index", (index as u32).into()),
                ("vector", Float32Array::from(embedding.vector.as_slice()).into()),
                ("tokens", (embedding.tokens as u32).into()),
                ("truncated", (embedding.truncated as u32).into()),
            ]),
            Event::Finished(summary) => object(&[("summary", counted(&summary))]),
            Event::Failed(error) => return Err(exception(error)),
            // Only asked for by options that pages cannot set.
            Event::Prompt(_) | Event::Ranked(_) => JsValue::NULL,
        })
    }
}

fn counted(summary: &Summary) -> JsValue {
    object(&[
        ("promptTokens", (summary.prompt_tokens as u32).into()),
        ("cachedTokens", (summary.cached_tokens as u32).into()),
        ("outputTokens", (summary.output_tokens as u32).into()),
    ])
}

/// Makes an object of names and values.
pub(crate) fn object(fields: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (name, value) in fields {
        // Only frozen objects and proxies refuse.
        let _ = Reflect::set(&object, &JsValue::from_str(name), value);
    }
    object.into()
}
