// attention: out = softmax(q kᵀ / √head_dim + mask) v over the KV pages, one pass, no score matrix.
// q, out (rows, heads, head_dim) bf16   keys, values (pages, kv_heads, PAGE, width) bf16, one layer.
//
// The query heads of one key/value head are packed with the query tokens into one list of vectors,
// m = token · group + head, so that they share every key and value that is loaded. A block of four
// warps has one tile of the batch's list (tiles.rs) and one key/value head; it walks the tile's
// keys, BLOCK at a time, with the online softmax: scores (mma.sync), the largest so far, weights
// 2^(score − largest) rounded to bf16, weighted values (mma.sync) into f32 registers.
// * Prefill: the warps split the vectors, 32 each (with 16, the tensor cores would wait for
//   ldmatrix: every warp reads all keys and values).
// * SPLIT: 16 vectors, and the warps split the keys of each block; tiles cover stretches of keys.
//   Each block leaves its sums in `parts`; of those that have the same vectors, the last one to come
//   adds all of them up, out = Σᵢ 2^(mᵢ − m) oᵢ / Σᵢ 2^(mᵢ − m) lᵢ with m = maxᵢ mᵢ, in the order of
//   the keys: whichever is last, the bits are the same.
// Blocks of keys and of values take turns in a ring that cp.async fills RING − 1 ahead. Rows in
// shared memory are D columns, the 16-byte chunks of row r swapped by xor r % 8, so that neither
// copies nor ldmatrix meet bank conflicts. What lies beyond a head's width or a tile's last key
// becomes 0 there: pages may hold NaN. MASK is compiled in; blocks that no vector sees are not in
// the tile, and only those that some vector sees a part of are compared key by key.
// Bound by arithmetic with many vectors, by memory when decoding. Hopper's own form of many vectors
// is in attention_hopper.cuh. Twin: model/cpu/attention.rs. Params: attention.rs.
#include "attention.cuh"
#include "attention_hopper.cuh"

