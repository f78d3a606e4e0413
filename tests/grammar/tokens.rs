//! The bytes of tokens, from which grammars are followed, are those that the decoder shows.

use super::{byte_level, changed, drawn, engines, following, pieces, schemas, text};
use crate::support::{data, mistral_tokenizer};
use gritlm::Finish;
use gritlm::model::{config::Config, tokenizer::Tokenizer};
use serde_json::json;
use std::path::Path;

/// The text of every token, as the decoder has it behind another.
fn spelled_as_decoded(tokenizer: &Tokenizer, name: &str) {
    let bytes = tokenizer.token_bytes().unwrap();
    let before = ["a", "<unused0>"].into_iter().find_map(|name| tokenizer.id(name)).unwrap();
    let start = tokenizer.decode(&[before]).unwrap();
    let (mut texts, mut parts) = (0, 0);
    for (id, bytes) in (0..).zip(&bytes) {
        let decoded = tokenizer.decode(&[before, id]).unwrap();
        let added = decoded.strip_prefix(&start).unwrap();
        match bytes.as_deref().map(str::from_utf8) {
            None => assert_eq!(added, "", "{name}: {id}"),
            Some(Ok(text)) => {
                assert_eq!(added, text, "{name}: {id}");
                texts += 1;
            }
            // A part of a character: all that the decoder says of it.
            Some(Err(_)) => {
                assert!(added.contains('\u{FFFD}'), "{name}: {id}: {added:?}");
                parts += 1;
            }
        }
    }
    assert!(texts >= 128 && parts >= 128, "{name}: {texts} texts, {parts} parts of characters");
    // Parts make the characters that they are parts of.
    let spelled: Vec<u32> = "aé日"
        .bytes()
        .map(|byte| (0..).zip(&bytes).find(|(_, b)| b.as_deref() == Some(&[byte])).unwrap().0)
        .collect();
    assert_eq!(tokenizer.decode(&spelled).unwrap(), "aé日", "{name}");
}

#[test]
fn tokens_have_the_bytes_that_the_decoder_shows() {
    for engine in engines() {
        spelled_as_decoded(engine.tokenizer(), engine.name());
    }
    let mut config = Config::open(&data("mistral-tiny/config.json")).unwrap();
    let letters = byte_level().to_string();
    let path = Path::new("tokenizer.json");
    let tokenizer = Tokenizer::parse(letters.as_bytes(), path, &config).unwrap();
    spelled_as_decoded(&tokenizer, "byte level");
    let bytes = tokenizer.token_bytes().unwrap();
    let id = |name: &str| tokenizer.id(name).unwrap() as usize;
    assert_eq!(bytes[id("Ġthe")].as_deref(), Some(&b" the"[..]));
    assert_eq!(
        bytes[id("日本")].as_deref(),
        Some("日本".as_bytes()),
        "a token out of the alphabet"
    );
    assert_eq!([&bytes[0], &bytes[1], &bytes[2]], [&None; 3]);

    let mut words = byte_level();
    words["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let words = Tokenizer::parse(words.to_string().as_bytes(), path, &config).unwrap();
    let error = words.token_bytes().unwrap_err().to_string();
    assert!(error.contains("decoder") && !error.contains('\n'), "{error}");

    config.vocab = 32000;
    let mistral = Tokenizer::parse(&mistral_tokenizer(), path, &config).unwrap();
    spelled_as_decoded(&mistral, "Mistral");
}

#[test]
fn byte_level_vocabularies_follow_too() {
    let engine = changed("tokenizer.json", &byte_level());
    for (schema, check) in schemas() {
        let pieces = pieces(&engine, &following(&engine, &schema, drawn(5)));
        if pieces.last().unwrap().finish == Some(Finish::Stop) {
            check(&serde_json::from_str(&text(&pieces)).unwrap());
        }
    }
}
