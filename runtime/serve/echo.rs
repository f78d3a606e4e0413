//! Prompts told again in front of their answers, token by token, as `echo` asks for.

use crate::{Engine, Piece, Prompt, Result};
use gritlm_model::ops::Drawn;

/// A prompt's text, by its tokens.
pub(super) struct Echo(Vec<(u32, String)>);

impl Echo {
    /// Of a prompt and its ids. Verbatim text comes back to the byte, also where the tokenizer
    /// normalises it.
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

    /// As pieces that an answer can begin with. `scores` are those of the tokens from the second
    /// on; a log-probability that is not known is NaN.
    pub(super) fn pieces(&self, scores: &[Drawn]) -> Vec<Piece> {
        let piece = |(i, (id, text)): (usize, &(u32, String))| {
            let unknown = || Drawn { token: *id, logprob: f32::NAN, top: Vec::new() };
            let score = i.checked_sub(1).and_then(|i| scores.get(i));
            let token = score.cloned().unwrap_or_else(unknown);
            Piece { text: text.clone(), token, finish: None }
        };
        self.0.iter().enumerate().map(piece).collect()
    }
}
