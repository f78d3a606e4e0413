// embed: x[r, :] = table[tokens[r], :].
// tokens (rows)   table (vocab, dim) bf16   x (rows, dim) f32.
//
// A thread per group of 8 columns (16 bytes of the table, 32 of x); grid (rows, groups / 256).
// Bound by memory: 6 · rows · dim bytes. Twin: model/cpu/embed.rs. Params: embed.rs.
#include "common.cuh"

struct Embed {
    Global<u32> tokens;
    Global<bf16> table;
    Global<float> x;
    u32 groups;
    u32 table_stride;
    u32 x_stride;
    u32 unused;
};

__device__ void embed(const Embed &p) {
    u32 group = blockIdx.y * blockDim.x + threadIdx.x;
    if (group >= p.groups) {
        return;
    }
    float v[8];
    load8(v, p.table, u64(p.tokens[blockIdx.x]) * p.table_stride + 8 * group);
    u64 to = u64(blockIdx.x) * p.x_stride + 8 * group;
    for (u32 half = 0; half < 8; half += 4) {
        Vec16 out;
        for (u32 j = 0; j < 4; j++) {
            out.word[j] = __float_as_uint(v[half + j]);
        }
        p.x.store<Vec16>(to + half, out);
    }
}

KERNEL(embed_rows, Embed, 256, 1, embed)
