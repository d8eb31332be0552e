// Exact sums of code * activation, for a tile of some tokens x some blocks of 16 rows.
//
// L is the set of lanes of an instruction set (lanes_*.h): 16 lanes, one for each row of a
// block. As in integer_tile.h nothing but members of templates on L may be defined here.
#pragma once

#include "linear/kernels/codes.h"
#include "linear/geometry.h"

namespace dsconv {

// A tile's view of Activations: pointers to its first token.
struct TileActivations {
    const int8_t* codes;
    const int8_t* upper;
    const float* scales;
    const int32_t* sums;
    const uint8_t* two;
    int64_t group_size;
    bool fetches;  // weights from memory: those of a tile of 8 are there if one came before it
};

// width: tokens that lie side by side in the activations; tokens: how many of them are computed.
template <class L, int bits, int width, int tokens, int blocks> struct IntegerSums {
    using Ints = typename L::Ints;
    using Codes = typename L::Codes;

    // Codes of a pair of quads times their activations; the terms (upper, code) of an activation are
    // multiplied by the same codes while these are in registers.
    template <int pair, int terms>
    [[gnu::always_inline]] static inline void add_pair(const uint8_t* const* units,
                                                       const int8_t* const* x,
                                                       Ints (*sums)[blocks][tokens]) {
        Codes codes[2][blocks];
        for (int b = 0; b < blocks; b++) {
            UnitCodes<L, bits>::template load<pair>(units[b], codes[0][b], codes[1][b]);
        }
        for (int q = 0; q < 2; q++) {
            for (int t = 0; t < tokens; t++) {
                for (int term = 0; term < terms; term++) {
                    const int8_t* p = x[term] + ((2 * pair + q) * width + t) * 4;
                    if constexpr (blocks == 1) {
                        sums[term][0][t] =
                            L::template dot<bits>(sums[term][0][t], codes[q][0], p);
                        continue;
                    }
                    auto quad = L::load_quad(p);
                    for (int b = 0; b < blocks; b++) {
                        sums[term][b][t] =
                            L::template dot<bits>(sums[term][b][t], codes[q][b], quad);
                    }
                }
            }
        }
    }

    template <int terms>
    [[gnu::always_inline]] static inline void add_unit(const uint8_t* const* units,
                                                       const int8_t* const* x,
                                                       Ints (*sums)[blocks][tokens]) {
        add_pair<0, terms>(units, x, sums);
        add_pair<1, terms>(units, x, sums);
        add_pair<2, terms>(units, x, sums);
        add_pair<3, terms>(units, x, sums);
    }

    // Part of a unit, for widths that are no multiple of 32: int4 and int8, whose planes are plain.
    [[gnu::always_inline]] static inline void add_pairs(const uint8_t* const* units, const int8_t* x, int64_t pairs,
                          Ints (&sums)[blocks][tokens]) {
        const uint8_t* at[blocks];
        for (int64_t pair = 0; pair < pairs; pair++) {
            for (int b = 0; b < blocks; b++) at[b] = units[b] + pair * 16 * bits;
            const int8_t* activations = x + pair * 8 * width;
            add_pair<0, 1>(at, &activations, &sums);
        }
    }

    [[gnu::always_inline]] static inline void clear(Ints (&sums)[blocks][tokens]) {
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) sums[b][t] = L::set_ints(0);
        }
    }

    [[gnu::always_inline]] static inline void times_256(Ints (&sums)[blocks][tokens]) {
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) sums[b][t] = L::template shift_left<8>(sums[b][t]);
        }
    }

    // Exact sums of code * activation over a unit. Where sums are few both terms are taken at once.
    template <bool two>
    [[gnu::always_inline]] static inline void dot_unit(const uint8_t* const* units,
                                                       const TileActivations& x, int64_t input,
                                                       Ints (&sums)[blocks][tokens]) {
        const int8_t* codes = x.codes + input * width;
        const int8_t* terms[2] = {two ? x.upper + input * width : codes, codes};
        if constexpr (two && blocks * tokens <= 4) {
            Ints both[2][blocks][tokens];
            clear(both[0]);
            clear(both[1]);
            add_unit<2>(units, terms, both);
            times_256(both[0]);
            for (int b = 0; b < blocks; b++) {
                for (int t = 0; t < tokens; t++) sums[b][t] = L::add(both[0][b][t], both[1][b][t]);
            }
        } else {
            clear(sums);
            add_unit<1>(units, terms, &sums);
            if constexpr (two) {
                times_256(sums);
                add_unit<1>(units, terms + 1, &sums);
            }
        }
    }

    // The same over part of a unit.
    [[gnu::always_inline]] static inline void dot_pairs(const uint8_t* const* units,
                                                        const TileActivations& x, int64_t input,
                                                        int64_t inputs, bool two,
                                                        Ints (&sums)[blocks][tokens]) {
        clear(sums);
        if (two) {
            add_pairs(units, x.upper + input * width, inputs / 8, sums);
            times_256(sums);
        }
        add_pairs(units, x.codes + input * width, inputs / 8, sums);
    }

    // Exact sums of code * activation over up to wide_group inputs: of all codes, and 256 times
    // the upper terms of the units that have them.
    static void dot_wide(const uint8_t* const* units, const TileActivations& x, int64_t input,
                         int64_t inputs, Ints (&sums)[blocks][tokens]) {
        dot_run(units, x.codes + input * width, inputs / 8, sums);
        for (int64_t i = 0; i < inputs; i += unit_inputs) {
            if (!x.two[(input + i) / unit_inputs]) continue;
            const uint8_t* at[blocks];
            for (int b = 0; b < blocks; b++) at[b] = units[b] + i * bits * 2;
            int64_t some = inputs - i < unit_inputs ? inputs - i : unit_inputs;
            Ints upper[blocks][tokens];
            dot_run(at, x.upper + (input + i) * width, some / 8, upper);
            times_256(upper);
            for (int b = 0; b < blocks; b++) {
                for (int t = 0; t < tokens; t++) sums[b][t] = L::add(sums[b][t], upper[b][t]);
            }
        }
    }

    static constexpr bool is_tall = blocks == L::tall_blocks && tokens == 8;

    // Exact sums over some pairs. Apart, so that nothing but the sums and what feeds them is in
    // registers.
    [[gnu::noinline]] static void dot_run(const uint8_t* const* units, const int8_t* x,
                                          int64_t pairs, Ints (&result)[blocks][tokens]) {
        if constexpr (is_tall) {
            L::template dot_tall<bits>(units, x, pairs, result);
        } else {
            Ints sums[blocks][tokens];
            clear(sums);
            const uint8_t* at[blocks];
            for (int b = 0; b < blocks; b++) at[b] = units[b];
            for (; pairs >= 4; pairs -= 4, x += unit_inputs * width) {
                add_unit<1>(at, &x, &sums);
                for (int b = 0; b < blocks; b++) at[b] += 64 * bits;
            }
            add_pairs(at, x, pairs, sums);
            for (int b = 0; b < blocks; b++) {
                for (int t = 0; t < tokens; t++) result[b][t] = sums[b][t];
            }
        }
    }
};

}  // namespace dsconv
