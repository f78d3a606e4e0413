// tensor: tensor maps as this library writes them in place of the driver's, and the boxes of
// tensors that TMA brings: they land when nothing else can go on, now and then before, in an order
// that is drawn.

#include "async.h"

#include <cstdio>

namespace emulator {

namespace {

constexpr u64 MARK = 0x50414d544c524947;  // the last word of a map
constexpr u32 LINE = 128;                 // bytes of shared memory that TMA and its swizzle know

u32 rank(const u64 *map) { return map[1] & 0xff; }
bool swizzles(const u64 *map) { return map[1] >> 16 & 1; }
u64 size(const u64 *map, u32 i) { return map[2 + i]; }
u64 stride(const u64 *map, u32 i) { return i ? map[6 + i] : 2; }
u32 side(const u64 *map, u32 i) { return u32(map[11 + i / 2] >> i % 2 * 32); }

u32 box_bytes(const u64 *map) {
    u32 bytes = 2;
    for (u32 i = 0; i < 5; i++) {
        bytes *= side(map, i);
    }
    return bytes;
}

// Calls `row(place in the box, first element, from, before, after)` for each row of the box of a
// map at `at`: it begins `before` elements before the tensor and ends `after` behind it. `from` is
// null where the whole row is outside.
template <class Row>
__attribute__((optimize("O3"))) void for_rows(const u64 *map, const u32 (&at)[5], Row row) {
    u32 rows = box_bytes(map) / 2 / side(map, 0);
    long long first = int(at[0]), width = side(map, 0), end = (long long)(size(map, 0));
    for (u32 r = 0; r < rows; r++) {
        bool inside = first < end && first + width > 0;
        u64 from = map[0];
        for (u32 i = 1, rest = r; i < 5; rest /= side(map, i), i++) {
            long long place = int(at[i]) + (long long)(rest % side(map, i));
            inside &= place >= 0 && place < (long long)(size(map, i));
            from += u64(place) * stride(map, i);
        }
        u32 before = u32(std::max(-first, 0ll)), after = u32(std::max(first + width - end, 0ll));
        row(r, inside ? from + u64(first + before) * 2 : 0, before, after);
    }
}

std::string place_of(const u64 *map, const u32 (&at)[5]) {
    std::string text;
    for (u32 i = 0; i < rank(map); i++) {
        text += (i ? ", " : "") + std::to_string(int(at[i]));
    }
    return text;
}

// The part of a box that lies in its tensor must be allocated. What this launch has written there
// has not been shown to the async proxy; before the wait for other launches, nothing may ever be
// written there.
void check_source(const Thread &t, const u64 *map, const u32 (&at)[5], bool lands) {
    for_rows(map, at, [&](u32, u64 from, u32 before, u32 after) {
        if (!from) {
            return;
        }
        u32 bytes = 2 * (side(map, 0) - before - after);
        const void *first = reinterpret_cast<const void *>(from);
        if (!owned(first, bytes)) {
            fault_of(t,
                     "asks for the box at (%s) of a tensor, which reads outside every allocation",
                     place_of(map, at).c_str());
        }
        if (!lands && t.waited) {
            return;
        }
        const u64 *marks = global_written + (from - u64(global_base)) / 2;
        u64 any = 0, others = ~0ull;
        for (u32 i = 0; i < bytes / 2; i++) {
            any |= marks[i];
            others = std::min(others, (marks[i] ^ t.block->name) >> LAUNCH_NAME);
        }
        if (!lands && any) {
            fault_of(t, "asks for the box at (%s) of a tensor ahead of wait_for_previous",
                     place_of(map, at).c_str());
        }
        for (u32 i = 0; !others && i < bytes / 2; i++) {
            if ((marks[i] ^ t.block->name) >> LAUNCH_NAME == 0) {
                fault_of(t,
                         "asks for the box at (%s) of a tensor, where thread %llu of block %llu "
                         "has written in this launch",
                         place_of(map, at).c_str(), marks[i] % MAX_THREADS,
                         (marks[i] >> BLOCK_NAME) % BLOCK_NAMES);
            }
        }
    });
}

bool alike(const u32 *marks, u32 count) {
    u32 differ = 0;
    for (u32 i = 1; i < count; i++) {
        differ |= marks[i] ^ marks[0];
    }
    return !differ;
}

// What was written and read where a box shall land must be past for the thread that asks for it.
void check_target(const Thread &t, Worker &block, u32 into, u32 bytes) {
    for (u32 at = into; at < into + bytes; at += LINE) {
        const u32 granules = std::min(LINE, into + bytes - at) / 2;
        u32 *written = block.written + at / 2, *read = block.read + at / 2;
        u32 step = alike(written, granules) && alike(read, granules) ? granules : 1;
        for (u32 i = 0; i < granules; i += step) {
            for (u32 mark : {written[i], read[i]}) {
                if (mark == UNDER_WAY || mark == IS_BARRIER) {
                    fault_of(t, "asks for a box to %u of shared memory, where %s", at + 2 * i,
                             mark == IS_BARRIER ? "an mbarrier is" : "another copy is under way");
                }
                if (mark && !knows(t, block, mark % MAX_THREADS, mark >> CLOCK)) {
                    const char *did = mark == written[i] ? "written" : "read";
                    u32 by = mark % MAX_THREADS;
                    if (by >= BARRIER_IDS) {
                        fault_of(t,
                                 "asks for a box to %u of shared memory, where one has landed that "
                                 "nobody it heard from has waited for",
                                 at + 2 * i);
                    }
                    fault_of(t,
                             "asks for a box to %u of shared memory, which thread %u has %s, and "
                             "no barrier lies between",
                             at + 2 * i, by, did);
                }
            }
            check_proxy(t, block, at + 2 * i, written[i], "asks for a box to");
        }
    }
    check_products(t, block, into, bytes, "asks for a box to");
}

}  // namespace

bool encode_map(u64 *map, int type, u32 rank, u64 address, const u64 *sizes, const u64 *strides,
                const u32 *box, const u32 *steps, int interleave, int swizzle, int fill) {
    // CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 and SWIZZLE_128B; other kinds no kernel uses. Source of the
    // limits: CUDA driver API, "Tensor Map Object Management".
    constexpr int BFLOAT16 = 9, SWIZZLE_128 = 3;
    bool swizzles = swizzle == SWIZZLE_128;
    if (!map || u64(map) % 64 || type != BFLOAT16 || rank < 1 || rank > 5 || !address ||
        address % 16 || interleave || fill || (swizzle && !swizzles)) {
        return false;
    }
    u64 word[16] = {address, rank | 2 << 8 | u64(swizzles) << 16};
    for (u32 i = 0; i < 5; i++) {
        u64 length = i < rank ? sizes[i] : 1, wide = i < rank ? box[i] : 1;
        u64 apart = i && i < rank ? strides[i - 1] : 0;
        if (!length || length > 1ull << 32 || !wide || wide > 256 || apart % 16 ||
            apart >= 1ull << 40 || (i < rank && steps[i] != 1)) {
            return false;
        }
        word[2 + i] = length;
        if (i) {
            word[6 + i] = apart;
        }
        word[11 + i / 2] |= wide << i % 2 * 32;
    }
    u32 row = box[0] * 2;
    if (row % 16 || (swizzles && row > LINE)) {
        return false;
    }
    word[15] = MARK;
    memcpy(map, word, sizeof word);
    return true;
}

// Starts the copies of a box to `blocks` of the cluster, a bit each; 0 is the thread's own.
void tma(u32 into, const u64 *map, const u32 *at, u32 of_rank, u32 barrier, u32 blocks) {
    Thread &t = *self;
    Worker &mine = worker_of(t);
    Cluster &cluster = *mine.cluster;
    u64 in_params = u64(map) - u64(mine.launch->params.data());
    if (in_params + 128 > mine.launch->entry->bytes || in_params % 64) {
        fault("asks for a box by a tensor map that is not in its parameters, or not aligned to 64");
    }
    if (map[15] != MARK || rank(map) != of_rank) {
        fault("asks for a box of rank %u by a tensor map %s", of_rank,
              map[15] == MARK ? "of another rank" : "that is none");
    }
    Box box{&t, nullptr, into, box_bytes(map), barrier, map, {}};
    std::copy_n(at, of_rank, box.at);
    if (into % (swizzles(map) ? 1024 : LINE)) {
        fault("asks for a box to %u of shared memory, misaligned", into);
    }
    if (swizzles(map) && side(map, 0) * 2 != LINE) {
        fault("asks for a swizzled box with rows of %u bytes: the emulator knows those of 128",
              side(map, 0) * 2);
    }
    if (u64(into) + box.bytes > mine.shared_bytes) {
        fault("asks for a box of %u bytes to %u of shared memory, outside its %u bytes", box.bytes,
              into, mine.shared_bytes);
    }
    check_source(t, map, box.at, false);
    if (!blocks) {
        blocks = 1u << mine.rank;
    }
    if (blocks >> cluster.blocks.size()) {
        fault("asks for a box to blocks %#x of a cluster of %zu", blocks, cluster.blocks.size());
    }
    for (Worker *to : cluster.blocks) {
        if (!(blocks >> to->rank & 1)) {
            continue;
        }
        if (to->ended == to->threads) {
            fault("asks for a box to block %u of its cluster, which has ended", to->rank);
        }
        check_target(t, *to, into, box.bytes);
        barrier_of(t, *to, barrier, true).boxes++;
        std::fill_n(to->written + into / 2, (box.bytes + 1) / 2, UNDER_WAY);
        memset(to->shared + into, 0xff, box.bytes);
        box.to = to;
        cluster.boxes.push_back(box);
    }
}

void tma_prefetch(const u64 *map) {
    if (map[15] != MARK) {
        fault("prefetches a tensor map that is none");
    }
}

bool land(Cluster &cluster) {
    if (cluster.boxes.empty()) {
        return false;
    }
    u32 drawn = cluster.blocks[0]->draw() % u32(cluster.boxes.size());
    Box box = cluster.boxes[drawn];
    cluster.boxes.erase(cluster.boxes.begin() + drawn);
    check_source(*box.by, box.map, box.at, true);
    Worker &to = *box.to;
    unsigned char *shared = to.shared;
    u32 row_bytes = 2 * side(box.map, 0);
    unsigned char row[512];
    for_rows(box.map, box.at, [&](u32 r, u64 from, u32 before, u32 after) {
        memset(row, 0, row_bytes);
        if (from) {
            memcpy(row + 2 * before, reinterpret_cast<const void *>(from),
                   row_bytes - 2 * (before + after));
        }
        for (u32 c = 0; c < row_bytes; c += 16) {
            u32 place = box.into + r * row_bytes + c;
            // Bits 4-6 of the address, by bits 7-9: which row of 128 bytes among eight.
            memcpy(shared + (swizzles(box.map) ? place ^ (place >> 7 & 7) << 4 : place), row + c,
                   16);
        }
    });
    Mbarrier &barrier = barrier_of(*box.by, to, box.barrier, true);
    u32 id = BARRIER_IDS;
    while (&to.async->barriers[id - BARRIER_IDS] != &barrier) {
        id++;
    }
    std::fill_n(to.written + box.into / 2, box.bytes / 2, to.clock << CLOCK | id);
    barrier_landed(to, barrier, box.bytes);
    return true;
}

bool box_at(const Worker &block, u32 offset, u32 bytes) {
    for (const Box &box : block.cluster->boxes) {
        if (box.to == &block && offset < box.into + box.bytes && box.into < offset + bytes) {
            return true;
        }
    }
    return false;
}

}  // namespace emulator
