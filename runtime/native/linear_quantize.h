// Rounding of activations, written once for all instruction sets: plain loops over a group that
// compilers turn into vectors. As in linear_integer_tile.h all functions are members of a template.
#pragma once

#include "linear_geometry.h"

namespace dsconv {

// L only keeps the instruction sets' copies apart.
template <class L> struct Quantizer {
    static constexpr int max_group = 32;
    static constexpr float loud = 4.0f;

    struct Group {
        float scale;
        int32_t sum;
        int8_t high[max_group];
        int8_t low[max_group];
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

    // x: max_group values, padded with zeros, and what their largest_magnitude is.
    template <bool two> static void quantize(const float* x, int32_t largest, Group& group) {
        constexpr int32_t infinity = 0x7f800000, tiny = 0x0d800000;  // tiny: 2^-100
        constexpr float steps = two ? 32512.0f : 127.0f;
        if (largest < tiny || largest >= infinity) {
            // Too small to have a scale, or a value that is not finite: makes everything NaN.
            group = Group{};
            if (largest >= infinity) group.scale = from_bits(0x7fc00000);
            return;
        }
        float magnitude = from_bits(largest);
        float factor = steps / magnitude;
        group.scale = magnitude / steps;
        group.sum = 0;
        // Adding 1.5 * 2^23 rounds to nearest, ties to even, and leaves the integer in the low bits.
        constexpr float magic = 12582912.0f;
        constexpr int32_t magic_bits = 0x4b400000;
        int32_t high[max_group], low[max_group];
        for (int i = 0; i < max_group; i++) {
            float product = x[i] * factor;
            high[i] = to_bits(product + magic) - magic_bits;
        }
        for (int i = 0; two && i < max_group; i++) {
            int32_t value = high[i];
            high[i] = (value + 128) >> 8;
            low[i] = value - 256 * high[i];
            low[i] = low[i] < -127 ? -127 : low[i];  // 2 * 128 * 255 would saturate
        }
        for (int i = 0; i < max_group; i++) group.high[i] = static_cast<int8_t>(high[i]);
        for (int i = 0; i < max_group; i++) group.low[i] = two ? static_cast<int8_t>(low[i]) : 0;
        for (int i = 0; i < max_group; i++) group.sum += two ? 256 * high[i] + low[i] : high[i];
    }

    // The group that starts at input i, in max_group values.
    static const float* group_at(const float* x, const ActivationShape& shape, int64_t i,
                                 float (&padded)[max_group]) {
        int64_t size = shape.cols - i < shape.group_size ? shape.cols - i : shape.group_size;
        if (size == max_group) return x + i;
        for (int64_t j = 0; j < max_group; j++) padded[j] = j < size ? x[i + j] : 0.0f;
        return padded;
    }

    // A tile's part of the arrays.
    struct Tile {
        int64_t width;   // tokens that it has room for
        int64_t count;   // tokens that it has
        int64_t groups;  // of a token
        const float* x;  // its first token
        int64_t ld_x;
        int8_t* high;
        int8_t* low;
        float* scales;
        int32_t* sums;
        uint8_t* two;
    };

    // The largest magnitude of every group, as bits, for the time being where the sums will be.
    static void measure(const ActivationShape& shape, const Tile& tile) {
        float padded[max_group];
        for (int64_t t = 0; t < tile.count; t++) {
            for (int64_t g = 0, i = 0; i < shape.cols; g++, i += shape.group_size) {
                const float* values = group_at(tile.x + t * tile.ld_x, shape, i, padded);
                tile.sums[g * tile.width + t] = largest_magnitude(values);
            }
        }
    }

    // Two terms for the pairs of groups that would make most of the error: where the share of one,
    // the mean over the tokens, is much larger than the mean over groups. The error of a group goes
    // with the square of its largest magnitude.
    // width: of the tile.
    template <int width> static void choose_terms(const Tile& tile) {
        float largest[width] = {}, factors[width], totals[width] = {}, parts[width];
        for (int64_t g = 0; g < tile.groups; g++) {
            for (int t = 0; t < width; t++) {
                float magnitude = from_bits(tile.sums[g * width + t]);
                largest[t] = magnitude > largest[t] ? magnitude : largest[t];
            }
        }
        for (int t = 0; t < width; t++) factors[t] = largest[t] > 0 ? 1.0f / largest[t] : 0.0f;
        for (int64_t g = 0; g < tile.groups; g++) {
            for (int t = 0; t < width; t++) {
                float magnitude = from_bits(tile.sums[g * width + t]) * factors[t];
                totals[t] += magnitude * magnitude;
            }
        }
        for (int t = 0; t < width; t++) parts[t] = totals[t] > 0 ? 1.0f / totals[t] : 0.0f;
        float limit = loud * (static_cast<float>(tile.count) / static_cast<float>(tile.groups));
        for (int64_t g = 0; g < tile.groups; g += 2) {
            bool two = share<width>(tile, g, factors, parts) > limit ||
                       share<width>(tile, g + 1, factors, parts) > limit;
            tile.two[g] = tile.two[g + 1] = two;
        }
    }

    template <int width>
    static float share(const Tile& tile, int64_t group, const float* factors, const float* parts) {
        float sum = 0;
        for (int t = 0; t < width; t++) {
            float magnitude = from_bits(tile.sums[group * width + t]) * factors[t];
            sum += magnitude * magnitude * parts[t];
        }
        return sum;
    }

    static void choose_terms(const Tile& tile) {
        switch (tile.width) {
            case 8: return choose_terms<8>(tile);
            case 4: return choose_terms<4>(tile);
            case 2: return choose_terms<2>(tile);
            default: return choose_terms<1>(tile);
        }
    }

    static void quantize_token(const ActivationShape& shape, const Tile& tile, int64_t token) {
        float padded[max_group];
        Group group;
        for (int64_t g = 0, i = 0; i < shape.cols; g++, i += shape.group_size) {
            const float* values = group_at(tile.x + token * tile.ld_x, shape, i, padded);
            int64_t at = g * tile.width + token;
            if (tile.two[g]) quantize<true>(values, tile.sums[at], group);
            else quantize<false>(values, tile.sums[at], group);
            tile.scales[at] = group.scale;
            tile.sums[at] = group.sum;
            for (int64_t quad = 0; quad < shape.group_size / 4; quad++) {
                int64_t to = ((i / 4 + quad) * tile.width + token) * 4;
                __builtin_memcpy(tile.high + to, group.high + 4 * quad, 4);
                if (tile.two[g]) __builtin_memcpy(tile.low + to, group.low + 4 * quad, 4);
            }
        }
    }

    static void quantize_tile(const ActivationShape& shape, const ActivationGeometry& geometry,
                              const Tile& tile) {
        int64_t values = geometry.padded_cols * tile.width, groups = tile.groups * tile.width * 4;
        if (tile.count < tile.width || shape.cols < geometry.padded_cols) {
            clear(tile.high, values);
            if (tile.low) clear(tile.low, values);
            clear(tile.scales, groups);
            clear(tile.sums, groups);
        }
        __builtin_memset(tile.two, shape.precision == Precision::int16,
                         static_cast<size_t>(tile.groups));
        measure(shape, tile);
        if (shape.precision == Precision::mixed) choose_terms(tile);
        for (int64_t t = 0; t < tile.count; t++) quantize_token(shape, tile, t);
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
            int64_t width = tile_width(to.shape.tokens, tile);
            int64_t token = tile * tile_tokens;
            int64_t inputs = token * geometry.padded_cols, groups = token * geometry.groups;
            int64_t count = to.shape.tokens - token < width ? to.shape.tokens - token : width;
            if (to.shape.precision == Precision::float32) {
                clear(to.floats + inputs, geometry.padded_cols * width * 4);
                for (int64_t t = 0; t < count; t++) {
                    copy_token(x + (token + t) * ld_x, to.shape, width, to.floats + inputs + t * 4);
                }
                continue;
            }
            quantize_tile(to.shape, geometry,
                          Tile{width, count, geometry.groups, x + token * ld_x, ld_x,
                               to.high + inputs, to.low ? to.low + inputs : nullptr,
                               to.scales + groups, to.sums + groups,
                               to.two + tile * geometry.groups});
        }
    }
};

}  // namespace dsconv
