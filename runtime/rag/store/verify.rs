//! Reads all data of a store and compares it with its checksums.

use super::content_hash;
use super::database::{self, sql};
use super::disk::{self, DATABASE, HEAD};
use super::reader::Reader;
use super::rows::{DocumentRow, UseRow};
use super::tables::{self, Index, READS, Reads, get_meta};
use super::types::{Problem, Report};
use super::{folder_bytes_of, head};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// Reads every live byte of the store in `folder` and compares it with its checksums. It may run
/// while a writer is open. Bytes beyond the recorded ends, which a crash can leave, are not a
/// problem.
///
/// # Errors
/// When there is no store.
pub fn verify(folder: impl AsRef<Path>) -> Result<Report> {
    let folder = folder.as_ref();
    if !folder.join(DATABASE).exists() {
        return Err(database::none(folder));
    }
    let mut found = Found(Report::default());
    if let Err(problem) = head::read(folder) {
        found.add(HEAD, None, problem);
    }
    match Reader::open(folder) {
        Ok(reader) => {
            found.0.bytes += folder_bytes_of(folder, |name| name.starts_with(DATABASE))?;
            let documents = found.database(&reader);
            found.vectors(&reader, &documents);
            found.caches(&reader, &documents);
            found.graph(&reader);
        }
        Err(Error::Store { problem, .. }) => found.add(DATABASE, None, problem),
        Err(error) => return Err(error),
    }
    Ok(found.0)
}

/// Returns the problem of an error without the name of its file.
fn problem(error: Error) -> String {
    if let Error::Store { problem, .. } = error { problem } else { error.to_string() }
}

struct Found(Report);

impl Found {
    fn add(&mut self, file: impl Into<String>, document: Option<&String>, problem: String) {
        self.0.problems.push(Problem { file: file.into(), document: document.cloned(), problem });
    }

    /// Checks pages, rows and texts; returns the documents' paths by id.
    fn database(&mut self, reader: &Reader) -> HashMap<u64, String> {
        let (folder, db, index) = (reader.folder(), reader.db(), reader.index());
        let pages = || -> rusqlite::Result<Vec<String>> {
            let mut check = db.prepare("PRAGMA integrity_check")?;
            check.query_map([], |row| row.get(0))?.collect()
        };
        match pages() {
            Ok(lines) => {
                for line in lines.into_iter().filter(|line| line != "ok") {
                    self.add(DATABASE, None, line.replace('\n', "; "));
                }
            }
            Err(e) => self.add(DATABASE, None, problem(sql(folder)(e))),
        }
        let mut paths = HashMap::new();
        // Documents are read one by one, so that a damaged row does not hide others.
        let ids = || -> rusqlite::Result<Vec<i64>> {
            let mut all = db.prepare("SELECT id FROM documents NOT INDEXED ORDER BY id")?;
            all.query_map([], |row| row.get(0))?.collect()
        };
        match ids() {
            Ok(ids) => {
                for id in ids {
                    match DocumentRow::select(&db, folder, "WHERE id = ?1", [id]) {
                        Ok(rows) => paths.extend(rows.into_iter().map(|row| (row.id, row.path))),
                        Err(e) => self.add(DATABASE, None, problem(e)),
                    }
                }
            }
            Err(e) => self.add(DATABASE, None, problem(sql(folder)(e))),
        }
        self.0.documents = paths.len() as u64;
        for row in &index.chunks {
            if let Err(e) = tables::text(&db, folder, row) {
                self.add(DATABASE, paths.get(&row.document), problem(e));
            }
        }
        if let Err(e) = get_meta::<Reads>(&db, folder, READS) {
            self.add(DATABASE, None, problem(e));
        }
        for row in index.chunks.iter().filter(|row| row.kv.is_some()) {
            let uses = UseRow::of(&db, row.id);
            if !matches!(uses, Ok(Some((_, true)))) {
                let what = format!("damaged: the row of uses of chunk {}", row.id);
                self.add(DATABASE, paths.get(&row.document), what);
            }
        }
        paths
    }

    fn vectors(&mut self, reader: &Reader, documents: &HashMap<u64, String>) {
        let Index { identity, state, chunks, .. } = reader.index();
        let name = disk::vectors(state.generation);
        let Some(file) = reader.vectors_file() else {
            return self.add(name, None, disk::MISSING.into());
        };
        let mut row = vec![0; identity.vector_bytes()];
        for chunk in chunks {
            let offset = chunk.slot.saturating_mul(row.len() as u64);
            let read = disk::read_at(file, &mut row, offset);
            let wrong = match read {
                Err(e) => Some(e.to_string()),
                Ok(()) => (content_hash(&row) != chunk.vector_checksum).then(|| "checksum".into()),
            };
            if let Some(wrong) = wrong {
                let problem = format!("vector of chunk {}: {wrong}", chunk.id);
                self.add(&name, documents.get(&chunk.document), problem);
            }
            self.0.chunks += 1;
            self.0.bytes += row.len() as u64;
        }
    }

    fn caches(&mut self, reader: &Reader, documents: &HashMap<u64, String>) {
        let chunks = reader.index().chunks.iter();
        for (id, document, place) in chunks.filter_map(|c| Some((c.id, c.document, c.kv?))) {
            if let Err(error) = reader.load(id) {
                let document = documents.get(&document);
                self.add(disk::segment(place.segment), document, problem(error));
            }
            self.0.cached += 1;
            self.0.bytes += place.bytes;
        }
    }

    fn graph(&mut self, reader: &Reader) {
        let Some(graph) = reader.index().state.graph else { return };
        if let Err(problem) = graph.read(reader.graph_file(), reader.identity().dim) {
            self.add(disk::graph(graph.generation), None, problem);
        }
        self.0.bytes = self.0.bytes.saturating_add(graph.bytes);
    }
}
