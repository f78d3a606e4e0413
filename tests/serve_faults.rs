//! What a server survives: clients that vanish, dawdle, talk nonsense or come all at once, a device
//! that fails, an end in the middle of everything. What was survived is counted and printed.

use crate::faulty::faulty;
use crate::serve::{Answer, Server};
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use gritlm_serve::Settings;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::thread::scope;
use std::time::Duration;

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let options = Options::default().device(Device::Cpu);
    ENGINE.get_or_init(|| Engine::open("demo", &options).unwrap())
}

/// What the library answers, greedily.
fn expected(prompt: &str, max_tokens: usize) -> String {
    let how = Sampling::greedy().max_tokens(max_tokens);
    let pieces = engine().generate(&Prompt::user(prompt), &how).unwrap();
    pieces.map(|piece| piece.unwrap().text).collect()
}

fn chat(prompt: &str, max_tokens: usize) -> Value {
    json!({
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens
    })
}

#[track_caller]
fn content(answer: &Answer) -> String {
    answer.ok()["choices"][0]["message"]["content"].as_str().unwrap().into()
}

/// A long streamed answer, of which nothing has been read.
fn open_stream(server: &Server, prompt: &str, max_tokens: usize) -> TcpStream {
    let mut body = chat(prompt, max_tokens);
    body["stream"] = json!(true);
    body["ignore_eos"] = json!(true);
    // Some 1.5 kB a token, so that no buffer of the system holds the whole.
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(20);
    send(server, &body.to_string())
}

fn send(server: &Server, body: &str) -> TcpStream {
    let mut stream = connect(server);
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

fn stats(server: &Server) -> Value {
    server.get("/stats").ok()["stats"].clone()
}

/// Waits until the scheduler's numbers are so.
#[track_caller]
fn wait_for(server: &Server, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..6000 {
        let stats = stats(server);
        if so(&stats) {
            return stats;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never {what}: {}", stats(server));
}

/// Everything is done, and every page is free or holds a prefix.
#[track_caller]
fn at_rest(server: &Server) -> Value {
    wait_for(server, "at rest", |s| {
        s["running"] == 0
            && s["waiting_generate"] == 0
            && s["waiting_embed"] == 0
            && s["pages_free"].as_u64().unwrap() + s["pages_prefix"].as_u64().unwrap()
                == s["pages"].as_u64().unwrap()
    })
}

#[test]
fn clients_that_vanish_free_their_place() {
    let server = Server::start(&["--kv-tokens", "65536"]);
    for i in 0..24 {
        let stream = open_stream(&server, &format!("Count to {i}."), 1500);
        let mut lines = BufReader::new(stream).lines();
        // Some before the first byte, some in mid-stream.
        for _ in 0..i {
            lines.next().unwrap().unwrap();
        }
    }
    // The first was gone, perhaps, before its request was read.
    let gone = |s: &Value| s["cancelled"] == s["submitted"] && s["submitted"].as_u64() >= Some(23);
    let stats = wait_for(&server, "all cancelled", gone);
    assert_eq!(stats["finished"], 0);
    at_rest(&server);
    let prompt = "Describe the package pdfgrep.";
    assert_eq!(
        content(&server.post("/v1/chat/completions", &chat(prompt, 8))),
        expected(prompt, 8)
    );
    println!("24 clients vanished, {} requests given up", stats["cancelled"]);
}

#[test]
fn nobody_waits_for_slow_readers() {
    let server = Server::start(&["--kv-tokens", "65536", "--patience", "600"]);
    let slow: Vec<TcpStream> =
        (0..8).map(|i| open_stream(&server, &format!("Tell story {i}."), 1500)).collect();
    wait_for(&server, "8 running", |s| s["running"] == 8);
    let prompt = "Describe the package gnuplot.";
    for _ in 0..5 {
        let answer = server.post("/v1/chat/completions", &chat(prompt, 8));
        assert_eq!(content(&answer), expected(prompt, 8));
    }
    // They come to their end although nobody has read a byte of them.
    wait_for(&server, "all finished", |s| s["finished"] == 13);
    at_rest(&server);
    // And all of it is still there for who reads late.
    let mut chunks = 0;
    for stream in slow {
        for line in BufReader::new(stream).lines() {
            match line.unwrap().strip_prefix("data: ") {
                Some("[DONE]") => break,
                Some(_) => chunks += 1,
                None => {}
            }
        }
    }
    assert!(chunks >= 8 * 1500, "{chunks}");
    println!("8 readers waited until all was over, then read {chunks} chunks");
}

#[cfg(unix)]
#[test]
fn ten_thousand_half_open_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const CONNECTIONS: usize = 10_000;
    let files = getrlimit(Resource::Nofile);
    if files.maximum.is_some_and(|most| most < CONNECTIONS as u64 + 1000) {
        println!("skipped serve_faults::ten_thousand_half_open_connections: {files:?}");
        return;
    }
    let most = Some(CONNECTIONS as u64 + 1000).max(files.current);
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: files.maximum }).unwrap();
    let server = Server::start(&[]);
    let beginnings = ["", "POST", "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-le"];
    let open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|i| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(beginnings[i % 3].as_bytes()).unwrap();
            stream
        })
        .collect();
    let prompt = "Describe the package pdfgrep.";
    let answer = server.post("/v1/chat/completions", &chat(prompt, 8));
    assert_eq!(content(&answer), expected(prompt, 8));
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let memory = status.unwrap_or_default();
    let memory = memory.lines().find(|l| l.starts_with("VmRSS")).unwrap_or("VmRSS unknown");
    println!("{} connections open, a request answered beside them; {memory}", open.len());
}

