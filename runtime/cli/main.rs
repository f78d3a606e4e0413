//! The command line. It writes data to stdout, and progress and notes to stderr. Its exit code is
//! 0, 1 (failure), 2 (usage) or 130 (Ctrl-C).

mod args;
mod ask;
mod bench;
mod chat;
mod demo;
mod embed;
mod error;
mod generate;
mod index;
mod inspect;
mod kernels;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod laboratory;
mod merge;
mod mine;
mod output;
mod quantize;
mod rank;
mod search;
mod serve;
mod train;

use args::{Args, Command, Global};
use clap::{CommandFactory, Parser, error::ErrorKind};
use error::{Error, Interrupt, Result};
use gritlm::Engine;
use gritlm_model::measure::OpTime;
use output::{Out, printable};
use std::io::Write;
use std::ops::Deref;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C; work in progress ends at its next step. A second one ends the process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Set while the program only waits for a line of input. No step would come to notice an
/// interrupt, so the first Ctrl-C ends the process.
static WAITING: AtomicBool = AtomicBool::new(false);

/// The exit code after Ctrl-C: 128 plus the signal's number, as in shells.
const BY_INTERRUPT: u8 = 130;
/// The exit code after SIGTERM.
#[cfg(unix)]
const BY_TERMINATE: u8 = 143;

/// Installs the handler for Ctrl-C. From here on the work checks [`INTERRUPTED`] often enough.
/// Before this call (during a download, which resumes) Ctrl-C ends the process as usual.
fn handle_interrupt() {
    // Without a handler Ctrl-C still ends the program, but in the middle of its work.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) || WAITING.load(Ordering::Relaxed) {
            std::process::exit(BY_INTERRUPT.into());
        }
    });
}

fn check_interrupt() -> Result<(), Interrupt> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Interrupt) } else { Ok(()) }
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    quiet();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    share_arenas();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let interrupted = interrupted(&args.command);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_interrupt() => {
            note(format_args!("error: {interrupted}"));
            ExitCode::from(BY_INTERRUPT)
        }
        // The reader (`head`, a pager) has closed the pipe.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("error: {}", error.message()));
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

/// Returns the message after Ctrl-C.
fn interrupted(command: &Command) -> &'static str {
    match command {
        Command::Index(_) => {
            "index was interrupted; what it has embedded is stored, and a new run goes on from there"
        }
        #[cfg(unix)]
        Command::ParseDocuments => "parse-documents was interrupted",
        Command::Embed(_) => "embed was interrupted; it has written no embeddings",
        Command::Similarity(_) => "similarity was interrupted; it has written nothing",
        Command::Rerank(_) => "rerank was interrupted; it has written nothing",
        Command::Search(_) => "search was interrupted; it has found nothing and kept nothing",
        Command::Quantize(_) => "quantize was interrupted; it has made no file",
        Command::Merge(_) => "merge was interrupted; it has made no folder",
        Command::Synth(_) => "synth was interrupted; it has made no checkpoint",
        Command::Kernels(_) => "kernels was interrupted; it has written nothing",
        Command::Generate(_) => "generate was interrupted; the answer is not whole",
        Command::Ask(_) => "ask was interrupted; the answer is not whole",
        Command::Chat(_) => "chat was interrupted; the answer is not whole",
        Command::Train(_) => "train was interrupted; its state is saved",
        Command::Mine(_) => "mine was interrupted; it has written nothing",
        Command::Bench(_) => "bench was interrupted",
        Command::Demo(_) => "demo was interrupted",
        Command::Serve(_) => "serve was interrupted",
        Command::Inspect(_) => "inspect was interrupted",
        Command::Devices => "devices was interrupted",
        Command::Completions { .. } => "completions was interrupted",
    }
}

/// Prints one line on stderr, with unprintable characters as escapes. If writing to stderr fails,
/// there is no other place to report it.
fn note(line: impl std::fmt::Display) {
    let line = line.to_string();
    let _ = writeln!(std::io::stderr(), "{}", printable(&line));
}

