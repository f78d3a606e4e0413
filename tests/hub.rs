//! Hugging Face ids: downloads into the cache. The binary runs against a server in this process,
//! which answers as the hub does or as told.

mod refused; // bad servers, indexes and names
mod resume; // downloads that were cut

use crate::support::data;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const MODEL: &str = "owner/name";
const COMMIT: &str = "5ca1ab1e0000000000000000000000000c0ffee5";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A request, in lower-case headers.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    path: String,
    pub(crate) headers: HashMap<String, String>,
}

impl Asked {
    fn file(&self) -> &str {
        self.path.split('?').next().unwrap().rsplit('/').next().unwrap()
    }

    fn range(&self) -> &str {
        self.headers.get("range").map_or("", String::as_str)
    }

    /// Whether it asks for the file rather than for its size.
    fn is_body(&self) -> bool {
        self.range() != "bytes=0-0"
    }
}

/// What to answer.
pub(crate) enum Reply {
    /// The file, as the hub does.
    File,
    /// The right length, but only so many bytes.
    Cut(usize),
    /// A length that is too long by so much, and no sign when the bytes end.
    Claim(usize),
    /// The whole file, whatever the range.
    Whole,
    /// Not the range that was asked for.
    Shifted,
    /// The file's etag and size, and another URL that has it.
    Elsewhere(String),
    /// Another path of this server, and nothing of the file.
    Moved(String),
    /// A page in place of the file.
    Page,
    Status(u16),
}

/// A server of one folder under `/{owner}/{name}/resolve/{revision}/`; it ends when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(folder: &Path, reply: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (log, stop) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<AtomicBool>::default());
        let (folder, its_log, its_stop) = (folder.to_owned(), log.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            // The bound ends a client that asks for ever.
            for stream in listener.incoming().take(200) {
                if its_stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Some(asked) = read(&stream) else { continue };
                its_log.lock().unwrap().push(asked.clone());
                // A client that hangs up is no matter of the server's.
                let _ = answer(stream, &folder, &asked, reply(&asked));
            }
        });
        Self { url, log, stop, thread: Some(thread) }
    }

    pub(crate) fn log(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// The ranges asked for of a file, sizes left out.
    fn ranges(&self, file: &str) -> Vec<String> {
        let bodies = self.log().into_iter().filter(|asked| asked.file() == file && asked.is_body());
        bodies.map(|asked| asked.range().to_owned()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        let _ = self.thread.take().unwrap().join();
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Some(Asked { path, headers: headers.collect() })
}

fn answer(mut to: TcpStream, folder: &Path, asked: &Asked, reply: Reply) -> std::io::Result<()> {
    let mut send = |status: u16, headers: &str, body: &[u8]| {
        write!(to, "HTTP/1.1 {status} Said\r\nConnection: close\r\n{headers}\r\n")?;
        to.write_all(body)
    };
    let empty = "Content-Length: 0\r\n";
    let bytes = match &reply {
        Reply::Moved(path) => return send(307, &format!("Location: {path}\r\n{empty}"), b""),
        Reply::Status(status) => return send(*status, empty, b""),
        Reply::Page => return send(200, "Content-Type: text/html\r\n", b"<html>Log in.</html>"),
        _ => fs::read(folder.join(asked.file())),
    };
    let Ok(bytes) = bytes else {
        return send(404, &format!("X-Error-Message: Entry not found\r\n{empty}"), b"");
    };
    let len = bytes.len();
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let etag = format!("{:016x}", hasher.finish());
    let names = match asked.path.starts_with("/blob/") {
        false => format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n"),
        true => "ETag: \"of-the-store\"\r\n".into(),
    };
    let range = asked.range().strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let (first, last) = range.unwrap_or(("0", ""));
    let (first, last) = (first.parse().unwrap(), last.parse().unwrap_or(len - 1));
    let part = |total: usize| format!("{names}Content-Range: bytes {first}-{last}/{total}\r\n");
    // As the hub: a compressed answer is a whole one.
    let zip = asked.headers.get("accept-encoding").is_some_and(|how| how.contains("gzip"));
    match reply {
        Reply::File if zip => send(200, &names, &bytes),
        Reply::Whole => send(200, &format!("{names}Content-Length: {len}\r\n"), &bytes),
        Reply::Elsewhere(url) => {
            let linked = format!("X-Linked-Size: {len}\r\nX-Linked-ETag: \"{etag}\"\r\n");
            let own = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"of-the-redirect\"\r\n");
            send(302, &format!("Location: {url}\r\n{linked}{own}{empty}"), b"")
        }
        _ if first >= len => send(416, empty, b""),
        Reply::Shifted => {
            let range = format!("Content-Range: bytes {}-{last}/{len}\r\n", first + 1);
            send(206, &format!("{names}{range}"), &bytes[first + 1..])
        }
        Reply::Claim(more) => send(206, &part(len + more), &bytes[first..=last]),
        reply => {
            let body = &bytes[first..=last];
            let sent = if let Reply::Cut(n) = reply { n.min(body.len()) } else { body.len() };
            let length = format!("Content-Length: {}\r\n", body.len());
            send(206, &format!("{}{length}", part(len)), &body[..sent])
        }
    }
}

/// What the binary did.
pub(crate) struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    #[track_caller]
    pub(crate) fn works(&self) {
        self.says("mistral");
    }

    /// It works, and says this word in any case.
    #[track_caller]
    pub(crate) fn says(&self, word: &str) {
        assert_eq!(self.code, Some(0), "{}", self.err);
        assert!(self.out.to_lowercase().contains(&word.to_lowercase()), "{}", self.out);
    }

    /// One line, with each of the words.
    #[track_caller]
    pub(crate) fn fails(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.err);
        assert_eq!(self.err.trim_end().lines().count(), 1, "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
    }
}

