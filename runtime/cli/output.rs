//! Writes to stdout, shows progress bars, and reads input texts.

use super::args::{Format, Texts};
use super::error::{Error, Interrupt, Result};
use super::{check_interrupt, note};
use gritlm_rag::text;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Buffered stdout. Errors name it as their file; a closed pipe ends the program quietly.
pub(super) struct Out {
    stdout: BufWriter<std::io::Stdout>,
    format: Format,
    terminal: bool,
}

impl Out {
    pub(super) fn new(format: Format) -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        Self { stdout: BufWriter::new(stdout), format, terminal }
    }

    /// Returns whether the output is JSON, for programs.
    pub(super) fn json(&self) -> bool {
        self.format == Format::Json
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stdout.write_all(bytes).map_err(Error::io("standard output"))
    }

    /// Writes one line for people. Texts and paths in it come from anywhere, so characters that a
    /// terminal would take for a command are shown as escapes.
    pub(super) fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        self.bytes(printable(line.as_ref()).as_bytes())?;
        self.bytes(b"\n")
    }

    /// Writes each line of a text with [`Out::line`].
    pub(super) fn lines(&mut self, text: impl AsRef<str>) -> Result<()> {
        text.as_ref().split('\n').try_for_each(|line| self.line(line))
    }

    /// Writes a part of what a model generates, and flushes it. A terminal gets escapes for what
    /// it would take for a command; a file or program gets the text as it was generated.
    pub(super) fn piece(&mut self, text: &str) -> Result<()> {
        if self.terminal {
            let lines: Vec<_> = text.split('\n').map(printable).collect();
            self.bytes(lines.join("\n").as_bytes())?;
        } else {
            self.bytes(text.as_bytes())?;
        }
        self.finish()
    }

    /// Writes one JSON object on one line. For a terminal, control characters that JSON allows
    /// unescaped become escapes, too, which does not change the object.
    pub(super) fn object(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value)
            .map_err(|e| Error::Input { what: "standard output".into(), problem: e.to_string() })?;
        let text = if self.terminal { escaped(&text, json_escape) } else { text.into() };
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.stdout.flush().map_err(Error::io("standard output"))
    }
}

/// Returns the text with escapes for control characters and for characters that change the
/// direction of writing.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.escape_default().collect())
}

/// Escapes a character of a JSON string. Four digits suffice for all characters that act on a
/// terminal.
fn json_escape(c: char) -> String {
    format!("\\u{:04x}", u32::from(c))
}

/// Returns the text with `escape` applied to each character that acts on a terminal.
fn escaped(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(acts) {
        return text.into();
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) { clean += &escape(c) } else { clean.push(c) }
    }
    clean.into()
}

/// Returns whether a terminal does anything at this character other than show it or go on to the
/// next column.
fn acts(c: char) -> bool {
    let marks = matches!(c, '\u{200E}' | '\u{200F}');
    let turns = marks || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\t') || turns
}

