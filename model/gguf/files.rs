//! Maps the GGUF files of one model: one file, or all parts of a split one.

use super::{Contents, Info, Metadata, Start, names, parse, parse_start};
use crate::weights::{Dtype, RangeFile, Tensor};
use crate::{Error, Result};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most parts of a split file: a number of five digits in each part's name.
const MAX_PARTS: usize = 99_999;

/// Bytes that are read first of a file that is read in pieces. A vocabulary of 50,000 pieces and the
/// tensors of 30 layers take 2 MB.
const START: usize = 4 << 20;

/// A GGUF file.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    data: Data,
    contents: Contents,
}

/// The bytes of a file.
#[derive(Debug)]
enum Data {
    Map(Arc<Mmap>),
    /// Each tensor is read when it is loaded, but for [`names::ROPE_FACTORS`], which belongs to the
    /// config.
    Away {
        file: RangeFile,
        factors: Vec<u8>,
    },
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only and private to this process. Another process that truncates
        // the file while it is mapped would fault this one; checkpoints are not edited in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let contents = parse(&map, path)?;
        Ok(Self { path: path.into(), data: Data::Map(Arc::new(map)), contents })
    }

    /// Reads as much of a file as it takes to know its tensors.
    async fn read(file: RangeFile) -> Result<Self> {
        let size = file.size()?;
        let mut start = file.read(0..size.min(START)).await?;
        let contents = loop {
            match parse_start(&start, size, &file.path)? {
                Start::Contents(contents) => break contents,
                // More than needed, because the next need may be close behind.
                Start::Needs(bytes) => {
                    let end = bytes.max(2 * start.len()).min(size);
                    start.extend(file.read(start.len()..end).await?);
                }
            }
        };
        let factors = match contents.tensors.iter().find(|info| info.name == names::ROPE_FACTORS) {
            Some(info) => file.read(info.range.clone()).await?,
            None => Vec::new(),
        };
        Ok(Self { path: file.path.clone(), data: Data::Away { file, factors }, contents })
    }

    /// Returns the bytes of [`names::ROPE_FACTORS`], given its place.
    pub(crate) fn factors(&self, info: &Info) -> &[u8] {
        match &self.data {
            Data::Map(map) => &map[info.range.clone()],
            Data::Away { factors, .. } => factors,
        }
    }

    /// Returns the tensor at a place in the file.
    pub(crate) fn tensor(&self, dtype: Dtype, shape: &[usize], range: Range<usize>) -> Tensor {
        match &self.data {
            Data::Map(map) => Tensor::mapped(dtype, shape, map, range),
            Data::Away { file, .. } => Tensor::away(dtype, shape, file, range),
        }
    }

    fn bytes(&self) -> u64 {
        match &self.data {
            Data::Map(map) => map.len() as u64,
            Data::Away { file, .. } => file.ranges.size(),
        }
    }

    /// Checks that the file says it is part `number` (from 0) of `count`.
    fn check(&self, number: usize, count: usize) -> Result<()> {
        let metadata = &self.contents.metadata;
        for (key, expected) in [(NUMBER, number), (COUNT, count)] {
            if metadata.whole(key) != Some(expected as u64) {
                let found = metadata.get(key);
                let expected = format!("{expected}, as the file's name says");
                return metadata.fail(key, &expected, found);
            }
        }
        Ok(())
    }
}

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The GGUF files of one model.
#[derive(Debug)]
pub struct Gguf {
    parts: Vec<Part>,
    /// Part and place in its list of each tensor, by name.
    tensors: BTreeMap<String, (usize, usize)>,
}