/// An empty HF_HOME.
pub(crate) struct Home(pub(crate) TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, endpoint: &str, model: &str) -> Run {
        self.run_with(endpoint, model, &[])
    }

    pub(crate) fn run_with(&self, endpoint: &str, model: &str, env: &[(&str, &str)]) -> Run {
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_gritlm"))
            .args(["inspect", "--model", model])
            .env_clear() // no proxy, no token, no other HF_ variable of the developer's
            .env("HF_HOME", self.0.path())
            .env("HF_ENDPOINT", endpoint)
            .envs(env.iter().copied())
            .timeout(Duration::from_secs(60))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn repo(&self) -> PathBuf {
        self.0.path().join("hub/models--owner--name")
    }

    fn snapshot(&self, file: &str) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(file)
    }

    /// The one file whose download has not ended.
    fn part(&self) -> PathBuf {
        let blobs = self.repo().join("blobs");
        let part = names(&blobs).into_iter().find(|name| name.ends_with(".part"));
        blobs.join(part.unwrap())
    }

    /// The whole model and nothing else is there, byte for byte.
    #[track_caller]
    fn holds(&self, folder: &Path, files: &[&str]) {
        for file in files {
            let (ours, theirs) = (fs::read(self.snapshot(file)), fs::read(folder.join(file)));
            assert!(ours.unwrap() == theirs.unwrap(), "{file} differs");
        }
        let blobs = names(&self.repo().join("blobs"));
        assert!(blobs.iter().all(|blob| blob.len() == 16), "not an etag: {blobs:?}");
        assert_eq!(blobs.len(), files.len(), "{blobs:?}");
        assert_eq!(names(&self.repo().join("snapshots").join(COMMIT)).len(), files.len());
        assert_eq!(fs::read_to_string(self.repo().join("refs/main")).unwrap(), COMMIT);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

const FILES: [&str; 3] = ["config.json", "tokenizer.json", WEIGHTS];

pub(crate) fn odd() -> PathBuf {
    data("mistral-odd")
}

/// The same model in two shards.
fn sharded() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(odd().join(file), folder.path().join(file)).unwrap();
    }
    let bytes = fs::read(odd().join(WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut map = BTreeMap::new();
    for (i, half) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", i + 1);
        let views = half.iter().map(|(name, view): &(String, TensorView)| (name, view));
        safetensors::serialize_to_file(views, None, &folder.path().join(&shard)).unwrap();
        map.extend(half.iter().map(|(name, _)| (name.clone(), shard.clone())));
    }
    write_index(folder.path(), &map);
    folder
}

fn write_index(folder: &Path, map: &BTreeMap<String, String>) {
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join(INDEX), index.to_string()).unwrap();
}

#[test]
fn downloads_once() {
    let (home, server) = (Home::new(), Server::start(&odd(), |_| Reply::File));
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
    let log = server.log();
    assert!(log[0].path.ends_with("/owner/name/resolve/main/config.json"), "{}", log[0].path);
    assert!(log[1..].iter().all(|asked| asked.path.contains(COMMIT)), "one commit for all files");
    assert!(log.iter().all(|asked| !asked.headers.contains_key("authorization")));

    home.run(&server.url, MODEL).works();
    assert_eq!(server.log().len(), log.len(), "the second run asked");
    let url = server.url.clone();
    drop(server);
    home.run(&url, MODEL).works();
    home.run(&url, &format!("{MODEL}@{COMMIT}")).works();
    home.run_with(&url, MODEL, &[("HF_HUB_OFFLINE", "1")]).works();
}

