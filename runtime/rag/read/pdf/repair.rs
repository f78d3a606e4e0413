//! Loads PDFs with small faults, as other readers do: junk around the file, a cross-reference
//! table that is misplaced or wrong, or wrong lengths of streams.
//!
//! [`rebuilt`] does not use the table: it searches the whole file for `N G obj` and takes the
//! last of several versions of an object. The time is linear in the file, because each part is
//! read a fixed number of times, whatever is in it.

use super::bounds::Decoded;
use memchr::memmem;
use pdf_extract::xref::XrefEntry;
use pdf_extract::{Dictionary, Document, Object, ObjectId, ObjectStream, Reader, Stream};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// Loads the document by its cross-reference table, or rebuilds it if the table is unusable.
pub(super) fn load(bytes: &[u8]) -> Result<Document, String> {
    let scan = Scan::of(bytes);
    scan.check_packed(bytes)?;
    let loaded = Document::load_mem(bytes);
    match loaded {
        Ok(document) if is_whole(&document) => return Ok(document),
        // lopdf 0.42 looks for the end only in the last 512 bytes.
        Err(_) if let Some(rest) = behind_the_end(bytes) => {
            let inside = &bytes[..bytes.len() - rest.len()];
            let none = memmem::find(rest, b"endobj").is_none();
            match none.then(|| Document::load_mem(inside)) {
                Some(Ok(document)) if is_whole(&document) => return Ok(document),
                _ => {}
            }
        }
        _ => {}
    }
    let rebuilt = rebuilt(bytes, scan);
    let pages = |document: &Document| document.page_iter().count();
    match (loaded, rebuilt) {
        (_, Some(document)) if document.is_encrypted() || lost(&document) == 0 => Ok(document),
        // Rebuilding did not give a complete document either: its writer left the missing parts
        // out.
        (Ok(document), rebuilt) => {
            let more = rebuilt.filter(|rebuilt| pages(rebuilt) > pages(&document));
            let best = more.unwrap_or(document);
            match pages(&best) {
                0 if !best.is_encrypted() => Err("a broken PDF: no pages are in it".into()),
                _ => Ok(best),
            }
        }
        (Err(_), Some(document)) => Err(format!(
            "a broken PDF: {} of its pages or their texts are not in it; it may be cut off",
            lost(&document)
        )),
        (Err(error), None) if memmem::find(bytes, b" obj").is_some() => {
            Err(format!("a broken PDF: {error}"))
        }
        (Err(error), None) => Err(format!("not a PDF: {error}")),
    }
}

/// Returns what follows the last `%%EOF`, or `None` if nothing does.
fn behind_the_end(bytes: &[u8]) -> Option<&[u8]> {
    let end = memmem::rfind(bytes, b"%%EOF")? + 5;
    Some(&bytes[end..]).filter(|rest| !rest.is_empty())
}

/// Returns whether all objects are where the table says, and are what they should be.
fn is_whole(document: &Document) -> bool {
    if document.is_encrypted() {
        return true;
    }
    // lopdf leaves out objects that it cannot read, and takes a stream whose length is wrong for
    // a dictionary.
    let there = |(number, entry): (&u32, &XrefEntry)| match *entry {
        XrefEntry::Normal { generation, .. } => {
            document.was_encrypted() || document.objects.contains_key(&(*number, generation))
        }
        _ => true,
    };
    let sound = |object: &Object| match object {
        Object::Dictionary(dictionary) => !dictionary.has(b"Length"),
        Object::Stream(stream) => !stream.content.is_empty() || stream.start_position.is_none(),
        _ => true,
    };
    document.reference_table.entries.iter().all(there)
        && document.objects.values().all(sound)
        && lost(document) == 0
}

/// Counts the pages and content streams that are referred to but missing. Returns at least 1 if
/// there is no page.
fn lost(document: &Document) -> usize {
    let root = document.catalog().and_then(|c| c.get(b"Pages")).and_then(Object::as_reference);
    let Ok(root) = root else { return 1 };
    let (mut lost, mut pages) = (0, 0);
    let (mut seen, mut open) = (HashSet::new(), vec![root]);
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let Ok(node) = document.get_dictionary(id) else {
            lost += 1;
            continue;
        };
        match node.get_deref(b"Kids", document).and_then(Object::as_array) {
            Ok(kids) => open.extend(kids.iter().filter_map(|kid| kid.as_reference().ok())),
            Err(_) => {
                pages += 1;
                let there = |id| document.get_object(id).and_then(Object::as_stream).is_ok();
                let contents = document.get_page_contents(id);
                lost += contents.into_iter().filter(|&id| !there(id)).count();
            }
        }
    }
    if pages == 0 { lost.max(1) } else { lost }
}

