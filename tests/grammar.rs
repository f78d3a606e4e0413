//! Answers that follow a JSON schema: they are valid, they end, and they are the same in the
//! scheduler and on the command line.

mod draws; // which token is drawn
mod refused; // schemas that cannot be followed
mod tokens; // the bytes of tokens

use crate::cli::run;
use crate::support::{Reference, data, say};
use gritlm::schedule::{Event, Events, Limits, Scheduler, Work};
use gritlm::{Device, Engine, Error, Finish, Grammar, Options, Piece, Prompt, Sampling};
use serde_json::{Value, json};

fn demo() -> Engine {
    Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap()
}

/// The demo, whose vocabulary has words, and models that spell byte by byte.
fn engines() -> Vec<Engine> {
    let tiny = ["mistral-tiny", "mistral-odd", "mixtral-tiny"].map(|n| Reference::open(n).engine);
    [demo()].into_iter().chain(tiny).collect()
}

fn drawn(seed: u64) -> Sampling {
    Sampling::default().seed(seed).temperature(1.0).max_tokens(600)
}

fn following(engine: &Engine, schema: &Value, how: Sampling) -> Sampling {
    how.grammar(Some(Grammar::json_schema(engine, schema).unwrap()))
}

fn pieces(engine: &Engine, how: &Sampling) -> Vec<Piece> {
    let prompt = Prompt::user("Describe the package pdfgrep.");
    engine.generate(&prompt, how).unwrap().map(Result::unwrap).collect()
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn tokens(pieces: &[Piece]) -> Vec<u32> {
    pieces.iter().map(|piece| piece.token.token).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn chars(value: &Value) -> usize {
    value.as_str().unwrap().chars().count()
}

/// Panics where an answer is not what the schema says.
type Check = fn(&Value);

/// Schemas with ends in sight.
fn schemas() -> Vec<(Value, Check)> {
    vec![
        (
            json!({
                "type": "object",
                "properties": {
                    "name": { "type": "string", "minLength": 2, "maxLength": 12 },
                    "age": { "type": "integer", "minimum": 0, "maximum": 120 },
                    "kind": { "enum": ["library", "program", 3, null] },
                    "free": { "type": "boolean" }
                },
                "required": ["name", "age", "kind", "free"],
                "additionalProperties": false
            }),
            |found| {
                let mut names = keys(found);
                names.sort_unstable();
                assert_eq!(names, ["age", "free", "kind", "name"]);
                assert!((2..=12).contains(&chars(&found["name"])));
                assert!((0..=120).contains(&found["age"].as_i64().unwrap()));
                let kinds = [json!("library"), json!("program"), json!(3), json!(null)];
                assert!(kinds.contains(&found["kind"]));
                assert!(found["free"].is_boolean());
            },
        ),
        (
            json!({
                "type": "array", "minItems": 1, "maxItems": 3,
                "items": {
                    "type": "array", "minItems": 2, "maxItems": 2,
                    "items": { "type": "integer", "minimum": -9, "maximum": 9 }
                }
            }),
            |found| {
                let rows = found.as_array().unwrap();
                assert!((1..=3).contains(&rows.len()));
                for row in rows {
                    assert_eq!(row.as_array().unwrap().len(), 2);
                    let small = |v: &Value| (-9..=9).contains(&v.as_i64().unwrap());
                    assert!(row.as_array().unwrap().iter().all(small));
                }
            },
        ),
        (json!({ "const": { "päckchen": ["größer", "日本", "\"\\\n"] } }), |found| {
            assert_eq!(found, &json!({ "päckchen": ["größer", "日本", "\"\\\n"] }));
        }),
        (json!({ "type": "string", "pattern": "^[а-я]{3,5}$" }), |found| {
            assert!((3..=5).contains(&chars(found)));
            assert!(found.as_str().unwrap().chars().all(|c| ('а'..='я').contains(&c)));
        }),
        (
            json!({
                "$defs": { "node": {
                    "type": "object",
                    "properties": {
                        "value": { "type": "number", "minimum": 0, "maximum": 1 },
                        "next": { "anyOf": [{ "$ref": "#/$defs/node" }, { "type": "null" }] }
                    },
                    "required": ["value", "next"], "additionalProperties": false
                } },
                "$ref": "#/$defs/node"
            }),
            |found| {
                let mut node = found;
                while !node.is_null() {
                    assert_eq!(keys(node).len(), 2);
                    assert!((0.0..=1.0).contains(&node["value"].as_f64().unwrap()));
                    node = &node["next"];
                }
            },
        ),
        (
            json!({ "oneOf": [
                { "type": "object", "properties": { "a": { "const": 1 } }, "required": ["a"],
                  "additionalProperties": false },
                { "type": "integer", "minimum": 10, "maximum": 99, "multipleOf": 7 }
            ] }),
            |found| match found.as_i64() {
                Some(n) => assert!((10..=99).contains(&n) && n % 7 == 0),
                None => assert_eq!(found, &json!({ "a": 1 })),
            },
        ),
    ]
}

#[test]
fn finished_answers_follow_the_schema() {
    let (mut finished, mut all) = (0, 0);
    for engine in engines() {
        for (schema, check) in schemas() {
            let grammar = Grammar::json_schema(&engine, &schema).unwrap();
            for how in [drawn(1), drawn(2), drawn(3), drawn(0).temperature(0.0)] {
                let how = how.grammar(Some(grammar.clone()));
                let pieces = pieces(&engine, &how);
                let (text, last) = (text(&pieces), pieces.last().unwrap());
                let eos = |piece: &&Piece| engine.tokenizer().is_eos(piece.token.token);
                assert!(pieces.iter().rev().skip(1).find(eos).is_none(), "{text}");
                all += 1;
                match last.finish.unwrap() {
                    Finish::Stop => check(&serde_json::from_str(&text).unwrap_or_else(|e| {
                        panic!("{}: {e}: {text:?} for {schema}", engine.name())
                    })),
                    Finish::Length => {
                        assert_eq!(pieces.len(), 600);
                        // Cut off, and else right: nothing but the end is missing.
                        let error = serde_json::from_str::<Value>(&text).unwrap_err();
                        assert!(error.is_eof(), "{text:?}: {error}");
                    }
                }
                finished += usize::from(last.finish == Some(Finish::Stop));
                // The same again.
                assert_eq!(tokens(&self::pieces(&engine, &how)), tokens(&pieces));
            }
        }
    }
    say(&format!("answers that followed a schema: {finished} of {all} to their end"));
    assert!(finished * 10 > all * 9, "{finished} of {all}");
}

/// A vocabulary in GPT-2's letters, of all bytes and some words.
fn byte_level() -> Value {
    let shown = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let (seen, hidden): (Vec<u8>, Vec<u8>) = (0..=255).partition(shown);
    let mut names: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    names.extend(seen.iter().map(|&b| char::from(b).to_string()));
    names.extend((0..hidden.len() as u32).map(|i| char::from_u32(256 + i).unwrap().to_string()));
    names.extend(["Ġthe", "{\"", "\":", "Ġ{", "Ċ", "日本", "ĠÃ", "true"].map(String::from));
    let mut vocab = serde_json::Map::new();
    for name in names {
        let id = vocab.len();
        vocab.entry(name).or_insert(id.into());
    }
    let added = ["<unk>", "<s>", "</s>"].map(|name| {
        json!({ "id": vocab[name], "content": name, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false })
    });
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "byte_fallback": false,
            "vocab": vocab, "merges": [] },
    })
}

