// Products on Hopper, right and wrong, for the emulator; see hopper.rs.
#include "common.cuh"

#include "ptx_hopper.cuh"

// Rows of bf16: those of a and b are 64 · steps long and summed over; values are summed down 64
// rows.
struct Maps {
    TensorMap a, b, values;
    Global<float> out;
    Global<bf16> in;
    u32 steps, unused[11];
};

constexpr u32 TILE = 64 * 64, STAGE = 3 * TILE, STAGES = 2, THREADS = 3 * WARPGROUP;
constexpr Shared<bf16> tiles{0};
constexpr Shared<u64> full{STAGES * STAGE * 2}, empty{full.offset + 8 * STAGES};

// What a kernel does wrong.
enum Wrong : u32 {
    NOTHING,
    NO_INIT_FENCE,
    NO_INIT_BARRIER,
    PARITY,
    RELEASED_EARLY,
    RELEASED_AT_ONCE,
    RELEASED_LATE,
    RELEASED_FOR_ANOTHER,
    EXPECTS_LESS,
    EXPECTS_MORE,
    NEVER_RELEASED,
    NO_WAIT,
    READ_EARLY,
    NO_FENCE,
    OFFSETS_EXCHANGED,
    NO_WAIT_FOR_FULL,
    TWO_ARRIVALS,
    ENDS_EARLY,
    LOCAL_WAIT,
    OTHER_DEPTH,
    MISALIGNED,
    ONE_WARP_FIRST,
    WRITTEN_SUMS,
};

__device__ __forceinline__ void put_sums(const Maps &p, float (&d)[32], u32 row) {
    u32 l = lane();
    row += warp() % 4 * 16 + l / 4;
#pragma unroll
    for (u32 c = 0; c < 8; c++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            for (u32 i = 0; i < 2; i++) {
                p.out.set(u64(row + 8 * h) * 64 + 8 * c + 2 * (l % 4) + i, d[4 * c + 2 * h + i]);
            }
        }
    }
}

// out (128 rows a block) = a · bᵀ. The blocks of a cluster share b: each brings a part to all.
template <u32 CLUSTER, u32 WRONG> __device__ __forceinline__ void product(const Maps &p) {
    u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; s++) {
            barrier_init(full, s, 1);
            barrier_init(empty, s, 2 * CLUSTER);
        }
        if (WRONG != NO_INIT_FENCE) { barrier_init_fence(); }
    }
    if (CLUSTER > 1) {
        cluster_arrive();
        cluster_wait();
    } else if (WRONG != NO_INIT_BARRIER) {
        __syncthreads();
    }
    wait_for_previous();
    constexpr u32 BYTES = STAGE * 2;
    if (threadIdx.x < WARPGROUP) {
        release_registers<40>();
        u32 parity = WRONG == PARITY ? 0 : 1;
        for (u32 k = 0, s = 0; threadIdx.x == 0 && k < p.steps; k++) {
            if (CLUSTER > 1 && WRONG != LOCAL_WAIT) {
                barrier_wait_cluster(empty, s, parity);
            } else {
                barrier_wait(empty, s, parity);
            }
            u32 less = WRONG == EXPECTS_LESS ? TILE * 2 : 0, more = WRONG == EXPECTS_MORE ? 16 : 0;
            barrier_expect(full, s, BYTES - less + more);
            if (WRONG == TWO_ARRIVALS) { barrier_arrive(full, s); }
            u32 a[2] = {64 * k, 128 * blockIdx.x}, b[2] = {64 * k, 64 / CLUSTER * rank};
            u32 odd = WRONG == MISALIGNED ? 64 : 0;
            tma_load<2>(tiles, s * STAGE + odd, p.a, a, full, s);
            u32 to = s * STAGE + 2 * TILE + TILE / CLUSTER * rank;
            if (CLUSTER > 1) {
                tma_multicast<2>(tiles, to, p.b, b, full, s, (1 << CLUSTER) - 1);
            } else {
                tma_load<2>(tiles, to, p.b, b, full, s);
            }
            if (++s == STAGES) { s = 0, parity ^= 1; }
        }
    } else {
        claim_registers<232>();
        u32 group = threadIdx.x / WARPGROUP - 1, row = 128 * blockIdx.x + 64 * group;
        float d[32];
        u32 parity = 0;
        for (u32 k = 0, s = 0; k < p.steps; k++) {
            if (WRONG != NO_WAIT_FOR_FULL || k + 1 < p.steps) { barrier_wait(full, s, parity); }
            u64 a = rows_descriptor(tiles, s * STAGE + group * TILE);
            u64 b = WRONG == OFFSETS_EXCHANGED
                        ? tile_descriptor(tiles, s * STAGE + 2 * TILE, 1024, 16)
                        : rows_descriptor(tiles, s * STAGE + 2 * TILE);
            hold(d);
            if (WRONG != NO_FENCE || k > 0) { wgmma_fence(); }
            if (WRONG == RELEASED_EARLY && threadIdx.x % WARPGROUP == 0) {
                barrier_arrive(empty, s);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 on = WRONG == OTHER_DEPTH && warp() == 5 && i == 3 ? 4 : 2 * i;
                wgmma<64>(d, a + on, b + 2 * i, k + i > 0);
            }
            wgmma_commit();
            hold(d);
            if (WRONG == WRITTEN_SUMS && k == 1) { d[3] = 1.0f; }
            if (WRONG == READ_EARLY && k + 1 == p.steps) { put_sums(p, d, row); }
            if (WRONG == RELEASED_LATE || WRONG == RELEASED_AT_ONCE) {
                wgmma_wait<1>();
            } else if (WRONG == ONE_WARP_FIRST && warp() == 5) {
                named_sync(1 + group, WARPGROUP);
                wgmma_wait<0>();
            } else if (WRONG == ONE_WARP_FIRST) {
                wgmma_wait<0>();
                named_sync(1 + group, WARPGROUP);
            } else if (WRONG != NO_WAIT) {
                wgmma_wait<0>();
            }
            hold(d);
            bool releases = WRONG != RELEASED_EARLY && WRONG != NEVER_RELEASED;
            if (WRONG == RELEASED_LATE) {
                if (k > 0 && threadIdx.x % WARPGROUP == 0) { barrier_arrive(empty, s ^ 1); }
            } else if (WRONG == RELEASED_FOR_ANOTHER) {
                if (group == 0 && threadIdx.x % WARPGROUP < 2) { barrier_arrive(empty, s); }
            } else if (releases && threadIdx.x % WARPGROUP < CLUSTER) {
                if (CLUSTER > 1) {
                    barrier_arrive_at(empty, s, threadIdx.x % WARPGROUP);
                } else {
                    barrier_arrive(empty, s);
                }
            }
            if (++s == STAGES) { s = 0, parity ^= 1; }
        }
        if (WRONG == RELEASED_LATE || WRONG == RELEASED_AT_ONCE) { wgmma_wait<0>(); }
        if (WRONG != READ_EARLY) { put_sums(p, d, row); }
    }
    if (CLUSTER > 1 && WRONG != ENDS_EARLY) {
        cluster_arrive();
        cluster_wait();
    }
}

