//! Answering from documents: every mode against a slow, obvious twin; exactness with causal
//! embedding; what is counted.

mod joins; // joined caches

use crate::support::{Reference, close, data, two_devices};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvSnapshot;
use gritlm::model::ops::Mask;
use gritlm::{Attn, Engine, Options, Sampling};
use gritlm_rag::Error;
use gritlm_rag::{Ask, Mode, Order, Part, Passage, Positions, Usage, ask, join};

const MODELS: [&str; 3] = ["mistral-tiny", "mistral-odd", "mixtral-tiny"];
/// Some of its characters, and of the first document's, are in nothing else.
const QUERY: &str = "Which tool captures packets? 0123 XYZ";
const FOUND: [(&str, &str); 3] = [
    ("tcpdump", "reads packets off the wire: 4567 QJV"),
    ("", "A text without title."),
    ("xboard", "Plays chess."),
];
const NEW_TOKENS: usize = 12;
/// No window, which in one model would hide what the modes differ in.
const UNLIMITED: Mask = Mask::Causal { window: None };

fn passages(count: usize) -> Vec<Passage> {
    let passage =
        |(title, text): (&str, &str)| Passage { title: title.into(), text: text.into(), kv: None };
    FOUND[..count].iter().copied().map(passage).collect()
}

/// The passages with caches, as an index would have kept them.
fn stored(engine: &Engine, attn: Attn, count: usize) -> Vec<Passage> {
    let mut all = passages(count);
    for passage in &mut all {
        let text = match passage.title.as_str() {
            "" => passage.text.clone(),
            title => format!("{title} {}", passage.text),
        };
        let ids = ids(engine, true, &format!("<|embed|>\n{text}"));
        let cache = pass(engine, &ids, engine.embedding_mask(attn));
        passage.kv = Some(cache.into());
    }
    all
}

fn ids(engine: &Engine, starts: bool, text: &str) -> Vec<u32> {
    let mut ids = if starts { vec![engine.config().bos] } else { vec![] };
    ids.extend(engine.tokenizer().encode_continued(text).unwrap());
    ids
}

fn pass(engine: &Engine, tokens: &[u32], mask: Mask) -> KvSnapshot {
    let mut cache = engine.cache();
    engine.run(&mut [Sequence { tokens, cache: &mut cache, mask, want: Want::Nothing }]).unwrap();
    engine.export(&cache).unwrap()
}

/// Tokens and the logarithms of their probabilities.
type Said = (Vec<u32>, Vec<f32>);

/// On top of what `cache` holds, one pass per token, the largest logit each time.
fn greedy(engine: &Engine, past: Option<&KvSnapshot>, prompt: &[u32], count: usize) -> Said {
    let mut cache = past.map_or_else(|| engine.cache(), |past| engine.import(past).unwrap());
    let (mut next, mut said) = (prompt.to_vec(), (vec![], vec![]));
    while said.0.len() < count {
        let (mask, want) = (UNLIMITED, Want::Logits);
        let sequence = Sequence { tokens: &next, cache: &mut cache, mask, want };
        let Output::Logits(logits) = engine.run(&mut [sequence]).unwrap().remove(0) else {
            panic!("expected logits");
        };
        let mut best = 0;
        for (id, &logit) in logits.iter().enumerate() {
            if logit > logits[best] {
                best = id;
            }
        }
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        said.0.push(best as u32);
        said.1.push((f64::from(logits[best]) - sum.ln()) as f32);
        next = vec![best as u32];
    }
    said
}

/// What is kept of a part, and at which position its first kept key is to stand (None: as it is).
struct Piece {
    cache: KvSnapshot,
    skip: usize,
    moved: i64,
}

