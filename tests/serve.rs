//! `gritlm serve`, through the program itself: start, statuses, limits, draining.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A server of the demo model in a process of its own; ended when dropped.
pub(crate) struct Server {
    /// None where it runs in this process.
    child: Option<(Child, BufReader<ChildStdout>)>,
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    agent: ureq::Agent,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The body of a 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// It is this status, in OpenAI's shape of errors, and the message says all `parts`.
    #[track_caller]
    pub(crate) fn fails(&self, status: u16, parts: &[&str]) {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        let error = &body["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("{body}"));
        assert!(error["type"].is_string() && error["code"].is_string(), "{body}");
        assert!(error.get("param").is_some() && !message.contains('\n'), "{body}");
        for part in parts {
            assert!(message.contains(part), "expected {part:?} in: {message}");
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// Server-sent events: the data of each, as they come.
pub(crate) struct Stream {
    pub(crate) headers: ureq::http::HeaderMap,
    lines: std::io::Lines<BufReader<ureq::BodyReader<'static>>>,
}

impl Iterator for Stream {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            match line.strip_prefix("data: ") {
                Some(data) => return Some(data.into()),
                // Between events, or a comment.
                None => assert!(line.is_empty() || line.starts_with(':'), "{line:?}"),
            }
        }
        None
    }
}

impl Server {
    /// Starts `gritlm serve` with these arguments on a free port; returns when it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(args).ready()
    }

    /// Waits until it is.
    pub(crate) fn ready(self) -> Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.get("/ready").status != 200 {
            assert!(Instant::now() < deadline, "not ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// As [`Server::start`], returning when the address is known.
    pub(crate) fn spawn(args: &[&str]) -> Self {
        Self::spawn_with(args, Stdio::null())
    }

    /// The same with its stderr.
    pub(crate) fn spawn_with(args: &[&str], stderr: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
        command.args(["serve", "--port", "0"]).args(args);
        if !args.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        // No setting of whoever runs the tests.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GRITLM_")) {
            command.env_remove(name);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut url = String::new();
        stdout.read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "{url:?}");
        let mut server = Self::at(url.trim_end());
        server.child = Some((child, stdout));
        server
    }

    /// A server that runs at this address already.
    pub(crate) fn at(url: &str) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(120))).build().into();
        Self { child: None, url: url.into(), agent }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().0.id()
    }

    /// `host:port`, for a socket.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        answer(self.agent.get(format!("{}{path}", self.url)).call())
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url));
        answer(headers.iter().fold(request, |request, (n, v)| request.header(*n, *v)).call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[("content-type", "application/json")], body.to_string())
    }

    /// Asks for server-sent events, and leaves when the stream is dropped.
    #[track_caller]
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Stream {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        let response = request.send(body.to_string()).unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.into_body().read_to_string());
        let headers = response.headers().clone();
        assert_eq!(headers["content-type"], "text/event-stream");
        Stream { headers, lines: BufReader::new(response.into_body().into_reader()).lines() }
    }

    pub(crate) fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ureq::AsSendBody,
    ) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = headers.iter().fold(request, |request, (n, v)| request.header(*n, *v));
        answer(request.send(body))
    }

    /// None where nobody listens any more.
    pub(crate) fn try_post(&self, path: &str, body: &Value) -> Option<Answer> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let sent = request.header("content-type", "application/json").send(body.to_string());
        sent.is_ok().then(|| answer(sent))
    }

    /// Asks the process to end (SIGTERM).
    pub(crate) fn terminate(&self) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Waits for the end; its exit code, and what else it has written to stdout.
    pub(crate) fn wait(&mut self) -> (Option<i32>, String) {
        let (child, stdout) = self.child.as_mut().unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        (child.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let mut response = result.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.body_mut().read_to_string().unwrap() }
}

#[test]
fn it_starts_and_ends() {
    let mut server = Server::start(&[]);
    assert_eq!(server.get("/health").ok(), json!({"status": "ok"}));
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"][0]["id"], "demo");
    server.get("/v1/nothing").fails(404, &["/docs"]);
    server.post("/health", &json!({})).fails(405, &["method"]);
    assert_eq!(server.get("/docs/").status, 200);
    assert_eq!(server.get("/openapi.json").ok()["info"]["title"], "gritlm");
    server.terminate();
    assert_eq!(server.wait(), (Some(0), String::new()));
}

#[test]
fn a_key_is_asked_for() {
    let server = Server::start(&["--api-key", "one,two"]);
    server.get("/v1/models").fails(401, &["Authorization"]);
    let get = |key: &str| {
        let request = server.agent.get(format!("{}/v1/models", server.url));
        answer(request.header("authorization", format!("Bearer {key}")).call())
    };
    get("on").fails(401, &[]);
    get("onetwo").fails(401, &[]);
    get("one").ok();
    get("two").ok();
    server.get("/health").ok();
}
