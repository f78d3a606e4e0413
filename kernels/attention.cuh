// attention.cuh: what a block of attention works on: its tile, the queries, and the keys and values that
// come to shared memory; see attention.cu.
#pragma once

#include "common.cuh"

struct AttentionParams {
    Global<bf16> q;
    Global<bf16> keys;
    Global<bf16> values;
    Global<bf16> out;
    Global<float> parts;  // with SPLIT: (tile, kv_head, 16, width + 4): columns, largest, sum
    Global<u32> words;    // the batch's page tables, its tiles, and counters
    u32 group;            // query heads per key/value head
    u32 kv_heads;
    u32 head_dim;
    u32 width;  // of a cached head: head_dim rounded up to 8
    u32 q_stride;
    u32 out_stride;
    u32 tiles;    // where this mask's tiles begin
    float scale;  // log₂ e / √head_dim
    u32 mates;    // with SPLIT: for each tile, the first of those with its vectors, and their number
    u32 arrived;  // with SPLIT: a counter for each tile and cached head, zero between launches
};

// The parameters on Hopper; see attention_hopper.cuh.
struct AttentionMaps {
    TensorMap q;       // (rows, heads, head_dim), a box of 64 columns of a tile's tokens and heads
    TensorMap keys;    // (pages, kv_heads, PAGE, head_dim), a box of 64 columns of a page
    TensorMap values;  // as keys
    AttentionParams p;
    u32 items;  // tiles of this mask, times heads
    u32 unused[9];
};

// As tiles.rs lays it out; in a tile that only fills up a list, first = end.
struct Tile {
    u32 row, past, first, end, table, total, window, first_key, end_key;
};

constexpr u32 PAGE = 128;
constexpr u32 WARPS = 4;
constexpr u32 CAUSAL = 1;  // bits of MASK
constexpr u32 WINDOW = 2;

// The same numbers as `Form` in attention.rs.
template <u32 WIDTH, u32 KIND, bool FEW> struct Form {
    static constexpr u32 D = WIDTH;
    static constexpr u32 MASK = KIND;
    static constexpr bool SPLIT = FEW;
    static constexpr u32 BLOCK = D == 256 && !SPLIT ? 32 : 64;  // keys
    static constexpr u32 RING = !SPLIT ? 3 : D == 256 ? 2 : 4;
    static constexpr u32 M = SPLIT || D == 256 ? 1 : 2;  // times 16 vectors of a warp
    static constexpr u32 ROWS = SPLIT ? 16 : WARPS * 16 * M;
    static constexpr u32 N = (SPLIT ? BLOCK / WARPS : BLOCK) / 8;  // times 8 keys of a warp
    static constexpr u32 C = D / 8;                                // chunks of a row
    static constexpr u32 QUERIES = RING * BLOCK * D * 2;           // after the ring
    static constexpr u32 MERGED = WARPS * 16 * (D + 8) * 4;        // in place of the ring
};

// Where a chunk of 8 columns of a row lies in shared memory.
template <u32 D> __device__ __forceinline__ u32 place(u32 row, u32 chunk) {
    return row * D + (chunk ^ row % 8) * 8;
}

// All heads of a tile come one after the other, so that the longest tiles are first.
// An item of a launch's work is a tile and a head; but on Hopper, each block has one.
__device__ __forceinline__ u32 head_at(const AttentionParams &p, u32 item = blockIdx.x) {
    return item % p.kv_heads;
}

__device__ __forceinline__ Tile tile_at(const AttentionParams &p, u32 item = blockIdx.x) {
    Global<u32> w = p.words.from(p.tiles + item / p.kv_heads * 9);
    // A window beyond every position is none; the sums below stay below 2³².
    return {w[0], w[1], w[2], w[3], w[4], w[5], min(w[6], 1u << 30), w[7], w[8]};
}

// Where vector m begins in a buffer with this stride.
__device__ __forceinline__ u64 vector_at(const AttentionParams &p, const Tile &tile, u32 m,
                                         u32 stride, u32 item = blockIdx.x) {
    u32 column = (head_at(p, item) * p.group + m % p.group) * p.head_dim;
    return u64(tile.row + m / p.group) * stride + column;
}

