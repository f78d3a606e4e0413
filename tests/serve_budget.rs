//! Clients that never read, bodies that never end: what they hold is bounded over all connections,
//! counted to the byte, given back, and others are served meanwhile.

use crate::faulty::faulty;
use crate::serve::{Answer, Server};
use crate::serve_bounds::{peak, resident};
use flate2::Compression;
use flate2::write::GzEncoder;
use gritlm_serve::Settings;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bytes of bodies, results and answers under way.
fn under_way(server: &Server) -> u64 {
    let metrics = server.get("/metrics").text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("gritlm_bytes_under_way "));
    line.expect("a gauge").parse().unwrap()
}

#[track_caller]
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never {what}");
}

#[track_caller]
fn given_back(server: &Server) {
    wait_until("all given back", || under_way(server) == 0);
}

/// Sockets that the server has, those that it listens on counted.
fn sockets(server: &Server) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// A head, with further lines that end with `\r\n`, and what is to follow it.
fn send(server: &Server, path: &str, more: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    // A system may keep 6 MB of an answer that nobody reads.
    #[cfg(unix)]
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 1 << 16).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{more}");
    write!(stream, "{head}content-type: application/json\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    stream
}

/// A whole request.
fn ask(server: &Server, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    send(server, path, &format!("content-length: {}\r\n", body.len()), body.as_bytes())
}

