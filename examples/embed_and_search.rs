//! Embeds three documents and finds the one that a query describes.
//!
//!     cargo run --release --example embed_and_search

use gritlm::{Embed, Engine, Options, dot};

fn main() -> gritlm::Result<()> {
    let engine = Engine::open("demo", &Options::default())?;

    // Documents are embedded without an instruction, queries with the one of their task.
    let documents =
        ["graphical chess board", "capture and analyze network packets", "edit XML documents"];
    let found = engine.embed(&documents, &Embed::default())?;
    let task = Embed::with_instruction("Find the software package that fits the description.");
    let query = &engine.embed(&["look at network traffic"], &task)?[0];

    // Vectors have unit length, so the inner product is the cosine similarity.
    for (document, embedding) in documents.iter().zip(&found) {
        println!("{:.3}  {document}", dot(&query.vector, &embedding.vector));
    }

    // For many documents, the engine scores them on the device and returns the best.
    let corpus: Vec<f32> = found.iter().flat_map(|e| e.vector.clone()).collect();
    let dim = engine.config().dim;
    let best = engine.search(dim, &query.vector, &corpus, 1)?[0][0];
    println!("best: {} ({:.3})", documents[best.index as usize], best.score);
    Ok(())
}
