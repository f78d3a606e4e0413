//! Extracts text from HTML. html5gum splits the file into tokens as a browser would; this module
//! builds no tree and keeps no attributes, so nesting may be arbitrarily deep and the time is
//! linear in the file, whatever is in it. (A tokenizer that keeps attributes must compare each
//! one with all before it: html5ever 0.40 took more than a minute on a tag with a million
//! attributes.)

use encoding_rs::{Encoding, WINDOWS_1252};
use html5gum::{Emitter, Error, State, Tokenizer};

/// Returns the title, if there is one, and the text, with a blank line between paragraphs.
pub(super) fn text(bytes: &[u8]) -> (Option<String>, String) {
    let (html, mut page) = (decode(bytes), Page::default());
    let tokenizer = Tokenizer::new_with_emitter(html.as_str(), Tokens::of(&mut page));
    // Reading from memory cannot fail.
    let Ok(()) = tokenizer.finish();
    let Page { title, first_heading, text, .. } = page;
    let title = [title, first_heading].into_iter().find(|t| !t.trim().is_empty());
    (title, text)
}

/// Decodes the page: as UTF-8 if it is valid, else in the charset that the page declares, else,
/// as browsers do, as Windows-1252.
fn decode(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.into();
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let label = head.split_once("charset=").map(|(_, rest)| {
        let end = |c: char| c.is_whitespace() || "\"'/>;".contains(c);
        rest.trim_start_matches(['"', '\'']).split(end).next().unwrap_or_default()
    });
    let encoding = label.and_then(|l| Encoding::for_label(l.as_bytes())).unwrap_or(WINDOWS_1252);
    encoding.decode(bytes).0.into_owned()
}

#[derive(Default)]
struct Page {
    title: String,
    first_heading: String,
    text: String,
    /// Number of open elements that are not shown.
    hidden: usize,
    /// Number of open `pre` elements, in which white space is significant.
    pre: usize,
    place: Place,
    /// White space to write before the next character.
    gap: Gap,
}

/// Where text goes.
#[derive(Clone, Copy, Default, PartialEq)]
enum Place {
    #[default]
    Body,
    Title,
    /// The first `h1`, which goes to the text and serves as the title if there is no other.
    Heading,
}

#[derive(Clone, Copy, Default, PartialEq, PartialOrd)]
enum Gap {
    #[default]
    None,
    Space,
    Line,
    Paragraph,
}

impl Page {
    fn gap(&mut self, gap: Gap) {
        if gap > self.gap {
            self.gap = gap;
        }
    }

    fn push(&mut self, text: &str) {
        if self.hidden > 0 {
            return;
        }
        if self.place == Place::Title {
            self.title += text;
            return;
        }
        if self.place == Place::Heading {
            self.first_heading += text;
        }
        for c in text.chars() {
            match c {
                '\n' if self.pre > 0 && self.gap == Gap::Line => self.gap(Gap::Paragraph),
                '\n' if self.pre > 0 => self.gap(Gap::Line),
                c if c.is_whitespace() && (self.pre == 0 || self.gap >= Gap::Line) => {
                    self.gap(Gap::Space);
                }
                c => {
                    if !self.text.is_empty() {
                        self.text += ["", " ", "\n", "\n\n"][self.gap as usize];
                    }
                    self.gap = Gap::None;
                    self.text.push(c);
                }
            }
        }
    }

