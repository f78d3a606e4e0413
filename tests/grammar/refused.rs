//! Schemas that cannot be followed are refused in one line.

use super::{demo, drawn, pieces, text};
use gritlm::schedule::{Limits, Scheduler, Work};
use gritlm::{Grammar, Prompt};
use serde_json::json;

#[test]
fn what_cannot_be_followed_is_one_line() {
    let engine = demo();
    let deep = (0..200).fold(json!({}), |inner, _| json!({ "items": inner }));
    let chain: serde_json::Map<_, _> = (0..900)
        .map(|i| (i.to_string(), json!({ "$ref": format!("#/$defs/{}", (i + 1) % 900) })))
        .collect();
    let doubling: serde_json::Map<_, _> = (0..40)
        .map(|i| {
            let next = json!({ "$ref": format!("#/$defs/{}", i + 1), "properties": { "z": {} } });
            let both = json!({ "x": next, "y": next });
            (i.to_string(), json!({ "type": "object", "properties": both }))
        })
        .chain([("40".to_string(), json!({ "type": "object" }))])
        .collect();
    let many: serde_json::Map<_, _> = (0..1500).map(|i| (format!("p{i}"), json!({}))).collect();
    let cases = [
        (json!("string"), "expected an object, found \"string\""),
        (json!(false), "it allows nothing"),
        (json!({ "type": "strin" }), "strin"),
        (json!({ "type": "object", "properties": [] }), "properties"),
        (json!({ "not": { "type": "string" } }), "not"),
        (json!({ "type": "array", "uniqueItems": true }), "uniqueItems"),
        (json!({ "oneOf": [{ "type": "number" }, { "type": "integer" }] }), "oneOf"),
        (json!({ "type": "string", "minLength": 5, "maxLength": 2 }), "minLength (5)"),
        (json!({ "type": "object", "properties": { "a": false }, "required": ["a"] }), "'a'"),
        (json!({ "allOf": [{ "type": "string" }, { "type": "integer" }] }), "incompatible"),
        (json!({ "enum": [] }), "empty"),
        (json!({ "type": "string", "pattern": "(" }), "unclosed"),
        (json!({ "type": "string", "format": "color" }), "color"),
        (json!({ "$ref": "#/$defs/no" }), "#/$defs/no"),
        (json!({ "$ref": "https://example.org/schema" }), "https://example.org/schema"),
        (json!({ "$ref": "#" }), "no answer ever ends"),
        (json!({ "$ref": "#/$defs/0", "$defs": chain }), "no answer ever ends"),
        (
            json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] }),
            "no answer ever ends",
        ),
        (json!({ "type": "array", "items": { "$ref": "#" }, "minItems": 1 }), "ever ends"),
        (json!({ "$ref": "#/$defs/0", "$defs": doubling }), "put together"),
        (deep, "128 deep"),
        (json!({ "const": "x".repeat(70_000) }), "at most 65536 bytes, found 70012"),
        (json!({ "type": "object", "properties": many }), "items"),
        (json!({ "type": "integer", "multipleOf": 1_000_003 }), "multipleOf"),
        (json!({ "allOf": [{ "multipleOf": 991 }, { "multipleOf": 997 }] }), "multipleOf"),
    ];
    for (schema, part) in cases {
        let error = Grammar::json_schema(&engine, &schema).unwrap_err().to_string();
        assert!(error.starts_with("JSON schema: ") && error.contains(part), "{part}: {error}");
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
    }
    // None of these is too much, or without end.
    let tree: serde_json::Map<_, _> = (0..40)
        .map(|i| {
            let next = json!({ "$ref": format!("#/$defs/{}", (i + 1) % 40) });
            (i.to_string(), json!({ "type": "object", "properties": { "x": next, "y": next } }))
        })
        .collect();
    let chain: serde_json::Map<_, _> = (0..1200)
        .map(|i| (i.to_string(), json!({ "allOf": [{ "$ref": format!("#/$defs/{}", i + 1) }] })))
        .chain([("1200".to_string(), json!({ "type": "integer", "multipleOf": 0.25 }))])
        .collect();
    let many: serde_json::Map<_, _> = (0..300).map(|i| (format!("p{i}"), json!({}))).collect();
    for schema in [
        json!(true),
        json!({ "$ref": "#/$defs/0", "$defs": chain }),
        json!({ "type": "object", "properties": many }),
        json!({ "type": "object", "properties": { "a": { "$ref": "#" } } }),
        // Definitions are counted where they are used, not where they stand.
        json!({ "$defs": tree, "properties": { "a": { "$ref": "#/$defs/0" } }, "required": ["a"],
            "type": "object", "anyOf": [{ "minProperties": 1 }, { "required": ["b"] }] }),
        json!({ "enum": (0..3000).map(|i| format!("value {i}")).collect::<Vec<_>>() }),
    ] {
        Grammar::json_schema(&engine, &schema).unwrap();
    }
}

#[test]
fn a_grammar_is_its_engines_and_its_text() {
    let (engine, other) = (demo(), demo());
    let schema = json!({ "type": "boolean", "x-guidance": { "whitespace_pattern": "x+" } });
    let grammar = Grammar::json_schema(&engine, &schema).unwrap();
    assert_eq!(grammar, grammar.clone());
    assert_eq!(grammar, Grammar::json_schema(&other, &schema).unwrap());
    assert_ne!(grammar, Grammar::json_object(&engine).unwrap());
    assert_eq!(grammar.source(), schema.to_string());
    assert!(format!("{grammar:?}").contains("boolean"));
    // What the compiler would take as its options is a keyword like any unknown one.
    let how = drawn(3).grammar(Some(grammar));
    serde_json::from_str::<bool>(&text(&pieces(&engine, &how))).unwrap();
    let error = other.generate(&Prompt::raw("x"), &how).err().unwrap().to_string();
    assert!(error.contains("another engine"), "{error}");
    let scheduler = Scheduler::start(other, Limits::default()).unwrap();
    let work = Work::Generate { prompt: vec![1, 7], sampling: how, past: None };
    assert!(scheduler.submit(work.into()).unwrap_err().to_string().contains("another engine"));
}
