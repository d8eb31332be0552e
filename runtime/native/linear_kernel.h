// The matrix product: which tile computes what. As in linear_integer_tile.h everything is a member
// of a template on the lanes L.
#pragma once

#include "linear_geometry.h"
#include "linear_integer_tile.h"

namespace dsconv {

// Float weights; even and odd inputs are summed apart and then added.
template <class L, bool bfloat, int width, int tokens, int blocks> struct FloatTile {
    using Floats = typename L::Floats;

    static Floats weights(const uint8_t* p) {
        return bfloat ? L::load_bfloat16(p) : L::load_float16(p);
    }

    static void step(const uint8_t* data, int64_t stride, const float* x,
                     Floats (&totals)[blocks][tokens]) {
        for (int b = 0; b < blocks; b++) {
            Floats w = weights(data + b * stride);
            for (int t = 0; t < tokens; t++) {
                totals[b][t] = L::fma(w, L::set_floats(x[t * 4]), totals[b][t]);
            }
        }
    }

    static void floats(int64_t cols, const uint8_t* data, int64_t stride, const float* x,
                       Floats (&totals)[blocks][tokens]) {
        Floats odd[blocks][tokens];
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) odd[b][t] = L::set_floats(0);
        }
        int64_t i = 0;
        for (; i + 4 <= cols; i += 4, x += 4 * width, data += 8 * block_rows) {
            step(data, stride, x, totals);
            step(data + 2 * block_rows, stride, x + 1, odd);
            step(data + 4 * block_rows, stride, x + 2, totals);
            step(data + 6 * block_rows, stride, x + 3, odd);
        }
        if (i < cols) step(data, stride, x, totals);
        if (i + 1 < cols) step(data + 2 * block_rows, stride, x + 1, odd);
        if (i + 2 < cols) step(data + 4 * block_rows, stride, x + 2, totals);
        for (int b = 0; b < blocks; b++) {
            for (int t = 0; t < tokens; t++) totals[b][t] = L::add(totals[b][t], odd[b][t]);
        }
    }
};

