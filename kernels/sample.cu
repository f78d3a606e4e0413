// sample: the next token of each row, and log-probabilities, so that only ids and a few numbers
// go back to the host. Penalty, temperature, top-k, top-p, min-p and the draw itself, in this
// order, as in the CPU twin, which sorts the vocabulary and walks it. logits (draws, vocab) f32.
//
// Here nothing is sorted: every filter keeps the tokens up to a place in the order (order.cuh). The
// place where a count or a sum of weights is reached is found bit by bit, a sum over the row for
// each, until one token is left between what suffices and what does not. A block of 1024 threads
// per row, 4 logits at a time. Bound by latency: the first pass copies the row as orders and finds
// the largest, the second sums e^logit, which is all that a greedy draw takes; every further sum
// reads the orders again from the caches, 125 KiB at a vocabulary of 32000, or, after a filter, only the
// vectors that have a token left.
// Twin: model/cpu/sample.rs. Params: sample.rs.
#include "order.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 RECORD = 11;

struct SamplingParams {
    Global<float> logits;
    // Per draw: where its seen ids begin here, how many, penalty, temperature, top_k, top_p, min_p,
    // uniform, log-probabilities, where its results go, the token that is given (~0 for none).
    Global<u32> draws;
    Global<u32> orders;  // the logits' orders (order.cuh), after the penalty; 0 for padding
    // Per draw: token, its logit, the largest logit, Σ e^(logit − largest); then (id, logit) of the
    // likeliest.
    Global<u32> out;
    u32 vocab;
    u32 stride;  // of logits and orders
};

// Before this place are all tokens, and no padding.
constexpr u64 EVERY = 1ull << 32;

struct __align__(8) Sum {
    u32 count;
    float weight;
};
__device__ __forceinline__ Sum operator+(Sum a, Sum b) {
    return {a.count + b.count, a.weight + b.weight};
}
template <> __device__ __forceinline__ Sum exchange(Sum v, u32 step) {
    return {exchange(v.count, step), exchange(v.weight, step)};
}

struct Row {
    Global<u32> orders;
    u32 vectors;  // of 4 orders
    float largest;
    float temperature;
    u32 left;  // a bit for each of this thread's vectors that has a token left; the last one for the rest

    __device__ float weight(u64 place) const {
        return expf((value_of(place) - largest) / temperature);
    }
    // Calls with the places of this thread's tokens and padding.
    template <class Visit> __device__ void each(Visit visit) const {
        for (u32 i = threadIdx.x, n = 0; i < vectors; i += THREADS, n++) {
            if (left >> min(n, 31u) & 1) {
                Vec16 v = orders.load<Vec16>(4 * i);
                for (u32 j = 0; j < 4; j++) {
                    visit(place_at(v.word[j], 4 * i + j));
                }
            }
        }
    }
    // From here on only tokens up to `last` count.
    __device__ void keep(u64 last) {
        u32 some = 0;
        each([&](u64 place) {
            u32 n = id_of(place) / 4 / THREADS;
            some |= u32(place >= last) << min(n, 31u);
        });
        left = some;
    }
    // The first place after `before`.
    __device__ u64 first_after(u64 before) const {
        u64 first = 0;
        each([&](u64 place) { first = place < before ? max(place, first) : first; });
        return block_join(first, Shared<u64>{0}, Earlier{});
    }
    // The last place up to `last` whose weight is at least `least`; ~0 where there is none.
    __device__ u64 last_of(u64 last, float least) const {
        u64 found = ~0ull;
        each([&](u64 place) {
            if (place >= last && weight(place) >= least) {
                found = min(place, found);
            }
        });
        return block_join(found, Shared<u64>{0}, Later{});
    }
    // Count and weight of the tokens up to `last`.
    __device__ Sum measure(u64 last) const {
        Sum sum = {0, 0.0f};
        each([&](u64 place) {
            if (place >= last) {
                sum = sum + Sum{1, weight(place)};
            }
        });
        return block_join(sum, Shared<Sum>{0}, Plus{});
    }
    // The first place up to which the sum of the tokens has `reached` what it should; `last` where
    // that does not suffice.
    template <class Reached> __device__ u64 shorten(u64 last, Reached reached) const {
        Sum found = measure(last), less = {0, 0.0f};
        if (!reached(found)) {
            return last;
        }
        u64 place = 0;
        for (u64 bit = 1ull << 63; bit > 0 && found.count > less.count + 1; bit >>= 1) {
            u64 next = place | bit;
            Sum sum = next > last ? measure(next) : found;
            if (reached(sum)) {
                place = next;
                found = sum;
            } else {
                less = sum;
            }
        }
        return max(place, last);
    }
};

