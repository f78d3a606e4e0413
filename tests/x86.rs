//! The CPU backend without AVX-512, and without the vectors of any x86 since 2013: on processors
//! that QEMU plays.

use gritlm::model::reference::relative_error;
use serde_json::Value;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_gritlm");

/// What a command prints as JSON, and the device that it ran on.
fn run(mut command: Command, args: &[&str]) -> (Vec<Value>, String) {
    command.args(args).args(["--model", "demo", "--device", "cpu", "--format", "json"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let out = String::from_utf8(output.stdout).unwrap();
    let device = said.lines().find(|line| line.starts_with("demo on cpu")).expect("a device");
    (out.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), device.into())
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect()
}

#[test]
fn older_processors_compute_the_same() {
    const QEMU: &str = "qemu-x86_64";
    if !cfg!(all(target_arch = "x86_64", target_os = "linux"))
        || Command::new(QEMU).arg("--version").output().is_err()
    {
        assert!(std::env::var_os("GRITLM_EXPECT_QEMU").is_none(), "{QEMU} is missing");
        println!("skipped: older x86 processors: there is no {QEMU}");
        return;
    }
    let long = "chess for the desktop, ".repeat(12);
    let int8 = ["generate", "--prompt", "A chess game.", "--weights", "q8_0", "--compute", "int8"];
    let commands: [&[&str]; 4] = [
        &["embed", "chess interface for the desktop", &long],
        &["generate", "--prompt", "Describe the package pdfgrep.", "--max-tokens", "24"],
        &["generate", "--prompt", &long, "--max-tokens", "8"],
        &[&int8[..], &["--max-tokens", "8"]].concat(),
    ];
    let expected = commands.map(|args| run(Command::new(PROGRAM), args).0);
    for (cpu, vectors) in [("Haswell", "AVX2"), ("Nehalem", "no vectors")] {
        for (args, expected) in commands.iter().zip(&expected) {
            let mut command = Command::new(QEMU);
            command.args(["-cpu", cpu]).arg(PROGRAM);
            let (found, device) = run(command, args);
            assert!(device.contains(vectors), "{cpu}: {device}");
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found["tokens"], expected["tokens"], "{cpu}, {args:?}");
                if args[0] == "embed" {
                    let [found, expected] = [found, expected].map(|v| numbers(&v["embedding"]));
                    let error = relative_error(&found, &expected);
                    assert!(error < 1e-5, "{cpu}: {error}");
                }
            }
        }
    }
    println!("older x86 processors covered: Haswell (AVX2), Nehalem (no vectors), by {QEMU}");
}
