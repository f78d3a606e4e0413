//! The part of the driver API that the tests of the emulator call.

use super::{Alone, Emulator};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::{from_ref, null_mut};

pub(super) type Result = std::result::Result<(), c_int>;

pub(super) fn said(code: c_int) -> Result {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// The driver API as far as these tests need it.
pub(super) struct Raw {
    pub(super) emulator: &'static Emulator,
    module: *mut c_void,
    pub(super) stream: *mut c_void,
    _alone: Alone,
}

/// Calls a function of the driver API; all arguments must have its types.
macro_rules! call {
    ($raw:expr, $name:ident($($arg:expr => $type:ty),*)) => {{
        // SAFETY: the types are those of the driver API, pointers point at what it expects.
        said(unsafe {
            $raw.symbol::<unsafe extern "C" fn($($type),*) -> c_int>(stringify!($name))($($arg),*)
        })
    }};
}
pub(super) use call;

impl Raw {
    pub(super) fn open(test: &str, cubin: &[u8]) -> Option<Self> {
        let alone = Alone::install(test)?;
        let emulator = alone.0;
        let (mut context, mut module, mut stream) = (null_mut(), null_mut(), null_mut());
        call!(emulator, cuDevicePrimaryCtxRetain(&mut context => *mut *mut c_void, 0 => c_int))
            .unwrap();
        call!(emulator, cuCtxSetCurrent(context => *mut c_void)).unwrap();
        call!(emulator, cuModuleLoadData(&mut module => *mut *mut c_void,
            cubin.as_ptr() => *const u8))
        .unwrap();
        call!(emulator, cuStreamCreate(&mut stream => *mut *mut c_void, 0 => c_uint)).unwrap();
        Some(Self { emulator, module, stream, _alone: alone })
    }

    pub(super) fn function(&self, entry: &str) -> std::result::Result<*mut c_void, c_int> {
        let (entry, mut function) = (CString::new(entry).unwrap(), null_mut());
        call!(self.emulator, cuModuleGetFunction(&mut function => *mut *mut c_void,
            self.module => *mut c_void, entry.as_ptr() => *const c_char))?;
        Ok(function)
    }

    /// Launches with one parameter struct, without waiting.
    pub(super) fn start<P>(
        &self,
        entry: &str,
        blocks: u32,
        threads: u32,
        shared: u32,
        params: &P,
    ) -> Result {
        let mut params = [from_ref(params).cast::<c_void>().cast_mut()];
        call!(self.emulator, cuLaunchKernel(self.function(entry)? => *mut c_void,
            blocks => c_uint, 1 => c_uint, 1 => c_uint, threads => c_uint, 1 => c_uint, 1 => c_uint,
            shared => c_uint, self.stream => *mut c_void, params.as_mut_ptr() => *mut *mut c_void,
            null_mut() => *mut *mut c_void))
    }

    pub(super) fn wait(&self) -> Result {
        call!(self.emulator, cuStreamSynchronize(self.stream => *mut c_void))
    }

    pub(super) fn buffer<T>(&self, values: &[T]) -> u64 {
        let (mut at, bytes) = (0, size_of_val(values));
        call!(self.emulator, cuMemAlloc_v2(&mut at => *mut u64, bytes => usize)).unwrap();
        call!(self.emulator, cuMemcpyHtoD_v2(at => u64, values.as_ptr() => *const T,
            bytes => usize))
        .unwrap();
        at
    }

    pub(super) fn read<T>(&self, at: u64, values: &mut [T]) {
        call!(self.emulator, cuMemcpyDtoH_v2(values.as_mut_ptr() => *mut T, at => u64,
            size_of_val(values) => usize))
        .unwrap();
    }

    pub(super) fn free(&self, at: u64) {
        call!(self.emulator, cuMemFree_v2(at => u64)).unwrap();
    }
}
