//! Requests as clients send them: a model's own path, keys, compressed and cut bodies, structs from
//! objects only, and what is too long.

use crate::serve::{Answer, Server};
use crate::serve_rag::store_of;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use gritlm::{Device, Engine, Options};
use gritlm_rag::CacheKind;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A request as it stands, which asks to close the connection, and the answer. Only after one that
/// is `cut` the client closes its side: a server may take who does so for one who left.
fn exchange(server: &Server, request: &[u8], cut: bool) -> (u16, String) {
    let mut socket = TcpStream::connect(server.address()).unwrap();
    socket.write_all(request).unwrap();
    if cut {
        socket.shutdown(Shutdown::Write).unwrap();
    }
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
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             authorization: {header}\r\n\r\n"
        );
        assert_eq!(exchange(&server, request.as_bytes(), false).0, 200, "{header:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_bodies_are_read() {
    let server = Server::start(&["--max-body-bytes", "100000"]);
    let post = |path: &str, encoding: &str, body: &[u8]| {
        server.post_with(path, &[JSON, ("content-encoding", encoding)], body)
    };
    for (path, body) in [
        ("/v1/embeddings", json!({"input": ["größe", "b"]})),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 3, "temperature": 0})),
        ("/embed", json!({"inputs": "a text"})),
    ] {
        let pick = |answer: Answer| {
            let mut body = answer.ok();
            for own in ["id", "created", "usage"] {
                body.as_object_mut().map(|body| body.remove(own));
            }
            body
        };
        let (expected, body) = (pick(server.post(path, &body)), body.to_string());
        let body = body.as_bytes();
        let halves = [gzip(&body[..5]), gzip(&body[5..])].concat();
        for (encoding, bytes) in [
            ("gzip", gzip(body)),
            ("x-gzip", gzip(body)),
            ("GZIP", gzip(body)),
            ("gzip", halves),
            ("deflate", deflate(body)),
            ("identity", body.to_vec()),
            ("identity, gzip", gzip(body)),
            ("", body.to_vec()),
        ] {
            assert_eq!(pick(post(path, encoding, &bytes)), expected, "{encoding:?}");
        }
    }
    let body = json!({"input": "a"}).to_string();
    for other in ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "nonsense"] {
        let answer = post("/v1/embeddings", other, body.as_bytes());
        answer.fails(415, &["content-encoding", other, "gzip"]);
        assert_eq!(answer.header("accept-encoding"), "gzip, deflate");
    }
}

/// The limit is on what a body becomes: a small one may not take all memory.
#[test]
fn compressed_bodies_are_bounded() {
    let server = Server::start(&["--max-body-bytes", "100000"]);
    let post = |encoding: &str, body: &[u8]| {
        server.post_with("/v1/embeddings", &[JSON, ("content-encoding", encoding)], body)
    };
    let padded = |spaces: usize| format!("{{\"input\": \"a\"{}}}", " ".repeat(spaces)).into_bytes();
    let fits = padded(100_000 - padded(0).len());
    assert_eq!(fits.len(), 100_000);
    for (encoding, encode) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("deflate", deflate)] {
        post(encoding, &encode(&fits)).ok();
        for more in [1, 1 << 16, 1 << 26] {
            let bomb = encode(&padded(fits.len() + more));
            post(encoding, &bomb).fails(413, &["100000"]);
        }
        let whole = encode(b"{\"input\": \"a\"}");
        for wrong in [&whole[..whole.len() - 6], &whole[..4], b"{\"input\": \"a\"}", b""] {
            let answer = post(encoding, wrong);
            answer.fails(400, &["body: "]);
            assert!(answer.json()["error"]["param"].is_null(), "{}", answer.text);
        }
    }
}

/// Also where what is left has a whole JSON in it, or more than one body.
#[test]
fn compressed_bodies_are_whole() {
    let server = Server::start(&[]);
    let pads = ["", "\n", &" ".repeat(1000)];
    for (body, pad) in [r#"{"input": "a"}"#, r#"{"input": ["a", "b"], "model": "demo"}"#]
        .into_iter()
        .flat_map(|body| pads.map(|pad| (body, pad)))
    {
        let body = format!("{body}{pad}");
        for (encoding, encode) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("deflate", deflate)] {
            let whole = encode(body.as_bytes());
            let post = |bytes: &[u8]| {
                let headers = [JSON, ("content-encoding", encoding)];
                server.post_with("/v1/embeddings", &headers, bytes)
            };
            post(&whole).ok();
            for kept in 0..whole.len() {
                post(&whole[..kept]).fails(400, &["body: "]);
            }
            for more in [&b"x"[..], b"\0\0\0\0\0\0\0\0\0\0\0\0", b"{}"] {
                post(&[&whole, more].concat()).fails(400, &["body: expected", encoding]);
            }
            let mut wrong = whole.clone();
            *wrong.last_mut().unwrap() ^= 1;
            post(&wrong).fails(400, &["body: "]);
        }
    }
}

