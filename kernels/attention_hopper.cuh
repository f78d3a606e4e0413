// attention_hopper: prefill attention on Hopper, for heads of 64 and 128 columns: out = softmax(q
// kᵀ / √head_dim + mask) v. Operands, masks and lists of tiles are those of attention.cu, which has
// the entry points; a tile has up to 128 query vectors, of whole tokens, and a block of keys is a
// page.
//
// Mapping. There are as many thread blocks as multiprocessors. Each walks the blocks of keys of its
// items (a tile and a key/value head), one item after the other without a break: the last values of
// an item are multiplied together with the first keys of the next. Of its three warpgroups the
// first is the producer, one thread of which asks TMA for everything: the tile's queries (heads of
// the group × tokens = vectors) and pages of keys and of values, in boxes of 64 columns, swizzled
// by 128 bytes. The others are consumers, each with 64 of the vectors and all keys: scores = q · kᵀ
// (wgmma, both operands in shared memory), online softmax in registers, sums += weights · v (wgmma,
// the weights as bf16 in registers).
//
// Time, from left to right. S: scores of a block, V: values of the block before, both by the tensor
// cores. A consumer's softmax runs while they do its V, and while the other one has its turn:
//
//   producer    Q K₀ V₀ K₁ V₁    K₂            V₂ K₃          V₃ K₄
//   consumer 0  │S₀│ softmax₀ │S₁ V₀│ softmax₁    │S₂ V₁│ softmax₂    │…
//   consumer 1     │S₀│ softmax₀    │S₁ V₀│ softmax₁    │S₂ V₁│ softmax₂ …
//
// Who waits for whom:
//
//   the consumers for queries, keys, values  full barriers: the producer announces bytes, they land
//   the producer for a place to be free      empty barriers: 8 warps whose wgmma have read it
//   a consumer for its turn                  a named barrier: the other has started its products
//
// Without turns both consumers would wait for the tensor cores, and then both do their softmax.
//
// Heads of 128 are bound by the tensor cores: for 128 vectors and 128 keys they take 2,048 cycles
// (32 products of 64×128×16, 64 each), the exponentials 1,024 (16 a cycle), shared memory 1,792
// (224 KiB written and read, 128 bytes a cycle), the page from L2 1,365 (64 KiB at 48 bytes a
// cycle). A consumer's softmax takes some 950 cycles, and has 1,536. With heads of 64 all products
// take 1,024; a consumer's scores and softmax, one after the other, take some 1,200.
#pragma once

#include "attention.cuh"
#ifdef GRITLM_HOPPER
#include "ptx_hopper.cuh"

constexpr u32 CONSUMERS = 2;  // warpgroups that multiply

// The same numbers as `Form` in attention.rs.
template <u32 WIDTH, u32 KIND> struct Hopper {
    static constexpr u32 D = WIDTH;
    static constexpr u32 MASK = KIND;
    static constexpr u32 STAGES = D == 64 ? 4 : 2;    // of keys, and of values
    static constexpr u32 QUEUE = 2;                   // tiles of queries
    static constexpr u32 ROWS = PAGE;                 // at most, of a tile of queries
    static constexpr u32 BOX = PAGE * TILE_COLUMNS;   // elements of a box
    static constexpr u32 TILE = PAGE * D;             // elements of a place

    // Places in shared memory by number, first those of queries. Barrier n tells when place n is
    // full, barrier EMPTY + n when it has been read.
    static constexpr u32 Q = 0;
    static constexpr u32 K = Q + QUEUE;
    static constexpr u32 V = K + STAGES;
    static constexpr u32 EMPTY = V + STAGES;

    __device__ __forceinline__ static Shared<bf16> place(u32 n) { return {2 * n * TILE}; }
    __device__ __forceinline__ static Shared<u64> barriers() { return {2 * EMPTY * TILE}; }
};

