// Rounding of activations, written once for all instruction sets: plain loops over a group that
// compilers turn into vectors. As in linear_kernel.h all functions are members of a template.
#pragma once

#include "linear_geometry.h"

namespace dsconv {

// L only keeps the instruction sets' copies apart.
template <class L> struct Quantizer {
    static constexpr int max_group = 32;
    static constexpr float two_term_factor = 1.5f;

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

    // Where one term is so coarse that its error matters for the whole token: groups whose largest
    // magnitude is well above the root mean square of all groups' largest magnitudes.
    static float two_term_limit(const float* x, const ActivationShape& shape) {
        float squares = 0;
        int64_t groups = 0;
        float padded[max_group];
        for (int64_t i = 0; i < shape.cols; i += shape.group_size, groups++) {
            float largest = from_bits(largest_magnitude(group_at(x, shape, i, padded)));
            squares += largest * largest;
        }
        return two_term_factor * two_term_factor * (squares / static_cast<float>(groups));
    }

    // The group that starts at input i, in max_group values.
    static const float* group_at(const float* x, const ActivationShape& shape, int64_t i,
                                 float (&padded)[max_group]) {
        int64_t size = shape.cols - i < shape.group_size ? shape.cols - i : shape.group_size;
        if (size == max_group) return x + i;
        for (int64_t j = 0; j < max_group; j++) padded[j] = j < size ? x[i + j] : 0.0f;
        return padded;
    }

    static void quantize_token(const float* x, const Activations& to, int64_t width,
                               int64_t inputs, int64_t groups, uint8_t* two, int token) {
        const ActivationShape& shape = to.shape;
        bool always = shape.precision == Precision::int16;
        bool sometimes = shape.precision == Precision::mixed;
        float limit = sometimes ? two_term_limit(x, shape) : 0.0f;
        float padded[max_group];
        Group group;
        for (int64_t g = 0, i = 0; i < shape.cols; g++, i += shape.group_size) {
            const float* values = group_at(x, shape, i, padded);
            int32_t largest = largest_magnitude(values);
            float magnitude = from_bits(largest);
            bool both = always || (sometimes && magnitude * magnitude > limit);
            if (both) quantize<true>(values, largest, group);
            else quantize<false>(values, largest, group);
            to.scales[groups + g * width] = group.scale;
            to.sums[groups + g * width] = group.sum;
            two[g] = static_cast<uint8_t>(two[g] | both << token);
            for (int64_t quad = 0; quad < shape.group_size / 4; quad++) {
                int64_t at = inputs + (i / 4 + quad) * width * 4;
                __builtin_memcpy(to.high + at, group.high + 4 * quad, 4);
                if (to.low) __builtin_memcpy(to.low + at, group.low + 4 * quad, 4);
            }
        }
    }

    // Where some tokens of a tile have two terms, the others get a low term of zero: all of them
    // count in 256ths of what they did, which changes no result.
    static void agree_on_terms(const Activations& x, int64_t width, int64_t count, int64_t groups,
                               const uint8_t* two, int64_t group_count) {
        for (int64_t g = 0; g < group_count; g++) {
            for (int64_t t = 0; two[g] != 0 && t < count; t++) {
                if (two[g] >> t & 1) continue;
                x.scales[groups + g * width + t] *= 0x1p-8f;
                x.sums[groups + g * width + t] *= 256;
            }
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
            clear(to.two + tile * geometry.groups, geometry.groups);
            if (count < width) {
                clear(to.high + inputs, geometry.padded_cols * width);
                if (to.low) clear(to.low + inputs, geometry.padded_cols * width);
                clear(to.scales + groups, geometry.groups * width * 4);
                clear(to.sums + groups, geometry.groups * width * 4);
            }
            uint8_t* two = to.two + tile * geometry.groups;
            for (int64_t t = 0; t < count; t++) {
                quantize_token(x + (token + t) * ld_x, to, width, inputs + t * 4, groups + t, two,
                               static_cast<int>(t));
            }
            agree_on_terms(to, width, count, groups, two, geometry.groups);
        }
    }
};

}  // namespace dsconv
