//! Tells the processor what will be read soon.

/// Bytes ahead of those that are taken apart. A block takes some thirty instructions a row or more, so
/// the processor itself looks only a few blocks ahead: on a Sapphire Rapids, Q4_0 in 8 bits read 8 GB/s
/// without it where it reads 16. From 1 KiB to 4 KiB it gained a tenth, from there to 8 KiB nothing.
pub(super) const AHEAD: usize = 4096;

/// Returns whether asking pays where blocks take the fewest instructions, those of products in 8 bits.
/// A Zen 5 then looks far enough ahead by itself: it reads Q8_0 at 39 GB/s, and at 25 when it is asked.
#[inline(always)]
pub(super) fn is_needed() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        use std::sync::LazyLock;
        // The last third of "GenuineIntel".
        static INTEL: LazyLock<bool> =
            LazyLock::new(|| __cpuid(0).ecx == u32::from_le_bytes(*b"ntel"));
        *INTEL
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Asks the processor to load the cache line of byte `at` of `bytes`, which may lie behind the end,
/// into the second-level cache: it has some 48 lines under way where the first level has 16, which at
/// 90 ns a line are 11 GB/s.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction reads nothing that the program could see and does not fault, whatever
    // the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, at);
}
