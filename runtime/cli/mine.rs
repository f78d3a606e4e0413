//! `gritlm mine`.

use super::args::{Global, Mine};
use super::note;
use super::output::{Out, Progress};
use crate::error::Result;
use gritlm_train::{Data, Encoder};
use serde_json::json;

pub(super) fn run(args: &Mine, global: &Global, out: &mut Out) -> Result<()> {
    let engine = super::open(global)?;
    let lengths = args.lengths().within(engine.config());
    let encoder = Encoder::new(engine.tokenizer(), engine.config(), lengths)?;
    let data = Data::open(&args.data, &encoder, 1)?;
    data.notes().for_each(|text| note(format_args!("note: {text}")));
    let mut progress = Progress::new("mining", 0);
    let output = &args.output;
    let found =
        gritlm_train::mine(&engine, &encoder, &data, output, args.how(), &mut |done, of| {
            Ok(progress.of(done, of)?)
        })?;
    drop(progress);
    let file = output.display().to_string();
    if out.json() {
        return out.object(&json!({
            "output": file, "pairs": found.pairs, "without_negatives": found.without,
        }));
    }
    let without = match found.without {
        0 => String::new(),
        n => format!("; {n} left out, whose other passages are all too near"),
    };
    out.line(format!("{file}: {} pairs{without}", found.pairs))
}
