//! Samples as ids: equal to the engine's, and to the original's.

use super::{encoder, engine, examples, folder, open};
use crate::support::{data, mistral_tokenizer};
use gritlm::model::config::Config;
use gritlm::model::tokenizer::Tokenizer;
use gritlm::{Device, Embed, Engine, Options, Prompt};
use gritlm_rag::{Ask, Mode, ask};
use gritlm_train::{
    Answer, Batch, Batches, Batching, Data, Encoder, Generative, Lengths, Passage, Place, Spoken,
};
use std::path::Path;

fn place() -> Place {
    Place { path: Path::new("here").into(), line: 1 }
}

fn turns(turns: &[(&str, &str)]) -> Generative {
    let turns = turns.iter().map(|(user, answer)| (user.to_string(), answer.to_string()));
    Generative { document: None, spoken: Spoken::Turns(turns.collect()), place: place() }
}

/// The text of the tokens that are learned.
fn learned(tokenizer: &Tokenizer, answer: &Answer) -> Vec<u32> {
    assert_eq!(answer.tokens.len(), answer.targets.len());
    assert_eq!(tokenizer.start(), &answer.tokens[..tokenizer.start().len()]);
    let both = answer.tokens.iter().zip(&answer.targets);
    both.filter(|(_, target)| **target).map(|(id, _)| *id).collect()
}

#[test]
fn texts_to_embed_have_the_engines_ids() {
    let odd = data("mistral-odd");
    let odd = Engine::open(odd.to_str().unwrap(), &Options::default().device(Device::Cpu)).unwrap();
    let long = "Walks folders and prints lines. größe ☃ 𝄞 ".repeat(60);
    let texts = ["chess", " two  spaces\nand a break\t", "</s> in <s> it", "☃", &long];
    for engine in [engine(), &odd] {
        let lengths = Lengths::default().query_max_len(64).passage_max_len(300);
        let encoder = Encoder::new(engine.tokenizer(), engine.config(), lengths).unwrap();
        for instruction in ["", "Find it.", "Ein größeres ☃"] {
            for text in texts {
                let how = Embed::with_instruction(instruction);
                let passage = Passage { instruction: instruction.into(), text: text.into() };
                for (ours, limit) in [
                    (encoder.query(&passage).unwrap(), 64),
                    (encoder.passage(&passage).unwrap(), 300),
                ] {
                    let how = how.clone().max_length(limit);
                    let expected = engine.encode_texts(&[text], &how).unwrap().remove(0);
                    assert_eq!((ours.tokens, ours.skip), (expected.tokens, expected.skip));
                }
            }
        }
    }
}

#[test]
fn conversations_have_the_engines_ids() {
    let (engine, encoder) = (engine(), encoder(Lengths::default()));
    let eos = engine.config().eos[0];
    let past = [("Is it a game?", "Yes, </s> chess."), ("Which one?", "größe ☃"), ("?", "")];
    let answer = encoder.answer(&turns(&past)).unwrap();
    // After each answer the ids are those of the prompt whose answer was that, and </s>.
    let owned = past.map(|(user, answer)| (user.to_string(), answer.to_string()));
    let mut expected = Vec::new();
    for (i, (text, said)) in owned.iter().enumerate() {
        let (past, text) = (owned[..i].to_vec(), text.clone());
        let asked = Prompt::Chat { past: past.clone(), text: text.clone() };
        let asked = engine.tokenize_prompt(&asked, false).unwrap();
        let begun = Prompt::Begun { past, text, answer: said.clone() };
        let begun = engine.tokenize_prompt(&begun, false).unwrap();
        assert!(answer.tokens.starts_with(&begun) && begun.starts_with(&asked));
        assert_eq!(answer.tokens[begun.len()], eos);
        // What is learned is what the engine would have to sample.
        expected.extend(begun[asked.len()..].iter().copied().chain([eos]));
        assert!(answer.targets[asked.len()..=begun.len()].iter().all(|&target| target));
    }
    assert_eq!(learned(engine.tokenizer(), &answer), expected);
    // A spelled-out </s> does not end an answer.
    assert_eq!(answer.tokens.iter().filter(|&&id| id == eos).count(), 3);
    // White space around an answer is no part of it.
    let spaced = encoder.answer(&turns(&[("Is it?", " \n It is.\n")])).unwrap();
    assert_eq!(spaced, encoder.answer(&turns(&[("Is it?", "It is.")])).unwrap());

    // Cut at the limit, wherever that is.
    for limit in 1..answer.tokens.len() + 2 {
        let cut = super::encoder(Lengths::default().generative_max_len(limit));
        let cut = cut.answer(&turns(&past)).unwrap();
        let length = limit.min(answer.tokens.len());
        assert_eq!(cut.tokens, answer.tokens[..length]);
        assert_eq!(cut.targets, answer.targets[..length]);
    }
}

#[test]
fn verbatim_texts_are_learned_whole() {
    let sample = |text: &str| Generative {
        document: None,
        spoken: Spoken::Text(text.into()),
        place: place(),
    };
    let text = " Package: pdfgrep</s>";
    let answer = encoder(Lengths::default()).answer(&sample(text)).unwrap();
    assert_eq!(answer.tokens, engine().tokenize_prompt(&Prompt::raw(text), false).unwrap());
    assert_eq!(answer.tokens.last(), engine().config().eos.first());
    assert_eq!(answer.learned(), answer.tokens.len() - 1);
    assert!(!answer.targets[0] && answer.document.is_none());
    let long = sample(&"chess ".repeat(100_000));
    let cut = encoder(Lengths::default().generative_max_len(7)).answer(&long).unwrap();
    assert_eq!((cut.tokens.len(), cut.learned()), (7, 6));
}

