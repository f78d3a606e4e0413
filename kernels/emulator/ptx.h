// ptx: the instructions of ptx.cuh on the CPU, with the same layouts of fragments.
#pragma once

#include "engine.h"

inline u32 emulator_bf16(float v) {
    u32 bits = __float_as_uint(v);
    return v != v ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline u32 narrow2(float low, float high) {
    return emulator_bf16(low) | emulator_bf16(high) << 16;
}
inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
template <class T> inline Vec16 load_once(Global<T> from, u64 i) {
    return from.template load<Vec16>(i);
}

inline void let_next_come() {}
inline void wait_for_previous() { emulator::self->waited = true; }
inline u32 atomic_add_ordered(Global<u32> to, u64 i, u32 v) {
    return emulator::add_ordered(to.first + i, v);
}

template <class T>
inline void cp_async16(Shared<T> to, u32 i, Global<T> from, u64 j, u32 bytes) {
    emulator::copy_start(to.at(i), from.first + j, bytes);
}
inline void cp_async_commit() { emulator::copy_commit(); }
template <int N> inline void cp_async_wait() { emulator::copy_wait(N); }

namespace emulator {

template <bool TRANS> inline void ldmatrix(u32 (&out)[4], u32 offset) {
    auto put = [=](Exchange &e) { e.word[self->lane] = offset; };
    auto finish = [](Exchange &e) {
        Block &block = *self->block;
        Thread *warp = self - self->lane;
        for (u32 i = 0; i < LANES; i++) {
            u32 at = u32(e.word[i]);
            shared_check<Access::Read, 16>(warp[i], at);
            u32 *matrix = e.a[i / 8];
            if (!TRANS) {
                memcpy(matrix + i % 8 * 4, block.shared + at, 16);
                continue;
            }
            u16 row[8], column[64];
            memcpy(row, block.shared + at, 16);
            memcpy(column, matrix, sizeof column);
            for (u32 c = 0; c < 8; c++) {
                column[c * 8 + i % 8] = row[c];
            }
            memcpy(matrix, column, sizeof column);
        }
    };
    const Exchange &e =
        meet(TRANS ? Meeting::LdmatrixTrans : Meeting::Ldmatrix, ~0u, put, finish);
    for (u32 i = 0; i < 4; i++) {
        out[i] = e.a[i][self->lane];
    }
}

// 8 bf16 at `from`, widened.
inline void widen8(float *to, const u32 *from) {
    for (u32 i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(from[i] << 16);
        to[2 * i + 1] = __uint_as_float(from[i] & 0xffff0000u);
    }
}

// By the layouts, the 4 lanes of a group g hold 8 neighbours of a row (or of b, a column), so what
// the lanes deposit side by side is the matrix.
inline void mma(Exchange &e) {
    float a[16][16], columns[8][16], b[16][8];
    for (u32 g = 0; g < 8; g++) {
        for (u32 half = 0; half < 2; half++) {
            widen8(&a[g][8 * half], &e.a[2 * half][4 * g]);
            widen8(&a[g + 8][8 * half], &e.a[2 * half + 1][4 * g]);
            widen8(&columns[g][8 * half], &e.b[half][4 * g]);
        }
    }
    for (u32 k = 0; k < 16; k++) {
        for (u32 n = 0; n < 8; n++) {
            b[k][n] = columns[n][k];
        }
    }
    typedef float Row __attribute__((vector_size(32)));
    for (u32 m = 0; m < 16; m++) {
        Row sum, row;
        memcpy(&sum, &e.d[8 * m], sizeof sum);
        for (u32 k = 0; k < 16; k++) {
            memcpy(&row, b[k], sizeof row);
            sum += a[m][k] * row;
        }
        memcpy(&e.d[8 * m], &sum, sizeof sum);
    }
}

}  // namespace emulator

inline void ldmatrix4(u32 (&out)[4], Shared<bf16> from, u32 i) {
    emulator::ldmatrix<false>(out, from.at(i));
}
inline void ldmatrix4_trans(u32 (&out)[4], Shared<bf16> from, u32 i) {
    emulator::ldmatrix<true>(out, from.at(i));
}
inline void mma16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 lane = emulator::self->lane;
    auto put = [&](emulator::Exchange &e) {
        for (u32 i = 0; i < 4; i++) {
            e.a[i][lane] = a[i];
        }
        e.b[0][lane] = b0;
        e.b[1][lane] = b1;
        memcpy(&e.d[2 * lane], &d[0], 8);
        memcpy(&e.d[2 * lane + 64], &d[2], 8);
    };
    const emulator::Exchange &e =
        emulator::meet(emulator::Meeting::Mma, ~0u, put, emulator::mma);
    memcpy(&d[0], &e.d[2 * lane], 8);
    memcpy(&d[2], &e.d[2 * lane + 64], 8);
}
