// multiply: the product of a wgmma in floats, which is most of what the emulator does for Hopper.

#include "multiply.h"

namespace emulator {

namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef float Anywhere __attribute__((vector_size(64), aligned(4), may_alias));
constexpr u32 WIDE = 16;

// COLUMNS·16 columns of four rows of sums.
template <u32 COLUMNS>
inline __attribute__((always_inline)) void tile(float *sum, u32 n, const float *a, const float *b) {
    Lanes s[4][COLUMNS], row[COLUMNS];
    for (u32 m = 0; m < 4; m++) {
        for (u32 c = 0; c < COLUMNS; c++) {
            s[m][c] = *reinterpret_cast<const Anywhere *>(sum + m * n + c * WIDE);
        }
    }
    for (u32 k = 0; k < DEPTH; k++) {
        for (u32 c = 0; c < COLUMNS; c++) {
            row[c] = *reinterpret_cast<const Anywhere *>(b + k * n + c * WIDE);
        }
        for (u32 m = 0; m < 4; m++) {
            for (u32 c = 0; c < COLUMNS; c++) {
                s[m][c] += a[m * DEPTH + k] * row[c];
            }
        }
    }
    for (u32 m = 0; m < 4; m++) {
        for (u32 c = 0; c < COLUMNS; c++) {
            *reinterpret_cast<Anywhere *>(sum + m * n + c * WIDE) = s[m][c];
        }
    }
}

// sum (64×n) += a (64×16) · b (16×n).
__attribute__((optimize("O3"), target_clones("avx512f", "avx2", "default"))) void
multiply(float *sum, u32 n, const float *a, const float *b) {
    for (u32 m = 0; m < ROWS; m += 4) {
        float *to = sum + m * n;
        u32 c = 0;
        for (; c + 4 * WIDE <= n; c += 4 * WIDE) {
            tile<4>(to + c, n, a + m * DEPTH, b + c);
        }
        for (; c + WIDE <= n; c += WIDE) {
            tile<1>(to + c, n, a + m * DEPTH, b + c);
        }
        for (; c < n; c++) {
            for (u32 i = 0; i < 4; i++) {
                for (u32 k = 0; k < DEPTH; k++) {
                    to[i * n + c] += a[(m + i) * DEPTH + k] * b[k * n + c];
                }
            }
        }
    }
}

}  // namespace

void compute(const Block &block, Group &group, const Product &product) {
    float *a = group.a, *b = group.b, *rows = group.rows;
    const unsigned char *shared = block.shared;
    auto read = [&](float *to, u32 at) {
        u16 values[8];
        memcpy(values, shared + at, sizeof values);
        widen(to, values, 8);
    };
    Operand right(product.b, "b");
    u32 n = product.n;
    if (product.held) {
        std::copy(product.rows.begin(), product.rows.end(), a);
        for (u32 k = 0; k < DEPTH; k++) {
            for (u32 c = 0; c < n; c += 8) {
                read(b + k * n + c, right.across(k, c));
            }
        }
    } else {
        Operand left(product.a, "a");
        for (u32 r = 0; r < ROWS; r++) {
            read(a + r * DEPTH, left.side_by_side(r, 0));
            read(a + r * DEPTH + 8, left.side_by_side(r, 8));
        }
        for (u32 r = 0; r < n; r++) {
            read(rows + r * DEPTH, right.side_by_side(r, 0));
            read(rows + r * DEPTH + 8, right.side_by_side(r, 8));
        }
        for (u32 k = 0; k < DEPTH; k++) {
            for (u32 c = 0; c < n; c++) {
                b[k * n + c] = rows[c * DEPTH + k];
            }
        }
    }
    float *sum = product.sums->value.data();
    if (!product.add) {
        std::fill_n(sum, ROWS * n, 0.0f);
    }
    multiply(sum, n, a, b);
}

}  // namespace emulator
