//! A hash that is the same in every version of this program, for what is kept on disk.

/// Returns the 128-bit FNV-1a hash of bytes.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u128 {
    bytes.into_iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul((1 << 88) + 0x13b)
    })
}