/// One number after the other.
fn put_together(pieces: &[Piece], frequencies: &[f32]) -> KvSnapshot {
    let [layers, _, kv_heads, _, head_dim] = pieces[0].cache.shape();
    let mut values = Vec::new();
    for layer in 0..layers {
        for which in 0..2 {
            for head in 0..kv_heads {
                for piece in pieces {
                    let (all, tokens) = (piece.cache.to_f32(), piece.cache.tokens());
                    for t in piece.skip..tokens {
                        let row = ((layer * 2 + which) * kv_heads + head) * tokens + t;
                        let row = &all[row * head_dim..][..head_dim];
                        for d in 0..head_dim {
                            let half = head_dim / 2;
                            let turn = f64::from(frequencies[d % half]) * piece.moved as f64;
                            let turned = match d < half {
                                true => {
                                    f64::from(row[d]) * turn.cos()
                                        - f64::from(row[d + half]) * turn.sin()
                                }
                                false => {
                                    f64::from(row[d]) * turn.cos()
                                        + f64::from(row[d - half]) * turn.sin()
                                }
                            };
                            values.push(if which == 0 { turned as f32 } else { row[d] });
                        }
                    }
                }
            }
        }
    }
    let tokens = pieces.iter().map(|p| p.cache.tokens() - p.skip).sum();
    KvSnapshot::from_f32([layers, 2, kv_heads, tokens, head_dim], values).unwrap()
}

const BEFORE: &str = "Optionally using the prior context answer the query prior to it";
const AFTER: &str = "Answer the prior query while optionally using the context prior to it";

/// The mode spelled out: every prompt, pass and join.
fn twin(engine: &Engine, attn: Attn, how: &Ask, count: usize) -> (Said, Usage) {
    let texts: Vec<String> = FOUND[..count]
        .iter()
        .map(|(title, text)| format!("{title} {text}").trim_start().to_string())
        .collect();
    let documents = texts.join("\n\n");
    let mask = engine.embedding_mask(attn);
    let embedded = |text: &str| ids(engine, true, &format!("<|embed|>\n{text}"));
    let query = embedded(QUERY);
    let query_piece = || (pass(engine, &query, mask), 0);
    let document_pieces =
        |skip| texts.iter().map(move |text| (pass(engine, &embedded(text), mask), skip));
    let (pieces, rest): (Vec<(KvSnapshot, usize)>, String) = match how.mode {
        Mode::Plain(Order::QueryDoc) => {
            (vec![], format!("<|user|>\n{QUERY}\n\n{documents}\n\n{BEFORE}\n<|assistant|>\n"))
        }
        Mode::Plain(Order::DocQuery) => {
            (vec![], format!("<|user|>\n{documents}\n\n{QUERY}\n\n{AFTER}\n<|assistant|>\n"))
        }
        Mode::Query => {
            (vec![query_piece()], format!("\n<|user|>\n{documents}\n\n{BEFORE}\n<|assistant|>\n"))
        }
        Mode::Doc => (
            document_pieces(0).collect(),
            format!("\n<|user|>\n{QUERY}\n\n{AFTER}\n<|assistant|>\n"),
        ),
        Mode::QueryDoc => (
            std::iter::once(query_piece()).chain(document_pieces(1)).collect(),
            format!("\n<|user|>\n{BEFORE}\n<|assistant|>\n"),
        ),
        Mode::DocQuery => (
            document_pieces(0).chain(std::iter::once(query_piece())).collect(),
            format!("\n<|user|>\n{AFTER}\n<|assistant|>\n"),
        ),
    };
    let mut position = 0;
    let pieces: Vec<Piece> = pieces
        .into_iter()
        .map(|(cache, skip)| {
            let first = if how.positions == Positions::Turned { position } else { 0 };
            position += cache.tokens() as i64 - skip as i64;
            Piece { cache, skip, moved: first - skip as i64 }
        })
        .collect();
    let past = (!pieces.is_empty()).then(|| put_together(&pieces, &engine.frequencies()));
    let rest = ids(engine, past.is_none(), &format!("{rest}{}", how.answer_prefix));
    let usage = Usage {
        tokens_computed: query.len() + rest.len(),
        tokens_reused: past.as_ref().map_or(0, KvSnapshot::tokens),
        ..Usage::default()
    };
    (greedy(engine, past.as_ref(), &rest, NEW_TOKENS), usage)
}

fn sampling() -> Sampling {
    Sampling::greedy().max_tokens(NEW_TOKENS).ignore_eos(true)
}

fn answer(engine: &Engine, how: &Ask, documents: &[Passage], draw: &Sampling) -> (Said, Usage) {
    let mut answer = ask(engine, QUERY, how).unwrap().answer(engine, documents, draw).unwrap();
    let said = (&mut answer).map(|piece| piece.unwrap().token).map(|t| (t.token, t.logprob));
    let said = said.unzip();
    (said, answer.usage().clone())
}

