// The kernels of kernels.h, written against `Lanes`; included once per instruction set.
#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "vector/kernels.h"

namespace dsconv {
namespace {

constexpr float log2_e = 1.44269504088896341f;
constexpr float nothing = -1e30f;  // a score that no softmax notices; infinity would make NaN

// 2^x with a relative error below 2e-7; x below -126 gives 2^-126.
inline Lanes exp2_lanes(Lanes x) {
    x = Lanes::min(Lanes::max(x, Lanes::broadcast(-126.0f)), Lanes::broadcast(127.0f));
    const Lanes whole = Lanes::round(x);
    const Lanes rest = x - whole;  // -0.5 .. 0.5
    // Taylor series of 2^rest: ln(2)^k / k!
    Lanes y = Lanes::broadcast(1.5403530393381609e-4f);
    for (float coefficient : {1.3333558146428443e-3f, 9.6181291076284772e-3f,
                              5.5504108664821580e-2f, 2.4022650695910071e-1f,
                              6.9314718055994531e-1f, 1.0f}) {
        y = Lanes::multiply_add(y, rest, Lanes::broadcast(coefficient));
    }
    return y * Lanes::power_of_two(whole);
}

inline float exp2_one(float x) {
    float lane[16];
    exp2_lanes(Lanes::broadcast(x)).store(lane);
    return lane[0];
}

// Calls body(start) for whole vectors of [0, size) and tail(start, count) for what is left.
template <class Body, class Tail>
inline void in_lanes(int64_t size, Body&& body, Tail&& tail) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) body(i);
    if (i < size) tail(i, size - i);
}

struct Partial {
    alignas(64) float lane[16] = {};

    Partial() = default;
    Partial(const float* p, int64_t count) { std::memcpy(lane, p, count * sizeof(float)); }
    Lanes lanes() const { return Lanes::load(lane); }
};

inline void store_partial(Lanes x, float* p, int64_t count) {
    Partial buffer;
    x.store(buffer.lane);
    std::memcpy(p, buffer.lane, count * sizeof(float));
}

void rms_norm(const float* x, const float* gain, float epsilon, int64_t size, float* out) {
    Lanes even = Lanes::zero(), odd = Lanes::zero();
    in_lanes(
        size,
        [&](int64_t i) {
            const Lanes value = Lanes::load(x + i);
            Lanes& sum = i & 16 ? odd : even;
            sum = Lanes::multiply_add(value, value, sum);
        },
        [&](int64_t i, int64_t count) {
            const Lanes value = Partial(x + i, count).lanes();
            odd = Lanes::multiply_add(value, value, odd);
        });
    const float mean = (even + odd).sum() / static_cast<float>(size);
    const Lanes inverse = Lanes::broadcast(1.0f / std::sqrt(mean + epsilon));
    in_lanes(
        size,
        [&](int64_t i) { (Lanes::load(gain + i) * (Lanes::load(x + i) * inverse)).store(out + i); },
        [&](int64_t i, int64_t count) {
            const Lanes value = Partial(x + i, count).lanes() * inverse;
            store_partial(Partial(gain + i, count).lanes() * value, out + i, count);
        });
}

inline Lanes silu(Lanes x) {
    const Lanes one = Lanes::broadcast(1.0f);
    return x / (one + exp2_lanes(x * Lanes::broadcast(-log2_e)));
}

void silu_multiply(float* gate, const float* up, int64_t size) {
    in_lanes(
        size,
        [&](int64_t i) { (silu(Lanes::load(gate + i)) * Lanes::load(up + i)).store(gate + i); },
        [&](int64_t i, int64_t count) {
            const Lanes value = silu(Partial(gate + i, count).lanes());
            store_partial(value * Partial(up + i, count).lanes(), gate + i, count);
        });
}

void add(float* x, const float* y, int64_t size) {
    in_lanes(
        size, [&](int64_t i) { (Lanes::load(x + i) + Lanes::load(y + i)).store(x + i); },
        [&](int64_t i, int64_t count) {
            for (int64_t k = i; k < i + count; ++k) x[k] += y[k];
        });
}

void rotate(const float* x, const float* cosine, const float* sine, int64_t half, float scale,
            float* out) {
    const Lanes by = Lanes::broadcast(scale);
    auto turn = [&](Lanes first, Lanes second, Lanes c, Lanes s, Lanes* one, Lanes* two) {
        *one = (first * c - second * s) * by;
        *two = (second * c + first * s) * by;
    };
    Lanes one, two;
    in_lanes(
        half,
        [&](int64_t i) {
            turn(Lanes::load(x + i), Lanes::load(x + half + i), Lanes::load(cosine + i),
                 Lanes::load(sine + i), &one, &two);
            one.store(out + i);
            two.store(out + half + i);
        },
        [&](int64_t i, int64_t count) {
            turn(Partial(x + i, count).lanes(), Partial(x + half + i, count).lanes(),
                 Partial(cosine + i, count).lanes(), Partial(sine + i, count).lanes(), &one, &two);
            store_partial(one, out + i, count);
            store_partial(two, out + half + i, count);
        });
}

