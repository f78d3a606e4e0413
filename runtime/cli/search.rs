//! `gritlm search`: finds lines of a file or files of a folder by meaning. Embeddings are kept
//! beside them, each with a hash of its text, so that only what has changed is embedded again.

use super::args::{Global, Search};
use super::embed::embed;
use super::note;
use super::output::{Atomic, Out, lines};
use crate::error::{Error, Result};
use gritlm::{Embed, Engine};
use gritlm_model::hash::fnv1a;
use gritlm_model::ops::Match;
use gritlm_rag::text;
use gritlm_rag::{Find, Hit, Searcher};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

pub(super) fn run(args: &Search, global: &Global, out: &mut Out) -> Result<()> {
    let path = match (&args.path, &args.store) {
        (_, Some(store)) => return in_store(store, args, global, out),
        (Some(path), None) => path,
        // clap has already refused such arguments.
        (None, None) => return Ok(()),
    };
    let items = collect(path)?;
    if items.is_empty() {
        let what = path.display().to_string();
        return Err(Error::Input { what, problem: "no text in it".into() });
    }
    let engine = super::open(global)?;
    let document = Embed::default().max_length(args.max_length);
    let store = Store::beside(path, &engine, &document);
    let vectors = store.vectors(&engine, &items, &document)?;

    let query = document.instruction(args.instruction.clone());
    let query = engine.embed(&[&args.query], &query)?.remove(0).vector;
    let corpus = engine.corpus(query.len(), vectors.concat())?;
    let best = engine.search_in(&corpus, &query, args.top_k)?.remove(0);
    for Match { index, score } in best {
        let item = &items[index as usize];
        if out.json() {
            out.object(&serde_json::json!({
                "score": score, "place": item.place, "text": item.text,
            }))?;
        } else {
            // A file's text on one line, cut to what a terminal shows.
            let text: String = item.text.split_whitespace().collect::<Vec<_>>().join(" ");
            out.line(format!("{score:6.3}  {}: {:.100}", item.place, text))?;
        }
    }
    Ok(())
}

/// Searches a store that `gritlm index` has made.
fn in_store(store: &Path, args: &Search, global: &Global, out: &mut Out) -> Result<()> {
    let engine = super::open(global)?;
    let searcher = Searcher::open(&*engine, store)?;
    let how = Find::default()
        .top_k(args.top_k)
        .instruction(args.instruction.clone())
        .filters(args.filter.clone())
        .below(args.below.clone())
        .rerank(args.rerank)
        .exact(args.exact);
    let here = std::env::current_dir().unwrap_or_default();
    for Hit { score, probability, chunk } in searcher.search(&args.query, &how)? {
        if out.json() {
            let mut line = serde_json::json!({
                "score": score, "path": chunk.document, "chunk": chunk.index,
                "title": chunk.title, "text": chunk.text, "metadata": chunk.metadata,
            });
            if let Some(probability) = probability {
                line["probability"] = probability.into();
            }
            out.object(&line)?;
        } else {
            let path = Path::new(&chunk.document);
            let place = path.strip_prefix(&here).unwrap_or(path).display();
            let score = probability.unwrap_or(score);
            let text: String = chunk.text.split_whitespace().collect::<Vec<_>>().join(" ");
            out.line(format!("{score:6.3}  {place} ({}): {text:.100}", chunk.index))?;
        }
    }
    Ok(())
}

/// A text that can be found.
struct Item {
    /// `file:line`, or the file.
    place: String,
    text: String,
}

/// Returns the lines of a file, or the files of a folder and its subfolders. Empty and hidden
/// ones are left out; files that are not text are named on stderr.
fn collect(path: &Path) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    if path.is_dir() {
        let mut folders = vec![path.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries = std::fs::read_dir(&folder).map_err(Error::io(&folder))?;
            let mut paths: Vec<PathBuf> = entries
                .map(|e| Ok(e.map_err(Error::io(&folder))?.path()))
                .collect::<Result<_>>()?;
            paths.sort();
            for path in paths {
                let hidden =
                    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
                if hidden {
                    continue;
                } else if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if path.is_file() {
                    let place = path.display().to_string();
                    match text::decode(std::fs::read(&path).map_err(Error::io(&path))?) {
                        Ok(text) => items.push(Item { place, text }),
                        Err(_) => note(format_args!("note: {place}: not UTF-8, left out")),
                    }
                }
            }
        }
    } else {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io(path))?;
        let texts = lines(&name, BufReader::new(file))?.into_iter().enumerate();
        items.extend(texts.map(|(i, text)| Item { place: format!("{name}:{}", i + 1), text }));
    }
    items.retain(|item| !item.text.trim().is_empty());
    Ok(items)
}

