// engine: what a kernel compiled for the CPU shares with the library that runs it: the state of a
// block, how lanes of a warp meet, and the checks of every access to memory. The checks are inline:
// they are most of what the emulator does.
#pragma once

#include <cstring>

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

namespace emulator {

constexpr u32 LANES = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / LANES;

// A mark: who touched a granule (2 bytes) of shared memory last, and when. Bits 0-9 the thread,
// 10 several lanes of its warp, 11 several warps, 12 by an atomic, 13-31 the block's clock.
// 0: never written.
constexpr u32 BY_LANES = 1 << 10, BY_WARPS = 1 << 11, BY_ATOMIC = 1 << 12, CLOCK = 13;
// Marks of their own, ordered before nothing: the destination of a copy under way; an mbarrier.
constexpr u32 UNDER_WAY = ~0u, IS_BARRIER = ~1u;
// At a barrier all that was written is past, so the clock may start anew.
constexpr u32 PAST = 1 << CLOCK, CLOCK_START = 2;
constexpr u32 CLOCK_RENEW = 1 << 18, CLOCK_LIMIT = (1 << 19) - 2;

struct Index {
    u32 x, y, z;
};

// An entry point, as KERNEL declares it beside the function.
struct Entry {
    void (*call)(const void *params);
    u32 bytes;    // of the parameters
    u32 threads;  // at most
    u32 blocks;   // a multiprocessor, at least
    u32 cluster;  // blocks that run together; 0 if it has no clusters
};

enum class Meeting : u32 { Syncwarp, Shuffle, Vote, Ldmatrix, LdmatrixTrans, Mma };
inline const char *const MEETINGS[] = {"__syncwarp", "a shuffle",       "a vote",
                                       "ldmatrix4",  "ldmatrix4_trans", "mma16x8x16"};

// What the lanes of a warp hand over and get back when they meet. There are two, used in turn: a
// lane can be at most one meeting ahead of another.
struct alignas(64) Exchange {
    u64 word[LANES];
    u32 a[4][LANES], b[2][LANES];  // fragments of mma, with `d`; ldmatrix gives its result in `a`
    float d[4 * LANES];
    u32 votes;
};

struct Warp {
    u32 ready;     // lanes that can go on
    u32 met;       // lanes that wait at the meeting
    u32 ordered;   // the clock at the last __syncwarp: what the warp did before is past for it
    u32 rotation;  // of the order in which lanes are chosen
    u32 turn;
    Meeting meeting;
    Exchange exchange[2];
};

struct Block;
struct Copies;
struct Async;

struct Thread {
    void *stack;
    Block *block;
    Warp *warp;
    u32 id, lane;
    Index index;
    Copies *copies;  // cp.async that it has started and not waited for
    bool waited;     // for the launches before
};

struct Block {
    Index at, size, grid;
    u32 threads, shared_bytes;
    u32 clock, barrier;  // now, and at the last __syncthreads
    u32 past;            // what the clock has been set back by
    u64 name;            // of the launch and the block, as in GlobalMark
    // By the name of another block: what it wrote before this time, it has handed over by an ordered
    // atomic. Null where none has.
    const u32 *seen;
    u32 *written, *read;  // the marks, one per granule
    unsigned char *shared;
    Thread *thread;
    Warp *warp;
    Async *async;  // null until something of Hopper is used
};

// The lane that runs. In the static TLS block: one instruction from any library.
extern __thread Thread *self __attribute__((tls_model("initial-exec")));

// Global memory lies in one reserved range; `global_bytes` tells how many bytes, counted from its
// start, are allocated of each 256, `global_written` who wrote each 2 last: bits 0-9 the thread,
// 10 several, 11 by an atomic, 12-35 the clock, 36-45 the block, 46-63 the launch (both modulo).
extern unsigned char *const global_base;
extern const u16 *const global_bytes;
extern u64 *const global_written;
constexpr u64 GLOBAL_RANGE = 1ull << 37;
constexpr u64 BY_SEVERAL = 1 << 10, BY_GLOBAL_ATOMIC = 1 << 11;
constexpr u32 GLOBAL_CLOCK = 12, BLOCK_NAME = 36, LAUNCH_NAME = 46, BLOCK_NAMES = 1024;

enum class Access : u32 { Read, Write, Atomic, Copy };
[[noreturn]] void fault(const char *format, ...) __attribute__((cold, format(printf, 1, 2)));
[[noreturn]] void global_fault(const void *at, u32 bytes, Access, u64 mark) __attribute__((cold));
[[noreturn]] void ahead_fault(const void *at, u32 bytes, Access) __attribute__((cold));
[[noreturn]] void shared_fault(u32 offset, u32 bytes, Access, const Thread &, u32 written, u32 read)
    __attribute__((cold));
[[noreturn]] void meeting_fault(Meeting meeting, u32 mask) __attribute__((cold));
void suspend();        // lets another lane run until this one is ready
void met(Warp &warp);  // all lanes are ready; may let another warp run first
void syncthreads();
void copy_start(u32 to, const void *from, u32 bytes);
void copy_commit();
void copy_wait(u32 groups);
bool handed_over(const Thread &t, u32 mark) __attribute__((cold));
bool handed_over_by_another(const Thread &t, u64 mark) __attribute__((cold));
void async_write(const Thread &t, u32 offset, u32 bytes) __attribute__((cold));
u32 add_ordered(u32 *at, u32 value);

// A thread's view of the marks.
struct Marks {
    const Thread &t;
    u32 thread, warp, ordered, barrier, now;

