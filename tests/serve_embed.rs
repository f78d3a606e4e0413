//! `gritlm serve`'s embeddings: the library's values, whatever the shape of the request, alone and
//! under load; and refusals that say what is wrong where.

mod ranks; // ranks
mod tei; // routes of text-embeddings-inference

use crate::serve::Server;
use crate::support::{close, with_a_yes};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use gritlm::{Attn, Device, Embed, Embedding, Engine, Options, Pooling, Ranked};
use serde_json::{Value, json};

fn demo() -> Engine {
    let options = Options::default().device(Device::Cpu);
    Engine::open("demo", &options).unwrap()
}

/// As the server embeds if nothing else is said: nothing is cut.
fn whole() -> Embed {
    Embed::default().max_length(2048)
}

#[track_caller]
fn numbers(value: &Value) -> Vec<f32> {
    let all = value.as_array().unwrap_or_else(|| panic!("{value}"));
    all.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// The vectors of a `/v1/embeddings` answer, after checking all that stands around them.
#[track_caller]
fn vectors(body: &Value, expected: &[Embedding]) -> Vec<Vec<f32>> {
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("demo")));
    let tokens: usize = expected.iter().map(|e| e.tokens).sum();
    assert_eq!(body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    let data = body["data"].as_array().unwrap();
    for (i, object) in data.iter().enumerate() {
        assert_eq!((&object["object"], &object["index"]), (&json!("embedding"), &json!(i)));
    }
    data.iter().map(|object| numbers(&object["embedding"])).collect()
}

fn bare(all: &[Embedding]) -> Vec<Vec<f32>> {
    all.iter().map(|e| e.vector.clone()).collect()
}

#[test]
fn embeddings_are_the_engines() {
    let (server, engine) = (Server::start(&[]), demo());
    let long = "a text that goes on ".repeat(40);
    let texts = ["chess interface", "Böse Überraschung 🎉", " ", &long];
    let how = whole;
    let instruction = "Find the package.";
    let cases = [
        (json!({}), how()),
        (json!({"model": "demo", "user": "me", "unknown": [1]}), how()),
        (json!({"instruction": null, "pooling": null, "dimensions": null}), how()),
        (json!({"instruction": instruction}), how().instruction(instruction)),
        (json!({"pooling": "mean"}), how()),
        (json!({"pooling": "weighted_mean"}), how().pooling(Pooling::WeightedMean)),
        (json!({"pooling": "cls"}), how().pooling(Pooling::Cls)),
        (json!({"pooling": "last_token"}), how().pooling(Pooling::LastToken)),
        (json!({"normalize": false}), how().normalize(false)),
        (json!({"dimensions": 7}), how().dimensions(Some(7))),
        (json!({"dimensions": 192}), how()),
        (json!({"attn": "cccc"}), how().attn(Some(Attn::Cccc))),
        (json!({"attn": "bbcc", "priority": 3, "timeout": 100.5}), how()),
        (json!({"max_length": 20}), how().max_length(20)),
        (json!({"max_length": 20, "truncate": true}), how().max_length(20)),
        (json!({"max_length": 2048, "truncate": false}), how()),
    ];
    for (fields, how) in cases {
        let expected = engine.embed(&texts, &how).unwrap();
        let mut body = fields.clone();
        body["input"] = json!(texts);
        let answer = server.post("/v1/embeddings", &body);
        assert_eq!(vectors(&answer.ok(), &expected), bare(&expected), "{fields}");
        let timing = answer.header("server-timing");
        for stage in ["tokenize;dur=", "queue;dur=", "prefill;dur="] {
            assert!(timing.contains(stage), "{timing}");
        }

        body["encoding_format"] = json!("base64");
        let found = server.post("/v1/embeddings", &body).ok();
        for (object, expected) in found["data"].as_array().unwrap().iter().zip(&expected) {
            let bytes = BASE64_STANDARD.decode(object["embedding"].as_str().unwrap()).unwrap();
            let numbers = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
            assert_eq!(numbers.collect::<Vec<f32>>(), expected.vector, "{fields}");
        }
    }
    // One text is an array of one.
    let expected = engine.embed(&texts[..1], &how()).unwrap();
    let found = server.post("/v1/embeddings", &json!({"input": texts[0]})).ok();
    assert_eq!(vectors(&found, &expected), bare(&expected));
}