/// Builds a document from all objects in the file. Returns `None` if there is no page among them.
fn rebuilt(bytes: &[u8], Scan { found, trailers }: Scan) -> Option<Document> {
    let mut document = Document::new();
    // The offset of each object, so that its last version counts.
    let mut places: HashMap<ObjectId, usize> = HashMap::new();
    let mut heads: BTreeMap<usize, Dictionary> = BTreeMap::new();
    for Found { id, head, stream } in found {
        let place = head.start;
        let object = match (parse(id, &bytes[head]), stream) {
            (Some(Object::Dictionary(dictionary)), Some(_)) if dictionary.has_type(b"XRef") => {
                heads.insert(place, dictionary);
                continue;
            }
            (Some(Object::Dictionary(dictionary)), Some(data)) => {
                Object::Stream(Stream::new(dictionary, bytes[data].to_vec()))
            }
            (Some(object), None) => object,
            _ => continue,
        };
        document.objects.insert(id, object);
        places.insert(id, place);
    }
    for part in trailers {
        let text = [b"1 0 obj".as_slice(), &bytes[part.clone()]].concat();
        if let Some(Object::Dictionary(dictionary)) = parse((1, 0), &text) {
            heads.insert(part.start, dictionary);
        }
    }
    for key in [b"Root".as_slice(), b"Info", b"ID", b"Encrypt"] {
        let last = heads.values().rev().find_map(|head| head.get(key).ok());
        last.into_iter().for_each(|value| document.trailer.set(key, value.clone()));
    }
    // Many PDFs are encrypted with an empty password; the caller reports those with another.
    if document.is_encrypted() && document.decrypt("").is_err() {
        return Some(document);
    }
    unpack(&mut document, places);
    if document.catalog().is_ok_and(|catalog| catalog.has(b"Pages")) {
        return Some(document).filter(|document| document.page_iter().next().is_some());
    }
    let catalog = |(id, object): (&ObjectId, &Object)| {
        object.as_dict().is_ok_and(|dictionary| dictionary.has_type(b"Catalog")).then_some(*id)
    };
    let root = document.objects.iter().rev().find_map(catalog)?;
    document.trailer.set("Root", Object::Reference(root));
    Some(document).filter(|document| document.page_iter().next().is_some())
}

/// Extracts the objects from the object streams, unless a later version of them exists.
fn unpack(document: &mut Document, mut places: HashMap<ObjectId, usize>) {
    let packed = document.objects.iter_mut().filter_map(|(id, object)| match object {
        Object::Stream(stream) if stream.dict.has_type(b"ObjStm") => {
            Some((*places.get(id)?, ObjectStream::new(stream).ok()?.objects))
        }
        _ => None,
    });
    let packed: BTreeMap<usize, _> = packed.collect();
    for (place, objects) in packed {
        for (id, object) in objects {
            if places.get(&id).is_none_or(|&other| other < place) {
                document.objects.insert(id, object);
                places.insert(id, place);
            }
        }
    }
}

/// The position of an object in the file.
struct Found {
    id: ObjectId,
    /// From its number to its end, or to the keyword `stream`.
    head: Range<usize>,
    /// A stream's data.
    stream: Option<Range<usize>>,
}

/// What a scan of the file finds without the table.
#[derive(Default)]
struct Scan {
    /// The objects, in the order of the file.
    found: Vec<Found>,
    /// The bytes behind each keyword `trailer`.
    trailers: Vec<Range<usize>>,
}

/// Maximum bytes of a trailer's dictionary.
const TRAILER: usize = 1 << 16;

impl Scan {
    fn of(bytes: &[u8]) -> Self {
        let mut scan = Self::default();
        // The object being read, and the offset where its stream's data begin.
        let (mut open, mut data): (Option<Found>, Option<usize>) = (None, None);
        // Everything before this offset is a stream's data.
        let mut skip = 0;
        for (at, word) in words(bytes) {
            if at < skip {
                continue;
            }
            if let Some(trailer) = scan.trailers.last_mut() {
                trailer.end = trailer.end.min(at);
            }
            let ends = bytes[..at].ends_with(b"end");
            match (word, data) {
                (Word::Stream | Word::Object, Some(start)) if ends => {
                    // An object that ends within a stream has lost its `endstream`.
                    let end = start + without_line_end(&bytes[start..at - 3]).len();
                    scan.close(&mut open, Some(start..end));
                    data = None;
                }
                (_, Some(_)) => {}
                (Word::Object, None) if ends => {
                    open.iter_mut().for_each(|open| open.head.end = at - 3);
                    scan.close(&mut open, None);
                }
                (Word::Object, None) => {
                    let Some((id, start)) = number_before(bytes, at) else { continue };
                    open.iter_mut().for_each(|open| open.head.end = start);
                    scan.close(&mut open, None);
                    open = Some(Found { id, head: start..bytes.len(), stream: None });
                }
                (Word::Stream, None) => {
                    let Some(found) = &mut open else { continue };
                    let head = &bytes[found.head.start..at];
                    let line_end = match &bytes[at + Word::STREAM.len()..] {
                        [b'\r', b'\n', ..] => 2,
                        [b'\r' | b'\n', ..] => 1,
                        _ => continue,
                    };
                    if !head.trim_ascii_end().ends_with(b">>") {
                        continue;
                    }
                    found.head.end = at;
                    let start = at + Word::STREAM.len() + line_end;
                    let end = length(head).and_then(|length| start.checked_add(length));
                    match end.filter(|&end| ends_at(bytes, end)) {
                        Some(end) => {
                            scan.close(&mut open, Some(start..end));
                            skip = end;
                        }
                        None => data = Some(start),
                    }
                }
                (Word::Trailer, None) => {
                    let start = at + Word::TRAILER.len();
                    scan.trailers.push(start..bytes.len().min(start + TRAILER));
                }
            }
        }
        // A stream without an end was cut off, so its object is dropped.
        if data.is_none() {
            scan.close(&mut open, None);
        }
        scan
    }

