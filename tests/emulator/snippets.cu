// Small kernels, right and wrong, for the emulator; see snippets.rs.
#include "common.cuh"
struct Snippet { Global<u32> in; Global<u32> out; };
constexpr Shared<u32> words{0};
constexpr u32 N = 128;
#define SNIPPET(name) \
    __device__ void name##_body(const Snippet &p); \
    KERNEL(name, Snippet, N, 1, name##_body) \
    __device__ void name##_body(const Snippet &p)
#define SNIPPET_AHEAD(name) \
    __device__ void name##_body(const Snippet &p); \
    KERNEL_AHEAD(name, Snippet, N, 1, name##_body) \
    __device__ void name##_body(const Snippet &p)
__device__ u32 me() { return threadIdx.x; }
__device__ void copy(const Snippet &p) { cp_async16(words, 4 * me(), p.in, 4 * (me() % 16), 16); }

SNIPPET(write_beyond) { p.out.set(me() + 129, me()); }
SNIPPET(read_before) { p.out.set(me(), p.in.from(-1ull)[0]); }
SNIPPET(read_misaligned) { p.out.set(me(), p.in.load<Vec16>(2).word[0]); }
SNIPPET(read_null) { p.out.set(me(), Global<u32>{nullptr}[me()]); }
SNIPPET(unwritten_global) { p.out.set(me(), p.out[me() + 128]); }

SNIPPET(global_without_barrier) {
    p.out.set(me(), me());
    p.out.set(128 + me(), p.out[(me() + 64) % N]);
}
SNIPPET(global_written_twice) { p.out.set(me() / 2, 1); }
SNIPPET(global_between_blocks) {
    if (me() == 0) {
        p.out.set(blockIdx.x, blockIdx.x);
        p.out.set(128 + blockIdx.x, p.out[0] + p.out[1] + p.out[2]);
    }
}
SNIPPET(global_with_barrier) {
    p.out.set(me(), me());
    __syncthreads();
    u32 v = p.out[(me() + 64) % N];
    __syncthreads();
    p.out.set(me(), v);
}

// Every block writes 32 words; the last one to come adds all of them up.
template <bool ORDERED, bool BARRIER> __device__ void hand_over(const Snippet &p) {
    if (me() < 32) { p.out.set(128 + 32 * blockIdx.x + me(), me()); }
    if (BARRIER) { __syncthreads(); }
    if (me() == 0) {
        words.set(0, ORDERED ? atomic_add_ordered(p.in, 0, 1) : atomic_add(p.in, 0, 1));
    }
    __syncthreads();
    if (words[0] + 1 == 7 + gridDim.x) {
        u32 at = 128 + me() % 32;
        p.out.set(me(), p.out[at] + p.out[at + 32] + p.out[at + 64]);
    }
}
SNIPPET(blocks_hand_over) { hand_over<true, true>(p); }
SNIPPET(blocks_hand_over_unordered) { hand_over<false, true>(p); }
SNIPPET(blocks_hand_over_early) { hand_over<true, false>(p); }

SNIPPET_AHEAD(reads_ahead) {
    u32 v = p.in[me() % 64];
    wait_for_previous();
    p.out.set(me(), v);
}
SNIPPET_AHEAD(writes_ahead) {
    p.out.set(me(), me());
    wait_for_previous();
}
SNIPPET_AHEAD(never_waits) { words.set(me(), p.in[me() % 64]); }

SNIPPET(shared_beyond) { words.set(me() + 1, me()); }
SNIPPET(shared_misaligned) { words.store(me() * 4 + 1, Vec16{}); }
SNIPPET(shared_unwritten) {
    words.set(me(), me());
    p.out.set(me(), words[me() < 127 ? me() : 200]);
}

SNIPPET(reads_without_barrier) { words.set(me(), me()); p.out.set(me(), words[(me() + 64) % N]); }
SNIPPET(reads_with_barrier) {
    words.set(me(), me());
    __syncthreads();
    p.out.set(me(), words[(me() + 64) % N]);
}
SNIPPET(writes_over_reads) {
    words.set(me(), me());
    __syncthreads();
    u32 v = words[(me() + 64) % N];
    words.set(me(), v);
}
SNIPPET(writes_over_reads_in_order) {
    words.set(me(), me());
    for (u32 i = 0; i < 300; i++) {
        __syncthreads();
        u32 v = words[(me() + 64) % N];
        __syncthreads();
        words.set(me(), v);
    }
    p.out.set(me(), words[me()]);
}
SNIPPET(writes_over_writes) { words.set(me() / 2, 1); }
SNIPPET(half_words_side_by_side) {
    Shared<bf16>{0}.set(me(), {u16(me())});
    __syncthreads();
    p.out.set(me(), words[me() / 2] >> me() % 2 * 16 & 0xffff);
}
SNIPPET(lanes_without_syncwarp) { words.set(me(), me()); p.out.set(me(), words[me() ^ 1]); }
SNIPPET(lanes_with_shuffle) {
    words.set(me(), me());
    u32 v = __shfl_xor_sync(ALL, me(), 1);
    p.out.set(me(), words[v]);
}
SNIPPET(lanes_with_syncwarp) {
    for (u32 i = 0; i < 100; i++) {
        words.set(me(), me());
        __syncwarp();
        p.out.set(me(), words[me() ^ 31]);
        __syncwarp();
    }
}
SNIPPET(warps_with_syncwarp) {
    words.set(me(), me());
    __syncwarp();
    p.out.set(me(), words[me() ^ 32]);
}
SNIPPET(adds) {
    words.set(me(), 0);
    __syncthreads();
    atomic_add(words, me() % 2, 1);
    __syncthreads();
    p.out.set(me(), words[me() % 2] + N / 2 * atomic_add(p.out, 128 + me(), 1));
}
SNIPPET(reads_while_adding) {
    words.set(me(), 0);
    __syncthreads();
    atomic_add(words, 5, 1);
    p.out.set(me(), words[5]);
}

SNIPPET(counts) { atomic_add(p.out, me(), 1); }

SNIPPET(copies) {
    copy(p);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    p.out.set(me(), words[(4 * me() + 64) % 512]);
}
SNIPPET(copies_part_of_nothing) {
    cp_async16(words, 4 * me(), p.in, me() ? 1ull << 40 : 60, me() ? 0 : 8);
    cp_async_commit();
    cp_async_wait<0>();
    p.out.set(me(), words[4 * me()] + words[4 * me() + 3]);
}
SNIPPET(copy_read_before_wait) { copy(p); cp_async_commit(); p.out.set(me(), words[4 * me()]); }
SNIPPET(copy_waits_for_another) {
    copy(p);
    cp_async_commit();
    cp_async_commit();
    cp_async_wait<2>();
    p.out.set(me(), words[4 * me()]);
}
SNIPPET(copy_written_before_wait) { copy(p); words.set(4 * me() + 1, 1); }
SNIPPET(copy_without_barrier) {
    copy(p);
    cp_async_commit();
    cp_async_wait<0>();
    p.out.set(me(), words[4 * (me() ^ 64)]);
}
SNIPPET(copy_not_committed) { copy(p); cp_async_wait<0>(); }
SNIPPET(copy_not_waited_for) { copy(p); cp_async_commit(); }
SNIPPET(copy_from_beyond) { cp_async16(words, 4 * me(), p.in, 64, 2); }
SNIPPET(copy_misaligned) { cp_async16(words, 4 * me() + 2, p.in, 0, 16); }
SNIPPET(copy_from_misaligned) { cp_async16(words, 4 * me(), p.in, 1, 16); }
SNIPPET(copy_over_a_read) {
    words.set(me(), me());
    __syncthreads();
    u32 v = words[me() ^ 127];
    __syncwarp();
    copy(p);
    cp_async_commit();
    cp_async_wait<0>();
    p.out.set(me(), v);
}

SNIPPET(barrier_by_some) { if (me() < 96) { __syncthreads(); } p.out.set(me(), 7); }
SNIPPET(shuffle_by_some) {
    u32 v = me();
    if (me() % 32 != 5) { v = __shfl_xor_sync(ALL, v, 1); }
    __syncthreads();
    p.out.set(me(), v);
}
SNIPPET(shuffle_with_mask) { p.out.set(me(), __shfl_down_sync(0xffffu, me(), 1)); }
SNIPPET(shuffle_meets_vote) {
    p.out.set(me(), me() % 2 ? __ballot_sync(ALL, 1) : __shfl_sync(ALL, me(), 1));
}
SNIPPET(shuffles) {
    u32 lane = me() % 32, v = __shfl_xor_sync(ALL, me(), 3), sum = 0;
    sum += v == (me() ^ 3u);
    sum += __shfl_up_sync(ALL, me(), 2) == (lane < 2 ? me() : me() - 2);
    sum += __shfl_down_sync(ALL, me(), 2, 16) == (lane % 16 > 13 ? me() : me() + 2);
    sum += __shfl_sync(ALL, me(), 9) == me() - lane + 9;
    sum += __ballot_sync(ALL, lane % 3 == 0) == 0x49249249u;
    sum += __any_sync(ALL, lane == 4) && !__any_sync(ALL, 0);
    sum += __all_sync(ALL, 1) && !__all_sync(ALL, lane);
    p.out.set(me(), sum);
}
SNIPPET(misaligned_matrix) {
    words.store(4 * me(), Vec16{});
    __syncthreads();
    u32 m[4];
    ldmatrix4(m, {0}, me() % 32 * 8 + 4);
}
SNIPPET(matrix_without_barrier) {
    words.store(4 * me(), Vec16{});
    u32 m[4];
    ldmatrix4(m, {0}, me() % 32 * 8);
}
SNIPPET(fragments) {
    Shared<bf16> a{0};
    for (u32 i = me(); i < 256; i += N) {
        words.set(i, p.out[i]);
    }
    __syncthreads();
    u32 lane = me() % 32, fa[4], fb[4];
    float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    ldmatrix4(fa, a, lane % 16 * 16 + lane / 16 * 8);
    ldmatrix4_trans(fb, a.from(256), lane % 16 * 16 + lane / 16 * 8);
    mma16x8x16(d, fa, fb[me() / 64 * 2], fb[me() / 64 * 2 + 1]);
    __syncthreads();
    for (u32 i = 0; me() / 32 % 2 == 0 && i < 4; i++) {
        u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2 + me() / 64 * 8;
        p.out.set(row * 16 + column, __float_as_uint(d[i]));
    }
}
