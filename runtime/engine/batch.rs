//! A batch packs sequences end to end. Each has its own mask and its own output.
//!
//! This is the low-level interface of the library: [`crate::Engine::run`] takes sequences of
//! token ids and runs them in one pass, so that embedding and generation share a batch.

use crate::cache::{KvCache, KvPool};
use crate::{Error, Result};
use gritlm_model::config::Config;
use gritlm_model::ops::{
    Layout, Mask, PAGE, Pooling, PoolingSpan, SampleParams, SampledToken, Span,
};
use std::sync::Arc;

/// New tokens of one sequence, to be run in a pass.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// Token ids; at least one.
    pub tokens: &'a [u32],
    /// Cache of the tokens before these. The pass adds the new ones to it.
    pub cache: &'a mut KvCache,
    /// Which keys the new tokens attend to.
    pub mask: Mask,
    /// What the pass returns.
    pub want: Want,
}

/// What a pass returns for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// Nothing: the tokens only go into the cache.
    Nothing,
    /// The next token, sampled on the device.
    Token(SampleParams),
    /// The last token's logits.
    Logits,
    /// Every token's logits.
    AllLogits,
    /// One vector, pooled from the hidden states after the final norm.
    Embedding {
        /// Number of leading tokens (the instruction) that pooling leaves out; fewer than all.
        skip: usize,
        /// Pooling method.
        pooling: Pooling,
        /// Whether the vector is L2-normalised.
        normalize: bool,
    },
    /// Every token's hidden state after the final norm.
    Hidden,
    /// Log-probabilities of known tokens, which tell how likely the model finds a given text.
    Scores {
        /// Token that follows each of the first tokens: the logits of token i score `targets[i]`.
        /// There are at most as many targets as tokens.
        targets: Vec<u32>,
        /// Number of most likely tokens to report with each target.
        logprobs: u32,
        /// What else the pass returns; not scores again.
        then: Box<Want>,
    },
}

impl Want {
    /// Returns what is wanted besides scores.
    pub(crate) fn besides_scores(&self) -> &Self {
        match self {
            Self::Scores { then, .. } => then,
            want => want,
        }
    }

    /// Returns whether the output needs logits, which a checkpoint without a head cannot compute.
    pub(crate) fn needs_head(&self) -> bool {
        match self {
            Self::Token(_) | Self::Logits | Self::AllLogits | Self::Scores { .. } => true,
            Self::Nothing | Self::Embedding { .. } | Self::Hidden => false,
        }
    }
}

/// What a pass has returned for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Nothing was wanted.
    Nothing,
    /// The sampled token.
    Token(SampledToken),
    /// Logits, `(1, vocab)` or `(tokens, vocab)`.
    Logits(Vec<f32>),
    /// The pooled vector, `(dim)`.
    Embedding(Vec<f32>),
    /// Hidden states, `(tokens, dim)`.
    Hidden(Vec<f32>),
    /// The targets with their log-probabilities, and the output that was wanted besides.
    Scores(Vec<SampledToken>, Box<Output>),
}

/// A batch as the forward pass runs it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    /// Rows whose logits are computed: first those to sample from, then those to return.
    pub(crate) logit_rows: Vec<u32>,
    pub(crate) draws: Vec<SampleParams>,
    pub(crate) pools: Vec<PoolingSpan>,
    /// Rows that score a given token; `scores` holds the tokens in the same order.
    pub(crate) score_rows: Vec<u32>,
    pub(crate) scores: Vec<SampleParams>,
}

