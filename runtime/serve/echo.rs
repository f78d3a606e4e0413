//! Repeats prompts in front of their answers, token by token, as `echo` asks for.

use gritlm::{Engine, Piece, Prompt, Result};
use gritlm_model::ops::SampledToken;

/// A prompt's tokens, each with its part of the text.
pub(super) struct Echo(Vec<(u32, String)>);

impl Echo {
    /// Splits a prompt's text by its token ids. Verbatim text is returned byte for byte, even if
    /// the tokenizer normalises it; in that case the first token has all of the text.
    pub(super) fn new(engine: &Engine, prompt: &Prompt, ids: &[u32]) -> Result<Self> {
        let mut stream = engine.tokenizer().stream();
        let mut tokens = Vec::with_capacity(ids.len());
        for &id in ids {
            tokens.push((id, stream.push(id)?));
        }
        let end = stream.finish()?;
        tokens.iter_mut().last().into_iter().for_each(|(_, text)| text.push_str(&end));
        if let Prompt::Raw(text) = prompt
            && tokens.iter().map(|(_, text)| text.as_str()).collect::<String>() != *text
        {
            tokens.iter_mut().for_each(|(_, text)| text.clear());
            tokens.iter_mut().take(1).for_each(|(_, first)| first.clone_from(text));
        }
        Ok(Self(tokens))
    }

    /// Returns the tokens as pieces that an answer can begin with. `scores` belong to the tokens
    /// from the second on; an unknown log-probability is NaN.
    pub(super) fn pieces(&self, scores: &[SampledToken]) -> Vec<Piece> {
        let piece = |(i, (id, text)): (usize, &(u32, String))| {
            let unknown = || SampledToken { token: *id, logprob: f32::NAN, top: Vec::new() };
            let score = i.checked_sub(1).and_then(|i| scores.get(i));
            let token = score.cloned().unwrap_or_else(unknown);
            Piece { text: text.clone(), token, finish: None }
        };
        self.0.iter().enumerate().map(piece).collect()
    }
}
