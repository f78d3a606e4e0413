//! Compiles the default variants of all shaders with a GPU vendor's compiler, and judges what it
//! makes of them. No GPU is needed: RADV, Mesa's driver for AMD, has a null device that compiles for
//! any of its chips and says what a variant takes.
//!
//!     cargo run --release -p gritlm-shaders --example isa -- list
//!     cargo run --release -p gritlm-shaders --example isa -- check ["gate_up matmul" [FOLDER]]
//!     cargo run --release -p gritlm-shaders --example isa -- record [FOLDER]
//!     cargo run --release -p gritlm-shaders --example isa -- with matmul=FILE.wgsl ["gate_up matmul"]
//!
//! `check` compares with the record in `benches/record/shaders`, all variants or those whose name
//! contains a text, whose counts it prints. It fails (exit code 1) if a variant does not compile,
//! spills more registers than in the record, leaves fewer subgroups resident on a SIMD, or takes 3 %
//! more instructions. A record of another version of Mesa is only named. `record` writes it again. `with`
//! shows what a file of your own takes beside ours, in the variants that have it.
//! Without RADV (Debian: mesa-vulkan-drivers) the exit code is 77.

#[cfg(target_os = "linux")]
mod compile;
#[cfg(target_os = "linux")]
mod judge;
#[cfg(target_os = "linux")]
mod radv;

use gritlm_model::weights::Dtype;
use gritlm_shaders::Own;
use gritlm_shaders::shader::{Variant, default_variants};
use std::process::ExitCode;

/// The formats of weights that are judged: those that most files have. The others differ from them
/// by a few instructions.
const FORMATS: [Dtype; 4] = [Dtype::Bf16, Dtype::Q8_0, Dtype::Q4K, Dtype::Q6K];

/// The judged variants whose name contains `text`.
fn judged(text: &str) -> Vec<Variant> {
    let all = default_variants(&FORMATS).into_iter();
    all.filter(|variant| variant.to_string().contains(text)).collect()
}

/// The file that `STEM=FILE` names.
fn own(given: &str) -> Result<Own, String> {
    let (stem, path) = given.split_once('=').ok_or("expected STEM=FILE")?;
    Own::read(stem, path.as_ref()).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => {
            judged("").iter().for_each(|variant| println!("{variant}"));
            ExitCode::SUCCESS
        }
        #[cfg(target_os = "linux")]
        ["check"] => judge::check("", judge::FOLDER.as_ref()),
        #[cfg(target_os = "linux")]
        ["check", text] => judge::check(text, judge::FOLDER.as_ref()),
        #[cfg(target_os = "linux")]
        ["check", text, folder] => judge::check(text, folder.as_ref()),
        #[cfg(target_os = "linux")]
        ["record"] => judge::record(judge::FOLDER.as_ref()),
        #[cfg(target_os = "linux")]
        ["record", folder] => judge::record(folder.as_ref()),
        #[cfg(target_os = "linux")]
        ["with", given] => judge::beside(given, ""),
        #[cfg(target_os = "linux")]
        ["with", given, text] => judge::beside(given, text),
        // The process that `radv.rs` starts for each chip.
        #[cfg(target_os = "linux")]
        ["compile", text] => compile::compile(&judged(text), &[]),
        #[cfg(target_os = "linux")]
        ["compile", text, given] => match own(given) {
            Ok(own) => compile::compile(&judged(text), &[own]),
            Err(problem) => {
                eprintln!("{problem}");
                ExitCode::FAILURE
            }
        },
        _ => {
            let commands =
                "`list`, `check [TEXT [FOLDER]]`, `record [FOLDER]` or `with STEM=FILE [TEXT]`";
            eprintln!("expected {commands}, on Linux");
            ExitCode::from(2)
        }
    }
}
