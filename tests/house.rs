//! Rules of the house that the compiler cannot enforce.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file of the library crates.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runtime =
        ["engine", "rag", "train", "serve", "bench"].map(|part| root.join("runtime").join(part));
    let mut folders: Vec<PathBuf> =
        ["model", "kernels", "shaders", "python"].map(|f| root.join(f)).into();
    folders.extend(runtime);
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|end| end == "rs") => files.push(path),
                false => {}
            }
        }
    }
    files
}

/// Whether code, or a text in it, has something like `--kv-tokens`.
fn has_flag(line: &str) -> bool {
    let code = line.trim_start();
    let mut rest = code.split("--").skip(1);
    !code.starts_with("//") && rest.any(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// Who uses a library or a server has fields, not flags; the command line translates.
#[test]
fn no_message_of_a_library_names_a_flag() {
    assert!(has_flag("    raise --kv-tokens\"") && has_flag("option: \"--attn\","));
    assert!(!has_flag("/// As `--device` takes it.") && !has_flag("id.contains(\"--\")"));
    // They start a program with flags, or say which makes what is missing: this one, NVIDIA's compiler.
    let with_flags = ["runtime/bench/load.rs", "kernels/compile.rs", "kernels/prebuilt.rs"];
    let (mut seen, files) = (0, sources());
    assert!(files.len() > 150);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let found = text.lines().position(has_flag);
        if with_flags.iter().any(|end| path.ends_with(end)) {
            assert!(found.is_some(), "{}: no longer an exception", path.display());
            seen += 1;
        } else if let Some(line) = found {
            panic!("{}:{}: a flag in a library", path.display(), line + 1);
        }
    }
    assert_eq!(seen, with_flags.len());
}