/// A client that does not say what it wants is not waited for.
#[test]
fn half_open_connections_are_closed() {
    let server = Server::start(&["--patience", "0.3"]);
    let beginnings = ["", "GET /health HTTP/1.1\r\nhost:", "GET /health HTTP/1.1\r\n"];
    let open = beginnings.map(|beginning| {
        let mut stream = connect(&server);
        stream.write_all(beginning.as_bytes()).unwrap();
        stream
    });
    for mut stream in open {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408"), "{rest}");
    }
    // Nor one whose body does not come.
    let head =
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let mut stream = connect(&server);
    write!(stream, "{head}content-length: 100\r\n\r\n{{\"input\":").unwrap();
    assert_eq!(status(stream), 408);
}

/// The status of the answer on this connection.
#[track_caller]
fn status(stream: TcpStream) -> u16 {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
}

#[test]
fn nonsense_is_refused() {
    let server = Server::start(&["--max-body-bytes", "100000"]);
    let posts: [(&str, Vec<u8>, u16); 12] = [
        ("nothing", Vec::new(), 400),
        ("no JSON", b"hello".into(), 400),
        ("half of a body", br#"{"messages": ["#.into(), 400),
        ("two bodies", br#"{"input": "a"} {"input": "b"}"#.into(), 400),
        ("another type", b"[1, 2, 3]".into(), 400),
        ("null", b"null".into(), 400),
        ("no UTF-8", b"{\"input\": \"\xff\xfe\"}".into(), 400),
        ("half a surrogate", br#"{"input": "\ud800"}"#.into(), 400),
        ("depth", b"[".repeat(50_000), 400),
        ("depth in a field", [b"{\"input\": " as &[u8], &b"[".repeat(50_000)].concat(), 400),
        ("a huge number", br#"{"input": "a", "dimensions": 1e999}"#.into(), 400),
        ("bytes", vec![0; 100_001], 413),
    ];
    let paths = ["/v1/embeddings", "/v1/chat/completions", "/v1/completions", "/embed", "/rerank"];
    let mut refused = 0;
    for path in paths {
        for (name, body, expected) in &posts {
            let answer = server.post_with(path, &[("content-type", "application/json")], &body[..]);
            assert_eq!(answer.status, *expected, "{path}, {name}: {}", answer.text);
            answer.fails(*expected, &[]);
            refused += 1;
        }
        server.post_with(path, &[("content-type", "text/plain")], "{}").fails(415, &["text/plain"]);
        refused += 1;
    }
    // What no client library sends.
    let json = "host: localhost\r\ncontent-type: application/json\r\n";
    let long = "a".repeat(1 << 20);
    let raw: [(&str, String, &[u16]); 9] = [
        ("no HTTP", "hello\r\n\r\n".into(), &[400]),
        ("bytes", "\u{0}\u{1}\u{2}\r\n\r\n".into(), &[400]),
        ("another version", "GET / HTTP/9.9\r\n\r\n".into(), &[400, 505]),
        ("a huge path", format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"), &[414, 431]),
        (
            "a huge header",
            format!("GET / HTTP/1.1\r\nhost: localhost\r\na: {long}\r\n\r\n"),
            &[431],
        ),
        (
            "a huge length",
            format!("POST /embed HTTP/1.1\r\n{json}content-length: 99999999999999\r\n\r\n{{"),
            &[413],
        ),
        (
            "no length",
            format!("POST /embed HTTP/1.1\r\n{json}content-length: none\r\n\r\n{{}}"),
            &[400],
        ),
        (
            "two lengths",
            format!(
                "POST /embed HTTP/1.1\r\n{json}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"
            ),
            &[400],
        ),
        (
            "a wrong chunk",
            format!("POST /embed HTTP/1.1\r\n{json}transfer-encoding: chunked\r\n\r\nxyz\r\n{{}}"),
            &[400],
        ),
    ];
    for (name, text, expected) in raw {
        let mut stream = connect(&server);
        // It may be refused before all of it is sent.
        let _ = stream.write_all(text.as_bytes());
        let mut line = String::new();
        let read = BufReader::new(stream).read_line(&mut line);
        let status = line.split(' ').nth(1).and_then(|s| s.parse::<u16>().ok());
        // What was still being sent may have made the system drop the answer.
        let reset = read.is_err() && text.len() > 100_000;
        assert!(reset || expected.contains(&status.unwrap_or(0)), "{name}: {line:?}");
        refused += 1;
    }
    // A body without an end, in chunks.
    let mut stream = connect(&server);
    write!(stream, "POST /embed HTTP/1.1\r\n{json}transfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("400\r\n{}\r\n", "[".repeat(0x400));
    while stream.write_all(chunk.as_bytes()).is_ok() {}
    refused += 1;
    assert_eq!(stats(&server)["submitted"], 0);
    let prompt = "Describe the package pdfgrep.";
    assert_eq!(
        content(&server.post("/v1/chat/completions", &chat(prompt, 8))),
        expected(prompt, 8)
    );
    println!("{refused} kinds of nonsense refused");
}

#[test]
fn a_full_queue_refuses() {
    let server = Server::start(&["--max-queue", "2", "--kv-tokens", "1024"]);
    let prompt = |i: usize| format!("Describe the package number {i}.");
    let answers: Vec<Answer> = scope(|scope| {
        let server = &server;
        let ask = |i| move || server.post("/v1/chat/completions", &chat(&prompt(i), 300));
        let clients: Vec<_> = (0..24).map(|i| scope.spawn(ask(i))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut refused = 0;
    for (i, answer) in answers.iter().enumerate() {
        if answer.status == 200 {
            assert_eq!(content(answer), expected(&prompt(i), 300));
            continue;
        }
        answer.fails(429, &["the queue is full", "2 requests"]);
        assert!((1..=60).contains(&answer.header("retry-after").parse().unwrap()));
        refused += 1;
    }
    let stats = at_rest(&server);
    assert_eq!(
        (&stats["refused"]["queue_full"], &stats["finished"]),
        (&json!(refused), &json!(24 - refused))
    );
    assert!(refused > 0, "{stats}");
    println!("{refused} of 24 requests refused, the others right");
}

#[test]
fn a_failing_device_harms_no_other_request() {
    // Fails whatever has this token: "number" in one prompt below.
    fn fault(tokens: &[u32]) -> bool {
        tokens.windows(3).any(|w| w[0] == w[1] && w[1] == w[2])
    }
    let settings = Settings::default();
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, settings).unwrap();
    let url = format!("http://{}", server.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        server.run(move || faulty("demo", fault), async {
            let _ = stopped.await;
        })
    });
    let server = Server::at(&url).ready();
    let bad = json!({"input": [[9, 9, 9]]});
    let (mut failed, mut right) = (0, 0);
    scope(|scope| {
        let server = &server;
        let good = scope.spawn(move || {
            let mut right = 0;
            for i in 0..10 {
                let prompt = format!("Describe the package number {i}.");
                let answer = server.post("/v1/chat/completions", &chat(&prompt, 16));
                assert_eq!(content(&answer), expected(&prompt, 16));
                right += 1;
            }
            right
        });
        for _ in 0..10 {
            server.post("/v1/embeddings", &bad).fails(500, &["as it was to"]);
            failed += 1;
        }
        right = good.join().unwrap();
    });
    let stats = at_rest(&server);
    assert_eq!((&stats["failed"], &stats["finished"]), (&json!(failed), &json!(right)));
    stop.send(()).unwrap();
    thread.join().unwrap().unwrap();
    println!("{failed} requests failed on the device, {right} beside them were right");
}

/// SIGTERM in the middle of everything: what was taken is answered whole, the rest is told so.
#[test]
fn an_end_under_load_loses_nothing() {
    let mut server = Server::start(&["--kv-tokens", "65536"]);
    let prompt = |i: usize| format!("Describe the package number {i}.");
    let streams: Vec<TcpStream> = (0..16)
        .map(|i| {
            let mut body = chat(&prompt(i), 400);
            body["stream"] = json!(true);
            send(&server, &body.to_string())
        })
        .collect();
    let texts: Vec<String> =
        (0..64).map(|i| format!("text {i} {}", "and more ".repeat(30))).collect();
    let (vectors, refused) = scope(|scope| {
        let server = &server;
        let embed = scope.spawn(|| server.post("/v1/embeddings", &json!({"input": &texts})));
        wait_for(server, "all taken", |s| s["submitted"] == 17);
        server.terminate();
        // From now on: 503, or nobody there any more.
        let mut refused = 0;
        for _ in 0..20 {
            let answer = server.try_post("/v1/chat/completions", &chat("Late.", 4));
            match answer {
                Some(answer) if answer.status == 503 => refused += 1,
                // The signal takes a moment.
                Some(answer) => assert_eq!(answer.status, 200, "{}", answer.text),
                None => {}
            }
        }
        (embed.join().unwrap(), refused)
    });
    let expected_vectors = engine().embed(&texts, &Embed::default()).unwrap();
    let data = vectors.ok()["data"].clone();
    assert_eq!(data.as_array().unwrap().len(), 64);
    for (got, expected) in data.as_array().unwrap().iter().zip(&expected_vectors) {
        let first = got["embedding"][0].as_f64().unwrap() as f32;
        assert!((first - expected.vector[0]).abs() < 1e-4);
    }
    for (i, stream) in streams.into_iter().enumerate() {
        let (mut text, mut done) = (String::new(), false);
        for line in BufReader::new(stream).lines() {
            match line.unwrap().strip_prefix("data: ") {
                Some("[DONE]") => done = true,
                Some(chunk) => {
                    let chunk: Value = serde_json::from_str(chunk).unwrap();
                    text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                }
                None => {}
            }
        }
        assert!(done, "answer {i} was cut off: {text}");
        assert_eq!(text, expected(&prompt(i), 400));
    }
    assert_eq!(server.wait().0, Some(0));
    println!("16 streams and 64 vectors whole after SIGTERM, {refused} late requests got 503");
}

#[test]
fn the_grace_time_ends() {
    let mut server = Server::start(&["--grace", "0", "--kv-tokens", "65536"]);
    let stream = open_stream(&server, "Tell a long story.", 2000);
    wait_for(&server, "running", |s| s["running"] == 1);
    server.terminate();
    assert_eq!(server.wait().0, Some(1));
    drop(stream);
}
