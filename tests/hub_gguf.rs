//! `--model owner/name:FILE.gguf`: one file of a repository, or all parts of a split one.

use crate::gguf_file::{Experts, converted};
use crate::hub::{Home, MODEL, Reply, Server};
use std::fs;
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The files of the one snapshot in a home.
fn snapshot(home: &Home) -> Vec<String> {
    let snapshots = home.0.path().join("hub/models--owner--name/snapshots");
    let commits = names(&snapshots);
    assert_eq!(commits.len(), 1, "{commits:?}");
    names(&snapshots.join(&commits[0]))
}

fn inspects(home: &Home, server: &str, model: &str) {
    let ran = home.run_with(server, model, &[]);
    ran.says("Llama");
}

#[test]
fn one_file_is_downloaded_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = converted("mistral-odd", Experts::Stacked);
    for name in ["odd-Q8_0.gguf", "odd-BF16.gguf"] {
        fs::write(folder.path().join(name), file.bytes()).unwrap();
    }
    let (home, server) = (Home::new(), Server::start(folder.path(), |_| Reply::File));
    let model = format!("{MODEL}:odd-BF16.gguf");
    inspects(&home, &server.url, &model);
    assert_eq!(snapshot(&home), ["odd-BF16.gguf"]);
    let asked = server.log().len();
    inspects(&home, &server.url, &model);
    inspects(&home, &server.url, &format!("{MODEL}@main:odd-BF16.gguf"));
    assert_eq!(server.log().len(), asked, "it asked again");
    home.run_with(&server.url, &format!("{MODEL}:none.gguf"), &[]).fails(&["none.gguf", "404"]);
}

#[test]
fn all_parts_of_a_split_file_are_downloaded() {
    let folder = tempfile::tempdir().unwrap();
    let parts = converted("mistral-odd", Experts::Stacked).parts(3);
    let name = |number: usize| format!("odd-{number:05}-of-00003.gguf");
    for (i, part) in parts.iter().enumerate() {
        fs::write(folder.path().join(name(i + 1)), part.bytes()).unwrap();
    }
    let (home, server) = (Home::new(), Server::start(folder.path(), |_| Reply::File));
    inspects(&home, &server.url, &format!("{MODEL}:{}", name(2)));
    assert_eq!(snapshot(&home), [name(1), name(2), name(3)]);
    let asked = server.log().len();
    inspects(&home, &server.url, &format!("{MODEL}:{}", name(1)));
    assert_eq!(server.log().len(), asked, "it asked again");
}

#[test]
fn other_names_are_refused() {
    let (home, server) = (Home::new(), Server::start(Path::new("."), |_| Reply::File));
    for file in ["model.safetensors", "", "../x.gguf", "a/x.gguf", ".gguf", "x y.gguf", "x.gguf:1"]
    {
        let ran = home.run_with(&server.url, &format!("{MODEL}:{file}"), &[]);
        ran.fails(&["error: "]);
    }
    assert!(server.log().is_empty());
}
