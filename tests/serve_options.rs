//! Options of OpenAI's and other servers' that this one does not have: what would change the answer
//! is refused by name, what asks for nothing is taken.

use crate::serve::Server;
use crate::support::with_a_yes;
use serde_json::{Value, json};

fn with(base: &Value, name: &str, value: &Value) -> Value {
    let mut body = base.clone();
    body[name] = value.clone();
    body
}

/// Posts each option's values to each path.
fn check(server: &Server, paths: &[(&str, Value)], options: &[(&str, Value, &[Value])]) {
    for (path, base) in paths {
        server.post(path, base).ok();
        for (name, wrong, neutral) in options {
            let answer = server.post(path, &with(base, name, wrong));
            answer.fails(400, &[name, "not supported"]);
            assert_eq!(answer.json()["error"]["param"], *name);
            for value in neutral.iter().chain([&Value::Null]) {
                let answer = server.post(path, &with(base, name, value));
                assert_eq!(answer.status, 200, "{path}: {name}: {value}: {}", answer.text);
            }
        }
    }
}

#[test]
fn of_answers() {
    let server = Server::start(&[]);
    let messages = json!([{"role": "user", "content": "x"}]);
    let chat = ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 1}));
    let text = ("/v1/completions", json!({"prompt": "x", "max_tokens": 1}));
    let schema = json!({"type": "object"});
    check(
        &server,
        &[chat, text],
        &[
            ("allowed_token_ids", json!([5]), &[json!([])]),
            ("audio", json!({"voice": "x"}), &[]),
            ("bad_words", json!(["x"]), &[json!([])]),
            ("best_of", json!(2), &[json!(1)]),
            ("chat_template", json!("{{ messages }}"), &[json!("")]),
            (
                "chat_template_kwargs",
                json!({"enable_thinking": true}),
                &[json!({}), json!({"enable_thinking": false})],
            ),
            ("documents", json!([{"text": "x"}]), &[json!([])]),
            ("dry_multiplier", json!(0.8), &[json!(0)]),
            ("dynatemp_range", json!(0.5), &[json!(0.0)]),
            ("early_stopping", json!(true), &[json!(false)]),
            ("ebnf", json!("root ::= x"), &[json!("")]),
            ("frequency_penalty", json!(0.5), &[json!(0)]),
            ("functions", json!([{"name": "f"}]), &[json!([])]),
            ("function_call", json!({"name": "f"}), &[json!("none"), json!("auto")]),
            ("grammar", json!("root ::= x"), &[json!("")]),
            ("guided_choice", json!(["a", "b"]), &[json!([])]),
            ("guided_grammar", json!("root ::= x"), &[json!("")]),
            ("guided_json", schema.clone(), &[]),
            ("guided_json", json!({}), &[]),
            ("guided_regex", json!("[a-z]+"), &[json!("")]),
            ("include_stop_str_in_output", json!(true), &[json!(false)]),
            ("json_schema", schema.clone(), &[]),
            ("length_penalty", json!(0.5), &[json!(1.0)]),
            ("logit_bias", json!({"5": -100}), &[json!({}), json!({"5": 0})]),
            ("logits_processors", json!(["x"]), &[json!([])]),
            ("max_new_tokens", json!(5), &[]),
            ("min_tokens", json!(3), &[json!(0)]),
            ("mirostat", json!(2), &[json!(0)]),
            ("modalities", json!(["text", "audio"]), &[json!(["text"])]),
            ("n_predict", json!(5), &[]),
            ("no_repeat_ngram_size", json!(3), &[json!(0)]),
            ("num_beams", json!(4), &[json!(1)]),
            ("presence_penalty", json!(-0.5), &[json!(0)]),
            ("prompt_logprobs", json!(1), &[]),
            ("prompt_logprobs", json!(0), &[]),
            ("reasoning_effort", json!("high"), &[json!("none")]),
            ("regex", json!("[a-z]+"), &[json!("")]),
            ("repeat_penalty", json!(1.3), &[json!(1)]),
            ("return_token_ids", json!(true), &[json!(false)]),
            ("return_tokens_as_token_ids", json!(true), &[json!(false)]),
            ("skip_special_tokens", json!(false), &[json!(true)]),
            ("spaces_between_special_tokens", json!(false), &[json!(true)]),
            ("stop_token_ids", json!([5]), &[json!([])]),
            ("structural_tag", json!("x"), &[json!("")]),
            ("structured_outputs", json!({"regex": "x"}), &[json!({})]),
            ("suffix", json!("x"), &[json!("")]),
            ("tool_choice", json!("required"), &[json!("none"), json!("auto")]),
            ("tools", json!([{"type": "function"}]), &[json!([])]),
            ("top_a", json!(0.1), &[json!(0)]),
            ("truncate_prompt_tokens", json!(5), &[]),
            ("truncate_prompt_tokens", json!(-1), &[]),
            ("typical_p", json!(0.5), &[json!(1)]),
            ("use_beam_search", json!(true), &[json!(false)]),
            ("verbosity", json!("low"), &[json!("medium")]),
            ("web_search_options", json!({}), &[]),
            ("xtc_probability", json!(0.5), &[json!(0)]),
        ],
    );
    // What changes nothing, whatever it says.
    let idle = json!({"user": "me", "store": true, "metadata": {"a": "b"}, "service_tier": "flex",
        "parallel_tool_calls": true, "prediction": {"type": "content", "content": "x"},
        "safety_identifier": "me", "prompt_cache_key": "x", "request_id": "x", "cache_prompt": true,
        "guided_decoding_backend": "xgrammar"});
    let mut body = json!({"prompt": "x", "max_tokens": 1});
    body.as_object_mut().unwrap().extend(idle.as_object().unwrap().clone());
    server.post("/v1/completions", &body).ok();
}

