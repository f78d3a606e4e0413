//! `gritlm embed`.

use super::args::{EmbedArgs, Global};
use super::note;
use super::output::{Atomic, Out, Progress, at_line, texts};
use crate::error::{Error, Result};
use gritlm::{Embed, Embedding, Engine};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

pub(super) fn run(args: &EmbedArgs, global: &Global, out: &mut Out) -> Result<()> {
    let writer = args.output.as_deref().map(Format::of).transpose()?;
    let from = &args.texts;
    let texts = texts(from)?;
    // Create the file before the work, so that an unwritable folder does not cost anybody an
    // hour.
    let file = args.output.as_deref().map(Atomic::create).transpose()?;
    let engine = super::open(global)?;
    let found = embed(&engine, &texts, &args.how.embed()).map_err(|e| at_line(e, from))?;
    if let (Some(format), Some(mut file)) = (writer, file) {
        let vectors: Vec<&[f32]> = found.iter().map(|e| e.vector.as_slice()).collect();
        file.write(&format.header(&vectors)?)?;
        vectors.iter().try_for_each(|v| file.write(bytemuck::cast_slice(v)))?;
        return file.commit();
    }
    for (index, e) in found.iter().enumerate() {
        if out.json() {
            #[derive(serde::Serialize)]
            struct Line<'a> {
                index: usize,
                embedding: &'a [f32],
                tokens: usize,
            }
            out.object(&Line { index, embedding: &e.vector, tokens: e.tokens })?;
        } else {
            let numbers: Vec<String> = e.vector.iter().map(f32::to_string).collect();
            out.line(numbers.join(" "))?;
        }
    }
    Ok(())
}

/// Embeds with a progress bar, and prints a note if texts were cut.
pub(super) fn embed(
    engine: &Engine,
    texts: &[impl AsRef<str> + Sync],
    how: &Embed,
) -> Result<Vec<Embedding>> {
    let mut progress = Progress::new("embedding", texts.len() as u64);
    let mut done = 0;
    let found = engine.embed_watched(texts, how, &mut |n| {
        done += n as u64;
        Ok(progress.at(done)?)
    })?;
    drop(progress);
    let cut = found.iter().filter(|e| e.truncated > 0).count();
    if cut > 0 {
        let (of, limit) = (found.len(), how.max_length);
        note(format_args!("note: {cut} of {of} texts were cut to {limit} tokens (--max-length)"));
    }
    Ok(found)
}

/// A file of vectors: a header, then the numbers `(texts, dim)`, f32, little-endian.
#[derive(Clone, Copy)]
enum Format {
    Npy,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Error::Option {
                option: "--output",
                expected: "FILE.npy or FILE.safetensors".into(),
                found: path.display().to_string(),
            }),
        }
    }

    fn header(self, vectors: &[&[f32]]) -> Result<Vec<u8>> {
        let (rows, cols) = (vectors.len(), vectors.first().map_or(0, |v| v.len()));
        match self {
            Self::Npy => {
                let dict = format!(
                    "{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}"
                );
                // Magic, version 1.0, length; padded to 64 bytes and ended by a newline.
                let len = (10 + dict.len() + 1).next_multiple_of(64) - 10;
                let mut header = b"\x93NUMPY\x01\x00".to_vec();
                header.extend((len as u16).to_le_bytes());
                header.extend(format!("{dict:<0$}\n", len - 1).bytes());
                Ok(header)
            }
            Self::Safetensors => {
                // The library writes header and data; the data goes to the file row by row instead.
                let data = vectors.concat();
                let view =
                    TensorView::new(Dtype::F32, vec![rows, cols], bytemuck::cast_slice(&data));
                let wrong = |e: safetensors::SafeTensorError| Error::Input {
                    what: "--output".into(),
                    problem: e.to_string(),
                };
                let view = view.map_err(wrong)?;
                let mut whole =
                    safetensors::serialize([("embeddings", view)], None).map_err(wrong)?;
                whole.truncate(whole.len() - size_of_val(data.as_slice()));
                Ok(whole)
            }
        }
    }
}
