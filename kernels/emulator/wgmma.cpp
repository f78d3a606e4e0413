// wgmma: products of a warpgroup. Each of its 128 threads says which product comes next; what the
// operands are read from is read when somebody waits for it, and what the sums were, NaN stands for
// until then.

#include "multiply.h"

namespace emulator {

namespace {

constexpr u32 POISON = 0x7fe1dead;  // a NaN that no instruction makes

// Registers of a thread and the sums that they stand for: d[4c + 2h + i] is row l / 4 + 8h of its
// warp's 16, column 8c + 2 (l % 4) + i.
template <class Do> void for_pairs(u32 member, u32 n, Do each) {
    u32 row = member / LANES * 16 + member % LANES / 4, column = member % 4 * 2;
    for (u32 c = 0; c < n / 8; c++) {
        for (u32 h = 0; h < 2; h++) {
            each(4 * c + 2 * h, (row + 8 * h) * n + 8 * c + column);
        }
    }
}

bool poisoned(float v) {
    u32 bits;
    memcpy(&bits, &v, sizeof bits);
    return bits == POISON;
}

void poison(float *registers, u32 n) {
    for (u32 i = 0; i < n / 2; i++) {
        memcpy(&registers[i], &POISON, sizeof POISON);
    }
}

u64 hash(const float *registers, u32 n) {
    u64 sum = 0;
    for (u32 i = 0; i < n / 2; i++) {
        u32 bits;
        memcpy(&bits, &registers[i], sizeof bits);
        sum = (sum ^ bits) * 0x9e3779b97f4a7c15ull;
    }
    return sum;
}

// Sums of before that were changed since the fence: the wgmma need not see that.
void check_fenced(const Member &member, const float *registers, u32 n) {
    for (const Held &held : member.held) {
        if (held.registers == registers && held.n == n && held.hash != hash(registers, n)) {
            fault("wgmma adds to sums that were written behind the last wgmma_fence");
        }
    }
}

// The operands lie in shared memory, and each 32 bytes of them are read as one.
void add_units(const Block &block, Product &product, u32 at) {
    if (at + UNIT > block.shared_bytes) {
        fault("wgmma reads 32 bytes at %u of shared memory, outside its %u bytes", at,
              block.shared_bytes);
    }
    product.units.push_back(at / UNIT);
}

void find_units(const Block &block, Product &product) {
    Operand right(product.b, "b");
    if (product.held) {
        for (u32 k = 0; k < DEPTH; k++) {
            for (u32 n = 0; n < product.n; n += 16) {
                add_units(block, product, right.across(k, n) & -UNIT);
            }
        }
        return;
    }
    Operand left(product.a, "a");
    for (u32 r = 0; r < ROWS; r++) {
        add_units(block, product, left.side_by_side(r, 0) & -UNIT);
    }
    for (u32 r = 0; r < product.n; r++) {
        add_units(block, product, right.side_by_side(r, 0) & -UNIT);
    }
}

// What a thread that multiplies must know of the operands: that they were written, and shown to the
// async proxy.
void check_operand(const Thread &t, u32 at, u32 mark) {
    constexpr const char *DOES = "multiplies by wgmma what is at";
    Worker &block = worker_of(t);
    if (!mark) {
        fault("%s %u of shared memory, never written", DOES, at);
    }
    if (mark >= IS_BARRIER) {
        fault("%s %u of shared memory, where %s", DOES, at,
              mark == IS_BARRIER           ? "an mbarrier is"
              : box_at(block, at, UNIT) ? "a box of a tensor is under way"
                                           : "a cp.async is under way");
    }
    if (!knows(t, block, mark % MAX_THREADS, mark >> CLOCK)) {
        u32 by = mark % MAX_THREADS;
        if (by >= BARRIER_IDS) {
            fault("%s %u of shared memory, where a box of a tensor has landed that it has not "
                  "waited for",
                  DOES, at);
        }
        fault("%s %u of shared memory: race, thread %u wrote it and no barrier lies between",
              DOES, at, by);
    }
    check_proxy(t, block, at, mark, DOES);
}

// By the first thread that comes to a product, for all of it.
void check_operands(const Thread &t, Product &product) {
    u32 known = 0;
    for (u32 unit : product.units) {
        const u32 *marks = t.block->written + unit * (UNIT / 2);
        u32 differ = 0;
        for (u32 i = 0; i < UNIT / 2; i++) {
            differ |= marks[i] ^ known;
        }
        for (u32 i = 0; differ && i < UNIT / 2; i++) {
            u32 mark = marks[i];
            if (mark == known && known) {
                continue;
            }
            check_operand(t, unit * UNIT + 2 * i, mark);
            known = mark;
            auto end = product.marks.end();
            if (std::find(product.marks.begin(), end, mark) == end && product.marks.size() < 64) {
                product.marks.push_back(mark);
            }
        }
        if (!known) {
            check_operand(t, unit * UNIT, 0);
        }
    }
}

// The sums of a product: those under way in the same registers, or new ones.
Sums *sums_of(Group &group, u32 member, float *registers, u32 n, bool *first) {
    for (auto &sums : group.sums) {
        float *theirs = sums->registers[member];
        if (theirs == registers && sums->n == n) {
            *first = false;
            return sums.get();
        }
        if (theirs && registers < theirs + sums->n / 2 && theirs < registers + n / 2) {
            fault("wgmma with sums of which another under way has some, and not all");
        }
    }
    *first = true;
    group.sums.emplace_back(new Sums{n, 0, 0, WARPGROUP_THREADS, {}, std::vector<float>(ROWS * n)});
    return group.sums.back().get();
}

Product &start(Group &group, const Thread &t, const Product &like, float *registers) {
    group.products.push_back(like);
    Product &product = group.products.back();
    product.sums = sums_of(group, t.id % WARPGROUP_THREADS, registers, product.n, &product.first);
    product.sums->products++;
    product.sums->end = group.products_done + group.products.size();
    product.rows.resize(product.held ? ROWS * DEPTH : 0);
    find_units(*t.block, product);
    check_operands(t, product);
    for (u32 unit : product.units) {
        group.reading[unit]++;
    }
    return product;
}

// This thread's part of a product under way.
void take_part(Thread &t, const Product &like, float *registers, const u32 *held) {
    Group &group = group_of(t);
    u32 m = t.id % WARPGROUP_THREADS;
    Member &member = group.member[m];
    u64 at = member.products - group.products_done;
    bool is_new = at == group.products.size();
    Product &product = is_new ? start(group, t, like, registers) : group.products[at];
    if (product.n != like.n || product.held != like.held || product.add != like.add ||
        product.a != like.a || product.b != like.b) {
        fault("wgmma with n %u, a %#llx, b %#llx, add %d, where another thread of its warpgroup "
              "has n %u, a %#llx, b %#llx, add %d",
              like.n, like.a, like.b, like.add, product.n, product.a, product.b, product.add);
    }
    for (u32 i = 0; !is_new && i < product.marks.size(); i++) {
        // What is known stays known; mostly it is of the last two boxes.
        u32 mark = product.marks[i];
        if (mark != member.known[0] && mark != member.known[1]) {
            check_operand(t, product.units[0] * UNIT, mark);
            member.known[1] = member.known[0];
            member.known[0] = mark;
        }
    }
    Sums &sums = *product.sums;
    if ((product.first || product.held) && !member.fenced) {
        fault("wgmma without wgmma_fence since %s",
              member.commits ? "the last wgmma_wait" : "the kernel's start");
    }
    if (product.first) {
        if (product.add) {
            check_fenced(member, registers, product.n);
        }
        sums.registers[m] = registers;
        for_pairs(m, product.n, [&](u32 i, u32 place) {
            if (product.add) {
                memcpy(&sums.value[place], &registers[i], 8);
            }
        });
        poison(registers, product.n);
    } else if (sums.registers[m] != registers) {
        fault("wgmma with other sums than another thread of its warpgroup");
    }
    if (product.held) {
        // As a of mma16x8x16.
        u32 row = m / LANES * 16 + m % LANES / 4, column = m % 4 * 2;
        for (u32 i = 0; i < 4; i++) {
            u16 pair[2] = {u16(held[i]), u16(held[i] >> 16)};
            widen(&product.rows[(row + i % 2 * 8) * DEPTH + column + i / 2 * 8], pair, 2);
        }
    }
    member.products++;
    product.threads++;
    if (product.threads == WARPGROUP_THREADS) {
        for (Thread *waiting : group.waiting) {
            wake(*waiting);
        }
        group.waiting.clear();
    }
}

// Does the products of the oldest group under way.
void finish(Worker &block, Group &group) {
    u64 end = group.ends.front();
    group.ends.pop_front();
    group.groups_done++;
    u32 at = column(block, GROUP_IDS + self->id / WARPGROUP_THREADS);
    Told told{std::make_shared<Known>(1, block.clock + 1), at, at, at + 1};
    group.done.push_back({end, WARPGROUP_THREADS, told});
    while (group.products_done < end) {
        Product &product = group.products.front();
        compute(block, group, product);
        for (u32 unit : product.units) {
            group.reading[unit]--;
            group.read[unit] = block.clock;
        }
        if (!--product.sums->products) {
            auto same = [&](auto &sums) { return sums.get() == product.sums; };
            auto found = std::find_if(group.sums.begin(), group.sums.end(), same);
            group.settled.push_back(std::move(*found));
            group.sums.erase(found);
        }
        group.products.pop_front();
        group.products_done++;
    }
    tick(block);
}

// A thread gets its sums that are done, and knows that their operands have been read.
void take(Thread &t, Group &group, u64 groups) {
    u32 m = t.id % WARPGROUP_THREADS;
    Member &member = group.member[m];
    Done &done = group.done[groups - 1 - group.groups_taken];
    for (auto &sums : group.settled) {
        float *&registers = sums->registers[m];
        if (!registers || sums->end > done.end) {
            continue;
        }
        for_pairs(m, sums->n, [&](u32 d, u32 place) {
            if (!poisoned(registers[d]) || !poisoned(registers[d + 1])) {
                fault("has written to sums of a wgmma under way");
            }
            memcpy(&registers[d], &sums->value[place], 8);
        });
        auto same = [&](const Held &held) { return held.registers == registers; };
        Held *found = std::find_if(member.held, std::end(member.held), same);
        found = found == std::end(member.held) ? &member.held[member.sums++ % 4] : found;
        *found = {registers, sums->n, 0};
        registers = nullptr;
        sums->left--;
    }
    auto taken = [](auto &sums) { return !sums->left; };
    auto rest = std::remove_if(group.settled.begin(), group.settled.end(), taken);
    group.settled.erase(rest, group.settled.end());

    acquire(t, done.told, 5ull << 61 | u64(t.id / WARPGROUP_THREADS) << 56 | groups);
    for (; member.groups < groups; member.groups++) {
        group.done[member.groups - group.groups_taken].left--;
    }
    member.waited = done.end;
    while (!group.done.empty() && !group.done.front().left) {
        group.done.pop_front();
        group.groups_taken++;
    }
}

}  // namespace

Group &group_of(const Thread &t) {
    Worker &block = worker_of(t);
    u32 number = t.id / WARPGROUP_THREADS;
    if ((number + 1) * WARPGROUP_THREADS > block.threads) {
        fault_of(t, "wgmma by less than a warpgroup: the block has %u threads", block.threads);
    }
    std::unique_ptr<Group> &group = async_of(block).groups[number];
    if (!group) {
        group.reset(new Group());
        group->reading.resize(UNITS);
        group->read.resize(UNITS);
    }
    return *group;
}

void wgmma_fence() {
    Member &member = group_of(*self).member[self->id % WARPGROUP_THREADS];
    member.fenced = true;
    for (Held &held : member.held) {
        held.hash = hash(held.registers, held.n);
    }
}

void wgmma(float *registers, u32 n, u64 a, u64 b, bool add) {
    Product like{};
    like.n = n;
    like.add = add;
    like.a = a;
    like.b = b;
    take_part(*self, like, registers, nullptr);
}

void wgmma_held(float *registers, u32 n, const u32 *a, u64 b, bool add) {
    Product like{};
    like.n = n;
    like.held = true;
    like.add = add;
    like.b = b;
    take_part(*self, like, registers, a);
}

void wgmma_commit() {
    Group &group = group_of(*self);
    Member &member = group.member[self->id % WARPGROUP_THREADS];
    u64 at = member.commits++ - group.groups_done;
    if (at == group.ends.size()) {
        group.ends.push_back(member.products);
    } else if (group.ends[at] != member.products) {
        fault("comes to wgmma_commit after %llu wgmma, and another thread of its warpgroup after "
              "%llu",
              member.products, group.ends[at]);
    }
}

void wgmma_wait(u32 groups) {
    Group &group = group_of(*self);
    Member &member = group.member[self->id % WARPGROUP_THREADS];
    member.fenced = false;
    if (member.commits <= member.groups + groups) {
        return;
    }
    u64 until = member.commits - groups;
    while (group.groups_done < until) {
        u64 last = group.ends[until - group.groups_done - 1] - group.products_done;
        if (!last || group.products[last - 1].threads == WARPGROUP_THREADS) {
            finish(worker_of(*self), group);
        } else {
            group.waiting.push_back(self);
            sleep();
        }
    }
    take(*self, group, until);
}

void check_products(const Thread &t, Worker &block, u32 offset, u32 bytes, const char *does) {
    if (!block.async) {
        return;
    }
    for (u32 g = 0; g < MAX_GROUPS; g++) {
        const Group *group = block.async->groups[g].get();
        if (!group) {
            continue;
        }
        u32 before = 0;
        for (u32 unit = offset / UNIT; unit <= (offset + bytes - 1) / UNIT; unit++) {
            if (group->reading[unit]) {
                fault_of(t, "%s %u of shared memory, which a wgmma under way reads", does,
                         unit * UNIT);
            }
            u32 read = group->read[unit];
            bool own = t.block == &block && t.id / WARPGROUP_THREADS == g;
            bool known = !read || own || read == before || knows(t, block, GROUP_IDS + g, read);
            before = read;
            if (!known) {
                fault_of(t,
                         "%s %u of shared memory, which a wgmma of warpgroup %u has read, and no "
                         "barrier lies between",
                         does, unit * UNIT, g);
            }
        }
    }
}

void async_write(const Thread &t, u32 offset, u32 bytes) {
    check_products(t, worker_of(t), offset, bytes, "writes to");
}

void fence_async() {
    Worker &block = worker_of(*self);
    async_of(block).fenced[self->id] = tick(block);
}

void check_proxy(const Thread &t, const Worker &block, u32 offset, u32 mark, const char *does) {
    u32 by = mark % MAX_THREADS, time = mark >> CLOCK;
    if (!mark || mark >= IS_BARRIER || by >= BARRIER_IDS || time < CLOCK_START) {
        return;
    }
    if (!block.async || block.async->fenced[by] <= time) {
        fault_of(t, "%s %u of shared memory, which thread %u wrote without fence_async behind it",
                 does, offset, by);
    }
}

}  // namespace emulator
