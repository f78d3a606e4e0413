//! Training data: JSON Lines in the formats of the original implementation, read where they lie.

mod file;
mod line;

use crate::encode::Encoder;
use crate::{Error, Result};
use file::File;
use line::{Rules, Sample};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest line that is read, in bytes. Longer ones are files of another kind.
pub const MAX_LINE: usize = 16 << 20;

/// Where a sample stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// The number of its line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

impl Place {
    /// Returns the error of the sample that stands here.
    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Data { path: self.path.to_path_buf(), line: self.line, problem: problem.into() }
    }
}

/// What a file's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Queries with passages, for the contrastive loss.
    Pairs,
    /// Texts and conversations, for the next-token loss.
    Texts,
    /// Conversations about a document, for the next-token loss.
    Documents,
}

impl Kind {
    /// Returns the key by which a line of this kind is known.
    fn key(self) -> &'static str {
        match self {
            Self::Pairs => "query",
            Self::Texts => "text",
            Self::Documents => "document",
        }
    }
}

/// A text to embed: a query, a passage or a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Passage {
    /// What the vector is for; empty if there is none. As in the original, tabs, line breaks,
    /// spaces and colons at its ends are removed.
    pub instruction: String,
    /// The text.
    pub text: String,
}

/// A query with all of its passages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The query.
    pub query: Passage,
    /// Passages that fit it; at least one.
    pub positives: Vec<Passage>,
    /// Passages that do not; at least one where a group has more than one passage.
    pub negatives: Vec<Passage>,
    /// Where the sample stands.
    pub place: Place,
}

/// A text whose next tokens are learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generative {
    /// The document whose keys and values the conversation continues, if it does.
    pub document: Option<Passage>,
    /// The text or conversation.
    pub spoken: Spoken,
    /// Where the sample stands.
    pub place: Place,
}

/// What a generative sample teaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// Verbatim text: every token is learned.
    Text(String),
    /// A conversation, the user's texts with their answers; at least one. The answers are learned.
    Turns(Vec<(String, String)>),
}

/// A file or folder of training data. The texts stay on disk: a sample is read when it is asked
/// for.
///
/// A file has samples of one kind, which its keys tell:
///
/// ```text
/// {"query": Q, "pos": [P, …], "neg": [P, …]}          pairs, for the contrastive loss
/// {"text": "…"}                                       verbatim text, loss on all tokens
/// {"text": ["user", "assistant", …]}                  a conversation, loss on its answers
/// {"document": P, "text": ["user", "assistant", …]}   a conversation about a cached document
/// ```
///
/// `Q` and `P` are a text, or `[instruction, text]`. A text alone has no instruction. Other keys
/// are ignored, and so are blank lines.
///
/// The last form is this project's own. The document is embedded with the mask of embeddings, its
/// keys and values are kept, and the conversation continues them with the causal mask, as `doc`
/// caching of an answer does: the first of the user's texts is the question.
#[derive(Debug)]
pub struct Data {
    files: Vec<File>,
    rules: Rules,
    fingerprint: u128,
}

impl Data {
    /// Opens a file, or each `*.jsonl` in a folder in the order of their names, and checks every
    /// line. `group` is the number of passages of a query in a batch, its positive one included;
    /// the encoder says how long texts may be.
    ///
    /// Samples with an empty text, or an instruction that leaves no room for one, are left out,
    /// as in the original; see [`Data::notes`].
    ///
    /// # Errors
    /// When a file cannot be read, a line is invalid, all samples of a file are left out, or there
    /// are none.
    pub fn open(path: &Path, encoder: &Encoder<'_>, group: usize) -> Result<Self> {
        if group == 0 {
            let (expected, found) = ("1 or more".into(), "0".into());
            return Err(Error::Option { option: "group", expected, found });
        }
        let rules = Rules { chars: encoder.lengths().most_chars(), group };
        let mut files = Vec::new();
        for path in paths(path)? {
            files.push(File::open(&path, encoder, rules)?);
        }
        let hashes = files.iter().flat_map(|file| file.hash.to_le_bytes());
        let fingerprint = gritlm_model::hash::fnv1a(hashes);
        Ok(Self { files, rules, fingerprint })
    }

    /// Returns the number of passages of a query in a batch, its positive one included.
    pub fn group(&self) -> usize {
        self.rules.group
    }

    /// Returns the number of pairs.
    pub fn pairs(&self) -> usize {
        self.of(true).map(File::len).sum()
    }

    /// Returns the number of texts and conversations, those about documents included.
    pub fn generative(&self) -> usize {
        self.of(false).map(File::len).sum()
    }

    /// Returns each file with its kind and number of samples, in the order of the samples.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Kind, usize)> {
        self.files.iter().map(|file| (file.path(), file.kind, file.len()))
    }

    /// Returns the number of pairs in each file of pairs.
    pub(crate) fn pairs_by_file(&self) -> Vec<usize> {
        self.of(true).map(File::len).collect()
    }

    /// Returns a line for each file of which samples were left out: how many, and why the first.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.files.iter().filter_map(File::note)
    }

    /// Returns a hash of all samples in their order. The same order of batches needs the same
    /// hash.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Reads a pair by its index, counted from 0 over all files of pairs.
    ///
    /// # Errors
    /// When the file cannot be read, or has changed since it was opened.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn pair(&self, index: usize) -> Result<Pair> {
        match self.read(true, index)? {
            (_, Sample::Pair(pair)) => Ok(pair),
            (file, Sample::Generative(_)) => Err(file.changed()),
        }
    }

    /// Reads a text or conversation by its index, counted from 0 over all files of them.
    ///
    /// # Errors
    /// When the file cannot be read, or has changed since it was opened.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn text(&self, index: usize) -> Result<Generative> {
        match self.read(false, index)? {
            (_, Sample::Generative(text)) => Ok(text),
            (file, Sample::Pair(_)) => Err(file.changed()),
        }
    }

    fn of(&self, pairs: bool) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| (file.kind == Kind::Pairs) == pairs)
    }

    fn read(&self, pairs: bool, index: usize) -> Result<(&File, Sample)> {
        let mut left = index;
        for file in self.of(pairs) {
            if left < file.len() {
                return Ok((file, file.read(left, self.rules)?));
            }
            left -= file.len();
        }
        panic!("sample {index} of {}", index - left)
    }
}

/// Returns the files of a folder, or the file itself.
fn paths(path: &Path) -> Result<Vec<PathBuf>> {
    let io = || Error::io(path);
    if !path.metadata().map_err(io())?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(io())? {
        let file = entry.map_err(io())?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if file.extension().is_some_and(|end| end == "jsonl") && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        false => Ok(files),
        true => {
            let problem = "expected files that end in .jsonl, found none in this folder".into();
            Err(Error::NoData { path: path.into(), problem })
        }
    }
}

/// Returns a line without the byte-order mark that some editors put in front of a file, and that
/// files one after the other have within.
fn unmarked(line: &[u8]) -> &[u8] {
    line.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(line)
}