// A ring of places, from number FIRST on: the next one, and the parity of the phase in which it
// becomes full.
template <u32 FIRST, u32 COUNT> struct Places {
    u32 at = FIRST;
    u32 parity = 0;

    __device__ __forceinline__ void next() {
        at += 1;
        if (at == FIRST + COUNT) {
            at = FIRST;
            parity ^= 1;
        }
    }
};

// The item that this block has in a round. The items are sorted, the longest first; every other
// round goes backwards, so that all blocks get about the same work.
__device__ __forceinline__ u32 item_of(u32 round) {
    u32 at = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    return round * gridDim.x + at;
}

// Waits until a place has been read, and asks TMA for `rows` rows to it, from `at` on.
template <class H, class P, u32 RANK>
__device__ __forceinline__ void copy(P &to, const TensorMap &map, u32 (&at)[RANK], u32 rows) {
    barrier_wait(H::barriers(), H::EMPTY + to.at, to.parity ^ 1);
    barrier_expect(H::barriers(), to.at, 2 * rows * H::D);
#pragma unroll
    for (at[0] = 0; at[0] < H::D; at[0] += TILE_COLUMNS) {
        tma_load(H::place(to.at), at[0] * PAGE, map, at, H::barriers(), to.at);
    }
    to.next();
}

// Asks for queries, keys and values of all items of this block. By one thread.
template <class H> __device__ __forceinline__ void produce(const AttentionMaps &maps) {
    const AttentionParams &p = maps.p;
    u32 tokens = H::ROWS / p.group;
    Places<H::Q, H::QUEUE> q;
    Places<H::K, H::STAGES> keys;
    Places<H::V, H::STAGES> values;
    for (u32 round = 0, item; (item = item_of(round)) < maps.items; round++) {
        Tile tile = tile_at(p, item);
        u32 head = head_at(p, item), page = p.words[tile.table + tile.first_key / PAGE];
        u32 vectors[3] = {0, head * p.group, tile.row + tile.first / p.group};
        copy<H>(q, maps.q, vectors, tokens * p.group);
        for (u32 start = tile.first_key; start < tile.end_key; start += PAGE) {
            // The block that the tile's keys end in is copied from a negative token on: its keys
            // become the last rows, and the rows ahead of them, outside the tensor, become 0. The
            // rest of the page, which may hold NaN, is not read.
            u32 block[4] = {0, min(tile.end_key - start, PAGE) - PAGE, head, page};
            // The next page is looked up while this one is waited for.
            page = p.words[tile.table + min(start + PAGE, tile.end_key - 1) / PAGE];
            copy<H>(keys, maps.keys, block, PAGE);
            copy<H>(values, maps.values, block, PAGE);
        }
    }
}

// A consumer's place in the block's work: an item, and a block of its keys.
template <class H> struct Cursor {
    const AttentionMaps &maps;
    u32 round = 0;
    u32 item = 0;
    u32 start = 0;      // the block's first key
    u32 end = 0;        // the tile's last key, and one
    u32 whole = 0;      // what all of the tile's vectors see
    u32 whole_end = 0;

    // Goes to the first block of the round's item. Returns false behind the last round.
    __device__ __forceinline__ bool open() {
        item = item_of(round);
        if (item >= maps.items) {
            return false;
        }
        const AttentionParams &p = maps.p;
        Tile tile = tile_at(p, item);
        start = tile.first_key;
        end = tile.end_key;
        // What the first vector sees at the end and the last one at the beginning, all see.
        whole = seen<H>(tile, tile.past + (tile.end - 1) / p.group).first;
        whole_end = seen<H>(tile, tile.past + tile.first / p.group).end;
        return true;
    }
    __device__ __forceinline__ bool is_last() const { return start + PAGE >= end; }
    // Goes to the next block. Returns false behind the last one.
    __device__ __forceinline__ bool next() {
        if (is_last()) {
            round += 1;
            return open();
        }
        start += PAGE;
        return true;
    }
    // Whether some vector does not see some key of the block.
    __device__ __forceinline__ bool is_partial() const {
        return start < whole || start + PAGE > whole_end;
    }
};

