//! `--cors-origin`: what pages of other origins may send and see, and origins that no browser sends.

use crate::serve::Server;
use gritlm_serve::Settings;
use serde_json::json;
use std::process::Command;

/// What a browser asks before it lets a page call.
fn preflight(server: &Server, origin: &str, wanted: &str) -> ureq::http::HeaderMap {
    let request = ureq::options(format!("{}/v1/chat/completions", server.url));
    let request = request.header("origin", origin);
    let request = request.header("access-control-request-method", "POST");
    let response = request.header("access-control-request-headers", wanted).call().unwrap();
    assert_eq!(response.status(), 200);
    response.headers().clone()
}

fn get<'a>(headers: &'a ureq::http::HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// What OpenAI's JavaScript package sends, what its users add, and what a page without it sends.
const WANTED: [&str; 3] = [
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,\
     x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,\
     x-stainless-runtime-version,x-stainless-timeout",
    "content-type,openai-beta,openai-organization,x-my-own",
    "authorization,content-type",
];

#[test]
fn pages_may_send_what_they_ask_for() {
    for origin in ["https://app.example", "http://localhost:3000", "null", "app://obsidian.md"] {
        let server = Server::spawn(&["--cors-origin", origin, "--api-key", "k"]);
        for wanted in WANTED {
            let allowed = preflight(&server, origin, wanted);
            assert_eq!(get(&allowed, "access-control-allow-origin"), origin);
            assert!(get(&allowed, "access-control-allow-methods").contains("POST"));
            let headers = get(&allowed, "access-control-allow-headers");
            let asked = wanted.split(',').all(|name| headers.split(',').any(|h| h.trim() == name));
            assert!(asked, "{wanted:?}: {headers:?}");
        }
        for other in
            ["https://evil.example", "https://app.example.evil.example", "http://app.example"]
        {
            let refused = preflight(&server, other, WANTED[0]);
            assert_eq!(get(&refused, "access-control-allow-origin"), "", "{other}");
        }
    }
    let server = Server::spawn(&["--cors-origin", "*"]);
    for (origin, wanted) in ["https://a.example", "null", "http://[::1]:99"].iter().zip(WANTED) {
        let allowed = preflight(&server, origin, wanted);
        assert_eq!(get(&allowed, "access-control-allow-origin"), "*");
        assert!(get(&allowed, "access-control-allow-headers").contains("content-type"));
    }
    // Nobody without the setting.
    let server = Server::spawn(&[]);
    let request = ureq::options(format!("{}/v1/models", server.url)).config();
    let request = request.http_status_as_error(false).build().header("origin", "https://a.example");
    let response = request.call().unwrap();
    assert_eq!(get(response.headers(), "access-control-allow-origin"), "");
}

/// Also of errors: a page that is refused is to know why, and when to come back.
#[test]
fn pages_see_what_the_answer_says() {
    let origin = "https://app.example";
    let server = Server::start(&["--cors-origin", origin, "--api-key", "k"]);
    let json = ("content-type", "application/json");
    let key = ("authorization", "Bearer k");
    for (body, headers, status) in [
        (json!({"input": "a"}), vec![json, key], 200),
        (json!({"input": []}), vec![json, key], 400),
        (json!({"input": "a"}), vec![json], 401),
    ] {
        let headers = [&headers[..], &[("origin", origin)]].concat();
        let answer = server.post_with("/v1/embeddings", &headers, body.to_string());
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        let exposed = answer.header("access-control-expose-headers").to_ascii_lowercase();
        for name in ["server-timing", "retry-after"] {
            assert!(exposed.split(',').any(|h| h.trim() == name), "{exposed:?}");
        }
    }
}

fn bind(origins: &[&str]) -> Result<(), String> {
    let cors = origins.iter().map(|origin| (*origin).into()).collect();
    let settings = Settings::default().cors(cors);
    gritlm_serve::Server::bind("127.0.0.1", 0, settings).map(drop).map_err(|e| e.to_string())
}

#[test]
fn origins_that_no_browser_sends_are_refused() {
    for (wrong, right) in [
        ("app.example", "https://app.example"),
        ("app.example:8443", "https://app.example:8443"),
        ("//app.example", "https://app.example"),
        ("localhost:3000", "http://localhost:3000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://app.example/", "https://app.example"),
        ("https://app.example/page?x=1#y", "https://app.example"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("https://me:secret@app.example", "https://app.example"),
        ("https://App.Example", "https://app.example"),
        ("HTTPS://app.example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80/", "http://app.example"),
        ("http://app.example:", "http://app.example"),
        (" https://app.example", "https://app.example"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("NULL", "null"),
        ("file:///home/me/page.html", "null"),
    ] {
        let problem = bind(&["https://fine.example", wrong]).unwrap_err();
        let expected = format!("{right:?}");
        assert!(problem.starts_with("cors_origin: ") && !problem.contains('\n'), "{problem}");
        assert!(
            problem.contains(&expected) && problem.contains(&format!("{wrong:?}")),
            "{problem}"
        );
        bind(&[right]).unwrap();
    }
    for wrong in [
        "",
        "https://",
        "https://*.app.example",
        "*.example",
        "https://app.example:port",
        "https://app.example:99999",
        "https://b\u{fc}cher.example",
        "https://a b",
        "://app.example",
    ] {
        let problem = bind(&[wrong]).unwrap_err();
        let said =
            problem.starts_with("cors_origin: ") && problem.contains("\"https://app.example\"");
        assert!(said && problem.contains(&format!("{wrong:?}")), "{wrong:?}: {problem}");
    }
    for right in [
        "https://app.example:8443",
        "http://127.0.0.1",
        "http://[::1]",
        "*",
        "null",
        "chrome-extension://abcdefghijklmnop",
        "https://xn--bcher-kva.example",
        "tauri://localhost",
    ] {
        bind(&[right]).unwrap();
    }
    // The program ends at once, with the line.
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    let output = command.args(["serve", "--port", "0", "--cors-origin", "app.example/"]).output();
    let output = output.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty() && stderr.contains("\"https://app.example\""), "{stderr}");
}
