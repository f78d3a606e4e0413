//! Turns `--model` into a folder: one that exists, or a Hugging Face id through the local cache.
//!
//! The cache is the one that Python's `huggingface_hub` fills: `blobs/ETAG`, named by
//! `snapshots/COMMIT/FILE`, which `refs/REVISION` names. `hf-hub` knows its layout, the endpoint
//! and the request's headers. Its own `download` is left aside: it lets the hub compress JSON
//! files, whose answers then lack the `Content-Range` it needs; it appends to its `.part` file
//! whatever comes, makes a blob of a file cut short, has no timeout, and asserts on what a server
//! says.

mod places;

use crate::unlock::UnlockOnDrop;
use crate::{Error, Result};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};
use places::Places;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Not every model has one.
const GENERATION: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A fault this long after the last bytes is final; before, the download goes on where it stopped.
const PATIENCE: Duration = Duration::from_secs(2);
/// A pause that gives a restarting server or line a chance, several times within the patience.
const PAUSE: Duration = Duration::from_millis(400);
/// Longer than the patience, so that a host that drops packets is tried once.
const CONNECT: Duration = Duration::from_secs(4);
/// For the head of an answer, and between two pieces of a file.
const ANSWER: Duration = Duration::from_secs(10);

/// How a download looks on a terminal.
const BAR: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// What to do where something else than the hub may have answered, or nothing has.
const CHECK: &str = "check the network, HF_ENDPOINT and the proxy, or use a folder";

/// The checkpoint folder that `model` names, downloaded if it must be.
///
/// A folder may begin with `~`, which a shell leaves alone in `--model=~/x`. What the cache has is
/// taken without asking the hub whether it is the newest.
///
/// # Errors
/// [`Error::NoModel`], saying what was asked of whom and what came back.
pub(crate) fn resolve(model: &str, progress: bool) -> Result<PathBuf> {
    let no = |problem: String| Error::NoModel { model: model.into(), problem };
    let path = match Path::new(model) {
        literal if literal.exists() => literal.into(),
        _ => places::from_home(model),
    };
    if path.is_dir() {
        return Ok(path);
    }
    if path.exists() {
        return Err(no(format!("a file; expected a folder with {CONFIG}")));
    }
    if model.starts_with(['/', '.', '~']) || model.matches('/').count() > 1 {
        return Err(no("no such folder".into()));
    }
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    // The hub allows no "--" in ids, and the cache joins owner and name by it.
    if !id.split('/').chain([revision]).all(plain) || id.contains("--") {
        let found = "neither a folder nor a Hugging Face id (owner/name or owner/name@revision)";
        return Err(no(found.into()));
    }

    let places = Places::from_env()
        .ok_or_else(|| no("no home folder to keep downloads in; set HF_HOME".into()))?;
    let cache = Cache::new(places.cache.clone());
    let repo = Repo::with_revision(id.into(), RepoType::Model, revision.into());
    let snapshots = cache.repo(repo.clone());
    if let Some(folder) = cached(&snapshots, revision) {
        return Ok(folder);
    }
    if let Some(name) = places::offline() {
        let place = cache.path().display();
        let found = "no such folder, nor the whole model in the cache";
        return Err(no(format!("{found} {place}, and {name} forbids to download it")));
    }

    let mut api = ApiBuilder::from_cache(cache).with_token(places.token());
    if let Some(endpoint) = places::set("HF_ENDPOINT") {
        api = api.with_endpoint(endpoint.trim_end_matches('/').into());
    }
    let api = api.build().map_err(|e| no(e.to_string()))?;
    let hub = Hub { api, repo, cache: snapshots, progress, alive: Cell::new(Instant::now()) };
    loop {
        match hub.download() {
            Err(fault) if fault.again && hub.alive.get().elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            done => return done.map_err(|fault| no(fault.problem)),
        }
    }
}

/// Whether a name from outside is safe as a file name and in a URL.
fn plain(name: &str) -> bool {
    let ok = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(ok)
}

/// The snapshot of the revision, if each file that the model needs is in it.
fn cached(cache: &CacheRepo, revision: &str) -> Option<PathBuf> {
    // A revision that is itself a commit has no ref.
    let config = cache.get(CONFIG).unwrap_or_else(|| cache.pointer_path(revision).join(CONFIG));
    let folder = config.parent()?;
    let has = |file: &str| folder.join(file).exists();
    let weights = match has(INDEX) {
        true => shards(folder).is_ok_and(|all| all.iter().all(|shard| has(shard))),
        false => has(SINGLE),
    };
    (config.exists() && has(TOKENIZER) && weights).then(|| folder.into())
}

