// The matrix product: which tile computes what. As in integer_tile.h everything is a member
// of a template on the lanes L.
#pragma once

#include "linear/geometry.h"
#include "linear/kernels/integer_tile.h"
#include "linear/kernels/outputs.h"
#include "linear/kernels/quantize.h"

namespace dsconv {

// Float weights, one block at a time: then all sums are in registers. Even and odd inputs are
// summed apart and then added.
template <class L, bool bfloat, int width, int tokens> struct FloatTile {
    using Floats = typename L::Floats;

    // Fetched in advance, in bytes: the hardware alone comes too late when there is much to compute.
    static constexpr int64_t ahead = 1024;

    [[gnu::always_inline]] static inline void step(const uint8_t* data, const float* x,
                                                   Floats (&sums)[tokens]) {
        Floats w = bfloat ? L::load_bfloat16(data) : L::load_float16(data);
        for (int t = 0; t < tokens; t++) sums[t] = L::fma(w, L::set_floats(x[t * 4]), sums[t]);
    }

    [[gnu::noinline]] static void floats(int64_t cols, const uint8_t* data, const float* x,
                                         Floats (&totals)[tokens]) {
        Floats even[tokens], odd[tokens];
        for (int t = 0; t < tokens; t++) even[t] = odd[t] = L::set_floats(0);
        int64_t i = 0;
        for (; i + 4 <= cols; i += 4, x += 4 * width, data += 8 * block_rows) {
            L::prefetch(data + ahead);
            L::prefetch(data + ahead + vector_bytes);
            step(data, x, even);
            step(data + 2 * block_rows, x + 1, odd);
            step(data + 4 * block_rows, x + 2, even);
            step(data + 6 * block_rows, x + 3, odd);
        }
        if (i < cols) step(data, x, even);
        if (i + 1 < cols) step(data + 2 * block_rows, x + 1, odd);
        if (i + 2 < cols) step(data + 4 * block_rows, x + 2, even);
        for (int t = 0; t < tokens; t++) totals[t] = L::add(even[t], odd[t]);
    }
};

template <class L> struct Linear {
    using Floats = typename L::Floats;

    // Activations that are used for all blocks before others come: they stay in a core's cache.
    static constexpr int64_t cached_activations = 1 << 19;
    static constexpr int64_t many_tiles = 8;

    struct Call {
        const LinearView& view;
        const LinearGeometry& geometry;
        const Activations& x;
        const ActivationGeometry& activations;
        Outputs<L> outputs;
        int64_t blocks_at_once;
    };

    // `stride` is 0 where only one block is left: it is then computed `blocks` times.
    template <int width, int tokens, int blocks>
    static void compute(const Call& call, int64_t block, int64_t stride, int64_t tile,
                        int64_t first, Floats (&totals)[blocks][tokens]) {
        int64_t group_size = call.x.shape.group_size;
        int64_t groups = tile * tile_tokens * call.activations.groups + first;
        int64_t inputs = tile * tile_tokens * call.activations.padded_cols + first * 4;
        const uint8_t* data = call.view.data + block * call.geometry.block_bytes;
        TileActivations x{call.x.codes + inputs, call.x.upper ? call.x.upper + inputs : nullptr,
                          call.x.scales + groups, call.x.sums + groups,
                          call.x.two + tile * call.activations.units, group_size,
                          tile == 0 && call.activations.tiles < many_tiles};
        if (call.view.kind == LinearKind::int4) return integers<4, width>(call, data, stride, x, totals);
        if (call.view.kind == LinearKind::int8) return integers<8, width>(call, data, stride, x, totals);
        if constexpr (blocks <= L::row_blocks) {
            others<width>(call, data, stride, x, call.x.floats + inputs, totals);
        }
    }

    template <int bits, int width, int tokens, int blocks>
    static void integers(const Call& call, const uint8_t* data, int64_t stride,
                         const TileActivations& x, Floats (&totals)[blocks][tokens]) {
        if (call.view.zero_points) {
            IntegerTile<L, bits, Zero::stored, width, tokens, blocks>::integers(
                call.geometry, data, stride, x, totals);
        } else {
            IntegerTile<L, bits, Zero::middle, width, tokens, blocks>::integers(
                call.geometry, data, stride, x, totals);
        }
    }

    template <int width, int tokens, int blocks>
    static void others(const Call& call, const uint8_t* data, int64_t stride,
                       const TileActivations& x, const float* floats,
                       Floats (&totals)[blocks][tokens]) {
        switch (call.view.kind) {
            case LinearKind::scale_min3: return scale_min<3, width>(call, data, stride, x, totals);
            case LinearKind::scale_min4: return scale_min<4, width>(call, data, stride, x, totals);
            case LinearKind::scale_min5: return scale_min<5, width>(call, data, stride, x, totals);
            case LinearKind::scale_min6: return scale_min<6, width>(call, data, stride, x, totals);
            case LinearKind::float16:
                return float_tile<false, width>(call, data, stride, floats, totals);
            case LinearKind::bfloat16:
                return float_tile<true, width>(call, data, stride, floats, totals);
            default: return;
        }
    }

    template <bool bfloat, int width, int tokens, int blocks>
    static void float_tile(const Call& call, const uint8_t* data, int64_t stride,
                           const float* floats, Floats (&totals)[blocks][tokens]) {
        for (int b = 0; b < blocks; b++) {
            FloatTile<L, bfloat, width, tokens>::floats(call.view.cols, data + b * stride, floats,
                                                        totals[b]);
        }
    }

    template <int bits, int width, int tokens, int blocks>
    static void scale_min(const Call& call, const uint8_t* data, int64_t stride,
                          const TileActivations& x, Floats (&totals)[blocks][tokens]) {
        IntegerTile<L, bits, Zero::none, width, tokens, blocks>::scale_min(call.geometry, data,
                                                                           stride, x, totals);
    }

    // Rows of outputs lie far apart; without this all later stores would wait for their lines.
    static void prefetch_outputs(const Call& call, int64_t block, int64_t blocks, int64_t token,
                                 int64_t tokens) {
        for (int64_t t = token; t < token + tokens && t < call.x.shape.tokens; t++) {
            for (int64_t b = block; b < block + blocks; b++) {
                L::prefetch_output(call.outputs.at(b, t));
            }
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
            if constexpr (tokens > 2) {
                prefetch_outputs(call, block, all ? blocks : 1, tile * tile_tokens + first, tokens);
            }
            compute<width>(call, block, all ? call.geometry.block_bytes : 0, tile, first, totals);
            for (int t = 0; t < tokens; t++) {
                int64_t token = tile * tile_tokens + first + t;
                if (token >= call.x.shape.tokens) return;
                for (int b = 0; b < (all ? blocks : 1); b++) {
                    call.outputs.store(block + b, token, totals[b][t]);
                }
            }
        }
    }

    // Blocks [block, last_block), few enough for their codes to stay in the first cache. With one
    // or two tokens memory is the limit, and one block at a time makes the simplest stream; with
    // more it pays to use an activation for several blocks.
    template <int width>
    static void blocks_of_tile(const Call& call, int64_t block, int64_t last_block, int64_t t) {
        if constexpr (width == 8 && L::tall_blocks > 0) {
            if (call.blocks_at_once == L::tall_blocks && last_block - block == L::tall_blocks) {
                return tile<width, L::tall_blocks>(call, block, last_block, t);
            }
        }
        constexpr int blocks = width > 2 ? L::row_blocks : 1;
        for (; block < last_block; block += blocks) tile<width, blocks>(call, block, last_block, t);
    }

    static void run(const LinearView& view, const Activations& x, float* out, int64_t ld_out,
                    int64_t first_block, int64_t last_block, const Epilogue& epilogue,
                    void* /*scratch*/) {
        LinearGeometry geometry;
        if (!linear_geometry(view, geometry)) return;
        ActivationGeometry activations(x.shape);
        Call call{view, geometry, x, activations, {view.rows, out, ld_out, epilogue},
                  blocks_at_once(x.shape)};
        int64_t input_bytes = x.floats ? sizeof(float) : sizeof(int8_t);
        int64_t tile_bytes = tile_tokens * activations.padded_cols * input_bytes;
        int64_t some = cached_activations > tile_bytes ? cached_activations / tile_bytes : 1;
        for (int64_t tile = 0; tile < activations.tiles; tile += some) {
            int64_t last_tile = tile + some < activations.tiles ? tile + some : activations.tiles;
            for (int64_t block = first_block; block < last_block; block += call.blocks_at_once) {
                tiles(call, block, last_block, tile, last_tile);
            }
        }
    }

    static int64_t blocks_at_once(const ActivationShape& shape) {
        bool tall = L::tall_blocks > 0 && shape.group_size == wide_group;
        return tall ? L::tall_blocks : L::row_blocks;
    }

    static void blocks_of(const Call& call, int64_t block, int64_t last_block, int64_t tile) {
        switch (tile_width(call.x.shape.tokens, tile)) {
            case 8: return blocks_of_tile<8>(call, block, last_block, tile);
            case 4: return blocks_of_tile<4>(call, block, last_block, tile);
            case 2: return blocks_of_tile<2>(call, block, last_block, tile);
            default: return blocks_of_tile<1>(call, block, last_block, tile);
        }
    }

    // Some blocks for some tiles. Weights of the blocks to come are fetched piece by piece, if there
    // are tiles enough; else the tiles themselves fetch ahead.
    static void tiles(const Call& call, int64_t block, int64_t last_block, int64_t tile,
                      int64_t last_tile) {
        int64_t some = call.blocks_at_once;
        int64_t end = last_block - block > some ? block + some : last_block;
        if (last_tile - tile < many_tiles) {
            for (; tile < last_tile; tile++) blocks_of(call, block, end, tile);
            return;
        }
        int64_t next_blocks = last_block - end < some ? last_block - end : some;
        const uint8_t* next = call.view.data + end * call.geometry.block_bytes;
        const uint8_t* next_end = next + next_blocks * call.geometry.block_bytes;
        int64_t piece = round_up((next_end - next) / (last_tile - tile) + 1, vector_bytes);
        for (; tile < last_tile; tile++) {
            for (int64_t i = 0; i < piece && next < next_end; i += vector_bytes) {
                L::prefetch(next);
                next += vector_bytes;
            }
            blocks_of(call, block, end, tile);
        }
    }
};

template <class L> constexpr LinearKernels kernels_on(Isa isa, const char* name) {
    return {isa, name, ActivationLayout::quads, 0, 0, 0, &Quantizer<L>::run, &Linear<L>::run};
}

}  // namespace dsconv
