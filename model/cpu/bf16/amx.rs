//! Products in bf16 by AMX: the tile unit of Intel's Xeons since Sapphire Rapids. This is the one place
//! of the CPU backend with inline assembly; the standard library's functions for it are not stable.
//!
//! A tile has 16 rows of 64 bytes. `tdpbf16ps` adds to each of 16 × 16 sums the products of 32 values of
//! bf16, in 16 cycles: 16 times what a core does with AVX-512 in f32. Here one operand is 16 rows of
//! weights as they are stored, the other 16 rows of activations as [`Rows`] has them. Four sums of
//! 2 × 2 tiles take 4 loads for 4 products; the loads take half of the time.

use super::{CHUNK, Kernel, Pair, Rows, SIDE, Sums};
use std::arch::asm;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// The tile unit, which this thread uses until it is dropped; others are not configured.
pub(super) struct Tiles(PhantomData<*const ()>);

/// What `ldtilecfg` reads: 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Config { palette: 1, start: 0, reserved: [0; 14], row_bytes, rows }
};

/// Returns whether this process may use the tile unit.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_amx() && permitted())
}

/// Returns whether the CPU has AMX's tiles and their products of bf16.
fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (tile, bf16) = (1 << 24, 1 << 22);
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (tile | bf16) == tile | bf16
}

/// Asks Linux for the 8 KiB of state, which a process has only if it asks.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes only which instructions this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

impl Tiles {
    /// Configures the tiles of this thread; `None` where there are none.
    pub(super) fn new() -> Option<Self> {
        if !available() {
            return None;
        }
        // SAFETY: the CPU has the instruction and the system lets us use it; the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
        Some(Self(PhantomData))
    }
}

impl Kernel for Tiles {
    #[inline(always)]
    fn multiply(&self, w: &[&[Pair]; SIDE], x: [Rows<'_>; 2], sums: &mut Sums) {
        let pairs = x[0].len();
        let chunks = 2 * pairs / CHUNK;
        // The tiles read from addresses that are computed.
        let addresses = w.map(|row| row.as_ptr().expose_provenance());
        let stride = addresses[1].wrapping_sub(addresses[0]);
        for (row, address) in addresses.iter().enumerate() {
            let expected = addresses[0].wrapping_add(row.wrapping_mul(stride));
            assert!(*address == expected && w[row].len() == pairs, "weight rows");
        }
        assert!(chunks > 0 && x[1].len() == pairs && pairs * 2 == chunks * CHUNK, "whole chunks");
        // SAFETY: `new` has configured the tiles. They read 64 bytes per chunk of each weight row and a
        // KiB per chunk of `x`, whose lengths and addresses are checked above, and write all of `sums`.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{w0} + {stride}]",
                "tileloadd tmm6, [{x0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{x1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{w1} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {w0}, 64",
                "add {w1}, 64",
                "add {x0}, 1024",
                "add {x1}, 1024",
                "dec {chunks}",
                "jnz 2b",
                // A row of `sums` has both groups.
                "lea {x0}, [{line} * 2]",
                "tilestored [{sums} + {x0}], tmm0",
                "tilestored [{sums} + {x0} + 64], tmm1",
                "tilestored [{sums} + {x0} + 2048], tmm2",
                "tilestored [{sums} + {x0} + 2112], tmm3",
                w0 = inout(reg) addresses[0] => _,
                w1 = inout(reg) addresses[16] => _,
                stride = in(reg) stride,
                x0 = inout(reg) x[0].as_ptr() => _,
                x1 = inout(reg) x[1].as_ptr() => _,
                line = in(reg) 64usize,
                chunks = inout(reg) chunks => _,
                sums = in(reg) sums.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as in `new`. Tiles in use would slow every switch of threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
