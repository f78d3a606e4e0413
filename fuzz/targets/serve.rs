//! Requests, through the whole server: a connection, the router, a model, a store.

use super::store;
use gritlm::{Device, Engine, Options};
use gritlm_serve::{Server, Settings};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;
use ureq::Agent;

/// Where the server is. It runs until the process ends.
static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(start);

static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let agent = Agent::config_builder().http_status_as_error(false);
    agent.timeout_global(Some(Duration::from_secs(60))).proxy(None).build().into()
});

fn start() -> SocketAddr {
    // Answers end soon because one page of the cache is all there is.
    let options = Options::default().device(Device::Cpu).kv_tokens(128);
    let folder = store::make();
    let settings = Settings::default()
        .max_inputs(4)
        .max_body_bytes(1 << 20)
        .store(Some(folder.path().to_path_buf()));
    let server = Server::bind("127.0.0.1", 0, settings).expect("an address");
    let address = server.address();
    std::thread::spawn(move || {
        let load = move || Engine::open("demo", &options);
        server.run(load, std::future::pending()).expect("a server");
        drop(folder);
    });
    while AGENT.get(format!("http://{address}/ready")).call().map_or(true, |r| r.status() != 200) {
        std::thread::sleep(Duration::from_millis(5));
    }
    address
}

/// A path, and from the next line on a body to post to it. Whatever it is, an answer comes, and the
/// server is not to blame for it.
pub(super) fn request(input: &[u8]) {
    let mut parts = input.splitn(2, |&byte| byte == b'\n');
    let path = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '#' | '"' | '<' | '>');
    if !path.starts_with('/') || !path.chars().all(plain) {
        return;
    }
    let request = AGENT.post(format!("http://{}{path}", *ADDRESS));
    let answer = match request.header("content-type", "application/json").send(body) {
        // What the client itself refuses to send.
        Err(ureq::Error::BadUri(_) | ureq::Error::Http(_)) => return,
        answer => answer,
    };
    let mut answer = answer.expect("an answer");
    let text = answer.body_mut().read_to_string().expect("a whole answer");
    assert_ne!(answer.status(), 500, "{text}");
}
