// engine: runs the blocks of a launch. Each thread of a block is a fiber with a stack of its own;
// a block stays on one CPU thread, blocks run side by side in an order drawn from the seed.

#include "async.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

// Saves the registers that a function must keep, and the stack's pointer to *from; goes on at `to`.
extern "C" void emulator_switch(void **from, void *to);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

namespace emulator {

__thread Thread *self __attribute__((tls_model("initial-exec")));

unsigned char *reserve(u64 bytes) {
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("emulator: mmap");
        abort();
    }
    return static_cast<unsigned char *>(at);
}

Worker::Worker() {
    thread = threads_.data();
    warp = warps.get();
    async = nullptr;
    written = marks.data();
    read = written + SHARED_MOST / 2;
    shared = reserve(SHARED_MOST);
    for (u32 i = 0; i < MAX_THREADS; i++) {
        mprotect(stacks + STACK * i, 4096, PROT_NONE);
    }
}

namespace {

std::atomic<u64> seed_now{[] {
    const char *set = getenv("GRITLM_EMULATOR_SEED");
    return set ? strtoull(set, nullptr, 0) : 1;
}()};

std::atomic<bool> quiet{false};
std::mutex fault_lock;
std::string fault_text;

void raise(Times &to, const Times &from) {
    for (u32 i = 0; i < BLOCK_NAMES; i++) {
        to[i] = std::max(to[i], from[i]);
    }
}

std::mutex workers_lock;
std::vector<Worker *> workers;
std::atomic<u32> busy{0};

Worker &worker() { return static_cast<Worker &>(*self->block); }

[[noreturn]] void leave(Worker &block) {
    void *forgotten;
    emulator_switch(&forgotten, block.cluster->home);
    __builtin_unreachable();
}

[[noreturn]] void report(const Thread &t, const char *format, va_list list) {
    Worker &block = worker_of(t);
    char text[512];
    int n = snprintf(text, sizeof text, "%s block %u,%u,%u thread %u: ",
                     block.launch->kernel.c_str(), block.at.x, block.at.y, block.at.z, t.id);
    vsnprintf(text + n, sizeof text - n, format, list);
    if (!block.stop->exchange(true)) {
        keep_fault(text);
    }
    leave(block);
}

u64 mixed(u64 a, u64 b) {
    u64 v = (a ^ (b + 0x9e3779b97f4a7c15ull)) * 0xbf58476d1ce4e5b9ull;
    v = (v ^ v >> 31) * 0x94d049bb133111ebull;
    return (v ^ v >> 29) | 1;
}

void resume(Thread &next) {
    Thread *from = self;
    if (from != &next) {
        self = &next;
        emulator_switch(&from->stack, next.stack);
    }
}

u32 lanes_of(const Worker &block, u32 warp) {
    u32 lanes = std::min(block.threads - warp * LANES, LANES);
    return lanes == LANES ? ~0u : (1u << lanes) - 1;
}

const char *doing(Access access) {
    return access == Access::Read     ? "reads"
           : access == Access::Write  ? "writes"
           : access == Access::Atomic ? "adds to"
                                      : "starts a cp.async to";
}

// Nothing can go on: some threads wait for others that have ended or wait elsewhere.
[[noreturn]] void stuck(Cluster &cluster) {
    stuck_async(cluster);
    for (Worker *block : cluster.blocks) {
        for (u32 w = 0; w < block->warp_count; w++) {
            Warp &warp = block->warp[w];
            if (warp.met) {
                u32 first = w * LANES + __builtin_ctz(warp.met);
                fault_of(block->thread[first],
                         "%s is reached by %d of 32 lanes of warp %u; of the block's %u threads %u "
                         "have ended and %u wait at __syncthreads",
                         MEETINGS[u32(warp.meeting)], __builtin_popcount(warp.met), w,
                         block->threads, block->ended, block->waiting);
            }
        }
    }
    Worker &block = worker();
    fault_of(*self, "__syncthreads is reached by %u of %u threads; %u have ended", block.waiting,
             block.threads, block.ended);
}

// A warp of the cluster that has a lane to run, beginning the search anywhere.
Warp *other_warp(Worker &from, Worker **of) {
    const std::vector<Worker *> &blocks = from.cluster->blocks;
    u32 count = u32(blocks.size()), first_block = count > 1 ? from.draw() % count : 0;
    for (u32 b = 0; b < count; b++) {
        Worker &block = *blocks[(first_block + b) % count];
        u32 first = from.draw() % block.warp_count;
        for (u32 i = 0; i < block.warp_count; i++) {
            Warp &warp = block.warp[(first + i) % block.warp_count];
            if (warp.ready) {
                *of = &block;
                return &warp;
            }
        }
    }
    return nullptr;
}

void run_lane(Worker &block, Warp &warp) {
    u32 turned = warp.ready >> warp.rotation | warp.ready << (-warp.rotation % LANES);
    u32 lane = (__builtin_ctz(turned) + warp.rotation) % LANES;
    resume(block.thread[(&warp - block.warp) * LANES + lane]);
}

// Lets any lane run. Where none can, what is under way arrives, as late as that.
void run_any(Worker &from) {
    Worker *block;
    Warp *warp;
    while (!(warp = other_warp(from, &block))) {
        if (!land(*from.cluster)) {
            stuck(*from.cluster);
        }
    }
    run_lane(*block, *warp);
}

[[noreturn]] void end() {
    Thread &t = *self;
    Worker &block = worker();
    if (!t.copies->started.empty()) {
        fault("ends with %zu cp.async not waited for", t.copies->started.size());
    }
    if (!t.waited) {
        fault("ends without wait_for_previous");
    }
    block.ended++;
    if (block.async) {
        thread_ends(t);
    }
    t.warp->ready &= ~(1u << t.lane);
    if (block.ended == block.threads && ++block.cluster->ended == block.cluster->blocks.size()) {
        leave(block);
    }
    suspend();
    __builtin_unreachable();
}

void begin() {
    worker().launch->entry->call(worker().launch->params.data());
    end();
}

void prepare(Worker &block, const Launch &launch, u64 number) {
    const Index &grid = launch.grid, &size = launch.block;
    block.launch = &launch;
    block.at = {u32(number % grid.x), u32(number / grid.x % grid.y), u32(number / grid.x / grid.y)};
    block.size = size;
    block.grid = grid;
    block.threads = size.x * size.y * size.z;
    block.warp_count = (block.threads + LANES - 1) / LANES;
    block.shared_bytes = launch.shared_bytes;
    block.clock = block.barrier = CLOCK_START;
    block.past = 0;
    block.name = launch.number << LAUNCH_NAME | number % BLOCK_NAMES << BLOCK_NAME;
    block.seen = nullptr;
    block.comes = false;
    block.random = mixed(launch.seed, number);
    block.waiting = block.ended = 0;
    forget_async(block);
    memset(block.shared, 0xff, launch.shared_bytes);
    u32 granules = (launch.shared_bytes + 1) / 2;
    memset(block.written, 0, granules * sizeof(u32));
    memset(block.read, 0, granules * sizeof(u32));
    for (u32 w = 0; w < block.warp_count; w++) {
        Warp &warp = block.warp[w];
        warp.ready = lanes_of(block, w);
        warp.met = warp.turn = 0;
        warp.ordered = CLOCK_START;
        warp.rotation = block.draw() % LANES;
    }
    for (u32 i = 0; i < block.threads; i++) {
        // Stacks begin at different cache lines, else all of them would share the same few sets.
        unsigned char *top = block.stacks + STACK * (i + 1) - i % 61 * 192 - 64;
        void **stack = reinterpret_cast<void **>(top) - 8;
        stack[6] = reinterpret_cast<void *>(begin);  // popped by `ret`, which leaves 8 mod 16
        block.copies[i].started.clear();
        block.copies[i].groups.clear();
        block.copies[i].open = 0;
        Index index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        block.thread[i] = {stack, &block, &block.warp[i / LANES], i, i % LANES, index,
                           &block.copies[i], false};
    }
}

void run_blocks(Cluster &cluster, const Launch &launch, u64 first) {
    begin_cluster(cluster);
    for (u32 i = 0; i < cluster.blocks.size(); i++) {
        cluster.blocks[i]->rank = i;
        prepare(*cluster.blocks[i], launch, first + i);
    }
    Worker &block = *cluster.blocks[cluster.blocks[0]->draw() % cluster.blocks.size()];
    Warp &warp = block.warp[block.draw() % block.warp_count];
    self = &block.thread[(&warp - block.warp) * LANES];
    emulator_switch(&cluster.home, self->stack);
    self = nullptr;
}

}  // namespace

