//! Files that JavaScript reads.

use futures_channel::{mpsc, oneshot};
use futures_core::Stream;
use gritlm_model::weights::{RangeFile, Ranges, Reading};
use js_sys::Uint8Array;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;

#[wasm_bindgen]
extern "C" {
    /// A file of the page's.
    pub type WebFile;

    /// Its name.
    #[wasm_bindgen(method, getter)]
    fn path(this: &WebFile) -> String;

    /// Its bytes.
    #[wasm_bindgen(method, getter)]
    fn size(this: &WebFile) -> f64;

    /// Reads the bytes from `start` to `end`.
    #[wasm_bindgen(method, catch)]
    async fn read(this: &WebFile, start: f64, end: f64) -> Result<JsValue, JsValue>;
}

/// A range that is asked for, and where its bytes go.
type Asked = (Range<u64>, oneshot::Sender<Result<Vec<u8>, String>>);

/// A [`WebFile`] behind a channel: JavaScript's values may not leave their thread, and the engine's may.
#[derive(Debug)]
struct Channel {
    size: u64,
    asked: mpsc::UnboundedSender<Asked>,
}

/// Makes a file of the engine's of a page's.
pub(crate) fn file(file: WebFile) -> RangeFile {
    let (sender, mut asked) = mpsc::unbounded::<Asked>();
    let (path, size) = (file.path().into(), file.size() as u64);
    spawn_local(async move {
        while let Some((range, answer)) = poll_fn(|c| Pin::new(&mut asked).poll_next(c)).await {
            let read = file.read(range.start as f64, range.end as f64).await;
            let read = read.map_err(|error| reason(&error));
            let read = read.map(|bytes| Uint8Array::unchecked_from_js(bytes).to_vec());
            // Nobody waits any more where loading has failed.
            let _ = answer.send(read);
        }
    });
    RangeFile { path, ranges: Arc::new(Channel { size, asked: sender }) }
}

impl Ranges for Channel {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> Reading<'_> {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            let gone = || io::Error::other("the page is gone");
            self.asked.unbounded_send((range, sender)).map_err(|_| gone())?;
            receiver.await.map_err(|_| gone())?.map_err(io::Error::other)
        })
    }
}

/// Returns an exception's message.
fn reason(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => format!("{error:?}"),
    }
}