struct Keys {
    u32 first, end;
};

// Those of the tile's keys that position `at` sees; none where the end is not behind the first.
template <class F> __device__ __forceinline__ Keys seen(const Tile &tile, u32 at) {
    Keys keys{0, tile.end_key};
    if (F::MASK & CAUSAL) {
        keys.end = min(keys.end, at + 1);
    }
    if (F::MASK & WINDOW) {
        keys.first = at + 1 - min(at + 1, tile.window);
        keys.end = min(keys.end, at + tile.window);
    }
    return keys;
}

// The four lanes that have a row's scores.
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(ALL, v, 1));
    return fmaxf(v, __shfl_xor_sync(ALL, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(ALL, v, 1);
    return v + __shfl_xor_sync(ALL, v, 2);
}

// What exponents are taken relative to: a row that has seen nothing so far has no largest score.
__device__ __forceinline__ float base_of(float largest) {
    return largest == -infinity() ? 0.0f : largest;
}

// The tile's queries to shared memory, zeros in rows and columns that there are not.
template <class F>
__device__ __forceinline__ void load_queries(const AttentionParams &p, const Tile &tile,
                                             Shared<bf16> to) {
    for (u32 i = threadIdx.x; i < F::ROWS * F::C; i += WARPS * WARP) {
        u32 row = i / F::C, c = i % F::C, m = tile.first + row;
        u64 at = vector_at(p, tile, min(m, tile.end - 1), p.q_stride) + 8 * c;
        u32 columns = m < tile.end && 8 * c < p.head_dim ? min(p.head_dim - 8 * c, 8u) : 0;
        if (p.head_dim % 8 == 0) {
            cp_async16(to, place<F::D>(row, c), p.q, at, 2 * columns);
            continue;
        }
        for (u32 d = 0; d < 8; d++) {
            to.set(place<F::D>(row, c) + d, d < columns ? p.q[at + d] : bf16{0});
        }
    }
}

// The tile's blocks of keys and of values, in turn.
template <class F> struct Ring {
    const AttentionParams &p;
    u32 table;
    u32 first_key;
    u32 end_key;
    u32 sent;
    u32 page;  // of what is sent next, looked up early

    __device__ __forceinline__ u32 start() const { return first_key + sent / 2 * F::BLOCK; }
    __device__ __forceinline__ void look_up() {
        page = p.words[table + min(start(), end_key - 1) / PAGE];
    }

    // Starts the next copy. A block lies in one page.
    __device__ __forceinline__ void send() {
        constexpr u32 ROWS = WARPS * WARP / F::C;  // at a time
        u32 start = this->start(), row = threadIdx.x / F::C, c = threadIdx.x % F::C;
        if (start < end_key) {
            u64 from = (u64(page) * p.kv_heads + head_at(p)) * PAGE + start % PAGE + row;
            Global<bf16> cached = (sent % 2 ? p.values : p.keys).from(from * p.width + 8 * c);
            Shared<bf16> to{sent % F::RING * (F::BLOCK * F::D * 2)};
            u32 bytes = 8 * c < p.width ? 16 : 0;
#pragma unroll
            for (u32 i = 0; i < F::BLOCK; i += ROWS) {
                u32 there = start + row + i < end_key ? bytes : 0;
                cp_async16(to, place<F::D>(row + i, c), cached, i * p.width, there);
            }
        }
        cp_async_commit();
        sent += 1;
        // Values lie in the page of their keys, which the first copies should not wait for twice.
        if (!F::SPLIT || sent % 2 == 0) {
            look_up();
        }
    }

    // The next block, when all of it has come; the last one may then be overwritten.
    __device__ __forceinline__ Shared<bf16> next() {
        cp_async_wait<F::RING - 2>();
        __syncthreads();
        send();
        return {(sent - F::RING) % F::RING * (F::BLOCK * F::D * 2)};
    }
};
