//! Cross-origin requests: which pages may send them, with which headers, and which headers of an
//! answer they may read.

use axum::http::{HeaderName, HeaderValue, Method, header};
use gritlm::{Error, Result};
use std::net::Ipv6Addr;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Headers of an answer that a page may read, in addition to those that every page may read.
const EXPOSED: [HeaderName; 4] = [
    HeaderName::from_static("server-timing"),
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    header::ACCEPT_ENCODING,
];

/// Returns a layer that allows requests from pages of these origins, or None if there are none.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let values = origins.iter().filter_map(|o| HeaderValue::from_str(o).ok());
    let allowed = match origins {
        [] => return None,
        all if all.iter().any(|o| o == "*") => AllowOrigin::any(),
        _ => AllowOrigin::list(values),
    };
    let layer = CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]);
    // Clients send headers of their own, such as OpenAI's `x-stainless-os`. This server acts on
    // none of them but the key, which a page has to know.
    Some(layer.allow_headers(AllowHeaders::mirror_request()).expose_headers(EXPOSED))
}

/// Checks that an origin is one that browsers send. Requests from pages of any other would be
/// blocked, with no hint at the cause.
///
/// # Errors
/// Fails if browsers spell the origin differently, or if it is not an origin.
pub(super) fn check(found: &str) -> Result<()> {
    let expected = match spelled(found) {
        Some(right) if right == found => return Ok(()),
        Some(right) => format!("{right:?}, as browsers send it"),
        None => "an origin as browsers send it, such as \"https://app.example\", or \"*\"".into(),
    };
    Err(Error::Option { option: "cors_origin", expected, found: format!("{found:?}") })
}

/// Returns the origin as browsers send it: a scheme, a host, and a port unless it is the scheme's
/// default, in lower case; `null` for pages without an origin; `*` for all. Returns None if the
/// text is not an origin.
fn spelled(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    if matches!(text.as_str(), "*" | "null") {
        return Some(text);
    }
    let (scheme, rest) = match text.split_once("://") {
        // Pages that are opened from files have no origin.
        Some(("file", _)) => return Some("null".into()),
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text.trim_start_matches('/')),
    };
    let authority = rest.split(['/', '\\', '?', '#']).next()?;
    let place = authority.rsplit('@').next()?;
    let (host, port) = match place.rsplit_once(':') {
        // The colon is part of an IPv6 address.
        Some((_, port)) if port.ends_with(']') => (place, ""),
        Some((host, port)) => (host, port),
        None => (place, ""),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => format!("[{}]", address.parse::<Ipv6Addr>().ok()?),
        None => host.to_string(),
    };
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.starts_with('[') && !host.chars().all(named) {
        return None;
    }
    // If no scheme is given, assume http for this machine, whose pages rarely have certificates.
    let local = host == "localhost" || host.starts_with("127.") || host.starts_with('[');
    let scheme = scheme.unwrap_or(if local { "http" } else { "https" });
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(letters) {
        return None;
    }
    let own = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    match port {
        "" => Some(format!("{scheme}://{host}")),
        port => match port.parse::<u16>().ok()? {
            port if own == Some(port) => Some(format!("{scheme}://{host}")),
            port => Some(format!("{scheme}://{host}:{port}")),
        },
    }
}