/// There is no telling which field it would have been.
#[test]
fn cut_bodies_are_nobodys_field() {
    let server = Server::start(&[]);
    for (path, body) in [
        ("/v1/embeddings", r#"{"input": ["a", "b"], "model": "demo"}"#),
        ("/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "x"}], "n": 1}"#),
        ("/v1/completions", r#"{"prompt": [1, 23], "stop": ["a"], "stream_options": null}"#),
        ("/similarity", r#"{"inputs": {"source_sentence": "a", "sentences": ["b"]}}"#),
        ("/v2/rerank", r#"{"query": "a", "documents": [{"text": "b"}], "top_n": 1}"#),
    ] {
        let cuts = (0..body.len()).filter(|&at| body.is_char_boundary(at));
        for cut in cuts.map(|at| &body[..at]) {
            let answer = server.post_with(path, &[JSON], cut);
            answer.fails(400, &["body: "]);
            assert!(answer.json()["error"]["param"].is_null(), "{cut}: {}", answer.text);
        }
        // Broken in its middle.
        let broken = body.replacen(": ", ":: ", 2);
        let answer = server.post_with(path, &[JSON], broken);
        answer.fails(400, &["body: "]);
        assert!(answer.json()["error"]["param"].is_null(), "{}", answer.text);
        // Less came than was promised.
        let length = body.len() + 7;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        );
        let request = format!("{head}content-length: {length}\r\n\r\n{body}");
        let (status, text) = exchange(&server, request.as_bytes(), true);
        assert_eq!(status, 400, "{text}");
        let error = serde_json::from_str::<Value>(&text).unwrap()["error"].clone();
        assert!(error["param"].is_null(), "{text}");
        assert!(error["message"].as_str().unwrap().contains("ended too early"), "{text}");
    }
}

/// An array of a struct's fields, in whatever order the code has them, is no struct; nor is an
/// object a name.
#[test]
fn objects_are_objects() {
    let options = Options::default().device(Device::Cpu);
    let (_kept, store) = store_of(&Engine::open("demo", &options).unwrap(), CacheKind::Doc);
    let server = Server::start(&["--store", store.to_str().unwrap()]);
    let chat = |messages: Value| ("/v1/chat/completions", json!({"messages": messages}));
    let turn = json!([{"role": "user", "content": "x"}]);
    let with = |fields: Value| {
        let mut body = json!({"messages": turn, "max_tokens": 1});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        ("/v1/chat/completions", body)
    };
    let text = |fields: Value| {
        let mut body = json!({"prompt": "x", "max_tokens": 1, "stream": true});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        ("/v1/completions", body)
    };
    let schema = json!({"type": "object"});
    for ((path, body), field) in [
        (chat(json!([["user", "x"]])), "messages[0]"),
        (chat(json!([{"role": "user", "content": "x"}, ["user", "x"]])), "messages[1]"),
        (chat(json!([{"role": "user", "content": [["text", "x"]]}])), "messages[0].content[0]"),
        (chat(json!([{"role": {"user": null}, "content": "x"}])), "messages[0].role"),
        (
            chat(json!([{"role": "user", "content": [{"type": {"text": null}, "text": "x"}]}])),
            "messages[0].content[0].type",
        ),
        (with(json!({"response_format": ["text", null]})), "response_format"),
        (
            with(json!({"response_format": {"type": "json_schema", "json_schema": [schema]}})),
            "response_format.json_schema",
        ),
        (with(json!({"response_format": {"type": {"text": null}}})), "response_format.type"),
        (with(json!({"stream": true, "stream_options": [true]})), "stream_options"),
        (text(json!({"stream_options": [true]})), "stream_options"),
        (text(json!({"response_format": ["json_object", null]})), "response_format"),
        (("/v1/embeddings", json!(["a"])), ""),
        (
            ("/v1/embeddings", json!({"input": "a", "encoding_format": {"float": null}})),
            "encoding_format",
        ),
        (("/v1/embeddings", json!({"input": "a", "pooling": {"mean": null}})), "pooling"),
        (("/embed", json!(["a", true, null, null, null, null, null, null, null])), ""),
        (("/similarity", json!({"inputs": ["a", ["b"]]})), "inputs"),
        (
            (
                "/similarity",
                json!([{"source_sentence": "a", "sentences": ["b"]}, null, null, null]),
            ),
            "",
        ),
        (
            ("/similarity", {
                let inputs = json!({"source_sentence": "a", "sentences": ["b"]});
                json!({"inputs": inputs, "parameters": [false, null, null, null, null]})
            }),
            "parameters",
        ),
        (("/rerank", json!(["a", ["b"], null, null, null, null, null, null])), ""),
        (("/v2/rerank", json!({"query": "a", "documents": [["b"]]})), "documents[0]"),
        (("/v1/rerank", json!([null, "a", ["b"], null, null, null, null, null, null])), ""),
        (("/tokenize", json!([null, "a", true, false])), ""),
        (("/detokenize", json!([null, [5]])), ""),
        (("/v1/rag/index", json!({"documents": [["p", "text", "title", null]]})), "documents[0]"),
        (("/v1/rag/index", json!([null, []])), ""),
        (("/v1/rag/ask", json!({"query": "x", "cache": {"none": null}})), "cache"),
        (
            ("/v1/rag/ask", json!({"query": "x", "stream": true, "stream_options": [true]})),
            "stream_options",
        ),
    ] {
        let answer = server.post(path, &body);
        answer.fails(400, &["expected"]);
        let found = &answer.json()["error"]["param"];
        let right = if field.is_empty() { found.is_null() } else { found == field };
        assert!(right, "{body}: expected {field:?}, found {}", answer.text);
    }
}

/// OpenAI's and Cohere's clients look for 400 and the code; TEI's for 422.
#[test]
fn what_is_too_long_has_its_code() {
    let folder = crate::support::with_a_yes();
    let model = folder.path().to_str().unwrap();
    let server = Server::start(&["--model", model, "--model-name", "odd", "--kv-tokens", "1024"]);
    let demo = Server::start(&["--kv-tokens", "1024"]);
    let (long, emoji) = ("b ".repeat(3000), "\u{1F389}".repeat(600));
    let turn = |text: &str| json!([{"role": "user", "content": text}]);
    let wide =
        |text: &str, max_tokens: usize| json!({"messages": turn(text), "max_tokens": max_tokens});
    for (server, path, body, field, limit) in [
        (&demo, "/v1/embeddings", json!({"input": long}), "input", "1024"),
        (&demo, "/v1/embeddings", json!({"input": ["a", long]}), "input[1]", "1024"),
        (&demo, "/v1/embeddings", json!({"input": [[5], vec![5; 3000]]}), "input[1]", "1024"),
        (&demo, "/v1/chat/completions", json!({"messages": turn(&long)}), "messages", "2048"),
        (&demo, "/v1/chat/completions", wide("x", 1500), "", "1024"),
        (&demo, "/v1/completions", json!({"prompt": long}), "prompt", "2048"),
        (&demo, "/v1/completions", json!({"prompt": ["a", vec![5; 0]], "n": 1}), "prompt[1]", ""),
        (&demo, "/v1/completions", json!({"prompt": vec![5; 2100]}), "prompt", "2048"),
        (
            &server,
            "/v1/rerank",
            json!({"query": "a", "documents": ["a", emoji]}),
            "documents[1]",
            "1024",
        ),
        (
            &server,
            "/v2/rerank",
            json!({"query": "a", "documents": [emoji]}),
            "documents[0]",
            "1024",
        ),
    ] {
        let answer = server.post(path, &body);
        if limit.is_empty() {
            answer.fails(400, &[field]);
            continue;
        }
        answer.fails(400, &["This model's maximum context length is", limit, " tokens. However, "]);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        let right =
            if field.is_empty() { error["param"].is_null() } else { error["param"] == field };
        assert!(right, "{error}");
        // Both counts.
        let message = error["message"].as_str().unwrap();
        let counts = message.split(|c: char| !c.is_ascii_digit()).filter(|s| s.len() > 3);
        assert!(counts.filter(|s| *s != limit).count() > 0, "{message}");
    }
    for (path, body, field) in [
        ("/embed", json!({"inputs": ["a", long]}), "inputs[1]"),
        (
            "/similarity",
            { json!({"inputs": {"source_sentence": long, "sentences": ["a"]}}) },
            "inputs.source_sentence",
        ),
        ("/rerank", json!({"query": "a", "texts": [emoji]}), "texts[0]"),
    ] {
        let answer = server.post(path, &body);
        answer.fails(422, &[field, "1024"]);
        assert_eq!(answer.json()["error"]["param"], field);
    }
}
