//! Reads documents from files: text, Markdown, HTML, PDF and JSONL.

mod html;
mod parser;
mod pdf;
mod walk;

#[cfg(unix)]
pub use parser::serve_parser;
pub use parser::{ParseLimits, Parser};
pub(super) use walk::{Entry, Links, Unread, Walk, resolve, walk};

use super::store::{Stamp, content_hash};
use crate::{Result, text};
use parser::Format;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A document as read from its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The file's path. For a line of a JSONL file it is `path#id`, where the id is the line's
    /// own or its number, counted from 1.
    pub path: String,
    /// An HTML title or the first Markdown heading, else the file's name. For a JSON line it is
    /// its title, empty if there is none.
    pub title: String,
    /// The text, trimmed of white space at both ends. Lines end with `\n`.
    pub text: String,
    /// The other fields of a JSON line; null if there are none, and for a file.
    pub metadata: Value,
    /// The state of the file. For a JSON line, the hash is the line's own.
    pub stamp: Stamp,
}

/// The result of reading a file, or a line of a JSONL file.
pub(super) enum Item {
    Document(Source),
    /// Unchanged: the document's path, and the stamp of its file if the whole file was read.
    Unchanged(String, Option<Stamp>),
    /// Not a readable document, with the reason.
    Problem(String),
    /// Binary data, in a file that is not expected to be text.
    Binary,
}

/// Maximum bytes of a title and of a JSON line's id; the same as for a path.
pub const MAX_NAME: usize = 4096;

/// Reads the documents of a file or folder as [`super::Indexer`] does, for inspection. Hidden and
/// binary files, links to folders and links that lead outside are left out. HTML and PDF are
/// parsed in this process, with the limits of [`ParseLimits::default`]. The second value lists
/// what could not be read, and why.
///
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # std::fs::write(folder.path().join("a.md"), "# Chess\n\nfor the desktop").unwrap();
/// let (found, problems) = gritlm_rag::read(folder.path());
/// assert_eq!(found[0].title, "Chess");
/// assert!(problems.is_empty());
/// ```
pub fn read(path: &Path) -> (Vec<Source>, Vec<String>) {
    let (mut sources, mut problems) = (Vec::new(), Vec::new());
    let Walk { files, failed, .. } = walk(&[path.to_path_buf()], None, Links::Within);
    problems.extend(failed.into_iter().map(|u| format!("{}: {}", u.name, u.problem)));
    let parser = Parser::default();
    for entry in files {
        // Neither the callback nor a parser in this process returns an error.
        let _ = read_file(&entry, &parser, &|_, _| false, &mut |item| {
            match item {
                Item::Document(source) => sources.push(source),
                Item::Problem(problem) => problems.push(format!("{}: {problem}", entry.path)),
                Item::Unchanged(..) | Item::Binary => {}
            }
            Ok(())
        });
    }
    (sources, problems)
}

/// Reads a file's documents one by one and passes each to `each`. Documents that are `unchanged`,
/// by path and hash, are passed without their text. A problem with the file is an
/// [`Item::Problem`].
///
/// # Errors
/// Returns any error of `each`, and an error if the parser's process does not start.
pub(super) fn read_file(
    entry: &Entry,
    parser: &Parser,
    unchanged: &dyn Fn(&str, u64) -> bool,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let extension = entry.extension();
    if matches!(extension.as_str(), "jsonl" | "ndjson") {
        return lines(entry, unchanged, each);
    }
    let modified = settled(entry.modified);
    let bytes = match open(&entry.path).and_then(whole) {
        Ok(bytes) => bytes,
        Err(error) => return each(Item::Problem(error.to_string())),
    };
    let hash = content_hash(&bytes);
    let stamp = Stamp { modified, bytes: entry.bytes, hash };
    if unchanged(&entry.path, hash) {
        return each(Item::Unchanged(entry.path.clone(), Some(stamp)));
    }
    let (title, text) = match Format::of(&extension) {
        Some(format) => match parser.parse(format, &bytes)? {
            Ok(parsed) => parsed,
            Err(problem) => return each(Item::Problem(problem)),
        },
        None => match text::decode(bytes) {
            Ok(text) if text.contains('\0') => return each(Item::Binary),
            Ok(text) if matches!(extension.as_str(), "md" | "markdown") => (heading(&text), text),
            Ok(text) => (None, text),
            Err(error) if is_text(&extension) && !error.is_binary() => {
                return each(Item::Problem(error.to_string()));
            }
            Err(_) => return each(Item::Binary),
        },
    };
    let name = || Path::new(&entry.path).file_name().unwrap_or_default().to_string_lossy().into();
    let mut title = title.map(one_line).filter(|t| !t.is_empty()).unwrap_or_else(name);
    title.truncate(title.floor_char_boundary(MAX_NAME));
    each(Item::Document(Source {
        path: entry.path.clone(),
        title,
        text: tidy(&text),
        metadata: Value::Null,
        stamp,
    }))
}

/// Opens a regular file. What was a file when its folder was listed may be a pipe by now, and
/// opening a pipe would wait for its writer.
fn open(path: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file any more")),
    }
}

