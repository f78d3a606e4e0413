//! PDFs with small faults, made here: what other readers repair is read, and what is lost is named.

use crate::support::data;
use gritlm_rag::read;
use std::fs;

/// The text of a file, or what is said to be wrong with it.
pub(crate) fn text(bytes: &[u8]) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.pdf"), bytes).unwrap();
    let (mut sources, mut problems) = read(folder.path());
    match (sources.pop(), problems.pop()) {
        (Some(source), None) => Ok(source.text),
        (None, Some(problem)) => Err(problem),
        other => panic!("expected one of both, found {other:?}"),
    }
}

#[track_caller]
fn reads(what: &str, bytes: &[u8], expected: &str) {
    assert_eq!(text(bytes).as_deref(), Ok(expected), "{what}");
}

#[track_caller]
fn fails(what: &str, bytes: &[u8], parts: &[&str]) {
    let problem = text(bytes).expect_err(what);
    assert!(!problem.contains('\n'), "{problem}");
    for part in ["a.pdf"].iter().chain(parts) {
        assert!(problem.contains(part), "{what}: expected {part:?} in: {problem}");
    }
}

const CATALOG: &str = "<< /Type /Catalog /Pages 2 0 R >>";
const PAGES: &str = "<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>";
const FONT: &str = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica \
                    /Encoding /WinAnsiEncoding >>";

/// A page whose text is the stream of that number.
pub(crate) fn page(contents: u32) -> String {
    format!(
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {contents} 0 R \
         /Resources << /Font << /F1 5 0 R >> >> >>"
    )
}

pub(crate) fn stream(dictionary: &str, content: &str) -> String {
    let length = content.len();
    format!("<< {dictionary} /Length {length} >>\nstream\n{content}\nendstream")
}

/// What draws a line of text.
fn draws(line: &str) -> String {
    stream("", &format!("BT /F1 12 Tf 72 700 Td ({line}) Tj ET"))
}

/// A document of two pages, object by object, by number.
pub(crate) fn two_pages() -> Vec<(u32, String)> {
    vec![
        (1, CATALOG.into()),
        (2, PAGES.into()),
        (3, page(6)),
        (4, page(7)),
        (5, FONT.into()),
        (6, draws("The first page.")),
        (7, draws("The second page.")),
    ]
}

pub(crate) const BOTH: &str = "The first page.\n\nThe second page.";

/// A file in the making.
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    /// Number and offset of each object.
    places: Vec<(u32, usize)>,
}

impl File {
    pub(crate) fn new() -> Self {
        Self { bytes: b"%PDF-1.5\n%\xE2\xE3\xCF\xD3\n".to_vec(), places: Vec::new() }
    }

    pub(crate) fn add(&mut self, objects: &[(u32, String)]) {
        for (number, object) in objects {
            self.places.push((*number, self.bytes.len()));
            self.bytes.extend(format!("{number} 0 obj\n{object}\nendobj\n").as_bytes());
        }
    }

    /// A table of what was added since the last, whose lines end so; with offsets and `startxref`
    /// that are wrong by so much. The whole file, and where the table is.
    pub(crate) fn table(&mut self, end: &str, off: i64, start_off: i64, trailer: &str) -> usize {
        let at = self.bytes.len();
        let mut table = format!("xref\n0 1\n0000000000 65535 f{end}");
        let mut size = 0;
        for (number, offset) in std::mem::take(&mut self.places) {
            let offset = offset as i64 + off;
            table += &format!("{number} 1\n{offset:010} 00000 n{end}");
            size = size.max(number + 1);
        }
        table += &format!("trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n");
        table += &format!("startxref\n{}\n%%EOF\n", at as i64 + start_off);
        self.bytes.extend(table.as_bytes());
        at
    }

    /// As [`File::table`], as a stream of that number; objects of `inside` are in the object stream
    /// `container`.
    fn table_stream(
        &mut self,
        number: u32,
        (container, inside): (u8, &[u32]),
        start_off: i64,
        trailer: &str,
    ) -> usize {
        let at = self.bytes.len();
        self.places.push((number, at));
        let inside = (0..).zip(inside).map(|(i, &inner)| (inner, [2, 0, container, i]));
        let outside = self.places.drain(..).map(|(number, offset)| {
            let [high, low] = (offset as u16).to_be_bytes();
            (number, [1, high, low, 0])
        });
        let entries: Vec<(u32, [u8; 4])> = inside.chain(outside).collect();
        let index: String = entries.iter().map(|(number, _)| format!("{number} 1 ")).collect();
        let content: Vec<u8> = entries.iter().flat_map(|(_, entry)| *entry).collect();
        let head = format!(
            "{number} 0 obj\n<< /Type /XRef /W [1 2 1] /Index [{index}] /Size {} /Root 1 0 R \
             {trailer} /Length {} >>\nstream\n",
            number + 1,
            content.len()
        );
        let end = at as i64 + start_off;
        let end = format!("\nendstream\nendobj\nstartxref\n{end}\n%%EOF\n");
        self.bytes.extend([head.as_bytes(), &content, end.as_bytes()].concat());
        at
    }
}

