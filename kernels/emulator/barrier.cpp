// barrier: mbarriers, named barriers, the barrier of a cluster, and setmaxnreg, which is a barrier
// too.

#include "async.h"

namespace emulator {

namespace {

Worker &mine() { return worker_of(*self); }

void wake_all(std::vector<Thread *> &waiting) {
    for (Thread *t : waiting) {
        wake(*t);
    }
    waiting.clear();
}

// The id that stands for a barrier of the block in marks.
u32 id_of(const Worker &block, const Mbarrier &barrier) {
    const std::deque<Mbarrier> &all = block.async->barriers;
    for (u32 i = 0; i < all.size(); i++) {
        if (&all[i] == &barrier) {
            return BARRIER_IDS + i;
        }
    }
    __builtin_unreachable();
}

// Ends the phase if all is there.
void settle(Worker &block, Mbarrier &barrier) {
    if (barrier.pending || barrier.bytes) {
        return;
    }
    if (barrier.boxes) {
        fault("the mbarrier at %u of shared memory of block %u,%u,%u ends phase %u, but %u boxes "
              "are under way that it counts: fewer bytes are expected than come",
              barrier.at, block.at.x, block.at.y, block.at.z, barrier.phase, barrier.boxes);
    }
    barrier.phase++;
    barrier.pending = barrier.arrivals;
    barrier.coming[column(block, id_of(block, barrier))] = tick(block);
    barrier.handed = tell(barrier.coming);
    wake_all(barrier.waiting);
}

void arrive(Worker &block, Mbarrier &barrier, u32 bytes) {
    constexpr long long MOST = (1 << 20) - 1;
    if (!barrier.pending) {
        fault("arrives at the mbarrier at %u of shared memory, whose %u arrivals of phase %u are "
              "there",
              barrier.at, barrier.arrivals, barrier.phase);
    }
    barrier.bytes += bytes;
    if (barrier.bytes > MOST) {
        fault("announces %u bytes at the mbarrier at %u of shared memory, which counts to %lld",
              bytes, barrier.at, MOST);
    }
    publish(*self, barrier.coming);
    if (&block != self->block) {
        const Worker &from = mine();
        barrier.remote.resize(barrier.coming.size());
        barrier.remote[column(from, self->id)] = from.clock - 1;
    }
    barrier.pending--;
    settle(block, barrier);
}

void wait(u32 at, u32 parity, bool local) {
    Worker &block = mine();
    Mbarrier &barrier = barrier_of(*self, block, at, false);
    while (barrier.phase % 2 == parity) {
        // What is under way comes now and then before it must.
        if (block.draw() % 8 == 0) {
            land(*block.cluster);
        } else {
            barrier.waiting.push_back(self);
            sleep();
        }
    }
    if (barrier.handed.known) {
        const Told &all = barrier.handed;
        acquire(*self, local ? tell_of(block, all) : all, u64(at) << 32 | barrier.phase);
    }
}

Named &named(u32 number, u32 threads) {
    if (number < 1 || number > 15 || threads % LANES || !threads ||
        threads > self->block->threads) {
        fault("named barrier %u of %u threads: 1 to 15, and whole warps of the block", number,
              threads);
    }
    Named &barrier = async_of(mine()).named[number];
    if (barrier.there && barrier.threads != threads) {
        fault("comes to named barrier %u of %u threads, at which others are of %u", number,
              threads, barrier.threads);
    }
    barrier.threads = threads;
    publish(*self, barrier.coming);
    barrier.there++;
    return barrier;
}

void settle(Named &barrier, u32 number) {
    static std::atomic<u64> times{0};
    if (barrier.there < barrier.threads) {
        return;
    }
    u64 source = 1ull << 63 | u64(number) << 56 | ++times;
    Told told = tell(barrier.coming);
    for (Thread *t : barrier.waiting) {
        acquire(*t, tell_of(worker_of(*t), told), source);
    }
    wake_all(barrier.waiting);
    barrier.there = 0;
}

void settle(Cluster &cluster) {
    u32 threads = 0;
    for (Worker *block : cluster.blocks) {
        threads += block->threads - block->ended;
    }
    if (!cluster.arrived || cluster.arrived < threads) {
        return;
    }
    cluster.generation++;
    cluster.arrived = 0;
    cluster.handed = tell(cluster.coming);
    wake_all(cluster.waiting);
}

u32 &registers() { return async_of(mine()).registers[self->id]; }

void check_registers(u32 n) {
    if (n % 8 || n < 24 || n > 256) {
        fault("setmaxnreg of %u registers: 24 to 256, a multiple of 8", n);
    }
}

}  // namespace

void begin_cluster(Cluster &cluster) {
    cluster.ended = cluster.arrived = cluster.generation = 0;
    cluster.boxes.clear();
    cluster.coming.clear();
    cluster.handed = {};
    cluster.waiting.clear();
    cluster.awaited.assign(cluster.blocks.size(), std::vector<u32>(MAX_THREADS));
}

// A barrier as a thread of any block of the cluster finds it, or a box that lands.
Mbarrier &barrier_of(const Thread &t, Worker &block, u32 at, bool by_box) {
    if (block.async) {
        for (Mbarrier &barrier : block.async->barriers) {
            if (barrier.at != at) {
                continue;
            }
            bool own = t.block == &block && t.id == barrier.by;
            if ((!own || by_box) && !barrier.shown) {
                fault_of(t,
                         "uses the mbarrier at %u of shared memory, which thread %u has made "
                         "without barrier_init_fence",
                         at, barrier.by);
            }
            if (!own && !knows(t, block, barrier.by, barrier.shown - 1)) {
                fault_of(t,
                         "uses the mbarrier at %u of shared memory, and no barrier lies behind its "
                         "barrier_init_fence by thread %u",
                         at, barrier.by);
            }
            return barrier;
        }
    }
    fault_of(t, "uses an mbarrier at %u of shared memory of block %u,%u,%u, where none is", at,
             block.at.x, block.at.y, block.at.z);
}

void barrier_init(u32 at, u32 arrivals) {
    Worker &block = mine();
    Async &async = async_of(block);
    if (block.threads > BARRIER_IDS || async.barriers.size() == BARRIERS) {
        fault("an mbarrier in a block of %u threads with %zu mbarriers: the emulator's limits are "
              "%u and %u",
              block.threads, async.barriers.size(), BARRIER_IDS, BARRIERS);
    }
    if (!arrivals || arrivals >= 1 << 20) {
        fault("an mbarrier of %u arrivals: 1 to 1048575", arrivals);
    }
    shared_check<Access::Write, 8>(*self, at);
    std::fill_n(block.written + at / 2, 4, IS_BARRIER);
    Mbarrier barrier{};
    barrier.at = at;
    barrier.arrivals = barrier.pending = arrivals;
    barrier.by = self->id;
    async.barriers.push_back(barrier);
}

void barrier_init_fence() {
    Worker &block = mine();
    u32 now = tick(block);
    for (Mbarrier &barrier : async_of(block).barriers) {
        if (barrier.by == self->id && !barrier.shown) {
            barrier.shown = now;
        }
    }
}

void barrier_arrive(u32 at, u32 bytes) {
    arrive(mine(), barrier_of(*self, mine(), at, false), bytes);
}

void barrier_arrive_at(u32 at, u32 rank) {
    Cluster &cluster = *mine().cluster;
    if (rank >= cluster.blocks.size()) {
        fault("arrives at an mbarrier of block %u of a cluster of %zu", rank,
              cluster.blocks.size());
    }
    Worker &block = *cluster.blocks[rank];
    if (block.ended == block.threads) {
        fault("arrives at an mbarrier of block %u of its cluster, which has ended", rank);
    }
    arrive(block, barrier_of(*self, block, at, false), 0);
}

void barrier_wait(u32 at, u32 parity, bool cluster) { wait(at, parity, !cluster); }

void barrier_landed(Worker &block, Mbarrier &barrier, u32 bytes) {
    barrier.boxes--;
    barrier.bytes -= bytes;
    settle(block, barrier);
}

void named_sync(u32 number, u32 threads) {
    Named &barrier = named(number, threads);
    barrier.waiting.push_back(self);
    self->warp->ready &= ~(1u << self->lane);
    settle(barrier, number);
    if (!(self->warp->ready >> self->lane & 1)) {
        suspend();
    }
}

void named_arrive(u32 number, u32 threads) { settle(named(number, threads), number); }

u32 cluster_rank() { return mine().rank; }

void cluster_arrive() {
    Worker &block = mine();
    Cluster &cluster = *block.cluster;
    u32 &awaited = cluster.awaited[block.rank][self->id];
    if (awaited) {
        fault("comes to cluster_arrive twice without cluster_wait");
    }
    awaited = cluster.generation + 1;
    publish(*self, cluster.coming);
    cluster.arrived++;
    settle(cluster);
}

void cluster_wait() {
    Worker &block = mine();
    Cluster &cluster = *block.cluster;
    u32 &awaited = cluster.awaited[block.rank][self->id];
    if (!awaited) {
        fault("comes to cluster_wait without cluster_arrive");
    }
    while (cluster.generation < awaited) {
        cluster.waiting.push_back(self);
        sleep();
    }
    acquire(*self, cluster.handed, 3ull << 62 | awaited);
    awaited = 0;
}

void release_registers(u32 n) {
    check_registers(n);
    u32 &mine_ = registers();
    if (n > mine_) {
        fault("release_registers to %u, of %u", n, mine_);
    }
    Async &async = async_of(mine());
    async.registers_free += mine_ - n;
    mine_ = n;
    wake_all(async.claiming);
}

void claim_registers(u32 n) {
    check_registers(n);
    u32 &mine_ = registers();
    if (n < mine_) {
        fault("claim_registers up to %u, of %u", n, mine_);
    }
    Async &async = async_of(mine());
    while (async.registers_free < n - mine_) {
        async.claiming.push_back(self);
        sleep();
    }
    async.registers_free -= n - mine_;
    mine_ = n;
}

void thread_ends(Thread &t) {
    Worker &block = worker_of(t);
    const Async &async = *block.async;
    if (const Group *group = async.groups[t.id / WARPGROUP_THREADS].get()) {
        const Member &member = group->member[t.id % WARPGROUP_THREADS];
        if (member.products > member.waited) {
            fault("ends with %llu wgmma not waited for", member.products - member.waited);
        }
    }
    if (block.cluster->awaited[block.rank][t.id]) {
        fault("ends without cluster_wait behind its cluster_arrive");
    }
    if (block.ended == block.threads) {
        block_ends(block);
    }
    settle(*block.cluster);
}

// Whether all of its threads together know that nobody will come to it any more.
void block_ends(Worker &block) {
    for (const Box &box : block.cluster->boxes) {
        if (box.to == &block) {
            fault("the block ends while a box of %u bytes to %u of its shared memory is under way",
                  box.bytes, box.into);
        }
    }
    Async &async = *block.async;
    for (u32 w = 0; w < block.warp_count; w++) {
        acquire_warp(block.warp[w], block);
    }
    for (const Mbarrier &barrier : async.barriers) {
        for (u32 i = 0; i < barrier.remote.size(); i++) {
            auto known = [&](const Knowing &warp) { return barrier.remote[i] < warp.all[i]; };
            if (barrier.remote[i] && std::none_of(async.warps.begin(), async.warps.end(), known)) {
                fault("the block ends, and nothing has made sure that thread %u of block %u of its "
                      "cluster has arrived at its mbarrier at %u: that could have come later",
                      i % async.columns, i / async.columns, barrier.at);
            }
        }
    }
}

void stuck_async(Cluster &cluster) {
    for (Worker *block : cluster.blocks) {
        if (!block->async) {
            continue;
        }
        Async &async = *block->async;
        for (u32 i = 0; i < MAX_GROUPS; i++) {
            if (async.groups[i] && !async.groups[i]->waiting.empty()) {
                const Group &group = *async.groups[i];
                auto some = [](const Product &p) { return p.threads < WARPGROUP_THREADS; };
                auto found = std::find_if(group.products.begin(), group.products.end(), some);
                fault_of(*group.waiting[0],
                         "deadlock: waits for a wgmma to which %u of %u threads of warpgroup %u "
                         "have come",
                         found->threads, WARPGROUP_THREADS, i);
            }
        }
        std::string others;
        const Mbarrier *first = nullptr;
        for (const Mbarrier &barrier : async.barriers) {
            if (!barrier.waiting.empty() && first) {
                others += "; thread " + std::to_string(barrier.waiting[0]->id) + " for phase " +
                          std::to_string(barrier.phase) + " of the one at " +
                          std::to_string(barrier.at);
            } else if (!barrier.waiting.empty()) {
                first = &barrier;
            }
        }
        for (u32 w = 0; w < block->warp_count; w++) {
            const Warp &warp = block->warp[w];
            if (warp.met) {
                others += "; " + std::to_string(__builtin_popcount(warp.met)) + " lanes of warp " +
                          std::to_string(w) + " for the others, at " +
                          MEETINGS[u32(warp.meeting)];
            }
        }
        if (first) {
            fault_of(*first->waiting[0],
                     "deadlock: waits for phase %u of the mbarrier at %u of shared memory, which "
                     "lacks %u of %u arrivals and %lld bytes%s",
                     first->phase, first->at, first->pending, first->arrivals, first->bytes,
                     others.c_str());
        }
        for (u32 i = 0; i < 16; i++) {
            if (!async.named[i].waiting.empty()) {
                fault_of(*async.named[i].waiting[0],
                         "deadlock: waits at named barrier %u, where %u of %u threads are", i,
                         async.named[i].there, async.named[i].threads);
            }
        }
        if (!async.claiming.empty()) {
            const Thread &t = *async.claiming[0];
            fault_of(t, "deadlock: claims registers beyond its %u; the block has %u free",
                     async.registers[t.id], async.registers_free);
        }
    }
    if (!cluster.waiting.empty()) {
        fault_of(*cluster.waiting[0], "deadlock: waits for its cluster, where %u threads are",
                 cluster.arrived);
    }
}

}  // namespace emulator
