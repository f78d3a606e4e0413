//! `gritlm similarity` and `gritlm rerank`.

use super::args::{Global, Rerank, Similarity};
use super::embed::embed;
use super::output::{Out, Progress, at_line, texts};
use crate::error::Result;
use gritlm::dot;

pub(super) fn similarity(args: &Similarity, global: &Global, out: &mut Out) -> Result<()> {
    let texts = texts(&args.texts)?;
    let engine = super::open(global)?;
    // Normalise in any case, so that the dot products are cosines.
    let how = args.how.embed().normalize(true);
    let found = embed(&engine, &texts, &how).map_err(|e| at_line(e, &args.texts))?;
    for a in &found {
        let row: Vec<f32> = found.iter().map(|b| dot(&a.vector, &b.vector)).collect();
        if out.json() {
            out.object(&serde_json::json!({ "similarity": row }))?;
        } else {
            let cells: Vec<String> = row.iter().map(|c| format!("{c:7.4}")).collect();
            out.line(cells.join(" "))?;
        }
    }
    Ok(())
}

pub(super) fn rerank(args: &Rerank, global: &Global, out: &mut Out) -> Result<()> {
    let texts = texts(&args.texts)?;
    let engine = super::open(global)?;
    let (mut progress, mut done) = (Progress::new("ranking", texts.len() as u64), 0);
    let ranked = engine.rerank_watched(&args.query, &texts, &mut |n| {
        done += n as u64;
        Ok(progress.at(done)?)
    })?;
    drop(progress);
    for r in ranked.iter().take(args.top_k.unwrap_or(texts.len())) {
        let text = &texts[r.index];
        if out.json() {
            out.object(&serde_json::json!({
                "index": r.index, "score": r.score, "probability": r.probability, "text": text,
            }))?;
        } else {
            out.line(format!("{:8.3}  {:5.3}  {text}", r.score, r.probability))?;
        }
    }
    Ok(())
}
