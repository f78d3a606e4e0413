//! Runs one batch by hand: a text that is embedded with bidirectional attention, and a prompt whose
//! next tokens are drawn with causal attention, side by side in each pass.
//!
//!     cargo run --release --example one_batch

use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::ops::{Pooling, SampleParams};
use gritlm::{Attn, Engine, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("demo", &Options::default())?;
    let text = engine.tokenizer().encode("<|embed|>\ncapture network packets")?;
    let prompt =
        engine.tokenizer().encode("<|user|>\nDescribe the package pdfgrep.\n<|assistant|>\n")?;

    // Each sequence has a page table of its own in the one pool of KV pages.
    let (mut text_cache, mut prompt_cache) = (engine.cache(), engine.cache());
    let mut outputs = engine.run(&mut [
        Sequence {
            tokens: &text,
            cache: &mut text_cache,
            mask: engine.embedding_mask(Attn::Bbcc),
            want: Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: true },
        },
        Sequence {
            tokens: &prompt,
            cache: &mut prompt_cache,
            mask: engine.generation_mask(),
            want: Want::Token(SampleParams::greedy()),
        },
    ])?;

    let mut answer = Vec::new();
    while let Some(Output::Token(drawn)) = outputs.pop() {
        answer.push(drawn.token);
        if answer.len() == 16 {
            break;
        }
        // The prompt's keys and values are in its pages: a decode step computes one token.
        outputs.extend(engine.run(&mut [Sequence {
            tokens: &[drawn.token],
            cache: &mut prompt_cache,
            mask: engine.generation_mask(),
            want: Want::Token(SampleParams::greedy()),
        }])?);
    }
    if let Some(Output::Embedding(vector)) = outputs.first() {
        println!("an embedding of {} numbers", vector.len());
    }
    println!("an answer: {}", engine.tokenizer().decode(&answer)?);
    Ok(())
}
