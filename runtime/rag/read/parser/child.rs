//! Runs a parser's process: starts it, sends it documents, ends it, and reports what ended it.

use super::wire::{self, GREETING, read_answer, write_request};
use super::{Format, ParseLimits, Parsed, mib, parse};
use crate::{Error, Result};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of documents after which a process is replaced, so that memory that its allocator keeps
/// from one document does not count against the next.
const WORN: usize = 128 << 20;

/// How long a process may take to start. (Applying the program's relocations takes some 10 ms.)
const START: Duration = Duration::from_secs(30);

/// Wall-clock limit as a multiple of the CPU time limit, in case other processes keep the cores
/// busy.
const PATIENCE: u32 = 30;

/// Stack of the parsing thread, in bytes. Parsers recurse as deep as a file is nested.
const STACK: usize = 64 << 20;

/// A parser in a child process, which is started when it is needed.
#[derive(Debug)]
pub(super) struct Child {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    command: Command,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    child: std::process::Child,
    socket: UnixStream,
    /// Bytes of documents that the process was given so far.
    parsed: usize,
}

impl Child {
    pub(super) fn of(command: Command) -> Self {
        Self { state: Mutex::new(State { command, process: None }) }
    }

    pub(super) fn parse(
        &self,
        format: Format,
        bytes: &[u8],
        limits: &ParseLimits,
    ) -> Result<Parsed> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = match state.process.take() {
            Some(process) if process.parsed < WORN => process,
            _ => Process::start(&mut state.command)?,
        };
        process.parsed += bytes.len();
        let patience = limits.cpu * PATIENCE;
        let answer = process.ask(format, bytes, limits, Instant::now() + patience);
        Ok(match answer {
            Ok(answer) => {
                state.process = Some(process);
                answer
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(format!("its parser took longer than {} s, and was ended", patience.as_secs()))
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err("its parser answered nonsense, and was ended".into())
            }
            Err(_) => Err(process.ended(limits)),
        })
    }
}

impl Process {
    /// Starts a parser's process. Returns an error if the command does not start one.
    fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_owned();
        let wrong = |problem: String| {
            Error::from(gritlm::Error::Input {
                what: format!("the parser's process, {}", name.display()),
                problem,
            })
        };
        let mut started = || -> io::Result<Self> {
            let (socket, theirs) = UnixStream::pair()?;
            let child = command
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                // This process handles Ctrl-C and then ends the child, which therefore has its
                // own group.
                .process_group(0)
                .spawn()?;
            // The command still holds the other end, which would keep the socket open.
            command.stdin(Stdio::null());
            Ok(Self { child, socket, parsed: 0 })
        };
        let process = started().map_err(|e| wrong(format!("it does not start: {e}")))?;
        let mut greeting = [0; GREETING.len()];
        let came = process.until(Instant::now() + START).read_exact(&mut greeting);
        match came {
            Ok(()) if greeting == *GREETING => Ok(process),
            Ok(()) => Err(wrong("its protocol is of another version".into())),
            Err(error) => Err(wrong(format!("it does not answer: {error}"))),
        }
    }

    fn until(&self, deadline: Instant) -> Until<'_> {
        Until { socket: &self.socket, deadline }
    }

    fn ask(
        &self,
        format: Format,
        bytes: &[u8],
        limits: &ParseLimits,
        deadline: Instant,
    ) -> io::Result<Parsed> {
        let mut to = BufWriter::new(self.until(deadline));
        write_request(&mut to, format, limits, bytes)?;
        to.flush()?;
        // Nothing else limits the answer of a process that a document has corrupted.
        read_answer(&mut self.until(deadline), limits.text.max(1 << 16))
    }

    /// Ends the process and describes what ended it.
    fn ended(mut self, limits: &ParseLimits) -> String {
        let Some(status) = self.end() else { return "its parser's process was lost".into() };
        // The message that a Rust program prints when it aborts.
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            // Output that is not UTF-8 is not the message that is looked for.
            let _ = stderr.take(1 << 16).read_to_string(&mut said);
        }
        let signal = status.signal();
        if signal == Some(Signal::XCPU.as_raw()) {
            format!("its parser took more than {} s of CPU time", limits.cpu.as_secs())
        } else if said.contains("memory allocation of") {
            format!("its parser needed more than {} of memory", mib(limits.memory))
        } else if said.contains("overflowed its stack") {
            "its parser overflowed its stack".into()
        } else if let Some(signal) = signal {
            format!("its parser was ended by signal {signal}")
        } else {
            format!("its parser ended with exit code {}", status.code().unwrap_or_default())
        }
    }

    /// Waits up to 1 s for the process to end, then kills it with its whole process group.
    fn end(&mut self) -> Option<ExitStatus> {
        // A process that has closed its socket is about to end by itself.
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.kill();
        self.child.wait().ok()
    }

    fn kill(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // The group may already be gone.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// A socket on which all reads and writes must finish by a deadline.
struct Until<'a> {
    socket: &'a UnixStream,
    deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Converts `WouldBlock`, which Unix returns for a time-out, to `TimedOut`.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(bytes).map_err(timed_out)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Parses the documents that arrive on stdin until there are no more. It is the other end of
/// [`super::Parser::in_child`]. A program calls it first, before it opens files or starts
/// threads. The process gives up what a parser does not need: opening and writing files.
///
/// # Errors
/// Returns an error if stdin is not such a socket, or if the socket breaks.
pub fn serve_parser() -> Result<()> {
    let broken = Error::io("standard input");
    let socket = rustix::stdio::stdin().try_clone_to_owned().map(UnixStream::from);
    let thread = std::thread::Builder::new().stack_size(STACK);
    let parser = socket.and_then(|socket| {
        // The thread is started before the limits are set.
        thread.spawn(move || answer_all(socket))
    });
    let ended = parser.and_then(|parser| {
        parser.join().unwrap_or_else(|_| Err(io::Error::other("the parser's thread was lost")))
    });
    ended.map_err(broken)
}

fn answer_all(mut socket: UnixStream) -> io::Result<()> {
    let most = |resource, most: u64| {
        // If the system refuses, the old limit stays.
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    };
    most(Resource::Core, 0);
    most(Resource::Fsize, 0);
    // Files that are already open stay open.
    most(Resource::Nofile, 0);
    socket.write_all(GREETING)?;
    while let Some(request) = wire::read_request(&mut socket)? {
        set_limits(&request.limits);
        let answer = parse(request.format, &request.document, &request.limits);
        let mut to = BufWriter::new(&socket);
        wire::write_answer(&mut to, &answer)?;
        to.flush()?;
    }
    Ok(())
}

/// Sets the limits of the process for the next document.
fn set_limits(limits: &ParseLimits) {
    let soft = |resource, most: u64| {
        let maximum = getrlimit(resource).maximum;
        let current = Some(maximum.map_or(most, |maximum| most.min(maximum)));
        let _ = setrlimit(resource, Rlimit { current, maximum });
    };
    soft(Resource::As, limits.memory);
    // The limit counts from the process's start, in whole seconds.
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.unsigned_abs() + 1;
    soft(Resource::Cpu, used.saturating_add(limits.cpu.as_secs()));
}
