//! Names that a server answers to: no page of another site reads it through DNS rebinding.

use crate::serve::Server;
use std::io::{Read, Write};
use std::net::TcpStream;

/// The status, and the whole answer, of a request whose first lines are these.
fn ask(server: &Server, head: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(stream, "{head}connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

fn host(server: &Server, host: &str) -> u16 {
    ask(server, &format!("GET /health HTTP/1.1\r\nhost: {host}\r\n")).0
}

const FOREIGN: [&str; 7] = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost@evil.example",
    "0.0.0.0",
    "",
];

#[test]
fn only_loopback_names_without_a_key() {
    let server = Server::start(&[]);
    for name in [
        "localhost",
        "LocalHost:1",
        "localhost.",
        "app.localhost:80",
        "127.0.0.1",
        "127.8.9.1:9",
        "[::1]",
        "[::1]:8080",
    ] {
        assert_eq!(host(&server, name), 200, "{name:?}");
    }
    for name in FOREIGN {
        let (status, answer) = ask(&server, &format!("GET /health HTTP/1.1\r\nhost: {name}\r\n"));
        assert_eq!(status, 403, "{name:?}: {answer}");
        assert!(answer.contains("`allow_host`") && answer.contains("host_not_allowed"), "{answer}");
    }
    for path in ["/", "/docs/", "/v1/models", "/nothing"] {
        assert_eq!(ask(&server, &format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\n")).0, 403);
    }
    // The name in the request's line counts, too, and one of several headers.
    let evil = "GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n";
    assert_eq!(ask(&server, evil).0, 403);
    let two = "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n";
    assert!([400, 403].contains(&ask(&server, two).0));
    assert_eq!(ask(&server, "GET /health HTTP/1.0\r\n").0, 200);
    assert_eq!(ask(&server, "GET /health HTTP/1.1\r\n").0, 403);
}

#[test]
fn other_names_where_they_are_allowed() {
    let server = Server::start(&["--allow-host", "api.example", "--allow-host", "b.example"]);
    for name in ["api.example", "API.example:8080", "b.example", "localhost"] {
        assert_eq!(host(&server, name), 200, "{name}");
    }
    assert_eq!(host(&server, "evil.example"), 403);
    for args in [["--allow-host", "*"], ["--api-key", "one"]] {
        let server = Server::start(&args);
        assert_eq!(host(&server, "evil.example"), 200, "{args:?}");
    }
}
