// From the integer sums of AMX's tiles to the floats of integer_tile.h, operation by operation.
//
// Include where the instructions of Avx512Vnni are switched on.
#pragma once

#include "linear/amx/tiles.h"
#include "linear/amx/weights.h"

namespace dsconv {
namespace amx {

using Floats = L::Floats;
using Ints = L::Ints;

constexpr int64_t halves = row_tokens / tile_tokens;  // activations are rounded by halves of a tile

// A tile of sums of two blocks: of the codes, of the upper terms.
struct Products {
    alignas(64) int32_t codes[2 * tile_sums];
    int32_t upper[2 * tile_sums];
};

// What follows a group's sums: as in IntegerTile, where its weights make one group, are part of
// one, or have minima.
enum class Then { scaled, parts, scale_min };

// What the tokens of a tile bring along.
struct Tokens {
    int64_t count;
    bool two;  // has any unit an upper term
    const float* scales[halves];
    const int32_t* totals[halves];
    float* to;  // [token][span_blocks][row]
};

// What the rows of a block bring along.
struct Rows {
    Floats scale;
    Floats minimum;
    Ints zero;
};

template <Then then, bool two, bool zeros>
[[gnu::always_inline]] inline void add_token(const Products& products, const Rows (&rows)[2],
                                             int64_t token, float scale_of, int32_t total_of,
                                             float* to) {
    Ints total = L::set_ints(total_of);
    Floats scale = L::set_floats(scale_of);
    for (int b = 0; b < 2; b++, to += block_rows) {
        int64_t at = b * tile_sums + token * block_rows;
        Ints sum = _mm512_load_si512(products.codes + at);
        if constexpr (two) {
            sum = L::add(L::shift_left<8>(_mm512_load_si512(products.upper + at)), sum);
        }
        if constexpr (zeros) sum = L::subtract(sum, L::multiply(rows[b].zero, total));
        Floats before = L::load_floats(to);
        if constexpr (then == Then::parts) {
            L::store_floats(to, L::fma(L::to_floats(sum), scale, before));
            continue;
        }
        Floats part = L::multiply(L::to_floats(sum), scale);
        Floats after = L::fma(part, rows[b].scale, before);
        if constexpr (then == Then::scale_min) {
            after = L::negative_fma(L::multiply(L::to_floats(total), scale), rows[b].minimum, after);
        }
        L::store_floats(to, after);
    }
}

template <Then then, bool two, bool zeros>
void add_tokens(const Products& products, const Rows (&both)[2], const Tokens& tokens) {
    const Rows rows[2] = {both[0], both[1]};  // in registers
    constexpr int64_t next = span_blocks * block_rows;
    for (int64_t half = 0; half < halves; half++) {
        int64_t left = tokens.count - half * tile_tokens;
        const float* scales = tokens.scales[half];
        const int32_t* totals = tokens.totals[half];
        float* to = tokens.to + half * tile_tokens * next;
        if (left >= tile_tokens) {
#pragma GCC unroll 8
            for (int64_t t = 0; t < tile_tokens; t++) {
                add_token<then, two, zeros>(products, rows, half * tile_tokens + t, scales[t],
                                            totals[t], to + t * next);
            }
        } else {
            for (int64_t t = 0; t < left; t++) {
                add_token<then, two, zeros>(products, rows, half * tile_tokens + t, scales[t],
                                            totals[t], to + t * next);
            }
        }
    }
}

template <Then then, bool zeros>
void add(const Products& products, const Rows (&rows)[2], const Tokens& tokens) {
    tokens.two ? add_tokens<then, true, zeros>(products, rows, tokens)
               : add_tokens<then, false, zeros>(products, rows, tokens);
}

using Add = void (*)(const Products&, const Rows (&)[2], const Tokens&);

inline Add add_of(Then then, bool zeros) {
    switch (then) {
        case Then::scaled: return zeros ? add<Then::scaled, true> : add<Then::scaled, false>;
        case Then::parts: return zeros ? add<Then::parts, true> : add<Then::parts, false>;
        default: return add<Then::scale_min, false>;
    }
}

}  // namespace amx
}  // namespace dsconv
