//! Which samples each step sees.

use super::{examples, folder, open, pairs, texts};
use crate::train_data::encoder;
use gritlm_train::{Batch, Batches, Batching, Data, Lengths};
use std::collections::{HashMap, HashSet};

fn queries(batch: &Batch) -> Vec<String> {
    batch.pairs.iter().map(|group| group.query.text.clone()).collect()
}

fn lines(batch: &Batch) -> Vec<usize> {
    batch.texts.iter().map(|sample| sample.place.line).collect()
}

#[test]
fn a_step_depends_on_nothing_before_it() {
    let folder = folder(&[("a.jsonl", &pairs("a", 10_000)), ("t.jsonl", &texts(700))]);
    let data = open(folder.path()).unwrap();
    let options = Batching::default().pairs(64).generative(8).seed(3);
    let steps = [7, 155, 156, 157, 400, 0, 1_000_000];
    let one = |options, step| Batches::new(&data, options).unwrap().batch(step).unwrap();
    let batches = Batches::new(&data, options).unwrap();
    for step in 0..160 {
        batches.batch(step).unwrap();
    }
    for step in steps {
        let batch = batches.batch(step).unwrap();
        assert_eq!(batch, one(options, step), "step {step}");
        assert_eq!((batch.pairs.len(), batch.texts.len()), (64, 8));
        assert_ne!(queries(&batch), queries(&one(options.seed(4), step)));
        // One half's size does not change the other half.
        assert_eq!(batch.pairs, one(options.generative(3), step).pairs);
        assert_eq!(batch.texts, one(options.pairs(2), step).texts);
    }
    // The same files opened again, on any number of threads.
    let again = open(folder.path()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let alone = pool.install(|| Batches::new(&again, options).unwrap().batch(7).unwrap());
    assert_eq!(alone.pairs, batches.batch(7).unwrap().pairs);
}

#[test]
fn an_epoch_has_each_pair_once_and_a_batch_one_file() {
    let files = [("a.jsonl", 100), ("b.jsonl", 150), ("c.jsonl", 50), ("d.jsonl", 3)];
    let texts = files.map(|(name, count)| (name, pairs(name, count)));
    let folder = folder(&texts.each_ref().map(|(name, text)| (*name, text.as_str())));
    let data = open(folder.path()).unwrap();
    let batches = Batches::new(&data, Batching::default().pairs(8)).unwrap();
    // 12 + 18 + 6 batches of one file; 4 + 6 + 2 + 3 pairs are left, for one more.
    assert_eq!((data.pairs(), batches.epoch()), (303, Some(37)));
    assert_eq!(batches.options().generative, 0);
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let (mut seen, mut of_one, mut order) = (HashSet::new(), HashMap::new(), Vec::new());
        for step in 0..37 {
            let batch = batches.batch(epoch * 37 + step).unwrap();
            let file = |query: &String| query.split(' ').next().unwrap().to_string();
            let queries = queries(&batch);
            let found: HashSet<String> = queries.iter().map(file).collect();
            if found.len() == 1 {
                *of_one.entry(file(&queries[0])).or_insert(0) += 1;
            }
            assert!(batch.texts.is_empty() && queries.len() == 8);
            order.extend(queries.clone());
            assert!(queries.into_iter().all(|query| seen.insert(query)), "seen twice");
        }
        assert_eq!(seen.len(), 37 * 8);
        let expected = [("a.jsonl", 12), ("b.jsonl", 18), ("c.jsonl", 6)];
        assert_eq!(of_one, expected.map(|(name, n)| (name.to_string(), n)).into());
        // Files take turns.
        let first: HashSet<&str> = order[..80].iter().map(|q| &q[..1]).collect();
        assert!(first.len() > 1, "{first:?}");
        orders.push(order);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
}

#[test]
fn passages_are_drawn_again_each_epoch() {
    let list =
        |name: &str, n| (0..n).map(|i| format!("\"{name}{i}\"")).collect::<Vec<_>>().join(",");
    let line = |query: &str, pos, neg| {
        let (pos, neg) = (list("p", pos), list("n", neg));
        format!("{{\"query\": \"{query}\", \"pos\": [{pos}], \"neg\": [{neg}]}}\n")
    };
    let folder = folder(&[("a.jsonl", &[line("q", 4, 6), line("r", 1, 2)].concat())]);
    let data = Data::open(folder.path(), &encoder(Lengths::default()), 6).unwrap();
    let batches = Batches::new(&data, Batching::default().pairs(2)).unwrap();
    let (mut positives, mut negatives) = (HashSet::new(), HashMap::new());
    for step in 0..200 {
        for group in batches.batch(step).unwrap().pairs {
            assert_eq!(group.passages.len(), 6);
            let texts: Vec<&str> = group.passages.iter().map(|one| one.text.as_str()).collect();
            assert!(texts[0].starts_with('p') && texts[1..].iter().all(|t| t.starts_with('n')));
            let distinct: HashSet<&str> = texts[1..].iter().copied().collect();
            if group.query.text == "q" {
                assert_eq!(distinct.len(), 5, "one was drawn twice");
                positives.insert(texts[0].to_string());
                for text in distinct {
                    *negatives.entry(text.to_string()).or_insert(0) += 1;
                }
            } else {
                // Five of two, each three times.
                assert_eq!(distinct.len(), 2, "{texts:?}");
            }
        }
    }
    assert_eq!(positives.len(), 4);
    // 5/6 of 200 steps, with a standard deviation of 5.
    assert_eq!(negatives.len(), 6);
    assert!(negatives.values().all(|n| (140..195).contains(n)), "{negatives:?}");
}

#[test]
fn texts_come_back_when_all_were_seen() {
    let folder = folder(&[("t.jsonl", &texts(10))]);
    let data = open(folder.path()).unwrap();
    let batches = Batches::new(&data, Batching::default().generative(4)).unwrap();
    assert_eq!((batches.options().pairs, batches.epoch()), (0, None));
    let drawn: Vec<usize> = (0..15).flat_map(|step| lines(&batches.batch(step).unwrap())).collect();
    let mut orders = HashSet::new();
    for round in drawn.chunks(10) {
        assert_eq!(round.iter().collect::<HashSet<_>>().len(), 10);
        orders.insert(round);
    }
    assert_eq!(orders.len(), 6);
    // More in a batch than there are.
    let batches = Batches::new(&data, Batching::default().generative(25)).unwrap();
    assert_eq!(lines(&batches.batch(0).unwrap()), drawn[..25]);
}

#[test]
fn batches_that_cannot_be_made_are_refused() {
    let data = open(&examples()).unwrap();
    let refused = |options| Batches::new(&data, options).err().unwrap().to_string();
    assert_eq!(
        refused(Batching::default().pairs(21)),
        "pairs: expected at most 20, the pairs of the data, found 21"
    );
    assert_eq!(
        refused(Batching::default().pairs(0).generative(0)),
        "pairs: expected 1 or more, to have something in a batch, found 0"
    );
    let one = Batches::new(&data, Batching::default().pairs(20).generative(0)).unwrap();
    assert_eq!(one.epoch(), Some(1));
    let folder = folder(&[("a.jsonl", &pairs("a", 1))]);
    let data = open(folder.path()).unwrap();
    let one = Batches::new(&data, Batching::default().pairs(1)).unwrap();
    assert_eq!(queries(&one.batch(9).unwrap()), ["a 0"]);
}
