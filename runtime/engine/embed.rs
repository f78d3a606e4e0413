//! Embedding: texts to vectors, in batches by token budget and length.

use crate::batch::{Output, Sequence, Want};
use crate::cache::{KvCache, KvSnapshot};
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
    /// Also return the keys and values of each pass ([`Embedding::kv`]), to generate from.
    pub keep_kv: bool,
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
            keep_kv: false,
        }
    }
}

impl Embed {
    /// For queries: an instruction, and the defaults.
    pub fn with_instruction(instruction: impl Into<String>) -> Self {
        Self { instruction: instruction.into(), ..Self::default() }
    }

    /// Whether every option means something to a model of this width.
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

    /// Numbers to keep, where that is not all.
    fn cut(&self, dim: usize) -> Option<usize> {
        self.dimensions.filter(|&n| n < dim)
    }
}

/// A text's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `(dim)`, or as many as asked for.
    pub vector: Vec<f32>,
    /// Tokens that were computed, `<s>`, tags and instruction counted.
    pub tokens: usize,
    /// Tokens that were cut off; at least so many, where the text is far longer.
    pub truncated: usize,
    /// Keys and values of the pass, if [`Embed::keep_kv`] asks for them.
    pub kv: Option<KvSnapshot>,
}

/// A text's tokens, ready to be embedded; see [`Engine::encode_texts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// `<s>`, tags, instruction and text.
    pub tokens: Vec<u32>,
    /// How many of them, from the first, pooling leaves out.
    pub skip: usize,
    /// Tokens that were cut off; at least so many, where the text is far longer.
    pub truncated: usize,
}

impl Encoded {
    /// What a pass is to bring back. A vector that is cut gets its length afterwards.
    pub(crate) fn want(&self, how: &Embed, dim: usize) -> Want {
        let normalize = how.normalize && how.cut(dim).is_none();
        Want::Embedding { skip: self.skip, pooling: how.pooling, normalize }
    }

    /// Text `index`'s embedding from what the pass brought back.
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
        let encoded = self.encode_texts(texts, how)?;
        let mut found: Vec<Option<Embedding>> = vec![None; texts.len()];
        self.embed_encoded(&encoded, how, &mut |pass| {
            let texts = pass.len();
            pass.into_iter().for_each(|(index, embedding)| found[index] = Some(embedding));
            done(texts)
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Embeds texts that [`Engine::encode_texts`] has made ready. `each` receives the results of
    /// each pass with their indices in `texts`; its error ends the work.
    ///
    /// # Errors
    /// When an option means nothing, the KV pages do not suffice, or a result is not finite; and
    /// what `each` returns.
    pub fn embed_encoded(
        &self,
        texts: &[Encoded],
        how: &Embed,
        each: &mut dyn FnMut(Vec<(usize, Embedding)>) -> Result<()>,
    ) -> Result<()> {
        let dim = self.config().dim;
        how.check(dim)?;
        let tokens: Vec<&[u32]> = texts.iter().map(|text| text.tokens.as_slice()).collect();
        let want = |i: usize| texts[i].want(how, dim);
        self.run_all(&tokens, self.mask_for(how), want, &mut |pass| {
            let mut found = Vec::with_capacity(pass.len());
            for (i, output, cache) in pass {
                if let Output::Embedding(vector) = output {
                    let mut embedding = texts[i].finish(i, vector, how)?;
                    embedding.kv = how.keep_kv.then(|| self.export(&cache)).transpose()?;
                    found.push((i, embedding));
                }
            }
            each(found)
        })
    }

    /// Makes texts ready to be embedded: instruction, tokens, what is cut off.
    ///
    /// # Errors
    /// When a text is empty, the instruction fills the length, or an option means nothing.
    pub fn encode_texts(
        &self,
        texts: &[impl AsRef<str> + Sync],
        how: &Embed,
    ) -> Result<Vec<Encoded>> {
        self.encode(texts, how, |prefix, instruction, _, text| {
            let text = self.tokenizer().beginning(text.as_ref(), how.max_length);
            Ok(match self.config().instruction_apart {
                true => [instruction, &self.tokenizer().encode_continued(text)?].concat(),
                false => self.tokenizer().encode(&format!("{prefix}{text}"))?,
            })
        })
    }

    /// [`Engine::encode_texts`] for texts that are token ids already: their own only, as
    /// [`Tokenizer::encode_continued`] makes them, without `<s>` and tags. What comes of them is
    /// what comes of the text; ids that no text has (a part of a character) follow the
    /// instruction's as they are.
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
    /// As [`Engine::encode_texts`], and for ids beyond the vocabulary.
    pub fn encode_tokens(
        &self,
        texts: &[impl AsRef<[u32]> + Sync],
        how: &Embed,
    ) -> Result<Vec<Encoded>> {
        let vocab = self.config().vocab;
        self.encode(texts, how, |prefix, instruction, index, ids| {
            let ids = ids.as_ref();
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return Err(Error::Input {
                    what: format!("text {index} (counted from 0)"),
                    problem: format!("expected token ids below {vocab}, found {id}"),
                });
            }
            if self.config().instruction_apart {
                return Ok([instruction, ids].concat());
            }
            // What is far behind the last token that can count need not become text.
            let (text, rest) = ids.split_at(ids.len().min(how.max_length.saturating_mul(2)));
            let mut joined = self.tokenizer().encode_joined(prefix, text)?;
            joined.extend(rest);
            Ok(joined)
        })
    }

    /// `join`: all ids of a text, from the instruction's text and ids, its index and itself.
    fn encode<T: Sync>(
        &self,
        texts: &[T],
        how: &Embed,
        join: impl Fn(&str, &[u32], usize, &T) -> Result<Vec<u32>> + Sync,
    ) -> Result<Vec<Encoded>> {
        how.check(self.config().dim)?;
        self.check_bytes("instruction", how.instruction.len())?;
        let prefix = embed_prefix(&how.instruction);
        // Counted as the original counts: the instruction alone, with `<s>`.
        let instruction = self.tokenizer().encode(&prefix)?;
        let skip = instruction.len();
        if skip >= how.max_length {
            return Err(Error::LongInstruction { tokens: skip, limit: how.max_length });
        }
        let encode = |(index, text)| {
            let mut tokens = join(&prefix, &instruction, index, text)?;
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

    /// The mask of an embedding pass.
    pub fn mask_for(&self, how: &Embed) -> Mask {
        how.mask.unwrap_or_else(|| self.embedding_mask(how.attn.unwrap_or(self.options().attn)))
    }
}

/// Inner product of two vectors.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Engine {
    /// Runs each sequence once, whole and with an empty past, in as few passes as fit. `each`
    /// receives the outputs of each pass with the sequences' indices and caches.
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

    /// Groups sequences of like length into passes of at most the engine's token budget (a longer
    /// one goes alone) that find free pages. Nothing is padded, so length matters for one thing
    /// only: an attention task is as long as its sequence, and equal ones share the threads
    /// evenly. Longest first, so that memory shows its peak at the start.
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
