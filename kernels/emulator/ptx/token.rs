//! The words of PTX.

/// A word with the line that it stands in, counted from 1.
#[derive(Debug, Default)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: u32,
}

/// Takes a text apart. A word is a name, an opcode with all its parts (`cvt.rn.f32.u32`), a number,
/// a text in quotes, or one other character. Comments, and the lines that only name sources
/// (`.loc`, `.file`), are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut in_comment = false;
    for (line, text) in (1..).zip(text.lines()) {
        if matches!(text.split_whitespace().next(), Some(".loc" | ".file")) {
            continue;
        }
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if in_comment {
                match rest.split_once("*/") {
                    Some((_, after)) => (rest, in_comment) = (after, false),
                    None => break,
                }
                continue;
            }
            if rest.starts_with("//") {
                break;
            }
            if let Some(after) = rest.strip_prefix("/*") {
                (rest, in_comment) = (after, true);
                continue;
            }
            let length = match first {
                _ if is_of_word(first) => word(rest),
                '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
                _ => first.len_utf8(),
            };
            if !first.is_whitespace() {
                tokens.push(Token { text: rest[..length].into(), line });
            }
            rest = &rest[length..];
        }
    }
    tokens
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '$' | '%')
}

/// Returns the bytes of the word that a text begins with: `L1::no_allocate` is of one.
fn word(text: &str) -> usize {
    let end = |text: &str| text.find(|c| !is_of_word(c)).unwrap_or(text.len());
    let mut length = end(text);
    while text[length..].starts_with("::") {
        length += 2 + end(&text[length + 2..]);
    }
    length
}