    /// Handles a tag whose `name` is in lower case. Returns the state that the tokenizer must
    /// switch to, or `None` if it stays in its current one.
    fn tag(&mut self, name: &str, start: bool, self_closing: bool) -> Option<State> {
        match name {
            "script" | "style" | "svg" | "template" | "noscript" | "iframe" | "object" => {
                match start {
                    true if !self_closing => self.hidden += 1,
                    true => {}
                    false => self.hidden = self.hidden.saturating_sub(1),
                }
            }
            "title" if start && self.title.is_empty() && self.hidden == 0 => {
                self.place = Place::Title;
            }
            "title" => self.place = Place::Body,
            "br" | "li" | "tr" | "dt" | "dd" | "option" => self.gap(Gap::Line),
            "td" | "th" => self.gap(Gap::Space),
            "h1" if start && self.first_heading.is_empty() => {
                self.gap(Gap::Paragraph);
                self.place = Place::Heading;
            }
            "h1" => {
                self.gap(Gap::Paragraph);
                self.place = Place::Body;
            }
            "pre" => {
                self.gap(Gap::Paragraph);
                self.pre = if start { self.pre + 1 } else { self.pre.saturating_sub(1) };
            }
            _ if is_block(name) => self.gap(Gap::Paragraph),
            _ => {}
        }
        match (start, name) {
            (true, "script") => Some(State::ScriptData),
            (true, "style" | "iframe" | "noframes" | "noembed" | "xmp") => Some(State::RawText),
            (true, "title" | "textarea") if self.hidden == 0 => Some(State::RcData),
            _ => None,
        }
    }
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "caption"
            | "center"
            | "details"
            | "dialog"
            | "div"
            | "dl"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "head"
            | "header"
            | "hr"
            | "legend"
            | "main"
            | "menu"
            | "nav"
            | "ol"
            | "p"
            | "section"
            | "summary"
            | "table"
            | "ul"
    )
}

/// Passes text and tags from the tokenizer to the page, and nothing else.
struct Tokens<'a> {
    page: &'a mut Page,
    /// Text received since the last tag.
    text: Vec<u8>,
    /// Name of the tag that is being read.
    name: Vec<u8>,
    start: bool,
    self_closing: bool,
    /// Name of the last start tag; only its own end tag ends a script or a title.
    last: Vec<u8>,
}

impl<'a> Tokens<'a> {
    fn of(page: &'a mut Page) -> Self {
        let (text, name, last) = (Vec::new(), Vec::new(), Vec::new());
        Self { page, text, name, start: false, self_closing: false, last }
    }

    /// Begins a tag. Inside a script, something that looks like a tag may turn out to be text, so
    /// pending text is not flushed until the tag is complete.
    fn begin(&mut self, start: bool) {
        self.name.clear();
        (self.start, self.self_closing) = (start, false);
    }

    fn flush(&mut self) {
        self.page.push(&String::from_utf8_lossy(&self.text));
        self.text.clear();
    }
}

impl Emitter for Tokens<'_> {
    type Token = std::convert::Infallible;

    fn pop_token(&mut self) -> Option<Self::Token> {
        None
    }

    fn should_emit_errors(&mut self) -> bool {
        false
    }

    fn emit_error(&mut self, _: Error) {}

    fn emit_eof(&mut self) {
        self.flush();
    }

    fn emit_string(&mut self, text: &[u8]) {
        self.text.extend_from_slice(text);
    }

    fn init_start_tag(&mut self) {
        self.begin(true);
    }

    fn init_end_tag(&mut self) {
        self.begin(false);
    }

    fn push_tag_name(&mut self, name: &[u8]) {
        self.name.extend_from_slice(name);
    }

    fn set_self_closing(&mut self) {
        self.self_closing = true;
    }

    fn emit_current_tag(&mut self) -> Option<State> {
        self.flush();
        if self.start {
            self.last.clone_from(&self.name);
        }
        self.page.tag(&String::from_utf8_lossy(&self.name), self.start, self.self_closing)
    }

    fn current_is_appropriate_end_tag_token(&mut self) -> bool {
        !self.start && !self.last.is_empty() && self.name == self.last
    }

    fn set_last_start_tag(&mut self, name: Option<&[u8]>) {
        self.last = name.unwrap_or_default().to_vec();
    }

    // Attributes, comments and document types hold no text.
    fn init_attribute(&mut self) {}
    fn push_attribute_name(&mut self, _: &[u8]) {}
    fn push_attribute_value(&mut self, _: &[u8]) {}
    fn init_comment(&mut self) {}
    fn push_comment(&mut self, _: &[u8]) {}
    fn emit_current_comment(&mut self) {}
    fn init_doctype(&mut self) {}
    fn push_doctype_name(&mut self, _: &[u8]) {}
    fn set_force_quirks(&mut self) {}
    fn set_doctype_public_identifier(&mut self, _: &[u8]) {}
    fn set_doctype_system_identifier(&mut self, _: &[u8]) {}
    fn push_doctype_public_identifier(&mut self, _: &[u8]) {}
    fn push_doctype_system_identifier(&mut self, _: &[u8]) {}
    fn emit_current_doctype(&mut self) {}
}
