// async: what Hopper adds to a block, kept beside it from the first use on: barriers in shared
// memory, boxes of tensors under way, products of warpgroups, and who knows what was done before.
#pragma once

#include "worker.h"

#include <deque>

namespace emulator {

constexpr u32 WARPGROUP_THREADS = 128, MAX_GROUPS = MAX_THREADS / WARPGROUP_THREADS;
// Barriers that a block can make, and the first of their ids: in marks, each is the thread that
// wrote what has landed and was counted at it.
constexpr u32 BARRIERS = 64, BARRIER_IDS = MAX_THREADS - BARRIERS;
// Among what is known, each warpgroup has an id too: what its wgmma have read.
constexpr u32 GROUP_IDS = MAX_THREADS;
// Bytes of shared memory that a wgmma reads as one: 16 columns of a row.
constexpr u32 UNIT = 32, UNITS = SHARED_MOST / UNIT;

// For each thread of the cluster, and each barrier at which boxes are counted: what it did before
// this time, by its block's clock, is past.
using Known = std::vector<u32>;

// What a barrier tells those who wait: columns `first` to `end` of what is known, of which the first that
// there is is `base`.
struct Told {
    std::shared_ptr<Known> known;
    u32 base, first, end;
};

// What a warp knows: all its lanes, each lane, and those that have waited for a phase which others
// of them will still wait for. Once all have, it is what all know.
struct Acquired {
    u32 lanes;
    u64 from;  // the phase
    Told told;
};
struct Knowing {
    Known all, lane[LANES];
    std::deque<Acquired> some;
};

struct Mbarrier {
    u32 at;  // its offset
    u32 arrivals, pending, phase;
    long long bytes;        // announced and not landed; negative where they landed first
    u32 boxes;              // under way
    u32 by, shown;          // who made it, and when it was fenced; 0 if it was not
    Known coming;           // what the arrivals of this phase know
    Told handed;            // and those of the one before did
    Known remote;           // when threads of other blocks have arrived
    std::vector<Thread *> waiting;
};

struct Named {
    u32 threads, there;
    Known coming;
    std::vector<Thread *> waiting;
};

// The sums of wgmma under way: 64 rows of n. The threads' own registers hold NaN meanwhile.
struct Sums {
    u32 n, products;  // that are under way
    u64 end;          // the last product's number + 1
    u32 left;         // threads that have yet to take them
    float *registers[WARPGROUP_THREADS];
    std::vector<float> value;
};

struct Product {
    u32 n;
    u32 threads;            // that have come to it
    bool held, add, first;  // a in registers; d is added; the first under way with its sums
    u64 a, b;
    Sums *sums;
    std::vector<u32> units;  // that it reads
    std::vector<u32> marks;  // that these had, each once
    std::vector<float> rows;  // of a, where it is held
};

// Registers of sums, and what they were at the last wgmma_fence.
struct Held {
    const float *registers;
    u32 n;
    u64 hash;
};

struct Member {
    u64 products, commits;  // how many it has issued
    u64 waited, groups;     // products and groups that it has waited for
    bool fenced;
    u32 known[2];  // the last marks of operands that it was found to know
    Held held[4];  // sums that it had, the last at held[(sums - 1) % 4]
    u32 sums;
};

// A group of products that are done: where it ends, how many threads have yet to wait for it, and
// what they know then.
struct Done {
    u64 end;
    u32 left;
    Told told;
};

struct Group {
    Member member[WARPGROUP_THREADS];
    std::deque<Product> products;  // under way
    std::deque<u64> ends;          // of committed groups under way: how many products came before
    u64 products_done, groups_done;
    std::deque<Done> done;  // and not taken by all
    u64 groups_taken;
    std::vector<std::unique_ptr<Sums>> sums, settled;  // under way, done
    std::vector<Thread *> waiting;
    // For each unit of shared memory: how many products under way read it, when one has last.
    std::vector<u16> reading;
    std::vector<u32> read;
    float a[64 * 16], b[16 * 256], rows[256 * 16];  // of the product that is done
};

struct Async {
    u32 columns;  // in Known, of a block
    std::vector<Knowing> warps;
    std::vector<u32> fenced;  // for each thread: when it last called fence_async
    std::deque<Mbarrier> barriers;
    Named named[16];
    std::unique_ptr<Group> groups[MAX_GROUPS];
    // setmaxnreg: what threads have, what is free, who waits for more.
    std::vector<u32> registers;
    u32 registers_free;
    std::vector<Thread *> claiming;
};

// A box that a thread has asked for and that has not landed in shared memory.
struct Box {
    const Thread *by;
    Worker *to;
    u32 into, bytes, barrier;
    const u64 *map;
    u32 at[5];
};

// The blocks that run together on one CPU thread: one, where a kernel has no clusters.
struct Cluster {
    std::vector<Worker *> blocks;
    void *home;  // the stack of the CPU thread
    u32 ended;   // blocks
    std::vector<Box> boxes;
    // The barrier of the cluster.
    u32 arrived, generation;
    Known coming;
    Told handed;
    std::vector<Thread *> waiting;
    // By block and thread: the generation + 1, between arrive and wait.
    std::vector<std::vector<u32>> awaited;
};

// The state of a thread's block, made when it is first asked for.
Async &async_of(Worker &block);
void forget_async(Worker &block);
void begin_cluster(Cluster &cluster);

// knowledge.cpp. `of` is a thread or a barrier of the block.
bool knows(const Thread &t, const Worker &block, u32 of, u32 time);
void publish(const Thread &t, Known &to);  // all that t knows and has done
// What was published, of all blocks or of one, and goes on as nothing.
Told tell(Known &published);
Told tell_of(const Worker &block, const Told &all);
void acquire(const Thread &t, const Told &told, u64 source);  // from a source that t has not had
void acquire_warp(Warp &warp, Worker &block);  // what one lane knows, all know
void acquire_block(Worker &block);
u32 column(const Worker &block, u32 of);
void raise(Known &to, const Known &from);
void renew(Block &block);  // sets the clock back

// barrier.cpp
Mbarrier &barrier_of(const Thread &t, Worker &block, u32 at, bool by_box);
void barrier_landed(Worker &block, Mbarrier &barrier, u32 bytes);
void thread_ends(Thread &t);
void block_ends(Worker &block);
void stuck_async(Cluster &cluster);  // a fault, if threads wait for anything of this

// tensor.cpp
bool land(Cluster &cluster);  // a box, drawn; false if none is under way
bool box_at(const Worker &block, u32 offset, u32 bytes);

// wgmma.cpp
Group &group_of(const Thread &t);
// What warpgroups read there, or have and t does not know it: a fault, if it is overwritten.
void check_products(const Thread &t, Worker &block, u32 offset, u32 bytes, const char *does);
// A generic write that the async proxy meets.
void check_proxy(const Thread &t, const Worker &block, u32 offset, u32 mark, const char *does);

}  // namespace emulator
