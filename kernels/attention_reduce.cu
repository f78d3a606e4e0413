// attention_reduce: adds up the parts that the split form of `attention` made of a query vector,
// out = Σᵢ 2^(mᵢ − m) oᵢ / Σᵢ 2^(mᵢ − m) lᵢ with m = maxᵢ mᵢ.
// parts (tiles, kv_heads, 16, width + 4) f32: o, then m and l   out (rows, heads, head_dim) bf16.
//
// A block of four warps per vector and key/value head. Every warp finds m and the sum below, with a
// lane to a part; then each adds up every fourth part, four columns to a lane, and the warps' sums
// are added up through shared memory: always in the same order. Bound by latency.
// Twin: model/cpu/attention.rs. Params: attention.rs.
#include "common.cuh"

struct Reduce {
    Global<float> parts;
    Global<u32> words;
    Global<bf16> out;
    u32 group;
    u32 kv_heads;
    u32 head_dim;
    u32 width;
    u32 out_stride;
    u32 records;  // where they begin: row, first vector, end, first tile, tiles
    u32 rows;     // vectors of a record, at most
    u32 unused;
};

constexpr u32 WARPS = 4;

__device__ void reduce(const Reduce &p) {
    Shared<float> sums{0};  // (WARPS, width)
    Global<u32> record = p.words.from(p.records + 5 * (blockIdx.x / p.rows));
    u32 r = blockIdx.x % p.rows, head = blockIdx.y, m = record[1] + r;
    if (m >= record[2]) {
        return;
    }
    u32 count = record[4], stride = p.width + 4, step = p.kv_heads * 16 * stride;
    Global<float> parts = p.parts.from(u64(record[3]) * step + (head * 16 + r) * stride);

    // Some part has a key that the vector sees.
    float top = -infinity();
    for (u32 i = lane(); i < count; i += WARP) {
        top = fmaxf(top, parts[u64(i) * step + p.width]);
    }
    top = warp_max(top);
    float total = 0.0f;
    for (u32 i = lane(); i < count; i += WARP) {
        Vec8 stats = parts.load<Vec8>(u64(i) * step + p.width);
        total += exp2_approx(__uint_as_float(stats.word[0]) - top) * __uint_as_float(stats.word[1]);
    }
    total = warp_sum(total);

    for (u32 c = 4 * lane(); c < p.width; c += 4 * WARP) {
        float v[4] = {};
        for (u32 i = warp(); i < count; i += WARPS) {
            float weight = exp2_approx(parts[u64(i) * step + p.width] - top);
            Vec16 four = parts.load<Vec16>(u64(i) * step + c);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                v[k] += weight * __uint_as_float(four.word[k]);
            }
        }
        sums.store(warp() * p.width + c, Vec16{__float_as_uint(v[0]), __float_as_uint(v[1]),
                                               __float_as_uint(v[2]), __float_as_uint(v[3])});
    }
    __syncthreads();
    u64 at = u64(record[0] + m / p.group) * p.out_stride;
    at += (head * p.group + m % p.group) * p.head_dim;
    for (u32 c = threadIdx.x; c < p.head_dim; c += WARPS * WARP) {
        float v = 0.0f;
        for (u32 w = 0; w < WARPS; w++) {
            v += sums[w * p.width + c];
        }
        p.out.set(at + c, narrow(v / total));
    }
}

KERNEL(attention_reduce_parts, Reduce, 128, 8, reduce)
