//! Text of HTML, from the tokens that html5ever makes as a browser would: no tree is built, so no
//! nesting is too deep, and the time is linear.

use encoding_rs::{Encoding, WINDOWS_1252};
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use std::cell::RefCell;

/// Title, if there is one, and text: a blank line between paragraphs, each on one line.
pub(super) fn text(bytes: &[u8]) -> (Option<String>, String) {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(&decode(bytes)));
    let tokenizer = Tokenizer::new(Sink(RefCell::default()), TokenizerOpts::default());
    // A script does not stop the tokenizer for longer than this.
    while !input.is_empty() {
        let _ = tokenizer.feed(&input);
    }
    tokenizer.end();
    let Page { title, first_heading, text, .. } = tokenizer.sink.0.into_inner();
    let title = [title, first_heading].into_iter().find(|t| !t.trim().is_empty());
    (title, text)
}

/// UTF-8, or what the page says that it is in; as in browsers, Windows-1252 where it says nothing.
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
    /// Of the elements that are not shown, how many are open.
    hidden: usize,
    /// How many `pre` are open: their white space counts.
    pre: usize,
    place: Place,
    /// White space that is to stand before the next character.
    gap: Gap,
}

/// Where text goes.
#[derive(Clone, Copy, Default, PartialEq)]
enum Place {
    #[default]
    Body,
    Title,
    /// The first heading: to the text and to the title.
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

    fn tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let start = tag.kind == TagKind::StartTag;
        let name: &str = &tag.name;
        match name {
            "script" | "style" | "svg" | "template" | "noscript" | "iframe" | "object" => {
                match start {
                    true if !tag.self_closing => self.hidden += 1,
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
            (true, "script") => TokenSinkResult::RawData(RawKind::ScriptData),
            (true, "style" | "iframe" | "noframes" | "noembed" | "xmp") => {
                TokenSinkResult::RawData(RawKind::Rawtext)
            }
            (true, "title" | "textarea") if self.hidden == 0 => {
                TokenSinkResult::RawData(RawKind::Rcdata)
            }
            _ => TokenSinkResult::Continue,
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

struct Sink(RefCell<Page>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::TagToken(tag) => return self.0.borrow_mut().tag(&tag),
            Token::CharacterTokens(text) => self.0.borrow_mut().push(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}
