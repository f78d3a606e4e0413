//! The library's behaviour beyond numbers: streaming, stop texts, chat, sampling, batching, room,
//! and which checkpoints load.

use crate::support::{Reference, close, data, devices};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvSnapshot;
use gritlm::model::ops::{Mask, Match, PAGE};
use gritlm::model::reference::relative_error;
use gritlm::{
    Attn, Device, Embed, Engine, Error, Finish, Options, Piece, Pooling, Prompt, Sampling, dot,
};
use std::fs;

fn demo() -> Engine {
    Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap()
}

fn pieces(engine: &Engine, prompt: &str, how: &Sampling) -> Vec<Piece> {
    engine.generate(&Prompt::user(prompt), how).unwrap().map(Result::unwrap).collect()
}

fn said(pieces: &[Piece]) -> String {
    pieces.iter().map(|p| p.text.as_str()).collect()
}

const PROMPT: &str = "Describe the package vlc-plugin-video-output.";

#[test]
fn pieces_are_the_text() {
    let engine = demo();
    let how = Sampling::greedy().max_tokens(40);
    let all = pieces(&engine, PROMPT, &how);
    let ids: Vec<u32> = all.iter().map(|p| p.token.token).collect();
    assert_eq!(said(&all), engine.tokenizer().decode(&ids).unwrap());
    assert!(all[..39].iter().all(|p| p.finish.is_none()));
    assert_eq!(all[39].finish, Some(Finish::Length));
}

/// A tokenizer of bytes spells every letter beyond ASCII in several tokens; random tokens are mostly
/// no characters at all. Either way each piece is whole characters and nothing is lost.
#[test]
fn streaming_never_splits_a_character() {
    let engine = Reference::open("mistral-tiny").engine;
    let tokenizer = engine.tokenizer();
    for text in ["héllo wörld", "日本語のテキスト", "🦀 crab 🦀🦀", "a\u{301}"] {
        let ids = tokenizer.encode(text).unwrap();
        let mut stream = tokenizer.stream();
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(parts.iter().all(|p| !p.contains('\u{FFFD}')), "{parts:?}");
        assert_eq!(parts.concat() + &stream.finish().unwrap(), text);
    }
    let how = Sampling::default().max_tokens(200).temperature(1.5);
    let all = pieces(&engine, "x", &how);
    let ids: Vec<u32> = all.iter().map(|p| p.token.token).collect();
    assert!(ids.len() > 20 && said(&all).contains('\u{FFFD}'));
}

#[test]
fn stop_texts_may_span_tokens() {
    let engine = demo();
    let how = Sampling::greedy().max_tokens(32);
    let whole = said(&pieces(&engine, PROMPT, &how));
    // From every place a text of some length, so that it begins and ends inside tokens.
    for (start, len) in [(3, 9), (10, 1), (17, 20), (40, 5)] {
        let stop = whole[start..start + len].to_string();
        let how = how.clone().stop(vec!["not in it".into(), stop.clone()]);
        let all = pieces(&engine, PROMPT, &how);
        assert_eq!(said(&all), whole[..whole.find(&stop).unwrap()], "stop {stop:?}");
        assert_eq!(all.last().unwrap().finish, Some(Finish::Stop));
    }
    // What only looked like the beginning of a stop text comes after all.
    let how = how.stop(vec![format!("{}#", &whole[5..12])]);
    assert_eq!(said(&pieces(&engine, PROMPT, &how)), whole);
}

#[test]
fn sampling_is_seeded() {
    let engine = demo();
    let draw = |seed, temperature| {
        let how = Sampling::default().max_tokens(24).temperature(temperature).seed(seed);
        said(&pieces(&engine, PROMPT, &how))
    };
    assert_eq!(draw(1, 1.0), draw(1, 1.0));
    assert_ne!(draw(1, 1.0), draw(2, 1.0));
    // With one token left to draw from, heat changes nothing.
    let greedy = draw(0, 0.0);
    for how in [
        Sampling::default().top_k(1).temperature(2.0),
        Sampling::default().top_p(1e-6).temperature(2.0),
        Sampling::default().min_p(1.0).temperature(2.0),
    ] {
        let how = how.max_tokens(24).seed(5);
        assert_eq!(said(&pieces(&engine, PROMPT, &how)), greedy);
    }
    let how = Sampling::default().max_tokens(60).repetition_penalty(1e6);
    let mut ids: Vec<u32> = pieces(&engine, PROMPT, &how).iter().map(|p| p.token.token).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "a token was repeated");
}