void fault_of(const Thread &t, const char *format, ...) {
    va_list list;
    va_start(list, format);
    report(t, format, list);
}

void fault(const char *format, ...) {
    va_list list;
    va_start(list, format);
    report(*self, format, list);
}

void meeting_fault(Meeting meeting, u32 mask) {
    if (mask != ~0u) {
        fault("%s with mask %08x: all 32 lanes must take part", MEETINGS[u32(meeting)], mask);
    }
    fault("comes to %s while other lanes of its warp are at %s", MEETINGS[u32(meeting)],
          MEETINGS[u32(self->warp->meeting)]);
}

void shared_fault(u32 offset, u32 bytes, Access access, const Thread &t, u32 written, u32 read) {
    const char *does = doing(access);
    u32 limit = t.block->shared_bytes;
    if (u64(offset) + bytes > limit) {
        fault_of(t, "%s %u bytes at %u of shared memory, outside its %u bytes", does, bytes,
                 offset, limit);
    }
    if (offset % bytes) {
        fault_of(t, "%s %u bytes at %u of shared memory, misaligned", does, bytes, offset);
    }
    char place[96];
    snprintf(place, sizeof place, "%s %u bytes at %u of shared memory", does, bytes, offset);
    if (written == UNDER_WAY) {
        fault_of(t, "%s, where a %s is under way", place,
                 box_at(worker_of(t), offset, bytes) ? "box of a tensor" : "cp.async");
    }
    if (written == IS_BARRIER) {
        fault_of(t, "%s, where an mbarrier is", place);
    }
    Marks marks(t);
    if (!written && (access == Access::Read || access == Access::Atomic)) {
        fault_of(t, "%s, never written", place);
    }
    bool by_write = !marks.past(written);
    u32 mark = by_write ? written : read;
    if (t.block->async && mark % MAX_THREADS >= BARRIER_IDS) {
        fault_of(t, "%s, where a box of a tensor has landed that it has not waited for", place);
    }
    const char *who = mark & BY_WARPS   ? "several warps, thread %u among them,"
                      : mark & BY_LANES ? "several lanes, thread %u among them,"
                                        : "thread %u";
    char other[64];
    snprintf(other, sizeof other, who, mark % MAX_THREADS);
    fault_of(t, "%s: race, %s %s it and no barrier lies between", place, other,
             !by_write               ? "read"
             : mark & BY_ATOMIC ? "added to"
                                     : "wrote");
}

