//! Embeds texts as vectors, in batches that are formed by token budget and length.

use crate::batch::{Output, Sequence, Want};
use crate::cache::{KvCache, KvSnapshot};
use crate::{Attn, Engine, Error, Result};
use gritlm_model::ops::{Mask, PAGE, Pooling};
use gritlm_model::prompt::embed_prefix;
use rayon::prelude::*;

/// Options for embedding.
///
/// ```
/// use gritlm::Embed;
/// let query = Embed::with_instruction("Given a question, retrieve passages that answer it");
/// let document = Embed::default();
/// assert_eq!(document.max_length, 512);
/// # let _ = query;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Embed {
    /// Task that the vector is for; empty for documents. The text attends to it, but pooling
    /// leaves it out.
    pub instruction: String,
    /// How hidden states become one vector.
    pub pooling: Pooling,
    /// Whether vectors are L2-normalised.
    pub normalize: bool,
    /// Maximum number of tokens of a whole sequence, `<s>` and instruction included. The rest of
    /// the text is cut off.
    pub max_length: usize,
    /// Attention to use instead of the engine's.
    pub attn: Option<Attn>,
    /// Mask to use instead of the one that `attn` selects.
    pub mask: Option<Mask>,
    /// Number of leading values to keep of each vector. The vector is cut before it is
    /// normalised.
    pub dimensions: Option<usize>,
    /// Whether to also return the keys and values of each text ([`Embedding::kv`]), to generate
    /// from.
    pub keep_kv: bool,
}

gritlm_model::setters!(Embed {
    pooling: Pooling,
    normalize: bool,
    max_length: usize,
    attn: Option<Attn>,
    mask: Option<Mask>,
    dimensions: Option<usize>,
    keep_kv: bool,
} into {
    instruction: String,
});

impl Default for Embed {
    fn default() -> Self {
        Self {
            instruction: String::new(),
            pooling: Pooling::Mean,
            normalize: true,
            max_length: 512,
            attn: None,
            mask: None,
            dimensions: None,
            keep_kv: false,
        }
    }
}

impl Embed {
    /// Returns the defaults with an instruction, for queries.
    pub fn with_instruction(instruction: impl Into<String>) -> Self {
        Self { instruction: instruction.into(), ..Self::default() }
    }

    /// Checks the options for a model whose vectors have `dim` values.
    pub(crate) fn check(&self, dim: usize) -> Result<()> {
        match self.dimensions {
            Some(n) if !(1..=dim).contains(&n) => Err(Error::Option {
                option: "dimensions",
                expected: format!("1 to {dim}"),
                found: n.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Returns how many values to keep, if not all.
    fn cut(&self, dim: usize) -> Option<usize> {
        self.dimensions.filter(|&n| n < dim)
    }
}

/// The embedding of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The vector: `(dim)`, or as many values as [`Embed::dimensions`] asks for.
    pub vector: Vec<f32>,
    /// Number of tokens that were computed, `<s>`, tags and instruction included.
    pub tokens: usize,
    /// Number of tokens that were cut off; a lower bound if the text is far longer than the
    /// limit.
    pub truncated: usize,
    /// Keys and values of the sequence, if [`Embed::keep_kv`] asks for them.
    pub kv: Option<KvSnapshot>,
}

/// A text's tokens, ready to be embedded; see [`Engine::encode_texts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Ids of `<s>`, tags, instruction and text.
    pub tokens: Vec<u32>,
    /// Number of leading tokens that pooling leaves out.
    pub skip: usize,
    /// Number of tokens that were cut off; a lower bound if the text is far longer than the
    /// limit.
    pub truncated: usize,
}

impl Encoded {
    /// Returns the output to request from a pass. A vector that is cut is normalised afterwards.
    pub(crate) fn want(&self, how: &Embed, dim: usize) -> Want {
        let normalize = how.normalize && how.cut(dim).is_none();
        Want::Embedding { skip: self.skip, pooling: how.pooling, normalize }
    }

    /// Returns the embedding of text `index`, given the vector that the pass returned.
    pub(crate) fn finish(
        &self,
        index: usize,
        mut vector: Vec<f32>,
        how: &Embed,
    ) -> Result<Embedding> {
        if !vector.iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite { what: format!("text {index}") });
        }
        if let Some(n) = how.cut(vector.len()) {
            vector.truncate(n);
            if how.normalize {
                let length = dot(&vector, &vector).sqrt().max(1e-12);
                vector.iter_mut().for_each(|v| *v /= length);
            }
        }
        let (tokens, truncated) = (self.tokens.len(), self.truncated);
        Ok(Embedding { vector, tokens, truncated, kv: None })
    }
}

