//! A turn of the page's event loop.

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{AddEventListenerOptions, MessageChannel};

thread_local! {
    /// Messages to oneself. A timer would wait four milliseconds, and a promise would not let the page
    /// draw.
    static CHANNEL: Option<MessageChannel> = MessageChannel::new().ok();
}

/// Lets the page do what it has to do: draw, and take a visitor's clicks.
pub(crate) async fn turn() {
    let turned = Promise::new(&mut |resolve, _| {
        let sent = CHANNEL.with(|channel| {
            let (channel, once) = (channel.as_ref()?, AddEventListenerOptions::new());
            once.set_once(true);
            let port = channel.port1();
            // Whoever waits meanwhile is resolved as well: by a turn, too.
            port.add_event_listener_with_callback_and_add_event_listener_options(
                "message", &resolve, &once,
            )
            .ok()?;
            port.start();
            channel.port2().post_message(&JsValue::NULL).ok()
        });
        if sent.is_none() {
            // Without a channel the page waits.
            let _ = resolve.call0(&JsValue::NULL);
        }
    });
    // It is never rejected.
    let _ = JsFuture::from(turned).await;
}
