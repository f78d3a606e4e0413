//! `gritlm serve`'s embeddings and ranks: the library's values, whatever the shape of the request;
//! and refusals that say what is wrong where.

use crate::serve::Server;
use crate::support::{close, with_a_yes};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use gritlm::{Attn, Device, Embed, Embedding, Engine, Options, Pooling, Ranked};
use serde_json::{Value, json};

fn demo() -> Engine {
    let options = Options { device: Device::Cpu, ..Options::default() };
    Engine::open("demo", &options).unwrap()
}

/// As the server embeds if nothing else is said: nothing is cut.
fn whole() -> Embed {
    Embed { max_length: 2048, ..Embed::default() }
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
        (json!({"instruction": instruction}), Embed { instruction: instruction.into(), ..how() }),
        (json!({"pooling": "mean"}), how()),
        (json!({"pooling": "weighted_mean"}), Embed { pooling: Pooling::WeightedMean, ..how() }),
        (json!({"pooling": "cls"}), Embed { pooling: Pooling::Cls, ..how() }),
        (json!({"pooling": "last_token"}), Embed { pooling: Pooling::LastToken, ..how() }),
        (json!({"normalize": false}), Embed { normalize: false, ..how() }),
        (json!({"dimensions": 7}), Embed { dimensions: Some(7), ..how() }),
        (json!({"dimensions": 192}), how()),
        (json!({"attn": "cccc"}), Embed { attn: Some(Attn::Cccc), ..how() }),
        (json!({"attn": "bbcc", "priority": 3, "timeout": 100.5}), how()),
        (json!({"max_length": 20}), Embed { max_length: 20, ..how() }),
        (json!({"max_length": 20, "truncate": true}), Embed { max_length: 20, ..how() }),
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
        let how = Embed { instruction: instruction.into(), ..whole() };
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

#[test]
fn embed_is_tei_s() {
    let (server, engine) = (Server::start(&["--max-inputs", "3"]), demo());
    let texts = ["chess interface", "Böse Überraschung 🎉", "a"];
    let instruction = "Find the package.";
    for (fields, how) in [
        (json!({}), whole()),
        (json!({"prompt_name": null, "truncation_direction": "Right"}), whole()),
        (json!({"normalize": false}), Embed { normalize: false, ..whole() }),
        (json!({"dimensions": 9}), Embed { dimensions: Some(9), ..whole() }),
        (json!({"instruction": instruction}), Embed::with_instruction(instruction)),
    ] {
        let expected = bare(&engine.embed(&texts, &how).unwrap());
        let mut body = fields.clone();
        body["inputs"] = json!(texts);
        let answer = server.post("/embed", &body);
        let found: Vec<Vec<f32>> = answer.ok().as_array().unwrap().iter().map(numbers).collect();
        assert_eq!(found, expected, "{fields}");
        assert!(answer.header("server-timing").contains("queue;dur="));
    }
    let expected = bare(&engine.embed(&texts[..1], &whole()).unwrap());
    assert_eq!(numbers(&server.post("/embed", &json!({"inputs": texts[0]})).ok()[0]), expected[0]);

    let ask = |body: Value| server.post("/embed", &body);
    let long = "b ".repeat(3000);
    ask(json!({"inputs": ["a", long]})).fails(422, &["inputs[1]: ", "length is 2048 tokens"]);
    ask(json!({"inputs": ["a", long], "truncate": true})).ok();
    ask(json!({"inputs": vec!["a"; 4]})).fails(413, &["inputs: ", "at most 3", "found 4"]);
    ask(json!({"inputs": []})).fails(400, &["inputs: "]);
    ask(json!({"inputs": [[5], [-1]]})).fails(400, &["inputs[1][0]: ", "-1"]);
    ask(json!({"inputs": "a", "prompt_name": "q"})).fails(400, &["prompt_name: ", "\"q\""]);
    ask(json!({"inputs": "a", "truncation_direction": "Left"}))
        .fails(400, &["truncation_direction: ", "`Left`", "`Right`"]);
}

#[test]
fn similarity_is_a_cosine() {
    let (server, engine) = (Server::start(&["--max-inputs", "3"]), demo());
    let (source, sentences) = ("chess interface", ["board games", "chess interface", "cook"]);
    let inputs = json!({"source_sentence": source, "sentences": sentences});
    let of = |instruction: &str, sentences_instruction: &str| {
        let how = |instruction: &str| Embed { instruction: instruction.into(), ..whole() };
        let one = engine.embed(&[source], &how(instruction)).unwrap();
        let others = engine.embed(&sentences, &how(sentences_instruction)).unwrap();
        let cosines = others.iter().map(|o| gritlm::dot(&one[0].vector, &o.vector));
        cosines.collect::<Vec<f32>>()
    };
    let ask = |inputs: &Value, parameters: Value| {
        server.post("/similarity", &json!({"inputs": inputs, "parameters": parameters}))
    };
    let found = numbers(&server.post("/similarity", &json!({"inputs": inputs})).ok());
    assert_eq!(found, of("", ""));
    assert!((found[1] - 1.0).abs() < 1e-5 && found[0] < 0.99);
    assert_eq!(numbers(&ask(&inputs, json!({"instruction": "Find."})).ok()), of("Find.", ""));
    let both = json!({"instruction": "Compare.", "sentences_instruction": "Retrieve."});
    assert_eq!(numbers(&ask(&inputs, both).ok()), of("Compare.", "Retrieve."));

    let wrong = |source: &str, sentences: &[&str]| {
        ask(&json!({"source_sentence": source, "sentences": sentences}), json!({}))
    };
    wrong("", &["a"]).fails(400, &["inputs.source_sentence: "]);
    wrong("a", &[]).fails(400, &["inputs.sentences: "]);
    wrong("a", &["a", ""]).fails(400, &["inputs.sentences[1]: "]);
    wrong("a", &["a"; 4]).fails(413, &["inputs.sentences: ", "found 4"]);
    let long = "b ".repeat(3000);
    wrong(&long, &["a"]).fails(422, &["inputs.source_sentence: ", "2048"]);
    wrong("a", &["a", &long]).fails(422, &["inputs.sentences[1]: ", "2048"]);
    let inputs = json!({"source_sentence": long, "sentences": [long]});
    let same = numbers(&ask(&inputs, json!({"truncate": true})).ok());
    assert!((same[0] - 1.0).abs() < 1e-5);
    ask(&inputs, json!({"prompt_name": "q"})).fails(400, &["parameters.prompt_name: "]);
    server
        .post("/similarity", &json!({"inputs": {"source_sentence": "a"}}))
        .fails(400, &["inputs: ", "`sentences`"]);
}

/// A server of a model that can say yes, named `judge`, and the same model here.
fn judge(args: &[&str]) -> (Server, Engine) {
    let folder = with_a_yes();
    let model = folder.path().to_str().unwrap();
    let server = Server::start(&[&["--model", model, "--model-name", "judge"], args].concat());
    let options = Options { device: Device::Cpu, ..Options::default() };
    (server, Engine::open(model, &options).unwrap())
}

#[test]
fn ranks_are_the_engines() {
    let (server, engine) = judge(&["--max-inputs", "6"]);
    let long = "about something else entirely, ".repeat(30);
    let texts = ["board games", "cook", "", &long, "Böse Überraschung 🎉", "board games"];
    let query = "which game?";
    let expected = engine.rerank(query, &texts).unwrap();
    assert_eq!(expected.len(), 6);
    let ask = |path: &str, fields: &Value| {
        let mut body = json!({"query": query, "texts": texts, "documents": texts});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post(path, &body)
    };
    // What the library says of a passage.
    let of = |index: &Value| expected.iter().find(|r| json!(r.index) == *index).unwrap();
    let sorted = |scores: &[f32]| scores.is_sorted_by(|a, b| a >= b);

    for raw in [false, true] {
        let answer = ask("/rerank", &json!({"raw_scores": raw, "return_text": raw}));
        assert!(answer.header("server-timing").contains("queue;dur="));
        let body = answer.ok();
        let mut scores = Vec::new();
        for found in body.as_array().unwrap() {
            let (r, score) = (of(&found["index"]), found["score"].as_f64().unwrap() as f32);
            assert_eq!(score, if raw { r.score } else { r.probability });
            assert_eq!(found.get("text"), raw.then(|| json!(texts[r.index])).as_ref());
            scores.push(score);
        }
        assert!(scores.len() == 6 && sorted(&scores), "{scores:?}");
        // As the library orders them, equals by index.
        if raw {
            let order = body.as_array().unwrap().iter().map(|found| found["index"].clone());
            assert!(order.eq(expected.iter().map(|r| json!(r.index))), "{body}");
        }
    }

    let prompts = engine.encode_passages(query, &texts).unwrap();
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    for (path, version) in [("/v1/rerank", "1"), ("/v2/rerank", "2")] {
        let body = ask(path, &json!({"model": "judge"})).ok();
        assert!(body["id"].as_str().unwrap().starts_with("rerank-"));
        assert_eq!(body["model"], "judge");
        assert_eq!(body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        let meta = json!({"api_version": {"version": version}, "tokens": {"input_tokens": tokens}});
        assert_eq!(body["meta"], meta);
        let results = body["results"].as_array().unwrap();
        let scores: Vec<f32> = results
            .iter()
            .map(|found| {
                assert!(found.get("document").is_none());
                let score = found["relevance_score"].as_f64().unwrap() as f32;
                assert_eq!(score, of(&found["index"]).probability);
                score
            })
            .collect();
        assert!(scores.len() == 6 && sorted(&scores), "{scores:?}");
        let two = ask(path, &json!({"top_n": 2, "return_documents": true})).ok();
        let two = two["results"].as_array().unwrap();
        assert_eq!(two.len(), 2);
        for (found, all) in two.iter().zip(results) {
            assert_eq!(found["index"], all["index"]);
            let text = texts[found["index"].as_u64().unwrap() as usize];
            assert_eq!(found["document"], json!({"text": text}));
        }
        let objects: Vec<Value> = texts.iter().map(|t| json!({"title": 1, "text": t})).collect();
        assert_eq!(ask(path, &json!({"documents": objects})).ok()["results"], body["results"]);
    }
    // Cut to so many tokens: as if there were no more of it.
    let ids = engine.tokenizer().encode_continued(texts[0]).unwrap();
    let cut = engine.tokenizer().decode(&ids[..4]).unwrap();
    assert!(cut.len() < texts[0].len());
    let fields =
        json!({"documents": [texts[0]], "max_tokens_per_doc": 4, "return_documents": true});
    let found = ask("/v2/rerank", &fields).ok()["results"][0].clone();
    let expected = engine.rerank(query, &[&cut]).unwrap()[0].probability;
    assert_eq!(found["relevance_score"].as_f64().unwrap() as f32, expected);
    assert_eq!(found["document"], json!({"text": texts[0]}));
}

#[test]
fn ranks_are_refused_with_reason() {
    let (server, _) = judge(&["--max-inputs", "3", "--kv-tokens", "1024"]);
    let tei = |query: &str, texts: Value, fields: Value| {
        let mut body = json!({"query": query, "texts": texts});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post("/rerank", &body)
    };
    tei("", json!(["a"]), json!({})).fails(400, &["query: "]);
    tei("a", json!([]), json!({})).fails(400, &["texts: "]);
    tei("a", json!(["a", 5]), json!({})).fails(400, &["texts[1]: ", "`5`"]);
    tei("a", json!(vec!["a"; 4]), json!({})).fails(413, &["texts: ", "at most 3", "found 4"]);
    tei("a", json!(["a"]), json!({"truncation_direction": "Left"}))
        .fails(400, &["truncation_direction: "]);
    tei("a", json!(["a"]), json!({"timeout": -1})).fails(400, &["timeout: "]);
    let long = "\u{1F389}".repeat(600);
    let failure = tei("a", json!(["a", long]), json!({}));
    failure.fails(422, &["texts[1]: ", "length is 1024 tokens"]);
    assert_eq!(failure.json()["error"]["param"], "texts[1]");
    let cohere = |fields: Value| {
        let mut body = json!({"query": "a", "documents": ["a", "b"]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post("/v2/rerank", &body)
    };
    cohere(json!({})).ok();
    cohere(json!({"model": "demo"})).fails(404, &["\"judge\"", "\"demo\""]);
    cohere(json!({"documents": []})).fails(400, &["documents: "]);
    cohere(json!({"documents": ["a", {"text": 5}]})).fails(400, &["documents[1].text: ", "`5`"]);
    cohere(json!({"documents": ["a", {"title": "b"}]})).fails(400, &["documents[1]: ", "`text`"]);
    cohere(json!({"documents": ["a", 5]}))
        .fails(400, &["documents[1]: ", "`5`, expected a string or an object with a text"]);
    cohere(json!({"documents": vec!["a"; 4]})).fails(413, &["documents: ", "found 4"]);
    cohere(json!({"top_n": 0})).fails(400, &["top_n: ", "found 0"]);
    cohere(json!({"max_tokens_per_doc": 0})).fails(400, &["max_tokens_per_doc: ", "found 0"]);
    cohere(json!({"rank_fields": ["title"]})).fails(400, &["rank_fields: "]);

    // The demo model has no word for yes.
    let server = Server::start(&[]);
    server.post("/rerank", &json!({"query": "a", "texts": ["b"]})).fails(400, &["\"yes\""]);
}

#[test]
fn tokens_are_the_tokenizers() {
    let (server, engine) = (Server::start(&[]), demo());
    for text in ["chess interface", "Böse Überraschung 🎉", ""] {
        for bos in [true, false] {
            let expected = match bos {
                true => engine.tokenizer().encode(text).unwrap(),
                false => engine.tokenizer().encode_continued(text).unwrap(),
            };
            let mut body = json!({"prompt": text, "model": "demo"});
            if !bos {
                body["add_special_tokens"] = json!(false);
            }
            let (count, tokens) = (expected.len(), json!(expected));
            let right = json!({"count": count, "max_model_len": 2048, "tokens": tokens});
            assert_eq!(server.post("/tokenize", &body).ok(), right);
            body["return_token_strs"] = json!(true);
            let spelled = server.post("/tokenize", &body).ok();
            let ids = spelled["token_strs"].as_array().unwrap().iter();
            let ids = ids.map(|s| engine.tokenizer().id(s.as_str().unwrap()).unwrap());
            assert_eq!(ids.collect::<Vec<u32>>(), expected);
            let found = server.post("/detokenize", &json!({"tokens": tokens})).ok();
            assert_eq!(found, json!({"prompt": engine.tokenizer().decode(&expected).unwrap()}));
            assert_eq!(found["prompt"], text);
        }
    }
    server.post("/tokenize", &json!({"prompt": "a", "model": "b"})).fails(404, &["\"b\""]);
    server.post("/tokenize", &json!({"prompt": ["a"]})).fails(400, &["prompt: "]);
    server.post("/tokenize", &json!({})).fails(400, &["`prompt`"]);
    let wrong = |tokens: Value| server.post("/detokenize", &json!({"tokens": tokens}));
    wrong(json!([5, 4096])).fails(400, &["tokens[1]: ", "below 4096, found 4096"]);
    wrong(json!([5, -1])).fails(400, &["tokens[1]: ", "`-1`, expected a token id"]);
    wrong(json!("a")).fails(400, &["tokens: ", "expected an array of token ids"]);
    assert_eq!(wrong(json!([])).ok(), json!({"prompt": ""}));
    server.post("/detokenize", &json!({"tokens": [], "model": "b"})).fails(404, &["\"b\""]);
}

#[test]
fn info_is_what_is_there() {
    let args = ["--kv-tokens", "1024", "--max-inputs", "9", "--max-batch-tokens", "99"];
    let server = Server::start(&[&args[..], &["--max-queue", "7"]].concat());
    let mut info = server.get("/info").ok();
    assert!(info["tokenization_workers"].as_u64().unwrap() > 0);
    info.as_object_mut().unwrap().remove("tokenization_workers");
    let expected = json!({
        "model_id": "demo", "model_sha": null, "model_dtype": "float32",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 7, "max_input_length": 1024, "max_batch_tokens": 99,
        "max_batch_requests": null, "max_client_batch_size": 9, "auto_truncate": false,
        "version": env!("CARGO_PKG_VERSION"), "sha": null, "docker_label": null,
    });
    assert_eq!(info, expected);
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