// What a descriptor grows by where its tile begins so many elements later.
__device__ __forceinline__ constexpr u32 descriptor_step(u32 elements) { return elements * 2 / 16; }

// What lane l of a consumer's warp has of the warp's 16 vectors: those in rows l / 4 and l / 4 + 8,
// by number `half`. Element 4c + 2 half + i of scores and sums belongs to column 8c + 2 (l % 4) +
// i.
template <class H> struct Rows {
    static constexpr u32 S = PAGE / 2;
    static constexpr u32 O = H::D / 2;
    float s[S];          // scores, then weights
    u32 weights[S / 2];  // as pairs of bf16: the left side of the product with the values
    // Sums of weighted values. Nothing reads these zeros, but without them NVRTC 12 makes each wgmma
    // wait for the one before (C7515).
    float o[O] = {};
    float largest[2];    // score so far, in powers of two
    float sum[2];        // of the weights of this lane's columns

    __device__ __forceinline__ void begin() {
        largest[0] = largest[1] = -infinity();
        sum[0] = sum[1] = 0.0f;
    }

    // −∞ for what a vector does not see, and for the zeros ahead of a block that the keys end in.
    __device__ __forceinline__ void mask(const Cursor<H> &at, u32 row) {
        const AttentionParams &p = at.maps.p;
        Tile tile = tile_at(p, at.item);
        u32 key = min(at.start + PAGE, at.end) - PAGE + lane() % 4 * 2;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 vector = min(tile.first + row + 8 * half, tile.end - 1);
            Keys keys = seen<H>(tile, tile.past + vector / p.group);
            u32 first = max(keys.first, at.start), count = keys.end - min(first, keys.end);
#pragma unroll
            for (u32 i = 0; i < S; i += 4) {
                // Below the first the difference wraps round.
                if (key + 2 * i - first >= count) {
                    s[i + 2 * half] = -infinity();
                }
                if (key + 2 * i + 1 - first >= count) {
                    s[i + 2 * half + 1] = -infinity();
                }
            }
        }
    }

    // Scores to weights. What was added up so far has to be scaled by `shrink`.
    __device__ __forceinline__ void soften(float scale, float (&shrink)[2]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float top = -infinity();
#pragma unroll
            for (u32 i = 2 * half; i < S; i += 4) {
                top = fmaxf(top, fmaxf(s[i], s[i + 1]));
            }
            top = fmaxf(largest[half], quad_max(top) * scale);
            float base = base_of(top);
            shrink[half] = exp2_approx(largest[half] - base);
            largest[half] = top;
            sum[half] *= shrink[half];
#pragma unroll
            for (u32 i = 2 * half; i < S; i += 4) {
#pragma unroll
                for (u32 j = i; j < i + 2; j++) {
                    s[j] = exp2_approx(s[j] * scale - base);
                    sum[half] += s[j];
                }
            }
        }
    }

    __device__ __forceinline__ void narrow_weights() {
#pragma unroll
        for (u32 i = 0; i < S; i += 2) {
            weights[i / 2] = narrow2(s[i], s[i + 1]);
        }
    }

    __device__ __forceinline__ void scale_sums(const float (&shrink)[2]) {
#pragma unroll
        for (u32 i = 0; i < O; i++) {
            o[i] *= shrink[i / 2 % 2];
        }
    }

    // Starts s = q kᵀ, of the 64 queries from `row` on.
    __device__ __forceinline__ void multiply_keys(Shared<bf16> q, u32 row, Shared<bf16> keys) {
        u64 a = rows_descriptor(q, row * TILE_COLUMNS), b = rows_descriptor(keys, 0);
#pragma unroll
        for (u32 d = 0; d < H::D; d += 16) {
            u32 on = descriptor_step(d / TILE_COLUMNS * H::BOX + d % TILE_COLUMNS);
            wgmma<PAGE>(s, a + on, b + on, d > 0);
        }
        wgmma_commit();
    }

    // Starts o += weights · values; without what o had, where `fresh`.
    __device__ __forceinline__ void add_values(Shared<bf16> values, bool fresh) {
        u64 b = columns_descriptor(values, 0, 2 * H::BOX);
#pragma unroll
        for (u32 key = 0; key < PAGE; key += 16) {
            u32 a[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                a[i] = weights[key / 4 + i];
            }
            wgmma_held<H::D>(o, a, b + descriptor_step(key * TILE_COLUMNS), !fresh || key > 0);
        }
        wgmma_commit();
    }

    // Writes the rows of an item, o / total.
    __device__ __forceinline__ void write(const AttentionParams &p, u32 item, u32 row,
                                          const float (&total)[2]) {
        Tile tile = tile_at(p, item);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float share = __fdividef(1.0f, quad_sum(total[half]));
            u32 m = tile.first + row + 8 * half;
            u64 at = vector_at(p, tile, min(m, tile.end - 1), p.out_stride, item);
#pragma unroll
            for (u32 c = 0; c < O; c += 16) {
                u32 v[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 from = c + 4 * i + 2 * half;
                    v[i] = narrow2(o[from] * share, o[from + 1] * share);
                }
                transpose(v);
                if (m < tile.end) {
                    p.out.store(at + 2 * c + lane() % 4 * 8, Vec16{v[0], v[1], v[2], v[3]});
                }
            }
        }
    }

    // Element i of lane t of four, to element t of lane i: whole 16 bytes of a row in each lane.
    __device__ __forceinline__ static void transpose(u32 (&v)[4]) {
#pragma unroll
        for (u32 step = 1; step < 4; step *= 2) {
            bool high = lane() & step;
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                u32 low = step == 1 ? 2 * n : n;
                u32 given = high ? v[low] : v[low + step];
                u32 taken = __shfl_xor_sync(ALL, given, step);
                v[low] = high ? taken : v[low];
                v[low + step] = high ? v[low + step] : taken;
            }
        }
    }
};