// Scores of the warp's vectors, from row `row` on, and its keys, from `key` on.
template <class F>
__device__ __forceinline__ void multiply_keys(float (&s)[F::M][F::N][4], Shared<bf16> q, u32 row,
                                              Shared<bf16> keys, u32 key) {
#pragma unroll
    for (u32 m = 0; m < F::M; m++) {
#pragma unroll
        for (u32 n = 0; n < F::N; n++) {
            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
        }
    }
    u32 l = lane();
    // Not unrolled wholly: the compiler would keep all of its addresses in registers, and spill others.
    // By two rather than four the scheduler finds 14 % in `both` (predicted); where keys are split it
    // has nothing to find.
    constexpr u32 AT_ONCE = F::SPLIT ? 4 : 2;
#pragma unroll AT_ONCE
    for (u32 d = 0; d < F::C; d += 2) {
        u32 a[F::M][4];
#pragma unroll
        for (u32 m = 0; m < F::M; m++) {
            ldmatrix4(a[m], q, place<F::D>(row + 16 * m + l % 16, d + l / 16));
        }
#pragma unroll
        for (u32 n = 0; n < F::N; n += 2) {
            u32 b[4];
            ldmatrix4(b, keys, place<F::D>(key + 8 * n + l / 16 * 8 + l % 8, d + l / 8 % 2));
#pragma unroll
            for (u32 m = 0; m < F::M; m++) {
                mma16x8x16(s[m][n], a[m], b[0], b[1]);
                mma16x8x16(s[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// o += weights · values, the weights rounded to bf16.
template <class F>
__device__ __forceinline__ void add_values(float (&o)[F::M][F::C][4],
                                           const float (&s)[F::M][F::N][4], Shared<bf16> values,
                                           u32 key) {
    u32 l = lane();
#pragma unroll
    for (u32 n = 0; n < F::N; n += 2) {
        // Two tiles of scores lie in registers as one of a product's left side does.
        u32 a[F::M][4];
#pragma unroll
        for (u32 m = 0; m < F::M; m++) {
            a[m][0] = narrow2(s[m][n][0], s[m][n][1]);
            a[m][1] = narrow2(s[m][n][2], s[m][n][3]);
            a[m][2] = narrow2(s[m][n + 1][0], s[m][n + 1][1]);
            a[m][3] = narrow2(s[m][n + 1][2], s[m][n + 1][3]);
        }
#pragma unroll
        for (u32 d = 0; d < F::C; d += 2) {
            u32 b[4];
            ldmatrix4_trans(b, values, place<F::D>(key + 8 * n + l % 16, d + l / 16));
#pragma unroll
            for (u32 m = 0; m < F::M; m++) {
                mma16x8x16(o[m][d], a[m], b[0], b[1]);
                mma16x8x16(o[m][d + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// −∞ for what a vector does not see. `row`, `key`: of this lane's first score. But for SPLIT, the tile
// is read again and positions are computed again: there are no registers to keep them in.
template <class F>
__device__ __forceinline__ void mask(float (&s)[F::M][F::N][4], const AttentionParams &p,
                                     const Tile &kept, u32 row, u32 key) {
    Tile tile = F::SPLIT ? kept : tile_at(p);
#pragma unroll
    for (u32 m = 0; m < F::M; m++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 vector = min(tile.first + row + 16 * m + 8 * half, tile.end - 1);
            Keys keys = seen<F>(tile, tile.past + vector / p.group);
            u32 count = keys.end - min(keys.first, keys.end);
#pragma unroll
            for (u32 n = 0; n < F::N; n++) {
                // Below the first the difference wraps round.
                if (key + 8 * n - keys.first >= count) {
                    s[m][n][2 * half] = -infinity();
                }
                if (key + 8 * n + 1 - keys.first >= count) {
                    s[m][n][2 * half + 1] = -infinity();
                }
            }
        }
    }
}

// Scores to weights; what was added up so far is scaled down where a larger score has come.
// `largest` is in powers of two, `sum` of this lane's keys only.
template <class F>
__device__ __forceinline__ void online_softmax(float (&s)[F::M][F::N][4], float (&o)[F::M][F::C][4],
                                       float (&largest)[F::M][2], float (&sum)[F::M][2],
                                       float scale) {
#pragma unroll
    for (u32 m = 0; m < F::M; m++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float top = -infinity();
#pragma unroll
            for (u32 n = 0; n < F::N; n++) {
                top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            }
            top = fmaxf(largest[m][half], quad_max(top) * scale);
            float base = base_of(top);
            float shrink = exp2_approx(largest[m][half] - base);
            largest[m][half] = top;
            sum[m][half] *= shrink;
#pragma unroll
            for (u32 n = 0; n < F::N; n++) {
#pragma unroll
                for (u32 i = 2 * half; i < 2 * half + 2; i++) {
                    s[m][n][i] = exp2_approx(s[m][n][i] * scale - base);
                    sum[m][half] += s[m][n][i];
                }
            }
#pragma unroll
            for (u32 d = 0; d < F::C; d++) {
                o[m][d][2 * half] *= shrink;
                o[m][d][2 * half + 1] *= shrink;
            }
        }
    }
}

// Writes the warp's rows, from `row` on, by way of its queries' place.
template <class F>
__device__ __forceinline__ void write_rows(const AttentionParams &p, const float (&o)[F::M][F::C][4],
                                           const float (&sum)[F::M][2], Shared<bf16> rows,
                                           u32 row) {
    Tile tile = tile_at(p);
    u32 g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (u32 m = 0; m < F::M; m++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float share = 1.0f / quad_sum(sum[m][half]);
#pragma unroll
            for (u32 d = 0; d < F::C; d++) {
                u32 pair = narrow2(o[m][d][2 * half] * share, o[m][d][2 * half + 1] * share);
                rows.store<u32>(place<F::D>(row + 16 * m + 8 * half + g, d) + 2 * t, pair);
            }
        }
    }
    __syncwarp();
    for (u32 i = lane(); i < 16 * F::M * F::C; i += WARP) {
        u32 from = row + i / F::C, c = i % F::C, m = tile.first + from;
        if (m >= tile.end || 8 * c >= p.head_dim) {
            continue;
        }
        u64 at = vector_at(p, tile, m, p.out_stride) + 8 * c;
        if (p.head_dim % 8 == 0) {
            p.out.store(at, rows.load<Vec16>(place<F::D>(from, c)));
            continue;
        }
        for (u32 d = 0; d < 8 && 8 * c + d < p.head_dim; d++) {
            p.out.set(at + d, rows[place<F::D>(from, c) + d]);
        }
    }
}

// Adds up what the warps have of the same vectors, and writes it as a part.
template <class F>
__device__ __forceinline__ void write_part(const AttentionParams &p, const Tile &tile,
                                           const float (&o)[F::M][F::C][4],
                                           const float (&largest)[F::M][2],
                                           const float (&sum)[F::M][2]) {
    constexpr u32 STRIDE = F::D + 8;  // eight rows begin in different banks
    Shared<float> merged{0}, stats{F::MERGED};
    u32 g = lane() / 4, t = lane() % 4;
    // The ring has been read.
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = 16 * warp() + 8 * half + g;
        float total = quad_sum(sum[0][half]);
        if (t == 0) {
            stats.set(2 * row, largest[0][half]);
            stats.set(2 * row + 1, total);
        }
#pragma unroll
        for (u32 d = 0; d < F::C; d++) {
            Vec8 pair{__float_as_uint(o[0][d][2 * half]), __float_as_uint(o[0][d][2 * half + 1])};
            merged.store(row * STRIDE + 8 * d + 2 * t, pair);
        }
    }
    __syncthreads();
    // A thread has four columns of a vector.
    constexpr u32 COLUMNS = F::D / 4;
    for (u32 i = threadIdx.x; i < (tile.end - tile.first) * COLUMNS; i += WARPS * WARP) {
        u32 row = i / COLUMNS, c = i % COLUMNS * 4;
        float top = -infinity(), total = 0.0f, v[4] = {};
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            top = fmaxf(top, stats[2 * (16 * w + row)]);
        }
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            float weight = exp2_approx(stats[2 * (16 * w + row)] - base_of(top));
            total += weight * stats[2 * (16 * w + row) + 1];
            Vec16 four = merged.load<Vec16>((16 * w + row) * STRIDE + c);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                v[k] += weight * __uint_as_float(four.word[k]);
            }
        }
        Global<float> part = p.parts.from((u64(blockIdx.x) * 16 + row) * (p.width + 4));
        if (c < p.width) {
            put(part, c, v);
        }
        if (c == 0) {
            part.set(p.width, top);
            part.set(p.width + 1, total);
        }
    }
}

// Tiles with the same vectors, one after the other.
struct Mates {
    u32 first, count;
};

// Whether all mates of this block have left their parts, which it may then read. The counter is left
// as it was found, for the next launch.
__device__ __forceinline__ bool is_last(const AttentionParams &p, Mates mates) {
    Shared<u32> before{0};  // where the warps' sums were
    u32 counter = p.arrived + mates.first * p.kv_heads + head_at(p);
    __syncthreads();
    if (threadIdx.x == 0) {
        before.set(0, atomic_add_ordered(p.words, counter, 1));
    }
    __syncthreads();
    bool last = before[0] + 1 == mates.count;
    if (last && threadIdx.x == 0) {
        p.words.set(counter, 0);
    }
    return last;
}

// Adds up the parts of the tile's vectors. A thread has four columns of a vector, and AT_ONCE parts
// under way.
template <class F>
__device__ __forceinline__ void add_parts(const AttentionParams &p, const Tile &tile, Mates mates) {
    constexpr u32 COLUMNS = F::D / 4, AT_ONCE = 8;
    u32 stride = p.width + 4, step = p.kv_heads * 16 * stride;
    Global<float> parts = p.parts.from(u64(mates.first) * step + head_at(p) * 16 * stride);
    for (u32 i = threadIdx.x; i < (tile.end - tile.first) * COLUMNS; i += WARPS * WARP) {
        u32 row = i / COLUMNS, c = i % COLUMNS * 4;
        if (c >= p.head_dim) {
            continue;
        }
        float top = -infinity(), sum[5] = {};  // of weights, then of the columns
        for (u32 n = 0; n < mates.count; n += AT_ONCE) {
            float largest[AT_ONCE][2], v[AT_ONCE][4], next = top;
#pragma unroll
            for (u32 k = 0; k < AT_ONCE; k++) {
                largest[k][0] = -infinity();
                largest[k][1] = v[k][0] = v[k][1] = v[k][2] = v[k][3] = 0.0f;
                if (n + k < mates.count) {
                    get(largest[k], parts, (n + k) * step + row * stride + p.width);
                    get(v[k], parts, (n + k) * step + row * stride + c);
                }
            }
#pragma unroll
            for (u32 k = 0; k < AT_ONCE; k++) {
                next = fmaxf(next, largest[k][0]);
            }
            float shrink = exp2_approx(top - base_of(next));
#pragma unroll
            for (u32 j = 0; j < 5; j++) {
                sum[j] *= shrink;
            }
#pragma unroll
            for (u32 k = 0; k < AT_ONCE; k++) {
                float weight = exp2_approx(largest[k][0] - base_of(next));
                sum[0] += weight * largest[k][1];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    sum[j + 1] += weight * v[k][j];
                }
            }
            top = next;
        }
        // Some part has a key that the vector sees.
        float share = 1.0f / sum[0];
        u64 at = vector_at(p, tile, tile.first + row, p.out_stride) + c;
        if (p.head_dim % 4 == 0) {
            p.out.store(at, Vec8{narrow2(sum[1] * share, sum[2] * share),
                                 narrow2(sum[3] * share, sum[4] * share)});
            continue;
        }
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (c + j < p.head_dim) {
                p.out.set(at + j, narrow(sum[j + 1] * share));
            }
        }
    }
}

template <u32 D, u32 MASK, bool SPLIT> __device__ void attend(const AttentionParams &p) {
    using F = Form<D, MASK, SPLIT>;
    Tile tile = tile_at(p);
    if (tile.first == tile.end) {
        return;
    }
    u32 at = p.mates + 2 * (blockIdx.x / p.kv_heads);
    Mates mates = SPLIT ? Mates{p.words[at], p.words[at + 1]} : Mates{};
    Shared<bf16> q{F::QUERIES};
    load_queries<F>(p, tile, q);
    Ring<F> ring{p, tile.table, tile.first_key, tile.end_key, 0, 0};
    ring.look_up();
    for (u32 i = 0; i < F::RING - 1; i++) {
        ring.send();
    }
    // What the first vector sees at the end and the last one at the beginning, all see.
    u32 whole = seen<F>(tile, tile.past + (tile.end - 1) / p.group).first;
    u32 whole_end = seen<F>(tile, tile.past + tile.first / p.group).end;

    u32 row = SPLIT ? 0 : 16 * F::M * warp(), key = SPLIT ? 8 * F::N * warp() : 0;
    float o[F::M][F::C][4], largest[F::M][2], sum[F::M][2];
#pragma unroll
    for (u32 m = 0; m < F::M; m++) {
        largest[m][0] = largest[m][1] = -infinity();
        sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
        for (u32 d = 0; d < F::C; d++) {
            o[m][d][0] = o[m][d][1] = o[m][d][2] = o[m][d][3] = 0.0f;
        }
    }
    for (u32 start = tile.first_key; start < tile.end_key; start += F::BLOCK) {
        float s[F::M][F::N][4];
        multiply_keys<F>(s, q, row, ring.next(), key);
        if (start < whole || start + F::BLOCK > whole_end) {
            mask<F>(s, p, tile, row + lane() / 4, start + key + lane() % 4 * 2);
        }
        online_softmax<F>(s, o, largest, sum, p.scale);
        add_values<F>(o, s, ring.next(), key);
    }
    cp_async_wait<0>();
    if (SPLIT) {
        write_part<F>(p, tile, o, largest, sum);
        if (is_last(p, mates)) {
            add_parts<F>(p, tile, mates);
        }
    } else {
        write_rows<F>(p, o, sum, q, row);
    }
}

KERNEL(attention_64_both, AttentionParams, 128, 2, attend<64, 0, false>)
KERNEL(attention_64_causal, AttentionParams, 128, 2, attend<64, 1, false>)
KERNEL(attention_64_both_window, AttentionParams, 128, 2, attend<64, 2, false>)
KERNEL(attention_64_causal_window, AttentionParams, 128, 2, attend<64, 3, false>)
KERNEL(attention_64_both_split, AttentionParams, 128, 4, attend<64, 0, true>)
KERNEL(attention_64_causal_split, AttentionParams, 128, 4, attend<64, 1, true>)
KERNEL(attention_64_both_window_split, AttentionParams, 128, 4, attend<64, 2, true>)
KERNEL(attention_64_causal_window_split, AttentionParams, 128, 4, attend<64, 3, true>)
KERNEL(attention_128_both, AttentionParams, 128, 2, attend<128, 0, false>)
KERNEL(attention_128_causal, AttentionParams, 128, 2, attend<128, 1, false>)
KERNEL(attention_128_both_window, AttentionParams, 128, 2, attend<128, 2, false>)
KERNEL(attention_128_causal_window, AttentionParams, 128, 2, attend<128, 3, false>)
KERNEL(attention_128_both_split, AttentionParams, 128, 3, attend<128, 0, true>)
KERNEL(attention_128_causal_split, AttentionParams, 128, 3, attend<128, 1, true>)
KERNEL(attention_128_both_window_split, AttentionParams, 128, 3, attend<128, 2, true>)
KERNEL(attention_128_causal_window_split, AttentionParams, 128, 3, attend<128, 3, true>)
KERNEL(attention_256_both, AttentionParams, 128, 2, attend<256, 0, false>)
KERNEL(attention_256_causal, AttentionParams, 128, 2, attend<256, 1, false>)
KERNEL(attention_256_both_window, AttentionParams, 128, 2, attend<256, 2, false>)
KERNEL(attention_256_causal_window, AttentionParams, 128, 2, attend<256, 3, false>)
KERNEL(attention_256_both_split, AttentionParams, 128, 2, attend<256, 0, true>)
KERNEL(attention_256_causal_split, AttentionParams, 128, 2, attend<256, 1, true>)
KERNEL(attention_256_both_window_split, AttentionParams, 128, 2, attend<256, 2, true>)
KERNEL(attention_256_causal_window_split, AttentionParams, 128, 2, attend<256, 3, true>)

#ifdef GRITLM_HOPPER
KERNEL(attention_hopper_64_both, AttentionMaps, 384, 1, attend_hopper<64, 0>)
KERNEL(attention_hopper_64_causal, AttentionMaps, 384, 1, attend_hopper<64, 1>)
KERNEL(attention_hopper_64_both_window, AttentionMaps, 384, 1, attend_hopper<64, 2>)
KERNEL(attention_hopper_64_causal_window, AttentionMaps, 384, 1, attend_hopper<64, 3>)
KERNEL(attention_hopper_128_both, AttentionMaps, 384, 1, attend_hopper<128, 0>)
KERNEL(attention_hopper_128_causal, AttentionMaps, 384, 1, attend_hopper<128, 1>)
KERNEL(attention_hopper_128_both_window, AttentionMaps, 384, 1, attend_hopper<128, 2>)
KERNEL(attention_hopper_128_causal_window, AttentionMaps, 384, 1, attend_hopper<128, 3>)
#endif
