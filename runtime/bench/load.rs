//! `bench load`: measures the time from a checkpoint's files to the first answer, with the files
//! in the page cache (warm) and not in it (cold).
//!
//! * `load`: uploading the weights to the open device and sampling one token with them. The CPU
//!   computes on the mapped files and reads them only for that token; of a mixture of experts it
//!   reads only the experts that the token needs.
//! * `first answer`: the program itself, from its start to an answer of one token.
//!
//! The limit of both is the fastest of several reads of the same files by all threads: through
//! the memory map if they are warm, with read calls if they are cold.

use super::model::{Bench, Decoding, short_name};
use super::record::{Record, Row};
use super::shape;
use super::time::{Times, repeated};
use crate::{Error, Result};
use gritlm::{Checkpoint, Engine, Options};
use gritlm_model::gguf::is_gguf;
use gritlm_model::weights::Weights;
use rayon::prelude::*;
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How to measure loading.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadPlan {
    /// The program to start, usually [`std::env::current_exe`].
    pub program: PathBuf,
    /// Repeats of each figure; fewer if they would take longer than `seconds`.
    pub repeats: u32,
    /// Seconds per figure; at least one repeat is always taken.
    pub seconds: f64,
}

/// Bytes of a cold file that a thread reads in order (`PIECE`), and per call (`BLOCK`).
const PIECE: u64 = 64 << 20;
const BLOCK: usize = 1 << 20;

/// Adds to the record how fast a checkpoint loads onto the device of the options, named `device`,
/// and a line for each figure that cannot be measured. `progress` receives the number of figures
/// done and their total; an error that it returns ends the measurement.
///
/// # Errors
/// The error of `progress`; when the model is not a checkpoint in files, or a device cannot be
/// opened.
pub fn load(
    model: &str,
    options: &Options,
    device: &str,
    plan: &LoadPlan,
    record: &mut Record,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let options = options.clone().progress(false).profile(false);
    let Checkpoint { config, weights, .. } = Checkpoint::open(model, options.progress)?;
    let shards: Vec<PathBuf> = weights.shards().iter().map(|(path, _)| path.clone()).collect();
    let folder = shards[0].parent().filter(|_| shards[0].exists());
    // A GGUF file is a checkpoint by itself.
    let Some(place) = folder.map(|folder| if is_gguf(&shards[0]) { &shards[0] } else { folder })
    else {
        let expected = "a checkpoint in files".into();
        return Err(gritlm::Error::Option { option: "model", expected, found: model.into() }.into());
    };
    let mut bytes = weights.bytes() as f64;
    let shape = shape::of(&format!("{:.2} GB", bytes / 1e9), &short_name(model));
    let mut files = Files { place, shards: &shards, config: &config, mapped: Some(weights) };
    let mut done = 0;
    for (heat, cold) in [("warm", false), ("cold", true)] {
        // For warm files, an uncounted first run reads them into memory.
        let (limit, warm) = (files.rate(cold, plan), u32::from(!cold));
        for op in ["load", "first answer"] {
            let times = match (&limit, op) {
                (Err(problem), _) => Err(problem.to_string()),
                (Ok(_), "load") => repeated(plan.repeats, warm, plan.seconds, || {
                    files.ready(cold)?;
                    load_once(model, &options, &mut bytes)
                })
                .map_err(|problem| problem.to_string()),
                (Ok(_), _) => repeated(plan.repeats, warm, plan.seconds, || {
                    files.ready(cold)?;
                    first_answer(&plan.program, model, &options)
                })
                .map_err(|problem| problem.to_string()),
            };
            match (times, &limit) {
                (Ok(times), Ok(limit)) => record.rows.push(Row {
                    op: format!("{op} {heat}"),
                    limit: "reading".into(),
                    share: bytes / times.median() * 1e6 / limit,
                    ..row(device, &shape, bytes, &times)
                }),
                (Err(problem), _) => {
                    record.missing.push(format!("{device} {op} {heat}: {problem}"));
                }
                (Ok(_), Err(_)) => {}
            }
            done += 1;
            progress(done, 4)?;
        }
    }
    Ok(())
}