#[test]
fn options_that_mean_nothing() {
    let engine = demo();
    let bad = [
        Sampling::default().temperature(-1.0),
        Sampling::default().temperature(f32::NAN),
        Sampling::default().top_p(0.0),
        Sampling::default().top_p(1.1),
        Sampling::default().min_p(-0.1),
        Sampling::default().repetition_penalty(0.0),
        Sampling::default().stop(vec![String::new()]),
    ];
    for how in bad {
        let answer = engine.generate(&Prompt::user("x"), &how);
        assert!(matches!(answer.err(), Some(Error::Option { .. })), "{how:?}");
    }
    let how = Embed::default().dimensions(Some(193));
    assert!(matches!(engine.embed(&["x"], &how), Err(Error::Option { .. })));
}

/// Two turns on one cache are the conversation as one prompt: the answers of a fresh engine on the
/// same ids.
#[test]
fn chat_goes_on_where_it_was() {
    let engine = demo();
    // As ids are continued: a chat would show no space in front.
    let how = Sampling::greedy().max_tokens(12).verbatim(true);
    let mut chat = engine.chat();
    let mut ids = engine.tokenizer().encode("<|user|>\nWhat is jaxe?\n<|assistant|>\n").unwrap();
    for next in ["In which section would it be?", "And now?"] {
        // The first question stands in `ids` already.
        let question = if chat.tokens() == 0 { "What is jaxe?" } else { next };
        if chat.tokens() > 0 {
            if !engine.tokenizer().is_eos(*ids.last().unwrap()) {
                ids.push(engine.config().eos[0]);
            }
            let turn = format!("\n<|user|>\n{next}\n<|assistant|>\n");
            ids.extend(engine.tokenizer().encode_continued(&turn).unwrap());
        }
        let answer = chat.say(question, &how).unwrap();
        assert_eq!(answer.prompt_tokens(), ids.len());
        let in_chat: Vec<Piece> = answer.map(Result::unwrap).collect();
        let prompt = Prompt::Tokens(ids.clone());
        let fresh: Vec<Piece> =
            engine.generate(&prompt, &how).unwrap().map(Result::unwrap).collect();
        assert_eq!(in_chat, fresh);
        ids.extend(fresh.iter().map(|p| p.token.token));
        assert_eq!(chat.tokens(), ids.len());
    }
}

/// An answer that is dropped half-way leaves a conversation that goes on.
#[test]
fn chat_survives_a_dropped_answer() {
    let engine = demo();
    let how = Sampling::greedy().max_tokens(12);
    let mut chat = engine.chat();
    assert!(chat.say(PROMPT, &how).unwrap().next().is_some());
    let before = chat.tokens();
    let long = "word ".repeat(3000);
    assert!(matches!(chat.say(&long, &how), Err(Error::LongPrompt { .. })));
    assert_eq!(chat.tokens(), before, "a refused turn changes nothing");
    assert!(chat.say("And?", &how).unwrap().count() > 0);
}

/// Batches by budget give what single texts give, in the order of the texts, however many and long.
#[test]
fn batching_changes_nothing() {
    let options = Options::default().device(Device::Cpu).batch_tokens(100);
    let engine = Engine::open("demo", &options).unwrap();
    let texts: Vec<String> =
        (0..60).map(|i| format!("text number {i} {}", "more ".repeat(i * 7 % 40))).collect();
    let mut calls = 0;
    let together = engine
        .embed_watched(&texts, &Embed::default(), &mut |n| {
            calls += 1;
            assert!(n > 0);
            Ok(())
        })
        .unwrap();
    assert!(calls > 10, "{calls} passes");
    for (text, embedding) in texts.iter().zip(&together) {
        assert_eq!(&engine.embed(&[text], &Embed::default()).unwrap()[0], embedding);
    }
}

#[test]
fn ten_thousand_short_texts() {
    let engine = demo();
    let texts: Vec<String> = (0..10_000).map(|i| format!("package {i}")).collect();
    let (mut done, mut largest) = (0, 0);
    let found = engine
        .embed_watched(&texts, &Embed::default(), &mut |n| {
            done += n;
            largest = largest.max(n);
            Ok(())
        })
        .unwrap();
    assert_eq!((found.len(), done), (10_000, 10_000));
    assert!(found.iter().all(|e| (dot(&e.vector, &e.vector) - 1.0).abs() < 1e-4));
    // No pass is beyond the budget: every text has at least eight tokens.
    assert!(largest <= Options::default().batch_tokens / 8, "{largest} texts in one pass");
}

