//! Checks the name in the `Host` header, against DNS rebinding.
//!
//! A page of any site can have its own name resolve to 127.0.0.1 and then read what this server
//! answers. Its requests carry that name in `Host`.

use super::App;
use super::failure::Failure;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Allows any name.
const ANY: &str = "*";

/// Returns the names that requests may have besides those of the loopback interface, or None if
/// any name is allowed. A key keeps pages out, and a server on other addresses does not know its
/// own names.
pub(super) fn allowed(ip: IpAddr, keys: &[String], hosts: &[String]) -> Option<Vec<String>> {
    let open = hosts.iter().any(|host| host == ANY)
        || (hosts.is_empty() && (!ip.is_loopback() || !keys.is_empty()));
    (!open).then(|| hosts.iter().map(|host| host.to_ascii_lowercase()).collect())
}

/// Refuses requests to names that are not allowed.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(names) = &app.hosts else { return next.run(request).await };
    let headers = request.headers().get_all(header::HOST).iter();
    let mut found: Vec<String> =
        headers.map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
    // Browsers always send a `Host` header; HTTP/1.0 clients need not.
    if found.is_empty() && request.version() != Version::HTTP_10 {
        found.push(String::new());
    }
    found.extend(request.uri().authority().map(|authority| authority.to_string()));
    match found.into_iter().find(|host| !is_allowed(host, names)) {
        Some(host) => Failure::wrong_host(&host).into_response(),
        None => next.run(request).await,
    }
}

/// Returns whether a `Host`, with or without a port, is one of `names` or a name of the loopback
/// interface.
fn is_allowed(host: &str, names: &[String]) -> bool {
    let Some(authority) = host.parse::<Authority>().ok().filter(|_| !host.contains('@')) else {
        return false;
    };
    let host = authority.host().to_ascii_lowercase();
    let name = host.strip_suffix('.').unwrap_or(&host);
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || v6.is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback()))
        || names.iter().any(|allowed| allowed == name)
}
