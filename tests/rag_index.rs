//! From files to an index: what is read of each format, how texts are cut, what a run adds, skips,
//! replaces and removes, what search finds, and the program.

use crate::cli::{objects, run};
use crate::support::{close, data, with_a_yes};
use gritlm::batch::{Sequence, Want};
use gritlm::model::prompt;
use gritlm::{Attn, Device, Embed, Engine, Options, dot};
use gritlm_rag::Error;
use gritlm_rag::{
    CacheKind, Chunking, Event, Find, Identity, Indexed, Indexer, KvFormat, Reader, Searcher,
    Source, VectorFormat, read, verify,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The demo model on the CPU.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let options = Options { device: Device::Cpu, batch_tokens: 256, ..Options::default() };
        Engine::open("demo", &options).unwrap()
    })
}

/// A folder with files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

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

/// Texts of words, sentences, paragraphs, rare characters and long runs.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-z]{1,9} ",
        2 => "[A-Za-z]{1,6}[.!?] ",
        1 => Just("\n\n".to_string()),
        1 => "[ \n\t]{1,5}",
        1 => "[äß☃語🦀\u{301}]{1,4}",
        1 => "[0-9a-f]{20,60}",
    ];
    proptest::collection::vec(piece, 0..160).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn chunks_hold_every_byte_and_fit(
        text in texts(), title in "[A-Za-z ]{0,60}", tokens in 32_usize..100, overlap in 0_usize..9,
    ) {
        let how = Chunking { tokens, overlap: overlap.min(tokens / 4) };
        let title = how.title(engine(), &title).unwrap();
        let cuts = how.cut(engine(), &title, &text).unwrap();
        prop_assert_eq!(&cuts, &how.cut(engine(), &title, &text).unwrap());
        prop_assert_eq!(cuts.first().map_or(0, |c| c.bytes.start), 0);
        prop_assert_eq!(cuts.last().map_or(0, |c| c.bytes.end), text.len());
        for pair in cuts.windows(2) {
            prop_assert!(pair[0].bytes.start < pair[1].bytes.start);
            prop_assert!(pair[0].bytes.end < pair[1].bytes.end);
            prop_assert!(pair[1].bytes.start <= pair[0].bytes.end);
            if how.overlap == 0 {
                prop_assert_eq!(pair[1].bytes.start, pair[0].bytes.end);
            } else {
                // As they are in the first chunk: alone, the shared text may be cut otherwise.
                let before = pair[0].bytes.start;
                let shared = pair[1].bytes.start - before..pair[0].bytes.end - before;
                let ends = engine().tokenizer().ends(&text[before..]).unwrap();
                let tokens = |at: usize| ends.iter().take_while(|end| end.0 <= at).count();
                let shared = tokens(shared.end) - tokens(shared.start);
                prop_assert!(shared <= how.overlap, "{}", shared);
            }
        }
        let whole = Embed { max_length: tokens, ..Embed::default() };
        for cut in &cuts {
            prop_assert!(cut.encoded.tokens.len() <= tokens);
            let document = prompt::document(&title, &text[cut.bytes.clone()]);
            // As it is embedded elsewhere, with nothing cut off.
            let again = engine().encode_texts(&[document], &whole).unwrap().remove(0);
            prop_assert_eq!(&cut.encoded, &again);
            prop_assert_eq!(again.truncated, 0);
        }
    }
}

#[test]
fn chunks_end_where_paragraphs_or_sentences_do() {
    let how = Chunking { tokens: 64, overlap: 0 };
    let cut = |text: &str| -> Vec<String> {
        let cuts = how.cut(engine(), "", text).unwrap();
        cuts.into_iter().map(|c| text[c.bytes].to_string()).collect()
    };
    let sentence = "The program shows packets. ";
    for chunk in cut(&sentence.repeat(60)) {
        assert!(chunk.ends_with("packets. ") && chunk.len() > 3 * sentence.len(), "{chunk:?}");
    }
    // A paragraph's end counts for more than the later end of a sentence.
    let ends = engine().tokenizer().ends(&sentence.repeat(60)).unwrap();
    let whole = |end: &&(usize, usize)| end.1 < 50 && (end.0 + 1).is_multiple_of(sentence.len());
    let sentences = ends.iter().filter(whole).count();
    let text = format!("{}\n\n{}", sentence.repeat(sentences).trim_end(), sentence.repeat(60));
    assert!(cut(&text)[0].ends_with("packets.\n\n"), "{:?}", cut(&text)[0]);
    // Without any, it ends where the tokens do.
    let long = "x1".repeat(900);
    let chunks = cut(&long);
    assert!(chunks.len() > 1);
    assert_eq!(chunks.concat(), long);
    assert_eq!(how.cut(engine(), "", "").unwrap(), []);
}

