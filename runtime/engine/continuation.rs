//! What becomes of drawn tokens: text piece by piece, stop texts held back, the end. One answer at
//! a time or many in a batch, [`Engine::generate`] and the scheduler go through here.

use crate::batch::{Output, Sequence, Want};
use crate::cache::KvCache;
use crate::grammar::Guide;
use crate::{Engine, Error, Finish, Piece, Result, Sampling};
use gritlm_model::cpu::draw;
use gritlm_model::ops::{Mask, SampleParams, SampledToken};
use gritlm_model::tokenizer::{Stream, Tokenizer};

/// A sequence that is being generated: what is in the cache, and what is not yet.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) cache: KvCache,
    /// Tokens still to be run: the prompt's, then each drawn one.
    pending: Vec<u32>,
    /// Ids that occurred, sorted, for the repetition penalty.
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

    /// Counts a token, which the cache may hold already, for the repetition penalty.
    pub(crate) fn see(&mut self, id: u32) {
        if let Err(at) = self.seen.binary_search(&id) {
            self.seen.insert(at, id);
        }
    }

    /// Ids that occurred, sorted.
    pub(crate) fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// Tokens so far, run or not.
    pub(crate) fn tokens(&self) -> usize {
        self.cache.tokens() + self.pending.len()
    }

    /// Tokens that have not been run.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The last token, where it has not been run.
    pub(crate) fn last(&self) -> Option<u32> {
        self.pending.last().copied()
    }

    /// Tokens of the next pass: as many as the budget has, unless the mask lets tokens see later
    /// ones, which must then be there.
    pub(crate) fn part(&self, budget: usize, answer: &Continuation<'_>) -> usize {
        match answer.mask {
            Mask::Causal { .. } => self.pending.len().min(budget),
            Mask::Bidirectional { .. } => self.pending.len(),
        }
    }

    /// The next `tokens` tokens; with the last of them the next token is drawn.
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

    /// Counts tokens that a pass has run.
    pub(crate) fn ran(&mut self, tokens: usize) {
        self.pending.drain(..tokens);
    }
}

/// An answer's course, whoever runs the passes.
pub(crate) struct Continuation<'a> {
    tokenizer: &'a Tokenizer,
    how: Sampling,
    mask: Mask,
    /// Through the grammar, where there is one.
    guide: Option<Guide>,
    text: Stream<'a>,
    /// Decoded text that might be the beginning of a stop text.
    held: String,
    prompt_tokens: usize,
    /// Tokens that may be drawn: `max_tokens`, or fewer where positions run out.
    limit: usize,
    drawn: usize,
    /// Of the prompt's tokens, from the second on, so far.
    scores: Vec<SampledToken>,
    over: bool,
}

impl<'a> Continuation<'a> {
    /// After `prompt_tokens` tokens.
    ///
    /// # Errors
    /// When an option means nothing, or the model has no head or no more positions.
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

    /// As the continuation of these ids, where its text goes on from theirs.
    pub(crate) fn after(mut self, prompt: &[u32]) -> Self {
        if self.how.verbatim {
            self.text = self.tokenizer.stream_after(prompt);
        }
        self
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens that the cache will hold at most; the last one drawn is never run.
    pub(crate) fn room(&self) -> usize {
        self.prompt_tokens + self.limit.saturating_sub(1)
    }

    pub(crate) fn mask(&self) -> Mask {
        self.mask
    }

    /// Tokens drawn so far.
    pub(crate) fn drawn(&self) -> usize {
        self.drawn
    }

    /// Log-probabilities of the prompt's tokens from the second on, as far as they have been run.
    pub(crate) fn scores(&self) -> &[SampledToken] {
        &self.scores
    }

    /// Whether the prompt's tokens are to be scored, for which all of them must be run.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.how.prompt_logprobs.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// The way through the grammar, which knows more before the next token is drawn.
    pub(crate) fn guide(&mut self) -> Option<&mut Guide> {
        self.guide.as_mut()
    }

    /// What the pass brings back to draw the next token from.
    fn want(&self, seen: &[u32]) -> Want {
        match self.guide {
            _ if self.limit == 0 => Want::Nothing,
            Some(_) => Want::Logits,
            None => Want::Token(self.draw(seen)),
        }
    }

    /// How the next token is drawn.
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

    /// Takes what a pass has brought, adds the token drawn from it to the context, and says what it
    /// makes certain; None where the pass was over a part of the prompt.
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

    /// Where the first stop text begins in the held text.
    fn stop_at(&self) -> Option<usize> {
        self.how.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Bytes at the end of the held text that a stop text might begin with.
    fn might_stop(&self) -> usize {
        let starts = |stop: &String| {
            let ends = stop.char_indices().map(|(i, _)| i).skip(1);
            ends.filter(|&i| self.held.ends_with(&stop[..i])).max()
        };
        self.how.stop.iter().filter_map(starts).max().unwrap_or(0)
    }
}

/// A number in [0, 1) from seed and step alone, so that an answer does not depend on what else is
/// being generated. SplitMix64's output function; 24 bits, all that an f32 can hold.
fn uniform(seed: u64, step: u64) -> f32 {
    let mut z = seed.wrapping_add((step + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
}
