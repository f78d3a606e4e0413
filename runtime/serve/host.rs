//! Which names a server answers to. A page of any site can have its own name resolved to 127.0.0.1
//! (DNS rebinding) and then reads what this server answers; its requests bear that name in `Host`.

use super::App;
use super::failure::Failure;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Any name.
const ANY: &str = "*";

/// The names that requests may bear beside those of the loopback interface; None where any will do:
/// a key keeps pages out, and a server of other addresses has names that it does not know.
pub(super) fn allowed(ip: IpAddr, keys: &[String], hosts: &[String]) -> Option<Vec<String>> {
    let open = hosts.iter().any(|host| host == ANY)
        || (hosts.is_empty() && (!ip.is_loopback() || !keys.is_empty()));
    (!open).then(|| hosts.iter().map(|host| host.to_ascii_lowercase()).collect())
}

/// Refuses requests to other names.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(names) = &app.hosts else { return next.run(request).await };
    let headers = request.headers().get_all(header::HOST).iter();
    let mut found: Vec<String> =
        headers.map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
    // Browsers always send one; programs of HTTP/1.0 need not.
    if found.is_empty() && request.version() != Version::HTTP_10 {
        found.push(String::new());
    }
    found.extend(request.uri().authority().map(|authority| authority.to_string()));
    match found.into_iter().find(|host| !is_allowed(host, names)) {
        Some(host) => Failure::wrong_host(&host).into_response(),
        None => next.run(request).await,
    }
}

/// Whether a `Host`, with or without a port, is one of the names or of the loopback interface.
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