/// The file of kept embeddings: safetensors with `hashes (n, 2)` u64 and `embeddings (n, dim)`
/// f32. Its metadata say which model and options made them.
struct Store {
    path: PathBuf,
    key: String,
}

impl Store {
    fn beside(path: &Path, engine: &Engine, how: &Embed) -> Self {
        let path = if path.is_dir() {
            path.join(".gritlm-search.safetensors")
        } else {
            let mut name = path.as_os_str().to_os_string();
            name.push(".gritlm-search.safetensors");
            name.into()
        };
        let how = format!("{how:?} {:?}", engine.embedding_mask(engine.options().attn));
        Self { path, key: format!("1 {:032x} {how}", engine.fingerprint()) }
    }

    fn vectors(&self, engine: &Engine, items: &[Item], how: &Embed) -> Result<Vec<Vec<f32>>> {
        let mut kept = self.read(engine.config().dim).unwrap_or_default();
        let hashes: Vec<u128> = items.iter().map(|item| fnv1a(item.text.bytes())).collect();
        let mut seen = HashSet::new();
        let new: Vec<usize> = (0..items.len())
            .filter(|&i| !kept.contains_key(&hashes[i]) && seen.insert(hashes[i]))
            .collect();
        if !new.is_empty() {
            let texts: Vec<&str> = new.iter().map(|&i| items[i].text.as_str()).collect();
            for (&i, e) in new.iter().zip(embed(engine, &texts, how)?) {
                kept.insert(hashes[i], e.vector);
            }
        }
        let vectors: Vec<Vec<f32>> = hashes.iter().map(|h| kept[h].clone()).collect();
        if !new.is_empty() {
            // An unwritable folder can still be searched.
            if let Err(error) = self.write(&hashes, &vectors) {
                note(format_args!("note: embeddings are not kept: {error}"));
            }
        }
        Ok(vectors)
    }

    /// Returns the kept embeddings by hash, or `None` if the file is missing, broken, or made
    /// with another model or other options.
    fn read(&self, dim: usize) -> Option<HashMap<u128, Vec<f32>>> {
        let bytes = std::fs::read(&self.path).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        if metadata.metadata().as_ref()?.get("key") != Some(&self.key) {
            return None;
        }
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let (hashes, vectors) =
            (tensors.tensor("hashes").ok()?, tensors.tensor("embeddings").ok()?);
        let n = hashes.data().len() / 16;
        if vectors.shape() != [n, dim] || vectors.dtype() != Dtype::F32 {
            return None;
        }
        let hashes = hashes.data().as_chunks::<16>().0.iter().map(|&h| u128::from_le_bytes(h));
        let vectors = vectors
            .data()
            .chunks_exact(4 * dim)
            .map(|v| v.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect());
        Some(hashes.zip(vectors).collect())
    }

    fn write(&self, hashes: &[u128], vectors: &[Vec<f32>]) -> Result<()> {
        let wrong = |e: safetensors::SafeTensorError| Error::Input {
            what: self.path.display().to_string(),
            problem: e.to_string(),
        };
        let numbers = vectors.concat();
        let dim = vectors.first().map_or(0, Vec::len);
        let hash_bytes: Vec<u8> = hashes.iter().flat_map(|h| h.to_le_bytes()).collect();
        let hashes =
            TensorView::new(Dtype::U64, vec![hashes.len(), 2], &hash_bytes).map_err(wrong)?;
        let shape = vec![vectors.len(), dim];
        let vectors = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&numbers));
        let tensors = [("hashes", hashes), ("embeddings", vectors.map_err(wrong)?)];
        let metadata = HashMap::from([("key".to_string(), self.key.clone())]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(wrong)?;
        let mut file = Atomic::create(&self.path)?;
        file.write(&bytes)?;
        file.commit()
    }
}