/// The files that the index in `folder` names.
fn shards(folder: &Path) -> Result<BTreeSet<String>, Fault> {
    let path = folder.join(INDEX);
    let text = fs::read(&path).map_err(disk(&path))?;
    let index = gritlm_model::weights::parse_index(&text, &path).map_err(Fault::last)?;
    match index.values().find(|shard| !plain(shard)) {
        Some(odd) => Err(Fault::last(format!("{}: odd file name {odd:?}", path.display()))),
        None => Ok(index.into_values().collect()),
    }
}

/// Why a download stopped.
struct Fault {
    problem: String,
    /// The server does not have the file.
    missing: bool,
    /// It may work if tried again.
    again: bool,
}

impl Fault {
    /// One that stays.
    fn last(problem: impl Display) -> Self {
        Self { problem: problem.to_string(), missing: false, again: false }
    }

    /// One of a request: what came of it, and what the user can do.
    fn of(url: &str, came: impl Display, advice: &str) -> Self {
        Self::last(format!("GET {url}: {came}; {advice}"))
    }
}

/// The fault of a file here, for `map_err`.
fn disk(path: &Path) -> impl Fn(io::Error) -> Fault {
    move |e| Fault::last(format!("{}: {e}", path.display()))
}

/// An answer to a request. (The types of the HTTP client are not reexported by `hf-hub`.)
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Box<dyn Read>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the hub says of a file.
struct Meta {
    commit: String,
    etag: String,
    size: u64,
}

/// One revision of one repository.
struct Hub {
    api: Api,
    repo: Repo,
    cache: CacheRepo,
    progress: bool,
    /// When a request last brought something of a file.
    alive: Cell<Instant>,
}

impl Hub {
    /// Downloads what the cache lacks. The ref comes last, so that it names whole snapshots only.
    fn download(&self) -> Result<PathBuf, Fault> {
        // All files at the commit that the revision is now: it may move during a long download.
        let commit = self.describe(&self.url(self.repo.revision(), CONFIG))?.commit;
        let folder = self.cache.pointer_path(&commit);
        self.fetch(&commit, CONFIG)?;
        self.fetch(&commit, TOKENIZER)?;
        match self.fetch(&commit, GENERATION) {
            Err(fault) if !fault.missing => return Err(fault),
            _ => {}
        }
        match self.fetch(&commit, INDEX) {
            Ok(()) => shards(&folder)?.iter().try_for_each(|shard| self.fetch(&commit, shard))?,
            Err(fault) if fault.missing => self.fetch(&commit, SINGLE)?,
            Err(fault) => return Err(fault),
        }
        self.cache.create_ref(&commit).map_err(disk(&folder))?;
        Ok(folder)
    }

    fn url(&self, revision: &str, file: &str) -> String {
        let repo = Repo::with_revision(self.repo.url(), RepoType::Model, revision.into());
        self.api.repo(repo).url(file)
    }

    /// Puts `file` into the snapshot of `commit`, unless it is there.
    fn fetch(&self, commit: &str, file: &str) -> Result<(), Fault> {
        let pointer = self.cache.pointer_path(commit).join(file);
        if pointer.exists() {
            return Ok(());
        }
        let url = self.url(commit, file);
        let meta = self.describe(&url)?;
        let blob = self.cache.blob_path(&meta.etag);
        for folder in [&pointer, &blob].into_iter().filter_map(|path| path.parent()) {
            fs::create_dir_all(folder).map_err(disk(folder))?;
        }
        if !fs::metadata(&blob).is_ok_and(|blob| blob.len() == meta.size) {
            let part = blob.with_file_name(format!("{}.part", meta.etag));
            self.transfer(&url, meta.size, &part, file)?;
            fs::rename(&part, &blob).map_err(disk(&part))?;
        }
        // A pointer to a blob that was deleted is in the way.
        let _ = fs::remove_file(&pointer);
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(format!("../../blobs/{}", meta.etag), &pointer);
        #[cfg(not(unix))]
        let linked = fs::hard_link(&blob, &pointer);
        linked.map_err(disk(&pointer))
    }

    /// What the hub says of the file at `url`.
    fn describe(&self, url: &str) -> Result<Meta, Fault> {
        let mut hop = url.to_owned();
        let (mut etag, mut commit, mut size) = (None, None, None);
        for _ in 0..8 {
            let answer = self.ask(&hop, "bytes=0-0", 0)?;
            let name = |header: &str| {
                let value = answer.header(header)?.trim_start_matches("W/").trim_matches('"');
                plain(value).then(|| value.to_owned())
            };
            // Large files: the hub knows them and redirects to a host that does not.
            etag = etag.or_else(|| name("x-linked-etag"));
            commit = commit.or_else(|| name("x-repo-commit"));
            size = size.or_else(|| answer.header("x-linked-size")?.parse().ok());
            let location = answer.header("location").filter(|_| answer.status / 100 == 3);
            let known = etag.is_some() && commit.is_some() && size.is_some();
            if let Some(next) = location.filter(|_| !known) {
                let base = if next.starts_with('/') { origin(&hop) } else { "" };
                hop = format!("{base}{next}");
                continue;
            }
            let size = size.or_else(|| match answer.status {
                206 => answer.header("content-range")?.rsplit('/').next()?.parse().ok(),
                _ => answer.header("content-length")?.parse().ok(),
            });
            let page = answer.header("content-type").is_some_and(|t| t.starts_with("text/html"));
            let odd = match (etag.or_else(|| name("etag")), commit, size) {
                _ if page && !known => "a web page",
                (Some(etag), Some(commit), Some(size)) => return Ok(Meta { commit, etag, size }),
                (None, ..) => "no ETag",
                (_, None, _) => "no X-Repo-Commit",
                (.., None) => "no size",
            };
            let came = format!("expected a file of a Hugging Face hub, found {odd}");
            return Err(Fault::of(url, came, CHECK));
        }
        Err(Fault::of(url, "redirected again and again", CHECK))
    }