fn run(args: Args) -> Result<()> {
    let Args { command, global } = args;
    let mut out = Out::new(global.format);
    if global.device.0.len() > 1 && !matches!(command, Command::Bench(_)) {
        let found: Vec<String> = global.device.0.iter().map(ToString::to_string).collect();
        return Err(Error::Option {
            option: "--device",
            expected: "one device; only bench takes several".into(),
            found: found.join(","),
        });
    }
    match command {
        Command::Demo(a) => demo::run(&a, &global, &mut out),
        Command::Embed(a) => embed::run(&a, &global, &mut out),
        Command::Generate(a) => generate::run(&a, &global, &mut out),
        Command::Chat(a) => chat::run(&a, &global, &mut out),
        Command::Similarity(a) => rank::similarity(&a, &global, &mut out),
        Command::Rerank(a) => rank::rerank(&a, &global, &mut out),
        Command::Search(a) => search::run(&a, &global, &mut out),
        Command::Index(a) => index::run(&a, &global, &mut out),
        #[cfg(unix)]
        Command::ParseDocuments => Ok(gritlm_rag::serve_parser()?),
        Command::Inspect(a) => inspect::inspect(&a, &global, &mut out),
        Command::Devices => inspect::devices(&mut out),
        Command::Ask(a) => ask::run(&a, &global, &mut out),
        Command::Serve(a) => serve::run(a, &global, &mut out),
        Command::Mine(a) => mine::run(&a, &global, &mut out),
        Command::Train(a) => train::run(&a, &global, &mut out),
        Command::Bench(a) => bench::run(&a, &global, &mut out),
        Command::Kernels(a) => kernels::run(&a, &mut out),
        Command::Quantize(a) => quantize::run(&a, &global, &mut out),
        Command::Merge(a) => merge::run(&a, &global, &mut out),
        Command::Synth(a) => inspect::synth(&a, &mut out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "gritlm", &mut script);
            out.bytes(&script)
        }
    }?;
    out.finish()
}

/// An open model. Prints the profile of `--profile` when the command is done with it.
struct Opened {
    engine: Engine,
    profile: bool,
}

impl Deref for Opened {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.profile {
            profile(&self.engine.profile());
        }
    }
}

/// Opens the model and prints on stderr what it runs on.
fn open(global: &Global) -> Result<Opened> {
    let engine = Engine::open(&global.model, &global.options())?;
    handle_interrupt();
    opened(&engine);
    Ok(Opened { engine, profile: global.profile })
}

/// Prints on stderr what the model runs on, and in which numbers.
fn opened(engine: &Engine) {
    let (bytes, seconds) =
        (engine.loading().bytes as f64 / 1e9, engine.loading().time.as_secs_f64());
    let loaded = if engine.device().starts_with("cpu") {
        String::new()
    } else {
        format!(", {bytes:.2} GB loaded in {seconds:.2} s ({:.2} GB/s)", bytes / seconds)
    };
    let adapter = engine.options().adapter.as_ref();
    let adapter = adapter.map_or(String::new(), |path| format!(" with {}", path.display()));
    let (device, products) = (engine.device(), engine.products());
    note(format_args!("{}{adapter} on {device}; products in {products}{loaded}", engine.name()));
}

/// Prints the device's time op by op, in ms and as a share of the total.
fn profile(times: &[OpTime]) {
    if times.is_empty() {
        return note("note: --profile times the ops of a GPU; this device has none");
    }
    let all: f64 = times.iter().map(|t| t.nanoseconds).sum();
    note(format_args!(
        "{:<16} {:>8} {:>10} {:>7} {:>9} {:>8} {:>9}",
        "op", "launches", "ms", "share", "MB", "GB/s", "GFLOP/s"
    ));
    for t in times {
        note(format_args!(
            "{:<16} {:>8} {:>10.3} {:>6.1}% {:>9.1} {:>8.2} {:>9.2}",
            t.op,
            t.launches,
            t.nanoseconds / 1e6,
            100.0 * t.nanoseconds / all,
            t.bytes as f64 / 1e6,
            t.bytes as f64 / t.nanoseconds,
            t.flops as f64 / t.nanoseconds
        ));
    }
    note(format_args!("{:<25} {:>10.3}", "all", all / 1e6));
}

/// Prints help and version as clap does, and anything else on one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // If stdout is closed, there is no other place to report it.
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.to_string();
    let first: Vec<&str> =
        text.lines().take_while(|l| !l.trim().is_empty()).map(str::trim).collect();
    note(format_args!("{}; try --help", first.join(" ")));
    ExitCode::from(2)
}

/// Keeps libwayland from writing "error: XDG_RUNTIME_DIR is invalid" to stderr where a session has
/// no such folder. Mesa's Vulkan layer that chooses among devices asks it for a display, whatever
/// device is wanted, and does as well without.
#[cfg(target_os = "linux")]
fn quiet() {
    const FOLDER: &str = "XDG_RUNTIME_DIR";
    let absolute = |folder: std::ffi::OsString| folder.as_encoded_bytes().starts_with(b"/");
    if !std::env::var_os(FOLDER).is_some_and(absolute) {
        // SAFETY: this is the first thing that the program does, so there is no other thread that
        // could read the environment meanwhile.
        unsafe { std::env::set_var(FOLDER, "/nonexistent") };
    }
}

/// Lets glibc's allocator have no more arenas than there are cores, in place of eight times as many.
/// Each keeps freed memory of its own: a server that had answered large requests on two cores kept
/// 52 MB with two arenas, and 72 to 94 MB with more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn share_arenas() {
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    // SAFETY: the function only sets a limit, and there is no other thread that could allocate
    // meanwhile.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, cores.try_into().unwrap_or(i32::MAX));
    }
}
