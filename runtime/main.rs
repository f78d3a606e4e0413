//! The command line; everything is in `gritlm::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gritlm::cli::main()
}
