//! The page at `/web/`, which computes in the visitor's browser: the files of the npm package that
//! `web/build` makes, from a folder.

use super::{App, Result};
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Redirect, Response};
use axum::routing::get;
use std::path::Path;
use std::sync::Arc;
use tower_http::services::ServeDir;

/// What the folder must have.
const FILES: [&str; 3] = ["index.html", "gritlm.js", "gritlm_web_bg.wasm"];

/// The content security policy: scripts are the page's own, and models come from anywhere.
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
     img-src 'self'; connect-src 'self' https: http://localhost:* http://127.0.0.1:*; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Checks that the folder is a package.
pub(super) fn check(folder: &Path) -> Result<()> {
    match FILES.iter().find(|file| !folder.join(file).is_file()) {
        None => Ok(()),
        Some(file) => Err(gritlm::Error::Option {
            option: "web",
            expected: "a folder that web/build has made".into(),
            found: format!("{} without {file}", folder.display()),
        }
        .into()),
    }
}

/// Returns the routes of the folder's files.
pub(super) fn routes(folder: Option<&Path>) -> Router<Arc<App>> {
    let Some(folder) = folder else { return Router::new() };
    Router::new()
        .route("/web", get(async || Redirect::permanent("/web/")))
        .nest_service("/web/", ServeDir::new(folder))
        .layer(from_fn(restrict))
}

/// Adds the headers that every file has. Browsers ask each time whether a file is still current.
async fn restrict(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
