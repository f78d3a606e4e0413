//! The interpreter as the emulator's driver calls it: modules and launches by pointers. The layouts
//! are those of `../driver.cpp`.

use crate::{Counts, Entry, Error, Global, Launch, parse};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::slice;
use std::sync::{Mutex, PoisonError};

/// Of each kernel that was launched.
static COUNTS: Mutex<BTreeMap<String, Counts>> = Mutex::new(BTreeMap::new());

/// Returns what each kernel has asked of the hardware since the last call.
pub fn counts() -> BTreeMap<String, Counts> {
    std::mem::take(&mut COUNTS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What the driver calls.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Hooks {
    open: unsafe extern "C" fn(text: *const c_char, problem: *mut *mut c_char) -> *mut c_void,
    entry: unsafe extern "C" fn(module: *const c_void, name: *const c_char) -> Found,
    launch: unsafe extern "C" fn(what: *const Request) -> *mut c_char,
    free: unsafe extern "C" fn(text: *mut c_char),
}

/// The functions of this file.
pub const HOOKS: Hooks = Hooks { open, entry, launch, free };

/// An entry point; null if there is none of the name.
#[derive(Debug)]
#[repr(C)]
pub struct Found {
    entry: *const c_void,
    threads: u32,
    params: u32,
}

/// A launch.
#[derive(Debug)]
#[repr(C)]
pub struct Request {
    entry: *const c_void,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    bytes: u32,
    params: *const u8,
    seed: u64,
    /// Writes where the allocation of an address begins and ends; false if there is none.
    allocation: unsafe extern "C" fn(at: u64, first: *mut u64, end: *mut u64) -> bool,
}

/// The driver's allocations.
struct Driver(unsafe extern "C" fn(at: u64, first: *mut u64, end: *mut u64) -> bool);

impl Global for Driver {
    fn allocation(&self, at: u64) -> Option<(u64, u64)> {
        let (mut first, mut end) = (0, 0);
        // SAFETY: the driver gives a function that writes two numbers.
        unsafe { (self.0)(at, &mut first, &mut end) }.then_some((first, end))
    }
}

fn text(of: String) -> *mut c_char {
    CString::new(of.replace('\0', " ")).unwrap_or_default().into_raw()
}

/// Takes a module apart; null, with the problem, if it cannot. It stays until the process ends.
unsafe extern "C" fn open(of: *const c_char, problem: *mut *mut c_char) -> *mut c_void {
    // SAFETY: the driver passes a text that ends with a zero.
    let of = unsafe { CStr::from_ptr(of) };
    match parse(&of.to_string_lossy()) {
        Ok(entries) => Box::into_raw(Box::new(entries)).cast(),
        Err(Error(found)) => {
            // SAFETY: the driver passes a place for the text.
            unsafe { *problem = text(found) };
            null_mut()
        }
    }
}

unsafe extern "C" fn entry(module: *const c_void, name: *const c_char) -> Found {
    // SAFETY: the driver passes what `open` has returned, and a text that ends with a zero.
    let (entries, name) = unsafe { (&*module.cast::<Vec<Entry>>(), CStr::from_ptr(name)) };
    match entries.iter().find(|entry| entry.name.as_bytes() == name.to_bytes()) {
        Some(entry) => Found {
            entry: (&raw const *entry).cast(),
            threads: entry.threads,
            params: entry.params as u32,
        },
        None => Found { entry: null(), threads: 0, params: 0 },
    }
}

/// Returns the fault of a launch; null if there is none.
unsafe extern "C" fn launch(what: *const Request) -> *mut c_char {
    // SAFETY: the driver passes a launch with an entry from above and that many bytes of
    // parameters.
    let (what, entry, params) = unsafe {
        let what = &*what;
        let params = slice::from_raw_parts(what.params, what.bytes as usize);
        (what, &*what.entry.cast::<Entry>(), params)
    };
    let launch = Launch {
        entry,
        grid: what.grid,
        block: what.block,
        shared: what.shared as usize,
        params,
        memory: &Driver(what.allocation),
        seed: what.seed,
    };
    match launch.run() {
        Ok(counts) => {
            let mut all = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
            *all.entry(entry.name.clone()).or_default() += counts;
            null_mut()
        }
        Err(Error(fault)) => text(fault),
    }
}

unsafe extern "C" fn free(of: *mut c_char) {
    // SAFETY: the driver passes a text from above, once.
    drop(unsafe { CString::from_raw(of) });
}