/// Requests for so many vectors and for long streams, whose answers are too large for the system's
/// buffers where they are some thousands.
fn large(texts: usize) -> [(&'static str, Value); 3] {
    let texts = vec!["a"; texts];
    let events = json!({
        "messages": [{"role": "user", "content": "Tell a story."}],
        "max_tokens": 1000, "n": 8, "ignore_eos": true,
        "stream": true, "logprobs": true, "top_logprobs": 20
    });
    [
        ("/v1/embeddings", json!({"input": texts})),
        ("/embed", json!({"inputs": texts})),
        ("/v1/chat/completions", events),
    ]
}

/// Answers at this path that have begun.
fn answered(server: &Server, path: &str) -> u64 {
    let start = format!("gritlm_http_requests_total{{path=\"{path}\"");
    let metrics = server.get("/metrics").text;
    let lines = metrics.lines().filter(|line| line.starts_with(&start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn honest(server: &Server) {
    let answer = server.post("/v1/embeddings", &json!({"input": "chess on the desktop"})).ok();
    assert_eq!(answer["data"][0]["embedding"].as_array().unwrap().len(), 192);
}

#[test]
fn clients_that_never_read_are_cut_off() {
    let server = Server::start(&["--patience", "0.5", "--max-inputs", "4096"]);
    honest(&server);
    // With the one of this test's own client, which may be closed meanwhile.
    let before = sockets(&server);
    for (path, body) in large(4096) {
        let begun = answered(&server, path);
        // Two, which are more than the one that may be closed by itself.
        let mut held = [(); 2].map(|()| ask(&server, path, &body));
        wait_until("answered", || answered(&server, path) == begun + 2);
        wait_until("closed", || sockets(&server) <= before);
        honest(&server);
        given_back(&server);
        // What the system had in its buffers is there; the end is not.
        let mut last = Vec::new();
        let _ = held[0].read_to_end(&mut last);
        let last = String::from_utf8_lossy(&last[last.len().saturating_sub(7)..]).into_owned();
        assert!(!last.ends_with("}") && !last.ends_with("]]") && !last.ends_with("0\r\n\r\n"));
    }
}

#[test]
fn forty_clients_that_never_read_share_one_budget() {
    const MOST: u64 = 30_000_000;
    let most = MOST.to_string();
    let args = ["--patience", "600", "--max-inputs", "4096", "--max-bytes-under-way", &most];
    let server = Server::start(&args);
    honest(&server);
    let before = peak(&server);
    let [embeddings, embed, _] = large(2048);
    let held: Vec<TcpStream> = (0..40)
        .map(|i| if i % 2 == 0 { &embeddings } else { &embed })
        .map(|(path, body)| ask(&server, path, body))
        .collect();
    // Some get their answer, for others there is no room: all are done.
    let mut asked = 1;
    wait_until("all answered", || {
        honest(&server);
        asked += 1;
        assert!(under_way(&server) < MOST + (1 << 20));
        answered(&server, "/v1/embeddings") + answered(&server, "/embed") == 40 + asked
            && server.get("/stats").ok()["stats"]["waiting_embed"] == 0
    });
    honest(&server);
    let (grown, waits) = (peak(&server) - before, under_way(&server));
    assert!(waits > MOST / 2, "{waits}");
    assert!(grown < 200, "{grown} MB");
    drop(held);
    given_back(&server);
    let (path, body) = embeddings;
    assert_eq!(server.post(path, &body).ok()["data"].as_array().unwrap().len(), 2048);
}

#[test]
fn unfinished_bodies_are_counted_and_given_back() {
    const PART: usize = 1_900_000;
    let server = Server::start(&["--patience", "600", "--max-bytes-under-way", "8000000"]);
    let body = vec![b' '; PART];
    let chunk = [format!("{PART:x}\r\n").as_bytes(), &body, b"\r\n"].concat();
    let length = format!("content-length: {}\r\n", PART + 1);
    let gzip = format!("content-encoding: gzip\r\n{length}");
    for (more, body) in
        [(length.as_str(), &body), ("transfer-encoding: chunked\r\n", &chunk), (&gzip, &body)]
    {
        let mut held = Vec::new();
        for count in 1..=4 {
            held.push(send(&server, "/v1/embeddings", more, body));
            let all = (count * PART) as u64;
            wait_until("counted", || under_way(&server) == all);
        }
        honest(&server);
        let text = "a ".repeat(500_000);
        for path in ["/tokenize", "/v1/completions", "/detokenize"] {
            let answer = server.post(path, &json!({"prompt": text}));
            answer.fails(503, &["8000000", "`max_bytes_under_way`"]);
            assert_eq!(answer.header("retry-after"), "1");
            assert_eq!(answer.json()["error"]["code"], "bytes_under_way");
            assert_eq!(under_way(&server), 4 * PART as u64);
        }
        // One that ends gives its bytes back, and then there is room.
        let end: &[u8] = if more.contains("chunked") { b"1\r\n \r\n0\r\n\r\n" } else { b" " };
        let mut one = held.pop().unwrap();
        one.write_all(end).unwrap();
        let mut line = String::new();
        BufReader::new(one).read_line(&mut line).unwrap();
        assert!(line.contains(" 400 "), "{line}");
        wait_until("given back", || under_way(&server) == 3 * PART as u64);
        server.post("/tokenize", &json!({"prompt": text})).fails(400, &["positions"]);
        drop(held);
        given_back(&server);
    }
}

#[test]
fn what_a_body_decodes_to_is_counted() {
    let server = Server::start(&["--max-bytes-under-way", "1000000"]);
    for spaces in [1_000_000, 4_000_000, 15_000_000] {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        write!(encoder, "{{\"input\": \"a\"{}}}", " ".repeat(spaces)).unwrap();
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let body = encoder.finish().unwrap();
        assert!(body.len() < 64 << 10);
        server.post_with("/v1/embeddings", &headers, body).fails(503, &["1000000"]);
        given_back(&server);
    }
}

#[test]
fn answers_beyond_the_budget_are_refused() {
    let server = Server::start(&["--max-bytes-under-way", "100000"]);
    let texts = vec!["a"; 1000];
    let refused = |answer: Answer| {
        answer.fails(503, &["100000"]);
        assert_eq!(answer.header("retry-after"), "1");
        given_back(&server);
    };
    // By their vectors, before they are computed.
    refused(server.post("/v1/embeddings", &json!({"input": texts, "encoding_format": "base64"})));
    refused(server.post("/embed", &json!({"inputs": texts})));
    refused(server.post("/v2/embed", &json!({
        "texts": texts, "model": "demo", "input_type": "search_query", "embedding_types": ["float"]
    })));
    assert_eq!(server.get("/stats").ok()["stats"]["submitted"], 0);
    // By what they have become.
    let text = "a b ".repeat(5_000);
    refused(server.post("/tokenize", &json!({"prompt": text, "return_token_strs": true})));
    server.post("/tokenize", &json!({"prompt": "a b"})).ok();
    // No dimensions are so many that they are not looked at.
    let body = json!({"input": texts, "dimensions": u64::MAX});
    assert!([400, 503].contains(&server.post("/v1/embeddings", &body).status));
    honest(&server);
    given_back(&server);
}

/// A number of two bytes is a value of many more while a body is worked on.
#[test]
fn what_a_body_is_parsed_to_is_counted() {
    let server = Server::start(&["--max-bytes-under-way", "20000000"]);
    let before = peak(&server);
    let numbers = vec![0; 4_000_000];
    for (path, body) in [
        ("/v1/embeddings", json!({"input": "a", "other": numbers})),
        ("/v1/chat/completions", json!({"messages": numbers, "other": [numbers]})),
        ("/v1/completions", json!({"prompt": "a", "stop": numbers})),
    ] {
        server.post(path, &body).fails(503, &["20000000"]);
        given_back(&server);
    }
    let grown = peak(&server) - before;
    assert!(grown < 100, "{grown} MB");
    let texts = vec!["a text, and another"; 2000];
    server.post("/v1/embeddings", &json!({"input": texts})).ok();
    given_back(&server);
}

/// Without being told to, glibc keeps 35 MB or more of it for ever.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn a_quiet_server_gives_memory_back_to_the_system() {
    let server = Server::start(&[]);
    honest(&server);
    let before = resident(&server);
    let ids: Vec<u32> = (0..2_000_000).map(|i| i % 1000).collect();
    let bodies = [json!({"input": ids}), json!({"input": "word ".repeat(2_000_000)})];
    for _ in 0..2 {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                // Some are too long for the model, some too many for the budget.
                scope.spawn(|| bodies.iter().for_each(|b| drop(server.post("/v1/embeddings", b))));
            }
        });
        given_back(&server);
    }
    assert!(peak(&server) - before > 60, "the requests are large");
    wait_until("given to the system", || resident(&server) < before + 25);
}

