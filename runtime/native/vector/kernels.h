// All that is not a matrix product: norms, activations, rotary positions, attention.
//
// Like the matrix kernels these give the same bits on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.h"
#include "linear/linear.h"

namespace dsconv {

// Positions of the cache come in segments, and within a segment in blocks of sixteen.
constexpr int64_t segment_positions = 256;
constexpr int64_t position_block = 16;

constexpr int64_t padded_to_lanes(int64_t size) { return (size + 15) / 16 * 16; }

// Keys and values of one key-value head in one segment. `Element` is float, Half or int8_t.
// keys: [block][feature][position in the block]; values: [position][padded feature].
// int8 values are multiplied by the scale of their position.
struct CacheView {
    const void* keys = nullptr;
    const void* values = nullptr;
    const float* key_scales = nullptr;    // [position], int8 only
    const float* value_scales = nullptr;  // [position], int8 only
};

// Some query rows that attend to one key-value head. Row r is at position
// first_position + r / rows_per_position and sees no position after its own.
struct AttentionTile {
    const float* queries = nullptr;  // [row][query_stride]: rotated and scaled by log2(e)/sqrt(dim)
    int64_t query_stride = 0;
    int64_t rows = 0;
    int64_t rows_per_position = 1;
    int64_t first_position = 0;
    int64_t head_dim = 0;
    // The part of the scores that comes from large key biases, which the cached keys lack:
    // query features from head_dim on meet these rows of the rotary table.
    const int32_t* bias_rows = nullptr;
    int64_t bias_row_count = 0;
    // Running softmax of every row, and scratch for the scores of a segment.
    float* maximum = nullptr;  // [row]
    float* sum = nullptr;      // [row]
    float* output = nullptr;   // [row][padded head_dim]: not yet divided by the sum
    float* scores = nullptr;   // [row][segment_positions]
};

struct VectorKernels {
    const char* name;
    // out = x / sqrt(mean(x²) + epsilon) * gain; out may be x.
    void (*rms_norm)(const float* x, const float* gain, float epsilon, int64_t size, float* out);
    // gate = silu(gate) * up
    void (*silu_multiply)(float* gate, const float* up, int64_t size);
    // x += y
    void (*add)(float* x, const float* y, int64_t size);
    // Turn the pairs (x[i], x[i + half]) by the angle with cosine[i], sine[i], then scale.
    // out may be x.
    void (*rotate)(const float* x, const float* cosine, const float* sine, int64_t half,
                   float scale, float* out);
    // x -> half precision
    void (*to_half)(const float* x, int64_t size, Half* out);
    // x -> int8 times the returned scale
    float (*to_int8)(const float* x, int64_t size, int8_t* out);
    // Continue the softmax of a tile over the first `positions` of a segment that starts at
    // position `start`. rotary: the segment's table [block][row][position], `rotary_rows` rows.
    void (*attend_float)(const AttentionTile& tile, const CacheView& cache, const float* rotary,
                         int64_t rotary_rows, int64_t start, int64_t positions);
    void (*attend_half)(const AttentionTile& tile, const CacheView& cache, const float* rotary,
                        int64_t rotary_rows, int64_t start, int64_t positions);
    void (*attend_int8)(const AttentionTile& tile, const CacheView& cache, const float* rotary,
                        int64_t rotary_rows, int64_t start, int64_t positions);
};

extern const VectorKernels scalar_vector_kernels;
extern const VectorKernels avx2_vector_kernels;    // on x86-64 alone
extern const VectorKernels avx512_vector_kernels;  // on x86-64 alone
extern const VectorKernels neon_vector_kernels;    // on 64-bit ARM alone

constexpr Isa all_isas[] = {Isa::scalar, Isa::avx2, Isa::avx_vnni, Isa::avx512_vnni,
                            Isa::amx_int8, Isa::neon_dotprod};

// The vector kernels that go with a set of matrix kernels; nullptr where this build has none.
const VectorKernels* vector_kernels(Isa isa);

}  // namespace dsconv
