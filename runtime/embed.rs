//! Embedding: texts to vectors, in batches by token budget and length.

use crate::batch::{Output, Sequence, Want};
use crate::{Attn, Engine, Error, Result};
use gritlm_model::ops::{Mask, PAGE, Pooling};
use gritlm_model::prompt::embed_prefix;
use rayon::prelude::*;

/// How to embed.
///
/// ```
/// use gritlm::Embed;
/// let query = Embed::with_instruction("Given a question, retrieve passages that answer it");
/// let document = Embed::default();
/// assert_eq!(document.max_length, 512);
/// # let _ = query;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// What the vector is for; empty for documents. Attended to, left out of pooling.
    pub instruction: String,
    /// How hidden states become one vector.
    pub pooling: Pooling,
    /// Whether vectors have length 1.
    pub normalize: bool,
    /// Tokens of a whole sequence, `<s>` and instruction counted; the rest is cut off at the right.
    pub max_length: usize,
    /// Instead of the engine's.
    pub attn: Option<Attn>,
    /// Instead of the mask that `attn` stands for.
    pub mask: Option<Mask>,
    /// Keep only so many leading numbers (then normalised again, if at all).
    pub dimensions: Option<usize>,
}

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
        }
    }
}

impl Embed {
    /// For queries: an instruction, and the defaults.
    pub fn with_instruction(instruction: impl Into<String>) -> Self {
        Self { instruction: instruction.into(), ..Self::default() }
    }
}

/// A text's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `(dim)`, or as many as asked for.
    pub vector: Vec<f32>,
    /// Tokens that were computed, `<s>`, tags and instruction counted.
    pub tokens: usize,
    /// Tokens that were cut off.
    pub truncated: usize,
}

impl Engine {
    /// Embeds texts; results in their order.
    ///
    /// # Errors
    /// When a text is empty, the instruction fills the length, an option means nothing, or the KV
    /// pages do not suffice.
    pub fn embed(&self, texts: &[impl AsRef<str> + Sync], how: &Embed) -> Result<Vec<Embedding>> {
        self.embed_watched(texts, how, &mut |_| Ok(()))
    }

    /// [`Engine::embed`], calling `done` with the number of texts after each pass; its error ends
    /// the work.
    ///
    /// # Errors
    /// As [`Engine::embed`], and what `done` returns.
    pub fn embed_watched(
        &self,
        texts: &[impl AsRef<str> + Sync],
        how: &Embed,
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Embedding>> {
        let dim = self.config().dim;
        if let Some(n) = how.dimensions
            && !(1..=dim).contains(&n)
        {
            return Err(Error::Option {
                option: "--dimensions",
                expected: format!("1 to {dim}"),
                found: n.to_string(),
            });
        }
        let prefix = embed_prefix(&how.instruction);
        // Counted as the original counts: the instruction alone, with `<s>`.
        let instruction = self.tokenizer().encode(&prefix)?;
        let skip = instruction.len();
        if skip >= how.max_length {
            return Err(Error::LongInstruction { tokens: skip, limit: how.max_length });
        }
        let mut encoded = texts
            .par_iter()
            .map(|text| {
                let text = text.as_ref();
                if self.config().instruction_apart {
                    let text = self.tokenizer().encode_continued(text)?;
                    return Ok([instruction.as_slice(), &text].concat());
                }
                Ok(self.tokenizer().encode(&format!("{prefix}{text}"))?)
            })
            .collect::<Result<Vec<Vec<u32>>>>()?;
        let lengths: Vec<usize> = encoded.iter().map(Vec::len).collect();
        encoded.iter_mut().for_each(|ids| ids.truncate(how.max_length));
        if let Some(index) = encoded.iter().position(|ids| ids.len() <= skip) {
            return Err(Error::EmptyText { index });
        }

        let mask = how
            .mask
            .unwrap_or_else(|| self.embedding_mask(how.attn.unwrap_or(self.options().attn)));
        let cut = how.dimensions.filter(|&n| n < dim);
        let want = Want::Embedding {
            skip,
            pooling: how.pooling,
            normalize: how.normalize && cut.is_none(),
        };
        let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
        for batch in self.batches(&encoded) {
            let mut caches: Vec<_> = batch.iter().map(|_| self.cache()).collect();
            let mut sequences: Vec<Sequence<'_>> = batch
                .iter()
                .zip(&mut caches)
                .map(|(&i, cache)| Sequence {
                    tokens: &encoded[i],
                    cache,
                    mask,
                    want: want.clone(),
                })
                .collect();
            for (&i, output) in batch.iter().zip(self.run(&mut sequences)?) {
                if let Output::Embedding(vector) = output {
                    if !vector.iter().all(|v| v.is_finite()) {
                        return Err(Error::NotFinite { what: format!("text {i}") });
                    }
                    vectors[i] = vector;
                }
            }
            done(batch.len())?;
        }
        let finish = |(mut vector, (ids, length)): (Vec<f32>, (&Vec<u32>, usize))| {
            if let Some(n) = cut {
                vector.truncate(n);
                if how.normalize {
                    let length = dot(&vector, &vector).sqrt().max(1e-12);
                    vector.iter_mut().for_each(|v| *v /= length);
                }
            }
            Embedding { vector, tokens: ids.len(), truncated: length - ids.len() }
        };
        Ok(vectors.into_iter().zip(encoded.iter().zip(lengths)).map(finish).collect())
    }
}

/// Inner product of two vectors.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Engine {
    /// Groups sequences of like length into passes of at most the engine's token budget (a longer
    /// one goes alone) that find free pages. Nothing is padded, so length matters for one thing
    /// only: an attention task is as long as its sequence, and equal ones share the threads
    /// evenly. Longest first, so that memory shows its peak at the start.
    pub(crate) fn batches(&self, sequences: &[Vec<u32>]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(sequences[i].len()));
        let (budget, free) = (self.options().batch_tokens, self.free_pages());
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
