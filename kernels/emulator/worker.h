// worker: what is needed to run a block, and the blocks of a cluster together; how a fiber waits
// and is woken. Kernels do not see it.
#pragma once

#include "run.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

namespace emulator {

unsigned char *reserve(u64 bytes);  // zeroed, and backed once it is touched

struct Copy {
    u32 to;
    const void *from;
    u32 bytes;
};

struct Copies {
    std::vector<Copy> started;
    std::vector<u32> groups;  // how many copies each committed group has, the oldest first
    u32 open = 0;             // started since the last commit
};

// A time for each name of a block: what it wrote before is past.
using Times = std::array<u32, BLOCK_NAMES>;

// What blocks of a launch have handed over, by the counter that they did it with.
struct Board {
    std::mutex lock;
    std::map<const u32 *, Times> times;
};

constexpr u64 STACK = 64 << 10;
constexpr u32 SHARED_MOST = 227 << 10;

struct Cluster;
struct Async;

// What is needed to run a block; kept for the next.
struct Worker : Block {
    std::vector<Thread> threads_ = std::vector<Thread>(MAX_THREADS);
    std::vector<Copies> copies = std::vector<Copies>(MAX_THREADS);
    std::unique_ptr<Warp[]> warps{new Warp[MAX_WARPS]()};
    std::vector<u32> marks = std::vector<u32>(SHARED_MOST);
    unsigned char *stacks = reserve(STACK * MAX_THREADS);
    Times times, coming;  // what other blocks have handed over, and from the next barrier on
    bool comes;
    const Launch *launch;
    Board *board;
    std::atomic<bool> *stop;
    Cluster *cluster;
    u32 rank;  // in the cluster
    u64 random;
    u32 waiting, ended, warp_count;

    Worker();
    ~Worker();

    u32 draw() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return u32(random >> 16);
    }
};

inline Worker &worker_of(const Thread &t) { return static_cast<Worker &>(*t.block); }

[[noreturn]] void fault_of(const Thread &t, const char *format, ...)
    __attribute__((cold, format(printf, 2, 3)));

// The lane that runs waits until it is woken.
void sleep();
void wake(Thread &t);

// The block's clock goes on; returns the new time.
u32 tick(Block &block);

}  // namespace emulator
