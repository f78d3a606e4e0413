//! Documents that are made to end or to hang who reads them: each is named with what it hit, and all
//! others are stored.

use crate::cli::run;
use crate::pdf::{BOTH, File, page, stream, two_pages};
use flate2::{Compression, write::ZlibEncoder};
use gritlm::{Device, Engine, Options};
use gritlm_rag::{Event, Identity, Indexer, ParseLimits, Parser};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;
use weezl::{BitOrder, encode::Encoder};

const FORM: &str = "/Type /XObject /Subtype /Form /BBox [0 0 9 9]";

/// Two pages with other objects; those that have a number of [`two_pages`] are in its place.
fn with(objects: &[(u32, String)]) -> Vec<u8> {
    let mut all = two_pages();
    for (number, object) in objects {
        all.retain(|(known, _)| known != number);
        all.push((*number, object.clone()));
    }
    let mut file = File::new();
    file.add(&all);
    file.table(" \n", 0, 0, "");
    file.bytes
}

/// A stream whose content is no text.
fn packed(dictionary: &str, content: &[u8]) -> Vec<u8> {
    let head = format!("<< {dictionary} /Length {} >>\nstream\n", content.len());
    [head.as_bytes(), content, b"\nendstream"].concat()
}

/// Two pages, and an object that is not text.
fn with_bytes(number: u32, object: &[u8], replaced: &[(u32, String)]) -> Vec<u8> {
    // Its place is taken by a comment of the same length.
    let mark = format!("%{}", "x".repeat(object.len() - 1));
    let whole = with(&[replaced, &[(number, mark.clone())]].concat());
    let at = memchr::memmem::find(&whole, mark.as_bytes()).unwrap();
    [&whole[..at], object, &whole[at + mark.len()..]].concat()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A page that draws a form.
fn drawing(contents: u32, forms: &str) -> String {
    page(contents).replace("/Resources <<", &format!("/Resources << /XObject << {forms} >>"))
}

/// A font with a map of its codes.
fn mapped(map: &str) -> Vec<u8> {
    let font = "<< /Type /Font /Subtype /Type0 /BaseFont /A /Encoding /Identity-H \
                /DescendantFonts [9 0 R] /ToUnicode 8 0 R >>";
    let below = "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /A /CIDSystemInfo << >> >>";
    with(&[(5, font.into()), (8, stream("", map)), (9, below.into())])
}

/// Files that hit something, and what. Each is small, and took a parser gigabytes, minutes or its
/// stack.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    // 100 MB, which three layers make to some hundred bytes.
    let zeros = vec![0; 100 << 20];
    let layers = deflate(&deflate(&deflate(&zeros)));
    let flate = "/Filter [/FlateDecode /FlateDecode /FlateDecode]";
    let lzw = Encoder::with_tiff_size_switch(BitOrder::Msb, 8).encode(&zeros).unwrap();
    let doubled = |level: u32| {
        let resources = format!("/Resources << /XObject << /F {} 0 R >> >>", level + 1);
        (level, stream(&format!("{FORM} {resources}"), "/F Do /F Do"))
    };
    let mut doublings: Vec<(u32, String)> = (10..40).map(doubled).collect();
    doublings.push((40, stream(FORM, "")));
    let mut deep = doublings.clone();
    deep.truncate(29);
    deep.extend((39..120).map(|level| {
        let resources = format!("/Resources << /XObject << /F {} 0 R >> >>", level + 1);
        (level, stream(&format!("{FORM} {resources}"), "/F Do"))
    }));
    deep.iter_mut().for_each(|(_, form)| *form = form.replace("/F Do /F Do", "/F Do"));
    let first = |mut objects: Vec<(u32, String)>| {
        objects.extend([(3, drawing(6, "/F 10 0 R")), (6, stream("", "/F Do"))]);
        with(&objects)
    };
    let itself = [(3, drawing(6, "/F 8 0 R")), (6, stream("", "/F Do"))];
    let itself = [&itself[..], &[(8, stream(FORM, "/F Do"))]].concat();
    let round = [
        (3, drawing(6, "/F 8 0 R /G 9 0 R")),
        (6, stream("", "/F Do")),
        (8, stream(FORM, "/G Do")),
        (9, stream(FORM, "/F Do")),
    ];
    let often = format!("[{}]", "8 0 R ".repeat(20_000));
    let often = page(6).replace("/Contents 6 0 R", &format!("/Contents {often}"));
    let widths = format!("/W [{}]", "0 65535 500 ".repeat(5_000));
    let below = format!("<< /Type /Font /Subtype /CIDFontType2 /BaseFont /A {widths} >>");
    let font = "<< /Type /Font /Subtype /Type0 /BaseFont /A /Encoding /Identity-H \
                /DescendantFonts [9 0 R] >>";
    let map = |ranges: &str| mapped(&format!("begincmap {ranges} endcmap"));
    vec![
        ("a form in itself", with(&itself), "form 8 draws itself"),
        ("two forms in each other", with(&round), "form 8 draws itself"),
        ("30 levels of doubled forms", first(doublings), "draw more than 512 MiB"),
        ("110 levels of forms", first(deep), "more than 64 deep in forms"),
        (
            "a page's content many times",
            with(&[(3, often), (8, stream("", &" ".repeat(30_000)))]),
            "draw more than 512 MiB",
        ),
        (
            "layers of Flate",
            with_bytes(6, &packed(flate, &layers), &[]),
            "a stream decodes to more than 64 MiB",
        ),
        (
            "layers of Flate, read while it loads",
            with_bytes(8, &packed(&format!("/Type /ObjStm /N 1 /First 4 {flate}"), &layers), &[]),
            "a stream decodes to more than 64 MiB",
        ),
        (
            "LZW",
            with_bytes(6, &packed("/Filter /LZWDecode", &lzw), &[]),
            "a stream decodes to more than 64 MiB",
        ),
        ("widths", with(&[(5, font.into()), (9, below)]), "list more than 1048576 widths"),
        (
            "a range of codes",
            map("1 beginbfrange <00000000> <ffffffff> <0041> endbfrange"),
            "name more than 4194304 codes",
        ),
        (
            "a range of codes, in letters",
            map("1 beginbfrange (\x01\x01\x01\x01) (zzzz) <0041> endbfrange"),
            "name more than 4194304 codes",
        ),
        (
            "a range of codes, in escapes",
            map(r"1 beginbfrange (\000\000\000\000) <ffffffff> <0041> endbfrange"),
            "name more than 4194304 codes",
        ),
        ("a nested map", map(&"[".repeat(100_000)), "nested more than 32 deep"),
        (
            "a page below itself",
            with(&[(3, page(6).replace("/Parent 2 0 R /MediaBox [0 0 612 792]", "/Parent 3 0 R"))]),
            "below itself",
        ),
    ]
}

