//! A folder of compiled kernels, made where NVRTC is (`gritlm kernels build`) and loaded elsewhere.

use crate::compile::{Nvrtc, Usage};
use crate::source::{self, Source};
use gritlm_model::files::keep;
use gritlm_model::ops::{DeviceError, Result};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The file that records what the other files were built from.
const MANIFEST: &str = "kernels.json";

/// Returns the file name of a compiled source.
fn file_name(stem: &str, arch: &str) -> String {
    format!("{stem}.{arch}.cubin")
}

/// Names of files, each with the [`source::key`] of what it was built from.
type Manifest = BTreeMap<String, String>;

fn manifest(folder: &Path) -> Result<Manifest> {
    let file = folder.join(MANIFEST);
    let wrong = |problem: String| DeviceError(format!("{}: {problem}", file.display()));
    let bytes = std::fs::read(&file).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| wrong(format!("expected files and keys: {e}")))
}

/// A source compiled by [`build`].
#[derive(Clone, Debug)]
pub struct Built {
    /// Architecture it was compiled for.
    pub arch: String,
    /// File stem of the source.
    pub source: &'static str,
    /// Resources that each of its entry points uses.
    pub usage: Vec<Usage>,
    /// Size of the cubin in bytes.
    pub bytes: usize,
}

/// Compiles all sources for these architectures into a folder that [`cubins`](crate::compile::cubins) can load.
/// `progress` is called from any thread with the number of finished sources and the total; its
/// error stops the build.
///
/// # Errors
/// When there is no NVRTC that supports the architectures, the folder cannot be written, a source
/// does not compile, or `progress` fails. NVRTC and the architectures are checked, and the folder
/// is created, before anything is compiled.
pub fn build<E: From<DeviceError> + Send>(
    archs: &[String],
    folder: &Path,
    progress: impl Fn(u64, u64) -> std::result::Result<(), E> + Sync,
) -> std::result::Result<Vec<Built>, E> {
    let nvrtc = Nvrtc::open()?;
    archs.iter().try_for_each(|arch| nvrtc.check(arch))?;
    let cannot = |e: std::io::Error| DeviceError(format!("{}: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(cannot)?;
    let of_arch = |arch| source::all().iter().map(move |source| (arch, source));
    let wanted: Vec<(&String, &Source)> = archs.iter().flat_map(of_arch).collect();
    let (done, all) = (AtomicU64::new(0), wanted.len() as u64);
    let compiled = wanted.into_par_iter().map(|(arch, source)| {
        let compiled = nvrtc.compile(source, arch)?;
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, all)?;
        Ok((source, arch.as_str(), compiled))
    });
    let compiled = compiled.collect::<std::result::Result<Vec<_>, E>>()?;
    let files: Vec<_> = compiled.iter().map(|(s, arch, c)| (*s, *arch, &c.cubin[..])).collect();
    save(folder, &files)?;
    let built = compiled.into_iter().map(|(source, arch, compiled)| Built {
        arch: arch.into(),
        source: source.stem,
        bytes: compiled.cubin.len(),
        usage: compiled.usage,
    });
    Ok(built.collect())
}

/// Writes compiled sources to a folder that [`cubins`](crate::compile::cubins) can load. Cubins for other architectures
/// stay in the folder.
///
/// # Errors
/// When the folder cannot be written.
pub fn save(folder: &Path, kernels: &[(&Source, &str, &[u8])]) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let file = folder.join(name);
        keep(&file, bytes).map_err(|e| DeviceError(format!("{}: {e}", file.display())))
    };
    // A manifest that is missing or damaged is replaced.
    let mut manifest = manifest(folder).unwrap_or_default();
    for (source, arch, cubin) in kernels {
        let name = file_name(source.stem, arch);
        write(&name, cubin)?;
        manifest.insert(name, source::key(source, arch));
    }
    let text = serde_json::to_string_pretty(&manifest);
    write(MANIFEST, text.map_err(|e| DeviceError(e.to_string()))?.as_bytes())
}

/// Reads what [`save`] has written, for the first of the architectures that the folder has.
pub(crate) fn load(folder: &Path, archs: &[String]) -> Result<HashMap<&'static str, Vec<u8>>> {
    let manifest = manifest(folder)?;
    let has = |arch: &&String| {
        source::all().iter().any(|s| manifest.contains_key(&file_name(s.stem, arch)))
    };
    let Some(arch) = archs.iter().find(has) else {
        return Err(DeviceError(format!(
            "{}: expected kernels for {}, found none; make them with `gritlm kernels build --arch \
             {} --output DIR`",
            folder.join(MANIFEST).display(),
            archs.join(" or "),
            archs[0]
        )));
    };
    let read = |source: &'static Source| {
        let name = file_name(source.stem, arch);
        let file = folder.join(&name);
        if manifest.get(&name) != Some(&source::key(source, arch)) {
            return Err(DeviceError(format!(
                "{}: expected kernels of this version of the program, found those of another; make \
                 them again with `gritlm kernels build --arch {arch} --output DIR`",
                file.display()
            )));
        }
        let cubin = std::fs::read(&file);
        let cubin = cubin.map_err(|e| DeviceError(format!("{}: {e}", file.display())))?;
        Ok((source.stem, cubin))
    };
    source::all().iter().map(read).collect()
}
