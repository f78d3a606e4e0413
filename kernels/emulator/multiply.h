// multiply: what the operands of a wgmma are, and their product.
#pragma once

#include "async.h"

namespace emulator {

constexpr u32 ROWS = 64, DEPTH = 16, ROW = 128;  // of a product; bytes of a row of a tile

// What a descriptor says. Sources: PTX ISA, "Matrix descriptor format", and CUTLASS,
// include/cute/arch/mma_sm90_desc.hpp (the fields) and include/cute/atom/mma_traits_sm90_gmma.hpp,
// make_gmma_desc (the canonical layouts B128, in units of T = 8 elements):
//   summed side by side (K-major):  ((8, m), (T, 2)) : ((8T, stride), (1, T)), the lead unused;
//   summed across (MN-major):       ((T, 8, m), (8, k)) : ((1, T, lead), (8T, stride)).
// Bits 4-6 of the address that comes out are exchanged by bits 7-9, as TMA does.
struct Operand {
    u32 start, lead, stride;

    Operand(u64 descriptor, const char *name)
        : start(u32(descriptor & 0x3fff) << 4), lead(u32(descriptor >> 16 & 0x3fff) << 4),
          stride(u32(descriptor >> 32 & 0x3fff) << 4) {
        if (descriptor >> 62 != 1) {
            fault("wgmma with %s of layout %llu: the emulator knows 1, swizzled by 128 bytes", name,
                  descriptor >> 62);
        }
        if (descriptor >> 49 & 7 || start >> 7 & 7 || start % UNIT) {
            fault("wgmma with %s at %u of shared memory: tiles begin at a multiple of 1024, and 16 "
                  "columns at one of 32",
                  name, start);
        }
    }
    u32 swizzled(u32 at) const { return at ^ (at >> 7 & 7) << 4; }
    // The address of 8 elements of row `r` that are summed over, from k on.
    u32 side_by_side(u32 r, u32 k) const {
        return swizzled(start + r / 8 * stride + r % 8 * ROW + 2 * k);
    }
    // The address of 8 columns of row `k`, from n on.
    u32 across(u32 k, u32 n) const {
        return swizzled(start + n / 64 * lead + n % 64 * 2 + k % 8 * ROW + k / 8 * stride);
    }
};

inline void widen(float *to, const u16 *from, u32 count) {
    for (u32 i = 0; i < count; i++) {
        u32 bits = u32(from[i]) << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

// Does a product: its operands are read now.
void compute(const Block &block, Group &group, const Product &product);

}  // namespace emulator
