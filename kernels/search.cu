// search: inner products of queries with a corpus, and the top_k largest of each query, larger
// score first and lower index first where equal. queries (queries, dim), corpus (documents, dim),
// both f32.
//
// The corpus is scored stretch by stretch. search_scores: a warp has 4 documents and 8 queries; a
// lane 4 columns at a time, of the documents past the caches, of the queries from L1; so a document
// is read once for 8 queries, and blocks of further queries follow at once, while L2 has it. Scores
// that beat a query's top_k-th so far are kept, as places (order.cuh), in any order.
// search_select: a block per query finds the place of the top_k-th among those and the best so far,
// bit by bit as in sample.cu. The host sorts the last of them, a few.
// Bound by reading the corpus: 4 · documents · dim bytes. Twin: model/cpu/search.rs.
// Params: search.rs.
#include "order.cuh"

constexpr u32 DOCUMENTS = 4;
constexpr u32 QUERIES = 8;
constexpr u32 WARPS = 8;
constexpr u32 THREADS = 1024;

struct Scores {
    Global<float> queries;
    Global<float> corpus;
    Global<u64> found;   // (queries, stretch)
    Global<u64> floors;  // per query: only what comes before counts
    Global<u32> counts;  // and how many have been found
    u32 rows;            // queries
    u32 first;           // document of the stretch
    u32 count;           // of its documents
    u32 dim;
    u32 query_stride;
    u32 corpus_stride;
    u32 stretch;
    u32 unused;
};

struct Select {
    Global<u64> before;  // (queries, top_k): the best so far
    Global<u64> after;
    Global<u64> found;
    Global<u64> floors;
    Global<u32> counts;
    u32 stretch;
    u32 kept;  // in `before`, per query
    u32 top_k;
    u32 unused;
};

// Lane l gets the sum over the warp of value l, in 31 exchanges.
template <u32 STEP = WARP / 2> __device__ __forceinline__ float sum_each(float (&v)[WARP]) {
    bool upper = lane() & STEP;
#pragma unroll
    for (u32 i = 0; i < STEP; i++) {
        float kept = upper ? v[i + STEP] : v[i], other = upper ? v[i] : v[i + STEP];
        v[i] = kept + exchange(other, STEP);
    }
    if constexpr (STEP > 1) {
        return sum_each<STEP / 2>(v);
    }
    return v[0];
}

__device__ void search_scores(const Scores &p) {
    u32 query = blockIdx.x * QUERIES;
    u32 document = (blockIdx.y * WARPS + warp()) * DOCUMENTS;
    if (document >= p.count) {
        return;
    }
    Global<float> queries[QUERIES], documents[DOCUMENTS];
    // Those that are not there are the last one again, and are not stored.
    for (u32 q = 0; q < QUERIES; q++) {
        queries[q] = p.queries.from(u64(min(query + q, p.rows - 1)) * p.query_stride);
    }
    for (u32 d = 0; d < DOCUMENTS; d++) {
        u32 row = p.first + min(document + d, p.count - 1);
        documents[d] = p.corpus.from(u64(row) * p.corpus_stride);
    }
    float sums[DOCUMENTS * QUERIES] = {};
    for (u32 c = 4 * lane(); c + 4 <= p.dim; c += 4 * WARP) {
        Vec16 v[DOCUMENTS];
#pragma unroll
        for (u32 d = 0; d < DOCUMENTS; d++) {
            v[d] = load_once(documents[d], c);
        }
#pragma unroll
        for (u32 q = 0; q < QUERIES; q++) {
            Vec16 w = queries[q].load<Vec16>(c);
#pragma unroll
            for (u32 d = 0; d < DOCUMENTS; d++) {
                for (u32 j = 0; j < 4; j++) {
                    sums[d * QUERIES + q] +=
                        __uint_as_float(v[d].word[j]) * __uint_as_float(w.word[j]);
                }
            }
        }
    }
    // Up to three columns are left; their vector ends in padding, which may be anything.
    u32 c = p.dim / 4 * 4 + lane();
    if (c < p.dim) {
#pragma unroll
        for (u32 i = 0; i < DOCUMENTS * QUERIES; i++) {
            sums[i] += documents[i / QUERIES][c] * queries[i % QUERIES][c];
        }
    }
    float sum = sum_each(sums);
    u32 own = lane() % QUERIES;
    query += own;
    document += lane() / QUERIES;
    u64 place = place_of(sum, p.first + document);
    bool kept = query < p.rows && document < p.count;
    kept = kept && place > p.floors[query];
    // One addition for all documents of a query.
    u32 mates = __ballot_sync(ALL, kept) & 0x01010101u << own;
    u32 before = __popc(mates & ((1u << lane()) - 1)), at = 0;
    if (kept && before == 0) {
        at = atomic_add(p.counts, query, __popc(mates));
    }
    at = __shfl_sync(ALL, at, __clz(__brev(mates)) % WARP);
    if (kept) {
        p.found.set(u64(query) * p.stretch + at + before, place);
    }
}

__device__ void search_select(const Select &p) {
    Shared<u32> scratch{0}, written{4 * WARP};
    u32 query = blockIdx.x, all = p.kept + p.counts[query];
    Global<u64> before = p.before.from(u64(query) * p.top_k);
    Global<u64> after = p.after.from(u64(query) * p.top_k);
    Global<u64> found = p.found.from(u64(query) * p.stretch);
    auto candidate = [=](u32 n) { return n < p.kept ? before[n] : found[n - p.kept]; };
    u64 floor = 0;
    u32 suffices = all;
    for (u64 bit = 1ull << 63; bit > 0 && suffices > p.top_k; bit >>= 1) {
        u32 count = 0;
        for (u32 n = threadIdx.x; n < all; n += THREADS) {
            count += candidate(n) >= (floor | bit);
        }
        count = block_join(count, scratch, Plus{});
        if (count >= p.top_k) {
            floor |= bit;
            suffices = count;
        }
    }
    if (threadIdx.x == 0) {
        written.set(0, 0);
    }
    __syncthreads();
    for (u32 n = threadIdx.x; n < all; n += THREADS) {
        u64 place = candidate(n);
        if (place >= floor) {
            after.set(atomic_add(written, 0, 1), place);
        }
    }
    if (threadIdx.x == 0) {
        p.floors.set(query, floor);
        p.counts.set(query, 0);
    }
}

KERNEL(search_scores_f32, Scores, WARPS * WARP, 2, search_scores)
KERNEL(search_select_places, Select, THREADS, 1, search_select)
