//! The page at `/`, to try both modes and to watch the batch as it runs. The binary contains its
//! files unchanged.

use super::App;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;

/// The content security policy: the page loads nothing from other origins and runs no inline code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, content type and text of each file.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("/api.js", "text/javascript; charset=utf-8", include_str!("page/api.js")),
    ("/live.js", "text/javascript; charset=utf-8", include_str!("page/live.js")),
    ("/page.svg", "image/svg+xml", include_str!("page/page.svg")),
];

/// Returns the routes of the page's files.
pub(super) fn routes() -> Router<Arc<App>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let tag = tag(text);
        router.route(path, get(async move |headers: HeaderMap| file(kind, text, &tag, &headers)))
    })
}

/// Serves a file, or 304 if the browser has this version. Browsers keep a file and ask each time
/// whether it is still current; it is until the server's next update.
fn file(kind: &'static str, text: &'static str, tag: &str, headers: &HeaderMap) -> Response {
    let fixed = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let known = known.is_some_and(|all| all.split(',').any(|one| one.trim().ends_with(tag)));
    let tagged = [(header::ETAG, tag)];
    match known {
        true => (StatusCode::NOT_MODIFIED, tagged, fixed).into_response(),
        false => (tagged, fixed, text).into_response(),
    }
}

/// Returns a hash of the text (FNV-1a) in quotes, the form of an HTTP entity tag.
fn tag(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("\"{:016x}\"", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}