fn same(name: &str, (tokens, logprobs): &Said, (expected, near): &Said) {
    assert_eq!(tokens, expected, "{name}");
    for (found, expected) in logprobs.iter().zip(near) {
        assert!((found - expected).abs() < 1e-4, "{name}: {found} for {expected}");
    }
}

#[test]
fn every_mode_as_its_slow_twin() {
    for (device, model) in two_devices().iter().flat_map(|(d, _)| MODELS.map(|m| (d, m))) {
        let reference = Reference::open_on(model, device.clone());
        let engine = &reference.engine;
        let mut all = Vec::new();
        for (mode, count) in Mode::ALL.iter().flat_map(|&m| [1, 3].map(|n| (m, n))) {
            for positions in [Positions::Turned, Positions::AsPublished] {
                let prefix = if count == 1 { "The answer is" } else { "" };
                let how = Ask::default().mode(mode).positions(positions).answer_prefix(prefix);
                let name = format!("{model} on {device}, {mode:?} {positions:?} of {count}");
                let (expected, counted) = twin(engine, Attn::Bbcc, &how, count);
                let documents = stored(engine, Attn::Bbcc, count);
                let draw = sampling().mask(Some(UNLIMITED));
                let (said, usage) = answer(engine, &how, &documents, &draw);
                same(&name, &said, &expected);
                let found = (usage.tokens_computed, usage.tokens_reused);
                assert_eq!(found, (counted.tokens_computed, counted.tokens_reused), "{name}");
                assert_eq!((usage.recomputed, usage.bytes_read), (0, 0), "{name}");
                all.push((mode, count, positions, said));
            }
        }
        // The modes are not the same: otherwise all this proves nothing.
        for (i, (mode, count, positions, said)) in all.iter().enumerate() {
            for (other, of, at, words) in &all[..i] {
                let joins =
                    |mode: &Mode| mode.reuses_documents() && (*count > 1 || *mode != Mode::Doc);
                let differ = mode != other || count != of || (positions != at && joins(mode));
                assert_eq!(said != words, differ, "{model}: {mode:?} {count} {positions:?}");
            }
        }
    }
}

/// What no store has is computed, and counted as such; the answer is the same.
#[test]
fn missing_caches_are_computed() {
    let reference = Reference::open("mistral-odd");
    let engine = &reference.engine;
    for mode in Mode::ALL {
        let how = Ask::default().mode(mode);
        let mut documents = stored(engine, Attn::Bbcc, 2);
        let (expected, with) = answer(engine, &how, &documents, &sampling());
        documents[1].kv = None;
        let (said, without) = answer(engine, &how, &documents, &sampling());
        assert!(said == expected, "{mode:?}");
        let computed = usize::from(mode.reuses_documents());
        assert_eq!(without.recomputed, computed);
        let tokens = ids(engine, true, &format!("<|embed|>\n{}", FOUND[1].1)).len();
        assert_eq!(without.tokens_computed, with.tokens_computed + computed * tokens);
        assert_eq!(without.tokens_reused, with.tokens_reused);
    }
}

