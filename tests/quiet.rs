//! Nothing says "error" where nothing is wrong.

use crate::support::say;
use pollster::block_on;
use std::process::Command;

/// A session without the folder that graphics libraries ask for, as over ssh or in a container.
#[test]
fn a_headless_start_is_quiet() {
    if block_on(gritlm_shaders::adapters()).is_empty() {
        say("SKIPPED quiet: no adapter, so no graphics library is loaded");
    }
    let commands: [&[&str]; 5] = [
        &["devices"],
        &["devices", "--format", "json"],
        &["demo", "capture packets"],
        &["embed", "a text"],
        &["generate", "--prompt", "x", "--max-tokens", "2"],
    ];
    for folder in [None, Some(""), Some("run/user/0")] {
        for args in commands {
            let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
            command.args(args).env_remove("GRITLM_MODEL").env_remove("XDG_RUNTIME_DIR");
            command.env_remove("WAYLAND_DISPLAY");
            if let Some(folder) = folder {
                command.env("XDG_RUNTIME_DIR", folder);
            }
            let output = command.output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{args:?}: {stderr}");
            let wrong = stderr.lines().find(|line| line.to_lowercase().contains("error"));
            assert_eq!(wrong, None, "{args:?}, XDG_RUNTIME_DIR {folder:?}");
        }
    }
}
