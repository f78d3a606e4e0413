//! `gritlm quantize`.

use super::args::{Global, Quantize};
use super::inspect::gib;
use super::note;
use super::output::{Out, Progress};
use crate::error::Result;
use serde_json::{Value, json};

pub(super) fn run(args: &Quantize, global: &Global, out: &mut Out) -> Result<()> {
    super::handle_interrupt();
    let mut progress = Progress::bytes("quantizing");
    let adapter = global.adapter.as_deref();
    let made =
        gritlm::quantize(&args.source, adapter, args.to, &args.output, &mut |done, total| {
            Ok(progress.of(done, total)?)
        })?;
    drop(progress);
    let file = args.output.display().to_string();
    for ((wanted, dtype), count) in &made.fallbacks {
        let block = wanted.block();
        note(format_args!(
            "note: {count} tensors are {dtype} instead of {wanted}: their rows are no whole \
             blocks of {block}"
        ));
    }
    if out.json() {
        let formats: Vec<Value> = made
            .formats
            .iter()
            .map(|(dtype, (tensors, bytes))| {
                json!({ "dtype": dtype.to_string(), "tensors": tensors, "bytes": bytes })
            })
            .collect();
        let fallbacks: Vec<Value> = made
            .fallbacks
            .iter()
            .map(|((wanted, dtype), tensors)| {
                json!({ "wanted": wanted.to_string(), "dtype": dtype.to_string(),
                        "tensors": tensors })
            })
            .collect();
        return out.object(&json!({
            "output": file, "type": args.to.to_string(), "bytes": made.bytes,
            "formats": formats, "fallbacks": fallbacks,
        }));
    }
    let formats: Vec<String> = made
        .formats
        .iter()
        .map(|(dtype, (tensors, bytes))| format!("{tensors} {dtype} ({})", gib(*bytes)))
        .collect();
    out.line(format!("{file}: {}; tensors: {}", gib(made.bytes), formats.join(", ")))
}
