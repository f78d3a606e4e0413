#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    // The crate that tokenizes panics on some files, which is caught and made an error.
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| targets::run("tokenizer", input)
);