#define RING(name, wrong) KERNEL_CLUSTER(name, Maps, THREADS, 1, 1, product<1, wrong>)
#define RING_2(name, wrong) KERNEL_CLUSTER(name, Maps, THREADS, 1, 2, product<2, wrong>)
RING(ring, NOTHING)
RING(released_late, RELEASED_LATE)
RING(released_at_once, RELEASED_AT_ONCE)
RING(released_for_another, RELEASED_FOR_ANOTHER)
RING_2(ring_of_two, NOTHING)
KERNEL_CLUSTER(ring_of_four, Maps, THREADS, 1, 4, product<4, NOTHING>)
RING(no_init_fence, NO_INIT_FENCE)
RING(no_init_barrier, NO_INIT_BARRIER)
RING(wrong_parity, PARITY)
RING(released_early, RELEASED_EARLY)
RING(expects_less, EXPECTS_LESS)
RING(expects_more, EXPECTS_MORE)
RING(never_released, NEVER_RELEASED)
RING(never_waited_for, NO_WAIT)
RING(read_early, READ_EARLY)
RING(no_fence, NO_FENCE)
RING(offsets_exchanged, OFFSETS_EXCHANGED)
RING(full_not_waited_for, NO_WAIT_FOR_FULL)
RING(two_arrivals, TWO_ARRIVALS)
RING_2(ends_early, ENDS_EARLY)
RING_2(local_wait, LOCAL_WAIT)
RING(other_depth, OTHER_DEPTH)
RING(misaligned_box, MISALIGNED)
RING(waits_apart, ONE_WARP_FIRST)
RING(written_sums, WRITTEN_SUMS)

