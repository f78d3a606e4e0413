//! Documents, as `gritlm index` reads them.

use std::sync::LazyLock;
use tempfile::TempDir;

/// Files are written here, one after the other.
static FOLDER: LazyLock<TempDir> = LazyLock::new(super::folder);

/// A document; the first byte says of what format.
pub(super) fn read(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let extension = match kind {
        b'h' => "html",
        b'j' => "jsonl",
        b'm' => "md",
        b'p' => "pdf",
        _ => "txt",
    };
    let path = FOLDER.path().join(format!("document.{extension}"));
    std::fs::write(&path, bytes).expect("a file");
    let (documents, problems) = gritlm_rag::read(&path);
    for document in documents {
        assert!(!document.title.contains('\n'), "{:?}", document.title);
        assert!(!document.text.contains('\r'), "{:?}", document.text);
    }
    for problem in problems {
        assert!(!problem.is_empty());
    }
    let _ = std::fs::remove_file(path);
}