#[test]
fn chunk_lengths_are_checked() {
    let check = |tokens, overlap| Chunking { tokens, overlap }.check(2048);
    assert!(check(512, 0).is_ok() && check(32, 8).is_ok() && check(2048, 512).is_ok());
    for (tokens, overlap, option) in [(31, 0, "chunk"), (2049, 0, "chunk"), (64, 17, "overlap")] {
        let error = check(tokens, overlap).unwrap_err().to_string();
        assert!(error.starts_with(option), "{error}");
    }
}

fn identity() -> Identity {
    Identity { chunk: 64, ..Identity::of(engine()) }
}

fn caching(kv: KvFormat) -> Identity {
    Identity { cache: CacheKind::Doc, kv, ..identity() }
}

#[track_caller]
fn index(identity: &Identity, store: &Path, paths: &[&Path]) -> Indexed {
    let paths: Vec<PathBuf> = paths.iter().map(|p| p.to_path_buf()).collect();
    Indexer::open(engine(), store, identity).unwrap().run(&paths, &mut |_| Ok(())).unwrap()
}

/// Everything in a store that does not depend on the order in which it came there: by document,
/// the title, metadata, and of each chunk text, tokens, vector, keys and values.
type Content = HashMap<String, (String, Value, Vec<(String, u32, Vec<f32>, Option<Vec<f32>>)>)>;

fn content(store: &Path) -> Content {
    let reader = Reader::open(store).unwrap();
    let vectors = reader.vectors().unwrap();
    let (dim, rows) = (vectors.dim(), vectors.to_f32());
    let row = |id| vectors.ids().iter().position(|&i| i == id).unwrap() * dim;
    let documents = reader.documents().unwrap().into_iter().map(|d| {
        let chunks = d.chunks.iter().map(|&id| {
            let chunk = reader.chunk(id).unwrap();
            let kv = reader.kv(id).unwrap().map(|kv| kv.to_f32());
            (chunk.text, chunk.tokens, rows[row(id)..][..dim].to_vec(), kv)
        });
        (d.path, (d.title, d.metadata, chunks.collect()))
    });
    documents.collect()
}

/// Equal but for the last bits of numbers: those depend on what else was in a pass.
#[track_caller]
fn same(a: &Content, b: &Content) {
    assert_eq!(a.len(), b.len());
    for (path, (title, metadata, chunks)) in a {
        let (other_title, other_metadata, others) = &b[path];
        assert_eq!((title, metadata, chunks.len()), (other_title, other_metadata, others.len()));
        for (chunk, other) in chunks.iter().zip(others) {
            assert_eq!((&chunk.0, chunk.1), (&other.0, other.1));
            close(path, &chunk.2, &other.2, 1e-5);
            assert_eq!(chunk.3.is_some(), other.3.is_some());
            if let (Some(kv), Some(other)) = (&chunk.3, &other.3) {
                close(path, kv, other, 1e-5);
            }
        }
    }
}

fn corpus() -> Vec<u8> {
    gritlm::model::demo::CORPUS
        .lines()
        .take(40)
        .flat_map(|l| [l, "\n"].concat().into_bytes())
        .collect()
}

fn long_text() -> String {
    (0..60).map(|i| format!("Sentence number {i} is about packets. ")).collect()
}

