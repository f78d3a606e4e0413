//! What cannot fit is refused by its bytes, before it is tokenized: wherever texts come in, and
//! without the memory that tokenizing would take.

use crate::serve::Server;
use crate::serve_rag::store_of;
use gritlm::{Device, Embed, Engine, Error, Options, Prompt};
use gritlm_rag::{CacheKind, Chunking};
use serde_json::{Value, json};

/// 12 MB that no tokenizer makes short work of.
fn long() -> String {
    "wörd ".repeat(2_000_000)
}

/// The most memory that the server has ever had, in MB.
pub(crate) fn peak(server: &Server) -> u64 {
    memory(server, "VmHWM:")
}

/// The memory that the server has now, in MB.
pub(crate) fn resident(server: &Server) -> u64 {
    memory(server, "VmRSS:")
}

fn memory(server: &Server, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1000
}

#[test]
fn the_library_refuses_and_cuts_by_bytes() {
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open("demo", &options).unwrap();
    let (long, limit) = (long(), engine.tokenizer().most_bytes(2048));
    let chat = |past: &str, text: &str| Prompt::Chat {
        past: vec![("Hi".into(), past.into())],
        text: text.into(),
    };
    for prompt in [Prompt::raw(&long), Prompt::user(&long), chat(&long, "x"), chat("x", &long)] {
        let error = engine.tokenize_prompt(&prompt, false).unwrap_err();
        let Error::LongText { what: "prompt", bytes, limit: found, positions: 2048 } = error else {
            panic!("{error}")
        };
        assert!(bytes >= long.len() && found == limit);
        let line = error.to_string();
        assert!(line.contains(&bytes.to_string()) && !line.contains('\n'), "{line}");
    }
    let how = Embed::with_instruction(&long);
    let error = engine.encode_texts(&["a"], &how).unwrap_err();
    assert!(matches!(error, Error::LongText { what: "instruction", .. }), "{error}");
    // A text that is cut anyway is looked at as far as it counts.
    for max_length in [8, 512, 2048] {
        let how = Embed::default().max_length(max_length);
        let all = engine.encode_texts(&[&long, &long[..6 * max_length * 8]], &how).unwrap();
        assert_eq!(all[0].tokens, all[1].tokens);
        assert_eq!(all[0].tokens.len(), max_length);
        assert!(all[0].truncated > 0);
    }
    // What just fits is not refused by its bytes.
    let words = "a ".repeat(limit / 2);
    assert!(engine.tokenize_prompt(&Prompt::raw(&words), false).is_ok());
}

#[test]
fn titles_of_chunks_are_refused_and_cut_by_bytes() {
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open("demo", &options).unwrap();
    let limit = engine.tokenizer().most_bytes(2048);
    let how = Chunking { tokens: 64, overlap: 0 };
    for title in [long(), "x".repeat(limit + 1), "漢".repeat(limit / 3 + 1)] {
        let error = how.cut(&engine, &title, "a text").unwrap_err();
        let gritlm_rag::Error::Engine(Error::LongText { what, bytes, limit: found, .. }) = error
        else {
            panic!("{error:.200}")
        };
        assert_eq!((what, bytes, found), ("title", title.len(), limit));
        // As far as it counts, it is looked at: a quarter of a chunk.
        let fits = how.title(&engine, &title).unwrap();
        assert!(!fits.is_empty() && title.starts_with(&fits));
        assert!(engine.tokenizer().encode(&fits).unwrap().len() <= 17);
        assert_eq!(how.cut(&engine, &fits, "a text").unwrap().len(), 1);
        let endless = Chunking { tokens: usize::MAX, overlap: 0 };
        let error = endless.title(&engine, &title).unwrap_err();
        let long = Error::LongText { what: "title", bytes: title.len(), limit, positions: 2048 };
        assert_eq!(error.to_string(), long.to_string());
        // One that fits the model, but no chunk, is not told whole.
        let half = &title[..title.floor_char_boundary(limit / 2)];
        let error = how.cut(&engine, half, "a text").unwrap_err();
        assert!(error.to_string().len() < 200, "{error:.300}");
        assert!(error.to_string().contains("leaves no room"), "{error:.300}");
    }
}

