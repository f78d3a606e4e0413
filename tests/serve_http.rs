//! Requests as clients send them: a model's own path, keys.

use crate::serve::Server;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

/// A request as it stands, and the answer; the connection has no more to say after it.
fn exchange(server: &Server, request: &[u8]) -> (u16, String) {
    let mut socket = TcpStream::connect(server.address()).unwrap();
    socket.write_all(request).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

#[test]
fn a_model_has_a_path_of_its_own() {
    for name in ["demo", "GritLM/GritLM-7B", "a/b/c", "größe @ 1%"] {
        let server = Server::start(&["--model-name", name]);
        let listed = server.get("/v1/models").ok()["data"][0].clone();
        assert_eq!(listed["id"], name);
        let encode = |keep: &str| -> String {
            let byte = |b: u8| match char::from(b) {
                c if c.is_ascii_alphanumeric() || keep.contains(c) => c.to_string(),
                _ => format!("%{b:02X}"),
            };
            name.bytes().map(byte).collect()
        };
        for id in [encode("/-"), encode("-"), encode("")] {
            assert_eq!(server.get(&format!("/v1/models/{id}")).ok(), listed, "{id}");
        }
        for other in ["other", "demo2", "a/b", "a/b/c/d", "%", "%FF", "GritLM", "..%2F"] {
            let answer = server.get(&format!("/v1/models/{other}"));
            answer.fails(404, &["model"]);
            assert_eq!(answer.json()["error"]["code"], "model_not_found", "{}", answer.text);
        }
        server.post(&format!("/v1/models/{}", encode("/-")), &json!({})).fails(405, &["method"]);
    }
    let server = Server::start(&["--api-key", "k"]);
    server.get("/v1/models/demo").fails(401, &["Authorization"]);
    server.get_with("/v1/models/demo", &[("authorization", "Bearer k")]).ok();
}

#[test]
fn a_key_may_be_spelled_as_http_has_it() {
    let server = Server::start(&["--api-key", "one,two"]);
    let get = |value: &str| server.get_with("/v1/models", &[("authorization", value)]);
    for right in ["Bearer one", "bearer one", "BEARER two", "bEaReR two", "Bearer   one"] {
        get(right).ok();
    }
    for wrong in [
        "one",
        "Basic one",
        "Bearerone",
        "bearer",
        "bearer ",
        "bearer One",
        "bearer o",
        "Bearer one two",
        "Token one",
    ] {
        get(wrong).fails(401, &["Authorization"]);
    }
    // Where there are no keys, whatever comes is borne: lm-eval sends an empty one.
    let server = Server::start(&[]);
    for header in ["Bearer ", "Bearer", "bearer x", "Basic eDp5", ""] {
        let request =
            format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: {header}\r\n\r\n");
        assert_eq!(exchange(&server, request.as_bytes()).0, 200, "{header:?}");
    }
}