/// Adds to the record how fast random weights are copied from memory to the device of the
/// options, named `device`; see [`Engine::random`].
///
/// # Errors
/// As [`Engine::random`], and the error of `progress`.
pub fn upload(
    (like, layers): (&str, Option<usize>),
    options: &Options,
    device: &str,
    plan: &LoadPlan,
    record: &mut Record,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let options = options.clone().progress(false).profile(false);
    let engine = Engine::random(like, layers, &options)?;
    let (bytes, name) = (engine.loading().bytes as f64, engine.name().to_string());
    if engine.device().starts_with("cpu") {
        let why = "it computes on the weights where they are";
        record.missing.push(format!("{device} upload of {name}: {why}"));
        return progress(1, 1);
    }
    drop(engine);
    let times = repeated(plan.repeats, 0, plan.seconds, || {
        let engine = Engine::random(like, layers, &options)?;
        Ok(engine.loading().time.as_secs_f64())
    })?;
    let shape = shape::of(&format!("{:.2} GB", bytes / 1e9), &name);
    record.rows.push(Row { op: "upload".into(), ..row(device, &shape, bytes, &times) });
    progress(1, 1)
}

fn row(device: &str, shape: &str, bytes: f64, times: &Times) -> Row {
    Row {
        device: device.into(),
        suite: "load".into(),
        shape: shape.into(),
        us: times.median(),
        spread: times.spread(),
        repeats: times.count(),
        bytes,
        ..Row::default()
    }
}

/// Returns the seconds until the weights are on the open device and have produced a token. On the
/// CPU, sets `bytes` to what that token reads.
fn load_once(model: &str, options: &Options, bytes: &mut f64) -> Result<f64> {
    let engine = Engine::open(model, options)?;
    let bench = Bench::new(&engine);
    if engine.device().starts_with("cpu") {
        *bytes = bench.decode_cost(1, 0).bytes;
    }
    let start = Instant::now();
    Decoding::fresh(&bench).step(&bench)?;
    Ok((engine.loading().time + start.elapsed()).as_secs_f64())
}

/// Returns the seconds from the program's start to the first byte of its answer.
fn first_answer(program: &Path, model: &str, options: &Options) -> Result<f64> {
    let mut command = Command::new(program);
    command.args(["generate", "--prompt", "Hello", "--max-tokens", "1", "--format", "json"]);
    command.args(["--model", model, "--device", &options.device.to_string()]);
    command.args(["--batch-tokens", &options.batch_tokens.to_string()]);
    command.args(["--kv-tokens", &options.kv_tokens.to_string()]);
    for (flag, value) in [
        ("--compute", options.compute.map(|one| one.to_string())),
        ("--kv-type", options.kv_type.map(|one| one.to_string())),
        ("--weights", options.weights.map(|one| one.to_string())),
    ] {
        command.args(value.iter().flat_map(|value| [flag, value]));
    }
    command
        .args(options.adapter.iter().flat_map(|folder| ["--adapter".as_ref(), folder.as_os_str()]))
        .args(options.kernels.iter().flat_map(|folder| ["--kernels".as_ref(), folder.as_os_str()]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(Error::io(program))?;
    // Without an answer this reads no byte; the program's error message is read when it exits.
    let first = child.stdout.as_mut().map(|out| out.read(&mut [0]));
    let seconds = start.elapsed().as_secs_f64();
    let output = child.wait_with_output().map_err(Error::io(program))?;
    match first {
        Some(Ok(1)) if output.status.success() => Ok(seconds),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().last().unwrap_or_default();
            let problem = format!("no answer ({}): {said}", output.status);
            Err(gritlm::Error::Input { what: format!("{} generate", program.display()), problem }
                .into())
        }
    }
}

/// The files of a checkpoint.
struct Files<'a> {
    /// The folder, or the GGUF file.
    place: &'a Path,
    shards: &'a [PathBuf],
    config: &'a gritlm_model::config::Config,
    /// The mapped weights; pages stay in memory as long as they are mapped.
    mapped: Option<Weights>,
}

