//! Training data.

use gritlm::Checkpoint;
use gritlm_train::{Batches, Batching, Data, Encoder, Lengths, Text};
use std::sync::LazyLock;

/// The tokenizer and the config of the demo model.
static DEMO: LazyLock<Checkpoint> =
    LazyLock::new(|| Checkpoint::open("demo", true).expect("the demo model"));

/// A file of training data, as samples, batches and token ids.
pub(super) fn lines(input: &[u8]) {
    let folder = super::folder();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, input).expect("a file");
    let lengths = Lengths::default().query_max_len(12).passage_max_len(24).generative_max_len(40);
    let encoder = Encoder::new(&DEMO.tokenizer, &DEMO.config, lengths).expect("an encoder");
    let Ok(data) = Data::open(&path, &encoder, 2) else { return };
    let check = |text: &Text, limit: usize| {
        assert!(text.skip < text.tokens.len() && text.tokens.len() <= limit);
    };
    for i in 0..data.pairs() {
        let pair = data.pair(i).expect("a checked line");
        assert!(!pair.positives.is_empty());
    }
    for i in 0..data.generative() {
        let _ = data.text(i).expect("a checked line");
    }
    let batching = Batching::default().pairs(data.pairs().min(2)).generative(2);
    let Ok(batches) = Batches::new(&data, batching) else { return };
    for step in 0..3 {
        let batch = batches.batch(step).expect("a batch");
        // A text may hold what the tokenizer has no token for.
        let Ok(encoded) = encoder.batch(&batch) else { continue };
        assert_eq!(encoded.passages.len(), 2 * encoded.queries.len());
        encoded.queries.iter().for_each(|text| check(text, 12));
        encoded.passages.iter().for_each(|text| check(text, 24));
        for answer in &encoded.answers {
            assert!(answer.tokens.len() <= 40 && answer.tokens.len() == answer.targets.len());
            assert!(answer.targets.first().is_none_or(|first| !first));
        }
    }
}
