// knowledge: what a thread may take for done, beyond what the clocks of barriers of the whole block
// and of __syncwarp say. An arrival leaves with the barrier all that its thread knows and has done;
// who waits takes it from there. What all lanes of a warp know is kept once.

#include "async.h"

#include <utility>

#define VECTORISED                                                                                 \
    __attribute__((optimize("O3"), target_clones("avx512f", "avx2", "default")))

namespace emulator {

namespace {

VECTORISED void raise_all(u32 *to, const u32 *from, u32 count) {
    for (u32 i = 0; i < count; i++) {
        to[i] = to[i] < from[i] ? from[i] : to[i];
    }
}

// The columns of a block among those of its cluster.
u32 first_column(const Worker &block) { return block.rank * block.async->columns; }

void raise(Known &to, const Told &told, u32 columns) {
    to.resize(columns);
    raise_all(to.data() + told.first, told.known->data() + (told.first - told.base),
              told.end - told.first);
}

bool tells(const Told &told, u32 column, u32 time) {
    return told.first <= column && column < told.end && time < (*told.known)[column - told.base];
}

}  // namespace

Async &async_of(Worker &block) {
    if (!block.async) {
        auto async = new Async();
        u32 threads = block.warp_count * LANES;
        async->columns = threads + BARRIERS + MAX_GROUPS;
        u32 all = async->columns * u32(block.cluster->blocks.size());
        async->warps.resize(block.warp_count);
        for (Knowing &warp : async->warps) {
            warp.all.resize(all);
        }
        async->fenced.assign(threads, 0);
        // What a block gets: its threads' share of a multiprocessor's registers.
        u32 blocks = std::max(block.launch->entry->blocks, 1u);
        u32 most = 65536 / (block.launch->entry->threads * blocks) / 8 * 8;
        async->registers.assign(threads, std::min(most, 255u));
        block.async = async;
    }
    return *block.async;
}

void forget_async(Worker &block) {
    delete block.async;
    block.async = nullptr;
}

u32 column(const Worker &block, u32 of) {
    u32 in_block = of < BARRIER_IDS ? of : block.warp_count * LANES + (of - BARRIER_IDS);
    return first_column(block) + in_block;
}

void raise(Known &to, const Known &from) {
    if (to.empty()) {
        to = from;
    } else if (!from.empty()) {
        raise_all(to.data(), from.data(), u32(to.size()));
    }
}

bool knows(const Thread &t, const Worker &block, u32 of, u32 time) {
    if (time < CLOCK_START) {
        return true;
    }
    if (t.block == &block && of < BARRIER_IDS) {
        bool of_warp = of / LANES == t.id / LANES;
        if (of == t.id || time < block.barrier || (of_warp && time < t.warp->ordered)) {
            return true;
        }
    }
    const Async &async = *t.block->async;
    if (!block.async) {
        return false;
    }
    u32 at = column(block, of);
    const Knowing &warp = async.warps[t.id / LANES];
    const Known &lane = warp.lane[t.lane];
    if (time < warp.all[at] || (!lane.empty() && time < lane[at])) {
        return true;
    }
    auto knowing = [&](const Acquired &some) {
        return some.lanes >> t.lane & 1 && tells(some.told, at, time);
    };
    return std::any_of(warp.some.begin(), warp.some.end(), knowing);
}

bool handed_over(const Thread &t, u32 mark) {
    return mark < IS_BARRIER && knows(t, worker_of(t), mark % MAX_THREADS, mark >> CLOCK);
}

// As global_past, of a mark of another block.
bool handed_over_by_another(const Thread &t, u64 mark) {
    for (const Worker *other : worker_of(t).cluster->blocks) {
        u32 time = u32(mark >> GLOBAL_CLOCK) % (1 << (BLOCK_NAME - GLOBAL_CLOCK));
        if ((mark ^ other->name) >> BLOCK_NAME == 0) {
            return time < other->past || knows(t, *other, mark % MAX_THREADS, time - other->past);
        }
    }
    return false;
}

void publish(const Thread &t, Known &to) {
    Worker &block = worker_of(t);
    const Async &async = async_of(block);
    u32 w = t.id / LANES;
    const Knowing &warp = async.warps[w];
    raise(to, warp.all);
    raise(to, warp.lane[t.lane]);
    for (const Acquired &some : warp.some) {
        if (some.lanes >> t.lane & 1) {
            raise(to, some.told, u32(to.size()));
        }
    }
    u32 *mine = to.data() + first_column(block);
    for (u32 i = 0; i < async.columns; i++) {
        mine[i] = std::max(mine[i], block.barrier);
    }
    for (u32 i = 0; i < LANES; i++) {
        u32 &lane = mine[w * LANES + i];
        lane = std::max(lane, t.warp->ordered);
    }
    mine[t.id] = tick(block);
}

Told tell(Known &published) {
    u32 end = u32(published.size());
    return {std::make_shared<Known>(std::exchange(published, {})), 0, 0, end};
}

Told tell_of(const Worker &block, const Told &all) {
    Told own = all;
    own.first = first_column(block);
    own.end = own.first + block.async->columns;
    return own;
}

void acquire(const Thread &t, const Told &told, u64 source) {
    if (!told.known) {
        return;
    }
    Knowing &warp = t.block->async->warps[t.id / LANES];
    u32 columns = u32(warp.all.size()), lane = 1u << t.lane;
    auto same = [=](const Acquired &some) { return some.from == source; };
    auto found = std::find_if(warp.some.begin(), warp.some.end(), same);
    if (found == warp.some.end()) {
        // The last was this lane's alone, or nobody else will come for the first.
        if (!warp.some.empty() && (warp.some.back().lanes == lane || warp.some.size() == 8)) {
            const Acquired &some = warp.some.front();
            for (u32 i = 0; i < LANES; i++) {
                if (some.lanes >> i & 1) {
                    raise(warp.lane[i], some.told, columns);
                }
            }
            warp.some.pop_front();
        }
        warp.some.push_back({0, source, told});
        found = std::prev(warp.some.end());
    }
    found->lanes |= lane;
    u32 present = std::min(t.block->threads - t.id / LANES * LANES, LANES);
    if (u32(__builtin_popcount(found->lanes)) == present) {
        raise(warp.all, found->told, columns);
        warp.some.erase(found);
    }
}

void acquire_warp(Warp &warp, Worker &block) {
    Knowing &knowing = block.async->warps[&warp - block.warp];
    for (Known &lane : knowing.lane) {
        raise(knowing.all, lane);
        lane.clear();
    }
    for (const Acquired &some : knowing.some) {
        raise(knowing.all, some.told, u32(knowing.all.size()));
    }
    knowing.some.clear();
}

void acquire_block(Worker &block) {
    Known all;
    for (u32 w = 0; w < block.warp_count; w++) {
        acquire_warp(block.warp[w], block);
        raise(all, block.async->warps[w].all);
    }
    for (Knowing &warp : block.async->warps) {
        warp.all = all;
    }
}

// What is older than half of the clock's range counts as past.
void renew(Block &base) {
    Worker &block = static_cast<Worker &>(base);
    u32 first = block.clock - CLOCK_LIMIT / 2;
    auto time = [=](u32 t) { return t < first ? std::min(t, 1u) : t - first + CLOCK_START; };
    auto limit = [=](u32 t) {
        return t < first ? std::min(t, CLOCK_START) : t - first + CLOCK_START;
    };
    auto mark = [=](u32 m) {
        return m < PAST || m >= IS_BARRIER ? m : time(m >> CLOCK) << CLOCK | m % PAST;
    };
    u32 granules = (block.shared_bytes + 1) / 2;
    std::transform(block.written, block.written + granules, block.written, mark);
    std::transform(block.read, block.read + granules, block.read, mark);
    block.past += first - CLOCK_START;
    block.clock = limit(block.clock);
    block.barrier = limit(block.barrier);
    for (u32 w = 0; w < block.warp_count; w++) {
        block.warp[w].ordered = limit(block.warp[w].ordered);
    }
    u32 from = first_column(block), columns = block.async->columns;
    auto known = [&](Known &all) {
        if (!all.empty()) {
            auto begin = all.begin() + from;
            std::transform(begin, begin + columns, begin, limit);
        }
    };
    // What was told is shared.
    std::map<Known *, u32> bases;
    auto told = [&](const Told &told) {
        if (told.known) {
            bases[told.known.get()] = told.base;
        }
    };
    for (Worker *other : block.cluster->blocks) {
        if (!other->async) {
            continue;
        }
        for (Knowing &warp : other->async->warps) {
            known(warp.all);
            std::for_each(warp.lane, warp.lane + LANES, known);
            for (Acquired &some : warp.some) {
                told(some.told);
            }
        }
        for (Mbarrier &barrier : other->async->barriers) {
            known(barrier.coming);
            told(barrier.handed);
            known(barrier.remote);
        }
        for (Named &named : other->async->named) {
            known(named.coming);
        }
    }
    known(block.cluster->coming);
    told(block.cluster->handed);
    Async &async = *block.async;
    std::transform(async.fenced.begin(), async.fenced.end(), async.fenced.begin(), limit);
    for (Mbarrier &barrier : async.barriers) {
        barrier.shown = barrier.shown ? limit(barrier.shown) : 0;
    }
    for (auto &group : async.groups) {
        if (group) {
            std::transform(group->read.begin(), group->read.end(), group->read.begin(), time);
            for (Done &done : group->done) {
                told(done.told);
            }
            for (Member &member : group->member) {
                member.known[0] = member.known[1] = 0;
            }
            for (Product &product : group->products) {
                std::transform(product.marks.begin(), product.marks.end(), product.marks.begin(),
                               mark);
            }
        }
    }
    for (auto [all, base] : bases) {
        for (u32 i = 0; i < all->size(); i++) {
            bool own = base + i >= from && base + i < from + columns;
            (*all)[i] = own ? limit((*all)[i]) : (*all)[i];
        }
    }
}

}  // namespace emulator