#[test]
fn a_store_has_the_embeddings_and_caches_of_the_engine() {
    let files = folder(&[
        ("a.md", format!("# Packets\n\n{}", long_text()).as_bytes()),
        ("b.txt", b"chess for the desktop"),
        ("c.jsonl", &corpus()),
        ("empty.txt", b" \n"),
    ]);
    for attn in [Attn::Bbcc, Attn::Cccc] {
        let store = files.path().join("store");
        let identity = Identity { attn, ..caching(KvFormat::F32) };
        let done = index(&identity, &store, &[files.path()]);
        assert_eq!((done.added, done.failed, done.removed), (43, 0, 0));
        let reader = Reader::open(&store).unwrap();
        assert_eq!(reader.len() as u64, done.chunks);
        assert!(done.chunks > 45, "{done:?}");
        let how = Embed { attn: Some(attn), max_length: 64, ..Embed::default() };
        for (path, (title, _, chunks)) in content(&store) {
            assert_eq!(path.ends_with("empty.txt"), chunks.is_empty());
            for (text, tokens, vector, kv) in chunks {
                let document = prompt::document(&title, &text);
                let expected = engine().embed(&[&document], &how).unwrap().remove(0);
                assert_eq!((expected.tokens, expected.truncated), (tokens as usize, 0));
                close(&path, &vector, &expected.vector, 1e-5);
                let encoded = engine().encode_texts(&[&document], &how).unwrap().remove(0);
                let mut cache = engine().cache();
                let (mask, want) = (engine().embedding_mask(attn), Want::Nothing);
                let tokens = &encoded.tokens;
                engine().run(&mut [Sequence { tokens, cache: &mut cache, mask, want }]).unwrap();
                close(&path, &kv.unwrap(), &engine().export(&cache).unwrap().to_f32(), 1e-5);
            }
        }
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn formats_of_vectors_and_caches() {
    let files = folder(&[("a.txt", long_text().as_bytes())]);
    let (exact, store) = (files.path().join("exact"), files.path().join("store"));
    index(&caching(KvFormat::F32), &exact, &[&files.path().join("a.txt")]);
    let formats =
        [(VectorFormat::Bf16, KvFormat::Bf16, 4e-3), (VectorFormat::Int8, KvFormat::Int8, 1e-2)];
    for (vectors, kv, bound) in formats {
        index(&Identity { vectors, ..caching(kv) }, &store, &[&files.path().join("a.txt")]);
        for (path, (_, _, chunks)) in content(&store) {
            for (chunk, exact) in chunks.iter().zip(&content(&exact)[&path].2) {
                close("vector", &chunk.2, &exact.2, bound);
                close("kv", chunk.3.as_ref().unwrap(), exact.3.as_ref().unwrap(), bound);
            }
        }
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn what_has_not_changed_is_skipped_and_what_is_gone_is_removed() {
    let files = folder(&[
        ("in/a.txt", b"the first text"),
        ("in/b.txt", b"the second text"),
        ("in/c.jsonl", b"{\"text\":\"one\",\"id\":1}\n{\"text\":\"two\",\"id\":2}\n"),
        ("other/d.txt", b"elsewhere"),
    ]);
    let (inside, store) = (files.path().join("in"), files.path().join("store"));
    let other = files.path().join("other");
    let go = |paths: &[&Path]| {
        let d = index(&identity(), &store, paths);
        (d.added, d.replaced, d.unchanged, d.removed, d.chunks)
    };
    assert_eq!(go(&[&inside, &other]), (5, 0, 0, 0, 5));
    assert_eq!(go(&[&inside, &other]), (0, 0, 5, 0, 0));
    // A path twice is one.
    assert_eq!(go(&[&inside, &inside.join("a.txt")]), (0, 0, 4, 0, 0));
    // Touched, not changed.
    let file = fs::File::options().append(true).open(inside.join("a.txt")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(go(&[&inside]), (0, 0, 4, 0, 0));
    // Changed in content, in size, in a line; new; gone.
    fs::write(inside.join("a.txt"), "the first word").unwrap();
    fs::write(inside.join("c.jsonl"), "{\"text\":\"two\",\"id\":2}\n{\"text\":\"3\",\"id\":3}\n")
        .unwrap();
    fs::remove_file(inside.join("b.txt")).unwrap();
    assert_eq!(go(&[&inside]), (1, 1, 1, 2, 2));
    let fresh = files.path().join("fresh");
    index(&identity(), &fresh, &[&inside, &other]);
    same(&content(&store), &content(&fresh));
    // Only below what is given, and a name that begins alike is not below.
    fs::create_dir(files.path().join("inside")).unwrap();
    fs::write(files.path().join("inside/x.txt"), "x").unwrap();
    assert_eq!(go(&[&files.path().join("inside")]), (1, 0, 0, 0, 1));
    fs::remove_dir_all(&inside).unwrap();
    assert_eq!(go(&[&other]), (0, 0, 1, 0, 0));
    // A missing folder may be on a drive that is not mounted; an empty one has been read.
    assert_eq!(go(&[&inside]), (0, 0, 0, 0, 0));
    fs::create_dir(&inside).unwrap();
    assert_eq!(go(&[&inside]), (0, 0, 0, 3, 0));
    assert_eq!(Reader::open(&store).unwrap().len(), 2);
    assert!(verify(&store).unwrap().is_sound());
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    let files =
        folder(&[("a.txt", b"good"), ("c.jsonl", b"{\"text\":\"one\"}\n{\"text\":\"two\"}")]);
    let store = files.path().join("store");
    assert_eq!(index(&identity(), &store, &[files.path()]).added, 3);
    fs::write(files.path().join("a.txt"), b"caf\xe9").unwrap();
    fs::write(files.path().join("c.jsonl"), "{\"text\":\"one\"}\n{\"text\":").unwrap();
    fs::write(files.path().join("new.txt"), "after them").unwrap();
    let mut problems = Vec::new();
    let missing = files.path().join("missing");
    let mut indexer = Indexer::open(engine(), &store, &identity()).unwrap();
    let done = indexer
        .run(&[missing, files.path().into()], &mut |event| {
            if let Event::Problem { path, problem } = event {
                problems.push(format!("{path}: {problem}"));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!((done.added, done.unchanged, done.removed, done.failed), (1, 1, 0, 3));
    for (problem, part) in
        problems.iter().zip(["missing: no such file", "a.txt: not", "c.jsonl: line 2"])
    {
        assert!(problem.contains(part), "{problem}");
    }
    assert_eq!(problems.len(), 3);
    assert_eq!(content(&store).len(), 4);
}

#[test]
fn an_interrupted_run_is_taken_up_again() {
    let files = folder(&[("a.txt", long_text().as_bytes()), ("c.jsonl", &corpus())]);
    let whole = files.path().join("whole");
    let all = index(&caching(KvFormat::F32), &whole, &[files.path()]);
    let store = files.path().join("store");
    let (mut runs, mut chunks) = (0, 0_u64);
    loop {
        let mut indexer = Indexer::open(engine(), &store, &caching(KvFormat::F32)).unwrap();
        let mut passes = Vec::new();
        let result = indexer.run(
            &[files.path().join("a.txt"), files.path().join("c.jsonl")],
            &mut |event| {
                // Each run gets a pass further than the one before.
                if let Event::Progress { done, .. } = event {
                    passes.push(done.tokens);
                    passes.dedup();
                    if passes.len() > 2 + runs {
                        chunks += done.chunks;
                        return Err(gritlm::Error::Cancelled.into());
                    }
                }
                Ok(())
            },
        );
        drop(indexer);
        runs += 1;
        assert!(verify(&store).unwrap().is_sound());
        match result {
            Err(Error::Engine(gritlm::Error::Cancelled)) => {}
            other => {
                chunks += other.unwrap().chunks;
                break;
            }
        }
        assert!(runs < 100);
    }
    assert!(runs > 3, "{runs}");
    // A document under way when a run ends is begun again: nothing else is embedded twice.
    assert!(chunks < all.chunks + 20 * runs as u64, "{chunks} {all:?}");
    same(&content(&store), &content(&whole));
}

#[test]
fn a_plan_is_what_a_run_then_stores() {
    let files = folder(&[("a.txt", long_text().as_bytes()), ("c.jsonl", &corpus())]);
    let store = files.path().join("store");
    let mut indexer = Indexer::open(engine(), &store, &caching(KvFormat::Bf16)).unwrap();
    let paths = [files.path().to_path_buf()];
    let plan = indexer.plan(&paths, &mut |_, _| Ok(())).unwrap();
    let done = indexer.run(&paths, &mut |_| Ok(())).unwrap();
    assert_eq!((plan.documents, plan.chunks, plan.tokens), (41, done.chunks, done.tokens));
    let status = Reader::open(&store).unwrap().status().unwrap();
    assert_eq!(plan.kv_bytes, status.kv_bytes);
    let nothing = indexer.plan(&paths, &mut |_, _| Ok(())).unwrap();
    assert_eq!(nothing, gritlm_rag::Plan::default());
}

/// Scores of all chunks with the query by brute force, best first.
fn brute(store: &Path, query: &str, instruction: &str) -> Vec<(String, String, f32)> {
    let query = engine().embed(&[query], &Embed::with_instruction(instruction)).unwrap().remove(0);
    let mut all = Vec::new();
    for (path, (title, _, chunks)) in content(store) {
        for (text, ..) in chunks {
            let how = Embed { max_length: 64, ..Embed::default() };
            let found = engine().embed(&[prompt::document(&title, &text)], &how).unwrap().remove(0);
            all.push((path.clone(), text, dot(&query.vector, &found.vector)));
        }
    }
    all.sort_by(|a, b| b.2.total_cmp(&a.2));
    all
}

#[test]
fn search_finds_what_brute_force_finds() {
    let files = folder(&[
        ("a/long.txt", long_text().as_bytes()),
        ("b/c.jsonl", &corpus()),
        ("b/meta.jsonl", b"{\"text\":\"capture packets\",\"kind\":\"net\",\"year\":2024,\"tags\":[\"x\",\"y\"]}\n\
            {\"text\":\"play chess\",\"kind\":\"game\",\"year\":2024}\n{\"text\":\"edit maps\",\"kind\":\"net\"}\n"),
    ]);
    let store = files.path().join("store");
    for vectors in [VectorFormat::F32, VectorFormat::Bf16] {
        index(&Identity { vectors, ..identity() }, &store, &[files.path()]);
        let searcher = Searcher::open(engine(), &store).unwrap();
        for (query, instruction) in [("capture packets", ""), ("a game", "Find the package.")] {
            let find = Find { top_k: 7, instruction: instruction.into(), ..Find::default() };
            let found = searcher.search(query, &find).unwrap();
            let expected = brute(&store, query, instruction);
            assert_eq!(found.len(), 7);
            let bound = if vectors == VectorFormat::F32 { 1e-5 } else { 4e-3 };
            for (hit, (path, text, score)) in found.iter().zip(&expected) {
                assert!((hit.score - score).abs() < bound, "{} {score}", hit.score);
                if vectors == VectorFormat::F32 {
                    assert_eq!((&hit.chunk.document, &hit.chunk.text), (path, text));
                }
            }
        }
        fs::remove_dir_all(&store).unwrap();
    }
    index(&identity(), &store, &[files.path()]);
    let searcher = Searcher::open(engine(), &store).unwrap();
    let texts = |filters: &[&str], below: Option<&str>| -> Vec<String> {
        let filters = filters.iter().map(|f| f.parse().unwrap()).collect();
        let below = below.map(|b| files.path().join(b));
        let find = Find { top_k: 1000, filters, below, ..Find::default() };
        let mut found: Vec<_> =
            searcher.search("chess", &find).unwrap().into_iter().map(|h| h.chunk.text).collect();
        found.sort();
        found
    };
    assert_eq!(texts(&["kind=net"], None), ["capture packets", "edit maps"]);
    assert_eq!(texts(&["kind=net", "year=2024"], None), ["capture packets"]);
    assert_eq!(texts(&["tags=y"], Some("b")), ["capture packets"]);
    assert_eq!(texts(&["tags=y"], Some("a")), [""; 0]);
    assert_eq!(texts(&[], Some("a/long.txt")).len(), texts(&[], Some("a")).len());
    assert_eq!(texts(&[], Some("b/meta.jsonl")), ["capture packets", "edit maps", "play chess"]);
    assert_eq!(texts(&[], None).len(), searcher.reader().len());
    assert!("no".parse::<gritlm_rag::Filter>().is_err());
}

/// Caches that waited on the disk for their document's other chunks are those that waited in memory.
#[test]
fn a_long_documents_caches_wait_on_the_disk() {
    let long = "The program shows packets that pass by. ".repeat(120);
    let files = folder(&[("long.txt", long.as_bytes()), ("short.txt", b"chess for the desktop")]);
    let paths = ["long.txt", "short.txt"].map(|name| files.path().join(name));
    for kv in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8] {
        let [all, some, none] = [usize::MAX, 500_000, 0].map(|memory| {
            let store = files.path().join(format!("{kv}-{memory}"));
            let mut indexer = Indexer::open(engine(), &store, &caching(kv)).unwrap();
            indexer.set_memory(memory);
            indexer.run(&paths, &mut |_| Ok(())).unwrap();
            drop(indexer);
            assert!(verify(&store).unwrap().is_sound());
            assert!(!store.join("kv-waiting.tmp").exists());
            content(&store)
        });
        assert!(all.values().any(|(_, _, chunks)| chunks.len() > 8));
        assert!(all == some && all == none, "{kv}");
    }
}

/// The best four times as many, in the order that the model gives them.
#[test]
fn search_reranks() {
    let model = with_a_yes();
    let model = model.path().to_str().unwrap();
    let engine =
        Engine::open(model, &Options { device: Device::Cpu, ..Options::default() }).unwrap();
    let files = folder(&[("c.jsonl", &corpus())]);
    let store = files.path().join("store");
    let paths = [files.path().join("c.jsonl")];
    let identity = Identity { chunk: 128, ..Identity::of(&engine) };
    Indexer::open(&engine, &store, &identity).unwrap().run(&paths, &mut |_| Ok(())).unwrap();
    let searcher = Searcher::open(&engine, &store).unwrap();
    let find = |top_k, rerank| Find { top_k, rerank, ..Find::default() };
    let found = searcher.search("capture packets", &find(3, true)).unwrap();
    let twelve = searcher.search("capture packets", &find(12, false)).unwrap();
    let passages: Vec<&str> = twelve.iter().map(|h| h.chunk.text.as_str()).collect();
    let ranked = engine.rerank("capture packets", &passages).unwrap();
    for (hit, r) in found.iter().zip(&ranked) {
        let expected = &twelve[r.index];
        assert_eq!((hit.chunk.id, hit.score), (expected.chunk.id, expected.score));
        assert_eq!(hit.probability, Some(r.probability));
    }
    assert_eq!(found.len(), 3);
    // The demo model has no word for yes.
    let store = files.path().join("demo");
    index(&self::identity(), &store, &[&paths[0]]);
    let refused = Searcher::open(self::engine(), &store).unwrap().search("x", &find(3, true));
    assert!(refused.unwrap_err().to_string().contains("\"yes\""));
    // A store of one model is no store of another.
    let other = Searcher::open(&engine, &store).err().unwrap().to_string();
    assert!(other.contains("demo"), "{other}");
}

#[test]
fn the_program_indexes_searches_and_looks_after_a_store() {
    let pdf = fs::read(data("rag/packets.pdf")).unwrap();
    let files = folder(&[
        ("in/a.pdf", &pdf),
        ("in/b.html", b"<title>Games</title><p>chess for the desktop"),
        ("in/c.jsonl", &corpus()),
        ("in/photo.png", b"\x89PNG\0"),
    ]);
    let (inside, store) = (files.path().join("in"), files.path().join("store"));
    let (inside, store) = (inside.to_str().unwrap(), store.to_str().unwrap());
    let with = |args: &[&str]| run(&[args, &["--store", store, "--format", "json"]].concat(), "");
    let one = |args: &[&str]| objects(&with(args).ok()).remove(0);

    let args = ["index", inside, "--cache", "doc", "--chunk", "64", "--kv-format", "f32"];
    let first = with(&args);
    assert!(first.stderr.contains("note: to embed: 42 documents"), "{}", first.stderr);
    let done = objects(&first.ok()).remove(0);
    assert_eq!(
        (&done["added"], &done["binary"], &done["failed"]),
        (&json!(42), &json!(1), &json!(0))
    );
    assert!(done["seconds"].as_f64().unwrap() > 0.0);
    // The store says how it is made; what was given then need not be given again.
    let again = one(&["index", inside]);
    assert_eq!((&again["unchanged"], &again["chunks"]), (&json!(42), &json!(0)));
    with(&["index", inside, "--chunk", "128"]).fails(1, &["chunk 64", "128"]);
    with(&["index", inside, "--attn", "cccc"]).fails(1, &["attn", "bbcc", "cccc"]);

    let status = one(&["index", "--status"]);
    assert_eq!((&status["documents"], &status["identity"]["cache"]), (&json!(42), &json!("doc")));
    assert_eq!(status["chunks"], status["cached"]);
    let report = one(&["index", "--verify"]);
    assert_eq!((&report["sound"], &report["documents"]), (&json!(true), &json!(42)));
    fs::remove_file(Path::new(inside).join("c.jsonl")).unwrap();
    assert_eq!(one(&["index", inside])["removed"], 40);
    let freed = one(&["index", "--compact"]);
    assert!(freed["after"].as_u64() < freed["before"].as_u64(), "{freed}");

    let found = objects(&with(&["search", "capture packets", "--top-k", "2"]).ok());
    let library = Searcher::open(engine(), Path::new(store)).unwrap();
    let instruction = "Given a query, find the text that answers it.".into();
    let find = Find { top_k: 2, instruction, ..Find::default() };
    let expected = library.search("capture packets", &find).unwrap();
    assert_eq!(found.len(), 2);
    for (line, hit) in found.iter().zip(&expected) {
        assert_eq!(
            (&line["path"], &line["text"]),
            (&json!(hit.chunk.document), &json!(hit.chunk.text))
        );
        assert!((line["score"].as_f64().unwrap() - f64::from(hit.score)).abs() < 1e-5);
    }
    let text = run(&["search", "games", "--store", store, "--below", inside], "").ok();
    assert!(text.contains("b.html (0): chess for the desktop"), "{text}");
    let text = run(&["index", "--store", store, "--status"], "").ok();
    assert!(text.contains("documents           2"), "{text}");

    // Broken files are named, the rest is indexed, and the exit code says so.
    fs::write(Path::new(inside).join("bad.pdf"), "no").unwrap();
    fs::write(Path::new(inside).join("new.txt"), "maps").unwrap();
    let ran = run(&["index", inside, "--store", store], "");
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("1 added, 0 replaced, 2 unchanged"), "{}", ran.stdout);
    let problems = ran.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("bad.pdf: not a PDF"), "{problems:?}");
    assert!(problems[1].starts_with("error: "), "{problems:?}");
    // A budget that the caches of one run do not fit into is refused, with what they need.
    fs::remove_file(Path::new(inside).join("bad.pdf")).unwrap();
    fs::write(Path::new(inside).join("long.txt"), long_text()).unwrap();
    with(&["index", inside, "--kv-budget", "10kB"])
        .fails(2, &["--kv-budget", "at least", "9.8 KiB"]);
    assert_eq!(one(&["index", inside, "--kv-budget", "1GB"])["added"], 1);
    assert_eq!(one(&["index", "--status"])["kv_budget"], 1_000_000_000);
    with(&["index", inside, "--kv-budget", "much"]).fails(2, &["--kv-budget", "20GB"]);
    with(&["index"]).fails(2, &["PATH"]);
    with(&["search", "x", "--filter", "y"]).fails(2, &["--filter", "key=value"]);
    let nowhere = files.path().join("nowhere");
    run(&["search", "x", "--store", nowhere.to_str().unwrap()], "").fails(1, &["nowhere"]);
}