impl Engine {
    /// Embeds texts and returns the embeddings in the same order.
    ///
    /// # Errors
    /// When a text is empty, the instruction is too long or leaves no room for text, an option is
    /// invalid, the tokenizer has no token for some part of a text, a text needs more KV pages
    /// than are free, the device fails, or a vector is not finite. With [`Embed::keep_kv`], also
    /// when a sliding window has dropped the first tokens of a text.
    pub fn embed(&self, texts: &[impl AsRef<str> + Sync], how: &Embed) -> Result<Vec<Embedding>> {
        self.embed_watched(texts, how, &mut |_| Ok(()))
    }

    /// Like [`Engine::embed`], but calls `done` after each pass with its number of texts. An
    /// error of `done` ends the work.
    ///
    /// # Errors
    /// As [`Engine::embed`], and when `done` fails.
    pub fn embed_watched(
        &self,
        texts: &[impl AsRef<str> + Sync],
        how: &Embed,
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Embedding>> {
        self.embed_encoded(&self.encode_texts(texts, how)?, how, done)
    }

    /// Embeds texts that [`Engine::encode_texts`] has prepared, and calls `done` after each pass
    /// with its number of texts. An error of `done` ends the work.
    ///
    /// # Errors
    /// When an option or an [`Encoded`] is invalid, a text needs more KV pages than are free, the
    /// device fails, or a vector is not finite; with [`Embed::keep_kv`], also when a sliding
    /// window has dropped the first tokens of a text; and when `done` fails.
    pub fn embed_encoded(
        &self,
        texts: &[Encoded],
        how: &Embed,
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Embedding>> {
        let dim = self.config().dim;
        how.check(dim)?;
        let mut found: Vec<Option<Embedding>> = vec![None; texts.len()];
        let tokens: Vec<&[u32]> = texts.iter().map(|text| text.tokens.as_slice()).collect();
        let want = |i: usize| texts[i].want(how, dim);
        self.run_all(&tokens, self.mask_for(how), want, &mut |pass| {
            let texts_done = pass.len();
            for (i, output, cache) in pass {
                if let Output::Embedding(vector) = output {
                    let mut embedding = texts[i].finish(i, vector, how)?;
                    embedding.kv = how.keep_kv.then(|| self.export(&cache)).transpose()?;
                    found[i] = Some(embedding);
                }
            }
            done(texts_done)
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Prepares texts to be embedded: adds the instruction, tokenizes, and cuts at the maximum
    /// length.
    ///
    /// # Errors
    /// When a text is empty, the instruction is too long or leaves no room for text, an option is
    /// invalid, or the tokenizer has no token for some part of a text.
    pub fn encode_texts(
        &self,
        texts: &[impl AsRef<str> + Sync],
        how: &Embed,
    ) -> Result<Vec<Encoded>> {
        self.encode(texts, how, |prefix, _, text| {
            let text = self.tokenizer().beginning(text.as_ref(), how.max_length);
            Ok(self.tokenizer().encode(&format!("{prefix}{text}"))?)
        })
    }

    /// Like [`Engine::encode_texts`], for texts that are given as token ids: only their own, as
    /// [`Tokenizer::encode_continued`] returns them, without `<s>` and tags. The result is that
    /// of the text itself. Ids that do not round-trip through text (part of a character) follow
    /// the ids of the instruction as they are.
    ///
    /// [`Tokenizer::encode_continued`]: gritlm_model::tokenizer::Tokenizer::encode_continued
    ///
    /// ```
    /// use gritlm::{Embed, Engine, Options};
    ///
    /// let engine = Engine::open("demo", &Options::default())?;
    /// let how = Embed::with_instruction("Find it.");
    /// let text = engine.tokenizer().encode_continued("chess interface")?;
    /// let encoded = engine.encode_tokens(&[text], &how)?;
    /// assert_eq!(encoded, engine.encode_texts(&["chess interface"], &how)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::encode_texts`], and when an id is not in the vocabulary.
    pub fn encode_tokens(
        &self,
        texts: &[impl AsRef<[u32]> + Sync],
        how: &Embed,
    ) -> Result<Vec<Encoded>> {
        let vocab = self.config().vocab;
        self.encode(texts, how, |prefix, index, ids| {
            let ids = ids.as_ref();
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return Err(Error::Input {
                    what: format!("text {index} (counted from 0)"),
                    problem: format!("expected token ids below {vocab}, found {id}"),
                });
            }
            // Ids far beyond the last token that counts need not be turned into text.
            let (text, rest) = ids.split_at(ids.len().min(how.max_length.saturating_mul(2)));
            let mut joined = self.tokenizer().encode_joined(prefix, text)?;
            joined.extend(rest);
            Ok(joined)
        })
    }

    /// Encodes texts on all threads. `join` returns all ids of a text, given the prefix with the
    /// instruction, the text's index, and the text.
    fn encode<T: Sync>(
        &self,
        texts: &[T],
        how: &Embed,
        join: impl Fn(&str, usize, &T) -> Result<Vec<u32>> + Sync,
    ) -> Result<Vec<Encoded>> {
        how.check(self.config().dim)?;
        self.check_bytes("instruction", how.instruction.len())?;
        let prefix = embed_prefix(&how.instruction);
        // The instruction is counted as in the original: tokenized alone, with `<s>`.
        let skip = self.tokenizer().encode(&prefix)?.len();
        if skip >= how.max_length {
            return Err(Error::LongInstruction { tokens: skip, limit: how.max_length });
        }
        let encode = |(index, text)| {
            let mut tokens = join(&prefix, index, text)?;
            let length = tokens.len();
            tokens.truncate(how.max_length);
            Ok(Encoded { truncated: length - tokens.len(), tokens, skip })
        };
        let encoded = texts.par_iter().enumerate().map(encode).collect::<Result<Vec<Encoded>>>()?;
        match encoded.iter().position(|e| e.tokens.len() <= skip) {
            Some(index) => Err(Error::EmptyText { index }),
            None => Ok(encoded),
        }
    }

    /// Returns the mask that an embedding pass with these options uses.
    pub fn mask_for(&self, how: &Embed) -> Mask {
        how.mask.unwrap_or_else(|| self.embedding_mask(how.attn.unwrap_or(self.options().attn)))
    }
}

/// Returns the inner product of two vectors of equal length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Engine {
    /// Runs each sequence once, whole and with an empty past, in as few passes as fit. After each
    /// pass, `each` receives the outputs with the sequences' indices and caches.
    pub(crate) fn run_all(
        &self,
        tokens: &[&[u32]],
        mask: Mask,
        want: impl Fn(usize) -> Want,
        each: &mut dyn FnMut(Vec<(usize, Output, KvCache)>) -> Result<()>,
    ) -> Result<()> {
        for batch in self.batches(tokens) {
            let mut caches: Vec<KvCache> = batch.iter().map(|_| self.cache()).collect();
            let sequence = |(&i, cache)| Sequence { tokens: tokens[i], cache, mask, want: want(i) };
            let mut sequences: Vec<Sequence<'_>> =
                batch.iter().zip(&mut caches).map(sequence).collect();
            let outputs = self.run(&mut sequences)?;
            let pass = batch.into_iter().zip(outputs).zip(caches);
            each(pass.map(|((i, output), cache)| (i, output, cache)).collect())?;
        }
        Ok(())
    }

    /// Groups sequences of similar length into passes. A pass has at most the engine's token
    /// budget, unless one sequence alone is longer, and needs no more pages than are free.
    /// Nothing is padded, so length matters for attention only: a task is as long as its
    /// sequence, and tasks of equal length keep the threads evenly busy. The longest sequences
    /// come first, so that memory use peaks at the start.
    fn batches(&self, sequences: &[&[u32]]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(sequences[i].len()));
        let (budget, free) = (self.options().batch_tokens, self.pool().free_pages());
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let (mut tokens, mut pages) = (0, 0);
        for i in order {
            let more = sequences[i].len();
            tokens += more;
            pages += more.div_ceil(PAGE);
            match batches.last_mut() {
                Some(batch) if tokens <= budget && pages <= free => batch.push(i),
                _ => {
                    batches.push(vec![i]);
                    (tokens, pages) = (more, more.div_ceil(PAGE));
                }
            }
        }
        batches
    }
}
