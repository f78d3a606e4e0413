//! Parses HTML and PDF, whose parsers do what a file makes them do: in a child process, which has
//! limits of its own and takes nobody along when it ends, or in this one.

#[cfg(unix)]
mod child;
#[cfg(unix)]
mod wire;

use super::{html, pdf};
use crate::Result;
#[cfg(unix)]
pub use child::serve_parser;
use std::process::Command;
use std::time::Duration;

/// What a document of a format that others parse may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseLimits {
    /// CPU time of its parser, in whole seconds; a child process only. It may wait for a core for
    /// thirty times as long.
    pub cpu: Duration,
    /// Bytes of memory that the parser's process may have, itself included; a child process only.
    pub memory: u64,
    /// Bytes of text.
    pub text: usize,
}

impl Default for ParseLimits {
    /// 10 s, 1 GiB, 64 MiB of text.
    fn default() -> Self {
        Self { cpu: Duration::from_secs(10), memory: 1 << 30, text: 64 << 20 }
    }
}

impl ParseLimits {
    /// Whether a document may have so many bytes of text.
    pub(super) fn check_text(&self, bytes: usize) -> Result<(), String> {
        match bytes > self.text {
            true => Err(format!("it has more than {} of text", mib(self.text as u64))),
            false => Ok(()),
        }
    }
}

/// For people; whole MiB where it is that many.
fn mib(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        mib => format!("{mib} MiB"),
    }
}

/// Formats that others define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Pdf,
}

impl Format {
    /// By a file's extension, in small letters.
    pub(super) fn of(extension: &str) -> Option<Self> {
        match extension {
            "html" | "htm" | "xhtml" => Some(Self::Html),
            "pdf" => Some(Self::Pdf),
            _ => None,
        }
    }
}

/// A document's title, if it has one, and text; or what is wrong with it.
pub(super) type Parsed = Result<(Option<String>, String), String>;

/// Parses HTML and PDF; see [`super::super::Indexer::set_parser`].
///
/// In either way it is counted what a document makes its parser do: what its streams decode to, how
/// often and how deep its forms are drawn, codes and widths of its fonts, and its text. Only a child
/// process ([`Parser::in_child`]) has limits of time and memory, too, and only there can the parser
/// not take the program along with it.
#[derive(Debug, Default)]
pub struct Parser {
    limits: ParseLimits,
    #[cfg(unix)]
    child: Option<child::Child>,
}

impl Parser {
    /// One in this process.
    pub fn new(limits: ParseLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// One in a child process, which `command` starts and which calls [`serve_parser`]. It is
    /// started with the first document, and again when a document has ended it. Systems other than
    /// Unix have no such limits; there, the documents are parsed in this process.
    ///
    /// ```no_run
    /// use gritlm::rag::{ParseLimits, Parser};
    /// use std::process::Command;
    ///
    /// // `gritlm parse-documents` is such a program.
    /// let mut command = Command::new("gritlm");
    /// command.arg("parse-documents");
    /// let parser = Parser::in_child(command, ParseLimits::default());
    /// ```
    pub fn in_child(command: Command, limits: ParseLimits) -> Self {
        #[cfg(unix)]
        return Self { limits, child: Some(child::Child::of(command)) };
        #[cfg(not(unix))]
        return {
            let _ = command;
            Self::new(limits)
        };
    }

    /// An error is the child's, and no document's fault.
    pub(super) fn parse(&self, format: Format, bytes: &[u8]) -> Result<Parsed> {
        #[cfg(unix)]
        if let Some(child) = &self.child {
            return child.parse(format, bytes, &self.limits);
        }
        Ok(parse(format, bytes, &self.limits))
    }
}

/// In this process.
fn parse(format: Format, bytes: &[u8], limits: &ParseLimits) -> Parsed {
    let (title, text) = match format {
        Format::Html => html::text(bytes),
        Format::Pdf => (None, pdf::text(bytes, limits)?),
    };
    limits.check_text(text.len())?;
    Ok((title, text))
}
