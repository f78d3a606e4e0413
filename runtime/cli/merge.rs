//! `gritlm merge`.

use super::args::{Global, Merge};
use super::inspect::gib;
use super::output::{Out, Progress};
use crate::error::{Error, Result};
use serde_json::json;

pub(super) fn run(args: &Merge, global: &Global, out: &mut Out) -> Result<()> {
    let Some(adapter) = &global.adapter else {
        let (option, expected) = ("--adapter", "the folder of an adapter".into());
        return Err(Error::Option { option, expected, found: "nothing".into() });
    };
    super::handle_interrupt();
    let mut progress = Progress::bytes("merging");
    let made = gritlm_train::merge(&args.source, adapter, &args.output, &mut |done, total| {
        progress.of(done, total).map_err(gritlm::Error::from).map_err(gritlm_train::Error::from)
    })?;
    drop(progress);
    let folder = args.output.display().to_string();
    if out.json() {
        return out.object(&json!({
            "output": folder, "bytes": made.bytes, "tensors": made.tensors, "merged": made.merged,
        }));
    }
    let (bytes, tensors) = (gib(made.bytes), made.tensors);
    out.line(format!("{folder}: {bytes}; {} of {tensors} tensors merged", made.merged))
}
