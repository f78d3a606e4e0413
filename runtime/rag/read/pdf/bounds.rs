//! Bounds what a PDF may make its parser do. A file of 1 kB can decode to gigabytes, draw itself
//! without end, or name four billion character codes. pdf-extract 0.12 and lopdf 0.42 have no
//! limits of their own, so the work is counted here before they do it.
//!
//! One case is not counted: streams that lopdf decodes while it loads and that are encrypted or
//! lie where no reader but lopdf looks. [`super::super::Parser::in_child`] bounds those, too.

use super::cmap;
use flate2::read::{DeflateDecoder, ZlibDecoder};
use pdf_extract::content::Content;
use pdf_extract::{Dictionary, Document, Object, ObjectId, Stream};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::rc::Rc;
use weezl::{BitOrder, decode::Decoder};

/// Maximum bytes that one stream may decode to.
const STREAM: usize = 64 << 20;
/// Maximum bytes that all streams together may decode to.
const DECODED: usize = 512 << 20;
/// Maximum bytes of content that may be drawn; a form counts each time it is drawn.
const DRAWN: usize = 512 << 20;
/// Minimum bytes that a drawing counts for, because finding its resources costs time, too.
const LEAST: usize = 256;
/// Maximum depth of forms within forms. A level takes some kB of stack.
const DEPTH: usize = 64;
/// Maximum depth of the page tree; lopdf has the same limit.
const LEVELS: usize = 256;

/// Counts the bytes that streams decode to.
pub(super) struct Decoded {
    left: usize,
}

impl Decoded {
    pub(super) fn new() -> Self {
        Self { left: DECODED }
    }

    /// Counts what a stream decodes to, by the filters that lopdf knows, and returns it.
    pub(super) fn count(&mut self, stream: &Stream) -> Result<usize, String> {
        let filters = stream.filters().unwrap_or_default();
        let (mut layer, mut decoded) = (Cow::Borrowed(stream), stream.content.len());
        for (at, filter) in filters.iter().enumerate() {
            let limit = STREAM.min(self.left);
            decoded = match *filter {
                b"FlateDecode" => inflated(&layer.content, limit),
                b"LZWDecode" => unpacked(&layer, limit),
                // `z` stands for four zeros.
                b"ASCII85Decode" => 4 * layer.content.len(),
                // lopdf leaves such data as they are.
                _ => return Ok(stream.content.len()),
            };
            if decoded > limit {
                let mib = if limit < STREAM { DECODED >> 20 } else { STREAM >> 20 };
                let what = if limit < STREAM { "its streams decode" } else { "a stream decodes" };
                return Err(format!("{what} to more than {mib} MiB"));
            }
            self.left -= decoded;
            if at + 1 < filters.len() {
                let layer = layer.to_mut();
                layer.dict.set("Filter", Object::Name(filter.to_vec()));
                layer.content = layer.decompressed_content().unwrap_or_default();
            }
        }
        Ok(decoded)
    }
}

/// Returns how many bytes Flate data decode to, as lopdf reads them; a number above `limit` if
/// they exceed it.
fn inflated(data: &[u8], limit: usize) -> usize {
    let count = |from: &mut dyn Read| {
        let mut counted = Counted { bytes: 0, limit };
        // Broken data end at the error.
        let _ = io::copy(from, &mut counted);
        counted.bytes
    };
    match count(&mut ZlibDecoder::new(data)) {
        0 if data.len() > 2 => count(&mut DeflateDecoder::new(&data[2..])),
        bytes => bytes,
    }
}

/// Returns how many bytes LZW data decode to, as lopdf reads them; a number above `limit` if they
/// exceed it.
fn unpacked(stream: &Stream, limit: usize) -> usize {
    let early = stream.dict.get(b"DecodeParms").and_then(Object::as_dict);
    let early = early.and_then(|parameters| parameters.get(b"EarlyChange"));
    let mut decoder = match early.and_then(Object::as_i64) {
        Ok(0) => Decoder::new(BitOrder::Msb, 8),
        _ => Decoder::with_tiff_size_switch(BitOrder::Msb, 8),
    };
    let mut counted = Counted { bytes: 0, limit };
    let _ = decoder.into_stream(&mut counted).decode_all(&stream.content[..]);
    counted.bytes
}

