// Matrix kernels: out[token, row] = sum over inputs of weight[row, input] * x[token, input].
//
// A matrix [rows, cols] is cut into blocks of 16 output rows (the last one padded). A block is one
// contiguous run of bytes, so that a thread that owns some blocks reads memory front to back.
// convert/formats/native/linear_layout.py writes the bytes and its docstring is their specification.
//
// Weights of every integer kind meet integer activations, quantized on the fly in groups along the
// input; integer sums are exact. All floating-point steps are single IEEE operations (fused
// multiply-add where the source says so) in one fixed order. Therefore
//   - an output element does not depend on how blocks are split over threads, nor on the tokens
//     beside it (but for Precision::mixed, where the eight of a tile choose together);
//   - every instruction set gives the same bits.
// This needs -ffp-contract=off: the compiler must not fuse what the source keeps apart.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dsconv {

constexpr int64_t block_rows = 16;
// An int32 sum of a group stays exact up to this many inputs: 255 * 128 * 65536 < 2^31.
constexpr int64_t max_group_size = 65536;
constexpr int64_t max_dimension = int64_t{1} << 31;

// Stored in files: keep the numbers.
enum class LinearKind : uint32_t {
    int4 = 4,
    int8 = 8,
    scale_min3 = 19,
    scale_min4 = 20,
    scale_min5 = 21,
    scale_min6 = 22,
    float16 = 32,
    bfloat16 = 33,
};

// A matrix in the kernels' byte order. `data` must be 64-byte aligned and hold linear_bytes().
struct LinearView {
    LinearKind kind = LinearKind::int4;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t group_size = 0;  // int4, int8: a multiple of 16, or 0 for the whole row; else ignored
    bool zero_points = false;  // int4, int8: stored zero points; otherwise 8 or 128 everywhere
    const uint8_t* data = nullptr;
};

// Bytes that a matrix occupies, or 0 if the description is not a valid one (unknown kind, sizes
// out of range, a group size that no kernel has). Never overflows; reads no data.
uint64_t linear_bytes(const LinearView& view);

// Bytes of one block; valid views only.
uint64_t linear_block_bytes(const LinearView& view);

int64_t linear_blocks_of(const LinearView& view);

// How activations are rounded before they meet integer weights: in groups of inputs, each with a
// float scale, largest magnitude / 127 (or / 32512). On a model of 135M parameters with weights in
// groups of 128 int8 costs a KL divergence of 3.7e-3, mixed 1.3e-3, own 1.7e-3, int16 1e-6.
enum class Precision : uint32_t {
    int8,     // one int8 per value, groups of 32
    mixed,    // groups of 128, and int16 in the few 32 of them that would cause most of the error
    int16,    // two int8 per value, groups of 32: twice the arithmetic
    float32,  // no rounding; for float16 and bfloat16 weights
    own,      // as mixed, but every token has its own choice of int16
};

// The order of activations in memory; kernels name the one that they want.
enum class ActivationLayout : uint32_t {
    quads,  // tiles of 8 tokens (the last one of 1, 2, 4 or 8): 4 inputs of each token, the next 4
    rows,   // 64 inputs of each token, the next 64; tokens padded to a multiple of 16
};

// What a set of activations was quantized for; one set serves all matrices that it fits.
struct ActivationShape {
    int64_t tokens = 0;
    int64_t cols = 0;
    int64_t group_size = 32;  // 16 (where the weights' groups are no multiple of 32), 32 or 128
    Precision precision = Precision::int8;
    ActivationLayout layout = ActivationLayout::quads;
};

struct LinearKernels;

// The shape of activations for a matrix: precision is replaced by float32 where weights are floats.
// Matrices that share an input share activations if their shapes are equal.
ActivationShape activation_shape(const LinearKernels& kernels, const LinearView& view,
                                 int64_t tokens, Precision precision);

// Quantized activations, rounded in tiles of 8 tokens. The arrays point into one workspace.
struct Activations {
    ActivationShape shape;
    int8_t* codes = nullptr;   // value = scale * code, or scale * (256 * upper + code)
    int8_t* upper = nullptr;   // mixed and int16; in rows zero where there is no upper term
    float* scales = nullptr;   // [tile][group][token]
    int32_t* sums = nullptr;   // the same of integer values
    uint8_t* two = nullptr;    // [tile][32 inputs]: is there an upper term
    float* floats = nullptr;   // float32 instead of all others
};

// Bytes of workspace that activations need; 64-byte aligned memory.
size_t activation_bytes(const ActivationShape& shape);
Activations place_activations(const ActivationShape& shape, void* workspace);
int64_t activation_tiles(const ActivationShape& shape);

// What is done with a sum before it is stored: sum, + bias[row], + out[token, row], in this order.
struct Epilogue {
    const float* bias = nullptr;
    bool accumulate = false;
};

enum class Isa : uint32_t { scalar, avx2, avx_vnni, avx512_vnni, neon_dotprod, amx_int8 };

// The kernels of one instruction set. Functions are reentrant and keep no state.
struct LinearKernels {
    Isa isa;
    const char* name;
    // Of activations for integer weights in groups of 32 and more: from so many tokens on, in
    // groups of 128 and in smaller ones.
    ActivationLayout layout;
    int64_t wide_from, small_from;
    // Memory that each thread has to bring, 64-byte aligned; its content means nothing.
    size_t scratch_bytes;
    // Rounds the tokens of tiles [first_tile, last_tile): x [tokens, cols], rows ld_x apart.
    // A group with an infinite or NaN value gives NaN wherever it is used.
    void (*quantize)(const float* x, int64_t ld_x, const Activations& activations,
                     int64_t first_tile, int64_t last_tile);
    // out[token * ld_out + row] for the rows of blocks [first_block, last_block).
    // activations.shape must be activation_shape(view, ...) of some precision.
    void (*linear)(const LinearView& view, const Activations& activations, float* out,
                   int64_t ld_out, int64_t first_block, int64_t last_block,
                   const Epilogue& epilogue, void* scratch);
};

// nullptr where this build or this CPU has no such kernels.
const LinearKernels* linear_kernels(Isa isa);
// The fastest ones that run here.
const LinearKernels& best_linear_kernels();

// Weights of one row -> out [cols] float32: scale * (code - zero), or scale * code - minimum, each
// operation rounded once. For embeddings that are stored (or shared with the head) as a matrix.
void dequantize_row(const LinearView& view, int64_t row, float* out);

}  // namespace dsconv