/// With causal embedding a pass's cache is what reading the same tokens would have made: on the CPU
/// the same bits, and so is every answer, also with a penalty (here a premium) on what was read.
#[test]
fn causal_caches_change_nothing() {
    for (device, bound) in two_devices() {
        for model in MODELS {
            let reference = Reference::open_on(model, device.clone());
            let engine = &reference.engine;
            let mask = engine.embedding_mask(Attn::Cccc);
            for penalty in [1.0, 0.05] {
                let draw = sampling().repetition_penalty(penalty);
                let documents = stored(engine, Attn::Cccc, 1);
                let text = format!("{} {}", FOUND[0].0, FOUND[0].1);
                for (mode, first, rest) in [
                    (
                        Mode::Query,
                        QUERY,
                        format!("\n<|user|>\n{text}\n\n{BEFORE}\n<|assistant|>\n"),
                    ),
                    (Mode::Doc, &text, format!("\n<|user|>\n{QUERY}\n\n{AFTER}\n<|assistant|>\n")),
                ] {
                    let mut plain = ids(engine, true, &format!("<|embed|>\n{first}"));
                    let reused = plain.len();
                    plain.extend(ids(engine, false, &rest));
                    let prompt = gritlm::Prompt::Tokens(plain.clone());
                    let read: Said = engine
                        .generate(&prompt, &draw)
                        .unwrap()
                        .map(|piece| piece.unwrap().token)
                        .map(|t| (t.token, t.logprob))
                        .unzip();
                    let how = Ask::default().mode(mode).attn(Some(Attn::Cccc));
                    let (said, usage) = answer(engine, &how, &documents, &draw);
                    assert_eq!(usage.tokens_reused, reused);
                    let name = format!("{model} on {device}, {mode:?}");
                    same(&name, &said, &read);
                    if device == gritlm::Device::Cpu {
                        assert!(said == read, "{name}: other bits");
                    }
                    let logits = |past: usize| {
                        let mut cache = engine.cache();
                        if past > 0 {
                            cache = engine.import(&pass(engine, &plain[..past], mask)).unwrap();
                        }
                        let mask = engine.generation_mask();
                        let (tokens, want) = (&plain[past..], Want::Logits);
                        let sequence = Sequence { tokens, cache: &mut cache, mask, want };
                        match engine.run(&mut [sequence]).unwrap().remove(0) {
                            Output::Logits(logits) => logits,
                            other => panic!("{other:?}"),
                        }
                    };
                    close(&name, &logits(reused), &logits(0), bound);
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let (a, b) = (Reference::open("mistral-odd"), Reference::open("mistral-tiny"));
    let (a, b) = (&a.engine, &b.engine);
    let both = Mask::Bidirectional { window: None };
    let caches = [a, b].map(|e| pass(e, &ids(e, true, "x"), both));
    let part = |cache, skip| Part { cache, skip };
    let line = |error: Error| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    };
    let refused =
        |parts: &[Part<'_>]| line(join(parts, Positions::Turned, &a.frequencies()).unwrap_err());
    assert!(refused(&[]).contains("at least one"));
    assert!(refused(&[part(&caches[0], 0), part(&caches[1], 0)]).contains("expected shape"));
    let tokens = caches[0].tokens();
    assert!(refused(&[part(&caches[0], tokens)]).contains("left out"));
    assert!(refused(&[part(&caches[0], usize::MAX)]).contains("left out"));
    let few = join(&[part(&caches[0], 0)], Positions::Turned, &[1.0]).unwrap_err();
    assert!(line(few).contains("frequencies"));

    let how = Ask::default().mode(Mode::Doc);
    let strange = Passage { kv: Some(caches[1].clone().into()), ..passages(1).remove(0) };
    let error = ask(a, QUERY, &how).unwrap().answer(a, &[strange], &sampling()).err().unwrap();
    assert!(line(error).contains("expected shape"));
    assert!(line(ask(a, "", &how).err().unwrap()).contains("empty"));
    let long = "x".repeat(a.config().max_positions);
    assert!(line(ask(a, &long, &how).err().unwrap()).contains("positions"));

    // What was refused holds no pages.
    let small = Options::default().kv_tokens(256);
    let small = Engine::open(data("mistral-odd").to_str().unwrap(), &small).unwrap();
    let wide = Passage { text: "y".repeat(300), ..Passage::default() };
    for _ in 0..3 {
        let error = ask(&small, QUERY, &how).unwrap().answer(
            &small,
            std::slice::from_ref(&wide),
            &sampling(),
        );
        assert!(line(error.err().unwrap()).contains("room"));
        ask(&small, QUERY, &how)
            .unwrap()
            .answer(&small, &passages(1), &sampling())
            .unwrap()
            .count();
    }
}

/// Without documents the question is a prompt like any other.
#[test]
fn no_documents_no_retrieval() {
    let engine = Engine::open("demo", &Options::default()).unwrap();
    let prompt = gritlm::Prompt::user(QUERY);
    let expected: Vec<u32> =
        engine.generate(&prompt, &sampling()).unwrap().map(|p| p.unwrap().token.token).collect();
    for mode in Mode::ALL {
        let ((tokens, _), usage) = answer(&engine, &Ask::default().mode(mode), &[], &sampling());
        assert_eq!((tokens, usage.tokens_reused), (expected.clone(), 0));
    }
}
