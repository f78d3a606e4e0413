//! The other routes of text-embeddings-inference: `/embed`, `/similarity`, `/tokenize`,
//! `/detokenize` and `/info`.

use super::{bare, demo, numbers, whole};
use crate::serve::Server;
use gritlm::Embed;
use serde_json::{Value, json};

#[test]
fn embed_is_tei_s() {
    let (server, engine) = (Server::start(&["--max-inputs", "3"]), demo());
    let texts = ["chess interface", "Böse Überraschung 🎉", "a"];
    let instruction = "Find the package.";
    for (fields, how) in [
        (json!({}), whole()),
        (json!({"prompt_name": null, "truncation_direction": "Right"}), whole()),
        (json!({"normalize": false}), whole().normalize(false)),
        (json!({"dimensions": 9}), whole().dimensions(Some(9))),
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
        let how = |instruction: &str| whole().instruction(instruction);
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
