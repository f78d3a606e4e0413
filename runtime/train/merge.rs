//! Writes a checkpoint with an adapter merged into its weights.

use crate::save::{Beside, partial, stored, write_tensors};
use crate::{Error, Result};
use gritlm::Checkpoint;
use gritlm_model::adapter::{Adapter, check_plain};
use gritlm_model::format::Dtype;
use gritlm_model::weights::{Tensor, expected};
use safetensors::tensor::{Dtype as Stored, View};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::path::Path;

/// What [`merge`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Size of all tensors in bytes.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of those that an adapter has changed.
    pub merged: usize,
}

/// Is called with the number of bytes written and the total. Its error ends the work.
pub(crate) type Progress<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Writes `model` (as [`Checkpoint::open`] takes it) with the adapter in the folder `adapter` merged
/// into it to `output`, a new folder in the published layout. Each tensor keeps its format; a merged
/// one is computed in f32 and rounded once, so the folder has the same bits as the model opened with
/// the adapter. Until the folder is complete, it is `<output>.partial`.
///
/// # Errors
/// When there is no such model or adapter, one does not belong to the other, a tensor is quantised,
/// or `output` exists or cannot be written. Nothing is then left behind.
pub fn merge(
    model: &str,
    adapter: &Path,
    output: &Path,
    progress: &mut Progress<'_>,
) -> Result<Merged> {
    if output.exists() {
        let problem = "expected a new folder, found one that exists".into();
        return Err(Error::Output { path: output.into(), problem });
    }
    let checkpoint = Checkpoint::open(model, true)?;
    let adapter = Adapter::open(adapter, &checkpoint.config)?;
    let names: Vec<String> = expected(&checkpoint.config).into_iter().map(|e| e.name).collect();
    check_plain(&checkpoint.weights, names.iter().map(String::as_str))?;
    let dtype = checkpoint.weights.get("model.embed_tokens.weight")?.dtype();
    let beside = Beside::of(&checkpoint, dtype)?;
    let partial = partial(output);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
    }
    let mut write = || {
        fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        beside.write(&partial)?;
        let merged = write_merged(&checkpoint, &adapter, None, &partial, progress)?;
        fs::rename(&partial, output).map_err(Error::io(output))?;
        Ok(merged)
    };
    let written = write();
    if written.is_err() {
        // The error that has ended the work is the one to report.
        let _ = fs::remove_dir_all(&partial);
    }
    // The name is on the disk once its folder is.
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let (Ok(_), Ok(folder)) = (&written, File::open(parent.unwrap_or(Path::new(".")))) {
        folder.sync_all().map_err(Error::io(output))?;
    }
    written
}

/// Writes `model.safetensors` in `folder`: the tensors of a checkpoint, merged with an adapter, in
/// `dtype` or each in its own format.
///
/// # Errors
/// When the file cannot be written, or the error of `progress`.
pub(crate) fn write_merged(
    checkpoint: &Checkpoint,
    adapter: &Adapter,
    dtype: Option<Dtype>,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Merged> {
    let Checkpoint { config, weights, .. } = checkpoint;
    let mut tensors = Vec::new();
    for want in expected(config) {
        // A bare model has no head.
        if let Ok(tensor) = weights.get(&want.name) {
            let dtype = dtype.unwrap_or(tensor.dtype());
            tensors.push((want.name, tensor, dtype));
        }
    }
    let bytes = |(_, tensor, dtype): &(String, Tensor, Dtype)| {
        dtype.bytes(tensor.shape().iter().product()) as u64
    };
    let total = tensors.iter().map(bytes).sum();
    let merged = tensors.iter().filter(|(name, ..)| adapter.pairs().contains_key(name)).count();
    let all = Merged { bytes: total, tensors: tensors.len(), merged };
    let failed = RefCell::new(None);
    let state =
        State { adapter, done: Cell::new(0), total, progress: progress.into(), failed: &failed };
    let values = tensors.into_iter().map(|(name, tensor, dtype)| {
        let key = weights.stored(&name).to_string();
        (key, Values { state: &state, name, tensor, dtype })
    });
    write_tensors(&folder.join("model.safetensors"), values.collect(), &failed)?;
    Ok(all)
}

/// What all tensors that are written have in common.
struct State<'a, 'p> {
    adapter: &'a Adapter,
    done: Cell<u64>,
    total: u64,
    progress: RefCell<&'a mut Progress<'p>>,
    failed: &'a RefCell<Option<Error>>,
}

/// A tensor that is merged when it is written.
struct Values<'a, 'p> {
    state: &'a State<'a, 'p>,
    /// Name in the published layout.
    name: String,
    tensor: Tensor,
    dtype: Dtype,
}

impl View for Values<'_, '_> {
    fn dtype(&self) -> Stored {
        stored(self.dtype)
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let State { adapter, done, total, progress, failed } = self.state;
        if failed.borrow().is_some() {
            return Cow::Owned(vec![0; self.data_len()]);
        }
        let bytes = adapter.merged(&self.name, &self.tensor, self.dtype).bytes().to_vec();
        done.set(done.get() + bytes.len() as u64);
        if let Err(error) = (progress.borrow_mut())(done.get(), *total) {
            *failed.borrow_mut() = Some(error);
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.dtype.bytes(self.tensor.shape().iter().product())
    }
}
