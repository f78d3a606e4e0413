//! GritLM's prompt formats.
//!
//! The tags are plain text, not special tokens; `<s>` goes in front as an id (see
//! [`crate::tokenizer`]). The strings are those that GritLM was trained on.

/// Opens the user's turn.
pub const USER: &str = "<|user|>\n";
/// Opens the text to embed, when no instruction stands before it.
pub const EMBED: &str = "<|embed|>\n";
/// Opens the answer.
pub const ASSISTANT: &str = "\n<|assistant|>\n";

/// What stands before a text to embed. Its tokens, `<s>` counted, are attended to and left out of
/// pooling.
///
/// ```
/// use gritlm_model::prompt::embed_prefix;
/// assert_eq!(embed_prefix(""), "<|embed|>\n");
/// assert_eq!(embed_prefix("Find it."), "<|user|>\nFind it.\n<|embed|>\n");
/// ```
pub fn embed_prefix(instruction: &str) -> String {
    if instruction.is_empty() { EMBED.into() } else { format!("{USER}{instruction}\n{EMBED}") }
}

/// A first user's turn, ready for the answer.
///
/// ```
/// assert_eq!(gritlm_model::prompt::user("Hi"), "<|user|>\nHi\n<|assistant|>\n");
/// ```
pub fn user(text: &str) -> String {
    format!("{USER}{text}{ASSISTANT}")
}

/// A user's turn after an answer that ended with `</s>`.
pub fn next_user(text: &str) -> String {
    format!("\n{USER}{text}{ASSISTANT}")
}

/// A conversation, ready for the next answer: what was asked and answered so far, and what is asked
/// now. `</s>` goes between the pieces as an id: text alone cannot end an answer.
///
/// ```
/// let pieces = gritlm_model::prompt::chat(&[("Hi", "Hello.")], "Bye");
/// assert_eq!(pieces[0], "<|user|>\nHi\n<|assistant|>\nHello.");
/// assert_eq!(pieces[1], "\n<|user|>\nBye\n<|assistant|>\n");
/// ```
pub fn chat<S: AsRef<str>>(past: &[(S, S)], text: &str) -> Vec<String> {
    let open = |index, text: &str| if index == 0 { user(text) } else { next_user(text) };
    let answered = |(i, (q, a)): (usize, &(S, S))| open(i, q.as_ref()) + a.as_ref();
    let mut pieces: Vec<String> = past.iter().enumerate().map(answered).collect();
    pieces.push(open(past.len(), text));
    pieces
}

/// The pointwise relevance question of the GRIT paper's reranking; the answer's first token is
/// "yes" or "no". Query and passage are cut to 600 characters, as there.
pub fn rerank(query: &str, passage: &str) -> String {
    let cut = |text: &str| text.chars().take(600).collect::<String>();
    format!(
        "{USER}Given a query and a passage, judge whether the passage is relevant to the query or \
         not.\n\nQuery: {}\nPassage: {}\n\nAnswer with yes if the passage is relevant to the query, \
         and no otherwise.{ASSISTANT}Answer:",
        cut(query),
        cut(passage)
    )
}