// The token drawn; `best` is the likeliest.
__device__ u64 drawn(Row &row, Global<u32> draw, u64 best, u32 vocab) {
    u32 top_k = draw[4];
    float top_p = __uint_as_float(draw[5]), min_p = __uint_as_float(draw[6]);
    float uniform = __uint_as_float(draw[7]);
    u64 last = EVERY;
    if (top_k > 0 && top_k < vocab) {
        last = row.shorten(last, [=](Sum sum) { return sum.count >= top_k; });
        row.keep(last);
    }
    if (top_p < 1.0f) {
        float bound = top_p * row.measure(last).weight;
        // One is always kept, however small the bound.
        last = row.shorten(last, [=](Sum sum) { return sum.count > 0 && sum.weight >= bound; });
        row.keep(last);
    }
    if (min_p > 0.0f) {
        // The likeliest weighs 1, so min-p is a threshold on the weights themselves.
        last = min(row.last_of(last, min_p), best);
    }
    float bound = uniform * row.measure(last).weight;
    last = row.shorten(last, [=](Sum sum) { return sum.count > 0 && sum.weight > bound; });
    // Where rounding kept the sum below the bound: the last of the kept.
    return row.last_of(last, 0.0f);
}

__device__ void sample(const SamplingParams &p) {
    u32 index = threadIdx.x;
    Global<u32> draw = p.draws.from(RECORD * blockIdx.x);
    Global<u32> seen = p.draws.from(draw[0]), out = p.out.from(draw[9]);
    Global<float> logits = p.logits.from(u64(blockIdx.x) * p.stride);
    Global<u32> orders = p.orders.from(u64(blockIdx.x) * p.stride);
    float penalty = __uint_as_float(draw[2]), temperature = __uint_as_float(draw[3]);
    Row row = {orders, ceil_div(p.vocab, 4), 0.0f, temperature, ~0u};

    u64 best = 0;
    for (u32 i = index; i < row.vectors; i += THREADS) {
        Vec16 v = logits.load<Vec16>(4 * i);
        for (u32 j = 0; j < 4; j++) {
            bool token = 4 * i + j < p.vocab;
            v.word[j] = token ? order_of(__uint_as_float(v.word[j])) : 0;
            best = max(best, place_at(v.word[j], 4 * i + j));
        }
        orders.store<Vec16>(4 * i, v);
    }
    best = block_join(best, Shared<u64>{0}, Earlier{});
    float largest = value_of(best), sum = 0.0f;
    row.each([&](u64 place) { sum += place >= EVERY ? expf(value_of(place) - largest) : 0.0f; });
    sum = block_join(sum, Shared<float>{0}, Plus{});
    u64 likely = best;
    for (u32 n = 0; n < min(draw[8], p.vocab); n++) {
        likely = n == 0 ? best : row.first_after(likely);
        if (index == 0) {
            out.set(4 + 2 * n, id_of(likely));
            out.set(5 + 2 * n, __float_as_uint(value_of(likely)));
        }
    }
    // Its log-probability alone is asked for then: neither penalty nor filters matter.
    bool given = draw[10] < p.vocab;
    if (draw[1] > 0 && !given) {
        for (u32 n = index; n < draw[1]; n += THREADS) {
            if (seen[n] < p.vocab) {
                float logit = logits[seen[n]], finite = 3.4028234e38f;
                logit = logit > 0.0f ? logit / penalty : logit * penalty;
                orders.set(seen[n], order_of(fminf(fmaxf(logit, -finite), finite)));
            }
        }
        __syncthreads();
        best = row.first_after(~0ull);
    }
    if (temperature > 0.0f && !given) {
        row.largest = value_of(best);
        best = drawn(row, draw, best, p.vocab);
    }
    if (index == 0) {
        u32 id = given ? draw[10] : min(id_of(best), p.vocab - 1);
        out.set(0, id);
        out.set(1, __float_as_uint(logits[id]));
        out.set(2, __float_as_uint(largest));
        out.set(3, __float_as_uint(sum));
    }
}

KERNEL(sample_rows, SamplingParams, THREADS, 1, sample)