#[test]
fn token_ids_are_texts() {
    let (server, engine) = (Server::start(&[]), demo());
    let texts = ["chess interface", "capture network packets"];
    for instruction in ["", "Find the package."] {
        let how = whole().instruction(instruction);
        let expected = engine.embed(&texts, &how).unwrap();
        let encoded = engine.encode_texts(&texts, &how).unwrap();
        let ids: Vec<&[u32]> = encoded.iter().map(|e| &e.tokens[e.skip..]).collect();
        let ask = |input: Value| {
            let body = json!({"input": input, "instruction": instruction});
            server.post("/v1/embeddings", &body).ok()
        };
        assert_eq!(vectors(&ask(json!(ids)), &expected), bare(&expected));
        assert_eq!(vectors(&ask(json!(ids[1])), &expected[1..]), bare(&expected[1..]));
    }
}

#[test]
fn what_is_too_long_is_refused_or_cut() {
    let (server, engine) = (Server::start(&[]), demo());
    let ask = |body: Value| server.post("/v1/embeddings", &body);
    let long = vec![40u32; 2100];
    // `<s>` and the tag count.
    let tags = engine.encode_texts(&["a"], &whole()).unwrap()[0].skip;
    let found = format!(
        "input[3]: This model's maximum context length is 2048 tokens. However, \
                         your input resulted in {} tokens; ",
        2100 + tags
    );
    let failure = ask(json!({"input": [[5], [6], [7], long]}));
    failure.fails(400, &[&found, "\"truncate\": true"]);
    assert_eq!(failure.json()["error"]["param"], "input[3]");
    assert_eq!(failure.json()["error"]["code"], "context_length_exceeded");
    ask(json!({"input": long})).fails(400, &["input: ", "2048"]);
    ask(json!({"input": ["a", "b ".repeat(3000)]})).fails(400, &["input[1]: ", "2048"]);
    let body = json!({"input": "a b c d e f g h", "max_length": 8, "truncate": false});
    ask(body).fails(400, &["input: ", "expected at most 8 tokens, found "]);

    let encoded = engine.encode_tokens(&[&long], &whole()).unwrap();
    assert_eq!((encoded[0].tokens.len(), encoded[0].truncated), (2048, 52 + tags));
    let cut = ask(json!({"input": [long], "truncate": true})).ok();
    assert_eq!(cut["usage"]["prompt_tokens"], 2048);
    let as_long = ask(json!({"input": long[..2048 - tags]})).ok();
    assert_eq!(cut["data"], as_long["data"]);

    // So long that it is not even tokenized as a whole.
    let longest = engine.tokenizer().longest();
    let bytes = 2 * 2048 * longest + 3;
    let huge: String = ["🎉", "chess "].into_iter().cycle().take(bytes / 5 + 1).collect();
    assert!(huge.len() >= bytes);
    let at_least = format!("your input resulted in at least {} tokens;", huge.len() / longest);
    ask(json!({"input": ["a", huge]})).fails(400, &["input[1]: ", &at_least, " 2048 tokens"]);
    let cut = ask(json!({"input": ["a", huge], "truncate": true})).ok();
    let expected = engine.embed(&["a", &huge], &whole()).unwrap();
    assert_eq!(vectors(&cut, &expected), bare(&expected));

    let body = json!({"input": "a", "instruction": "b ".repeat(30), "max_length": 30});
    let failure = ask(body);
    failure.fails(400, &["instruction: ", "expected fewer than 30"]);
    assert_eq!(failure.json()["error"]["param"], "instruction");
    for wrong in [0, 2049] {
        let body = json!({"input": "a", "max_length": wrong});
        ask(body).fails(400, &["max_length: expected 1 to 2048", &wrong.to_string()]);
    }

    // Where the KV cache holds less than the model has positions, that is the limit.
    let server = Server::start(&["--kv-tokens", "256"]);
    let ask = |body: Value| server.post("/v1/embeddings", &body);
    ask(json!({"input": [long]})).fails(400, &["input[0]: ", "length is 256 tokens"]);
    let cut = ask(json!({"input": [long], "truncate": true})).ok();
    assert_eq!(cut["usage"]["prompt_tokens"], 256);
}