void suspend() {
    Worker &block = worker();
    Warp &warp = *self->warp;
    if (warp.ready) {
        run_lane(block, warp);
    } else {
        run_any(block);
    }
}

void sleep() {
    self->warp->ready &= ~(1u << self->lane);
    suspend();
}

void wake(Thread &t) { t.warp->ready |= 1u << t.lane; }

u32 tick(Block &block) {
    if (++block.clock >= CLOCK_LIMIT) {
        if (!block.async) {
            fault("more than %u __syncwarp without a __syncthreads: the emulator's limit",
                  CLOCK_LIMIT);
        }
        renew(block);
    }
    return block.clock;
}

void met(Warp &warp) {
    Worker &block = worker();
    warp.met = 0;
    warp.turn ^= 1;
    warp.ready = ~0u;
    // Shuffles, votes and matrix instructions order no memory: __syncwarp alone does.
    if (warp.meeting == Meeting::Syncwarp) {
        warp.ordered = tick(block);
        if (block.async) {
            acquire_warp(warp, block);
        }
    }
    u32 drawn = block.draw();
    warp.rotation = drawn / 8 % LANES;
    if (drawn % 8 == 0) {
        run_any(block);
    }
}

void syncthreads() {
    Thread &t = *self;
    Worker &block = worker();
    if (++block.waiting < block.threads) {
        t.warp->ready &= ~(1u << t.lane);
        suspend();
        return;
    }
    block.waiting = 0;
    tick(block);
    if (block.async) {
        acquire_block(block);
    }
    if (block.comes) {
        block.times = block.coming;
        block.seen = block.times.data();
    }
    if (block.clock >= CLOCK_RENEW && !block.async) {
        u32 granules = (block.shared_bytes + 1) / 2;
        for (u32 i = 0; i < granules; i++) {
            u32 &mark = block.written[i];
            mark = mark == 0 || mark >= IS_BARRIER ? mark : PAST;
            block.read[i] = 0;
        }
        block.past += block.clock - CLOCK_START;
        block.clock = CLOCK_START;
    }
    block.barrier = block.clock;
    for (u32 w = 0; w < block.warp_count; w++) {
        block.warp[w].ready = lanes_of(block, w);
        block.warp[w].ordered = block.clock;
    }
    run_any(block);
}