/// An object stream of these.
fn object_stream(objects: &[(u32, String)]) -> String {
    let (mut index, mut content) = (String::new(), String::new());
    for (number, object) in objects {
        index += &format!("{number} {} ", content.len());
        content += &format!("{object}\n");
    }
    let dictionary = format!("/Type /ObjStm /N {} /First {}", objects.len(), index.len());
    stream(&dictionary, &(index + &content))
}

/// Two pages with a table of its own kind of fault.
fn with_table(end: &str, off: i64, start_off: i64) -> Vec<u8> {
    let mut file = File::new();
    file.add(&two_pages());
    file.table(end, off, start_off, "");
    file.bytes
}

/// Two pages, all but their texts in an object stream; and where the table is.
fn streams(start_off: i64) -> (File, usize) {
    let (inside, outside) = two_pages().into_iter().partition::<Vec<_>, _>(|(n, _)| *n < 6);
    let mut file = File::new();
    file.add(&outside);
    file.add(&[(8, object_stream(&inside))]);
    let at = file.table_stream(9, (8, &[1, 2, 3, 4, 5]), start_off, "");
    (file, at)
}

fn with_streams(start_off: i64) -> Vec<u8> {
    streams(start_off).0.bytes
}

fn junk(bytes: usize) -> Vec<u8> {
    b"<!-- served by a proxy -->\r\n".iter().copied().cycle().take(bytes).collect()
}

#[test]
fn whole_files_are_read() {
    reads("a table", &with_table(" \n", 0, 0), BOTH);
    reads("a table, CR LF", &with_table("\r\n", 0, 0), BOTH);
    reads("streams", &with_streams(0), BOTH);
}

#[test]
fn what_lies_behind_the_end_does_not_matter() {
    for (kind, whole) in [("table", with_table(" \n", 0, 0)), ("streams", with_streams(0))] {
        for bytes in [1, 600, 1100, 70_000] {
            let file = [whole.clone(), junk(bytes)].concat();
            reads(&format!("{kind}, {bytes} bytes"), &file, BOTH);
            let file = [whole.clone(), vec![0; bytes]].concat();
            reads(&format!("{kind}, {bytes} zeros"), &file, BOTH);
        }
    }
}

#[test]
fn what_lies_before_the_head_does_not_matter() {
    for (kind, whole) in [("table", with_table(" \n", 0, 0)), ("streams", with_streams(0))] {
        for bytes in [1, 27, 2000] {
            let file = [junk(bytes), whole.clone()].concat();
            reads(&format!("{kind}, {bytes} bytes"), &file, BOTH);
        }
    }
    // Offsets that count the junk, as some writers have them.
    for bytes in [1, 27, 2000] {
        let file = [junk(bytes), with_table(" \n", bytes as i64, bytes as i64)].concat();
        reads(&format!("{bytes} bytes, counted"), &file, BOTH);
    }
}

#[test]
fn a_table_is_found_where_startxref_is_wrong() {
    for off in [-200, -7, -1, 1, 3, 40, 1_000_000] {
        reads(&format!("table, {off}"), &with_table(" \n", 0, off), BOTH);
        reads(&format!("streams, {off}"), &with_streams(off), BOTH);
    }
    let whole = with_table(" \n", 0, 0);
    let text = String::from_utf8_lossy(&whole).into_owned();
    let at = text.find("startxref").unwrap();
    let cut = whole.len() - (text.len() - at);
    reads("no startxref", &whole[..cut], BOTH);
    reads("no %%EOF", &whole[..whole.len() - 6], BOTH);
}

#[test]
fn a_table_with_wrong_lines_is_made_anew() {
    for end in ["\n", "\r", "", "  \n"] {
        reads(&format!("lines that end with {end:?}"), &with_table(end, 0, 0), BOTH);
    }
    for off in [-11, -1, 2, 900] {
        reads(&format!("offsets off by {off}"), &with_table(" \n", off, 0), BOTH);
    }
    // What a conversion of line ends does to a text: all is elsewhere, and streams are longer.
    let dos = String::from_utf8_lossy(&with_table(" \n", 0, 0)).replace('\n', "\r\n");
    reads("LF to CR LF", dos.as_bytes(), BOTH);
    let mut file = File::new();
    file.add(&two_pages());
    reads("no table at all", &file.bytes, BOTH);
}

