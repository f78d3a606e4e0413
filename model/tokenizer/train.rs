//! A tokenizer learned from texts: byte-level BPE, as GPT-2's and Llama 3's, with the special tokens
//! that GritLM's prompts need.

use super::{Tokenizer, guarded};
use crate::config::Config;
use crate::{Error, Result};
use std::path::Path;
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Special tokens, by id.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

impl Tokenizer {
    /// Learns a tokenizer of at most `config.vocab` tokens from texts. Ids 0 to 2 are `<unk>`, `<s>`
    /// and `</s>`, which the config must say, too. The same texts give the same tokenizer.
    ///
    /// # Errors
    /// When the config has fewer tokens than there are bytes, or other ids of `<s>` and `</s>`.
    pub fn train(
        texts: impl Iterator<Item = String> + Send,
        config: &Config,
        path: &Path,
    ) -> Result<Self> {
        let wrong = |problem: String| Error::Format { path: path.into(), problem };
        let least = SPECIAL.len() + 256;
        if config.vocab < least {
            let problem = format!("vocab_size: expected at least {least}, found {}", config.vocab);
            return Err(wrong(problem));
        }
        if config.bos != 1 || config.eos.first() != Some(&2) {
            let (bos, eos) = (config.bos, config.eos.first().copied().unwrap_or_default());
            return Err(wrong(format!(
                "expected bos_token_id 1 and eos_token_id 2, those of the tokenizer that will be \
                 learned, found {bos} and {eos}"
            )));
        }
        let special = SPECIAL.map(|token| AddedToken::from(token, true));
        let trainer = BpeTrainer::builder()
            .vocab_size(config.vocab)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special.into())
            .build();
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        let learned = guarded(|| {
            inner.train(&mut TrainerWrapper::BpeTrainer(trainer), texts)?.to_string(true)
        });
        Self::parse(learned.map_err(wrong)?.as_bytes(), path, config)
    }
}