// out (64×N) = a · bᵀ, 64 deep, once.
template <u32 N> __device__ __forceinline__ void once(const Maps &p) {
    constexpr Shared<u64> ready{2 * (64 + N) * 64};
    if (threadIdx.x == 0) {
        barrier_init(ready, 0, 1);
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x == 0) {
        u32 at[2] = {0, 0};
        barrier_expect(ready, 0, ready.offset);
        tma_load<2>(tiles, 0, p.a, at, ready, 0);
        tma_load<2>(tiles, TILE, p.b, at, ready, 0);
    }
    barrier_wait(ready, 0, 0);
    float d[N / 2];
    wgmma_fence();
    for (u32 i = 0; i < 4; i++) {
        wgmma<N>(d, rows_descriptor(tiles, 16 * i), rows_descriptor(tiles, TILE + 16 * i), i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (u32 i = 0; i < N / 2; i++) {
        u32 row = warp() * 16 + lane() / 4 + i / 2 % 2 * 8;
        p.out.set(row * N + i / 4 * 8 + lane() % 4 * 2 + i % 2, d[i]);
    }
}
#define ONCE(N) KERNEL_CLUSTER(once_##N, Maps, WARPGROUP, 1, 1, once<N>)
ONCE(8) ONCE(16) ONCE(32) ONCE(64) ONCE(128) ONCE(192) ONCE(256)

enum Values : u32 {
    RIGHT,
    LEAD_AND_STRIDE,
    NO_LEAD,
    DEPTH_STEP,
    NO_ZEROS_FENCE,
    NO_ZEROS_BARRIER,
    FENCE_BEHIND,
    ZEROS_TOO_LATE,
    WRITTEN_BEHIND_FENCE,
};

// out (64×N) = in (64×64) · values (64×N), the rows from 48 on replaced by zeros.
template <u32 N, u32 WRONG> __device__ __forceinline__ void held(const Maps &p) {
    constexpr Shared<u64> ready{2 * N * 64};
    if (threadIdx.x == 0) {
        barrier_init(ready, 0, 1);
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x == 0) {
        barrier_expect(ready, 0, ready.offset);
        for (u32 n = 0; n < N; n += 64) {
            u32 at[2] = {n, 0};
            tma_load<2>(tiles, 64 * n, p.values, at, ready, 0);
        }
    }
    u32 l = lane(), row = warp() * 16 + l / 4, a[4][4];
    for (u32 k = 0; k < 4; k++) {
        for (u32 i = 0; i < 4; i++) {
            a[k][i] = p.in.load<u32>((row + i % 2 * 8) * 64 + 16 * k + 2 * (l % 4) + i / 2 * 8);
        }
    }
    barrier_wait(ready, 0, 0);
    auto zeros = [&] {
        for (u32 n = 0; n < N / 64; n++) {
            tiles.store(TILE * n + 64 * 48 + 8 * threadIdx.x, Vec16{});
        }
    };
    if (WRONG != ZEROS_TOO_LATE) { zeros(); }
    if (WRONG != NO_ZEROS_FENCE && WRONG != FENCE_BEHIND) { fence_async(); }
    if (WRONG != NO_ZEROS_BARRIER) { named_sync(1, WARPGROUP); }
    if (WRONG == FENCE_BEHIND) { fence_async(); }
    float d[N / 2];
    for (u32 i = 0; i < N / 2; i++) { d[i] = 0.0f; }
    wgmma_fence();
    for (u32 k = 0; k < 4; k++) {
        u32 at = 1024 * (WRONG == DEPTH_STEP ? k / 2 : k);
        u64 b = WRONG == LEAD_AND_STRIDE ? tile_descriptor(tiles, at, 1024, 2 * TILE)
                : WRONG == NO_LEAD       ? rows_descriptor(tiles, at)
                                         : columns_descriptor(tiles, at, 2 * TILE);
        wgmma_held<N>(d, a[k], b, true);
    }
    wgmma_commit();
    if (WRONG == ZEROS_TOO_LATE) { zeros(); }
    wgmma_wait<0>();
    if (WRONG == WRITTEN_BEHIND_FENCE) {
        wgmma_fence();
        d[5] *= 2.0f;
        wgmma_held<N>(d, a[0], columns_descriptor(tiles, 0, 2 * TILE), true);
        wgmma_commit();
        wgmma_wait<0>();
    }
    for (u32 i = 0; i < N / 2; i++) {
        p.out.set((row + i / 2 % 2 * 8) * N + i / 4 * 8 + l % 4 * 2 + i % 2, d[i]);
    }
}
#define HELD(name, N, wrong) KERNEL_CLUSTER(name, Maps, WARPGROUP, 1, 1, held<N, wrong>)
HELD(held_64, 64, RIGHT)
HELD(held_128, 128, RIGHT)
HELD(lead_and_stride, 128, LEAD_AND_STRIDE)
HELD(no_lead, 128, NO_LEAD)
HELD(depth_step, 64, DEPTH_STEP)
HELD(no_zeros_fence, 64, NO_ZEROS_FENCE)
HELD(no_zeros_barrier, 64, NO_ZEROS_BARRIER)
HELD(fence_behind, 64, FENCE_BEHIND)
HELD(zeros_too_late, 64, ZEROS_TOO_LATE)
HELD(written_behind_fence, 64, WRITTEN_BEHIND_FENCE)
