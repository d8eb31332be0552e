// Rounding of activations, written once for all instruction sets: plain loops over a group that
// compilers turn into vectors. As in integer_tile.h all functions are members of a template.
#pragma once

#include "linear/kernels/terms.h"

namespace dsconv {

// L only keeps the instruction sets' copies apart.
template <class L> struct Quantizer : Terms<L> {
    using Base = Terms<L>;
    using typename Base::Magnitudes;
    using typename Base::Tile;
    using typename Base::Weight;
    using Base::choose_own;
    using Base::choose_terms;
    using Base::from_bits;
    using Base::inputs_at;
    using Base::largest_at;
    using Base::largest_magnitude;
    using Base::largest_of;
    using Base::largest_of_group;
    using Base::magnitudes_at;
    using Base::max_group;
    using Base::max_units;
    using Base::own_limit;
    using Base::saving;
    using Base::to_bits;
    using Base::weigh;

    static constexpr float one_term = 127.0f, two_terms = 32512.0f;
    static constexpr int32_t infinity = 0x7f800000, tiny = 0x0d800000;  // tiny: 2^-100

    struct Group {
        int32_t sum;
        int8_t codes[max_group];
        int8_t upper[max_group];
    };

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

    // The step of a group whose units with two terms reach `loud`, the others `quiet`.
    static Step mixed_step(int32_t quiet, int32_t loud) {
        bool by_loud = from_bits(loud) > from_bits(quiet) * (two_terms / one_term) ||
                       loud >= infinity;
        return step_of(by_loud ? loud : quiet, by_loud ? two_terms : one_term);
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
                Step step = mixed_step(quiet, loud);
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

    // Groups of 32 or 128 inputs; each token has two terms in its own loud units, elsewhere 0.
    static void quantize_own(const ActivationShape& shape, const Tile& tile) {
        int64_t units = shape.group_size / unit_inputs;
        float padded[max_group];
        for (int64_t token = 0; token < tile.count; token++) {
            double limit = own_limit(shape, tile, token, units);
            for (int64_t g = 0, i = 0; i < shape.cols; g++, i += shape.group_size) {
                int64_t here = (shape.cols - i + unit_inputs - 1) / unit_inputs;
                if (here > units) here = units;
                uint8_t two[max_units] = {};
                int32_t quiet = largest_of_group(shape, tile, token, i, units), loud = 0;
                double largest = from_bits(quiet);
                if (largest * largest > limit) {
                    Magnitudes magnitudes{};
                    for (int64_t u = 0; u < here; u++) {
                        magnitudes.of[u][0] =
                            largest_at(tile, shape, token, i + u * unit_inputs, unit_inputs);
                    }
                    choose_own(magnitudes, here, limit, two);
                    quiet = largest_of(magnitudes, here, 0, two, false);
                    loud = largest_of(magnitudes, here, 0, two, true);
                }
                Step step = mixed_step(quiet, loud);
                Group group;
                group.sum = 0;
                for (int64_t u = 0; u < here; u++) {
                    int64_t at = i + u * unit_inputs;
                    const float* values =
                        inputs_at(tile.x + token * tile.ld_x, shape, at, unit_inputs, padded);
                    if (two[u]) round<true>(values, step, group);
                    else round<false>(values, step, group);
                    keep(tile, token, at, unit_inputs, two[u], group);
                    if (two[u]) tile.two[at / unit_inputs] = 1;
                }
                tile.scales[g * tile.width + token] = step.scale;
                tile.sums[g * tile.width + token] = group.sum;
            }
        }
    }

    static void quantize_tile(const ActivationShape& shape, const ActivationGeometry& geometry,
                              const Tile& tile) {
        bool own = shape.precision == Precision::own && shape.group_size >= unit_inputs;
        // Of rows kernels use no codes that are not written.
        if (geometry.rows) {
            if (tile.count < tile.width) clear(tile.scales, tile.groups * tile.width * 4);
        } else if (own || tile.count < tile.width || shape.cols < geometry.padded_cols) {
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
        } else if (own) {
            quantize_own(shape, tile);
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
