//! Opens what a model consists of: config, tokenizer and weights.

use crate::message::ChatFormat;
use crate::{Result, hub};
use gritlm_model::adapter::Adapter;
use gritlm_model::chat_template::{self, ChatTemplate};
use gritlm_model::config::Config;
use gritlm_model::demo;
use gritlm_model::gguf::{Gguf, Metadata, is_gguf};
use gritlm_model::hash::fnv1a;
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::{RangeFile, Weights, parse_index};
use std::path::{Path, PathBuf};

/// A checkpoint on disk or in the binary, checked but not loaded onto a device.
pub struct Checkpoint {
    /// Shape and constants of the model.
    pub config: Config,
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
    /// Chat template of the model, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Weights of the model, memory-mapped if they are in files; matrices with an adapter are in
    /// memory.
    pub weights: Weights,
    /// The folder of a checkpoint in the published layout.
    pub folder: Option<PathBuf>,
    /// Everything that a GGUF file says about the model, where it is in one.
    pub metadata: Option<Metadata>,
    /// The adapter that is merged into the weights.
    pub adapter: Option<Adapter>,
}

impl Checkpoint {
    /// Opens and checks `model`: a folder, a GGUF file, a Hugging Face id, or `demo`. `progress`
    /// says whether to draw a progress bar on a terminal while downloading.
    ///
    /// # Errors
    /// When there is no such model, or one of its files is missing or invalid.
    pub fn open(model: &str, progress: bool) -> Result<Self> {
        if model == "demo" {
            let path = |file: &str| PathBuf::from("demo").join(file);
            let config = Config::parse(demo::CONFIG, &path("config.json"))?;
            let tokenizer = Tokenizer::parse(demo::TOKENIZER, &path("tokenizer.json"), &config)?;
            let weights = Weights::from_static(demo::WEIGHTS, &path("model.safetensors"), &config)?;
            let (chat_template, folder, metadata, adapter) = (None, None, None, None);
            return Ok(Self {
                config,
                tokenizer,
                chat_template,
                weights,
                folder,
                metadata,
                adapter,
            });
        }
        Self::open_path(&hub::resolve(model, progress)?)
    }

    /// Opens and checks files that are read in pieces: a GGUF file, or all parts of one in order; or
    /// the files of a checkpoint in the published layout, among them `config.json`,
    /// `tokenizer.json`, and `model.safetensors` or its shards with their index. Of the weights,
    /// this reads what says where each tensor is; a tensor is read when it is loaded.
    ///
    /// # Errors
    /// When a file is missing or invalid, or cannot be read.
    pub async fn of_ranges(files: &[RangeFile]) -> Result<Self> {
        if files.iter().any(|file| is_gguf(&file.path)) {
            return Self::open_gguf(&Gguf::of_ranges(files).await?);
        }
        let folder = files.first().and_then(|file| file.path.parent()).unwrap_or(Path::new(""));
        let path = |name: &str| folder.join(name);
        let config = Config::parse(&whole(files, &path(CONFIG)).await?, &path(CONFIG))?;
        let index = match find(files, &path(INDEX)) {
            Some(file) => Some(parse_index(&file.read(0..file.size()?).await?, &path(INDEX))?),
            None => None,
        };
        let is_shard =
            |file: &&RangeFile| file.path.extension().is_some_and(|e| e == "safetensors");
        let shards: Vec<RangeFile> = files.iter().filter(is_shard).cloned().collect();
        let weights = Weights::of_ranges(&shards, index.as_ref(), folder, &config).await?;
        let text = whole(files, &path(TOKENIZER)).await?;
        let tokenizer = Tokenizer::parse(&text, &path(TOKENIZER), &config)?;
        let [about, own] = [chat_template::CONFIG, chat_template::OWN].map(path);
        let texts = [some(files, &about).await?, some(files, &own).await?];
        let [text, template] = texts;
        let chat_template =
            ChatTemplate::of((text, &about), (template, &own), &config, &tokenizer)?;
        let (folder, metadata, adapter) = (None, None, None);
        Ok(Self { config, tokenizer, chat_template, weights, folder, metadata, adapter })
    }