// Hands over what the block has written before its last barrier, and what was handed to it; takes, from
// its next barrier on, what those have handed over that came before. What the thread itself has written
// since is not handed over, though a GPU would.
u32 add_ordered(u32 *at, u32 value) {
    global_check<Access::Atomic, 4>(at);
    Worker &block = worker();
    std::lock_guard<std::mutex> lock(block.board->lock);
    // The mark again, now in the order of the additions: the last block to add has the last mark.
    u64 time = u64(block.past + block.clock) << GLOBAL_CLOCK;
    u64 mark = block.name | time | self->id | BY_SEVERAL | BY_GLOBAL_ATOMIC;
    u64 place = u64(reinterpret_cast<unsigned char *>(at) - global_base);
    global_written[place / 2] = global_written[place / 2 + 1] = mark;
    Times &all = block.board->times[at];
    if (block.seen) {
        raise(all, block.times);
    }
    u32 &mine = all[(block.name >> BLOCK_NAME) % BLOCK_NAMES];
    mine = std::max(mine, block.past + block.barrier);
    if (!block.comes) {
        block.coming = {};
        block.comes = true;
    }
    raise(block.coming, all);
    u32 before = *at;
    *at = before + value;
    return before;
}

void copy_start(u32 to, const void *from, u32 bytes) {
    Thread &t = *self;
    if (bytes > 16) {
        fault("a cp.async of %u bytes", bytes);
    }
    shared_check<Access::Copy, 16>(t, to);
    if (bytes == 16) {
        global_check<Access::Read, 16>(from);
    } else if (bytes && (u64(from) % 16 || !owned(from, bytes))) {
        global_fault(from, bytes, Access::Read, 0);
    }
    memset(t.block->shared + to, 0xff, 16);
    t.copies->started.push_back({to, from, bytes});
    t.copies->open++;
}

void copy_commit() {
    Copies &copies = *self->copies;
    copies.groups.push_back(copies.open);
    copies.open = 0;
}

