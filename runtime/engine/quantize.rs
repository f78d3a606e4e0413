//! Writes a checkpoint as a GGUF file with its matrices in another format.

use crate::{Checkpoint, Error, Result};
use gritlm_model::format::Dtype;
use gritlm_model::gguf::{self, Planned, Value, is_gguf};
use gritlm_model::quantize::Quantization;
use std::collections::BTreeMap;
use std::path::Path;

/// What [`quantize`] has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Size of the file's tensors in bytes.
    pub bytes: u64,
    /// Number of tensors in each format, and their bytes.
    pub formats: BTreeMap<Dtype, (usize, u64)>,
    /// Number of tensors whose rows have no whole blocks of the first format, and are in the
    /// second.
    pub fallbacks: BTreeMap<(Dtype, Dtype), usize>,
}

/// Writes `model` (as [`Checkpoint::open`] takes it), with the adapter in the folder `adapter` merged
/// into it, to the GGUF file `output`, which must not
/// exist, with its matrices in the formats of `to`; vectors and routers in F32. llama.cpp reads
/// the file, too. `progress` is called with the number of bytes written and the total, and its
/// error ends the work. Until the file is complete, it is `<output>.partial-<process id>`.
///
/// # Errors
/// When there is no such model, it has no `lm_head`, GGUF has no words for its tokenizer, `output`
/// does not end in `.gguf` or exists, or it cannot be written. Nothing is then left behind.
pub fn quantize(
    model: &str,
    adapter: Option<&Path>,
    to: Quantization,
    output: &Path,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Quantized> {
    if !is_gguf(output) {
        return Err(Error::Option {
            option: "output",
            expected: "a file name that ends in .gguf".into(),
            found: output.display().to_string(),
        });
    }
    let checkpoint = Checkpoint::open(model, true)?.with_adapter(adapter)?;
    let Checkpoint { config, tokenizer, chat_template, weights, metadata, .. } = &checkpoint;
    let mut values = match metadata {
        // A file that is one already says more than this program knows of.
        Some(metadata) => metadata
            .iter()
            .filter(|(key, _)| !key.starts_with("split."))
            .map(|(key, value)| (key.to_string(), value.clone()))
            .collect(),
        None => {
            let name = model.trim_end_matches('/').rsplit('/').next().unwrap_or(model);
            gguf::describe(config, tokenizer, chat_template.as_ref(), name, Path::new(model))?
        }
    };
    values.insert("general.file_type".into(), Value::U64(to.file_type().into()));
    values.insert("general.quantization_version".into(), Value::U64(2));
    // The writer aligns by the default.
    values.remove("general.alignment");
    let tensors = gguf::plan(config, weights, to)?;
    gguf::write(output, &values, &tensors, progress)?;
    let (mut formats, mut fallbacks) = (BTreeMap::new(), BTreeMap::new());
    for tensor in &tensors {
        let (count, bytes): &mut (usize, u64) = formats.entry(tensor.dtype).or_default();
        *count += 1;
        *bytes += tensor.bytes();
        if let Some(wanted) = tensor.instead_of {
            *fallbacks.entry((wanted, tensor.dtype)).or_default() += 1;
        }
    }
    Ok(Quantized { bytes: tensors.iter().map(Planned::bytes).sum(), formats, fallbacks })
}