impl Files<'_> {
    /// Unmaps the files and, if `cold`, drops them from memory.
    fn ready(&mut self, cold: bool) -> Result<()> {
        self.mapped = None;
        if !cold {
            // The files were read just before and are still in memory, as far as they fit.
            return Ok(());
        }
        self.shards.iter().try_for_each(|path| forget(path))
    }

    /// Returns the bytes per second at which the files can be read.
    fn rate(&mut self, cold: bool, plan: &LoadPlan) -> Result<f64> {
        let mut bytes = 0;
        let warm = u32::from(!cold);
        let times = repeated(plan.repeats, warm, plan.seconds, || {
            self.ready(cold)?;
            let start = Instant::now();
            bytes = if cold { self.read(plan.seconds)? } else { self.sum()? };
            Ok(start.elapsed().as_secs_f64())
        })?;
        // The limit is the best rate that was reached.
        Ok(bytes as f64 / times.best() * 1e6)
    }

    /// Adds up all words of all tensors with all threads; returns the bytes.
    fn sum(&self) -> Result<u64> {
        let weights = Weights::open(self.place, self.config)?;
        let sum = |bytes: &[u8]| {
            let words = bytes.as_chunks::<8>().0;
            words.iter().fold(0u64, |sum, &word| sum.wrapping_add(u64::from_le_bytes(word)))
        };
        for (_, tensor) in weights.tensors() {
            let parts = tensor.stored().par_chunks(1 << 19);
            black_box(parts.map(sum).reduce(|| 0, u64::wrapping_add));
        }
        Ok(weights.bytes())
    }

    /// Reads the files in pieces, each in order by one of all threads, until `seconds` have
    /// passed; returns the bytes.
    fn read(&self, seconds: f64) -> Result<u64> {
        let start = Instant::now();
        let mut pieces = Vec::new();
        for path in self.shards {
            let length = path.metadata().map_err(Error::io(path))?.len();
            pieces.extend((0..length).step_by(PIECE as usize).map(|at| (path, at)));
        }
        let read = |&(path, at): &(&PathBuf, u64)| -> std::io::Result<u64> {
            let (mut file, mut bytes, mut block) = (File::open(path)?, 0, vec![0; BLOCK]);
            file.seek(SeekFrom::Start(at))?;
            let mut piece = file.take(PIECE);
            while start.elapsed().as_secs_f64() < seconds {
                match piece.read(&mut block)? {
                    0 => break,
                    read => bytes += read as u64,
                }
            }
            Ok(bytes)
        };
        let bytes = pieces.par_iter().map(|piece| read(piece).map_err(Error::io(piece.0)));
        bytes.try_reduce(|| 0, |a, b| Ok(a + b))
    }
}

/// Drops a file's pages from memory and checks that they are gone.
#[cfg(target_os = "linux")]
pub(super) fn forget(path: &Path) -> Result<()> {
    use rustix::fs::{Advice, fadvise};
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    use std::io::IoSliceMut;

    /// Places of the file that are checked.
    const LOOKS: u64 = 16;

    let file = File::open(path).map_err(Error::io(path))?;
    // Pages that are not on disk yet cannot be dropped.
    file.sync_all().map_err(Error::io(path))?;
    fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| Error::io(path)(e.into()))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    // The loop begins at the end, because reading a missing page also reads those that follow it.
    let there = (0..LOOKS).rev().map(|look| {
        let at = length * look / LOOKS;
        preadv2(&file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT)
    });
    let there = there.filter(|look| !matches!(look, Err(Errno::AGAIN))).count() as u64;
    if there * 8 > LOOKS {
        let problem = "its pages stay in memory: it is on a RAM disk, or another program has it \
                       mapped, or the file system does not say";
        return Err(gritlm::Error::Input {
            what: path.display().to_string(),
            problem: problem.into(),
        }
        .into());
    }
    Ok(())
}

/// Fails: other systems have no call for it.
#[cfg(not(target_os = "linux"))]
pub(super) fn forget(path: &Path) -> Result<()> {
    let problem = "only Linux drops a file's pages from memory when asked".into();
    Err(gritlm::Error::Input { what: path.display().to_string(), problem }.into())
}
