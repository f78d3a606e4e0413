//! Hands many requests to the scheduler at once: continuous batching packs them into shared steps.
//!
//!     cargo run --release --example scheduler

use gritlm::schedule::{Event, Limits, Scheduler, Work};
use gritlm::{Embed, Engine, Options, Prompt, Sampling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("demo", &Options::default())?;
    let how = Embed::default();
    let scheduler = Scheduler::start(engine, Limits::default())?;
    let engine = scheduler.engine();

    // Eight answers and eight embeddings; each handle receives its own events.
    let mut requests = Vec::new();
    for number in 0..8 {
        let prompt = Prompt::user(format!("Describe the package gnuchess, in {number} words."));
        let prompt = engine.tokenize_prompt(&prompt, false)?;
        let sampling = Sampling::greedy().max_tokens(12);
        requests.push(scheduler.submit(Work::Generate { prompt, sampling, past: None }.into())?);
        let texts = engine.encode_texts(&[format!("package number {number}")], &how)?;
        requests.push(scheduler.submit(Work::Embed { texts, options: how.clone() }.into())?);
    }
    for (number, events) in requests.into_iter().enumerate() {
        let mut text = String::new();
        for event in events {
            match event {
                Event::Piece(piece) => text += &piece.text,
                Event::Embedding { embedding, .. } => {
                    text += &format!("{} numbers", embedding.vector.len());
                }
                Event::Finished(summary) => {
                    println!("{number}: {text:?}, {} tokens in", summary.prompt_tokens);
                }
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    let stats = scheduler.stats();
    println!("{} steps for all of them", stats.steps);
    Ok(())
}