/// `mistral-tiny` with another file in place of its own.
fn changed(file: &str, text: &Value) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(data("mistral-tiny").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join(file), text.to_string()).unwrap();
    let options = Options::default().device(Device::Cpu);
    // The weights stay mapped.
    Engine::open(folder.path().to_str().unwrap(), &options).unwrap()
}

#[test]
fn an_answer_ends_when_it_is_complete() {
    let engine = demo();
    let object = json!({ "type": "object", "properties": { "a": { "const": 1 } },
        "required": ["a"], "additionalProperties": false });
    // Nothing can follow: the end costs no token.
    let found = pieces(&engine, &following(&engine, &object, drawn(1)));
    assert_eq!(found.last().unwrap().finish, Some(Finish::Stop));
    assert!(text(&found).ends_with('}'));
    // More digits could follow, so the model says when. Nor does it go on if it is to ignore that.
    let spells = Reference::open("mistral-tiny").engine;
    let integer = json!({ "type": "integer", "minimum": 1, "maximum": 999_999_999_999_999_u64 });
    let mut ended = 0;
    for seed in 0..12 {
        let how = following(&spells, &integer, drawn(seed));
        let found = pieces(&spells, &how);
        let (last, number) = (found.last().unwrap(), text(&found).trim().to_string());
        assert_eq!(last.finish, Some(Finish::Stop));
        assert!(number.parse::<u64>().unwrap() <= 999_999_999_999_999);
        assert_eq!(spells.tokenizer().is_eos(last.token.token), number.len() < 15, "{number}");
        assert_eq!(pieces(&spells, &how.ignore_eos(true)), found);
        ended += usize::from(number.len() < 15);
    }
    assert!(ended > 1);
    // Cut off.
    let how = following(&engine, &object, drawn(1).max_tokens(3));
    let cut = pieces(&engine, &how);
    assert_eq!((cut.len(), cut[2].finish), (3, Some(Finish::Length)));
    // The last token that may be drawn completes it.
    let whole = pieces(&engine, &how.clone().max_tokens(99)).len();
    let how = how.max_tokens(whole);
    assert_eq!(pieces(&engine, &how).last().unwrap().finish, Some(Finish::Stop));
    // A stop text ends it before.
    let how = how.stop(vec!["\"a".into()]);
    let stopped = pieces(&engine, &how);
    assert_eq!(stopped.last().unwrap().finish, Some(Finish::Stop));
    assert!(text(&stopped).trim() == "{", "{:?}", text(&stopped));
}

