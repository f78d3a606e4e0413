//! Locations of models on this machine, from the environment variables that Python's
//! `huggingface_hub` reads, older names included.

use std::env;
use std::path::PathBuf;

/// Locations that the environment selects.
pub(super) struct Places {
    /// The cache, which is a folder of repositories.
    pub(super) cache: PathBuf,
    /// The file with the user's token, which is read if the environment has none.
    token: PathBuf,
}

impl Places {
    /// Reads the environment. Returns None if neither it nor the system names a folder for the
    /// user's files.
    pub(super) fn from_env() -> Option<Self> {
        let home = set("HF_HOME")
            .or_else(|| Some(format!("{}/huggingface", set("XDG_CACHE_HOME")?)))
            .map(|path| expanded(&path))
            .or_else(|| Some(env::home_dir()?.join(".cache/huggingface")))?;
        let place = |path: Option<String>, else_: &str| {
            path.map_or_else(|| home.join(else_), |path| expanded(&path))
        };
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        Some(Self { cache: place(cache, "hub"), token: place(set("HF_TOKEN_PATH"), "token") })
    }

    /// Returns the user's token, if there is one.
    pub(super) fn token(&self) -> Option<String> {
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(&self.token).ok())?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    }
}

/// Returns the variable that forbids downloads, if any. The older name counts only if the newer
/// one is not set.
pub(super) fn offline() -> Option<&'static str> {
    let (name, value) = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
        .into_iter()
        .find_map(|name| Some((name, set(name)?)))?;
    ["1", "ON", "TRUE", "YES"].contains(&&*value.to_uppercase()).then_some(name)
}

/// Returns a variable's value, unless it is blank.
pub(super) fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Replaces a `~` at the beginning of a path with the user's home folder.
pub(super) fn from_home(path: &str) -> PathBuf {
    let rest = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (rest, env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

/// Expands a path as [`from_home`] does and replaces `$NAME` and `${NAME}` with the variables'
/// values; names that are not set stay.
fn expanded(path: &str) -> PathBuf {
    let home = from_home(path);
    let Some(mut rest) = home.to_str() else { return home };
    let mut found = String::new();
    while let Some((before, after)) = rest.split_once('$') {
        found += before;
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, length) = match after.strip_prefix('{').and_then(|n| n.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let length = after.find(|c| !part(c)).unwrap_or(after.len());
                (&after[..length], length)
            }
        };
        match env::var(name) {
            Ok(value) if !name.is_empty() => found += &value,
            _ => found.extend(["$", &after[..length]]),
        }
        rest = &after[length..];
    }
    found += rest;
    found.into()
}