#[test]
fn truncation_is_from_the_right_and_reported() {
    let engine = demo();
    let long = "alpha beta gamma delta ".repeat(40);
    let how = Embed::default().max_length(30);
    let cut = engine.embed(&[&long], &how).unwrap().remove(0);
    let whole = engine.embed(&[&long], &how.clone().max_length(1000)).unwrap().remove(0);
    assert_eq!((cut.tokens, whole.truncated), (30, 0));
    assert_eq!(cut.tokens + cut.truncated, whole.tokens);
    // What is left is the beginning: another end makes no difference, another beginning does.
    let other_end = engine.embed(&[format!("{long} omega")], &how).unwrap().remove(0);
    let other_start = engine.embed(&[format!("omega {long}")], &how).unwrap().remove(0);
    assert_eq!(cut.vector, other_end.vector);
    assert_ne!(cut.vector, other_start.vector);
}

#[test]
fn nothing_to_pool_is_an_error() {
    let engine = demo();
    let empty = engine.embed(&["one", ""], &Embed::default());
    assert!(matches!(empty, Err(Error::EmptyText { index: 1 })), "{empty:?}");
    let how = Embed::with_instruction("far too many words ".repeat(9)).max_length(16);
    assert!(matches!(engine.embed(&["one"], &how), Err(Error::LongInstruction { limit: 16, .. })));
    let spaces = engine.embed(&["    "], &Embed::default()).unwrap();
    assert!(spaces[0].vector.iter().all(|v| v.is_finite()));
}

#[test]
fn embeddings_follow_their_options() {
    let engine = demo();
    let plain = |how: Embed| engine.embed(&["edit XML documents"], &how).unwrap().remove(0).vector;
    let base = plain(Embed::default());
    let raw = plain(Embed::default().normalize(false));
    let length = dot(&raw, &raw).sqrt();
    assert!((length - 1.0).abs() > 0.1, "the raw vector has length {length}");
    let scaled: Vec<f32> = raw.iter().map(|v| v / length).collect();
    close("normalised", &scaled, &base, 1e-6);
    let few = plain(Embed::default().dimensions(Some(64)));
    let head = dot(&base[..64], &base[..64]).sqrt();
    let expected: Vec<f32> = base[..64].iter().map(|v| v / head).collect();
    close("dimensions", &few, &expected, 1e-6);
    for how in [
        Embed::default().attn(Some(Attn::Cccc)),
        Embed::default().pooling(Pooling::Cls),
        Embed::default().pooling(Pooling::LastToken),
        Embed::default().pooling(Pooling::WeightedMean),
        Embed::default().mask(Some(Mask::Bidirectional { window: Some(2) })),
        Embed::with_instruction("Find it."),
    ] {
        assert!(relative_error(&plain(how.clone()), &base) > 1e-3, "{how:?} changes nothing");
    }
}

#[test]
fn causal_embedding_caches_are_exact() {
    // In `cccc` the keys and values of the embedding pass are those of generation, bit for bit.
    let engine = demo();
    let ids = engine.tokenizer().encode("<|embed|>\nedit XML documents").unwrap();
    let run = |mask, want| {
        let mut cache = engine.cache();
        engine.run(&mut [Sequence { tokens: &ids, cache: &mut cache, mask, want }]).unwrap();
        engine.export(&cache).unwrap()
    };
    let embedding = Want::Embedding { skip: 1, pooling: Pooling::Mean, normalize: true };
    let causal = run(engine.embedding_mask(Attn::Cccc), embedding.clone());
    assert!(causal == run(engine.generation_mask(), Want::Logits));
    assert!(causal != run(engine.embedding_mask(Attn::Bbcc), embedding));
}

