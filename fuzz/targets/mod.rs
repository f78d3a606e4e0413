//! What each fuzz target does with an input. The fuzzer calls these functions; the tests call them
//! with every file of the corpus. An input fails when one of them panics, hangs, or takes too much
//! memory.

mod checkpoint;
mod documents;
mod serve;
mod store;
mod training;

/// What a target does with an input.
type Entry = fn(&[u8]);

/// The targets, by the names of their corpora.
pub(crate) const TARGETS: [(&str, Entry); 9] = [
    ("adapter", checkpoint::adapter),
    ("chat_request", serve::request),
    ("config", checkpoint::config),
    ("documents", documents::read),
    ("gguf", checkpoint::gguf),
    ("safetensors", checkpoint::safetensors),
    ("store", store::mutated),
    ("tokenizer", checkpoint::tokenizer),
    ("training", training::lines),
];

/// Gives an input to a target.
pub(crate) fn run(target: &str, input: &[u8]) {
    let (_, entry) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target's name");
    entry(input);
}

/// A folder in memory where there is one: most inputs are written to files first.
fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(folder) => folder,
        Err(_) => tempfile::tempdir().expect("a temporary folder"),
    }
}