// The data arrive here, as late as they may.
void copy_wait(u32 groups) {
    Thread &t = *self;
    Copies &copies = *t.copies;
    if (copies.groups.size() <= groups) {
        return;
    }
    auto past = copies.groups.end() - groups;
    u32 done = std::accumulate(copies.groups.begin(), past, 0u);
    for (u32 i = 0; i < done; i++) {
        const Copy &copy = copies.started[i];
        unsigned char *to = t.block->shared + copy.to;
        memset(to, 0, 16);
        memcpy(to, copy.from, copy.bytes);
        for (u32 g = 0; g < 8; g++) {
            t.block->written[copy.to / 2 + g] = Marks(t).now;
        }
    }
    copies.started.erase(copies.started.begin(), copies.started.begin() + done);
    copies.groups.erase(copies.groups.begin(), past);
}

bool run(const Launch &launch) {
    u32 together = std::max(launch.entry->cluster, 1u);
    u64 clusters = u64(launch.grid.x) * launch.grid.y * launch.grid.z / together;
    std::vector<u32> order(clusters);
    std::iota(order.begin(), order.end(), 0);
    u64 random = mixed(launch.seed, clusters);
    for (u64 i = clusters; i-- > 1;) {
        random = mixed(random, i);
        std::swap(order[i], order[random / 2 % (i + 1)]);
    }
    std::atomic<bool> stop{false};
    std::atomic<u64> next{0};
    Board board;
    auto work = [&] {
        Cluster cluster;
        {
            std::lock_guard<std::mutex> lock(workers_lock);
            while (!workers.empty() && cluster.blocks.size() < together) {
                cluster.blocks.push_back(workers.back());
                workers.pop_back();
            }
        }
        while (cluster.blocks.size() < together) {
            cluster.blocks.push_back(new Worker);
        }
        for (Worker *worker : cluster.blocks) {
            worker->stop = &stop;
            worker->board = &board;
            worker->cluster = &cluster;
        }
        for (u64 i; !stop && (i = next++) < clusters;) {
            run_blocks(cluster, launch, u64(order[i]) * together);
        }
        std::lock_guard<std::mutex> lock(workers_lock);
        workers.insert(workers.end(), cluster.blocks.begin(), cluster.blocks.end());
    };
    // Launches of several streams share the cores.
    static const u32 cores = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> others;
    busy++;
    while (others.size() + 1 < clusters && busy < cores) {
        busy++;
        others.emplace_back(work);
    }
    work();
    for (std::thread &other : others) {
        other.join();
    }
    busy -= 1 + u32(others.size());
    return !stop;
}

// Global memory. Addresses are not used twice, so that a freed range stays outside; behind each
// allocation lies at least one page that belongs to none.

unsigned char *const global_base = reserve(GLOBAL_RANGE);
namespace {
u16 *const global_used = reinterpret_cast<u16 *>(reserve(GLOBAL_RANGE / 256 * sizeof(u16)));
std::mutex memory_lock;
std::map<u64, u64> allocations;  // start → bytes, both relative to the base
u64 next_start = 4096, total;
}  // namespace
const u16 *const global_bytes = global_used;
u64 *const global_written = reinterpret_cast<u64 *>(reserve(GLOBAL_RANGE / 2 * sizeof(u64)));

void *allocate(u64 bytes) {
    std::lock_guard<std::mutex> lock(memory_lock);
    u64 span = (bytes + 2 * 4096 - 1) & -4096ull;
    if (!bytes || total + bytes > MEMORY || next_start + span > GLOBAL_RANGE) {
        return nullptr;
    }
    u64 start = next_start;
    next_start += span;
    total += bytes;
    allocations[start] = bytes;
    memset(global_base + start, 0xff, bytes);
    for (u64 i = 0; i < bytes; i += 256) {
        global_used[(start + i) / 256] = u16(std::min<u64>(256, bytes - i));
    }
    return global_base + start;
}

