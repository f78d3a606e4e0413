//! The engine in a browser: what `gritlm.js` calls. That file is the interface for pages; this crate
//! takes and returns plain values and JSON, and its classes have to be freed.
//!
//! A [`Model`] is a scheduler whose steps run on the page's own event loop. Calls that come at once
//! share its batches. The weights come from files that JavaScript reads in pieces.

mod answer;
mod files;
mod how;
mod index;
mod turn;

pub use answer::{Cancel, Events};
pub use files::WebFile;
pub use index::Index;

use gritlm::schedule::{Limits, Request, Scheduler, StepTokens, Work};
use gritlm::{Checkpoint, Engine};
use how::{Embedding, Generation, Opening, Saying};
use serde_json::json;
use wasm_bindgen::prelude::*;

/// Makes an exception of an error, with its one-line text.
fn exception(error: impl std::fmt::Display) -> JsError {
    JsError::new(&error.to_string())
}

/// Prints panics, which end the module, to the console.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|info| {
        web_sys::console::error_1(&info.to_string().into());
    }));
}

/// Returns the bytes of the module's memory, which never shrinks.
#[wasm_bindgen]
pub fn memory_bytes() -> f64 {
    let memory: js_sys::WebAssembly::Memory = wasm_bindgen::memory().unchecked_into();
    let buffer: js_sys::ArrayBuffer = memory.buffer().unchecked_into();
    f64::from(buffer.byte_length())
}

/// A loaded model.
#[wasm_bindgen]
pub struct Model {
    scheduler: Scheduler,
    device: String,
}

#[wasm_bindgen]
impl Model {
    /// Opens the checkpoint in these files. `options` is the JSON of an `Opening`.
    ///
    /// # Errors
    /// When an option or a file is invalid, or the device cannot be opened or has no room.
    pub async fn open(
        name: String,
        files: Vec<WebFile>,
        options: String,
    ) -> Result<Model, JsError> {
        let how: Opening = how::parse(&options)?;
        let files: Vec<_> = files.into_iter().map(files::file).collect();
        let checkpoint = Checkpoint::of_ranges(&files).await.map_err(exception)?;
        let options = how.options().map_err(exception)?;
        let batch_tokens = options.batch_tokens;
        let engine = Engine::of_checkpoint(&name, checkpoint, &options).await.map_err(exception)?;
        // Asked for now, because a pass that is under way holds the device.
        let device = engine.device();
        let limits = Limits::default().batch_tokens(batch_tokens);
        let (scheduler, steps) =
            Scheduler::polled_in_turns(engine, limits, turn::turn).map_err(exception)?;
        wasm_bindgen_futures::spawn_local(steps);
        Ok(Model { scheduler, device })
    }

    /// Returns the device and why it was chosen.
    #[wasm_bindgen(getter)]
    pub fn device(&self) -> String {
        self.device.clone()
    }

    /// Returns the JSON of what the model is: its name, sizes, and what it can do.
    pub fn about(&self) -> String {
        let (engine, c) = (self.scheduler.engine(), self.scheduler.engine().config());
        json!({
            "name": engine.name(),
            "dimensions": c.dim,
            "layers": c.layers,
            "vocabulary": c.vocab,
            "positions": c.max_positions,
            "bytes": engine.loading().bytes,
            "kvTokens": engine.kv_tokens(),
            "generates": engine.generates(),
        })
        .to_string()
    }

    /// Returns the JSON of the scheduler's counters and of its steps after number `since`, as the
    /// server's `/stats` does.
    pub fn stats(&self, since: f64) -> String {
        // The steps are read first, so that the counters include all of them.
        let steps = self.scheduler.steps_since(since as u64);
        let steps = steps.iter().map(|step| {
            let StepTokens { decode, prefill, embed, from_cache } = step.tokens;
            let ms = step.time.as_secs_f64() * 1e3;
            let step = step.step;
            json!({"step": step, "decode": decode, "prefill": prefill, "embed": embed,
                "from_cache": from_cache, "ms": ms})
        });
        let steps: Vec<_> = steps.collect();
        json!({"stats": self.scheduler.stats(), "steps": steps}).to_string()
    }

    /// Embeds texts, with one event each. `options` is the JSON of an `Embedding`.
    ///
    /// # Errors
    /// When an option or a text is invalid, or the scheduler refuses.
    pub fn embed(
        &self,
        texts: Vec<String>,
        options: &str,
        cancel: &Cancel,
    ) -> Result<Events, JsError> {
        let how = how::parse::<Embedding>(options)?.options().map_err(exception)?;
        let texts = self.scheduler.engine().encode_texts(&texts, &how).map_err(exception)?;
        answer::submit(&self.scheduler, Work::Embed { texts, options: how }, cancel)
    }

    /// Generates an answer, with one event a token. `prompt` is the JSON of a `Saying`, and `options`
    /// that of a `Generation`.
    ///
    /// # Errors
    /// When an option or the prompt is invalid, or the scheduler refuses.
    pub fn generate(
        &self,
        prompt: &str,
        options: &str,
        cancel: &Cancel,
    ) -> Result<Events, JsError> {
        let prompt = how::parse::<Saying>(prompt)?.prompt().map_err(exception)?;
        let sampling = how::parse::<Generation>(options)?.sampling();
        let sampling = sampling.verbatim(prompt.is_verbatim());
        let engine = self.scheduler.engine();
        let prompt = engine.tokenize_prompt(&prompt, false).map_err(exception)?;
        answer::submit(&self.scheduler, Work::Generate { prompt, sampling, past: None }, cancel)
    }

    /// Returns an empty index of documents.
    pub fn index(&self) -> Index {
        Index::new(self.scheduler.clone())
    }

    /// Refuses new calls; those under way go on.
    pub fn close(&self) {
        self.scheduler.close();
    }
}

/// Work as a request that `cancel` ends.
fn request(work: Work, cancel: &Cancel) -> Request {
    Request { cancel: cancel.inner(), ..work.into() }
}
