//! The command line; everything is in `gritlm::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    quiet();
    gritlm::cli::main()
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