/// Documents that are as they should be.
const GOOD: [(&str, &[u8]); 2] =
    [("a.txt", b"chess for the desktop"), ("z.html", b"<title>Z</title>capture packets")];

/// A folder with good documents, and a store beside it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("notes")).unwrap();
    for (name, bytes) in GOOD {
        fs::write(folder.path().join("notes").join(name), bytes).unwrap();
    }
    folder
}

/// Indexes with the program: exit code, stderr, and what it says that it did.
fn index(folder: &Path, paths: &[&str], flags: &[&str]) -> (i32, String, serde_json::Value) {
    let store = folder.join("store");
    let paths: Vec<String> =
        paths.iter().map(|path| folder.join(path).to_str().unwrap().into()).collect();
    let format: &[&str] = if flags.contains(&"--format") { &[] } else { &["--format", "json"] };
    let mut args = [&["index", "--device", "cpu"], format, &["--store"]].concat();
    args.push(store.to_str().unwrap());
    args.extend(paths.iter().map(String::as_str));
    args.extend(flags);
    let ran = run(&args, "");
    let done = ran.stdout.lines().find_map(|line| serde_json::from_str(line).ok());
    let done = done.unwrap_or_default();
    (ran.code, ran.stderr, done)
}

/// The bad files, and how each is named; the good ones, before and behind, are stored.
#[track_caller]
fn hits(files: &[(&str, Vec<u8>, &str)], kind: &str, flags: &[&str]) {
    let folder = folder();
    for (i, (_, bytes, _)) in files.iter().enumerate() {
        fs::write(folder.path().join(format!("notes/b{i:02}.{kind}")), bytes).unwrap();
    }
    let (code, stderr, done) = index(folder.path(), &["notes"], flags);
    for (i, (name, _, problem)) in files.iter().enumerate() {
        let line = stderr.lines().find(|line| line.contains(&format!("b{i:02}.{kind}")));
        let line = line.unwrap_or_else(|| panic!("{name} is not named:\n{stderr}"));
        assert!(line.contains(problem), "{name}: expected {problem:?} in: {line}");
    }
    assert_eq!((code, &done["failed"]), (1, &files.len().into()), "{stderr}");
    assert_eq!(done["added"], GOOD.len(), "{stderr}");
}