    /// Counts the bytes that those streams decode to that lopdf decodes while it loads: object
    /// streams and cross-reference streams.
    fn check_packed(&self, bytes: &[u8]) -> Result<(), String> {
        let mut decoded = Decoded::new();
        for Found { id, head, stream } in &self.found {
            let Some(stream) = stream else { continue };
            let Some(Object::Dictionary(head)) = parse(*id, &bytes[head.clone()]) else { continue };
            if head.has_type(b"ObjStm") || head.has_type(b"XRef") {
                decoded.count(&Stream::new(head, bytes[stream.clone()].to_vec()))?;
            }
        }
        Ok(())
    }

    fn close(&mut self, open: &mut Option<Found>, stream: Option<Range<usize>>) {
        self.found.extend(open.take().map(|found| Found { stream, ..found }));
    }
}

/// The keywords by which a file is split.
#[derive(Clone, Copy)]
enum Word {
    Object,
    Stream,
    Trailer,
}

impl Word {
    const OBJECT: &[u8] = b"obj";
    const STREAM: &[u8] = b"stream";
    const TRAILER: &[u8] = b"trailer";
}

/// Returns the keywords with their offsets, in the order of the file.
fn words(bytes: &[u8]) -> impl Iterator<Item = (usize, Word)> {
    let find = |word| memmem::find_iter(bytes, word).peekable();
    let mut objects = find(Word::OBJECT);
    let mut streams = find(Word::STREAM);
    let mut trailers = find(Word::TRAILER);
    std::iter::from_fn(move || {
        let next = [
            (objects.peek().copied(), Word::Object),
            (streams.peek().copied(), Word::Stream),
            (trailers.peek().copied(), Word::Trailer),
        ];
        let next = next.into_iter().filter_map(|(at, word)| Some((at?, word)));
        let (at, word) = next.min_by_key(|(at, _)| *at)?;
        match word {
            Word::Object => objects.next(),
            Word::Stream => streams.next(),
            Word::Trailer => trailers.next(),
        };
        Some((at, word))
    })
}

/// Returns the object's number and generation in front of `obj`, and the offset where they begin.
fn number_before(bytes: &[u8], at: usize) -> Option<(ObjectId, usize)> {
    let number = |end: usize| -> Option<(&str, usize)> {
        let text = bytes[..end].trim_ascii_end();
        let digits = text.iter().rev().take(10).take_while(|b| b.is_ascii_digit()).count();
        let start = text.len() - digits;
        Some((std::str::from_utf8(&text[start..]).ok()?, start))
    };
    let (generation, start) = number(at)?;
    if !bytes[..start].last()?.is_ascii_whitespace() {
        return None;
    }
    let (number, start) = number(start)?;
    Some(((number.parse().ok()?, generation.parse().ok()?), start))
}

/// Returns a stream's length if its dictionary gives it as a number.
fn length(head: &[u8]) -> Option<usize> {
    memmem::find_iter(head, b"/Length").find_map(|at| {
        let rest = head[at + 7..].trim_ascii_start();
        let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
        let (number, rest) = rest.split_at(digits(rest));
        // `N G R` refers to another object.
        let rest = rest.trim_ascii_start();
        let rest = rest[digits(rest)..].trim_ascii_start();
        let apart = head.get(at + 7).is_some_and(u8::is_ascii_whitespace);
        let own = apart && !rest.starts_with(b"R");
        std::str::from_utf8(number).ok().filter(|_| own)?.parse().ok()
    })
}

/// Returns whether a stream's data may end at this offset.
fn ends_at(bytes: &[u8], end: usize) -> bool {
    bytes.get(end..).is_some_and(|rest| {
        let line_end = rest.iter().take(2).take_while(|b| b"\r\n".contains(b)).count();
        rest[line_end..].starts_with(b"endstream")
    })
}

fn without_line_end(data: &[u8]) -> &[u8] {
    let data = data.strip_suffix(b"\n").unwrap_or(data);
    data.strip_suffix(b"\r").unwrap_or(data)
}

/// Parses the object that begins with its number in `text`.
fn parse(id: ObjectId, text: &[u8]) -> Option<Object> {
    let mut document = Document::new();
    document.reference_table.insert(id.0, XrefEntry::Normal { offset: 0, generation: id.1 });
    let reader = Reader {
        buffer: text,
        document,
        encryption_state: None,
        raw_objects: BTreeMap::new(),
        password: None,
        strict: false,
    };
    reader.get_object(id, &mut HashSet::new()).ok()
}
