//! Opens `store.sqlite` and turns SQLite's errors into the crate's.

use super::disk::{self, DATABASE};
use crate::{Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// How long a commit waits for a reader that notes what it used.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Converts SQLite's errors, adding the path of the database; `folder` is the store's.
pub(super) fn sql(folder: &Path) -> impl Fn(rusqlite::Error) -> Error {
    let path = folder.join(DATABASE);
    move |error| Error::Store { path: path.clone(), problem: error.to_string() }
}

/// Returns the error for data that is not as it was written.
pub(super) fn damaged(folder: &Path, what: impl Into<String>) -> Error {
    Error::Store { path: folder.join(DATABASE), problem: format!("damaged: {}", what.into()) }
}

/// Returns the error for a folder without a store.
pub(super) fn none(folder: &Path) -> Error {
    let problem = "there is no store; gritlm index makes one".into();
    Error::Store { path: folder.into(), problem }
}

/// Opens the database. With `create`, creates an empty one if there is none.
pub(super) fn connect(folder: &Path, create: bool) -> Result<Connection> {
    let path = folder.join(DATABASE);
    if !create && !path.exists() {
        return Err(none(folder));
    }
    for end in ["", "-wal", "-shm", "-journal"] {
        let path = folder.join(format!("{DATABASE}{end}"));
        disk::check_regular(&path).map_err(Error::io(&path))?;
    }
    // The store's folder may be a symbolic link, which SQLite would refuse just as links in the
    // folder, so the path is resolved first.
    let path = folder.canonicalize().map_err(Error::io(folder))?.join(DATABASE);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let mut db = Connection::open_with_flags(&path, flags).map_err(sql(folder))?;
    if !create && is_empty(&db).is_err_and(|e| is_read_only(&e)) && log_is_empty(folder) {
        // SQLite's write-ahead log needs a shared-memory file, which cannot be created in a
        // read-only folder. If the log is empty, that file is not needed.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let uri = immutable(&path);
        let open = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI);
        db = open.map_err(sql(folder))?;
    }
    let set = || -> rusqlite::Result<()> {
        db.busy_timeout(PATIENCE)?;
        db.pragma_update(None, "cell_size_check", true)?;
        db.pragma_update(None, "trusted_schema", false)?;
        if create {
            db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
            // Makes each commit durable when it returns.
            db.pragma_update(None, "synchronous", "full")?;
        }
        Ok(())
    };
    set().map_err(sql(folder))?;
    Ok(db)
}

fn is_read_only(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

fn log_is_empty(folder: &Path) -> bool {
    std::fs::metadata(folder.join(format!("{DATABASE}-wal"))).map_or(true, |m| m.len() == 0)
}

/// Returns the URI that opens a database as immutable.
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for c in path.to_string_lossy().chars() {
        match c {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            c => uri.push(c),
        }
    }
    uri + "?immutable=1"
}

/// Returns whether the database has no tables.
pub(super) fn is_empty(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}
