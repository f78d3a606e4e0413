//! Turns `--model` into a folder or a GGUF file: either one that exists, or one of a Hugging Face
//! id in the local cache.
//!
//! The cache is the one that Python's `huggingface_hub` fills: `refs/REVISION` names a commit,
//! and `snapshots/COMMIT/FILE` links to `blobs/ETAG`. `hf-hub` provides this layout, the endpoint
//! and the request headers. Its `download` is not used, for these reasons: it lets the hub
//! compress JSON files, whose responses then lack the `Content-Range` that it needs; it appends
//! any response to its `.part` file; it makes a blob of a truncated file; it has no timeout; and
//! it asserts on data from the server.

mod places;

use crate::unlock::UnlockOnDrop;
use crate::{Error, Result};
use gritlm_model::gguf;
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
/// Optional: not every model has this file.
/// Files that a checkpoint may have besides.
const BESIDES: [&str; 3] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Time after the last received bytes during which a fault only interrupts the download, which
/// then resumes where it stopped. A later fault is final.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before a retry, which lets a server or a connection restart; several fit into
/// [`PATIENCE`].
const PAUSE: Duration = Duration::from_millis(400);
/// Connection timeout, longer than [`PATIENCE`] so that a host that drops packets is tried only
/// once.
const CONNECT: Duration = Duration::from_secs(4);
/// Timeout for the head of a response, and between two pieces of a file.
const ANSWER: Duration = Duration::from_secs(10);

/// Template of the progress bar on a terminal.
const BAR: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// Advice for when a server other than the hub, or none, may have responded.
const CHECK: &str = "check the network, HF_ENDPOINT and the proxy, or use a folder";

/// Returns the checkpoint folder or the GGUF file that `model` names, and downloads it if
/// necessary. `owner/name:FILE` names one GGUF file of a repository, and with any part of a split
/// file all of its parts.
///
/// A folder may begin with `~`, which a shell does not expand in `--model=~/x`. A cached snapshot
/// is used without asking the hub whether it is the newest.
///
/// # Errors
/// [`Error::NoModel`], which names the request, the server and the response.
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
        return match gguf::is_gguf(&path) {
            true => Ok(path),
            false => Err(no(format!("a file; expected a folder with {CONFIG}, or a GGUF file"))),
        };
    }
    if model.starts_with(['/', '.', '~']) || model.matches('/').count() > 1 {
        return Err(no("no such folder or GGUF file".into()));
    }
    let (repository, wanted) = match model.split_once(':') {
        Some((repository, file)) => (repository, Some(Path::new(file))),
        None => (model, None),
    };
    if let Some(file) =
        wanted.filter(|file| !file.to_str().is_some_and(plain) || !gguf::is_gguf(file))
    {
        return Err(no(format!("expected a GGUF file behind the colon, found {}", file.display())));
    }
    let (id, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    // The hub does not allow "--" in ids, and the cache joins owner and name with it.
    if !id.split('/').chain([revision]).all(plain) || id.contains("--") {
        let found = "neither a folder nor a GGUF file nor a Hugging Face id (owner/name, \
                     owner/name@revision or owner/name:FILE.gguf)";
        return Err(no(found.into()));
    }

    let places = Places::from_env()
        .ok_or_else(|| no("no home folder to keep downloads in; set HF_HOME".into()))?;
    let cache = Cache::new(places.cache.clone());
    let repo = Repo::with_revision(id.into(), RepoType::Model, revision.into());
    let snapshots = cache.repo(repo.clone());
    let known = match wanted {
        Some(file) => cached_gguf(&snapshots, revision, file),
        None => cached(&snapshots, revision),
    };
    if let Some(path) = known {
        return Ok(path);
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
        match hub.download(wanted) {
            Err(fault) if fault.again && hub.alive.get().elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            done => return done.map_err(|fault| no(fault.problem)),
        }
    }
}

/// Returns whether an external name is safe as a file name and in a URL.
fn plain(name: &str) -> bool {
    let ok = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(ok)
}

/// Returns the snapshot of the revision if it contains every file that the model needs.
fn cached(cache: &CacheRepo, revision: &str) -> Option<PathBuf> {
    // A revision that is itself a commit has no file in `refs`.
    let config = cache.get(CONFIG).unwrap_or_else(|| cache.pointer_path(revision).join(CONFIG));
    let folder = config.parent()?;
    let has = |file: &str| folder.join(file).exists();
    let weights = match has(INDEX) {
        true => shards(folder).is_ok_and(|all| all.iter().all(|shard| has(shard))),
        false => has(SINGLE),
    };
    (config.exists() && has(TOKENIZER) && weights).then(|| folder.into())
}

/// Returns the GGUF file in the snapshot of the revision if all of its parts are there.
fn cached_gguf(cache: &CacheRepo, revision: &str, file: &Path) -> Option<PathBuf> {
    let name = file.to_str()?;
    let path = cache.get(name).unwrap_or_else(|| cache.pointer_path(revision).join(name));
    gguf::parts(&path).iter().all(|part| part.exists()).then_some(path)
}

/// Returns the names of the files that the index in `folder` lists.
fn shards(folder: &Path) -> Result<BTreeSet<String>, Fault> {
    let path = folder.join(INDEX);
    let text = fs::read(&path).map_err(disk(&path))?;
    let index = gritlm_model::weights::parse_index(&text, &path).map_err(Fault::last)?;
    match index.values().find(|shard| !plain(shard)) {
        Some(odd) => Err(Fault::last(format!("{}: odd file name {odd:?}", path.display()))),
        None => Ok(index.into_values().collect()),
    }
}

