//! Where models lie on this machine, by the variables that Python's `huggingface_hub` hears, older
//! names included.

use std::env;
use std::path::PathBuf;

/// What the environment says.
pub(super) struct Places {
    /// The cache, a folder of repositories.
    pub(super) cache: PathBuf,
    /// The file with the user's token, where the environment has none.
    token: PathBuf,
}

impl Places {
    /// None where nothing says where the user's files are.
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

    /// The user's token.
    pub(super) fn token(&self) -> Option<String> {
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(&self.token).ok())?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    }
}

/// The variable that forbids downloads; the older name counts where the newer one is not set.
pub(super) fn offline() -> Option<&'static str> {
    let (name, value) = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
        .into_iter()
        .find_map(|name| Some((name, set(name)?)))?;
    ["1", "ON", "TRUE", "YES"].contains(&&*value.to_uppercase()).then_some(name)
}

/// A variable's value, unless it is blank.
pub(super) fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// A path with the user's folder in place of `~` at its beginning.
pub(super) fn from_home(path: &str) -> PathBuf {
    let rest = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (rest, env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

/// [`from_home`], with values in place of `$NAME` and `${NAME}`; those that are not set stay.
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
