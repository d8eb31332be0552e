// The steps that a model consists of. convert/formats/native/program.py makes them from the description of
// the model's family; docs/native.md lists their meaning.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "linear/linear.h"

namespace dsconv {

// Index of a buffer of activations: [tokens][width].
using BufferIndex = int64_t;
constexpr BufferIndex no_buffer = -1;

// RMSNorm of every one of `heads` equal parts of a row.
struct Norm {
    const float* gain = nullptr;  // [size]
    float epsilon = 0;
    int64_t size = 0;
    int64_t heads = 1;
};

// output = rows of the table for the tokens of the pass.
struct EmbeddingStep {
    LinearView table;
    BufferIndex output;
};

// buffer = norm(buffer), in place.
struct NormStep {
    Norm norm;
    BufferIndex buffer;
};

struct Matrix {
    LinearView view;
    const float* bias = nullptr;  // [rows], or none
    BufferIndex output;
};

enum class Combine : int64_t {
    none,           // output = matrix * input + bias
    add,            // the same, added to what is in the output
    silu_multiply,  // two matrices, gate and up: output of the gate = silu(gate) * up
};

// Several matrices of one input; the input may be normalised on the way (into `normed`).
struct LinearStep {
    BufferIndex input;
    bool has_norm = false;
    Norm norm;
    BufferIndex normed = no_buffer;
    std::vector<Matrix> matrices;
    Combine combine = Combine::none;
};

// Rotary positions, the cache, attention. Keys come without their bias, which is given here.
struct AttentionStep {
    BufferIndex query, key, value, output;
    int64_t layer, heads, kv_heads, head_dim;
    const float* frequencies;  // [head_dim / 2], radians per position
    float rotary_factor;       // of cosines and sines
    const float* key_bias;     // [kv_heads * head_dim], or none
};

// Logits of the last token, or of all.
struct HeadStep {
    BufferIndex input;
    Norm norm;
    BufferIndex normed;
    LinearView matrix;
};

using Step = std::variant<EmbeddingStep, NormStep, LinearStep, AttentionStep, HeadStep>;

struct Program {
    std::vector<int64_t> buffer_widths;
    std::vector<Step> steps;
    int64_t vocabulary = 0;
};

}  // namespace dsconv