impl Gguf {
    /// Returns the GGUF file that `path` names: the file itself, or the one in the folder, unless
    /// the folder has a checkpoint of safetensors. Of a split file it is the first part.
    ///
    /// # Errors
    /// When the folder cannot be read, or has several models in GGUF.
    pub fn find(path: &Path) -> Result<Option<PathBuf>> {
        if !path.is_dir() {
            return Ok(is_gguf(path).then(|| path.into()));
        }
        let published = ["model.safetensors", "model.safetensors.index.json"];
        if published.iter().any(|file| path.join(file).exists()) {
            return Ok(None);
        }
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
            let file = entry.map_err(Error::io(path))?.path();
            let further = split(&file).is_some_and(|(_, number, _)| number > 1);
            if is_gguf(&file) && !further {
                found.push(file);
            }
        }
        found.sort();
        if found.len() > 1 {
            let names = found.iter().filter_map(|file| file.file_name());
            let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            let problem =
                format!("expected one model, found {} GGUF files: {}", names.len(), listed(&names));
            return Err(Error::Format { path: path.into(), problem });
        }
        Ok(found.pop())
    }

    /// Maps and checks a GGUF file, and the other parts where it is one of a split file.
    ///
    /// # Errors
    /// When a part is missing, is not as [`parse`] requires or belongs to another place, or the
    /// parts do not have the tensors that they announce.
    pub fn open(path: &Path) -> Result<Self> {
        let mut first = Some(Part::open(path)?);
        let parts = parts(path).into_iter().map(|name| {
            let part = first.take_if(|_| name == path);
            part.map_or_else(|| Part::open(&name), Ok)
        });
        Self::of(path, parts.collect::<Result<_>>()?)
    }

    /// Checks GGUF files that are read in pieces: one, or all parts of a split one in order.
    ///
    /// # Errors
    /// As [`Gguf::open`], and when a file cannot be read.
    pub async fn of_ranges(files: &[RangeFile]) -> Result<Self> {
        let mut parts = Vec::with_capacity(files.len());
        for file in files {
            parts.push(Part::read(file.clone()).await?);
        }
        let path = files.first().map_or(Path::new(""), |file| &file.path);
        Self::of(path, parts)
    }

    fn of(path: &Path, parts: Vec<Part>) -> Result<Self> {
        let missing = || Error::Format {
            path: path.into(),
            problem: "expected a GGUF file, found none".into(),
        };
        let metadata = &parts.first().ok_or_else(missing)?.contents.metadata;
        let count = match metadata.has(COUNT) {
            true => metadata.count(COUNT, MAX_PARTS)?,
            false => 1,
        };
        if parts.len() == 1 && count > 1 {
            let found = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            let problem = format!(
                "{COUNT}: expected a file named …-00001-of-{count:05}.gguf, as one of its parts, \
                 found {found}"
            );
            return Err(Error::Format { path: path.into(), problem });
        }
        if parts.len() > 1 {
            let count = parts.len();
            (0..).zip(&parts).try_for_each(|(number, part)| part.check(number, count))?;
        }
        let mut tensors = BTreeMap::new();
        for (number, part) in parts.iter().enumerate() {
            for (index, info) in part.contents.tensors.iter().enumerate() {
                if let Some((before, _)) = tensors.insert(info.name.clone(), (number, index)) {
                    let before = &parts[before].path;
                    return Err(Error::Tensor {
                        path: part.path.clone(),
                        tensor: info.name.clone(),
                        expected: "it in one part".into(),
                        found: format!("it in {} as well", before.display()),
                    });
                }
            }
        }
        let all = Self { parts, tensors };
        let metadata = all.metadata();
        if all.parts.len() > 1 && metadata.whole(TENSORS) != Some(all.tensors.len() as u64) {
            let expected = format!("{}, the tensors in all parts", all.tensors.len());
            return metadata.fail(TENSORS, &expected, metadata.get(TENSORS));
        }
        Ok(all)
    }

    /// Returns the metadata. Of a split file, the first part has them.
    pub fn metadata(&self) -> &Metadata {
        &self.parts[0].contents.metadata
    }

    /// Returns the files with their sizes in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.parts.iter().map(|part| (part.path.as_path(), part.bytes()))
    }

    /// Iterates over all tensors, ordered by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Info> {
        self.tensors.values().map(|&(part, index)| &self.parts[part].contents.tensors[index])
    }

    /// Returns the tensor of this name and its file.
    pub(crate) fn tensor(&self, name: &str) -> Option<(&Part, &Info)> {
        let &(part, index) = self.tensors.get(name)?;
        let part = &self.parts[part];
        Some((part, &part.contents.tensors[index]))
    }
}

/// Joins names for an error, and leaves out some of very many.
fn listed(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = names.iter().take(8).map(AsRef::as_ref).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// Returns whether a file is GGUF by its name.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// Takes the name of a part apart: what all parts begin with, the part's number from 1, and the
/// number of parts.
fn split(path: &Path) -> Option<(&str, usize, usize)> {
    let name = path.file_stem()?.to_str().filter(|_| is_gguf(path))?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        let five = text.len() == 5 && text.bytes().all(|c| c.is_ascii_digit());
        five.then(|| text.parse().ok()).flatten()
    };
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then_some((stem, number, count))
}

/// Returns all files of the model that the GGUF file `path` is, or is a part of.
pub fn parts(path: &Path) -> Vec<PathBuf> {
    let Some((stem, _, count)) = split(path).filter(|&(_, _, count)| count > 1) else {
        return vec![path.into()];
    };
    (1..=count)
        .map(|number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")))
        .collect()
}