#[test]
fn pdfs_that_hit_a_bound_are_named_and_the_others_stored() {
    hits(&hostile(), "pdf", &[]);
}

#[test]
fn the_same_is_counted_where_no_other_process_reads() {
    for (name, bytes, problem) in hostile() {
        let found = crate::pdf::text(&bytes).expect_err(name);
        assert!(found.contains(problem), "{name}: expected {problem:?} in: {found}");
    }
}

#[test]
fn what_is_large_for_a_reason_is_read() {
    // Each is of the kind of a hostile one, and below its bound.
    let line = "BT /F1 12 Tf 72 700 Td (The first page.) Tj ET";
    let content = deflate(format!("{line}\n{}", " ".repeat(20 << 20)).as_bytes());
    let nested: Vec<(u32, String)> = (10..40)
        .map(|level| {
            let forms = format!("/Resources << /XObject << /F {} 0 R >> >>", level + 1);
            (level, stream(&format!("{FORM} {forms}"), "/F Do"))
        })
        .collect();
    let font = "/Resources << /Font << /F1 5 0 R >> >>";
    let drawn = [
        &nested[..],
        &[(40, stream(&format!("{FORM} {font}"), line))],
        &[(3, drawing(6, "/F 10 0 R")), (6, stream("", "/F Do"))],
    ];
    let image = "/Type /XObject /Subtype /Image /Width 9 /Height 9 /Filter /FlateDecode";
    let image = packed(image, &deflate(&vec![0; 70 << 20]));
    let with_image = with_bytes(8, &image, &[(3, drawing(6, "/I 8 0 R"))]);
    for (name, bytes) in [
        ("20 MB of content", with_bytes(6, &packed("/Filter /FlateDecode", &content), &[])),
        ("30 levels of forms", with(&drawn.concat())),
        ("an image of 70 MB", with_image),
    ] {
        assert_eq!(crate::pdf::text(&bytes).as_deref(), Ok(BOTH), "{name}");
    }
}

#[test]
fn a_parser_has_limits_of_time_memory_and_text() {
    // What nothing counts: operators take their parser 40 times their bytes.
    let operators = deflate("q ".repeat(20 << 20).as_bytes());
    let operators = with_bytes(6, &packed("/Filter /FlateDecode", &operators), &[]);
    hits(
        &[("memory", operators, "needed more than 300 MiB of memory")],
        "pdf",
        &["--parse-memory", "300MiB"],
    );
    // 400 MB are drawn, some hundred thousand operators at a time.
    let form = stream(FORM, &"q Q ".repeat(1 << 18));
    let slow = [(3, drawing(6, "/F 8 0 R")), (6, stream("", &"/F Do ".repeat(400))), (8, form)];
    hits(
        &[("time", with(&slow), "took more than 1 s of CPU time")],
        "pdf",
        &["--parse-seconds", "1"],
    );
    let long = "<p>chess</p>".repeat(100);
    hits(
        &[("text", long.into(), "has more than 500 bytes of text")],
        "html",
        &["--parse-text", "500"],
    );
    let lines = "(chess) Tj ".repeat(100);
    let long = with(&[(6, stream("", &format!("BT /F1 12 Tf 72 700 Td {lines} ET")))]);
    hits(&[("text", long, "has more than 300 bytes of text")], "pdf", &["--parse-text", "300"]);
}