    explicit Marks(const Thread &t)
        : t(t), thread(t.id), warp(t.id / LANES), ordered(t.warp->ordered),
          barrier(t.block->barrier), now(t.block->clock << CLOCK | t.id) {}

    bool of_warp(u32 mark) const { return mark / LANES % LANES == warp && !(mark & BY_WARPS); }

    // Whether a barrier lies between the mark and now, or a __syncwarp of the warp that made it, or
    // this thread itself made it, or an mbarrier or the like has handed it over.
    bool past(u32 mark) const {
        u32 time = mark >> CLOCK;
        bool mine = mark % MAX_THREADS == thread && !(mark & BY_LANES);
        return time < barrier || (of_warp(mark) && (time < ordered || mine)) ||
               (__builtin_expect(t.block->async != nullptr, 0) && handed_over(t, mark));
    }

    // The mark once this thread has done the same.
    u32 merged(u32 mark) const {
        return past(mark) ? now : now | (of_warp(mark) ? BY_LANES : BY_WARPS);
    }
};

// The rules for one granule; true when they are kept.
template <Access ACCESS> inline bool touch(const Marks &marks, u32 &written, u32 &read) {
    u32 w = written;
    if (ACCESS == Access::Read) {
        read = marks.merged(read);
        return w && marks.past(w);
    }
    if (ACCESS == Access::Atomic) {
        written = marks.merged(w) | BY_ATOMIC;
        bool among = (w & BY_ATOMIC) && w < IS_BARRIER;
        return w && marks.past(read) && (among || marks.past(w));
    }
    written = ACCESS == Access::Copy ? UNDER_WAY : marks.now;
    return marks.past(w) && marks.past(read);
}

template <u32 N> inline bool alike(const u32 *marks) {
    u32 differ = 0;
    for (u32 i = 1; i < N; i++) {
        differ |= marks[i] ^ marks[0];
    }
    return differ == 0;
}

// An access to shared memory: within bounds, aligned, after the writes and reads that it must be.
template <Access ACCESS, u32 BYTES> inline void shared_check(const Thread &t, u32 offset) {
    static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16);
    constexpr u32 N = BYTES / 2;
    const Block &block = *t.block;
    if (__builtin_expect(offset % BYTES || u64(offset) + BYTES > block.shared_bytes, 0)) {
        shared_fault(offset, BYTES, ACCESS, t, 0, 0);
    }
    if (ACCESS != Access::Read && __builtin_expect(block.async != nullptr, 0)) {
        async_write(t, offset, BYTES);
    }
    u32 *written = block.written + offset / 2, *read = block.read + offset / 2;
    Marks marks(t);
    // Mostly the marks are alike, since they come from accesses of the same width.
    u32 step = alike<N>(written) && alike<N>(read) ? N : 1;
    for (u32 i = 0; i < N; i += step) {
        u32 w = written[i], r = read[i];
        if (__builtin_expect(!touch<ACCESS>(marks, written[i], read[i]), 0)) {
            shared_fault(offset, BYTES, ACCESS, t, w, r);
        }
    }
    if (step == N) {
        u32 *changed = ACCESS == Access::Read ? read : written;
        for (u32 i = 1; i < N; i++) {
            changed[i] = changed[0];
        }
    }
}

