//! Extracts text from PDF, by the positions of its characters.

mod bounds;
mod cmap;
mod repair;

use super::parser::ParseLimits;
use pdf_extract::{Document, MediaBox, Object, OutputDev, OutputError, Transform, output_doc};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Returns the text, line by line, with a blank line where there is a gap on the page and between
/// pages.
pub(super) fn text(bytes: &[u8], limits: &ParseLimits) -> Result<String, String> {
    quietly(|| {
        let mut document = repair::load(bytes)?;
        // Many PDFs are encrypted with an empty password, to forbid printing.
        let locked = || Err("encrypted: it needs a password, or another reader".into());
        if document.is_encrypted() && document.decrypt("").is_err() {
            return locked();
        }
        bounds::check(&mut document)?;
        spell_widths_out(&mut document)?;
        let mut page = Page::of(limits);
        let drawn = output_doc(&document, &mut page);
        limits.check_text(page.text.len())?;
        drawn.map_err(|e| format!("a broken PDF: {e}"))?;
        match page.text.trim().is_empty() {
            false => Ok(page.text),
            // lopdf 0.42 leaves out what is encrypted with a cipher that it does not know.
            true if document.trailer.has(b"Encrypt") || document.was_encrypted() => locked(),
            true => Err("no text in it; its pages may be images".into()),
        }
    })
    .unwrap_or_else(|problem| Err(format!("a PDF that cannot be read: {problem}")))
}

/// Rewrites the widths of fonts for pdf-extract 0.12. Fonts list widths as `first [w w w]` or
/// `first last w`. pdf-extract misreads the second form, so that digits, say, would have no width
/// and a space after each; it is rewritten as the first.
fn spell_widths_out(document: &mut Document) -> Result<(), String> {
    let resolved = |object: &Object| match object {
        Object::Reference(id) => document.get_object(*id).ok().cloned(),
        object => Some(object.clone()),
    };
    let mut changed = Vec::new();
    let mut room = WIDTHS;
    for (id, object) in &document.objects {
        let widths = object.as_dict().ok().and_then(|font| resolved(font.get(b"W").ok()?));
        let Some(Object::Array(widths)) = widths else { continue };
        let (mut out, mut rest, mut as_read) = (Vec::new(), widths.as_slice(), true);
        while let [first, second, after @ ..] = rest {
            let (first, second) = (resolved(first), resolved(second));
            let run = match (first.as_ref().map(Object::as_i64), second, after) {
                (Some(Ok(_)), Some(run @ Object::Array(_)), _) => {
                    rest = after;
                    run
                }
                (Some(Ok(first)), Some(Object::Integer(last)), [width, after @ ..]) => {
                    (rest, as_read) = (after, false);
                    let count = last.saturating_sub(first).clamp(0, 0xFFFF) as usize + 1;
                    room = room.checked_sub(count).ok_or_else(many_widths)?;
                    Object::Array(vec![width.clone(); count])
                }
                _ => break,
            };
            // Many fonts may share a list of widths, which is copied for each of them.
            let listed = run.as_array().map_or(0, |run| run.len() / 4);
            room = room.checked_sub(listed).ok_or_else(many_widths)?;
            out.extend([first.unwrap_or(Object::Null), run]);
        }
        if !as_read {
            changed.push((*id, Object::Array(out)));
        }
    }
    for (id, widths) in changed {
        if let Ok(font) = document.get_object_mut(id).and_then(Object::as_dict_mut) {
            font.set("W", widths);
        }
    }
    Ok(())
}

/// Maximum widths that are spelled out for all fonts together, some 100 MB. A font has 65,536 at
/// most.
const WIDTHS: usize = 1 << 20;

fn many_widths() -> String {
    format!("its fonts list more than {WIDTHS} widths")
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Returns the result of `work`, or its message if it panicked, as PDF parsers do on files that
/// they do not expect. The panic is not printed.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        text.unwrap_or_default().lines().next().unwrap_or("it is broken").into()
    })
}

/// Assembles characters into words and lines.
#[derive(Default)]
struct Page {
    text: String,
    /// Where the last character ended and the next should begin.
    end: Option<(f64, f64)>,
    /// Whether the next character begins a string.
    first: bool,
    /// Maximum bytes of text.
    limit: usize,
}

impl Page {
    fn of(limits: &ParseLimits) -> Self {
        Self { limit: limits.text, ..Self::default() }
    }
}

impl OutputDev for Page {
    fn begin_page(
        &mut self,
        _page: u32,
        _media: &MediaBox,
        _art: Option<(f64, f64, f64, f64)>,
    ) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), OutputError> {
        self.text += "\n\n";
        self.end = None;
        Ok(())
    }

    fn output_character(
        &mut self,
        place: &Transform,
        width: f64,
        _spacing: f64,
        font_size: f64,
        text: &str,
    ) -> Result<(), OutputError> {
        if self.text.len() > self.limit {
            return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge).into());
        }
        let size = font_size * (place.m11 * place.m22 - place.m12 * place.m21).abs().sqrt();
        let (x, y) = (place.m31, place.m32);
        // Gaps within a string are only letter spacing.
        if let Some((end, line)) = self.end.filter(|_| self.first) {
            let down = (y - line).abs();
            if down > 0.5 * size {
                // Lines of a paragraph are 1 to 1.5 font sizes apart.
                self.text += if down > 1.7 * size { "\n\n" } else { "\n" };
            } else if (x - end > SPACE * size || end - x > size)
                && !self.text.ends_with(char::is_whitespace)
            {
                self.text.push(' ');
            }
        }
        for c in text.chars() {
            match c {
                // Ligatures belong to the font; the text gets their letters.
                '\u{FB00}'..='\u{FB04}' => {
                    self.text += ["ff", "fi", "fl", "ffi", "ffl"][c as usize - 0xFB00];
                }
                c if c.is_control() => self.text.push(' '),
                c => self.text.push(c),
            }
        }
        self.end = Some((x + width * size, y));
        self.first = false;
        Ok(())
    }

    fn begin_word(&mut self) -> Result<(), OutputError> {
        self.first = true;
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

/// The smallest gap that counts as a space, in font sizes: spaces are 0.2 to 0.3, in tight lines
/// 0.13, and kerning is below 0.1.
const SPACE: f64 = 0.115;