    /// Appends to `part` what it lacks of the `size` bytes at `url`.
    fn transfer(&self, url: &str, size: u64, part: &Path, name: &str) -> Result<(), Fault> {
        let file = OpenOptions::new().append(true).create(true).open(part).map_err(disk(part))?;
        // (Some file systems have no locks; that is no reason to refuse them.)
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let problem = format!("{}: another process is downloading it", part.display());
            return Err(Fault::last(problem));
        }
        let mut file = UnlockOnDrop(file);
        let mut have = file.metadata().map_err(disk(part))?.len();
        if have == size {
            return Ok(());
        }
        if have > size {
            have = 0;
        }
        let mut answer = self.ask(url, &format!("bytes={have}-"), 8)?;
        let range = answer.header("content-range").unwrap_or_default();
        match answer.status {
            206 if range.starts_with(&format!("bytes {have}-")) => {}
            // Not every mirror knows ranges.
            200 => have = 0,
            status => {
                let came = format!("expected the bytes from {have} on, found {status} {range:?}");
                return Err(Fault::of(url, came, CHECK));
            }
        }
        file.set_len(have).map_err(disk(part))?;
        let start = have;
        // (indicatif draws on terminals only.)
        let bar = if self.progress { ProgressBar::new(size) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar.set_position(start);
        bar.reset_eta();
        let mut buffer = vec![0; 1 << 16];
        let cut = loop {
            match answer.body.read(&mut buffer) {
                Ok(n) if n > 0 && have <= size => {
                    file.write_all(&buffer[..n]).map_err(disk(part))?;
                    have += n as u64;
                    bar.set_position(have);
                }
                Ok(_) => break "the connection ended".to_owned(),
                Err(e) => break e.to_string(),
            }
        };
        if have > start {
            self.alive.set(Instant::now());
        }
        if have != size {
            let came = format!("{cut} after {have} of {size} bytes");
            let fault = Fault::of(url, came, "run again to go on from there");
            return Err(Fault { again: have < size, ..fault });
        }
        bar.finish();
        // A crash must not leave a blob of the right length and no content.
        file.sync_all().map_err(disk(part))
    }

    /// Asks for `range` of `url`, following that many redirects.
    fn ask(&self, url: &str, range: &str, redirects: u32) -> Result<Answer, Fault> {
        // The one request of hf-hub that can be changed before it is sent. It has the token, which
        // is the hub's alone.
        let mut request = self.api.repo(self.repo.clone()).info_request().uri(url);
        if origin(url) != origin(&self.url("", ""))
            && let Some(headers) = request.headers_mut()
        {
            headers.remove("authorization");
        }
        let shown = url.split('?').next().unwrap_or(url); // without a signature
        let response = request
            .header("range", range)
            // A compressed answer has no range, and its length is not the file's.
            .header("accept-encoding", "identity")
            .config()
            .http_status_as_error(false)
            .max_redirects(redirects)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(ANSWER))
            .build()
            .call();
        let (parts, body) = match response {
            Ok(response) => response.into_parts(),
            Err(e) => return Err(Fault { again: true, ..Fault::of(shown, e, CHECK) }),
        };
        let text =
            parts.headers.iter().filter_map(|(name, value)| Some((name, value.to_str().ok()?)));
        let headers = text.map(|(name, value)| (name.to_string(), value.to_owned())).collect();
        let status = parts.status.as_u16();
        let answer = Answer { status, headers, body: Box::new(body.into_reader()) };
        let advice = match status {
            200..=399 => return Ok(answer),
            401 | 403 => "no such model, or one that needs a token: set HF_TOKEN, or use a folder",
            404 => "check the id and the revision, or use a folder",
            429 | 500.. => "try again later, or use a folder",
            _ => CHECK,
        };
        let said = answer.header("x-error-message").map(|m| format!(" ({m})")).unwrap_or_default();
        let fault = Fault::of(shown, format!("{}{said}", parts.status), advice);
        Err(Fault { missing: status == 404, again: status == 429 || status >= 500, ..fault })
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}