/// Reads a whole file. Its size may differ from what the system reports: files in `/proc` report
/// none.
fn whole(file: File) -> io::Result<Vec<u8>> {
    let too_long = |bytes: u64| {
        let (mib, most) = (bytes >> 20, text::MAX_BYTES >> 20);
        io::Error::other(format!("{mib} MiB or more; a document has at most {most} MiB"))
    };
    let size = file.metadata()?.len();
    if size > text::MAX_BYTES as u64 {
        return Err(too_long(size));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(text::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > text::MAX_BYTES { Err(too_long(bytes.len() as u64)) } else { Ok(bytes) }
}

/// The coarsest time stamp of any file system, which is FAT's.
const TICK: Duration = Duration::from_secs(2);

/// Returns the modification time for the stamp of a file that is about to be read. It is 0 if
/// another change may still come within the same tick, because that change would not show.
fn settled(modified: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let last = now.saturating_sub(TICK).as_nanos();
    if u128::try_from(modified).is_ok_and(|modified| modified < last) { modified } else { 0 }
}

/// Returns whether the extension promises text. Such a file that is neither UTF-8 nor UTF-16 with
/// a byte-order mark is reported as a problem.
fn is_text(extension: &str) -> bool {
    matches!(extension, "txt" | "text" | "md" | "markdown" | "rst" | "tex" | "csv" | "tsv" | "log")
}

/// Reads the documents of a JSONL file: one object per line with `text` and optionally `id` and
/// `title`.
fn lines(
    entry: &Entry,
    unchanged: &dyn Fn(&str, u64) -> bool,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let modified = settled(entry.modified);
    // Lines appended while the file is read are left to the next run.
    let file = open(&entry.path).and_then(|file| {
        let bytes = file.metadata()?.len();
        Ok(file.take(bytes))
    });
    let mut file = match file.and_then(|file| text::utf8(BufReader::new(file))) {
        Ok(file) => file,
        Err(error) => return each(Item::Problem(error.to_string())),
    };
    let mut seen = std::collections::HashSet::new();
    let mut bytes = Vec::new();
    for number in 1.. {
        match text::read_line(&mut file, &mut bytes) {
            Ok(false) => break,
            Ok(true) if bytes.trim_ascii().is_empty() => continue,
            Ok(true) => {}
            Err(error) => return each(Item::Problem(format!("line {number}: {error}"))),
        }
        let line = text::unmarked_bytes(&bytes).trim_ascii();
        let wrong = |problem: String| Item::Problem(format!("line {number}: {problem}"));
        let (id, title, text, metadata) = match line_of(line) {
            Ok(parts) => parts,
            Err(problem) => {
                each(wrong(problem))?;
                continue;
            }
        };
        let path = format!("{}#{}", entry.path, id.unwrap_or_else(|| number.to_string()));
        if !seen.insert(content_hash(path.as_bytes())) {
            each(wrong(format!("a second document {path}")))?;
            continue;
        }
        let hash = content_hash(line);
        each(match unchanged(&path, hash) {
            true => Item::Unchanged(path, None),
            false => Item::Document(Source {
                path,
                title: one_line(title),
                text: tidy(&text),
                metadata,
                stamp: Stamp { modified, bytes: entry.bytes, hash },
            }),
        })?;
    }
    Ok(())
}

/// Returns the id, title, text and other fields of a JSON line.
fn line_of(line: &[u8]) -> Result<(Option<String>, String, String, Value), String> {
    let expected = "expected an object with a string \"text\"";
    let mut fields: Map<String, Value> =
        serde_json::from_slice(line).map_err(|e| format!("{expected}: {e}"))?;
    let Some(Value::String(text)) = fields.remove("text") else { return Err(expected.into()) };
    let id = match fields.remove("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(_) => return Err("id: expected a string or a number".into()),
    };
    let title = match fields.remove("title") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(title)) => title,
        Some(_) => return Err("title: expected a string".into()),
    };
    for (name, value) in [("id", id.as_deref()), ("title", Some(title.as_str()))] {
        if let Some(bytes) = value.map(str::len).filter(|&bytes| bytes > MAX_NAME) {
            return Err(format!("{name}: expected at most {MAX_NAME} bytes, found {bytes}"));
        }
    }
    let metadata = if fields.is_empty() { Value::Null } else { Value::Object(fields) };
    Ok((id, title, text, metadata))
}

/// Returns the first Markdown heading, either `# Heading` or underlined with `===`, that is not
/// in a code block.
fn heading(text: &str) -> Option<String> {
    let (mut code, mut before) = (false, "");
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("```") || line.starts_with("~~~") {
            code = !code;
        } else if !code {
            let level = line.bytes().take_while(|&b| b == b'#').count();
            if (1..=6).contains(&level) && line[level..].starts_with([' ', '\t']) {
                return Some(line[level..].trim().trim_end_matches('#').trim_end().into());
            }
            if !before.is_empty() && !line.is_empty() && line.bytes().all(|b| b == b'=') {
                return Some(before.into());
            }
        }
        before = line;
    }
    None
}

fn one_line(text: String) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes a byte-order mark and white space at both ends, and converts line ends to `\n`.
fn tidy(text: &str) -> String {
    let text = text.trim_start_matches('\u{FEFF}').trim();
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.into() }
}