void to_half(const float* x, int64_t size, Half* out) {
    in_lanes(
        size, [&](int64_t i) { Lanes::load(x + i).store(out + i); },
        [&](int64_t i, int64_t count) {
            Half buffer[16];
            Partial(x + i, count).lanes().store(buffer);
            std::memcpy(out + i, buffer, count * sizeof(Half));
        });
}

float to_int8(const float* x, int64_t size, int8_t* out) {
    float largest = 0;
    for (int64_t i = 0; i < size; ++i) {
        const float magnitude = std::fabs(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = largest / 127.0f;
    // A subnormal scale has no finite inverse; such values are nothing beside any other.
    const float inverse = scale > 1e-37f ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < size; ++i) {
        const float code = std::nearbyint(x[i] * inverse);
        out[i] = static_cast<int8_t>(code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code);
    }
    return scale;
}

// scores[row][position of the blocks] += sum over features of query * key.
// `rows` of keys are `row_count` rows of 16 positions, those at key_rows[i] where that is given.
template <int Rows, int Blocks, class Element>
inline void add_products(const float* queries, int64_t query_stride, const Element* keys,
                         int64_t block_stride, const int32_t* key_rows, int64_t row_count,
                         Lanes (&sums)[Rows][Blocks]) {
    for (int64_t feature = 0; feature < row_count; ++feature) {
        const int64_t key_row = key_rows ? key_rows[feature] : feature;
        Lanes key[Blocks];
        for (int b = 0; b < Blocks; ++b) {
            const Element* place = keys + b * block_stride + key_row * position_block;
            key[b] = Lanes::load(place);
            // A block is about a page, where the hardware's own prefetching stops.
            Lanes::prefetch(place + Blocks * block_stride);
        }
        for (int r = 0; r < Rows; ++r) {
            const Lanes query = Lanes::broadcast(queries[r * query_stride + feature]);
            for (int b = 0; b < Blocks; ++b) {
                sums[r][b] = Lanes::multiply_add(query, key[b], sums[r][b]);
            }
        }
    }
}

template <int Rows, int Blocks, class Element>
void score_tile(const AttentionTile& tile, const CacheView& cache, const float* rotary,
                int64_t rotary_rows, int64_t row, int64_t block) {
    Lanes sums[Rows][Blocks];
    for (auto& of_row : sums) {
        for (auto& sum : of_row) sum = Lanes::zero();
    }
    const float* queries = tile.queries + row * tile.query_stride;
    const int64_t key_block = tile.head_dim * position_block;
    const auto* keys = static_cast<const Element*>(cache.keys) + block * key_block;
    add_products<Rows, Blocks>(queries, tile.query_stride, keys, key_block, nullptr,
                               tile.head_dim, sums);
    if (sizeof(Element) == 1) {
        for (int b = 0; b < Blocks; ++b) {
            const Lanes scale = Lanes::load(cache.key_scales + (block + b) * position_block);
            for (int r = 0; r < Rows; ++r) sums[r][b] = sums[r][b] * scale;
        }
    }
    if (tile.bias_row_count > 0) {
        const int64_t table_block = rotary_rows * position_block;
        add_products<Rows, Blocks>(queries + tile.head_dim, tile.query_stride,
                                   rotary + block * table_block, table_block, tile.bias_rows,
                                   tile.bias_row_count, sums);
    }
    for (int r = 0; r < Rows; ++r) {
        float* scores = tile.scores + (row + r) * segment_positions + block * position_block;
        for (int b = 0; b < Blocks; ++b) sums[r][b].store(scores + b * position_block);
    }
}

// Instantiates work<N>() for N = count, which is at most Largest.
template <int Largest, class Work>
inline void with_count(int64_t count, Work&& work) {
    if constexpr (Largest == 1) {
        work.template operator()<1>();
    } else {
        if (count >= Largest) {
            work.template operator()<Largest>();
        } else {
            with_count<Largest - 1>(count, work);
        }
    }
}

template <class Element>
struct Scores {
    const AttentionTile& tile;
    const CacheView& cache;
    const float* rotary;
    int64_t rotary_rows, row, block, blocks;

    template <int Rows>
    void operator()() const {
        int64_t b = block;
        for (; b + Lanes::tile_blocks <= blocks; b += Lanes::tile_blocks) {
            score_tile<Rows, Lanes::tile_blocks, Element>(tile, cache, rotary, rotary_rows, row, b);
        }
        for (; b < blocks; ++b) {
            score_tile<Rows, 1, Element>(tile, cache, rotary, rotary_rows, row, b);
        }
    }
};

constexpr int64_t prefetched_positions = 16;

// output[row] = output[row] * factor[row] + sum over positions of weight * value.
template <int Rows, int Chunks, class Element>
inline void add_values(const AttentionTile& tile, const CacheView& cache, const float* factors,
                       int64_t row, int64_t feature, int64_t positions) {
    const int64_t stride = padded_to_lanes(tile.head_dim);
    const auto* values = static_cast<const Element*>(cache.values) + feature;
    float* output = tile.output + row * stride + feature;
    Lanes sums[Rows][Chunks];
    for (int r = 0; r < Rows; ++r) {
        const Lanes factor = Lanes::broadcast(factors[row + r]);
        for (int c = 0; c < Chunks; ++c) {
            sums[r][c] = Lanes::load(output + r * stride + c * 16) * factor;
        }
    }
    const float* weights = tile.scores + row * segment_positions;
    for (int64_t position = 0; position < positions; ++position) {
        Lanes value[Chunks];
        for (int c = 0; c < Chunks; ++c) {
            const Element* place = values + position * stride + c * 16;
            value[c] = Lanes::load(place);
            Lanes::prefetch(place + prefetched_positions * stride);
        }
        for (int r = 0; r < Rows; ++r) {
            const Lanes weight = Lanes::broadcast(weights[r * segment_positions + position]);
            for (int c = 0; c < Chunks; ++c) {
                sums[r][c] = Lanes::multiply_add(weight, value[c], sums[r][c]);
            }
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int c = 0; c < Chunks; ++c) sums[r][c].store(output + r * stride + c * 16);
    }
}

template <class Element>
struct Values {
    const AttentionTile& tile;
    const CacheView& cache;
    const float* factors;
    int64_t row, positions;

    template <int Rows>
    void operator()() const {
        constexpr int chunks = Lanes::tile_blocks;
        const int64_t width = padded_to_lanes(tile.head_dim);
        int64_t feature = 0;
        for (; feature + 16 * chunks <= width; feature += 16 * chunks) {
            add_values<Rows, chunks, Element>(tile, cache, factors, row, feature, positions);
        }
        for (; feature < width; feature += 16) {
            add_values<Rows, 1, Element>(tile, cache, factors, row, feature, positions);
        }
    }
};

// Scores of one row -> weights in place; returns the factor for what was summed before.
inline float soften(const AttentionTile& tile, const CacheView& cache, int64_t row, int64_t start,
                    int64_t positions) {
    float* scores = tile.scores + row * segment_positions;
    const int64_t padded = padded_to_lanes(positions);
    int64_t visible = tile.first_position + row / tile.rows_per_position + 1 - start;
    visible = visible < 0 ? 0 : visible > positions ? positions : visible;
    for (int64_t i = visible; i < padded; ++i) scores[i] = nothing;
    Lanes largest = Lanes::broadcast(tile.maximum[row]);
    for (int64_t i = 0; i < padded; i += 16) {
        largest = Lanes::max(largest, Lanes::load(scores + i));
    }
    const float maximum = largest.largest();
    const float factor = exp2_one(tile.maximum[row] - maximum);
    const Lanes shift = Lanes::broadcast(maximum);
    Lanes sum = Lanes::zero();
    for (int64_t i = 0; i < padded; i += 16) {
        Lanes weight = exp2_lanes(Lanes::load(scores + i) - shift);
        sum = sum + weight;
        if (cache.value_scales) weight = weight * Lanes::load(cache.value_scales + i);
        weight.store(scores + i);
    }
    tile.maximum[row] = maximum;
    tile.sum[row] = tile.sum[row] * factor + sum.sum();
    return factor;
}

constexpr int64_t max_tile_rows = 256;

template <class Element>
void attend(const AttentionTile& tile, const CacheView& cache, const float* rotary,
            int64_t rotary_rows, int64_t start, int64_t positions) {
    const int64_t blocks = (positions + position_block - 1) / position_block;
    // The first values come from memory while the scores are made.
    const int64_t first = positions < prefetched_positions ? positions : prefetched_positions;
    const auto* values = static_cast<const uint8_t*>(cache.values);
    const auto bytes = first * padded_to_lanes(tile.head_dim) * static_cast<int64_t>(sizeof(Element));
    for (int64_t i = 0; i < bytes; i += 64) Lanes::prefetch(values + i);
    // Some blocks of keys at a time, so that they stay in the first-level cache for all rows.
    constexpr int64_t kept = 4;
    for (int64_t block = 0; block < blocks; block += kept) {
        const int64_t end = block + kept < blocks ? block + kept : blocks;
        for (int64_t row = 0; row < tile.rows; row += Lanes::tile_rows) {
            with_count<Lanes::tile_rows>(
                tile.rows - row,
                Scores<Element>{tile, cache, rotary, rotary_rows, row, block, end});
        }
    }
    float factors[max_tile_rows];
    for (int64_t row = 0; row < tile.rows; ++row) {
        factors[row] = soften(tile, cache, row, start, positions);
    }
    for (int64_t row = 0; row < tile.rows; row += Lanes::tile_rows) {
        with_count<Lanes::tile_rows>(tile.rows - row,
                                     Values<Element>{tile, cache, factors, row, positions});
    }
}

constexpr VectorKernels kernels_of_this_isa = {
    Lanes::name, rms_norm, silu_multiply, add, rotate, to_half, to_int8, attend<float>,
    attend<Half>, attend<int8_t>,
};

}  // namespace
}  // namespace dsconv
