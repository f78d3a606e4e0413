//! Opens the files of a model.

use crate::{Result, hub};
use gritlm_model::config::Config;
use gritlm_model::demo;
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::Weights;
use std::path::{Path, PathBuf};

/// A checkpoint on disk or in the binary, checked but not loaded onto a device.
pub struct Checkpoint {
    /// Shape and constants of the model.
    pub config: Config,
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
    /// Weights of the model, memory-mapped if they are in files.
    pub weights: Weights,
}

impl Checkpoint {
    /// Opens and checks `model`: a folder, a Hugging Face id, or `demo`. `progress` says whether
    /// to draw a progress bar on a terminal while downloading.
    ///
    /// # Errors
    /// When there is no such model, or one of its files is missing or invalid.
    pub fn open(model: &str, progress: bool) -> Result<Self> {
        if model == "demo" {
            let path = |file: &str| PathBuf::from("demo").join(file);
            let config = Config::parse(demo::CONFIG, &path("config.json"))?;
            let tokenizer = Tokenizer::parse(demo::TOKENIZER, &path("tokenizer.json"), &config)?;
            let weights = Weights::from_static(demo::WEIGHTS, &path("model.safetensors"), &config)?;
            return Ok(Self { config, tokenizer, weights });
        }
        Self::open_folder(&hub::resolve(model, progress)?)
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config = Config::open(&folder.join("config.json"))?;
        // Weights come first, because their errors are the ones that a broken download causes.
        let weights = Weights::open(folder, &config)?;
        let tokenizer = Tokenizer::open(&folder.join("tokenizer.json"), &config)?;
        Ok(Self { config, tokenizer, weights })
    }
}
