// Which 32 inputs of a group of activations have two terms, written once for all instruction sets.
// As in integer_tile.h all functions are members of a template.
#pragma once

#include "linear/geometry.h"

namespace dsconv {

// L only keeps the instruction sets' copies apart.
template <class L> struct Terms {
    static constexpr int max_group = 32;  // values that are rounded at once
    static float from_bits(int32_t bits) {
        float value;
        __builtin_memcpy(&value, &bits, 4);
        return value;
    }
    static int32_t to_bits(float value) {
        int32_t bits;
        __builtin_memcpy(&bits, &value, 4);
        return bits;
    }

    // As bits. They order like the magnitudes; infinities and NaN are the largest.
    static int32_t largest_magnitude(const float* x) {
        int32_t largest = 0;
        for (int i = 0; i < max_group; i++) {
            int32_t magnitude = to_bits(x[i]) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        return largest;
    }

    // Up to `size` inputs from the i-th on, in max_group values.
    static const float* inputs_at(const float* x, const ActivationShape& shape, int64_t i,
                                  int64_t size, float (&padded)[max_group]) {
        if (shape.cols - i < size) size = shape.cols - i;
        if (size == max_group) return x + i;
        for (int64_t j = 0; j < max_group; j++) padded[j] = j < size ? x[i + j] : 0.0f;
        return padded;
    }

    // A tile's part of the arrays.
    struct Tile {
        int64_t row_bytes;  // ActivationLayout::rows, else 0
        int64_t width;   // tokens that it has room for
        int64_t count;   // tokens that it has
        int64_t groups;  // of a token
        const float* x;  // its first token
        int64_t ld_x;
        int8_t* codes;
        int8_t* upper;
        float* scales;
        int32_t* sums;
        uint8_t* two;
    };

    static int32_t largest_at(const Tile& tile, const ActivationShape& shape, int64_t token,
                              int64_t i, int64_t size) {
        float padded[max_group];
        return largest_magnitude(inputs_at(tile.x + token * tile.ld_x, shape, i, size, padded));
    }

    // Units with two terms are not counted where a group's step is chosen, unless they need it to
    // stay below 2^15; so the others are rounded as finely as if the loud ones were not there.
    // The error of a group goes with the square of its step. Units are taken out, the loudest
    // first, while each saves more than a part `saving` of what a group makes on average; means
    // are over the tokens of the tile, of which none may count for more than another.
    static constexpr float saving = 0.5f;
    static constexpr int max_units = 4;  // in a group

    // Magnitudes of one group: [unit][token] as bits.
    struct Magnitudes {
        int32_t of[max_units][tile_tokens];
    };

    static Magnitudes magnitudes_at(const ActivationShape& shape, const Tile& tile, int64_t i,
                                    int64_t units) {
        Magnitudes found{};
        for (int64_t u = 0; u < units && i + u * unit_inputs < shape.cols; u++) {
            for (int64_t t = 0; t < tile.count; t++) {
                found.of[u][t] = largest_at(tile, shape, t, i + u * unit_inputs, unit_inputs);
            }
        }
        return found;
    }

    // The largest of the units whose flag is `two`, as bits.
    static int32_t largest_of(const Magnitudes& group, int64_t units, int64_t token,
                              const uint8_t* flags, bool two) {
        int32_t largest = 0;
        for (int64_t u = 0; u < units; u++) {
            int32_t magnitude = (flags[u] != 0) == two ? group.of[u][token] : 0;
            largest = magnitude > largest ? magnitude : largest;
        }
        return largest;
    }

    static float square(int32_t magnitude, float factor) {
        float value = from_bits(magnitude) * factor;
        return value * value;
    }

    // What makes the squared steps of a token sum to one: (step * factor)^2 * part, in two parts
    // because the square alone may overflow.
    struct Weight {
        float factor;
        float part;
    };

    static void weigh(const ActivationShape& shape, const Tile& tile, int64_t units,
                      Weight (&weights)[tile_tokens]) {
        for (int64_t t = 0; t < tile.count; t++) {
            const float* x = tile.x + t * tile.ld_x;
            float largest = 0;
            double squares = 0;
            for (int64_t i = 0; i < shape.cols; i += shape.group_size) {
                int32_t magnitude = i + shape.group_size <= shape.cols
                                        ? largest_of_units(x + i, units)
                                        : largest_of_rest(shape, tile, t, i);
                float value = from_bits(magnitude);
                largest = value > largest ? value : largest;
                squares += static_cast<double>(value) * value;
            }
            double part = static_cast<double>(largest) * largest / squares;  // NaN of all zeros
            weights[t].factor = largest > 0 ? 1.0f / largest : 0.0f;
            weights[t].part = part > 0 ? static_cast<float>(part) : 0.0f;
        }
    }

    static int32_t largest_of_units(const float* x, int64_t units) {
        int32_t largest[unit_inputs] = {};
        for (; units > 0; units--, x += unit_inputs) {
            for (int i = 0; i < unit_inputs; i++) {
                int32_t magnitude = to_bits(x[i]) & 0x7fffffff;
                largest[i] = magnitude > largest[i] ? magnitude : largest[i];
            }
        }
        // By halves: vectors of one size would be read across those that were written.
        for (int half = unit_inputs / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; i++) {
                largest[i] = largest[i + half] > largest[i] ? largest[i + half] : largest[i];
            }
        }
        return largest[0];
    }

    static int32_t largest_of_rest(const ActivationShape& shape, const Tile& tile, int64_t token,
                                   int64_t i) {
        int32_t largest = 0;
        for (; i < shape.cols; i += unit_inputs) {
            int32_t magnitude = largest_at(tile, shape, token, i, unit_inputs);
            largest = magnitude > largest ? magnitude : largest;
        }
        return largest;
    }

    // Flags of the units of a group. limit: what a unit has to save, summed over the tokens.
    static void choose_terms(const Magnitudes& group, int64_t units, int64_t tokens,
                             const Weight (&weights)[tile_tokens], float limit, uint8_t* two) {
        for (int64_t u = 0; u < units; u++) two[u] = 0;
        for (int64_t taken = 0; taken < units; taken++) {
            float loudest = -1;
            int64_t candidate = 0;
            for (int64_t u = 0; u < units; u++) {
                float sum = 0;
                for (int64_t t = 0; t < tokens; t++) {
                    sum += square(group.of[u][t], weights[t].factor) * weights[t].part;
                }
                if (!two[u] && sum > loudest) {
                    loudest = sum;
                    candidate = u;
                }
            }
            float saved = 0;
            for (int64_t t = 0; t < tokens; t++) {
                int32_t before = largest_of(group, units, t, two, false);
                two[candidate] = 1;
                int32_t after = largest_of(group, units, t, two, false);
                two[candidate] = 0;
                saved += (square(before, weights[t].factor) - square(after, weights[t].factor)) *
                         weights[t].part;
            }
            if (!(saved > limit)) return;
            two[candidate] = 1;
        }
    }

    // The same for a single token. A unit is taken out where it saves more than so many means: what
    // one token of a tile needs costs all of them time, and in groups of one unit more so.
    static constexpr double own_saving = 1.0, own_saving_of_one = 2.0;

    static int32_t largest_of_group(const ActivationShape& shape, const Tile& tile, int64_t token,
                                    int64_t i, int64_t units) {
        return i + units * unit_inputs <= shape.cols
                   ? largest_of_units(tile.x + token * tile.ld_x + i, units)
                   : largest_of_rest(shape, tile, token, i);
    }

    // What the square of a group's largest magnitude has to fall by.
    static double own_limit(const ActivationShape& shape, const Tile& tile, int64_t token,
                            int64_t units) {
        double squares = 0;
        for (int64_t i = 0; i < shape.cols; i += units * unit_inputs) {
            double value = from_bits(largest_of_group(shape, tile, token, i, units));
            squares += value * value;
        }
        double means = units > 1 ? own_saving : own_saving_of_one;
        return means * squares / static_cast<double>(tile.groups);
    }

    // Flags of the units of a group: the loudest ones, each of which saves more than the limit.
    static void choose_own(const Magnitudes& group, int64_t units, double limit,
                           uint8_t (&two)[max_units]) {
        for (int64_t taken = 0; taken < units; taken++) {
            double before = from_bits(largest_of(group, units, 0, two, false));
            if (!(before * before > limit)) return;
            int64_t loudest = 0;
            while (two[loudest] || group.of[loudest][0] < to_bits(static_cast<float>(before))) loudest++;
            two[loudest] = 1;
            double after = from_bits(largest_of(group, units, 0, two, false));
            if (before * before - after * after > limit) continue;
            two[loudest] = 0;
            return;
        }
    }
};

}  // namespace dsconv
