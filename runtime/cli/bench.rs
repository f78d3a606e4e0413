//! `gritlm bench`: measures, then shows, writes and compares the record.

use super::args::{Bench, BenchHow, BenchOutput, Global};
use super::output::{Out, Progress};
use super::{handle_interrupt, note};
use crate::error::{Error, Result};
use gritlm::backend::{self, Visit};
use gritlm::{Engine, Options, synth};
use gritlm_bench::compare::compare;
use gritlm_bench::limits::measure;
use gritlm_bench::load::{self, LoadPlan};
use gritlm_bench::model::{self, ModelPlan};
use gritlm_bench::ops::{self, Named};
use gritlm_bench::rag::{self, RagPlan};
use gritlm_bench::record::{Limits, Record, VERSION};
use gritlm_bench::{page, peer, results, table};
use gritlm_model::files::keep;
use gritlm_model::measure::Measure;
use std::fs;
use std::path::Path;

pub(super) fn run(command: &Bench, global: &Global, out: &mut Out) -> Result<()> {
    match command {
        Bench::Show { record, output } => report(Record::read(record)?, output, out),
        Bench::Results { records } => write_results(records),
        Bench::Ops { like, shape, rows, contexts, batches, filter, how, .. } => {
            let wanted = |n: &Named| format!("{} {}", n.op, n.shape).contains(filter.as_str());
            let of_model = |like: &str| {
                Ok::<_, Error>(ops::model(&synth::config(like, None)?, rows, contexts, batches))
            };
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            if let Bench::Ops { own, arch, .. } = command
                && !own.is_empty()
            {
                let like = like.as_deref().unwrap_or(LIKE);
                let named = match &shape[..] {
                    [] => of_model(like)?,
                    shapes => parsed(shapes)?,
                };
                let named = named.into_iter().filter(wanted).collect();
                let asked = super::laboratory::Asked { own, arch, like, named, how };
                return super::laboratory::run(asked, global, out);
            }
            let named = match (like, &shape[..]) {
                (Some(like), _) => of_model(like)?,
                (None, []) => ops::table(),
                (None, shapes) => parsed(shapes)?,
            };
            let pages = |n: Named| match global.kv_type {
                Some(dtype) => n.over_pages(dtype),
                None => n,
            };
            let named: Vec<Named> = named.into_iter().filter(wanted).map(pages).collect();
            let run = |options: &Options, device: &str, record: &mut Record| {
                backend::open(options, Single { device, named: &named, how, record })
            };
            report(on_each_device(global, run)?, &how.output, out)
        }
        Bench::Model { like, layers, quick, filter, how } => {
            let source = Source { global, like: like.as_deref(), layers: *layers };
            let plan = if *quick {
                ModelPlan::quick(how.repeats)
            } else {
                ModelPlan::new(global.options().batch_tokens, how.repeats)
            };
            let plan = ModelPlan { filter: filter.clone(), ..plan };
            let run = |options: &Options, device: &str, record: &mut Record| {
                measure_model(&source, options, device, &plan, record)
            };
            report(on_each_device(global, run)?, &how.output, out)
        }
        Bench::Rag { like, layers, lengths, quick, folder, how } => {
            let source = Source { global, like: like.as_deref(), layers: *layers };
            let name = format!("gritlm-bench-rag-{}", std::process::id());
            let folder = folder.clone().unwrap_or_else(std::env::temp_dir).join(name);
            let mut plan = match quick {
                true => RagPlan::quick(folder, how.repeats),
                false => RagPlan::new(folder, how.repeats),
            };
            if !lengths.is_empty() {
                plan.lengths = lengths.iter().map(|&n| n as usize).collect();
            }
            let run = |options: &Options, device: &str, record: &mut Record| {
                record.devices.push(backend::open(options, Limit { device })?);
                let engine = source.open(&options.clone().profile(false))?;
                note(format_args!("note: measuring {} on {}", engine.name(), engine.device()));
                let mut progress = Progress::new("answers", 0);
                let mut at = |done, all| Ok(progress.of(done, all)?);
                Ok(rag::rag(&engine, device, &plan, record, &mut at)?)
            };
            report(on_each_device(global, run)?, &how.output, out)
        }
        Bench::Load { like, layers, how } => {
            let program = std::env::current_exe().map_err(Error::io("this program"))?;
            let plan = LoadPlan { program, repeats: how.repeats, seconds: 30.0 };
            let run = |options: &Options, device: &str, record: &mut Record| {
                let limits = backend::open(options, Limit { device })?;
                let mut progress = Progress::new("loading", 0);
                let mut at = |done, all| Ok(progress.of(done, all)?);
                record.devices.push(limits.clone());
                match like {
                    Some(like) => {
                        load::upload((like, *layers), options, device, &plan, record, &mut at)
                    }
                    None => load::load(&global.model, options, device, &plan, record, &mut at),
                }?;
                // No upload from memory is faster than a copy from pinned memory.
                if let Some(pinned) = limits.pinned_gb_s {
                    let of = record.rows.iter_mut().filter(|r| r.device == device);
                    for row in of.filter(|row| row.limit.is_empty()) {
                        (row.limit, row.share) = ("pinned".into(), row.gb_s() / pinned);
                    }
                }
                Ok(())
            };
            report(on_each_device(global, run)?, &how.output, out)
        }
    }
}

/// The shape beside which a user's kernels are shown if no other is asked for.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
const LIKE: &str = "gritlm-7b";

fn parsed(shapes: &[String]) -> Result<Vec<Named>> {
    Ok(shapes.iter().map(|s| Named::parse(s)).collect::<Result<_, gritlm_bench::Error>>()?)
}

/// The model to measure.
struct Source<'a> {
    global: &'a Global,
    like: Option<&'a str>,
    layers: Option<usize>,
}