#[test]
fn html_takes_time_in_proportion() {
    // More than ten seconds of CPU time would be too many.
    let attributes: String = (0..1_000_000).map(|i| format!(" a{i}")).collect();
    let pages = [
        format!("<p{attributes}>chess</p>"),
        format!("<p{}>chess</p>", " a=1".repeat(1_000_000)),
        format!("{}chess", "<b>".repeat(1_000_000)),
        format!("<{}>chess", "x".repeat(30_000_000)),
        format!("chess<!--{}", "<!--".repeat(1_000_000)),
        format!("chess<script>{}", "</scrip".repeat(1_000_000)),
        format!("{}chess", "&nosuch".repeat(1_000_000)),
    ];
    let folder = folder();
    for (i, page) in pages.iter().enumerate() {
        fs::write(folder.path().join(format!("notes/b{i}.html")), page).unwrap();
    }
    // They are read and cut, and not embedded: the last is a megabyte of text.
    let identity = Identity::of(engine());
    let mut indexer = Indexer::open(engine(), &folder.path().join("store"), &identity).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.arg("parse-documents");
    indexer.set_parser(Parser::in_child(command, ParseLimits::default()));
    let plan = indexer.plan(&[folder.path().join("notes")], &mut |_, _| Ok(())).unwrap();
    assert_eq!(plan.documents, (pages.len() + GOOD.len()) as u64);
}

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let options = Options::default().device(Device::Cpu);
        Engine::open("demo", &options).unwrap()
    })
}

/// Indexes a folder with what a shell's script says that it parsed: problems, or the error.
#[cfg(unix)]
fn parsed_by(script: &str) -> Result<Vec<String>, String> {
    let folder = folder();
    fs::write(folder.path().join("notes/b.html"), "chess").unwrap();
    let identity = Identity::of(engine());
    let mut indexer = Indexer::open(engine(), &folder.path().join("store"), &identity).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    indexer.set_parser(Parser::in_child(command, ParseLimits::default()));
    let mut problems = Vec::new();
    let done = indexer.run(&[folder.path().join("notes")], &mut |event| {
        if let Event::Problem { problem, .. } = event {
            problems.push(problem.to_string());
        }
        Ok(())
    });
    let done = done.map_err(|e| e.to_string())?;
    assert_eq!((done.added, done.failed as usize), (1, problems.len()));
    Ok(problems)
}

