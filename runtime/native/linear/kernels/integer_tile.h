// Tiles of the matrix product with integer weights, written once for all instruction sets.
//
// L is the set of lanes of an instruction set (lanes_*.h): 16 lanes, one for each row of a
// block. A tile is some tokens x some blocks whose sums stay in registers while one group of
// inputs after the other is read. Nothing but members of templates on L may be defined here: what
// is shared between instruction sets must not be compiled for one of them.
#pragma once

#include "linear/kernels/integer_sums.h"

namespace dsconv {

// Weights come from memory in one stream; with few tokens nothing else takes time. Processors
// prefetch too, but not across pages.
constexpr int64_t prefetch_distance = 8192;

// What is taken off the codes before they are multiplied.
enum class Zero { none, middle, stored };

template <class L, int bits, Zero zero, int width, int tokens, int blocks> struct IntegerTile {
    using Ints = typename L::Ints;
    using Floats = typename L::Floats;
    using Sums = IntegerSums<L, bits, width, tokens, blocks>;

    [[gnu::always_inline]] static inline void clear(Floats (&sums)[blocks][tokens]) {
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) sums[b][t] = L::set_floats(0);
        }
    }

    // What belongs to a group of weights beside its codes.
    struct Parameters {
        Ints zeros[blocks];      // Zero::stored
        Floats scales[blocks];
        Floats minima[blocks];   // scale and minimum
    };

    [[gnu::always_inline]] static inline void load_zeros(const uint8_t* zeros, int64_t stride,
                                                         Parameters& group) {
        for (int b = 0; b < blocks; b++) {
            const uint8_t* p = zeros + b * stride;
            group.zeros[b] = bits == 4 ? L::load_nibbles(p) : L::load_bytes(p);
            if constexpr (L::template code_offset<bits> != 0) {
                group.zeros[b] =
                    L::subtract(group.zeros[b], L::set_ints(L::template code_offset<bits>));
            }
        }
    }

    // Sums of code * activation to sums of (code - zero) * activation; sum: of the activations.
    [[gnu::always_inline]] static inline void take_zeros(const Parameters& group, Ints sum, int t,
                                                         Ints (&sums)[blocks][tokens]) {
        constexpr int middle = (1 << (bits - 1)) - L::template code_offset<bits>;
        if constexpr (zero == Zero::stored) {
            for (int b = 0; b < blocks; b++) {
                sums[b][t] = L::subtract(sums[b][t], L::multiply(group.zeros[b], sum));
            }
        } else if constexpr (zero == Zero::middle && middle != 0) {
            Ints offset = L::template shift_left<middle == 8 ? 3 : 7>(sum);
            for (int b = 0; b < blocks; b++) sums[b][t] = L::subtract(sums[b][t], offset);
        }
    }

    // parts += activation scale * integer sum
    [[gnu::always_inline]] static inline void add_parts(Ints (&sums)[blocks][tokens],
                                                        const TileActivations& x, int64_t at,
                                                        const Parameters& group,
                                                        Floats (&parts)[blocks][tokens]) {
        for (int t = 0; t < tokens; t++) {
            Floats scale = L::set_floats(x.scales[at * width + t]);
            take_zeros(group, L::set_ints(x.sums[at * width + t]), t, sums);
            for (int b = 0; b < blocks; b++) {
                parts[b][t] = L::fma(L::to_floats(sums[b][t]), scale, parts[b][t]);
            }
        }
    }

    // totals += scale * (activation scale * integer sum), where a group is one unit
    [[gnu::always_inline]] static inline void add_scaled(Ints (&sums)[blocks][tokens],
                                                         const TileActivations& x, int64_t at,
                                                         const Parameters& group,
                                                         Floats (&totals)[blocks][tokens]) {
        for (int t = 0; t < tokens; t++) {
            Floats scale = L::set_floats(x.scales[at * width + t]);
            take_zeros(group, L::set_ints(x.sums[at * width + t]), t, sums);
            for (int b = 0; b < blocks; b++) {
                Floats part = L::multiply(L::to_floats(sums[b][t]), scale);
                totals[b][t] = L::fma(part, group.scales[b], totals[b][t]);
            }
        }
    }

    // The same with a minimum instead of a zero.
    [[gnu::always_inline]] static inline void add_scale_min(Ints (&sums)[blocks][tokens],
                                                            const TileActivations& x, int64_t at,
                                                            const Parameters& group,
                                                            Floats (&totals)[blocks][tokens]) {
        for (int t = 0; t < tokens; t++) {
            Floats scale = L::set_floats(x.scales[at * width + t]);
            Floats sum =
                L::multiply(L::to_floats(L::set_ints(x.sums[at * width + t])), scale);
            for (int b = 0; b < blocks; b++) {
                Floats part = L::multiply(L::to_floats(sums[b][t]), scale);
                Floats total = L::fma(part, group.scales[b], totals[b][t]);
                totals[b][t] = L::negative_fma(sum, group.minima[b], total);
            }
        }
    }

    enum class Then { parts, scaled, scale_min };

    template <bool two, Then then>
    [[gnu::always_inline]] static inline void unit(const uint8_t* const* units,
                                                   const TileActivations& x, int64_t input,
                                                   const Parameters& group,
                                                   Floats (&to)[blocks][tokens]) {
        Ints sums[blocks][tokens];
        Sums::template dot_unit<two>(units, x, input, sums);
        if constexpr (then == Then::parts) add_parts(sums, x, input / 32, group, to);
        if constexpr (then == Then::scaled) add_scaled(sums, x, input / 32, group, to);
        if constexpr (then == Then::scale_min) add_scale_min(sums, x, input / 32, group, to);
    }

    // parts += activation scales * integer sums of a unit, for activations in groups of 16. Rare:
    // in loops, which take less to compile.
    [[gnu::noinline]] static void halves(const uint8_t* const* units, const TileActivations& x,
                                         int64_t input, const Parameters& group,
                                         Floats (&parts)[blocks][tokens]) {
        int64_t at = input / 16 * width;
        bool two = x.two[input / unit_inputs] != 0;
        const uint8_t* second[blocks];
        for (int b = 0; b < blocks; b++) second[b] = units[b] + 32 * bits;
        Floats values[blocks][tokens];
        Ints sums[blocks][tokens];
        Sums::dot_pairs(units, x, input, 16, two, sums);
        for (int t = 0; t < tokens; t++) {
            take_zeros(group, L::set_ints(x.sums[at + t]), t, sums);
            Floats scale = L::set_floats(x.scales[at + t]);
            for (int b = 0; b < blocks; b++) {
                values[b][t] = L::multiply(L::to_floats(sums[b][t]), scale);
            }
        }
        Sums::dot_pairs(second, x, input + 16, 16, two, sums);
        for (int t = 0; t < tokens; t++) {
            take_zeros(group, L::set_ints(x.sums[at + width + t]), t, sums);
            Floats scale = L::set_floats(x.scales[at + width + t]);
            for (int b = 0; b < blocks; b++) {
                Floats value = L::fma(L::to_floats(sums[b][t]), scale, values[b][t]);
                parts[b][t] = L::add(parts[b][t], value);
            }
        }
    }

    [[gnu::always_inline]] static inline void prefetch_unit(const uint8_t* const* units,
                                                            const TileActivations& x) {
        if (width <= 4 || x.fetches) {
            for (int b = 0; b < blocks; b++) {
                for (int i = 0; i < bits; i++) L::prefetch(units[b] + prefetch_distance + 64 * i);
            }
        }
    }

    // With many sums the compiler does better when it sees nothing else.
    template <bool two, Then then>
    [[gnu::noinline]] static void unit_apart(const uint8_t* const* units,
                                             const TileActivations& x, int64_t input,
                                             const Parameters& group,
                                             Floats (&to)[blocks][tokens]) {
        unit<two, then>(units, x, input, group, to);
    }

    template <Then then>
    [[gnu::always_inline]] static inline void add_unit_to(const uint8_t* const* units,
                                                          const TileActivations& x, int64_t input,
                                                          const Parameters& group,
                                                          Floats (&to)[blocks][tokens]) {
        prefetch_unit(units, x);
        bool two = x.two[input / unit_inputs] != 0;
        if constexpr (blocks * tokens >= 8) {
            if (two) unit_apart<true, then>(units, x, input, group, to);
            else unit_apart<false, then>(units, x, input, group, to);
        } else {
            if (two) unit<true, then>(units, x, input, group, to);
            else unit<false, then>(units, x, input, group, to);
        }
    }

    // totals += weights of the blocks * activations; `stride` bytes from block to block.
    static void integers(const LinearGeometry& geometry, const uint8_t* data, int64_t stride,
                         const TileActivations& x, Floats (&totals)[blocks][tokens]) {
        Parameters group;
        int64_t input = 0;
        for (int64_t g = 0; g < geometry.groups; g++) {
            int64_t inputs = g + 1 < geometry.groups ? geometry.group_width : geometry.last_width;
            const uint8_t* parameters = data + inputs * bits * 2;
            const uint8_t* units[blocks];
            for (int b = 0; b < blocks; b++) {
                units[b] = data + b * stride;
                group.scales[b] = L::load_float16(parameters + b * stride);
            }
            if (width <= 4 || x.fetches) L::prefetch(parameters + prefetch_distance);
            if constexpr (zero == Zero::stored) load_zeros(parameters + 2 * block_rows, stride, group);
            if (x.group_size == wide_group) {
                add_wide(units, x, input, inputs, group, totals);
            } else if (inputs == 32 && input % 32 == 0 && x.group_size == unit_inputs) {
                add_unit_to<Then::scaled>(units, x, input, group, totals);
            } else {
                add_group(units, x, input, inputs, group, totals);
            }
            input += inputs;
            data = parameters + geometry.parameter_bytes;
        }
    }

    static void add_group(const uint8_t** units, const TileActivations& x, int64_t input,
                          int64_t inputs, const Parameters& group,
                          Floats (&totals)[blocks][tokens]) {
        Floats parts[blocks][tokens];
        clear(parts);
        int64_t end = input + inputs;
        // Groups of weights that start within 32 activations have no whole units.
        for (; input % 32 == 0 && input + 32 <= end; input += 32) {
            if (x.group_size == 16) halves(units, x, input, group, parts);
            else add_unit_to<Then::parts>(units, x, input, group, parts);
            for (int b = 0; b < blocks; b++) units[b] += 64 * bits;
        }
        if (input < end) add_rest(units, x, input, end, group, parts);
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) {
                totals[b][t] = L::fma(parts[b][t], group.scales[b], totals[b][t]);
            }
        }
    }

    [[gnu::always_inline]] static inline void prefetch_codes(const uint8_t* const* units,
                                                             int64_t inputs,
                                                             const TileActivations& x) {
        if (width <= 4 || x.fetches) {
            int64_t bytes = inputs < wide_group ? inputs * bits * 2 : wide_group * bits * 2;
            for (int b = 0; b < blocks; b++) {
                for (int64_t i = 0; i < bytes; i += vector_bytes) {
                    L::prefetch(units[b] + prefetch_distance + i);
                }
            }
        }
    }

    // A group of weights over activations in wide groups.
    static void add_wide(const uint8_t** units, const TileActivations& x, int64_t input,
                         int64_t inputs, const Parameters& group,
                         Floats (&totals)[blocks][tokens]) {
        Ints sums[blocks][tokens];
        prefetch_codes(units, inputs, x);
        if (inputs == wide_group) {
            Sums::dot_wide(units, x, input, inputs, sums);
            return add_scaled(sums, x, input / wide_group, group, totals);
        }
        Floats parts[blocks][tokens];
        clear(parts);
        for (int64_t end = input + inputs; input < end; input += wide_group) {
            int64_t some = end - input < wide_group ? end - input : wide_group;
            Sums::dot_wide(units, x, input, some, sums);
            add_parts(sums, x, input / wide_group, group, parts);
            for (int b = 0; b < blocks; b++) units[b] += some * bits * 2;
        }
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) {
                totals[b][t] = L::fma(parts[b][t], group.scales[b], totals[b][t]);
            }
        }
    }

    // Inputs that fill no unit, and activations in groups of 16.
    [[gnu::noinline]] static void add_rest(const uint8_t** units, const TileActivations& x,
                                           int64_t input, int64_t end, const Parameters& group,
                                           Floats (&parts)[blocks][tokens]) {
        while (input < end) {
            int64_t some = end - input < x.group_size ? end - input : x.group_size;
            int64_t at = input / x.group_size;
            Ints sums[blocks][tokens];
            Sums::dot_pairs(units, x, input, some, x.two[input / unit_inputs] != 0, sums);
            add_parts(sums, x, at, group, parts);
            for (int b = 0; b < blocks; b++) units[b] += some * bits * 2;
            input += some;
        }
    }

    // Scales and minima of a group, from their steps.
    [[gnu::always_inline]] static inline void load_steps(const uint8_t* const* steps,
                                                         const Floats* scale_units,
                                                         const Floats* minimum_units,
                                                         Parameters& group) {
        for (int b = 0; b < blocks; b++) {
            Ints low = L::load_bytes(steps[b]);
            Ints high = L::load_nibbles(steps[b] + block_rows);
            Ints minimum = L::or_ints(L::template shift_right<6>(low),
                                      L::template shift_left<2>(high));
            group.scales[b] = L::multiply(L::to_floats(L::low_bits(low, 63)), scale_units[b]);
            group.minima[b] = L::multiply(L::to_floats(minimum), minimum_units[b]);
        }
    }

    // As `integers`, for scale and minimum.
    static void scale_min(const LinearGeometry& geometry, const uint8_t* data, int64_t stride,
                          const TileActivations& x, Floats (&totals)[blocks][tokens]) {
        constexpr int64_t code_bytes = 32 * bits * 2;
        Floats scale_units[blocks], minimum_units[blocks];
        Parameters group;
        for (int64_t g = 0, left = 0; g < geometry.groups; g++, left--) {
            if (left == 0) {
                left = geometry.super_groups;
                for (int b = 0; b < blocks; b++) {
                    scale_units[b] = L::load_float16(data + b * stride);
                    minimum_units[b] = L::load_float16(data + b * stride + 2 * block_rows);
                }
                data += 4 * block_rows;
            }
            const uint8_t *units[blocks], *steps[blocks];
            for (int b = 0; b < blocks; b++) {
                units[b] = data + b * stride;
                steps[b] = units[b] + code_bytes;
            }
            if (width <= 4 || x.fetches) L::prefetch(steps[0] + prefetch_distance);
            load_steps(steps, scale_units, minimum_units, group);
            add_unit_to<Then::scale_min>(units, x, g * 32, group, totals);
            data += code_bytes + geometry.parameter_bytes;
        }
    }
};

}  // namespace dsconv
