//! The GRIT objective: loss = `embedding_weight` · L_rep + `generative_weight` · L_gen
//! (Muennighoff et al. 2024, equations 1 to 3), with the original's choices as defaults.
//!
//! Both losses are means over the batch: how it is cut into chunks changes neither them nor their
//! gradients. (In the original the gradient of L_rep is divided by the number of devices, since each
//! computes the loss of the whole batch and the gradients are then averaged.)

use crate::pack::Run;
use crate::{Answer, Error, Result, Text};
use gritlm_model::config::Config;
use gritlm_model::ops::{Contrast, Mask, Pooling, PoolingSpan};
use std::fmt;
use std::str::FromStr;

/// What is learned, and how its parts are weighed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Objective {
    /// Divisor of the cosines in L_rep.
    pub temperature: f32,
    /// Weight of L_rep.
    pub embedding_weight: f32,
    /// Which tokens' losses L_gen is the mean of.
    pub generative: GenerativeLoss,
    /// Weight of L_gen.
    pub generative_weight: f32,
    /// Whether a query is compared with its own passages only, instead of with all passages of the
    /// batch.
    pub hard_negatives_only: bool,
    /// Numbers of leading columns that L_rep is computed for, besides all; L_rep is their mean
    /// (Matryoshka embeddings, Kusupati et al. 2022).
    pub dimensions: Vec<usize>,
    /// How hidden states become one vector.
    pub pooling: Pooling,
    /// Which tokens see which.
    pub attention: Parts,
    /// Weight of the router's auxiliary loss, which keeps a mixture's experts equally busy, in the
    /// generative half; 0.02 in GritLM-8x7B. It is a mean over chunks, by their rows.
    pub router_weight: f32,
}

gritlm_model::setters!(Objective {
    temperature: f32,
    embedding_weight: f32,
    generative: GenerativeLoss,
    generative_weight: f32,
    hard_negatives_only: bool,
    dimensions: Vec<usize>,
    pooling: Pooling,
    attention: Parts,
    router_weight: f32,
});

impl Default for Objective {
    fn default() -> Self {
        Self {
            temperature: 0.02,
            embedding_weight: 1.0,
            generative: GenerativeLoss::Mixed { group: 32 },
            generative_weight: 1.0,
            hard_negatives_only: false,
            dimensions: Vec::new(),
            pooling: Pooling::Mean,
            attention: Parts::default(),
            router_weight: 0.0,
        }
    }
}

/// How the losses of tokens become L_gen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerativeLoss {
    /// The mean over the learned tokens of each `group` conversations, then over the groups: the
    /// paper's "mix", with 32 of 256 in a group.
    Mixed {
        /// Conversations of one group.
        group: usize,
    },
    /// The sum over all learned tokens, divided by the number of conversations.
    Token,
}

/// Which tokens see which, in the original's four letters, `b` for both directions and `c` for
/// causal: those of an embedded text's instruction and of the text, of a prompt and of its answer.
/// A part sees the whole of the parts before it. `bbcc` is GritLM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts([bool; 4]);

impl Default for Parts {
    fn default() -> Self {
        Self([true, true, false, false])
    }
}

impl FromStr for Parts {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let both: Vec<bool> =
            text.chars().filter(|c| "bc".contains(*c)).map(|c| c == 'b').collect();
        match both.try_into() {
            Ok(parts) if text.len() == 4 => Ok(Self(parts)),
            _ => Err(Error::Option {
                option: "attn",
                expected: "four letters b or c, such as bbcc".into(),
                found: text.into(),
            }),
        }
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&both| f.write_str(if both { "b" } else { "c" }))
    }
}

impl Parts {
    /// Returns the masks of an embedded text: of its instruction and of the text. As in the
    /// original, a sliding window counts for causal parts only.
    fn embedding(self, config: &Config) -> [Mask; 2] {
        [self.0[0], self.0[1]].map(|both| mask(both, config))
    }

    /// Returns the masks of a prompt and of its answer.
    fn generation(self, config: &Config) -> [Mask; 2] {
        [self.0[2], self.0[3]].map(|both| mask(both, config))
    }
}