#[test]
fn downloads_shards() {
    let (home, folder) = (Home::new(), sharded());
    let server = Server::start(folder.path(), |_| Reply::File);
    home.run(&server.url, MODEL).works();
    let files = names(folder.path());
    assert_eq!(files.len(), 5);
    home.holds(folder.path(), &files.iter().map(String::as_str).collect::<Vec<_>>());

    // One shard gone, and a pointer that leads nowhere: only those are asked for again.
    let shard = "model-00002-of-00002.safetensors";
    fs::remove_file(home.snapshot(shard)).unwrap();
    home.run("http://127.0.0.1:1", MODEL).fails(&["127.0.0.1:1"]);
    fs::remove_file(home.snapshot("config.json").canonicalize().unwrap()).unwrap();
    let before = server.log().len();
    home.run(&server.url, MODEL).works();
    let again: Vec<_> =
        server.log()[before..].iter().map(|asked| asked.file().to_owned()).collect();
    let config = ["config.json"; 3];
    let besides = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
    assert_eq!(again, [&config[..], &besides, &[shard]].concat());
}

#[test]
fn takes_revision_token_and_cache_folder() {
    let (home, elsewhere) = (Home::new(), tempfile::tempdir().unwrap());
    let server = Server::start(&odd(), |_| Reply::File);
    let model = format!("{MODEL}@v1.0");
    fs::write(home.0.path().join("token"), "hf_file\n").unwrap();
    let place = elsewhere.path().to_str().unwrap();
    home.run_with(&server.url, &model, &[("HF_HUB_CACHE", place)]).works();
    assert!(elsewhere.path().join("models--owner--name/refs/v1.0").exists());
    let log = server.log();
    assert!(log[0].path.contains("/resolve/v1.0/"), "{}", log[0].path);
    assert!(log.iter().all(|asked| asked.headers["authorization"] == "Bearer hf_file"));
    let before = log.len();
    home.run_with(&server.url, MODEL, &[("HF_TOKEN", "hf_env")]).works();
    let log = server.log();
    assert!(log[before..].iter().all(|asked| asked.headers["authorization"] == "Bearer hf_env"));
}

#[test]
fn follows_to_other_hosts_without_the_token() {
    let (home, store) = (Home::new(), Server::start(&odd(), |_| Reply::File));
    // Another host by name; both are this machine.
    let there = store.url.replace("127.0.0.1", "localhost");
    let hub = Server::start(&odd(), move |asked| match asked.path.strip_prefix("/owner/name/") {
        Some(rest) => Reply::Moved(format!("/new/home/{rest}")),
        None if asked.file() == WEIGHTS => {
            Reply::Elsewhere(format!("{there}/blob/{WEIGHTS}?sign=1"))
        }
        None => Reply::File,
    });
    home.run_with(&hub.url, MODEL, &[("HF_TOKEN", "secret")]).works();
    home.holds(&odd(), &FILES);
    assert!(hub.log().iter().all(|asked| asked.headers["authorization"] == "Bearer secret"));
    // The hub has said how long the file is, so the other host is asked for nothing but the bytes.
    let log = store.log();
    assert!(log.len() == 1 && log[0].range() == "bytes=0-", "{log:?}");
    assert!(!log[0].headers.contains_key("authorization"));

    // A mirror that sends all requests on: the token is not for that host either.
    let (home, there) = (Home::new(), hub.url.replace("127.0.0.1", "localhost"));
    let before = hub.log().len();
    let mirror = Server::start(&odd(), move |asked| Reply::Moved(format!("{there}{}", asked.path)));
    home.run_with(&mirror.url, MODEL, &[("HF_TOKEN", "secret")]).works();
    assert!(hub.log()[before..].iter().all(|asked| !asked.headers.contains_key("authorization")));
}

#[test]
fn offline_asks_nobody() {
    let (home, server) = (Home::new(), Server::start(&odd(), |_| Reply::File));
    let run = home.run_with(&server.url, MODEL, &[("HF_HUB_OFFLINE", "1")]);
    run.fails(&[MODEL, "HF_HUB_OFFLINE", home.0.path().to_str().unwrap()]);
    assert!(server.log().is_empty());
}

#[test]
fn paths_are_not_ids() {
    let (home, server) = (Home::new(), Server::start(&odd(), |_| Reply::File));
    for path in ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere", "a/b/c", "a/b/"] {
        home.run(&server.url, path).fails(&[path, "no such folder"]);
    }
    for odd in
        ["", "two words", "owner/", "owner/..", "a@", "@a", "a@b@c", "a@b/c", "a--b/c", "ö/ä"]
    {
        home.run(&server.url, odd).fails(&["folder"]);
    }
    let file = data("mistral-odd/config.json");
    home.run(&server.url, file.to_str().unwrap()).fails(&["a file", "folder with config.json"]);
    assert!(server.log().is_empty());
    // A folder is itself.
    home.run(&server.url, data("mistral-odd").to_str().unwrap()).works();
    assert!(server.log().is_empty() && names(home.0.path()).is_empty());
}
