//! Turns sampled tokens into an answer: text piece by piece, with possible stop texts held back,
//! until the answer ends. [`Engine::generate`], which runs one answer at a time, and the
//! scheduler, which runs many in a batch, both use it.

use crate::batch::{Output, Sequence, Want};
use crate::cache::KvCache;
use crate::grammar::Guide;
use crate::{Engine, Error, Finish, Piece, Result, Sampling};
use gritlm_model::cpu::draw;
use gritlm_model::ops::{Mask, SampleParams, SampledToken};
use gritlm_model::tokenizer::{Stream, Tokenizer};

/// A sequence that is being generated: the tokens in the cache, and those still to be run.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) cache: KvCache,
    /// Tokens still to be run: the prompt's, then each sampled one.
    pending: Vec<u32>,
    /// Distinct ids so far, sorted, for the repetition penalty.
    seen: Vec<u32>,
}

impl Context {
    pub(crate) fn new(cache: KvCache) -> Self {
        Self { cache, pending: Vec::new(), seen: Vec::new() }
    }

    /// Adds a token that is to be run.
    pub(crate) fn push(&mut self, id: u32) {
        self.pending.push(id);
        self.see(id);
    }

    /// Records a token, which the cache may hold already, for the repetition penalty.
    pub(crate) fn see(&mut self, id: u32) {
        if let Err(at) = self.seen.binary_search(&id) {
            self.seen.insert(at, id);
        }
    }

    /// Returns the distinct ids so far, sorted.
    pub(crate) fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// Returns the number of tokens so far, whether run or not.
    pub(crate) fn tokens(&self) -> usize {
        self.cache.tokens() + self.pending.len()
    }

    /// Returns the number of tokens that have not been run.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns the last token, if it has not been run.
    pub(crate) fn last(&self) -> Option<u32> {
        self.pending.last().copied()
    }

    /// Returns how many tokens the next pass runs: at most the budget with a causal mask, else
    /// all, because a bidirectional mask lets tokens see later ones.
    pub(crate) fn part(&self, budget: usize, answer: &Continuation<'_>) -> usize {
        match answer.mask {
            Mask::Causal { .. } => self.pending.len().min(budget),
            Mask::Bidirectional { .. } => self.pending.len(),
        }
    }

    /// Returns the next `tokens` tokens as a sequence. If nothing stays pending, the pass also
    /// samples the next token.
    pub(crate) fn sequence(&mut self, tokens: usize, answer: &Continuation<'_>) -> Sequence<'_> {
        let mut want = match tokens == self.pending.len() {
            true => answer.want(&self.seen),
            false => Want::Nothing,
        };
        if let Some(logprobs) = answer.how.prompt_logprobs.filter(|_| answer.drawn == 0) {
            let targets = self.pending[1..].iter().copied().take(tokens).collect();
            want = Want::Scores { targets, logprobs, then: Box::new(want) };
        }
        let tokens = &self.pending[..tokens];
        Sequence { tokens, cache: &mut self.cache, mask: answer.mask, want }
    }

    /// Removes tokens that a pass has run.
    pub(crate) fn ran(&mut self, tokens: usize) {
        self.pending.drain(..tokens);
    }
}

/// Progress of an answer, independent of who runs the passes.
pub(crate) struct Continuation<'a> {
    tokenizer: &'a Tokenizer,
    how: Sampling,
    mask: Mask,
    /// State of the grammar, if the answer has one.
    guide: Option<Guide>,
    text: Stream<'a>,
    /// Decoded text that might be the beginning of a stop text.
    held: String,
    prompt_tokens: usize,
    /// Maximum number of tokens to sample: `max_tokens`, or fewer if positions run out.
    limit: usize,
    drawn: usize,
    /// Log-probabilities so far of the prompt's tokens, from the second on.
    scores: Vec<SampledToken>,
    over: bool,
}

impl<'a> Continuation<'a> {
    /// Creates the continuation of a prompt of `prompt_tokens` tokens.
    ///
    /// # Errors
    /// When an option is invalid, the checkpoint has no head, the prompt fills the model's
    /// positions, or the grammar belongs to another engine.
    pub(crate) fn new(engine: &'a Engine, how: &Sampling, prompt_tokens: usize) -> Result<Self> {
        how.check()?;
        engine.check_generates()?;
        let positions = engine.config().max_positions;
        if prompt_tokens >= positions {
            return Err(Error::LongPrompt { tokens: prompt_tokens, limit: positions });
        }
        let limit = how.max_tokens.min(positions - prompt_tokens);
        let guide = how.grammar.as_ref().map(|grammar| grammar.guide(engine)).transpose()?;
        Ok(Self {
            tokenizer: engine.tokenizer(),
            how: how.clone(),
            mask: how.mask.unwrap_or_else(|| engine.generation_mask()),
            guide,
            text: engine.tokenizer().stream(),
            held: String::new(),
            prompt_tokens,
            limit,
            drawn: 0,
            scores: Vec::new(),
            over: limit == 0 && how.prompt_logprobs.is_none(),
        })
    }