// As Marks::past, of a mark of this launch.
inline bool global_past(const Thread &t, u64 mark) {
    const Block &block = *t.block;
    u32 time = u32(mark >> GLOBAL_CLOCK) % (1 << (BLOCK_NAME - GLOBAL_CLOCK));
    if ((mark ^ block.name) >> BLOCK_NAME) {
        return (block.seen && time < block.seen[(mark >> BLOCK_NAME) % BLOCK_NAMES]) ||
               (block.async && handed_over_by_another(t, mark));
    }
    u32 by = mark % MAX_THREADS;
    bool mine = by == t.id && !(mark & BY_SEVERAL);
    bool of_warp = by / LANES == t.id / LANES && time < block.past + t.warp->ordered;
    return mine || of_warp || time < block.past + block.barrier ||
           (block.async && (time < block.past || handed_over(t, (time - block.past) << CLOCK | by)));
}

// An access to global memory: within an allocation, aligned, not of what another thread has written
// in this launch, unless a barrier lies between, or it was handed over. (What it has read is not known:
// that is a fault in another order of the threads.)
template <Access ACCESS, u32 BYTES> inline void global_check(const void *at) {
    constexpr u32 N = BYTES < 2 ? 1 : BYTES / 2;
    u64 place = u64(static_cast<const unsigned char *>(at) - global_base);
    if (__builtin_expect(place >= GLOBAL_RANGE || place % BYTES ||
                             place % 256 + BYTES > global_bytes[place / 256], 0)) {
        global_fault(at, BYTES, ACCESS, 0);
    }
    const Thread &t = *self;
    u64 name = t.block->name, *marks = global_written + place / 2;
    u64 now = name | u64(t.block->past + t.block->clock) << GLOBAL_CLOCK | t.id;
    bool others = false;
    // What a kernel has ever written, the launch before may still write.
    for (u32 i = 0; !t.waited && i < N; i++) {
        if (ACCESS != Access::Read || marks[i]) {
            ahead_fault(at, BYTES, ACCESS);
        }
    }
    for (u32 i = 0; i < N; i++) {
        others |= (marks[i] ^ name) >> LAUNCH_NAME == 0;
    }
    for (u32 i = 0; others && i < N; i++) {
        bool is_past = (marks[i] ^ name) >> LAUNCH_NAME || global_past(t, marks[i]);
        bool among = ACCESS == Access::Atomic && (marks[i] & BY_GLOBAL_ATOMIC);
        if (__builtin_expect(!is_past && !among, 0)) {
            global_fault(at, BYTES, ACCESS, marks[i]);
        }
        now |= is_past ? 0 : BY_SEVERAL;
    }
    for (u32 i = 0; ACCESS != Access::Read && i < N; i++) {
        marks[i] = ACCESS == Access::Atomic ? now | BY_GLOBAL_ATOMIC : now;
    }
}

// All 32 lanes come here; each deposits with `put`, the last one runs `finish` for all.
template <class Put, class Finish>
inline const Exchange &meet(Meeting meeting, u32 mask, Put put, Finish finish) {
    const Thread &t = *self;
    Warp &warp = *t.warp;
    Exchange &exchange = warp.exchange[warp.turn];
    if (__builtin_expect(mask != ~0u || (warp.met && warp.meeting != meeting), 0)) {
        meeting_fault(meeting, mask);
    }
    warp.meeting = meeting;
    put(exchange);
    warp.met |= 1u << t.lane;
    if (warp.met != ~0u) {
        warp.ready &= ~(1u << t.lane);
        suspend();
    } else {
        finish(exchange);
        met(warp);
    }
    return exchange;
}
inline void nothing(Exchange &) {}

}  // namespace emulator