impl Plan {
    /// Checks the sequences, reserves their pages and packs them. On an error every cache is as
    /// it was before, and no page that it newly reserved is kept.
    pub(crate) fn new(
        sequences: &mut [Sequence<'_>],
        config: &Config,
        frequencies: &[f32],
        pool: &Arc<KvPool>,
    ) -> Result<Self> {
        for (i, s) in sequences.iter().enumerate() {
            check(s, config, pool)
                .map_err(|problem| Error::Input { what: format!("sequence {i}"), problem })?;
        }
        let before: Vec<usize> = sequences.iter().map(|s| s.cache.pages()).collect();
        if let Err(error) = sequences.iter_mut().try_for_each(|s| s.cache.reserve(s.tokens.len())) {
            for (s, pages) in sequences.iter_mut().zip(before) {
                s.cache.give_back(pages);
            }
            return Err(error);
        }
        Ok(Self::pack(sequences, frequencies))
    }

    fn pack(sequences: &[Sequence<'_>], frequencies: &[f32]) -> Self {
        let mut layout = Layout {
            tokens: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            spans: Vec::new(),
            tables: Vec::new(),
            frequencies: frequencies.to_vec(),
        };
        let (mut draw_rows, mut other_rows) = (Vec::new(), Vec::new());
        let (mut draws, mut pools) = (Vec::new(), Vec::new());
        let (mut score_rows, mut scores) = (Vec::new(), Vec::new());
        for s in sequences {
            let (row, rows) = (layout.tokens.len() as u32, s.tokens.len() as u32);
            let (past, table) = (s.cache.tokens(), s.cache.table());
            layout.tokens.extend_from_slice(s.tokens);
            for position in past..past + s.tokens.len() {
                layout.positions.push(position as u32);
                layout.slots.push(table[position / PAGE] * PAGE as u32 + (position % PAGE) as u32);
            }
            let start = layout.tables.len() as u32;
            layout.spans.push(Span { row, rows, past: past as u32, table: start, mask: s.mask });
            // Reserved pages that no token has reached yet are left out.
            layout.tables.extend(&table[..(past + s.tokens.len()).div_ceil(PAGE)]);
            if let Want::Scores { targets, logprobs, .. } = &s.want {
                score_rows.extend((row..).take(targets.len()));
                scores.extend(targets.iter().map(|&id| SampleParams {
                    given: Some(id),
                    logprobs: *logprobs,
                    ..SampleParams::greedy()
                }));
            }
            match s.want.besides_scores() {
                // `check` has refused scores within scores.
                Want::Nothing | Want::Hidden | Want::Scores { .. } => {}
                Want::Token(draw) => {
                    draw_rows.push(row + rows - 1);
                    draws.push(draw.clone());
                }
                Want::Logits => other_rows.push(row + rows - 1),
                Want::AllLogits => other_rows.extend(row..row + rows),
                &Want::Embedding { skip, pooling, normalize } => {
                    pools.push(PoolingSpan { row, rows, skip: skip as u32, pooling, normalize });
                }
            }
        }
        draw_rows.extend(other_rows);
        Self { layout, logit_rows: draw_rows, draws, pools, score_rows, scores }
    }

    pub(crate) fn rows(&self) -> usize {
        self.layout.tokens.len()
    }
}

fn check(s: &Sequence<'_>, config: &Config, pool: &Arc<KvPool>) -> std::result::Result<(), String> {
    let skip = match s.want.besides_scores() {
        Want::Embedding { skip, .. } => *skip,
        Want::Scores { .. } => return Err("expected scores once, found scores besides".into()),
        _ => 0,
    };
    check_tokens(s.tokens, skip, config)?;
    if let Want::Scores { targets, .. } = &s.want {
        if targets.len() > s.tokens.len() {
            let (targets, tokens) = (targets.len(), s.tokens.len());
            return Err(format!("expected at most {tokens} tokens to score, found {targets}"));
        }
        check_ids(targets, config)?;
    }
    match s.cache.belongs_to(pool) {
        true => Ok(()),
        false => Err("its cache belongs to another engine".into()),
    }
}

/// Checks that a model with this config can run the tokens, and that some are left after the
/// first `skip`.
pub(crate) fn check_tokens(
    tokens: &[u32],
    skip: usize,
    config: &Config,
) -> std::result::Result<(), String> {
    if tokens.is_empty() {
        return Err("expected at least one token, found none".into());
    }
    check_ids(tokens, config)?;
    if skip >= tokens.len() {
        return Err(format!("nothing to pool: {skip} of {} tokens are left out", tokens.len()));
    }
    Ok(())
}

fn check_ids(ids: &[u32], config: &Config) -> std::result::Result<(), String> {
    match ids.iter().find(|&&id| id as usize >= config.vocab) {
        Some(id) => Err(format!("expected token ids below {}, found {id}", config.vocab)),
        None => Ok(()),
    }
}
