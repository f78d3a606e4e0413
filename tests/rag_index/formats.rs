//! What is read of each format of documents, and which files of a folder are read.

use super::folder;
use crate::support::data;
use gritlm_rag::{Source, read};
use serde_json::{Value, json};
use std::fs;

/// The one document of a file.
fn only(name: &str, bytes: &[u8]) -> Source {
    let folder = folder(&[(name, bytes)]);
    let (mut sources, problems) = read(folder.path());
    assert_eq!(problems, [""; 0]);
    assert_eq!(sources.len(), 1, "{name}");
    sources.remove(0)
}

#[track_caller]
fn reads(name: &str, bytes: &[u8], title: &str, text: &str) {
    let source = only(name, bytes);
    assert_eq!((source.title.as_str(), source.text.as_str()), (title, text), "{name}");
    assert_eq!(source.metadata, Value::Null);
}

#[test]
fn text_and_markdown() {
    reads("a.txt", "\u{FEFF}one\r\ntwo\rgrüße \n".as_bytes(), "a.txt", "one\ntwo\ngrüße");
    reads("Makefile", b"all:\n\techo", "Makefile", "all:\n\techo");
    reads("a.md", b"# Chess #\n\nfor all", "Chess", "# Chess #\n\nfor all");
    reads("b.md", b"```\n# no\n```\nYes\n===\n", "Yes", "```\n# no\n```\nYes\n===");
    reads("c.MD", b"#hash\n\ntext", "c.MD", "#hash\n\ntext");
}

#[test]
fn html() {
    let page = b"<!doctype html><html><head><title> Chess &amp; Go\n</title><style>p{}</style>\
        <script>if (a<b) document.write('<p>no</p>')</script></head>\n<body><h1>Games</h1>\n\
        <p>One   <b>bo</b>ld &eacute; word<p>Two<br>lines<ul><li>a<li>b</ul>\
        <svg><title>no</title><text>no</text></svg><!-- no -->\
        <table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>\
        <pre>\n  x = 1\n    y\n</pre>end";
    let text = "Games\n\nOne bold \u{e9} word\n\nTwo\nlines\n\na\nb\n\n1 2\n3\n\nx = 1\ny\n\nend";
    reads("a.html", page, "Chess & Go", text);
    reads("b.htm", b"<h1>Only <i>this</i></h1>x", "Only this", "Only this\n\nx");
    reads("c.html", b"nothing", "c.html", "nothing");
    // Neither is UTF-8: the first says what it is, the second is what browsers take it for.
    reads("d.html", b"<meta charset=\"iso-8859-5\"><p>\xbf\xe0", "d.html", "Пр");
    reads("e.html", b"<p>caf\xe9 \x80", "e.html", "café €");
    // As deep as it likes.
    let deep = format!("{}x", "<div>".repeat(100_000));
    reads("f.html", deep.as_bytes(), "f.html", "x");
}

#[test]
fn pdf() {
    let bytes = fs::read(data("rag/packets.pdf")).unwrap();
    let text = "Packet capture\n\nA program that shows what goes\nover the network, packet by \
                packet.\n\nA second paragraph, in two pieces.\nValley of \
                first 2024";
    reads("packets.pdf", &bytes, "packets.pdf", text);
    // What is broken is named, whatever the parser does, and does not end anything.
    let locked = fs::read(data("rag/locked.pdf")).unwrap();
    let font = String::from_utf8_lossy(&bytes).replace("/WinAnsiEncoding", "/UniJIS-UCS2-Hx ");
    let font = font.replace("/Type1 ", "/Type0 ");
    let cut = &bytes[..bytes.len() / 2];
    let broken: [(&str, &[u8], &str); 4] = [
        ("locked.pdf", &locked, "password"),
        ("font.pdf", font.as_bytes(), "PDF"),
        ("cut.pdf", cut, "PDF"),
        ("none.pdf", b"hello", "not a PDF"),
    ];
    for (name, bytes, expected) in broken {
        let folder = folder(&[(name, bytes), ("z.txt", b"still read")]);
        let (sources, problems) = read(folder.path());
        assert_eq!(sources.len(), 1, "{name}");
        let [problem] = &problems[..] else { panic!("{name}: {problems:?}") };
        assert!(problem.contains(name) && problem.contains(expected), "{problem}");
        assert!(!problem.contains('\n'), "{problem}");
    }
}

#[test]
fn jsonl() {
    let lines = b"{\"text\": \"one\", \"id\": \"a\", \"title\": \"T\\nx\", \"year\": 2024}\n\n\
        {\"text\": \"two\", \"id\": 7}\r\n{\"id\": \"b\"}\n{\"text\": \"three\"}\nno\n\
        {\"text\": \"four\", \"id\": \"a\"}\n{\"text\": \"five\", \"title\": 5}\n";
    let folder = folder(&[("c.jsonl", lines)]);
    let (sources, problems) = read(folder.path());
    let found: Vec<_> = sources
        .iter()
        .map(|s| (s.path.rsplit('/').next().unwrap(), &*s.title, &*s.text, s.metadata.clone()))
        .collect();
    let expected = [
        ("c.jsonl#a", "T x", "one", json!({ "year": 2024 })),
        ("c.jsonl#7", "", "two", Value::Null),
        ("c.jsonl#5", "", "three", Value::Null),
    ];
    assert_eq!(found, expected);
    let parts =
        ["line 4: expected an object", "line 6: expected", "line 7: a second", "line 8: title"];
    assert_eq!(problems.len(), parts.len());
    for (problem, part) in problems.iter().zip(parts) {
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn folders_are_walked() {
    let folder = folder(&[
        ("b/deep/x.txt", b"x"),
        ("a.txt", b"a"),
        (".hidden/no.txt", b"no"),
        ("b/.no.txt", b"no"),
        ("image.png", b"\x89PNG\0\xff"),
        ("zero.bin", b"a\0b"),
        ("latin.txt", b"caf\xe9"),
    ]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(folder.path(), folder.path().join("b/loop")).unwrap();
        symlink(folder.path().join("nowhere"), folder.path().join("b/dead")).unwrap();
    }
    let (sources, problems) = read(folder.path());
    let root = folder.path().canonicalize().unwrap();
    let names: Vec<_> = sources.iter().map(|s| s.path.clone()).collect();
    let expected = ["a.txt", "b/deep/x.txt"].map(|n| root.join(n).to_str().unwrap().to_string());
    assert_eq!(names, expected);
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert!(problem.contains("latin.txt: not UTF-8 (byte 3"), "{problem}");
}
