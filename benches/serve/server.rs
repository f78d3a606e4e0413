//! Runs `gritlm serve` in a process of its own, which is killed on drop.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// What every load test is told.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Model, as for `gritlm serve`.
    #[arg(long, default_value = "demo")]
    pub(crate) model: String,
    /// Device, as for `gritlm serve`.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Returns this build's program.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gritlm"))
}

pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program on a free port with the arguments `more`, and with `threads` threads if
    /// given; returns when it is ready.
    pub(crate) fn start(
        program: &Path,
        target: &Target,
        more: &[&str],
        threads: Option<usize>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", "--port", "0", "--model-name", "model"]);
        command.args(["--model", &target.model, "--device", &target.device]).args(more);
        if let Some(threads) = threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("gritlm serve starts");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut url).expect("an address");
        let server = Self { child, url: url.trim().into() };
        while ureq::get(format!("{}/ready", server.url)).call().is_err() {
            sleep(Duration::from_millis(50));
        }
        server
    }
}