    /// Lets the text continue that of these ids, if `verbatim` is set.
    pub(crate) fn after(mut self, prompt: &[u32]) -> Self {
        if self.how.verbatim {
            self.text = self.tokenizer.stream_after(prompt);
        }
        self
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Returns the maximum number of tokens that the cache will hold. The last sampled token is
    /// never run.
    pub(crate) fn room(&self) -> usize {
        self.prompt_tokens + self.limit.saturating_sub(1)
    }

    pub(crate) fn mask(&self) -> Mask {
        self.mask
    }

    /// Returns the number of tokens sampled so far.
    pub(crate) fn drawn(&self) -> usize {
        self.drawn
    }

    /// Returns the log-probabilities of the prompt's tokens, from the second on, that have been
    /// run.
    pub(crate) fn scores(&self) -> &[SampledToken] {
        &self.scores
    }

    /// Returns whether the prompt's tokens are to be scored, which requires running all of them.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.how.prompt_logprobs.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Returns the place of the grammar's state, which can prepare the allowed tokens before the
    /// next one is sampled. It has to be there again when the next one is.
    pub(crate) fn guide(&mut self) -> &mut Option<Guide> {
        &mut self.guide
    }

    /// Returns the output to request from a pass, to sample the next token from.
    fn want(&self, seen: &[u32]) -> Want {
        match self.guide {
            _ if self.limit == 0 => Want::Nothing,
            Some(_) => Want::Logits,
            None => Want::Token(self.draw(seen)),
        }
    }

    /// Returns how the next token is sampled.
    fn draw(&self, seen: &[u32]) -> SampleParams {
        let how = &self.how;
        SampleParams {
            seen: if how.repetition_penalty == 1.0 { Vec::new() } else { seen.to_vec() },
            penalty: how.repetition_penalty,
            temperature: how.temperature,
            top_k: how.top_k,
            top_p: how.top_p,
            min_p: how.min_p,
            uniform: uniform(how.seed, self.drawn as u64),
            logprobs: how.logprobs,
            given: None,
        }
    }

    /// Takes the output of a pass and adds the token sampled from it to the context. Returns the
    /// piece of text that is now certain, or `None` if no token was sampled, for example after a
    /// part of the prompt.
    pub(crate) fn push(&mut self, output: Output, context: &mut Context) -> Result<Option<Piece>> {
        let output = match output {
            Output::Scores(scores, besides) => {
                if !scores.iter().all(|score| score.logprob.is_finite()) {
                    return Err(Error::NotFinite { what: "prompt".into() });
                }
                self.scores.extend(scores);
                self.over = self.limit == 0 && context.pending.is_empty();
                *besides
            }
            output => output,
        };
        let token = match (output, &mut self.guide) {
            (Output::Token(token), _) => token,
            (Output::Logits(logits), Some(guide)) => {
                let allowed = guide.allowed()?;
                draw(&self.draw(&context.seen), &logits, |id| allowed.is_allowed(id))
            }
            _ => return Ok(None),
        };
        if !token.logprob.is_finite() {
            return Err(Error::NotFinite { what: "answer".into() });
        }
        let id = token.token;
        self.drawn += 1;
        context.push(id);
        let complete = self.guide.as_mut().map(|guide| guide.push(id)).transpose()?;
        let ended = self.tokenizer.is_eos(id) && !(self.how.ignore_eos && complete.is_none());
        if !ended {
            self.held += &self.text.push(id)?;
        }
        let mut finish = match self.drawn == self.limit {
            _ if ended || complete == Some(true) => Some(Finish::Stop),
            true => Some(Finish::Length),
            false => None,
        };
        if finish.is_some() {
            self.held += &self.text.finish()?;
        }
        let text = match self.stop_at() {
            Some(at) => {
                self.held.truncate(at);
                finish = Some(Finish::Stop);
                std::mem::take(&mut self.held)
            }
            None if finish.is_some() => std::mem::take(&mut self.held),
            None => {
                let certain = self.held.len() - self.might_stop();
                self.held.drain(..certain).collect()
            }
        };
        self.over = finish.is_some();
        Ok(Some(Piece { text, token, finish }))
    }

    /// Returns where the first stop text begins in the held text.
    fn stop_at(&self) -> Option<usize> {
        self.how.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Returns how many bytes at the end of the held text may be the beginning of a stop text.
    fn might_stop(&self) -> usize {
        let starts = |stop: &String| {
            let ends = stop.char_indices().map(|(i, _)| i).skip(1);
            ends.filter(|&i| self.held.ends_with(&stop[..i])).max()
        };
        self.how.stop.iter().filter_map(starts).max().unwrap_or(0)
    }
}

/// Returns a number in [0, 1) that depends on seed and step alone, so that an answer does not
/// depend on what else is being generated. It is the output of SplitMix64, cut to the 24 bits
/// that an f32 can hold.
fn uniform(seed: u64, step: u64) -> f32 {
    let mut z = seed.wrapping_add((step + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
}
