//! Decompresses the bodies of requests.

use super::budget::Charge;
use super::failure::Failure;
use axum::http::{HeaderMap, header};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use std::io::Read;
use std::sync::Arc;

/// Supported codings of bodies, as `Accept-Encoding` lists them.
pub(super) const CODINGS: &str = "gzip, deflate";

/// Bytes that are decoded before they are charged to the budget.
const PART: u64 = 64 << 10;

/// How a body is compressed.
#[derive(Clone, Copy)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    /// Returns the coding that `Content-Encoding` names, or None if the body is not compressed.
    /// Fails with 415 if the coding is not supported.
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

    /// Returns the decompressed body, of at most `limit` bytes: a few thousand can expand to
    /// gigabytes. The bytes are added to the charge as they are decoded.
    pub(super) async fn decode(
        self,
        body: Vec<u8>,
        limit: usize,
        charge: Arc<Charge>,
    ) -> Result<Vec<u8>, Failure> {
        let decoded = tokio::task::spawn_blocking(move || match self {
            Self::Gzip => self.read(MultiGzDecoder::new(&body[..]), limit, &charge),
            Self::Deflate => {
                let mut decoder = ZlibDecoder::new(&body[..]);
                let bytes = self.read(&mut decoder, limit, &charge)?;
                let (used, found) = (decoder.total_in(), body.len());
                match used == found as u64 {
                    true => Ok(bytes),
                    false => Err(self.wrong(format!("{found} bytes, of which {used} are deflate"))),
                }
            }
        });
        decoded.await.map_err(|_| Failure::lost())?
    }

    fn read(
        self,
        mut decoder: impl Read,
        limit: usize,
        charge: &Charge,
    ) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        loop {
            let part = (&mut decoder).take(PART).read_to_end(&mut bytes);
            match part.map_err(|e| self.wrong(e.to_string()))? {
                0 => return Ok(bytes),
                _ if bytes.len() > limit => return Err(Failure::large_body(limit)),
                part => charge.grow(part)?,
            }
        }
    }

    fn wrong(self, found: String) -> Failure {
        let name = match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        };
        let found = format!("expected {name}, as content-encoding says, found {found}");
        Failure::malformed(format!("body: {found}"))
    }
}
