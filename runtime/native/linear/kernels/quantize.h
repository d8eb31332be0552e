// Rounding of activations, written once for all instruction sets: plain loops over a group that
// compilers turn into vectors. As in integer_tile.h all functions are members of a template.
#pragma once

#include "linear/geometry.h"

namespace dsconv {

// L only keeps the instruction sets' copies apart.
template <class L> struct Quantizer {
    static constexpr int max_group = 32;  // values that are rounded at once
    static constexpr float one_term = 127.0f, two_terms = 32512.0f;
    static constexpr int32_t infinity = 0x7f800000, tiny = 0x0d800000;  // tiny: 2^-100

    struct Group {
        int32_t sum;
        int8_t codes[max_group];
        int8_t upper[max_group];
    };

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

    // What a value is multiplied by before it is rounded, and what one step of the result is worth.
    struct Step {
        float factor;
        float scale;
    };

    static Step step_of(int32_t largest, float steps) {
        if (largest >= infinity) return {0.0f, from_bits(0x7fc00000)};  // makes everything NaN
        if (largest < tiny) return {0.0f, 0.0f};  // too small to have a scale
        float magnitude = from_bits(largest);
        return {steps / magnitude, magnitude / steps};
    }

    // x: max_group values, padded with zeros. Adds to the group's sum.
    template <bool two> static void round(const float* x, Step step, Group& group) {
        if (step.factor == 0.0f) {
            for (int i = 0; i < max_group; i++) group.codes[i] = group.upper[i] = 0;
            return;
        }
        // Adding 1.5 * 2^23 rounds to nearest, ties to even, and leaves the integer in the low bits.
        constexpr float magic = 12582912.0f;
        constexpr int32_t magic_bits = 0x4b400000;
        int32_t codes[max_group], upper[max_group];
        for (int i = 0; i < max_group; i++) {
            float product = x[i] * step.factor;
            codes[i] = to_bits(product + magic) - magic_bits;
        }
        for (int i = 0; two && i < max_group; i++) {
            int32_t value = codes[i];
            upper[i] = (value + 128) >> 8;
            codes[i] = value - 256 * upper[i];
            codes[i] = codes[i] < -127 ? -127 : codes[i];  // 2 * 128 * 255 would saturate
        }
        for (int i = 0; i < max_group; i++) group.codes[i] = static_cast<int8_t>(codes[i]);
        for (int i = 0; two && i < max_group; i++) group.upper[i] = static_cast<int8_t>(upper[i]);
        for (int i = 0; i < max_group; i++) group.sum += two ? 256 * upper[i] + codes[i] : codes[i];
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

    // A unit within a row of 64 inputs. Kernels multiply whole rows: without an upper term it is 0.
    static void keep_row(const Tile& tile, int64_t token, int64_t i, bool two, const Group& group) {
        int64_t to = i / row_inputs * tile.row_bytes + token * row_inputs + i % row_inputs;
        __builtin_memcpy(tile.codes + to, group.codes, unit_inputs);
        if (!tile.upper) return;
        if (two) __builtin_memcpy(tile.upper + to, group.upper, unit_inputs);
        else __builtin_memset(tile.upper + to, 0, unit_inputs);
    }

    static void keep(const Tile& tile, int64_t token, int64_t i, int64_t size, bool two,
                     const Group& group) {
        if (tile.row_bytes) return keep_row(tile, token, i, two, group);
        for (int64_t quad = 0; quad < size / 4; quad++) {
            int64_t to = ((i / 4 + quad) * tile.width + token) * 4;
            __builtin_memcpy(tile.codes + to, group.codes + 4 * quad, 4);
            if (two) __builtin_memcpy(tile.upper + to, group.upper + 4 * quad, 4);
        }
    }

    // Groups of 16 or 32 inputs, all in one term or all in two.
    template <bool two> static void quantize_groups(const ActivationShape& shape, const Tile& tile) {
        float padded[max_group];
        Group group;
        for (int64_t token = 0; token < tile.count; token++) {
            const float* x = tile.x + token * tile.ld_x;
            for (int64_t g = 0, i = 0; i < shape.cols; g++, i += shape.group_size) {
                const float* values = inputs_at(x, shape, i, shape.group_size, padded);
                Step step = step_of(largest_magnitude(values), two ? two_terms : one_term);
                group.sum = 0;
                round<two>(values, step, group);
                tile.scales[g * tile.width + token] = step.scale;
                tile.sums[g * tile.width + token] = group.sum;
                keep(tile, token, i, shape.group_size, two, group);
            }
        }
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
        for (int i = 1; i < unit_inputs; i++) {
            largest[0] = largest[i] > largest[0] ? largest[i] : largest[0];
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

    // Groups of 32 or 128 inputs whose loud units have two terms.
    static void quantize_mixed(const ActivationShape& shape, const Tile& tile) {
        int64_t units = shape.group_size / unit_inputs;
        Weight weights[tile_tokens] = {};
        weigh(shape, tile, units, weights);
        float limit = saving * static_cast<float>(tile.count) / static_cast<float>(tile.groups);
        float padded[max_group];
        for (int64_t g = 0, i = 0; i < shape.cols; g++, i += shape.group_size) {
            Magnitudes magnitudes = magnitudes_at(shape, tile, i, units);
            int64_t here = (shape.cols - i + unit_inputs - 1) / unit_inputs;
            if (here > units) here = units;
            uint8_t* two = tile.two + i / unit_inputs;
            choose_terms(magnitudes, here, tile.count, weights, limit, two);
            for (int64_t token = 0; token < tile.count; token++) {
                int32_t quiet = largest_of(magnitudes, here, token, two, false);
                int32_t loud = largest_of(magnitudes, here, token, two, true);
                bool by_loud = from_bits(loud) > from_bits(quiet) * (two_terms / one_term) ||
                               loud >= infinity;
                Step step = step_of(by_loud ? loud : quiet, by_loud ? two_terms : one_term);
                Group group;
                group.sum = 0;
                for (int64_t u = 0; u < here; u++) {
                    int64_t at = i + u * unit_inputs;
                    const float* values =
                        inputs_at(tile.x + token * tile.ld_x, shape, at, unit_inputs, padded);
                    if (two[u]) round<true>(values, step, group);
                    else round<false>(values, step, group);
                    keep(tile, token, at, unit_inputs, two[u], group);
                }
                tile.scales[g * tile.width + token] = step.scale;
                tile.sums[g * tile.width + token] = group.sum;
            }
        }
    }

    static void quantize_tile(const ActivationShape& shape, const ActivationGeometry& geometry,
                              const Tile& tile) {
        // Of rows kernels use nothing that is not written.
        if (!geometry.rows && (tile.count < tile.width || shape.cols < geometry.padded_cols)) {
            int64_t values = geometry.padded_cols * tile.width, groups = tile.groups * tile.width * 4;
            clear(tile.codes, values);
            if (tile.upper) clear(tile.upper, values);
            clear(tile.scales, groups);
            clear(tile.sums, groups);
        }
        bool two = shape.precision == Precision::int16;
        __builtin_memset(tile.two, two, static_cast<size_t>(geometry.units));
        // The groups of 16 that go with odd groups of weights are not worth a choice.
        if (shape.precision == Precision::mixed && shape.group_size >= unit_inputs) {
            quantize_mixed(shape, tile);
        } else if (two) {
            quantize_groups<true>(shape, tile);
        } else {
            quantize_groups<false>(shape, tile);
        }
    }

    static void copy_token(const float* x, const ActivationShape& shape, int64_t width,
                           float* floats) {
        for (int64_t i = 0; i < shape.cols; i++) floats[i / 4 * width * 4 + i % 4] = x[i];
    }

    static void clear(void* p, int64_t bytes) { __builtin_memset(p, 0, static_cast<size_t>(bytes)); }

    static void run(const float* x, int64_t ld_x, const Activations& to, int64_t first_tile,
                    int64_t last_tile) {
        ActivationGeometry geometry(to.shape);
        for (int64_t tile = first_tile; tile < last_tile; tile++) {
            int64_t width = ActivationGeometry::width_of(to.shape, tile);
            int64_t token = tile * tile_tokens;
            int64_t inputs = geometry.codes_at(tile), groups = token * geometry.groups;
            int64_t count = to.shape.tokens - token < width ? to.shape.tokens - token : width;
            if (to.shape.precision == Precision::float32) {
                clear(to.floats + inputs, geometry.padded_cols * width * 4);
                for (int64_t t = 0; t < count; t++) {
                    copy_token(x + (token + t) * ld_x, to.shape, width, to.floats + inputs + t * 4);
                }
                continue;
            }
            quantize_tile(to.shape, geometry,
                          Tile{geometry.rows ? geometry.row_bytes : 0, width, count,
                               geometry.groups, x + token * ld_x, ld_x,
                               to.codes + inputs, to.upper ? to.upper + inputs : nullptr,
                               to.scales + groups, to.sums + groups,
                               to.two + tile * geometry.units});
        }
    }
};

}  // namespace dsconv