template <class L> struct Linear {
    using Floats = typename L::Floats;

    struct Call {
        const LinearView& view;
        const LinearGeometry& geometry;
        const Activations& x;
        const ActivationGeometry& activations;
        float* out;
        int64_t ld_out;
        const Epilogue& epilogue;
    };

    static void store(const Call& call, int64_t block, int64_t token, Floats total) {
        int64_t row = block * block_rows;
        int64_t rows = call.view.rows - row < block_rows ? call.view.rows - row : block_rows;
        float* out = call.out + token * call.ld_out + row;
        const float* bias = call.epilogue.bias ? call.epilogue.bias + row : nullptr;
        if (rows == block_rows) {
            if (bias) total = L::add(total, L::load_floats(bias));
            if (call.epilogue.accumulate) total = L::add(total, L::load_floats(out));
            L::store_floats(out, total);
            return;
        }
        float values[block_rows];
        L::store_floats(values, total);
        for (int64_t i = 0; i < rows; i++) {
            float value = bias ? values[i] + bias[i] : values[i];
            out[i] = call.epilogue.accumulate ? value + out[i] : value;
        }
    }

    // `stride` is 0 where only one block is left: it is then computed `blocks` times.
    template <int width, int tokens, int blocks>
    static void compute(const Call& call, int64_t block, int64_t stride, int64_t tile,
                        int64_t first, Floats (&totals)[blocks][tokens]) {
        int64_t group_size = call.x.shape.group_size;
        int64_t groups = tile * tile_tokens * call.activations.groups + first;
        int64_t inputs = tile * tile_tokens * call.activations.padded_cols + first * 4;
        const uint8_t* data = call.view.data + block * call.geometry.block_bytes;
        TileActivations x{call.x.high + inputs, call.x.low ? call.x.low + inputs : nullptr,
                          call.x.scales + groups, call.x.sums + groups,
                          call.x.two + tile * call.activations.groups, group_size};
        constexpr Zero none = Zero::none, middle = Zero::middle, stored = Zero::stored;
        bool zeros = call.view.zero_points;
        switch (call.view.kind) {
            case LinearKind::int4:
                return zeros ? IntegerTile<L, 4, stored, width, tokens, blocks>::integers(
                                   call.geometry, data, stride, x, totals)
                             : IntegerTile<L, 4, middle, width, tokens, blocks>::integers(
                                   call.geometry, data, stride, x, totals);
            case LinearKind::int8:
                return zeros ? IntegerTile<L, 8, stored, width, tokens, blocks>::integers(
                                   call.geometry, data, stride, x, totals)
                             : IntegerTile<L, 8, middle, width, tokens, blocks>::integers(
                                   call.geometry, data, stride, x, totals);
            case LinearKind::scale_min3:
                return IntegerTile<L, 3, none, width, tokens, blocks>::scale_min(
                    call.geometry, data, stride, x, totals);
            case LinearKind::scale_min4:
                return IntegerTile<L, 4, none, width, tokens, blocks>::scale_min(
                    call.geometry, data, stride, x, totals);
            case LinearKind::scale_min5:
                return IntegerTile<L, 5, none, width, tokens, blocks>::scale_min(
                    call.geometry, data, stride, x, totals);
            case LinearKind::scale_min6:
                return IntegerTile<L, 6, none, width, tokens, blocks>::scale_min(
                    call.geometry, data, stride, x, totals);
            case LinearKind::float16:
                return FloatTile<L, false, width, tokens, blocks>::floats(
                    call.view.cols, data, stride, call.x.floats + inputs, totals);
            case LinearKind::bfloat16:
                return FloatTile<L, true, width, tokens, blocks>::floats(
                    call.view.cols, data, stride, call.x.floats + inputs, totals);
        }
    }

    // Blocks from `block` on, up to `blocks` of them, for the tokens of a tile.
    template <int width, int blocks>
    static void tile(const Call& call, int64_t block, int64_t last_block, int64_t tile) {
        constexpr int tokens = width < L::tokens ? width : L::tokens;
        bool all = block + blocks <= last_block;
        for (int64_t first = 0; first < width; first += tokens) {
            Floats totals[blocks][tokens];
            for (int b = 0; b < blocks; b++) {
                for (int t = 0; t < tokens; t++) totals[b][t] = L::set_floats(0);
            }
            compute<width>(call, block, all ? call.geometry.block_bytes : 0, tile, first, totals);
            for (int t = 0; t < tokens; t++) {
                int64_t token = tile * tile_tokens + first + t;
                if (token >= call.x.shape.tokens) return;
                for (int b = 0; b < (all ? blocks : 1); b++) {
                    store(call, block + b, token, totals[b][t]);
                }
            }
        }
    }

    // All tokens. With one or two of them memory is the limit, and one block at a time makes the
    // simplest stream; with more it pays to use an activation for several blocks.
    template <int width>
    static void blocks_of_tile(const Call& call, int64_t block, int64_t last_block, int64_t t) {
        if constexpr (width > 2) {
            tile<width, L::row_blocks>(call, block, last_block, t);
        } else {
            for (int64_t b = block; b < block + L::row_blocks && b < last_block; b++) {
                tile<width, 1>(call, b, last_block, t);
            }
        }
    }

    static void run(const LinearView& view, const Activations& x, float* out, int64_t ld_out,
                    int64_t first_block, int64_t last_block, const Epilogue& epilogue) {
        LinearGeometry geometry;
        if (!linear_geometry(view, geometry)) return;
        ActivationGeometry activations(x.shape);
        Call call{view, geometry, x, activations, out, ld_out, epilogue};
        for (int64_t block = first_block; block < last_block; block += L::row_blocks) {
            for (int64_t t = 0; t < activations.tiles; t++) {
                switch (tile_width(x.shape.tokens, t)) {
                    case 8: blocks_of_tile<8>(call, block, last_block, t); break;
                    case 4: blocks_of_tile<4>(call, block, last_block, t); break;
                    case 2: blocks_of_tile<2>(call, block, last_block, t); break;
                    default: blocks_of_tile<1>(call, block, last_block, t);
                }
            }
        }
    }
};

}  // namespace dsconv