/// What `gritlm ask` continues from a cached document is what was learned to be continued.
#[test]
fn documents_are_continued_as_an_answer_continues_them() {
    let data = open(&examples()).unwrap();
    let (engine, encoder) = (engine(), encoder(Lengths::default()));
    for sample in (20..24).map(|i| data.text(i).unwrap()) {
        let Spoken::Turns(turns) = &sample.spoken else { panic!() };
        let text = sample.document.clone().unwrap().text;
        let passage = gritlm_rag::Passage { title: String::new(), text, kv: None };
        let how = Ask::default().mode(Mode::Doc);
        let asked = ask(engine, &turns[0].0, &how).unwrap().prepare(engine, &[passage]).unwrap();
        let answer = encoder.answer(&sample).unwrap();
        assert_eq!(answer.document.unwrap().tokens, asked.past.unwrap().tokens);
        assert!(answer.tokens.starts_with(&asked.prompt));
        let read = asked.prompt.len();
        assert_eq!(answer.targets.iter().position(|&target| target), Some(read));
        let end = answer.targets[read..].iter().position(|target| !target);
        let said = &answer.tokens[read..end.map_or(answer.tokens.len(), |n| read + n)];
        assert_eq!(said.last(), engine.config().eos.first());
        assert_eq!(engine.tokenizer().decode(said).unwrap(), turns[0].1);
    }
}

/// The original writes `<s>` and `</s>` as text and tokenizes a sample as one string.
#[test]
fn ids_are_the_originals() {
    let config = Config { vocab: 32000, ..engine().config().clone() };
    let file = Path::new("tokenizer.json");
    let tokenizer = Tokenizer::parse(&mistral_tokenizer(), file, &config).unwrap();
    let encoder = Encoder::new(&tokenizer, &config, Lengths::default()).unwrap();
    let whole = |text: &str| tokenizer.encode_continued(text).unwrap();

    let line =
        r#"{"query": ["Represent this text:", "Five women walk."], "pos": [["", "Some women"]],
        "neg": [["Represent this text:", "A man is skiing. "]]}"#
            .replace('\n', "");
    let folder = folder(&[("a.jsonl", &line)]);
    let pair = Data::open(folder.path(), &encoder, 2).unwrap().pair(0).unwrap();
    let tags = "<s><|user|>\nRepresent this text\n<|embed|>\n";
    let query = encoder.query(&pair.query).unwrap();
    assert_eq!(query.tokens, whole(&format!("{tags}Five women walk.")));
    assert_eq!(query.skip, whole(tags).len());
    let positive = encoder.passage(&pair.positives[0]).unwrap();
    assert_eq!(positive.tokens, whole("<s><|embed|>\nSome women"));
    let negative = encoder.passage(&pair.negatives[0]).unwrap();
    assert_eq!(negative.tokens, whole(&format!("{tags}A man is skiing. ")));

    let past = [("Can you explain it?", "Sure! Let's say"), (" And:\n\ncode", "x = 1;\n  y")];
    let answer = encoder.answer(&turns(&past)).unwrap();
    let first = "<s><|user|>\nCan you explain it?\n<|assistant|>\n";
    let second = "\n<|user|>\n And:\n\ncode\n<|assistant|>\n";
    let text = format!("{first}Sure! Let's say</s>{second}x = 1;\n  y</s>");
    assert_eq!(answer.tokens, whole(&text));
    assert_eq!(answer.targets.iter().position(|&target| target), Some(whole(first).len()));
    let said = learned(&tokenizer, &answer);
    assert_eq!(tokenizer.decode(&said).unwrap(), "Sure! Let's sayx = 1;\n  y");
    assert_eq!(said.iter().filter(|&&id| id == 2).count(), 2);
}

#[test]
fn batches_are_encoded_in_their_order() {
    let data = open(&examples()).unwrap();
    let encoder = encoder(Lengths::default());
    let options = Batching::default().pairs(8).generative(16).seed(1);
    let batch: Batch = Batches::new(&data, options).unwrap().batch(0).unwrap();
    let encoded = encoder.batch(&batch).unwrap();
    assert_eq!((encoded.queries.len(), encoded.passages.len(), encoded.answers.len()), (8, 16, 16));
    for (i, group) in batch.pairs.iter().enumerate() {
        assert_eq!(encoded.queries[i], encoder.query(&group.query).unwrap());
        let passages = group.passages.iter().map(|one| encoder.passage(one).unwrap());
        assert!(passages.eq(encoded.passages[2 * i..][..2].iter().cloned()));
    }
    for (sample, answer) in batch.texts.iter().zip(&encoded.answers) {
        assert_eq!(*answer, encoder.answer(sample).unwrap());
        assert_eq!(answer.document.is_some(), sample.document.is_some());
    }
    assert_eq!(encoder.batch(&Batch::default()).unwrap(), Default::default());
}
