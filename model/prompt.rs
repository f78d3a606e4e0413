//! GritLM's prompt formats.
//!
//! The tags are plain text, not special tokens; `<s>` goes in front as an id (see
//! [`crate::tokenizer`]). GritLM was trained on exactly these strings.

/// Opens the user's turn.
pub const USER: &str = "<|user|>\n";
/// Opens the text to embed. The prompt begins with it if there is no instruction.
pub const EMBED: &str = "<|embed|>\n";
/// Opens the answer.
pub const ASSISTANT: &str = "\n<|assistant|>\n";

/// Returns the prefix of a text to embed. Its tokens and `<s>` are attended to, but left out of
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

/// Splits a whole embedding prompt into its instruction, which may be empty, and its text.
/// Returns `None` where the string is not such a prompt. A spelled-out `<s>` in front is ignored.
///
/// ```
/// use gritlm_model::prompt::embed_parts;
/// assert_eq!(embed_parts("<|user|>\nFind it.\n<|embed|>\nchess"), Some(("Find it.", "chess")));
/// assert_eq!(embed_parts("<s><|embed|>\nchess"), Some(("", "chess")));
/// assert_eq!(embed_parts("chess"), None);
/// ```
pub fn embed_parts(prompt: &str) -> Option<(&str, &str)> {
    let prompt = prompt.strip_prefix("<s>").unwrap_or(prompt);
    match prompt.strip_prefix(EMBED) {
        Some(text) => Some(("", text)),
        None => prompt.strip_prefix(USER)?.split_once(EMBED).and_then(|(instruction, text)| {
            Some((instruction.strip_suffix('\n').filter(|i| !i.is_empty())?, text))
        }),
    }
}

/// Returns the first user turn, ready for the answer.
///
/// ```
/// assert_eq!(gritlm_model::prompt::user("Hi"), "<|user|>\nHi\n<|assistant|>\n");
/// ```
pub fn user(text: &str) -> String {
    format!("{USER}{text}{ASSISTANT}")
}

/// Returns a user turn that follows an answer ended by `</s>`, or an embedding pass.
pub fn next_user(text: &str) -> String {
    format!("\n{USER}{text}{ASSISTANT}")
}

/// Returns a conversation, ready for the next answer: the past (question, answer) pairs and the
/// question `text`, as pieces. The caller puts `</s>` between the pieces as an id, because text
/// alone cannot end an answer.
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

/// Jinja template of the conversation that [`chat`] builds, for clients that render prompts
/// themselves. A system message becomes part of the user's turn, as in `gritlm serve`.
pub const CHAT_TEMPLATE: &str = "\
{{- bos_token -}}
{%- set turn = namespace(open=false) -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '\n<|assistant|>\n' + message['content'] + eos_token -}}
{%- set turn.open = false -%}
{%- else -%}
{{- '\n\n' if turn.open else ('<|user|>\n' if loop.first else '\n<|user|>\n') -}}
{{- message['content'] -}}
{%- set turn.open = true -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '\n<|assistant|>\n' -}}
{%- endif -%}";

/// Returns the pointwise relevance question of the GRIT paper's reranking; the answer's first
/// token is "yes" or "no". Query and passage are cut to 600 characters, as in the paper.
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

/// Start of an answer that keeps it short, as in the paper's runs.
pub const ANSWER_IS: &str = "The answer is";

/// Question after a query and then its documents.
const QUERY_FIRST: &str = "Optionally using the prior context answer the query prior to it";
/// Question after documents and then the query.
const DOCUMENTS_FIRST: &str =
    "Answer the prior query while optionally using the context prior to it";

/// Returns a document as prompts and embeddings contain it: the title, if any, in front of the
/// text.
///
/// ```
/// use gritlm_model::prompt::document;
/// assert_eq!(document("Chess", "A board game."), "Chess A board game.");
/// assert_eq!(document("", "A board game."), "A board game.");
/// ```
pub fn document(title: &str, text: &str) -> String {
    if title.is_empty() { text.into() } else { format!("{title} {text}") }
}

/// Joins documents with empty lines between them. The paper uses only one document.
fn together(documents: &[impl AsRef<str>]) -> String {
    let texts: Vec<&str> = documents.iter().map(AsRef::as_ref).collect();
    texts.join("\n\n")
}

/// Returns a RAG prompt without caches: the query, then the documents found for it.
///
/// ```
/// assert_eq!(
///     gritlm_model::prompt::rag_query_doc("Who?", &["Chess A game."]),
///     "<|user|>\nWho?\n\nChess A game.\n\nOptionally using the prior context answer the query \
///      prior to it\n<|assistant|>\n"
/// );
/// ```
pub fn rag_query_doc(query: &str, documents: &[impl AsRef<str>]) -> String {
    user(&format!("{query}\n\n{}\n\n{QUERY_FIRST}", together(documents)))
}

/// Returns a RAG prompt without caches: the documents found for a query, then the query.
///
/// ```
/// assert_eq!(
///     gritlm_model::prompt::rag_doc_query(&["Chess A game."], "Who?"),
///     "<|user|>\nChess A game.\n\nWho?\n\nAnswer the prior query while optionally using the \
///      context prior to it\n<|assistant|>\n"
/// );
/// ```
pub fn rag_doc_query(documents: &[impl AsRef<str>], query: &str) -> String {
    user(&format!("{}\n\n{query}\n\n{DOCUMENTS_FIRST}", together(documents)))
}

/// Returns the prompt that follows a query whose embedding pass is in the KV cache.
///
/// ```
/// assert_eq!(
///     gritlm_model::prompt::rag_after_query(&["Chess A game."]),
///     "\n<|user|>\nChess A game.\n\nOptionally using the prior context answer the query prior to \
///      it\n<|assistant|>\n"
/// );
/// ```
pub fn rag_after_query(documents: &[impl AsRef<str>]) -> String {
    next_user(&format!("{}\n\n{QUERY_FIRST}", together(documents)))
}

/// Returns the prompt that follows documents whose embedding passes are in the KV cache.
///
/// ```
/// assert_eq!(
///     gritlm_model::prompt::rag_after_doc("Who?"),
///     "\n<|user|>\nWho?\n\nAnswer the prior query while optionally using the context prior to \
///      it\n<|assistant|>\n"
/// );
/// ```
pub fn rag_after_doc(query: &str) -> String {
    next_user(&format!("{query}\n\n{DOCUMENTS_FIRST}"))
}

/// Returns the prompt that follows a query and then documents, both in the KV cache.
///
/// ```
/// assert_eq!(
///     gritlm_model::prompt::rag_after_query_doc(),
///     "\n<|user|>\nOptionally using the prior context answer the query prior to \
///      it\n<|assistant|>\n"
/// );
/// ```
pub fn rag_after_query_doc() -> String {
    next_user(QUERY_FIRST)
}

/// Returns the prompt that follows documents and then a query, both in the KV cache.
///
/// ```
/// assert_eq!(
///     gritlm_model::prompt::rag_after_doc_query(),
///     "\n<|user|>\nAnswer the prior query while optionally using the context prior to \
///      it\n<|assistant|>\n"
/// );
/// ```
pub fn rag_after_doc_query() -> String {
    next_user(DOCUMENTS_FIRST)
}