/// A progress bar on stderr for work that takes longer than a second. Nothing is shown if stderr
/// is not a terminal.
pub(super) struct Progress {
    what: &'static str,
    bytes: bool,
    total: u64,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Creates a bar that counts items.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        Self { what, bytes: false, total, start: Instant::now(), bar: None }
    }

    /// Creates a bar that counts bytes.
    pub(super) fn bytes(what: &'static str) -> Self {
        let mut progress = Self::new(what, 0);
        progress.bytes = true;
        progress
    }

    /// Shows how much is done. Returns an error if the user pressed Ctrl-C.
    pub(super) fn at(&mut self, done: u64) -> Result<(), Interrupt> {
        if self.bar.is_none() && self.start.elapsed() > Duration::from_secs(1) {
            let counts = if self.bytes {
                "{bytes}/{total_bytes} {bytes_per_sec}"
            } else {
                "{pos}/{len} {per_sec}"
            };
            let template = format!("{{msg}} [{{wide_bar}}] {counts} ({{eta}})");
            // The template is fixed and valid; a plain bar would do, too.
            let style = ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(self.total).with_style(style).with_message(self.what);
            bar.reset_eta();
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        check_interrupt()
    }

    /// Sets the text in front of the bar.
    pub(super) fn say(&self, what: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(what);
        }
    }

    /// Prints one line on stderr, above the bar.
    pub(super) fn note(&self, line: impl std::fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    /// Shows progress like [`Progress::at`], for a total that becomes known on the way.
    pub(super) fn of(&mut self, done: u64, total: u64) -> Result<(), Interrupt> {
        self.total = total;
        self.at(done)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The name of stdin in errors.
pub(super) const STDIN: &str = "standard input";

/// Returns the texts of a command: its arguments, else the lines of a file or of stdin.
pub(super) fn texts(from: &Texts) -> Result<Vec<String>> {
    if !from.texts.is_empty() {
        return Ok(from.texts.clone());
    }
    let found = match &from.input {
        Some(path) => {
            let file = File::open(path).map_err(Error::io(path))?;
            lines(&path.display().to_string(), BufReader::new(file))?
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Error::Option {
                option: "TEXT",
                expected: "texts as arguments, from --input FILE or on stdin".into(),
                found: "none".into(),
            });
        }
        None => lines(STDIN, std::io::stdin().lock())?,
    };
    if found.is_empty() {
        return Err(Error::Input { what: "texts".into(), problem: "there are none".into() });
    }
    Ok(found)
}

/// Adds the line number to an error about one text, if the texts were lines.
pub(super) fn at_line(error: Error, from: &Texts) -> Error {
    match error {
        Error::Engine(gritlm::Error::EmptyText { index }) if from.texts.is_empty() => {
            let name = from.input.as_ref().map_or(STDIN.into(), |path| path.display().to_string());
            let what = format!("{name}, line {}", index + 1);
            Error::Input { what, problem: error.to_string() }
        }
        error => error,
    }
}

/// Reads one text per line or, if the first line is a JSON object with `text`, one such object
/// per line.
pub(super) fn lines(name: &str, from: impl BufRead) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    let mut from = text::utf8(from).map_err(Error::io(name))?;
    let mut texts = Vec::new();
    let mut json = false;
    let mut bytes = Vec::new();
    for number in 1.. {
        let wrong =
            |problem: String| Error::Input { what: format!("{name}, line {number}"), problem };
        match text::read_line(&mut from, &mut bytes) {
            Ok(false) => break,
            Ok(true) => {}
            Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {
                return Err(wrong(e.to_string()));
            }
            Err(e) => return Err(Error::io(name)(e)),
        }
        let line = std::str::from_utf8(&bytes)
            .map_err(|e| wrong(format!("not UTF-8 (byte {} of the line)", e.valid_up_to() + 1)))?;
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = text::unmarked(line.strip_suffix('\r').unwrap_or(line));
        let parsed = serde_json::from_str::<Line>(line);
        if number == 1 {
            json = parsed.is_ok();
        }
        texts.push(match (json, parsed) {
            (false, _) => line.to_string(),
            (true, Ok(parsed)) => parsed.text,
            (true, Err(e)) => {
                return Err(wrong(format!("expected a JSON object with text, as in line 1: {e}")));
            }
        });
    }
    Ok(texts)
}

/// Writes a file completely or not at all: first to a temporary file beside it, which is then
/// renamed.
pub(super) struct Atomic {
    path: std::path::PathBuf,
    partial: std::path::PathBuf,
    file: Option<BufWriter<File>>,
}

impl Atomic {
    /// Opens the temporary file, so that an unwritable folder is found before any work.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        if path.is_dir() {
            let source = std::io::ErrorKind::IsADirectory.into();
            return Err(Error::Io { path: path.into(), source });
        }
        let file = File::create(&partial).map_err(Error::io(path))?;
        Ok(Self { path: path.into(), partial, file: Some(BufWriter::new(file)) })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(Error::io(&self.path)),
            None => Ok(()),
        }
    }

    pub(super) fn commit(mut self) -> Result<()> {
        if let Some(file) = self.file.take() {
            let file = file.into_inner().map_err(|e| Error::io(&self.path)(e.into_error()))?;
            file.sync_all().map_err(Error::io(&self.path))?;
            std::fs::rename(&self.partial, &self.path).map_err(Error::io(&self.path))?;
        }
        Ok(())
    }
}

impl Drop for Atomic {
    fn drop(&mut self) {
        // After a commit there is no such file.
        let _ = std::fs::remove_file(&self.partial);
    }
}
