// Shared memory on Hopper, right and wrong; behind hopper.cu.

enum Hands : u32 {
    EACH,
    ONE_AND_SYNCWARP,
    ONE_ALONE,
    NOT_WAITED_FOR,
    ONE_WAITS,
    ONE_WAITS_AND_SYNCWARP,
    WRITES_AFTER,
    READERS_NOT_ASKED,
    READERS_ASKED,
    MANY_TURNS,
};

// The first warp writes words, the second reads them and writes what it has read.
template <u32 HOW> __device__ __forceinline__ void handed(const Maps &p) {
    constexpr Shared<u64> ready{1024};
    constexpr bool ONE = HOW == ONE_AND_SYNCWARP || HOW == ONE_ALONE;
    if (threadIdx.x == 0) {
        barrier_init(ready, 0, ONE ? 1 : WARP);
        barrier_init(ready, 1, WARP);
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_previous();
    constexpr Shared<u32> word{0};
    constexpr bool OFTEN = HOW >= READERS_NOT_ASKED;
    u32 turns = HOW == MANY_TURNS ? 10000 : OFTEN ? 3 : 1;
    for (u32 turn = 0; turn < turns; turn++) {
        if (warp() == 0) {
            if (OFTEN && HOW != READERS_NOT_ASKED) { barrier_wait(ready, 1, turn % 2 ^ 1); }
            word.set(lane(), 7 * lane() + turn);
            if (HOW == ONE_AND_SYNCWARP) { __syncwarp(); }
            if (!ONE || lane() == 0) { barrier_arrive(ready, 0); }
            if (HOW == WRITES_AFTER) { word.set(lane(), 7 * lane()); }
        } else {
            bool one = HOW == ONE_WAITS || HOW == ONE_WAITS_AND_SYNCWARP;
            if (HOW != NOT_WAITED_FOR && (!one || lane() == 5)) {
                barrier_wait(ready, 0, turn % 2);
            }
            if (HOW == ONE_WAITS_AND_SYNCWARP) { __syncwarp(); }
            u32 v = word[lane() ^ 1];
            p.out.set(lane(), v);
            barrier_arrive(ready, 1);
        }
    }
}
#define HANDED(name, how) KERNEL_CLUSTER(name, Maps, 2 * WARP, 1, 1, handed<how>)
HANDED(handed_over, EACH)
HANDED(handed_over_by_one, ONE_AND_SYNCWARP)
HANDED(handed_over_to_one, ONE_WAITS_AND_SYNCWARP)
HANDED(handed_back, READERS_ASKED)
HANDED(handed_back_often, MANY_TURNS)
HANDED(one_arrives_for_all, ONE_ALONE)
HANDED(not_waited_for, NOT_WAITED_FOR)
HANDED(one_waits_for_all, ONE_WAITS)
HANDED(writes_after_arrival, WRITES_AFTER)
HANDED(not_handed_back, READERS_NOT_ASKED)

// The second warp uses a barrier that the first has made behind its arrival.
__device__ __forceinline__ void made_late(const Maps &) {
    constexpr Shared<u64> ready{0};
    wait_for_previous();
    if (threadIdx.x == 0) {
        barrier_init(ready, 0, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_arrive(ready, 0);
        barrier_init(ready, 1, WARP);
        barrier_init_fence();
    } else if (warp() == 1) {
        barrier_wait(ready, 0, 0);
        barrier_arrive(ready, 1);
    }
}
KERNEL_CLUSTER(barrier_made_late, Maps, 2 * WARP, 1, 1, made_late)

enum Names : u32 { SOME, TOO_MANY, ANOTHER, OTHER_COUNT };

// As handed_over, by named barriers.
template <u32 HOW> __device__ __forceinline__ void named(const Maps &p) {
    constexpr Shared<u32> word{0};
    wait_for_previous();
    for (u32 turn = 0; turn < 3; turn++) {
        if (warp() == 0) {
            if (turn) { named_sync(2, 2 * WARP); }
            word.set(lane(), 7 * lane() + turn);
            named_arrive(1, HOW == TOO_MANY ? 3 * WARP : 2 * WARP);
        } else if (warp() == 1) {
            bool more = HOW == TOO_MANY || HOW == OTHER_COUNT;
            named_sync(HOW == ANOTHER ? 3 : 1, more ? 3 * WARP : 2 * WARP);
            u32 v = word[lane() ^ 1];
            p.out.set(lane(), v);
            if (turn < 2) { named_arrive(2, 2 * WARP); }
        }
    }
}
KERNEL_CLUSTER(named_barriers, Maps, 3 * WARP, 1, 1, named<SOME>)
KERNEL_CLUSTER(named_too_many, Maps, 3 * WARP, 1, 1, named<TOO_MANY>)
KERNEL_CLUSTER(named_another, Maps, 3 * WARP, 1, 1, named<ANOTHER>)
KERNEL_CLUSTER(named_other_count, Maps, 3 * WARP, 1, 1, named<OTHER_COUNT>)

enum Boxes : u32 {
    WAITED_FOR,
    READ_UNDER_WAY,
    WRITTEN_UNDER_WAY,
    OVER_READS,
    OVER_WRITES,
    OVER_FENCED_WRITES,
    WRITTEN_BY_LAUNCH,
    AHEAD,
    BEYOND,
    OVER_BARRIER,
    COPIED_MAP,
    OTHER_RANK,
    MADE_TWICE,
    STORED_OVER_BARRIER,
    BARRIER_NOT_SHOWN,
    TWO_AT_ONE_PLACE,
    ENDS_BEFORE,
};

// out: the words of a box of values whose corner is at `in` words 0 and 1.
template <u32 HOW> __device__ __forceinline__ void box(const Maps &p) {
    constexpr Shared<u64> ready{2 * TILE};
    constexpr Shared<u32> word{0};
    if (threadIdx.x == 0) {
        barrier_init(ready, 0, 1);
        if (HOW == MADE_TWICE) { barrier_init(ready, 0, 1); }
        if (HOW != BARRIER_NOT_SHOWN) { barrier_init_fence(); }
        if (HOW == STORED_OVER_BARRIER) { word.set(2 * TILE / 4, 0); }
    }
    __syncthreads();
    if (HOW != AHEAD) { wait_for_previous(); }
    Global<u32> in{reinterpret_cast<u32 *>(p.in.first)};
    u32 v = 0;
    if (HOW == OVER_READS || HOW == OVER_WRITES || HOW == OVER_FENCED_WRITES) {
        word.set(threadIdx.x, 5);
        if (HOW != OVER_WRITES) { fence_async(); }
        __syncthreads();
        if (HOW == OVER_READS) { v = word[threadIdx.x ^ 1]; }
    }
    if (HOW == WRITTEN_BY_LAUNCH && threadIdx.x == 0) { in.set(64, 5); }
    if (threadIdx.x == 0) {
        u32 at[2] = {p.steps / 256, p.steps % 256}, at3[3] = {0, 0, 0};
        TensorMap copied = p.values;
        barrier_expect(ready, 0, 2 * TILE);
        u32 to = HOW == BEYOND ? 9 * 1024 / 2 : HOW == OVER_BARRIER ? 1024 / 2 : 0;
        if (HOW == OTHER_RANK) {
            tma_load<3>(tiles, to, p.values, at3, ready, 0);
        } else {
            tma_load<2>(tiles, to, HOW == COPIED_MAP ? copied : p.values, at, ready, 0);
        }
        if (HOW == TWO_AT_ONE_PLACE) { tma_load<2>(tiles, to, p.values, at, ready, 0); }
    }
    if (HOW == AHEAD) { wait_for_previous(); }
    if (HOW == ENDS_BEFORE) { return; }
    if (HOW == WRITTEN_UNDER_WAY && threadIdx.x == 0) { word.set(12, 0); }
    if (HOW != READ_UNDER_WAY) { barrier_wait(ready, 0, 0); }
    for (u32 i = threadIdx.x; i < TILE / 2; i += WARPGROUP) {
        p.out.set(i, __uint_as_float(word[i] + v));
    }
}
#define BOX(name, how) KERNEL_CLUSTER(name, Maps, WARPGROUP, 1, 1, box<how>)
BOX(a_box, WAITED_FOR)
BOX(box_over_fenced_writes, OVER_FENCED_WRITES)
BOX(box_ahead, AHEAD)
BOX(box_read_under_way, READ_UNDER_WAY)
BOX(box_written_under_way, WRITTEN_UNDER_WAY)
BOX(box_over_reads, OVER_READS)
BOX(box_over_writes, OVER_WRITES)
BOX(box_written_by_launch, WRITTEN_BY_LAUNCH)
BOX(box_beyond, BEYOND)
BOX(box_over_barrier, OVER_BARRIER)
BOX(map_copied, COPIED_MAP)
BOX(map_of_other_rank, OTHER_RANK)
BOX(barrier_made_twice, MADE_TWICE)
BOX(barrier_stored_over, STORED_OVER_BARRIER)
BOX(barrier_not_shown, BARRIER_NOT_SHOWN)
BOX(boxes_at_one_place, TWO_AT_ONE_PLACE)
BOX(ends_under_way, ENDS_BEFORE)

// A box of rank 4 without a swizzle: 8 columns, 2, 3 and 2.
__device__ __forceinline__ void wide(const Maps &p) {
    constexpr Shared<u64> ready{1024};
    constexpr Shared<u32> word{0};
    if (threadIdx.x == 0) {
        barrier_init(ready, 0, 1);
        barrier_init_fence();
        u32 at[4] = {u32(-2), 1, u32(-1), 2};
        wait_for_previous();
        barrier_expect(ready, 0, 2 * 96);
        tma_load<4>(tiles, 0, p.a, at, ready, 0);
    } else {
        wait_for_previous();
    }
    __syncthreads();
    barrier_wait(ready, 0, 0);
    for (u32 i = threadIdx.x; i < 48; i += WARP) {
        p.out.set(i, __uint_as_float(word[i]));
    }
}
KERNEL_CLUSTER(box_of_four, Maps, WARP, 1, 1, wide)

enum Registers : u32 { FAIR, TOO_MUCH, UPWARDS, DOWNWARDS };
template <u32 HOW> __device__ __forceinline__ void registers(const Maps &p) {
    wait_for_previous();
    if (threadIdx.x < WARPGROUP) {
        if (HOW == UPWARDS) {
            release_registers<176>();
        } else if (HOW == DOWNWARDS) {
            claim_registers<160>();
        } else {
            release_registers<40>();
        }
    } else {
        claim_registers<HOW == TOO_MUCH ? 240 : 232>();
    }
    p.out.set(threadIdx.x, 7.0f);
}
KERNEL_CLUSTER(registers_shared, Maps, THREADS, 1, 1, registers<FAIR>)
KERNEL_CLUSTER(registers_too_many, Maps, THREADS, 1, 1, registers<TOO_MUCH>)
KERNEL_CLUSTER(registers_released_up, Maps, THREADS, 1, 1, registers<UPWARDS>)
KERNEL_CLUSTER(registers_claimed_down, Maps, THREADS, 1, 1, registers<DOWNWARDS>)

enum Clusters : u32 {
    TOGETHER,
    NO_CLUSTER_WAIT,
    TWICE,
    WAIT_ALONE,
    NOBODY_ARRIVES,
    BEHIND_IT,
    READ_TOO_EARLY,
};
// Each block tells the next by its mbarrier that it may write.
template <u32 HOW> __device__ __forceinline__ void clusters(const Maps &p) {
    constexpr Shared<u64> told{0};
    wait_for_previous();
    if (threadIdx.x == 0) {
        barrier_init(told, 0, 1);
        barrier_init_fence();
    }
    if (HOW == WAIT_ALONE) { cluster_wait(); }
    if (HOW != BEHIND_IT) {
        cluster_arrive();
        if (HOW == TWICE) { cluster_arrive(); }
        if (HOW != NO_CLUSTER_WAIT) { cluster_wait(); }
    } else {
        __syncthreads();
    }
    u32 next = (cluster_rank() + 1) % 4;
    if (threadIdx.x == 0 && HOW != NOBODY_ARRIVES) { barrier_arrive_at(told, 0, next); }
    barrier_wait_cluster(told, 0, 0);
    p.out.set(blockIdx.x * WARP + threadIdx.x, float(next));
    if (HOW != NO_CLUSTER_WAIT) { cluster_arrive(); }
    if (HOW != READ_TOO_EARLY) { cluster_wait(); }
    // The block that it told has written that the one behind it is next.
    p.out.set(128 + blockIdx.x * WARP + threadIdx.x, p.out[next * WARP + threadIdx.x]);
    if (HOW == READ_TOO_EARLY) { cluster_wait(); }
}
KERNEL_CLUSTER(clusters_meet, Maps, WARP, 1, 4, clusters<TOGETHER>)
KERNEL_CLUSTER(cluster_without_wait, Maps, WARP, 1, 4, clusters<NO_CLUSTER_WAIT>)
KERNEL_CLUSTER(cluster_arrives_twice, Maps, WARP, 1, 4, clusters<TWICE>)
KERNEL_CLUSTER(cluster_waits_alone, Maps, WARP, 1, 4, clusters<WAIT_ALONE>)
KERNEL_CLUSTER(cluster_without_arrival, Maps, WARP, 1, 4, clusters<NOBODY_ARRIVES>)
KERNEL_CLUSTER(cluster_not_met, Maps, WARP, 1, 4, clusters<BEHIND_IT>)
KERNEL_CLUSTER(cluster_read_early, Maps, WARP, 1, 4, clusters<READ_TOO_EARLY>)