#[test]
fn what_is_wrong_is_said() {
    let server = Server::start(&["--max-inputs", "5"]);
    let ask = |body: &str| {
        server.post_with("/v1/embeddings", &[("content-type", "application/json")], body)
    };
    for (input, place, said) in [
        ("[]", "input", "found none"),
        (r#""""#, "input", "found none"),
        (r#"["a", ""]"#, "input[1]", "found none"),
        ("[[5], []]", "input[1]", "found none"),
        ("[[]]", "input[0]", "found none"),
        ("null", "input", "expected a string, an array of strings"),
        ("true", "input", "boolean `true`"),
        ("5", "input", "integer `5`"),
        (r#"{"a": 1}"#, "input", "map"),
        (r#"["a", 5]"#, "input[1]", "integer `5`, expected a string"),
        (r#"["a", ["b"]]"#, "input[1]", "sequence, expected a string"),
        (r#"[5, "a"]"#, "input[1]", "string \"a\", expected a token id"),
        (r#"[[5], "a"]"#, "input[1]", "string \"a\", expected an array of token ids"),
        (r#"[[5, "a"]]"#, "input[0][1]", "string \"a\", expected a token id"),
        ("[[[5]]]", "input[0][0]", "sequence, expected a token id"),
        ("[5, null]", "input[1]", "null, expected a token id"),
        ("[1e3]", "input[0]", "floating point `1000.0`"),
        ("[5, 1e3]", "input[1]", "floating point `1000.0`, expected a token id"),
        ("[[5], [1.5]]", "input[1][0]", "floating point `1.5`, expected a token id"),
        ("[5, -1]", "input[1]", "integer `-1`, expected a token id"),
        ("[-1]", "input[0]", "integer `-1`"),
        ("[1099511627776]", "input[0]", "integer `1099511627776`, expected a token id"),
        ("[[1099511627776]]", "input[0][0]", "integer `1099511627776`"),
        ("[5, 4096]", "input[1]", "below 4096, found 4096"),
        ("[[5], [6, 4294967295]]", "input[1][1]", "below 4096, found 4294967295"),
    ] {
        let failure = ask(&format!(r#"{{"input": {input}}}"#));
        failure.fails(400, &[&format!("{place}: "), said]);
        assert_eq!(failure.json()["error"]["param"], place, "{input}");
    }
    for (field, value, said) in [
        ("dimensions", "0", "expected 1 to 192, found 0"),
        ("dimensions", "193", "expected 1 to 192, found 193"),
        ("dimensions", "-1", "-1"),
        ("encoding_format", r#""hex""#, "`float` or `base64`"),
        ("pooling", r#""max""#, "`weighted_mean`"),
        ("attn", r#""bbbb""#, "`cccc`"),
        ("normalize", "1", "expected a boolean"),
        ("truncate", r#""yes""#, "expected a boolean"),
        ("priority", "0.5", "expected i32"),
        ("timeout", "-1", "expected seconds, 0 or more, found -1"),
        ("timeout", "1e300", "expected seconds"),
        ("instruction", "[]", "expected a string"),
    ] {
        let failure = ask(&format!(r#"{{"input": "a", "{field}": {value}}}"#));
        failure.fails(400, &[&format!("{field}: "), said]);
        assert_eq!(failure.json()["error"]["param"], field);
    }
    ask(r#"{"model": "demo"}"#).fails(400, &["input: expected a string, an array"]);
    ask(r#"{"input": "a", "model": "other"}"#).fails(404, &["\"demo\"", "\"other\""]);
    let many = ask(r#"{"input": ["a", "b", "c", "d", "e", "f"]}"#);
    many.fails(413, &["input: ", "at most 5", "found 6"]);
    ask(r#"{"input": ["a", "b", "c", "d", "e"]}"#).ok();
    // Ids of one text are no inputs.
    ask(r#"{"input": [5, 6, 7, 8, 9, 10]}"#).ok();
}

/// A server of a model that can say yes, named `judge`, and the same model here.
fn judge(args: &[&str]) -> (Server, Engine) {
    let folder = with_a_yes();
    let model = folder.path().to_str().unwrap();
    let server = Server::start(&[&["--model", model, "--model-name", "judge"], args].concat());
    let options = Options::default().device(Device::Cpu);
    (server, Engine::open(model, &options).unwrap())
}

/// A key guards all of it.
#[test]
fn nothing_is_computed_without_the_key() {
    let server = Server::start(&["--api-key", "k"]);
    for path in [
        "/v1/embeddings",
        "/embed",
        "/similarity",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/tokenize",
        "/detokenize",
    ] {
        server.post(path, &json!({})).fails(401, &["Authorization"]);
    }
    server.get("/info").fails(401, &["Authorization"]);
}

/// A question and what the library says to it.
struct Round {
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
    ranked: Vec<Ranked>,
}

/// Every answer is its own question's, whoever else asks.
#[test]
fn answers_are_right_under_load() {
    let (server, engine) = judge(&["--max-batch-tokens", "256"]);
    let text = |thread: usize, round: usize, i: usize| {
        format!(
            "text {thread}.{round}.{i} {}",
            "and more ".repeat((thread * 7 + round + i * 3) % 29)
        )
    };
    let expected: Vec<Vec<Round>> = (0..8)
        .map(|thread| {
            let round = |round| {
                let texts: Vec<String> =
                    (0..1 + (thread + round) % 5).map(|i| text(thread, round, i)).collect();
                let vectors = bare(&engine.embed(&texts, &whole()).unwrap());
                let ranked = engine.rerank("which?", &texts).unwrap();
                Round { texts, vectors, ranked }
            };
            (0..6).map(round).collect()
        })
        .collect();
    std::thread::scope(|scope| {
        for (thread, rounds) in expected.iter().enumerate() {
            let server = &server;
            scope.spawn(move || {
                for (round, Round { texts, vectors, ranked }) in rounds.iter().enumerate() {
                    let same = |found: Vec<Vec<f32>>| {
                        assert_eq!(found.len(), vectors.len());
                        for (found, expected) in found.iter().zip(vectors) {
                            close(&format!("{thread}.{round}"), found, expected, 1e-5);
                        }
                    };
                    match (thread + round) % 3 {
                        0 => {
                            let body = server.post("/v1/embeddings", &json!({"input": texts})).ok();
                            let data = body["data"].as_array().unwrap().iter();
                            same(data.map(|object| numbers(&object["embedding"])).collect());
                        }
                        1 => {
                            let body = server.post("/embed", &json!({"inputs": texts})).ok();
                            same(body.as_array().unwrap().iter().map(numbers).collect());
                        }
                        _ => {
                            let body =
                                json!({"query": "which?", "texts": texts, "raw_scores": true});
                            let body = server.post("/rerank", &body).ok();
                            let found = body.as_array().unwrap();
                            assert_eq!(found.len(), ranked.len());
                            for (found, expected) in found.iter().zip(ranked) {
                                assert_eq!(found["index"], expected.index);
                                let score = found["score"].as_f64().unwrap() as f32;
                                close(
                                    &format!("{thread}.{round}"),
                                    &[score],
                                    &[expected.score],
                                    1e-5,
                                );
                            }
                        }
                    }
                }
            });
        }
    });
}
