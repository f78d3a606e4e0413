//! Answers beside other requests: they do not change, clients that leave take theirs with them, and
//! a failure ends its stream.

use super::{CHAT, QUESTION, TEXT, TURNS, assert_chat, finish, pieces, read, text, user, with};
use crate::faulty::faulty;
use crate::serve::Server;
use gritlm::{Prompt, Sampling};
use gritlm_serve::Settings;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Ends those who go on until it is done, also when the test fails.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// While eight others generate, answers are what they are alone.
#[test]
fn others_change_nothing() {
    let server = Server::start(&[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _until = Until(&done);
        for i in 0..8 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let body = json!({"prompt": "a ".repeat(20 * i + 1), "max_tokens": 64,
                    "ignore_eos": true, "stream": true});
                while !done.load(Ordering::Relaxed) {
                    read(server.stream(TEXT, &body));
                }
            });
        }
        for (i, turn) in TURNS.iter().enumerate() {
            for temperature in [0.0, 1.5] {
                let how =
                    Sampling::default().max_tokens(20).temperature(temperature).seed(i as u64);
                let expected = pieces(&Prompt::user(*turn), &how);
                let body = json!({"messages": user(turn), "max_tokens": 20, "seed": i,
                    "temperature": temperature});
                assert_chat(&server.post(CHAT, &body).ok(), &expected);
                let (choices, _) =
                    read(server.stream(CHAT, &with(&body, &json!({"stream": true}))));
                assert_eq!(choices[&0], (text(&expected), finish(&expected).into()));
            }
        }
    });
}

/// Waits until the scheduler's counter is so high.
fn wait_for(server: &Server, counter: &str, at_least: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stats = server.get("/stats").ok()["stats"].clone();
        assert!(stats["finished"] == 0 && Instant::now() < deadline, "{stats}");
        if stats[counter].as_u64().unwrap() >= at_least {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A client that goes away takes its requests with it.
#[test]
fn who_leaves_is_not_answered() {
    let server = Server::start(&["--kv-tokens", "65536"]);
    let body = json!({"messages": user(QUESTION), "n": 4, "max_tokens": 2000, "ignore_eos": true});
    let mut events = server.stream(CHAT, &with(&body, &json!({"stream": true})));
    assert!(events.next().unwrap().contains("chat.completion.chunk"));
    drop(events);
    wait_for(&server, "cancelled", 4);

    let mut socket = TcpStream::connect(server.address()).unwrap();
    let body = body.to_string();
    let head = "content-type: application/json\r\nhost: localhost";
    let length = body.len();
    write!(socket, "POST {CHAT} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    wait_for(&server, "running", 4);
    drop(socket);
    wait_for(&server, "cancelled", 8);
}

/// What fails on the way is the stream's last event; what fails before has its status.
#[test]
fn a_failure_ends_the_stream() {
    // Every pass with the next token of an answer fails, and none with a prompt.
    let fault: fn(&[u32]) -> bool = |tokens| tokens.len() == 1;
    let settings = Settings::default().name("demo");
    let server = gritlm_serve::Server::bind("127.0.0.1", 0, settings).unwrap();
    let url = format!("http://{}", server.address());
    std::thread::spawn(move || server.run(move || faulty("demo", fault), std::future::pending()));
    while ureq::get(format!("{url}/ready")).call().is_err() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let post = |fields: &Value| {
        let body = with(
            &json!({"messages": user(QUESTION), "temperature": 0, "ignore_eos": true}),
            fields,
        );
        let request = ureq::post(format!("{url}{CHAT}")).config().http_status_as_error(false);
        let request = request.build().header("content-type", "application/json");
        let mut answer = request.send(body.to_string()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let (status, text) = post(&json!({}));
    assert!(status == 500 && text.contains("as it was to"), "{text}");
    let (status, text) = post(&json!({"stream": true}));
    let [first, error, ""] = text.split("\n\n").collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(status == 200 && first.contains("\"content\":"), "{first}");
    let error: Value = serde_json::from_str(error.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(error["error"]["message"].as_str().unwrap().contains("as it was to"));
    assert_eq!(post(&json!({"max_tokens": 1})).0, 200);
}