#[test]
fn clients_that_leave_give_all_back() {
    let server = Server::start(&["--patience", "600"]);
    let unfinished = |bytes: usize| {
        let length = "content-length: 10000000\r\n";
        send(&server, "/v1/chat/completions", length, &vec![b' '; bytes])
    };
    for round in 0..3 {
        let mut all: Vec<TcpStream> = [1, 100_000, 5_000_000].map(unfinished).into();
        all.extend(large(2048).iter().map(|(path, body)| ask(&server, path, body)));
        wait_until("counted", || under_way(&server) > 5_100_000);
        if round == 1 {
            // Some while their answers wait to be read.
            wait_until("computed", || server.get("/stats").ok()["stats"]["finished"] == 10);
        }
        drop(all);
        given_back(&server);
    }
    honest(&server);
}

/// What waits for a client that reads late is kept as long as there is room, and then the stream
/// says so; one that reads is not disturbed.
#[test]
fn a_backlog_beyond_the_budget_ends_a_stream() {
    let server = Server::start(&["--patience", "600", "--max-bytes-under-way", "200000"]);
    let [.., (path, body)] = large(1);
    let late = ask(&server, path, &body);
    wait_until("used up", || under_way(&server) > 150_000);
    let short = json!({
        "messages": [{"role": "user", "content": "Tell a story."}],
        "max_tokens": 50, "ignore_eos": true, "stream": true
    });
    assert_eq!(server.stream(path, &short).last().unwrap(), "[DONE]");
    wait_until("computed", || server.get("/stats").ok()["stats"]["running"] == 0);
    let mut last = String::new();
    for line in BufReader::new(late).lines() {
        match line.unwrap().strip_prefix("data: ") {
            Some(data) => last = data.into(),
            // The last chunk.
            None if last.contains("\"error\"") => break,
            None => {}
        }
    }
    assert!(last.contains("bytes_under_way"), "{last}");
    given_back(&server);
}

/// A stream may be silent for longer than a client may be.
#[test]
fn an_answer_that_pauses_is_not_cut_off() {
    fn slow(_: &[u32]) -> bool {
        std::thread::sleep(Duration::from_millis(300));
        false
    }
    let settings = Settings::default().patience(Duration::from_millis(100));
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, settings).unwrap();
    let url = format!("http://{}", server.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let load = || faulty("demo", slow);
    let thread = std::thread::spawn(move || server.run(load, async { drop(stopped.await) }));
    let server = Server::at(&url).ready();
    for tokens in [1, 3, 5] {
        let body = json!({"prompt": "a", "max_tokens": tokens, "ignore_eos": true, "stream": true});
        let events: Vec<String> = server.stream("/v1/completions", &body).collect();
        assert_eq!(events.last().unwrap(), "[DONE]");
    }
    stop.send(()).unwrap();
    thread.join().unwrap().unwrap();
}
