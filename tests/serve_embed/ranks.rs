//! Ranks by the routes of Cohere and of text-embeddings-inference: the library's order and
//! probabilities, and refusals.

use super::judge;
use crate::serve::Server;
use serde_json::{Value, json};

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
