//! Answers a prompt token by token, then continues the conversation on the same KV cache.
//!
//!     cargo run --release --example generate

use gritlm::{Engine, Options, Prompt, Sampling};
use std::io::Write;

fn main() -> gritlm::Result<()> {
    let engine = Engine::open("demo", &Options::default())?;
    let sampling = Sampling::greedy().max_tokens(40);

    for piece in engine.generate(&Prompt::user("Describe the package pdfgrep."), &sampling)? {
        print!("{}", piece?.text);
        // A closed stdout ends the program by its next print.
        let _ = std::io::stdout().flush();
    }
    println!();

    // A chat keeps its history as keys and values: each turn computes its own tokens only.
    let mut chat = engine.chat();
    for question in ["Describe the package gnuchess.", "Is it a game?"] {
        let answer = chat.say(question, &sampling)?;
        let text: String = answer.map(|piece| piece.map(|p| p.text)).collect::<Result<_, _>>()?;
        println!("{question} {text}");
    }
    Ok(())
}