#[test]
fn of_embeddings() {
    let server = Server::start(&[]);
    check(
        &server,
        &[("/v1/embeddings", json!({"input": "a"}))],
        &[
            ("chat_template", json!("{{ messages }}"), &[json!("")]),
            ("embed_dtype", json!("float16"), &[json!("float32")]),
            ("embedding_type", json!("binary"), &[json!("float")]),
            ("embedding_types", json!(["int8"]), &[json!(["float"])]),
            ("endianness", json!("big"), &[json!("little"), json!("native")]),
            ("input_type", json!("query"), &[]),
            ("late_chunking", json!(true), &[json!(false)]),
            ("modality", json!("image"), &[json!("text")]),
            ("normalized", json!(false), &[json!(true)]),
            ("output_dimension", json!(5), &[]),
            ("output_dtype", json!("int8"), &[json!("float")]),
            ("prompt", json!("Find: "), &[json!("")]),
            ("prompt_name", json!("query"), &[json!("")]),
            ("task", json!("retrieval.query"), &[]),
            ("truncation", json!(true), &[json!(false)]),
            ("use_activation", json!(false), &[json!(true)]),
        ],
    );
    server.post("/v1/embeddings", &json!({"input": "a", "user": "me", "unknown": [1]})).ok();
}

#[test]
fn of_ranks() {
    let folder = with_a_yes();
    let server =
        Server::start(&["--model", folder.path().to_str().unwrap(), "--model-name", "odd"]);
    let base = json!({"query": "a", "documents": ["b"]});
    check(
        &server,
        &[("/v1/rerank", base.clone()), ("/v2/rerank", base)],
        &[
            ("activation", json!(false), &[json!(true)]),
            ("instruction", json!("Rank."), &[json!("")]),
            ("max_chunks_per_doc", json!(3), &[]),
            ("rank_fields", json!(["title"]), &[json!([])]),
            ("raw_scores", json!(true), &[json!(false)]),
            ("return_embeddings", json!(true), &[json!(false)]),
            ("softmax", json!(false), &[json!(true)]),
            ("top_k", json!(1), &[]),
            ("truncate_prompt_tokens", json!(5), &[]),
            ("truncation", json!(false), &[json!(true)]),
            ("use_activation", json!(false), &[json!(true)]),
        ],
    );
}
