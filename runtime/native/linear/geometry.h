// Where things lie in a packed matrix (convert/formats/native/linear_layout.py) and in activations.
#pragma once

#include "linear/linear.h"

namespace dsconv {

constexpr int64_t vector_bytes = 64;  // four inputs of 16 rows
constexpr int64_t tile_tokens = 8;
constexpr int64_t row_inputs = 64;    // ActivationLayout::rows: tiles of row_tokens x row_inputs
constexpr int64_t row_tokens = 16;
constexpr int64_t unit_inputs = 32;   // inputs of a tile that have an upper term together, or none
constexpr int64_t wide_group = 128;   // inputs that share a scale in Precision::mixed

// A matrix is a sequence of blocks, a block of super-blocks (int4 and int8: one that has no units),
// a super-block of groups: codes, then what belongs to them.
struct LinearGeometry {
    int bits = 0;                // of a code; 16 for floats
    bool scale_min = false;
    int64_t groups = 0;          // in a row
    int64_t group_width = 0;     // inputs of a group, padded
    int64_t last_width = 0;      // of the last one
    int64_t super_groups = 0;    // groups of a super-block
    int64_t padded_cols = 0;     // sum of the widths
    int64_t parameter_bytes = 0; // that follow the codes of a group
    int64_t block_bytes = 0;

    int64_t code_bytes(int64_t width) const { return width * bits * block_rows / 8; }
};

// false if no kernel reads such a matrix. Sizes are bounded before anything is multiplied.
bool linear_geometry(const LinearView& view, LinearGeometry& geometry);

constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Tokens that a tile has room for: 8, or for the last one the next power of two.
constexpr int64_t tile_width(int64_t tokens, int64_t tile) {
    int64_t rest = tokens - tile * tile_tokens;
    return rest > 4 ? 8 : rest > 2 ? 4 : rest;
}

struct ActivationGeometry {
    bool rows;            // ActivationLayout::rows
    int64_t tiles;        // of tile_tokens
    int64_t width;        // tokens over all tiles, padding included
    int64_t padded_cols;
    int64_t groups;
    int64_t units;
    int64_t row_bytes;    // rows: codes of all tokens, for row_inputs inputs
    int64_t code_bytes;

    explicit ActivationGeometry(const ActivationShape& shape)
        : rows(shape.layout == ActivationLayout::rows),
          tiles((shape.tokens + tile_tokens - 1) / tile_tokens),
          width(tiles == 0 ? 0 : (tiles - 1) * tile_tokens + width_of(shape, tiles - 1)),
          padded_cols(round_up(shape.cols, unit_inputs)),
          groups((padded_cols + shape.group_size - 1) / shape.group_size),
          units(padded_cols / unit_inputs),
          row_bytes(round_up(width, row_tokens) * row_inputs),
          code_bytes(rows ? (shape.cols + row_inputs - 1) / row_inputs * row_bytes
                          : width * padded_cols) {}

    static int64_t width_of(const ActivationShape& shape, int64_t tile) {
        return shape.layout == ActivationLayout::rows ? tile_tokens
                                                      : tile_width(shape.tokens, tile);
    }
    // Where the codes of a tile start.
    int64_t codes_at(int64_t tile) const {
        return tile * tile_tokens * (rows ? row_inputs : padded_cols);
    }
};

}  // namespace dsconv