fn mask(both: bool, config: &Config) -> Mask {
    match both {
        true => Mask::Bidirectional { window: None },
        false => Mask::Causal { window: config.window.map(|w| w as u32) },
    }
}

impl Objective {
    /// Checks the values, for a model of this config.
    ///
    /// # Errors
    /// When one is out of range.
    pub fn check(&self, config: &Config) -> Result<()> {
        let wrong = |option, expected: &str, found: String| {
            Err(Error::Option { option, expected: expected.into(), found })
        };
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return wrong("temperature", "a number above 0", self.temperature.to_string());
        }
        for (option, weight) in [
            ("embedding_weight", self.embedding_weight),
            ("generative_weight", self.generative_weight),
            ("router_weight", self.router_weight),
        ] {
            if !(weight.is_finite() && weight >= 0.0) {
                return wrong(option, "a number from 0 on", weight.to_string());
            }
        }
        if self.generative == (GenerativeLoss::Mixed { group: 0 }) {
            return wrong("generative", "groups of at least one conversation", "0".into());
        }
        match self.dimensions.iter().find(|&&d| d == 0 || d > config.dim) {
            Some(d) => wrong("dimensions", &format!("1 to {}", config.dim), d.to_string()),
            None => Ok(()),
        }
    }

    /// Returns the leading columns that L_rep compares, each once: all, then fewer.
    pub(crate) fn used(&self, dim: usize) -> Vec<usize> {
        let mut used = vec![dim];
        used.extend(&self.dimensions);
        used.sort_unstable_by(|a, b| b.cmp(a));
        used.dedup();
        used
    }

    /// Returns which of the passages each query should find: the first of its own `group`.
    pub(crate) fn wanted(&self, queries: usize, group: usize) -> Vec<Contrast> {
        let wanted = |i: usize| {
            let target = (i * group) as u32;
            let (first, count) = match self.hard_negatives_only {
                true => (target, group as u32),
                false => (0, (queries * group) as u32),
            };
            Contrast { target, first, count }
        };
        (0..queries).map(wanted).collect()
    }

    /// Returns the weight of each learned token's loss in L_gen, conversation by conversation, for
    /// the numbers of their learned tokens.
    pub(crate) fn token_weights(&self, learned: &[usize]) -> Vec<f32> {
        match self.generative {
            GenerativeLoss::Token => vec![1.0 / learned.len() as f32; learned.len()],
            GenerativeLoss::Mixed { group } => {
                let counts: Vec<usize> = learned.chunks(group).map(|g| g.iter().sum()).collect();
                let groups = counts.iter().filter(|&&count| count > 0).count();
                let weight = |i: usize| 1.0 / (groups * counts[i / group].max(1)) as f32;
                (0..learned.len()).map(weight).collect()
            }
        }
    }

    /// Returns how an embedded text runs.
    pub(crate) fn embedding_run<'a>(&self, text: &'a Text, config: &Config) -> Run<'a> {
        Run::new(&text.tokens, text.skip, self.attention.embedding(config))
    }

    /// Returns the rows that each text of a chunk is pooled from.
    pub(crate) fn spans(&self, texts: &[&Text], normalize: bool) -> Vec<PoolingSpan> {
        let mut row = 0;
        let span = |text: &&Text| {
            let (rows, skip) = (text.tokens.len() as u32, text.skip as u32);
            row += rows;
            PoolingSpan { row: row - rows, rows, skip, pooling: self.pooling, normalize }
        };
        texts.iter().map(span).collect()
    }

    /// Returns how a conversation runs, after its document if it has one. Its prompt ends where the
    /// first learned token begins.
    pub(crate) fn generative_run<'a>(&self, answer: &'a Answer, config: &Config) -> Run<'a> {
        let prompt = answer.targets.iter().position(|&target| target).unwrap_or(0);
        let masks = self.attention.generation(config);
        let run = Run::new(&answer.tokens, prompt, masks);
        match &answer.document {
            None => run,
            Some(document) => {
                let mut parts = self.embedding_run(document, config).parts;
                parts.extend(run.parts);
                Run { parts }
            }
        }
    }
}