/// Reason why a download stopped.
struct Fault {
    problem: String,
    /// The server does not have the file.
    missing: bool,
    /// A retry may succeed.
    again: bool,
}

impl Fault {
    /// Returns a fault that a retry does not fix.
    fn last(problem: impl Display) -> Self {
        Self { problem: problem.to_string(), missing: false, again: false }
    }

    /// Returns the fault of a request: its result, and what the user can do.
    fn of(url: &str, came: impl Display, advice: &str) -> Self {
        Self::last(format!("GET {url}: {came}; {advice}"))
    }
}

/// Returns a function for `map_err` that turns an I/O error of a local file into a fault.
fn disk(path: &Path) -> impl Fn(io::Error) -> Fault {
    move |e| Fault::last(format!("{}: {e}", path.display()))
}

/// A response to a request. (`hf-hub` does not reexport the HTTP client's types.)
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

/// Metadata of a file on the hub.
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
    /// Time when a request last received bytes of a file.
    alive: Cell<Instant>,
}

impl Hub {
    /// Downloads the files that the cache lacks: those of a checkpoint, or of a GGUF file. The ref
    /// is written last, so that it names only complete snapshots.
    fn download(&self, gguf: Option<&Path>) -> Result<PathBuf, Fault> {
        if let Some(file) = gguf {
            return self.download_gguf(file);
        }
        // All files come from the commit that the revision names now, because the revision may
        // move during a long download.
        let commit = self.describe(&self.url(self.repo.revision(), CONFIG))?.commit;
        let folder = self.cache.pointer_path(&commit);
        self.fetch(&commit, CONFIG)?;
        self.fetch(&commit, TOKENIZER)?;
        for file in BESIDES {
            match self.fetch(&commit, file) {
                Err(fault) if !fault.missing => return Err(fault),
                _ => {}
            }
        }
        match self.fetch(&commit, INDEX) {
            Ok(()) => shards(&folder)?.iter().try_for_each(|shard| self.fetch(&commit, shard))?,
            Err(fault) if fault.missing => self.fetch(&commit, SINGLE)?,
            Err(fault) => return Err(fault),
        }
        self.cache.create_ref(&commit).map_err(disk(&folder))?;
        Ok(folder)
    }

    fn download_gguf(&self, file: &Path) -> Result<PathBuf, Fault> {
        let parts = gguf::parts(file);
        let names = || parts.iter().filter_map(|part| part.to_str());
        let first = self.url(self.repo.revision(), names().next().unwrap_or_default());
        let commit = self.describe(&first)?.commit;
        names().try_for_each(|name| self.fetch(&commit, name))?;
        let folder = self.cache.pointer_path(&commit);
        self.cache.create_ref(&commit).map_err(disk(&folder))?;
        Ok(folder.join(file))
    }

    fn url(&self, revision: &str, file: &str) -> String {
        let repo = Repo::with_revision(self.repo.url(), RepoType::Model, revision.into());
        self.api.repo(repo).url(file)
    }

    /// Puts `file` into the snapshot of `commit`, unless it is there already.
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
        // A dangling pointer, whose blob was deleted, would be in the way.
        let _ = fs::remove_file(&pointer);
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(format!("../../blobs/{}", meta.etag), &pointer);
        #[cfg(not(unix))]
        let linked = fs::hard_link(&blob, &pointer);
        linked.map_err(disk(&pointer))
    }

    /// Asks the hub for the metadata of the file at `url`.
    fn describe(&self, url: &str) -> Result<Meta, Fault> {
        let mut hop = url.to_owned();
        let (mut etag, mut commit, mut size) = (None, None, None);
        for _ in 0..8 {
            let answer = self.ask(&hop, "bytes=0-0", 0)?;
            let name = |header: &str| {
                let value = answer.header(header)?.trim_start_matches("W/").trim_matches('"');
                plain(value).then(|| value.to_owned())
            };
            // For large files, the hub sends these headers and redirects to a host that does not.
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

    /// Downloads the bytes that `part` lacks of the `size` bytes at `url`, and appends them.
    fn transfer(&self, url: &str, size: u64, part: &Path, name: &str) -> Result<(), Fault> {
        let file = OpenOptions::new().append(true).create(true).open(part).map_err(disk(part))?;
        // Some file systems have no locks; the download then runs without one.
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
            // Not every mirror supports ranges.
            200 => have = 0,
            status => {
                let came = format!("expected the bytes from {have} on, found {status} {range:?}");
                return Err(Fault::of(url, came, CHECK));
            }
        }
        file.set_len(have).map_err(disk(part))?;
        let start = have;
        // indicatif draws on terminals only.
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
        // The sync ensures that a crash does not leave a blob of the right length without its
        // content.
        file.sync_all().map_err(disk(part))
    }

    /// Requests `range` of `url` and follows at most `redirects` redirects.
    fn ask(&self, url: &str, range: &str, redirects: u32) -> Result<Answer, Fault> {
        // This is the only request of hf-hub that can be changed before it is sent. It carries
        // the token, which only the hub may receive.
        let mut request = self.api.repo(self.repo.clone()).info_request().uri(url);
        if origin(url) != origin(&self.url("", ""))
            && let Some(headers) = request.headers_mut()
        {
            headers.remove("authorization");
        }
        let shown = url.split('?').next().unwrap_or(url); // without a signature
        let response = request
            .header("range", range)
            // A compressed response has no range, and its length is not that of the file.
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

/// Returns the scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}
