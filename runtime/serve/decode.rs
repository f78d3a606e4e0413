//! Bodies that come compressed.

use super::failure::Failure;
use axum::http::{HeaderMap, header};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use std::io::Read;

/// Codings of bodies that are understood, as `Accept-Encoding` lists them.
pub(super) const CODINGS: &str = "gzip, deflate";

/// How a body is compressed.
#[derive(Clone, Copy)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    /// What `Content-Encoding` says; None where the body comes as it is.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Failure> {
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let text =
            |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
        let found = values.map(text).collect::<Vec<String>>().join(", ").to_ascii_lowercase();
        let names =
            found.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "identity"));
        match names.collect::<Vec<_>>()[..] {
            [] => Ok(None),
            ["gzip" | "x-gzip"] => Ok(Some(Self::Gzip)),
            ["deflate"] => Ok(Some(Self::Deflate)),
            _ => Err(Failure::unknown_coding(&found)),
        }
    }

    /// The body as it was before, of at most `limit` bytes: a few thousand can become gigabytes.
    pub(super) async fn decode(self, body: Vec<u8>, limit: usize) -> Result<Vec<u8>, Failure> {
        let decoded = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            let most = limit as u64 + 1;
            let read = match self {
                Self::Gzip => MultiGzDecoder::new(&body[..]).take(most).read_to_end(&mut bytes),
                Self::Deflate => ZlibDecoder::new(&body[..]).take(most).read_to_end(&mut bytes),
            };
            read.map(|_| bytes)
        });
        let decoded = decoded.await.map_err(|_| Failure::lost())?;
        let name = match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        };
        let bytes = decoded.map_err(|e| {
            Failure::malformed(format!(
                "body: expected {name}, as content-encoding says, found {e}"
            ))
        })?;
        match bytes.len() > limit {
            true => Err(Failure::large_body(limit)),
            false => Ok(bytes),
        }
    }
}