impl Source<'_> {
    fn open(&self, options: &Options) -> Result<Engine> {
        match self.like {
            Some(like) => Ok(Engine::random(like, self.layers, options)?),
            None => Ok(Engine::open(&self.global.model, options)?),
        }
    }
}

fn measure_model(
    source: &Source<'_>,
    options: &Options,
    device: &str,
    plan: &ModelPlan,
    record: &mut Record,
) -> Result<()> {
    let limits = backend::open(options, Limit { device })?;
    // Timing every launch costs time, so the ops of a step are measured separately.
    let engine = source.open(&options.clone().profile(false))?;
    note(format_args!("note: measuring {} on {}", engine.name(), engine.device()));
    let mut progress = Progress::new("model", 0);
    record.devices.push(limits.clone());
    model::model(&engine, &limits, plan, record, &mut |done, all| Ok(progress.of(done, all)?))?;
    drop(engine);
    if device.starts_with("cpu") {
        return Ok(());
    }
    Ok(model::steps(&source.open(options)?, device, plan, record)?)
}

/// Measures the limits of a device and closes it again.
struct Limit<'a> {
    device: &'a str,
}

impl Visit for Limit<'_> {
    type Out = Limits;
    type Error = Error;

    async fn visit<O: Measure + 'static>(self, ops: O, _why: String) -> Result<Limits> {
        Ok(measure(&ops, self.device)?)
    }
}

/// Runs `run` on each device and returns the record. What could not be measured on a device is a
/// line of the record.
fn on_each_device(
    global: &Global,
    run: impl Fn(&Options, &str, &mut Record) -> Result<()>,
) -> Result<Record> {
    handle_interrupt();
    let mut record = new_record();
    for options in devices(global) {
        let device = options.device.to_string();
        if let Err(problem) = run(&options, &device, &mut record) {
            record.missing.push(missing(&device, problem)?);
        }
    }
    Ok(record)
}

/// Returns the options for each given device, with profiling on.
fn devices(global: &Global) -> impl Iterator<Item = Options> {
    let options = global.options().profile(true);
    global.device.0.iter().map(move |device| options.clone().device(device.clone()))
}

/// Describes in one line what could not be measured. Ctrl-C stays an error and ends the run.
fn missing(device: &str, problem: Error) -> Result<String> {
    match problem {
        problem if problem.is_interrupt() => Err(problem),
        // The error already names the device.
        Error::Engine(gritlm::Error::NoDevice { .. }) => Ok(problem.message()),
        _ => Ok(format!("{device}: {}", problem.message())),
    }
}

/// Measures the ops on one device.
struct Single<'a> {
    device: &'a str,
    named: &'a [Named],
    how: &'a BenchHow,
    record: &'a mut Record,
}

impl Visit for Single<'_> {
    type Out = ();
    type Error = Error;

    async fn visit<O: Measure + 'static>(self, ops: O, _why: String) -> Result<()> {
        let device = self.device;
        note(format_args!("note: measuring {}", ops.device()));
        let limits = measure(&ops, device)?;
        let mut progress = Progress::new("ops", self.named.len() as u64);
        let how = (self.how.repeats, self.how.displace << 20);
        let taken = self.named.iter().filter(|named| ops.takes(named.case.dtype));
        for (n, named) in (1..).zip(taken) {
            match ops::row(&ops, &limits, named, how) {
                Ok(row) => self.record.rows.push(row),
                Err(problem) => {
                    let what = format!("{device} {} {}", named.op, named.shape);
                    self.record.missing.push(missing(&what, problem.into())?);
                }
            }
            progress.at(n)?;
        }
        self.record.devices.push(limits);
        Ok(())
    }
}

fn new_record() -> Record {
    let commit = std::env::var("GRITLM_COMMIT").map(|c| format!(" ({c})")).unwrap_or_default();
    Record {
        version: VERSION,
        date: now(),
        program: format!("gritlm {}{commit}", env!("CARGO_PKG_VERSION")),
        host: host(),
        ..Record::default()
    }
}

/// Describes the machine, as far as the system tells.
fn host() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!("{model}, {threads} threads, {}", std::env::consts::OS)
}

/// Returns the current time in UTC, as `2026-11-25T17:00:00Z`.
fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let (date, [h, m, s]) = (now.date(), [now.hour(), now.minute(), now.second()]);
    format!("{date}T{h:02}:{m:02}:{s:02}Z")
}

/// Shows the record, and writes and compares it as asked.
fn report(mut record: Record, how: &BenchOutput, out: &mut Out) -> Result<()> {
    for path in &how.peer {
        peer::merge(&mut record, path)?;
    }
    record.judge_by_peers();
    if let Some(path) = &how.json {
        record.write(path)?;
    }
    if let Some(path) = &how.html {
        keep(path, page::page(&record).as_bytes()).map_err(Error::io(path))?;
    }
    if out.json() {
        out.object(&record)?;
    } else {
        out.lines(table::table(&record).trim_end())?;
    }
    let Some(path) = &how.compare else { return Ok(()) };
    let found = compare(&Record::read(path)?, &record);
    for line in found.lines() {
        if out.json() { note(line) } else { out.line(line)? }
    }
    out.finish()?;
    if how.fail_on_regression && found.has_regression() {
        return Err(Error::Input {
            what: format!("beside {}", path.display()),
            problem: "some figures are slower by more than their spread".into(),
        });
    }
    Ok(())
}

fn write_results(folder: &Path) -> Result<()> {
    let found = results::Records::read(folder)?;
    let path = folder.join("RESULTS.md");
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let text = results::splice(&text, &results::results(&found.records), &path)?;
    keep(&path, text.as_bytes()).map_err(Error::io(&path))
}