// The consumers take turns to start their products; each has a named barrier.
constexpr u32 TURNS = 1;
__device__ __forceinline__ void take_turn(u32 consumer) {
    named_sync(TURNS + consumer, CONSUMERS * WARPGROUP);
}
__device__ __forceinline__ void give_turn(u32 consumer) {
    named_arrive(TURNS + (consumer ^ 1), CONSUMERS * WARPGROUP);
}

// A consumer's barriers and places: what it waits for, and what it gives back.
template <class H> struct Consumer {
    u32 number;
    Places<H::Q, H::QUEUE> q;
    Places<H::K, H::STAGES> keys;
    Places<H::V, H::STAGES> values;

    // A warp has read a place.
    template <class P> __device__ __forceinline__ static void release(P &of) {
        if (lane() == 0) {
            barrier_arrive(H::barriers(), H::EMPTY + of.at);
        }
        of.next();
    }
    template <class P> __device__ __forceinline__ static void wait(const P &of) {
        barrier_wait(H::barriers(), of.at, of.parity);
    }
    __device__ __forceinline__ void start_scores(Rows<H> &rows) const {
        hold(rows.s);
        wgmma_fence();
        rows.multiply_keys(H::place(q.at), 64 * number, H::place(keys.at));
    }
    // The scores of the block have come, but for what is not seen of it.
    __device__ __forceinline__ void finish_scores(Rows<H> &rows, const Cursor<H> &at, u32 row) {
        hold(rows.s);
        release(keys);
        if (at.is_last()) {
            release(q);
        }
        if (at.is_partial()) {
            rows.mask(at, row);
        }
    }
    __device__ __forceinline__ void start_values(Rows<H> &rows, bool fresh) const {
        wait(values);
        hold(rows.o);
        hold(rows.weights);
        wgmma_fence();
        rows.add_values(H::place(values.at), fresh);
    }
    __device__ __forceinline__ void finish_values(Rows<H> &rows) {
        wgmma_wait<0>();
        hold(rows.o);
        release(values);
    }
};