#[test]
fn several_faults_at_once() {
    for (before, end, off, start_off, after) in
        [(3, "\n", 0, 5, 700), (0, "\n", -4, -3, 1500), (900, " \n", 1, 0, 2)]
    {
        let file = [junk(before), with_table(end, off, start_off), junk(after)].concat();
        reads(&format!("{before} {end:?} {off} {start_off} {after}"), &file, BOTH);
    }
    let file = [junk(30), with_streams(4), junk(800)].concat();
    reads("streams", &file, BOTH);
}

#[test]
fn a_stream_ends_at_endstream_where_its_length_is_wrong() {
    let length = |text: &str, wrong: &str| {
        let mut objects = two_pages();
        for (_, object) in objects.iter_mut().filter(|(n, _)| *n == 7) {
            let (head, rest) = object.split_once("/Length ").unwrap();
            let (_, rest) = rest.split_once(" >>").unwrap();
            *object = format!("{head}{wrong} >>{rest}");
        }
        let mut file = File::new();
        file.add(&objects);
        file.table(" \n", 0, 0, "");
        reads(text, &file.bytes, BOTH);
    };
    length("short", "/Length 7");
    length("long", "/Length 400");
    length("beyond the file", "/Length 123456789");
    length("none", "");
    length("of nothing", "/Length 99 0 R");
}

/// What was appended last counts, also where it is the table of before that could be read.
#[test]
fn the_last_of_several_versions_counts() {
    let newer = "The first page.\n\nThe third page.";
    for start_off in [0, 6, -1] {
        let mut file = File::new();
        file.add(&two_pages());
        let first = file.table(" \n", 0, 0, "");
        file.add(&[(7, draws("The third page."))]);
        file.table(" \n", 0, start_off, &format!("/Prev {first}"));
        reads(&format!("tables, {start_off}"), &file.bytes, newer);

        let (mut file, first) = streams(0);
        file.add(&[(10, draws("The third page.")), (11, object_stream(&[(4, page(10))]))]);
        file.table_stream(12, (11, &[4]), start_off, &format!("/Prev {first}"));
        reads(&format!("streams, {start_off}"), &file.bytes, newer);
    }
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn what_is_lost_is_named() {
    let whole = with_table(" \n", 0, 0);
    let at = |part: &[u8]| whole.windows(part.len()).position(|w| w == part).unwrap();
    fails("cut in the text of page 2", &whole[..at(b"second")], &["PDF"]);
    fails("cut before the text of page 2", &whole[..at(b"7 0 obj")], &["PDF"]);
    fails("cut before page 2", &whole[..at(b"4 0 obj")], &["PDF"]);
    fails("cut behind the head", &whole[..at(b"1 0 obj")], &["PDF"]);
    let streams = with_streams(0);
    fails("no object stream", &replace(&streams, b"8 0 obj", b"8 0 obx"), &["PDF"]);
    fails("no PDF", b"hello", &["not a PDF"]);
    fails("nothing", b"", &["not a PDF"]);
    fails("a page of HTML", &junk(5000), &["not a PDF"]);
}

/// Encrypted files with faults are told as encrypted.
#[test]
fn locked_files_with_faults() {
    let locked = fs::read(data("rag/locked.pdf")).unwrap();
    fails("whole", &locked, &["password"]);
    fails("junk behind", &[locked.clone(), junk(900)].concat(), &["password"]);
    let at = locked.windows(9).rposition(|w| w == b"startxref").unwrap();
    let other = [&locked[..at], b"startxref\n3\n%%EOF\n"].concat();
    fails("startxref", &other, &["password"]);
    fails("no table", &replace(&locked, b"xref\n", b"xxxx\n"), &["password"]);
}

/// Files that make a careless search start over and over.
#[test]
fn the_time_is_linear() {
    let head = b"%PDF-1.4\n".to_vec();
    for part in [
        "1 0 obj",
        "1 0 obj<<(",
        "1 0 obj<</Length 9>>stream\n",
        "1 0 obj<</Type/XRef/Length 9>>stream\n",
        "trailer<<",
        "trailer<</Root 1 0 R>>",
        "endstream endobj ",
        "1 0 obj<</Type/ObjStm/N 1/First 4/Length 8>>stream\n2 0 true\nendstream endobj\n",
        "0 0 0 0 ",
        "%PDF-1.4\n%%EOF\nstartxref\n",
    ] {
        let file = [head.clone(), part.repeat((2 << 20) / part.len()).into_bytes()].concat();
        fails(part, &file, &["PDF"]);
    }
}