#[cfg(unix)]
#[test]
fn a_parser_that_ends_or_lies_costs_its_document_only() {
    for (does, problem) in [
        ("kill -9 $$", "its parser was ended by signal 9"),
        ("exit 3", "its parser ended with exit code 3"),
        // No such kind of answer; and a text that is longer than one may be.
        ("printf 'xxxxxxxxxxxxxxxx' >&0; sleep 60", "its parser answered nonsense, and was ended"),
        (
            "printf '\\001\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\020' >&0; sleep 60",
            "its parser answered nonsense, and was ended",
        ),
    ] {
        let script = format!("printf 'gritlm parser 1\\n' >&0; {does}");
        // Of the two pages of HTML, each.
        assert_eq!(
            parsed_by(&script).as_deref(),
            Ok(&[problem; 2].map(String::from)[..]),
            "{does}"
        );
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_parser_is_named() {
    for (script, problem) in [
        ("exit 0", "the parser's process, sh: it does not answer"),
        ("printf 'HTTP/1.1 400 Bad Request' >&0; sleep 60", "its protocol is of another version"),
        ("exec nosuchprogram", "it does not answer"),
    ] {
        let error = parsed_by(script).expect_err(script);
        assert!(error.contains(problem), "{script}: {error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn only_files_are_read_and_to_a_limit() {
    let folder = folder();
    // A file without a size, and without an end that anybody reaches.
    let (code, stderr, done) = index(folder.path(), &["notes", "/proc/self/pagemap"], &[]);
    assert_eq!((code, &done["added"]), (1, &2.into()), "{stderr}");
    assert!(stderr.contains("/pagemap: "), "{stderr}");
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, kind) in [("/dev/zero", "a device"), ("pipe", "a pipe")] {
        let (code, stderr, done) = index(folder.path(), &[path, "notes"], &[]);
        assert_eq!((code, &done["unchanged"]), (1, &2.into()), "{stderr}");
        assert!(stderr.contains(&format!("found {kind}")), "{stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_line_without_an_end_ends_at_a_limit() {
    for args in [
        &["embed", "--input", "/dev/zero"][..],
        &["rerank", "chess", "--input", "/dev/zero"],
        &["search", "chess", "/dev/zero"],
    ] {
        let args = [args, &["--device", "cpu"]].concat();
        run(&args, "").fails(1, &["/dev/zero: ", "a line has more than 256 MiB"]);
    }
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere_else_unless_asked() {
    use std::os::unix::fs::symlink;
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("secret.txt"), "a key").unwrap();
    symlink(path("secret.txt"), path("notes/absolute.txt")).unwrap();
    symlink("../secret.txt", path("notes/relative.txt")).unwrap();
    symlink("relative.txt", path("notes/twice.txt")).unwrap();
    symlink("a.txt", path("notes/inside.txt")).unwrap();
    let (code, stderr, done) = index(folder.path(), &["notes"], &[]);
    assert_eq!((code, &done["added"], &done["outside"]), (0, &3.into(), &3.into()), "{stderr}");
    let (_, stderr, _) = index(folder.path(), &["notes"], &["--format", "text"]);
    assert!(stderr.contains("note: 3 links lead outside"), "{stderr}");
    // What is named is inside, whatever leads there.
    let (code, stderr, done) = index(folder.path(), &["notes", "secret.txt"], &[]);
    assert_eq!((code, &done["added"], &done["outside"]), (0, &4.into(), &0.into()), "{stderr}");
    let (_, stderr, done) = index(folder.path(), &["notes"], &[]);
    assert_eq!((&done["removed"], &done["outside"]), (&3.into(), &3.into()), "{stderr}");
    let (_, stderr, done) = index(folder.path(), &["notes"], &["--follow"]);
    assert_eq!((&done["added"], &done["outside"]), (&3.into(), &0.into()), "{stderr}");
}

#[test]
fn names_are_bounded() {
    let folder = folder();
    let long = "x".repeat(5_000);
    let lines = [
        format!(r#"{{"text": "chess", "title": "{long}"}}"#),
        format!(r#"{{"text": "chess", "id": "{long}"}}"#),
        r#"{"text": "chess", "id": "short"}"#.into(),
    ];
    fs::write(folder.path().join("notes/b.jsonl"), lines.join("\n")).unwrap();
    fs::write(folder.path().join("notes/c.html"), format!("<title>{long}</title>chess")).unwrap();
    fs::write(folder.path().join("notes/d.md"), format!("# {long}\n\nchess")).unwrap();
    let (code, stderr, done) = index(folder.path(), &["notes"], &[]);
    assert_eq!((code, &done["added"], &done["failed"]), (1, &5.into(), &2.into()), "{stderr}");
    for problem in ["line 1: title: expected at most 4096", "line 2: id: expected at most 4096"] {
        assert!(stderr.contains(problem), "{stderr}");
    }
}
