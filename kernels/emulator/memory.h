// memory: the accesses of memory.cuh on the CPU. They give a reference that is checked when it is
// read (`*global_read<T>(…)`), assigned to, or handed to an atomic.
#pragma once

#include "engine.h"

namespace emulator {

enum class Space { Global, Shared };

template <class T, Space SPACE> struct Place {
    unsigned char *at;
    u32 offset;  // in shared memory

    template <Access ACCESS> void check() const {
        if constexpr (SPACE == Space::Shared) {
            shared_check<ACCESS, sizeof(T)>(*self, offset);
        } else {
            global_check<ACCESS, sizeof(T)>(at);
        }
    }
    const Place &operator*() const { return *this; }
    operator T() const {
        check<Access::Read>();
        T value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    void operator=(const T &value) const {
        check<Access::Write>();
        memcpy(at, &value, sizeof value);
    }
};

}  // namespace emulator

template <class T> inline auto global_read(const void *at, u32) {
    auto from = static_cast<unsigned char *>(const_cast<void *>(at));
    return emulator::Place<T, emulator::Space::Global>{from, 0};
}
template <class T> inline auto global_write(void *at, u32 bytes) {
    return global_read<T>(at, bytes);
}
template <class T> inline auto shared_read(u32 offset, u32) {
    return emulator::Place<T, emulator::Space::Shared>{emulator::self->block->shared + offset,
                                                       offset};
}
template <class T> inline auto shared_write(u32 offset, u32 bytes) {
    return shared_read<T>(offset, bytes);
}

// Blocks run at the same time, so an atomic is one.
template <emulator::Space SPACE>
inline u32 atomicAdd(emulator::Place<u32, SPACE> to, u32 value) {
    to.template check<emulator::Access::Atomic>();
    return __atomic_fetch_add(reinterpret_cast<u32 *>(to.at), value, __ATOMIC_RELAXED);
}