/// Counts the bytes written, and fails after the write that passes the limit.
struct Counted {
    bytes: usize,
    limit: usize,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks a document before its text is extracted, and describes what is wrong, if anything is.
/// It removes the data of images and embedded files, which hold no text; pdf-extract would decode
/// an image's.
pub(super) fn check(document: &mut Document) -> Result<(), String> {
    let (mut decoded, mut sizes) = (Decoded::new(), HashMap::new());
    for (&id, object) in &mut document.objects {
        let Object::Stream(stream) = object else { continue };
        let kind = stream.dict.get(b"Subtype").and_then(Object::as_name);
        if kind.is_ok_and(|kind| kind == b"Image") || stream.dict.has_type(b"EmbeddedFile") {
            stream.set_plain_content(Vec::new());
            continue;
        }
        sizes.insert(id, decoded.count(stream)?);
    }
    cmap::check(document)?;
    Drawing { document, sizes, drawn: 0, forms: HashMap::new() }.pages()
}

/// Returns a page's resources, or else those of its nearest ancestor that has any. Fails for a page
/// with too many ancestors: pdf-extract follows them, also round a cycle, for whatever a page lacks.
fn resources(document: &Document, page: ObjectId) -> Result<Option<&Dictionary>, String> {
    let (mut found, mut next) = (None, Some(page));
    for _ in 0..=LEVELS {
        let node = next.and_then(|id| document.get_dictionary(id).ok());
        let Some(node) = node else { return Ok(found) };
        let own = || node.get_deref(b"Resources", document).and_then(Object::as_dict).ok();
        found = found.or_else(own);
        next = node.get(b"Parent").and_then(Object::as_reference).ok();
    }
    match next {
        None => Ok(found),
        Some(_) => Err(format!("a page lies below more than {LEVELS} others, or below itself")),
    }
}

/// Follows what pages draw in the way that pdf-extract does.
struct Drawing<'a> {
    document: &'a Document,
    /// What each stream decodes to, in bytes.
    sizes: HashMap<ObjectId, usize>,
    /// Bytes of content drawn so far.
    drawn: usize,
    /// The names of what each form draws, in its resources.
    forms: HashMap<ObjectId, Rc<[Vec<u8>]>>,
}

impl<'a> Drawing<'a> {
    fn pages(&mut self) -> Result<(), String> {
        let document = self.document;
        for page in document.page_iter() {
            // A page's content streams are drawn as one, after each of them is decoded.
            for id in document.get_page_contents(page) {
                self.draw(stream(document, id).map(|(id, _)| id))?;
            }
            // Without forms there is nothing more to follow.
            let resources = resources(document, page)?.filter(|all| self.has_forms(all));
            let Some(resources) = resources else { continue };
            let content = document.get_page_content(page).unwrap_or_default();
            let mut path = HashSet::new();
            for name in drawn_names(&content) {
                self.form(&name, resources, &mut path)?;
            }
        }
        Ok(())
    }

    /// Counts the drawing of the form with this name in the resources, and of all that it draws.
    fn form(
        &mut self,
        name: &[u8],
        resources: &'a Dictionary,
        path: &mut HashSet<ObjectId>,
    ) -> Result<(), String> {
        let document = self.document;
        let forms = resources.get_deref(b"XObject", document).and_then(Object::as_dict);
        let form = forms.and_then(|forms| forms.get(name)).and_then(Object::as_reference);
        let form = form.ok().and_then(|id| stream(document, id));
        let Some((id, stream)) = form else { return Ok(()) };
        if !path.insert(id) {
            return Err(format!("form {} draws itself", id.0));
        }
        if path.len() > DEPTH {
            return Err(format!("forms lie more than {DEPTH} deep in forms"));
        }
        self.draw(Some(id))?;
        let names = self.forms.entry(id).or_insert_with(|| drawn_names(&content(stream)).into());
        let names = Rc::clone(names);
        let own = stream.dict.get_deref(b"Resources", document).and_then(Object::as_dict);
        let resources = own.unwrap_or(resources);
        for name in &*names {
            self.form(name, resources, path)?;
        }
        path.remove(&id);
        Ok(())
    }

    /// Counts one drawing of a stream's content.
    fn draw(&mut self, stream: Option<ObjectId>) -> Result<(), String> {
        let bytes = stream.and_then(|id| self.sizes.get(&id)).copied();
        self.drawn += bytes.unwrap_or(0).max(LEAST);
        match self.drawn > DRAWN {
            true => Err(format!("its pages draw more than {} MiB of content", DRAWN >> 20)),
            false => Ok(()),
        }
    }

    fn has_forms(&self, resources: &Dictionary) -> bool {
        let forms = resources.get_deref(b"XObject", self.document).and_then(Object::as_dict);
        forms.is_ok_and(|forms| !forms.is_empty())
    }
}

/// Returns the stream that a reference leads to, and its own number.
fn stream(document: &Document, id: ObjectId) -> Option<(ObjectId, &Stream)> {
    // lopdf follows references to a limit, so the loop ends.
    let stream = document.get_object(id).and_then(Object::as_stream).ok()?;
    let mut at = id;
    while let Object::Reference(next) = document.objects.get(&at)? {
        at = *next;
    }
    Some((at, stream))
}

/// Returns a stream's content as pdf-extract reads it.
pub(super) fn content(stream: &Stream) -> Vec<u8> {
    stream.decompressed_content().unwrap_or_else(|_| stream.content.clone())
}

/// Returns the names of the objects that a content stream draws, once for each time it does.
fn drawn_names(content: &[u8]) -> Vec<Vec<u8>> {
    // Most contents draw no object, so they need not be parsed.
    if memchr::memmem::find(content, b"Do").is_none() {
        return Vec::new();
    }
    let operations = Content::decode(content).map(|content| content.operations);
    let drawn = operations.unwrap_or_default().into_iter().filter(|o| o.operator == "Do");
    drawn.filter_map(|o| Some(o.operands.first()?.as_name().ok()?.to_vec())).collect()
}
