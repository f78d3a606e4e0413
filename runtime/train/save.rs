//! Checkpoints in the published layout: what other programs load, and what a run resumes from.
//!
//! Every file and folder is written under another name, synced and renamed, so that one of its own
//! name is whole whenever the program is killed.

use crate::parameters::{Parameters, Slot};
use crate::{Error, Result};
use gritlm::Checkpoint;
use gritlm_model::adapter;
use gritlm_model::config::with_dtype;
use gritlm_model::format::{Dtype, encode};
use gritlm_model::ops::Backward;
use pollster::block_on;
use safetensors::tensor::{Dtype as Stored, View, serialize_to_file};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files of a checkpoint besides `config.json`, `tokenizer.json` and weights. They are copied if
/// they are there.
const BESIDE: [&str; 6] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
];

/// The files of a checkpoint that are not weights.
pub(crate) struct Beside(Vec<(String, Vec<u8>)>);

impl Beside {
    /// Takes the files of a checkpoint, or makes what a GGUF file says elsewhere. Weights will be
    /// in `dtype`.
    ///
    /// # Errors
    /// When a file cannot be read, or a config or tokenizer cannot be said in these files.
    pub(crate) fn of(checkpoint: &Checkpoint, dtype: Dtype) -> Result<Self> {
        let mut files = Vec::new();
        let Some(folder) = &checkpoint.folder else {
            let cannot = || gritlm_model::Error::Format {
                path: "config.json".into(),
                problem: "the model's rotary factors have no field in it; train from the \
                          checkpoint that the GGUF file was made of"
                    .into(),
            };
            let config = checkpoint.config.to_json(dtype).ok_or_else(cannot)?;
            files.push(("config.json".into(), config.into_bytes()));
            files.push(("tokenizer.json".into(), checkpoint.tokenizer.to_json()?.into_bytes()));
            return Ok(Self(files));
        };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(Error::io(path))
        };
        let config = read("config.json")?;
        let changed = with_dtype(&config, dtype).map(String::into_bytes);
        files.push(("config.json".into(), changed.unwrap_or(config)));
        files.push(("tokenizer.json".into(), read("tokenizer.json")?));
        for name in BESIDE.iter().filter(|name| folder.join(name).is_file()) {
            files.push((name.to_string(), read(name)?));
        }
        Ok(Self(files))
    }

    /// Writes the files into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        self.0.iter().try_for_each(|(name, bytes)| replace(&folder.join(name), bytes))
    }
}

/// Which values of the parameters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Weights,
    Moment(usize),
}

/// Writes the weights that are trained in `folder`, in `dtype`: `model.safetensors`, or an adapter's
/// two files.
///
/// # Errors
/// When the device fails, or the file cannot be written.
pub(crate) fn write_weights<O: Backward>(
    ops: &O,
    parameters: &Parameters<O>,
    part: Part,
    dtype: Dtype,
    folder: &Path,
) -> Result<()> {
    let mut tensors = Vec::new();
    let failed = RefCell::new(None);
    for (matrix, slot) in parameters.trained() {
        for tensor in &slot.tensors {
            let (name, shape, failed) = (tensor.name.clone(), tensor.shape.clone(), &failed);
            let values = Values { ops, matrix, slot, part, name, shape, dtype, failed };
            tensors.push((tensor.name.clone(), values));
        }
    }
    let file = match parameters.adapters() {
        None => "model.safetensors",
        Some(adapters) => {
            replace(&folder.join(adapter::CONFIG), adapters.text().as_bytes())?;
            adapter::WEIGHTS
        }
    };
    write_tensors(&folder.join(file), tensors, &failed)
}

/// Writes an adapter to a folder, which is whole or not there.
pub(crate) fn write_adapter<O: Backward>(
    ops: &O,
    parameters: &Parameters<O>,
    folder: &Path,
) -> Result<()> {
    let partial = partial(folder);
    for old in [&partial, folder].into_iter().filter(|old| old.exists()) {
        fs::remove_dir_all(old).map_err(Error::io(old))?;
    }
    fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
    write_weights(ops, parameters, Part::Weights, Dtype::F32, &partial)?;
    fs::rename(&partial, folder).map_err(Error::io(folder))
}

/// Writes a safetensors file as a whole. What goes wrong with making a tensor's values is left in
/// `failed`, because a [`View`] cannot return it.
pub(crate) fn write_tensors<V: View>(
    path: &Path,
    tensors: Vec<(String, V)>,
    failed: &RefCell<Option<Error>>,
) -> Result<()> {
    let partial = partial(path);
    // `serialize_to_file` would create a file that only its owner can read.
    File::create(&partial).map_err(Error::io(path))?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let written = serialize_to_file(tensors, Some(metadata), &partial);
    if let Some(error) = failed.take() {
        return Err(error);
    }
    written.map_err(|e| Error::io(path)(std::io::Error::other(e)))?;
    let file = File::open(&partial).map_err(Error::io(&partial))?;
    file.sync_all().map_err(Error::io(path))?;
    fs::rename(&partial, path).map_err(Error::io(path))
}

/// Returns the format of plain elements as safetensors has it.
pub(crate) fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        _ => Stored::BF16,
    }
}

/// A tensor that is read from the device when it is written.
struct Values<'a, O: Backward> {
    ops: &'a O,
    matrix: &'a O::Matrix,
    slot: &'a Slot<O>,
    part: Part,
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    failed: &'a RefCell<Option<Error>>,
}

impl<O: Backward> View for Values<'_, O> {
    fn dtype(&self) -> Stored {
        stored(self.dtype)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = match self.part {
            Part::Weights => block_on(self.ops.read_parameters(self.matrix)),
            Part::Moment(n) => block_on(self.ops.read(&self.slot.moments[n], self.slot.len)),
        };
        let mut bytes = vec![0; self.data_len()];
        match values {
            Ok(values) => {
                let range = self.slot.range(&self.name).unwrap_or_default();
                encode(self.dtype, &values[range], &mut bytes);
            }
            Err(error) => *self.failed.borrow_mut() = Some(error.into()),
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.dtype.bytes(self.shape.iter().product())
    }
}

/// Writes a file as a whole: no other program sees a part of it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial(path);
    let mut file = File::create(&partial).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))?;
    fs::rename(&partial, path).map_err(Error::io(path))
}

/// Returns the name under which a file or folder is written.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}