template <class H> __device__ __forceinline__ void consume(const AttentionMaps &maps, u32 number) {
    const AttentionParams &p = maps.p;
    u32 row = 64 * number + warp() % 4 * 16 + lane() / 4;
    Consumer<H> consumer{number};
    Cursor<H> at{maps};
    Rows<H> rows;
    float shrink[2];
    if (number == 1) {
        give_turn(number);
    }
    at.open();
    rows.begin();
    consumer.wait(consumer.q);
    consumer.wait(consumer.keys);
    take_turn(number);
    consumer.start_scores(rows);
    give_turn(number);
    wgmma_wait<0>();
    consumer.finish_scores(rows, at, row);
    rows.soften(p.scale, shrink);
    rows.narrow_weights();
    bool fresh = true;  // whether the item has no sums so far
    u32 item = at.item;
    while (at.next()) {
        bool changes = at.item != item;
        if (changes) {
            consumer.wait(consumer.q);
        }
        consumer.wait(consumer.keys);
        take_turn(number);
        consumer.start_scores(rows);
        consumer.start_values(rows, fresh);
        give_turn(number);
        wgmma_wait<1>();
        consumer.finish_scores(rows, at, row);
        float total[2] = {rows.sum[0], rows.sum[1]};
        if (changes) {
            rows.begin();
        }
        rows.soften(p.scale, shrink);
        hold(rows.s);
        // In each branch, because ptxas would move the wait ahead of the softmax above.
        if (changes) {
            consumer.finish_values(rows);
            rows.write(p, item, row, total);
        } else {
            consumer.finish_values(rows);
            rows.scale_sums(shrink);
        }
        rows.narrow_weights();
        fresh = changes;
        item = at.item;
    }
    take_turn(number);
    consumer.start_values(rows, fresh);
    // Every turn that is given is taken.
    if (number == 0) {
        give_turn(number);
    }
    consumer.finish_values(rows);
    rows.write(p, item, row, rows.sum);
}

// Makes the barriers, and zeros of the queries that no copy brings: those of a tile's last rows,
// where the heads of a group do not divide it.
template <class H> __device__ __forceinline__ void prepare(u32 group) {
    if (threadIdx.x == 0) {
        constexpr u32 READERS = CONSUMERS * WARPGROUP / WARP;
#pragma unroll
        for (u32 i = 0; i < H::EMPTY; i++) {
            barrier_init(H::barriers(), i, 1);
            barrier_init(H::barriers(), H::EMPTY + i, READERS);
        }
        barrier_init_fence();
    }
    constexpr u32 BOXES = H::QUEUE * H::D / TILE_COLUMNS, CHUNKS = TILE_COLUMNS / 8;
    u32 rows = H::ROWS / group * group, chunks = (H::ROWS - rows) * CHUNKS;
    for (u32 i = threadIdx.x; i < BOXES * chunks; i += blockDim.x) {
        u32 at = i / chunks * H::BOX + rows * TILE_COLUMNS + i % chunks * 8;
        H::place(H::Q).template store<Vec16>(at, Vec16{});
    }
    fence_async();
    __syncthreads();
}

template <u32 D, u32 MASK> __device__ void attend_hopper(const AttentionMaps &maps) {
    using H = Hopper<D, MASK>;
    prepare<H>(maps.p.group);
    // By a shuffle, so that the compiler knows it to be the same in a warp.
    u32 warpgroup = __shfl_sync(ALL, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == 0) {
        release_registers<40>();
        if (threadIdx.x == 0) {
            produce<H>(maps);
        }
    } else {
        claim_registers<232>();
        consume<H>(maps, warpgroup - 1);
    }
}
#endif
