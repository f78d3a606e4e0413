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
use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
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

    /// Counts the bytes that a stream decodes to, with the filters that lopdf knows.
    pub(super) fn count(&mut self, stream: &Stream) -> Result<(), String> {
        let filters = stream.filters().unwrap_or_default();
        let mut layer = stream.clone();
        for (at, filter) in filters.iter().enumerate() {
            let limit = STREAM.min(self.left);
            let size = match *filter {
                b"FlateDecode" => inflated(&layer.content, limit),
                b"LZWDecode" => unpacked(&layer, limit),
                // `z` stands for four zeros.
                b"ASCII85Decode" => 4 * layer.content.len(),
                // lopdf leaves such data as they are.
                _ => return Ok(()),
            };
            if size > limit {
                let mib = if limit < STREAM { DECODED >> 20 } else { STREAM >> 20 };
                let what = if limit < STREAM { "its streams decode" } else { "a stream decodes" };
                return Err(format!("{what} to more than {mib} MiB"));
            }
            self.left -= size;
            if at + 1 < filters.len() {
                layer.dict.set("Filter", Object::Name(filter.to_vec()));
                layer.content = layer.decompressed_content().unwrap_or_default();
            }
        }
        Ok(())
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
    let mut decoded = Decoded::new();
    for object in document.objects.values_mut() {
        let Object::Stream(stream) = object else { continue };
        let kind = stream.dict.get(b"Subtype").and_then(Object::as_name);
        if kind.is_ok_and(|kind| kind == b"Image") || stream.dict.has_type(b"EmbeddedFile") {
            stream.set_plain_content(Vec::new());
            continue;
        }
        decoded.count(stream)?;
    }
    cmap::check(document)?;
    for page in document.page_iter() {
        ancestors(document, page)?;
    }
    Drawing::of(document).pages()
}

/// Checks that a page does not have too many ancestors. A page inherits what it lacks from the
/// nodes above it, and pdf-extract would follow a cycle of them without end.
fn ancestors(document: &Document, page: ObjectId) -> Result<(), String> {
    let (mut node, mut levels) = (page, 0);
    while let Ok(above) = document.get_dictionary(node).and_then(|node| node.get(b"Parent")) {
        levels += 1;
        if levels > LEVELS {
            return Err(format!("a page lies below more than {LEVELS} others, or below itself"));
        }
        let Ok(above) = above.as_reference() else { break };
        node = above;
    }
    Ok(())
}

/// Follows what pages draw in the way that pdf-extract does.
struct Drawing<'a> {
    document: &'a Document,
    /// Bytes of content drawn so far.
    drawn: usize,
    /// What each form draws: the bytes of its content, and names in its resources.
    forms: HashMap<ObjectId, (usize, Vec<Vec<u8>>)>,
}

impl<'a> Drawing<'a> {
    fn of(document: &'a Document) -> Self {
        Self { document, drawn: 0, forms: HashMap::new() }
    }

    fn pages(&mut self) -> Result<(), String> {
        // A page's content streams are drawn as one, after each of them is decoded.
        let mut sizes: HashMap<ObjectId, usize> = HashMap::new();
        for page in self.document.page_iter() {
            for id in self.document.get_page_contents(page) {
                let size = *sizes.entry(id).or_insert_with(|| {
                    let stream = self.document.get_object(id).and_then(Object::as_stream);
                    stream.map_or(0, |stream| content(stream).len())
                });
                self.draw(size)?;
            }
            // Without forms there is nothing more to follow.
            let resources = inherited(self.document, page).filter(|all| self.has_forms(all));
            let Some(resources) = resources else { continue };
            let content = self.document.get_page_content(page).unwrap_or_default();
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
        let Ok(id) = form else { return Ok(()) };
        let Ok(stream) = document.get_object(id).and_then(Object::as_stream) else {
            return Ok(());
        };
        if !path.insert(id) {
            return Err(format!("form {} draws itself", id.0));
        }
        if path.len() > DEPTH {
            return Err(format!("forms lie more than {DEPTH} deep in forms"));
        }
        let (size, names) = match self.forms.get(&id) {
            Some(known) => known.clone(),
            None => {
                let content = content(stream);
                let found = (content.len(), drawn_names(&content));
                self.forms.entry(id).insert_entry(found).get().clone()
            }
        };
        self.draw(size)?;
        let own = stream.dict.get_deref(b"Resources", document).and_then(Object::as_dict);
        let resources = own.unwrap_or(resources);
        for name in names {
            self.form(&name, resources, path)?;
        }
        path.remove(&id);
        Ok(())
    }

    fn draw(&mut self, bytes: usize) -> Result<(), String> {
        self.drawn += bytes.max(LEAST);
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

/// Returns a page's resources, or else those of its nearest ancestor that has any.
fn inherited(document: &Document, page: ObjectId) -> Option<&Dictionary> {
    let mut node = document.get_dictionary(page).ok()?;
    for _ in 0..LEVELS {
        if let Ok(resources) = node.get_deref(b"Resources", document).and_then(Object::as_dict) {
            return Some(resources);
        }
        let above = node.get(b"Parent").and_then(Object::as_reference).ok()?;
        node = document.get_dictionary(above).ok()?;
    }
    None
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