    /// Merges the adapter in `folder` into the weights, if one is given.
    ///
    /// # Errors
    /// When a file of the adapter is missing or invalid, it belongs to a model of another shape, or
    /// weights that it changes are quantised.
    pub fn with_adapter(mut self, folder: Option<&Path>) -> Result<Self> {
        if let Some(folder) = folder {
            let adapter = Adapter::open(folder, &self.config)?;
            adapter.merge(&mut self.weights)?;
            self.adapter = Some(adapter);
        }
        Ok(self)
    }

    /// Opens a folder or a GGUF file.
    fn open_path(path: &Path) -> Result<Self> {
        let folder = match Gguf::find(path)? {
            Some(file) => return Self::open_gguf(&Gguf::open(&file)?),
            None => path,
        };
        let config = Config::open(&folder.join("config.json"))?;
        // Weights come first, because their errors are the ones that a broken download causes.
        let weights = Weights::open(folder, &config)?;
        let tokenizer = Tokenizer::open(&folder.join("tokenizer.json"), &config)?;
        let chat_template = ChatTemplate::open(folder, &config, &tokenizer)?;
        let folder = Some(folder.to_path_buf());
        let (metadata, adapter) = (None, None);
        Ok(Self { config, tokenizer, chat_template, weights, folder, metadata, adapter })
    }

    /// Returns the template that makes prompts of conversations. GritLM's own says what its tags
    /// say, but knows less of a conversation, and is left out.
    pub(crate) fn prompts_by(&mut self, format: ChatFormat) -> Option<ChatTemplate> {
        let template = self.chat_template.take().filter(|_| format == ChatFormat::Checkpoint);
        template.filter(|template| !template.is_gritlm())
    }

    fn open_gguf(gguf: &Gguf) -> Result<Self> {
        let config = gguf.config()?;
        let weights = Weights::of_gguf(gguf, &config)?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata(), &config)?;
        let chat_template = ChatTemplate::from_gguf(gguf.metadata(), &config, &tokenizer)?;
        let (folder, adapter) = (None, None);
        let metadata = Some(gguf.metadata().clone());
        Ok(Self { config, tokenizer, chat_template, weights, folder, metadata, adapter })
    }
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";

fn find<'a>(files: &'a [RangeFile], path: &Path) -> Option<&'a RangeFile> {
    files.iter().find(|file| file.path == path)
}

/// Reads a file whole, where there is one.
async fn some(files: &[RangeFile], path: &Path) -> Result<Option<Vec<u8>>> {
    match find(files, path) {
        Some(file) => Ok(Some(file.read(0..file.size()?).await?)),
        None => Ok(None),
    }
}

/// Reads a file whole.
async fn whole(files: &[RangeFile], path: &Path) -> Result<Vec<u8>> {
    let missing = || gritlm_model::Error::io(path)(std::io::ErrorKind::NotFound.into());
    Ok(some(files, path).await?.ok_or_else(missing)?)
}

/// Hashes the config and, of each tensor, the name and the first 64 bytes, unless they have yet to be
/// read. These tell two trained models apart without reading 14 GB. An adapter counts by itself, because its changes may be lost
/// in the rounding of the first values.
pub(crate) fn fingerprint(
    config: &Config,
    weights: Option<&Weights>,
    adapter: Option<&Adapter>,
) -> u128 {
    let mut seen = format!("{config:?}").into_bytes();
    for (name, tensor) in weights.into_iter().flat_map(Weights::tensors) {
        let bytes = tensor.stored();
        seen.extend(name.bytes());
        seen.extend(&bytes[..bytes.len().min(64)]);
    }
    seen.extend(adapter.into_iter().flat_map(|adapter| adapter.fingerprint().to_le_bytes()));
    fnv1a(seen)
}