bool release(void *at) {
    std::lock_guard<std::mutex> lock(memory_lock);
    u64 start = u64(static_cast<unsigned char *>(at) - global_base);
    auto found = allocations.find(start);
    if (found == allocations.end()) {
        return false;
    }
    u64 bytes = found->second;
    memset(global_used + start / 256, 0, (bytes + 255) / 256 * sizeof(u16));
    madvise(global_base + start, (bytes + 4095) & -4096ull, MADV_DONTNEED);
    madvise(global_written + start / 2, 4 * ((bytes + 4095) & -4096ull), MADV_DONTNEED);
    total -= bytes;
    allocations.erase(found);
    return true;
}

namespace {
// The last allocation that begins at or before `place`; its bytes are 0 if there is none.
std::pair<u64, u64> before(u64 place) {
    auto next = allocations.upper_bound(place);
    if (next == allocations.begin()) {
        return {0, 0};
    }
    return *std::prev(next);
}
}  // namespace

bool owned(const void *at, u64 bytes) {
    u64 place = u64(static_cast<const unsigned char *>(at) - global_base);
    if (place >= GLOBAL_RANGE) {
        return false;
    }
    if (place % 256 + bytes <= 256) {
        return place % 256 + bytes <= global_bytes[place / 256];
    }
    std::lock_guard<std::mutex> lock(memory_lock);
    auto [start, size] = before(place);
    return place + bytes <= start + size;
}

bool allocation(u64 at, u64 *first, u64 *end) {
    u64 place = at - u64(global_base);
    if (place >= GLOBAL_RANGE) {
        return false;
    }
    std::lock_guard<std::mutex> lock(memory_lock);
    auto [start, size] = before(place);
    *first = u64(global_base) + start;
    *end = *first + size;
    return place < start + size;
}

u64 allocated() {
    std::lock_guard<std::mutex> lock(memory_lock);
    return total;
}

void global_fault(const void *at, u32 bytes, Access access, u64 mark) {
    const char *does = doing(access);
    u64 place = u64(static_cast<const unsigned char *>(at) - global_base);
    if (place >= GLOBAL_RANGE) {
        fault("%s %u bytes at address %#llx of global memory, which is %s", does, bytes, u64(at),
              u64(at) < 4096 ? "null" : "not the device's");
    }
    std::pair<u64, u64> near;
    {
        std::lock_guard<std::mutex> lock(memory_lock);
        near = before(place);
    }
    auto [start, size] = near;
    place -= start;
    if (!size || place + bytes > size) {
        fault("%s %u bytes of global memory outside every allocation, at %llu of one of %llu bytes",
              does, bytes, place, size);
    }
    char what[96];
    snprintf(what, sizeof what, "%s %u bytes at %llu of a global allocation of %llu bytes", does,
             bytes, place, size);
    if (!mark) {
        fault("%s, misaligned", what);
    }
    fault("%s: race, thread %llu of block %llu %s it in this launch and no barrier lies between",
          what, mark % MAX_THREADS, (mark >> BLOCK_NAME) % BLOCK_NAMES,
          mark & BY_GLOBAL_ATOMIC ? "added to" : "wrote");
}

void ahead_fault(const void *at, u32 bytes, Access access) {
    fault("%s %u bytes at %#llx of global memory ahead of wait_for_previous", doing(access), bytes,
          u64(at));
}

u64 seed() { return seed_now; }

void keep_fault(const std::string &text) {
    std::lock_guard<std::mutex> lock(fault_lock);
    fault_text = text;
    if (!quiet) {
        fprintf(stderr, "emulator: %s\n", text.c_str());
    }
}

}  // namespace emulator

extern "C" {
void emulator_seed(u64 seed) { emulator::seed_now = seed; }

// Faults are not written to stderr: they are expected.
void emulator_quiet(bool quiet) { emulator::quiet = quiet; }

// The first fault of the last launch that had one; valid until the next call on this thread.
const char *emulator_fault() {
    static thread_local std::string text;
    std::lock_guard<std::mutex> lock(emulator::fault_lock);
    text = emulator::fault_text;
    return text.c_str();
}

void emulator_clear() {
    std::lock_guard<std::mutex> lock(emulator::fault_lock);
    emulator::fault_text.clear();
}
}