#[test]
fn caches_join_export_and_import() {
    let reference = Reference::open("mixtral-tiny");
    let engine = &reference.engine;
    let texts = reference.texts();
    let cache = |ids: &[u32]| {
        let mut cache = engine.cache();
        let mask = Mask::Bidirectional { window: None };
        let want = Want::Nothing;
        engine.run(&mut [Sequence { tokens: ids, cache: &mut cache, mask, want }]).unwrap();
        engine.export(&cache).unwrap()
    };
    let (a, b) = (cache(&texts[1]), cache(&texts[2]));
    let joined = KvSnapshot::concat(&[&a, &b]).unwrap();
    assert_eq!(joined.tokens(), a.tokens() + b.tokens());
    let back = engine.export(&engine.import(&joined).unwrap()).unwrap();
    assert!(back == joined, "pages do not hold what was put into them");
    // Head by head the first's vectors, then the second's.
    let [_, _, _, _, head_dim] = a.shape();
    let (x, y, z) = (a.to_f32(), b.to_f32(), joined.to_f32());
    let (m, n) = (a.tokens() * head_dim, b.tokens() * head_dim);
    for head in 0..x.len() / m {
        assert_eq!(z[head * (m + n)..][..m], x[head * m..][..m]);
        assert_eq!(z[head * (m + n) + m..][..n], y[head * n..][..n]);
    }
    let rounded = joined.to_bf16();
    assert_eq!(rounded.bytes() * 2, joined.bytes());
    close("bf16", &rounded.to_f32(), &z, 4e-3);
    let other = Reference::open("mistral-odd").engine;
    assert!(matches!(other.import(&a), Err(Error::Input { .. })));
    assert!(matches!(KvSnapshot::concat(&[]), Err(Error::Input { .. })));
}

#[test]
fn pages_are_counted_and_given_back() {
    let options = Options::default().device(Device::Cpu).kv_tokens(3 * PAGE);
    let engine = Engine::open("demo", &options).unwrap();
    let mask = Mask::Causal { window: None };
    let ids = vec![7; 2 * PAGE];
    let (mut a, mut b, mut c) = (engine.cache(), engine.cache(), engine.cache());
    fn sequence<'a>(
        tokens: &'a [u32],
        cache: &'a mut gritlm::cache::KvCache,
        mask: Mask,
    ) -> Sequence<'a> {
        Sequence { tokens, cache, mask, want: Want::Nothing }
    }
    // The second of two does not fit: neither is run, and the first's pages are given back.
    let both = engine.run(&mut [sequence(&ids, &mut a, mask), sequence(&ids, &mut b, mask)]);
    let error = both.unwrap_err();
    assert!(
        matches!(error, Error::NoRoom { needed: 256, free: 128, total: 384 }),
        "unexpected {error:?}"
    );
    assert!(a.is_empty() && b.is_empty());
    engine.run(&mut [sequence(&[7; 3 * PAGE], &mut c, mask)]).unwrap();
    assert!(engine.run(&mut [sequence(&[7], &mut a, mask)]).is_err());
    drop(c);
    engine.run(&mut [sequence(&ids, &mut a, mask)]).unwrap();
    // Embedding finds passes that fit the one page left, and gives it back each time.
    assert_eq!(engine.embed(&["one", "two", "three"], &Embed::default()).unwrap().len(), 3);
    engine.run(&mut [sequence(&[7; PAGE], &mut b, mask)]).unwrap();
    engine.embed(&["one"], &Embed::default()).unwrap_err();
    drop((a, b));
    engine.embed(&["one"; 7], &Embed::default()).unwrap();
    let long = Prompt::Tokens(vec![7; 500]);
    let refused = engine.generate(&long, &Sampling::greedy()).err().unwrap();
    assert!(refused.to_string().contains("384 of 755 more tokens"), "{refused}");
}

/// A window of 12 frees pages as it moves on, so a pool of three pages generates without end.
#[test]
fn a_window_frees_pages() {
    let options = Options::default().device(Device::Cpu).kv_tokens(3 * PAGE);
    let engine = Engine::open(data("mistral-tiny").to_str().unwrap(), &options).unwrap();
    let mut cache = engine.cache();
    let mask = engine.generation_mask();
    assert_eq!(mask, Mask::Causal { window: Some(12) });
    for _ in 0..40 {
        let sequence = Sequence { tokens: &[9; 50], cache: &mut cache, mask, want: Want::Logits };
        let output = engine.run(&mut [sequence]).unwrap().remove(0);
        assert!(matches!(output, Output::Logits(l) if l.iter().all(|v| v.is_finite())));
    }
    assert_eq!(cache.tokens(), 2000);
    assert!(matches!(engine.export(&cache), Err(Error::Input { .. })));
}