/// Every token that ends an answer ends it only where it is complete, whatever it spells.
#[test]
fn any_of_several_ends() {
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(data("mistral-tiny/config.json")).unwrap()).unwrap();
    // The letters a, e and 1, and the usual one.
    config["eos_token_id"] = json!([2, 3 + 97, 3 + 101, 3 + 49]);
    let engine = changed("config.json", &config);
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let schema = json!({ "type": ["integer", "string"], "maxLength": 40 });
        let how = following(&engine, &schema, drawn(seed));
        let found = pieces(&engine, &how);
        assert_eq!(pieces(&engine, &how.ignore_eos(true)), found);
        let text = text(&found);
        let (last, others) = found.split_last().unwrap();
        assert!(!others.iter().any(|p| engine.tokenizer().is_eos(p.token.token)), "{text:?}");
        assert_eq!(last.finish, Some(Finish::Stop));
        serde_json::from_str::<f64>(&text)
            .map(drop)
            .or_else(|_| serde_json::from_str::<String>(&text).map(drop))
            .unwrap_or_else(|e| panic!("{e}: {text:?}"));
        if engine.tokenizer().is_eos(last.token.token) {
            ends.insert(last.token.token);
        }
    }
    assert!(ends.len() > 1, "{ends:?}");
}

fn outcome(events: Events) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::new();
    for event in events {
        match event {
            Event::Piece(piece) => pieces.push(piece),
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    Ok(pieces)
}

/// A pattern with more states than may be looked at in a step.
fn explosive() -> Value {
    json!({ "type": "string", "pattern": "(.*[^~].{30}){20}" })
}

/// Among other requests an answer is what it is alone; one whose grammar gives up harms no other,
/// not even one that follows the same grammar.
#[test]
fn in_the_scheduler_as_alone() {
    for engine in [demo(), Reference::open("mistral-tiny").engine] {
        let mut all = Vec::new();
        for (i, (schema, _)) in schemas().into_iter().enumerate() {
            for (j, temperature) in [0.0, 1.0, 1.0].into_iter().enumerate() {
                let how = drawn(j as u64);
                let how = how.temperature(temperature).max_tokens(60).logprobs(2).verbatim(true);
                all.push((i * 7 + j, following(&engine, &schema, how.clone())));
                all.push((i * 7 + j, how));
            }
        }
        let prompt = |n: usize| {
            let text = "Describe the package. ".repeat(1 + n);
            engine.tokenize_prompt(&Prompt::user(text), false).unwrap()
        };
        let all: Vec<_> = all
            .into_iter()
            .map(|(n, how)| {
                let prompt = prompt(n);
                let answer = engine.generate(&Prompt::Tokens(prompt.clone()), &how).unwrap();
                (prompt, how, answer.map(Result::unwrap).collect::<Vec<_>>())
            })
            .collect();
        let bad = following(&engine, &explosive(), drawn(1).max_tokens(2000));
        let other = prompt(1);
        let limits = Limits::default().batch_tokens(64);
        let scheduler = Scheduler::start(engine, limits).unwrap();
        let submit = |prompt: &[u32], how: &Sampling| {
            let work =
                Work::Generate { prompt: prompt.to_vec(), sampling: how.clone(), past: None };
            scheduler.submit(work.into()).unwrap()
        };
        let failing = submit(&other, &bad);
        let events: Vec<_> = all.iter().map(|(prompt, how, _)| submit(prompt, how)).collect();
        for ((.., expected), events) in all.iter().zip(events) {
            assert_eq!(&outcome(events).unwrap(), expected);
        }
        let error = outcome(failing).unwrap_err().to_string();
        assert!(error.contains("grammar") && !error.contains('\n'), "{error}");
        // Another that ends before the grammar gives up.
        let short = submit(&other, &bad.clone().max_tokens(4));
        assert_eq!(outcome(short).unwrap().len(), 4);
        scheduler.drain();
    }
}

#[test]
fn any_object_and_a_conversation() {
    let engine = demo();
    let grammar = Some(Grammar::json_object(&engine).unwrap());
    let how = drawn(7).grammar(grammar);
    let mut chat = engine.chat();
    for turn in ["Describe the package pdfgrep.", "And the next?", "And now?"] {
        let pieces: Vec<Piece> = chat.say(turn, &how).unwrap().map(Result::unwrap).collect();
        if pieces.last().unwrap().finish == Some(Finish::Stop) {
            assert!(serde_json::from_str::<Value>(&text(&pieces)).unwrap().is_object());
        }
        assert!(text(&pieces).trim_start().starts_with('{'));
    }
}

#[test]
fn on_the_command_line() {
    let schema = r#" {"type": "object", "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"], "additionalProperties": false}"#;
    let ask = ["generate", "--device", "cpu", "--prompt", "Describe it.", "--json-schema"];
    let said = run(&[&ask[..], &[schema]].concat(), "").ok();
    let found: Value = serde_json::from_str(&said).unwrap();
    assert!(found == json!({ "n": 1 }) || found == json!({ "n": 2 }), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schema.json");
    let path = file.to_str().unwrap();
    std::fs::write(&file, schema).unwrap();
    assert_eq!(run(&[&ask[..], &[path]].concat(), "").ok(), said);
    let object = run(&[&ask[..], &[path, "--format", "json"]].concat(), "").ok();
    let object: Value = serde_json::from_str(&object).unwrap();
    assert_eq!(object["text"], said.trim_end_matches('\n'));
    assert_eq!(object["finish_reason"], "stop");

    std::fs::write(&file, "{\"type\": ").unwrap();
    run(&[&ask[..], &[path]].concat(), "").fails(1, &["schema.json", "EOF"]);
    run(&[&ask[..], &["{]"]].concat(), "").fails(1, &["--json-schema", "line 1"]);
    run(&[&ask[..], &["no-such-file.json"]].concat(), "").fails(1, &["no-such-file.json"]);
    run(&[&ask[..], &["{\"type\": \"strin\"}"]].concat(), "").fails(1, &["JSON schema", "strin"]);
    assert!(run(&["generate", "--help"], "").ok().contains("--json-schema"));
}
