// run: what the driver's half of the library asks of the half that runs kernels.
#pragma once

#include "engine.h"

#include <string>
#include <vector>

namespace emulator {

// Parameters are aligned to 64 bytes, as tensor maps must be.
struct alignas(64) ParamLine {
    u64 word[8];
};

struct Launch {
    const Entry *entry;
    std::string kernel;
    Index grid, block;
    u32 shared_bytes;
    std::vector<ParamLine> params;
    u64 seed;
    u64 number;  // of all launches of the process
};

bool run(const Launch &launch);  // false after a fault

// Allocations. `owned` tells whether a whole range lies within one.
void *allocate(u64 bytes);  // null when there is no more
bool release(void *at);
bool owned(const void *at, u64 bytes);
// Writes where the allocation of an address begins and ends; false if there is none.
bool allocation(u64 at, u64 *first, u64 *end);
u64 allocated();
constexpr u64 MEMORY = 8ull << 30;

u64 seed();

// Writes what cuTensorMapEncodeTiled is asked for (tensor.cpp); false where a driver refuses it.
bool encode_map(u64 *map, int type, u32 rank, u64 address, const u64 *sizes, const u64 *strides,
                const u32 *box, const u32 *steps, int interleave, int swizzle, int fill);

// Keeps a fault that was found elsewhere.
void keep_fault(const std::string &text);

}  // namespace emulator