/// Checkpoints that carry `auto_map`, name the architecture `GritLM`, leave `head_dim` out or have
/// the head tied load like any other.
#[test]
fn published_variants_load() {
    let expected = Reference::open("mistral-odd");
    let embed = |engine: &Engine| engine.embed(&["a text"], &Embed::default()).unwrap().remove(0);
    let variants = [
        (r#""architectures": ["#, r#""auto_map": {"AutoModel": "m.M"}, "architectures": ["#),
        ("MistralForCausalLM", "GritLM"),
        (r#""sliding_window": null,"#, ""),
    ];
    for (from, to) in variants {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(data("mistral-odd").join(file), folder.path().join(file)).unwrap();
        }
        let config = fs::read_to_string(data("mistral-odd/config.json")).unwrap();
        assert!(config.contains(from), "{from}");
        fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        let options = Options::default().bf16_frequencies(true);
        let engine = Engine::open(folder.path().to_str().unwrap(), &options).unwrap();
        assert_eq!(embed(&engine), embed(&expected.engine));
    }
}

#[test]
fn reranking_asks_yes_or_no() {
    let engine = demo();
    let passages = ["chess", "cooking"];
    match (engine.tokenizer().id("▁yes"), engine.tokenizer().id("▁no")) {
        (Some(yes), Some(_)) => {
            let ranked = engine.rerank("board games", &passages).unwrap();
            assert_eq!(ranked.len(), 2);
            assert!(ranked[0].score >= ranked[1].score);
            let prompt = gritlm::model::prompt::rerank("board games", passages[ranked[0].index]);
            let ids = engine.tokenizer().encode(&prompt).unwrap();
            let mut cache = engine.cache();
            let mask = engine.generation_mask();
            let sequence = Sequence { tokens: &ids, cache: &mut cache, mask, want: Want::Logits };
            match engine.run(&mut [sequence]).unwrap().remove(0) {
                Output::Logits(logits) => assert_eq!(logits[yes as usize], ranked[0].score),
                other => panic!("{other:?}"),
            }
        }
        _ => {
            let refused = engine.rerank("board games", &passages).unwrap_err();
            assert!(refused.to_string().contains("\"yes\""), "{refused}");
        }
    }
}

/// Many equal products, across all stretches of a search: the first rows are the best. A corpus stays
/// on its device, and its engine's.
#[test]
fn a_corpus_is_searched_again_and_again() {
    let rows = 20_000;
    let row = |r: usize| [(r % 7) as f32, (r / 7 % 5) as f32, 1.0];
    let vectors: Vec<f32> = (0..rows).flat_map(row).collect();
    let queries = [[3.0, 2.0, 1.0], [-1.0, 0.0, 2.0], [0.0, 0.0, -1.0]];
    let expected: Vec<Vec<Match>> = queries
        .iter()
        .map(|query| {
            // Small whole numbers: exact on every device.
            let score = |r: usize| query.iter().zip(row(r)).map(|(a, b)| a * b).sum::<f32>();
            let found = |r: usize| Match { index: r as u32, score: score(r) };
            let mut all: Vec<Match> = (0..rows).map(found).collect();
            all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
            all.truncate(700);
            all
        })
        .collect();
    let mut others = Vec::new();
    for (device, _) in devices() {
        let name = device.to_string();
        let engine = Engine::open("demo", &Options::default().device(device)).unwrap();
        let corpus = engine.corpus(3, vectors.clone()).unwrap();
        assert_eq!((corpus.len(), corpus.dim()), (rows, 3));
        for _ in 0..2 {
            let found = engine.search_in(&corpus, queries.as_flattened(), 700).unwrap();
            assert!(found == expected, "{name}");
        }
        assert!(engine.search(3, queries.as_flattened(), &vectors, 700).unwrap() == expected);
        let wrong = engine.search_in(&corpus, &[1.0; 4], 1).unwrap_err().to_string();
        assert!(wrong.contains("vectors of 3") && wrong.contains("4 numbers"), "{wrong}");
        for other in &others {
            let wrong = engine.search_in(other, &[1.0; 3], 1).unwrap_err().to_string();
            assert!(wrong.contains("another engine"), "{wrong}");
        }
        others.push(engine.corpus(3, vectors.clone()).unwrap());
    }
    let engine = Engine::open("demo", &Options::default()).unwrap();
    assert!(engine.corpus(3, vec![0.0; 4]).err().unwrap().to_string().contains("vectors of 3"));
    assert!(engine.corpus(3, Vec::new()).unwrap().is_empty());
    assert!(engine.search_in(&others[0], &[1.0; 3], 1).is_err());
}