#[test]
fn long_texts_are_refused_over_http_without_the_memory_to_tokenize_them() {
    let server = Server::start(&[]);
    let long = long();
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    let bodies: [(&str, Value); 6] = [
        ("/v1/chat/completions", json!({"messages": user(&long), "max_tokens": 1})),
        ("/v1/completions", json!({"prompt": ["a", long], "max_tokens": 1})),
        ("/v1/embeddings", json!({"input": "a", "instruction": long})),
        ("/v1/embeddings", json!({"input": ["a", long]})),
        ("/tokenize", json!({"prompt": long})),
        ("/embed", json!({"inputs": "a", "instruction": long})),
    ];
    let before = peak(&server);
    for (path, body) in bodies {
        let answer = server.post(path, &body);
        assert!([400, 422].contains(&answer.status), "{path}: {}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "context_length_exceeded", "{path}");
        assert!(answer.text.len() < 1000, "{path}");
    }
    // Three at once: their bodies, as they come and as they are parsed, and no more.
    let chat = json!({"messages": user(&long), "max_tokens": 1});
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| server.post("/v1/chat/completions", &chat).fails(400, &["bytes"]));
        }
    });
    let grown = peak(&server) - before;
    assert!(grown < 300, "{grown} MB");
    // What is cut is embedded.
    let body = json!({"input": long, "truncate": true});
    assert_eq!(server.post("/v1/embeddings", &body).ok()["usage"]["prompt_tokens"], 2048);
}

#[test]
fn token_ids_to_be_text_are_bounded() {
    let server = Server::start(&[]);
    let post = |ids: usize| server.post("/detokenize", &json!({"tokens": vec![9; ids]}));
    for ids in [0, 2048, 4096] {
        post(ids).ok();
    }
    for ids in [4097, 10_000, 2_000_000] {
        let answer = post(ids);
        answer.fails(400, &["tokens", "4096", "2048", &ids.to_string()]);
        assert_eq!(answer.json()["error"]["param"], "tokens");
    }
}

#[test]
fn names_of_documents_are_bounded() {
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open("demo", &options).unwrap();
    let (_kept, at) = store_of(&engine, CacheKind::None);
    let server = Server::start(&["--store", at.to_str().unwrap()]);
    let post = |path: &str, title: &str| {
        let documents = json!([
            {"path": "first", "text": "A text."}, {"path": path, "title": title, "text": "Another."}
        ]);
        server.post("/v1/rag/index", &json!({"documents": documents}))
    };
    let [long, wide, huge] = ["a".repeat(4097), "é".repeat(2049), "a".repeat(1 << 20)];
    for text in [&long, &wide, &huge] {
        let bytes = text.len().to_string();
        for (answer, field) in [(post(text, ""), "path"), (post("b", text), "title")] {
            answer.fails(400, &["4096", &bytes]);
            assert_eq!(answer.json()["error"]["param"], format!("documents[1].{field}"));
            assert!(answer.text.len() < 500);
        }
    }
    // Nothing was stored; what just fits is.
    let fits = post(&long[1..], &wide[2..]).ok();
    assert_eq!((&fits["indexed"], &fits["failed"]), (&json!(2), &json!([])));
}

#[test]
fn errors_do_not_repeat_megabytes() {
    let server = Server::start(&[]);
    let long = "é".repeat(1 << 19);
    let text = json!([{"role": "user", "content": "Hi."}]);
    for (path, body) in [
        ("/v1/embeddings", json!({"input": "ab", "model": long})),
        ("/v1/embeddings", json!({"input": "ab", "pooling": long})),
        ("/v1/chat/completions", json!({"messages": [{"role": long, "content": "Hi."}]})),
        ("/v1/chat/completions", json!({"messages": text, "temperature": long})),
        ("/embed", json!({"inputs": "ab", "prompt_name": long})),
    ] {
        let answer = server.post(path, &body);
        assert!((400..500).contains(&answer.status), "{}", answer.status);
        answer.fails(answer.status, &["… (cut; 10"]);
        assert!(answer.text.len() < 1500, "{path}: {} bytes", answer.text.len());
    }
}
