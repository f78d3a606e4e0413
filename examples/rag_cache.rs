//! Indexes documents with their KV caches, then answers a question without reading them again.
//!
//!     cargo run --release --example rag_cache

use gritlm::{Engine, Options, Sampling};
use gritlm_rag::ask;
use gritlm_rag::{
    Ask, CacheKind, Find, Identity, Indexer, Mode, Passage, Searcher, Source, Stamp, content_hash,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("demo", &Options::default())?;
    let folder = tempfile::tempdir()?;

    // The embedding pass of each chunk leaves its keys and values in the store.
    let identity = Identity { cache: CacheKind::Doc, ..Identity::of(&engine) };
    let mut indexer = Indexer::open(&engine, folder.path(), &identity)?;
    let texts = [("xboard", "a graphical chess board"), ("tcpdump", "captures network packets")];
    let sources = texts.map(|(path, text)| Source {
        path: path.into(),
        title: path.into(),
        text: text.into(),
        metadata: serde_json::Value::Null,
        stamp: Stamp { hash: content_hash(text.as_bytes()), ..Stamp::default() },
    });
    let done = indexer.put(sources.into(), &mut |_| Ok(()))?;
    println!("{} documents, {} tokens embedded", done.added, done.tokens);
    drop(indexer);

    // The query is embedded once; the best document's cache goes in front of it.
    let question = "Which program captures packets?";
    let how = Ask::default().mode(Mode::Doc);
    let asked = ask(&engine, question, &how)?;
    let searcher = Searcher::open(&engine, folder.path())?;
    let best = searcher.nearest(asked.vector(), &Find::default().top_k(1))?.remove(0);
    let passage = Passage::of(searcher.reader(), &best.chunk, Mode::Doc)?;
    println!("from {} (score {:.3}):", best.chunk.document, best.score);
    let mut answer = asked.answer(&engine, &[passage], &Sampling::greedy().max_tokens(24))?;
    for piece in &mut answer {
        print!("{}", piece?.text);
    }
    println!("\n{} tokens were reused from the store", answer.usage().tokens_reused);
    Ok(())
}
