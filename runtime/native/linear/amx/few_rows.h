// Products of up to 32 tokens in the tiles of AMX, while the weights stream by.
//
// A set of blocks goes through all its inputs, one group of activations after the other. While the
// tiles multiply a group, the vector units unpack the next one and turn the sums of the last one
// into floats: both are cut into pieces that stand between the tiles' instructions, because the
// processor does not look far enough ahead to find them behind.
//
// Include where the instructions of Avx512Vnni are switched on.
#pragma once

#include "linear/amx/few_sums.h"
#include "linear/amx/tiles.h"
#include "linear/kernels/outputs.h"

namespace dsconv {
namespace amx {

constexpr int64_t few_blocks = 2;    // that are multiplied together
constexpr int64_t few_ahead = 4096;  // bytes that weights are fetched before they are unpacked

// Of a thread.
struct FewScratch {
    alignas(64) int8_t codes[2][few_blocks * wide_group * block_rows];
    FewTotals totals;
    FewGroup groups[3];  // whose sums become floats, that is multiplied, that is unpacked
};

// A call of the kernel.
struct FewRows {
    const LinearView& view;
    const LinearGeometry& geometry;
    const BlockReader reader;
    const Activations& x;
    const ActivationGeometry& activations;
    FewScratch& scratch;
    Outputs<L> outputs;
    int64_t size;  // of a group of activations
    int64_t tokens;
    Finishing finishing;
    UnpackAhead unpack;
    int64_t counts[few_tokens / tile_tokens];  // of each 8 tokens: those that are there

    // Of the inputs of a group: where they are in the activations.
    int64_t place(int64_t input) const {
        return input / row_inputs * activations.row_bytes + input % row_inputs;
    }
};

// Blocks that are multiplied together.
struct BlockSet {
    int64_t block;
    int64_t count;

    const uint8_t* data(const FewRows& call) const {
        return call.view.data + block * call.geometry.block_bytes;
    }
};

// What is done between the tiles' instructions.
struct Meanwhile {
    // The next group: nullptr where there is none.
    int8_t* codes = nullptr;
    int64_t blocks;  // that it has: fewer than now in the last set
    int64_t ahead;
    const uint8_t* source;  // of the first block
    L::Codes offsets[few_blocks];
    // The last one.
    const FewGroup* group = nullptr;
};

enum Pieces { no_pieces = 0, unpacking = 1, finishing = 2, all_pieces = 3 };

// The piece that stands behind the product of a step of inputs of a block with a tile of tokens.
template <int halves, int steps, int pieces>
[[gnu::always_inline]] inline void work(FewRows& call, const Meanwhile& meanwhile, int step,
                                        int b, int half) {
    if ((pieces & unpacking) && half == 0 && meanwhile.codes && b < meanwhile.blocks) {
        const int64_t input = step * row_inputs;
        call.unpack(meanwhile.source + b * call.geometry.block_bytes +
                        call.geometry.code_bytes(input),
                    meanwhile.ahead, meanwhile.offsets[b],
                    meanwhile.codes + (b * wide_group + input) * block_rows);
    }
    if ((pieces & finishing) && meanwhile.group) {
        const int64_t at = (b * halves + half) * tile_sums;
        for (int part = step; part < 2; part += steps) {
            const int64_t tile = half * 2 + part, count = call.counts[tile];
            if (count > 0) {
                meanwhile.group->finish(call.scratch.totals, *meanwhile.group,
                                        at + part * half_sums, b, tile, count);
            }
        }
    }
}

// One step of inputs of the blocks from the b-th on. Sums are tiles 0 to 3, activations 4 (and 5).
template <int halves, int blocks, int steps, int pieces, int b>
[[gnu::always_inline]] inline void multiply_block(FewRows& call, const int8_t* codes, int step,
                                                  const Meanwhile& meanwhile) {
    if constexpr (b < blocks) {
        constexpr int tile = halves == 1 ? 5 + b % 3 : 6 + b;
        FewTiles::load<tile>(codes + b * wide_group * block_rows);
        FewTiles::multiply<b, 4, tile>();
        work<halves, steps, pieces>(call, meanwhile, step, b, 0);
        if constexpr (halves == 2) {
            FewTiles::multiply<2 + b, 5, tile>();
            work<halves, steps, pieces>(call, meanwhile, step, b, 1);
        }
        multiply_block<halves, blocks, steps, pieces, b + 1>(call, codes, step, meanwhile);
    }
}

template <int halves, int blocks, int b>
[[gnu::always_inline]] inline void store_sums(int32_t* sums) {
    if constexpr (b < blocks) {
        FewTiles::store<b>(sums + b * halves * tile_sums);
        if constexpr (halves == 2) FewTiles::store<2 + b>(sums + (b * halves + 1) * tile_sums);
        store_sums<halves, blocks, b + 1>(sums);
    }
}

// Sums of a group, [block][tile of tokens].
template <int halves, int blocks, int steps, int pieces>
void multiply_few(FewRows& call, const int8_t* x, const int8_t* codes, int32_t* sums,
                  const Meanwhile& meanwhile) {
    FewTiles::clear<halves == 2 ? 4 : blocks>();
    for (int step = 0; step < steps; step++, x += call.activations.row_bytes) {
        FewTiles::load<4>(x);
        if constexpr (halves == 2) FewTiles::load<5>(x + row_tokens * row_inputs);
        multiply_block<halves, blocks, steps, pieces, 0>(call, codes, step, meanwhile);
        codes += row_inputs * block_rows;
    }
    store_sums<halves, blocks, 0>(sums);
}

// What is known of the activations of a group.
inline void read_tokens(const FewRows& call, int64_t group, FewGroup& to) {
    const int64_t units = call.activations.units, unit = group * call.size / unit_inputs;
    const int64_t left = units - unit, all = call.size / unit_inputs;
    const uint8_t* two = call.x.two + unit;
    uint8_t any[2] = {};
    for (int64_t tile = 0; tile < call.activations.tiles; tile++, two += units) {
        for (int64_t u = 0; u < all && u < left; u++) any[u * unit_inputs / row_inputs] |= two[u];
    }
    to.two[0] = any[0] != 0;
    to.two[1] = any[1] != 0;
    to.steps = call.x.scales + group * tile_tokens;
    to.totals = call.x.sums + group * tile_tokens;
    to.next_tile = call.activations.groups * tile_tokens;
}

// Makes ready what belongs to a group of a set of blocks, but for its codes: those are unpacked
// later, to `codes`. `following`: the set that is read after this one.
inline void prepare(const FewRows& call, const BlockSet& set, const BlockSet& following,
                    int64_t group, int8_t* codes, FewGroup& to, Meanwhile& meanwhile) {
    const int64_t input = group * call.size, block_bytes = call.geometry.block_bytes;
    const BlockReader::Place place = call.reader.find(input);
    const uint8_t* data = set.data(call);
    meanwhile.codes = codes;
    meanwhile.blocks = set.count;
    meanwhile.source = data + place.codes;
    meanwhile.ahead = few_ahead;
    // Where a block ends before, that of the following set is fetched.
    if (place.codes + few_ahead >= block_bytes) {
        meanwhile.ahead =
            following.count > 0 ? following.data(call) - data + few_ahead - block_bytes : 0;
    }
    for (int64_t b = 0; b < set.count; b++, data += block_bytes) {
        meanwhile.offsets[b] = call.reader.offset_of(data + place.parameters);
        call.reader.read_parameters(data, place, to.scales[b], to.minima[b], to.zeros[b]);
        _mm_prefetch(data + place.parameters + meanwhile.ahead, _MM_HINT_T0);
    }
    read_tokens(call, group, to);
    to.finish = call.finishing.of(to.two[0] || to.two[1], place.offset == 0, place.left <= call.size);
    if (place.left < call.size) {  // at once: zeros follow, as the activations may hold anything
        const Unpack unpack = call.reader.unpacking();
        const auto rest = static_cast<size_t>((call.size - place.left) * block_rows);
        for (int64_t b = 0; b < set.count; b++, codes += wide_group * block_rows) {
            unpack(meanwhile.source + b * block_bytes, place.left, meanwhile.offsets[b], codes);
            __builtin_memset(codes + place.left * block_rows, 0, rest);
        }
        meanwhile.codes = nullptr;
    }
}

template <int halves, int steps>
void work_alone(FewRows& call, const Meanwhile& meanwhile, int64_t blocks) {
    for (int b = 0; b < blocks; b++) {
        for (int step = 0; step < steps; step++) {
            for (int half = 0; half < halves; half++) {
                work<halves, steps, all_pieces>(call, meanwhile, step, b, half);
            }
        }
    }
}

template <int halves, int blocks, int steps>
void multiply_group(FewRows& call, int64_t group, const int8_t* codes, FewGroup& to,
                    const Meanwhile& meanwhile) {
    const int64_t input = group * call.size, place = call.place(input);
    const int8_t *x = call.x.codes + place, *upper = call.x.upper + place;
    if (steps == 2 && input + row_inputs >= call.x.shape.cols) {  // the last group, half of it
        work_alone<halves, steps>(call, meanwhile, blocks);
        multiply_few<halves, blocks, 1, no_pieces>(call, x, codes, to.codes, meanwhile);
        if (to.two[0]) {
            multiply_few<halves, blocks, 1, no_pieces>(call, upper, codes, to.upper, meanwhile);
        }
    } else if (to.two[0] && (steps == 1 || to.two[1])) {
        multiply_few<halves, blocks, steps, unpacking>(call, x, codes, to.codes, meanwhile);
        multiply_few<halves, blocks, steps, finishing>(call, upper, codes, to.upper, meanwhile);
    } else {
        multiply_few<halves, blocks, steps, all_pieces>(call, x, codes, to.codes, meanwhile);
        if (!to.two[0] && !to.two[1]) return;
        // Half of the group has upper terms.
        if (to.two[1]) {
            upper += call.activations.row_bytes;
            codes += row_inputs * block_rows;
        }
        multiply_few<halves, blocks, 1, no_pieces>(call, upper, codes, to.upper, meanwhile);
    }
}

// Outputs lie far apart; without this each store would wait for its line.
inline void fetch_outputs(const FewRows& call, const BlockSet& set, int64_t first, int64_t last) {
    for (int64_t t = first; t < last && t < call.tokens; t++) {
        for (int64_t b = 0; b < set.count; b++) {
            asm volatile("prefetchw %0" : : "m"(*call.outputs.at(set.block + b, t)));
        }
    }
}

template <int halves> void store_outputs(const FewRows& call, const BlockSet& set) {
    for (int64_t t = 0; t < call.tokens; t++) {
        for (int64_t b = 0; b < set.count; b++) {
            const int64_t tile = b * halves + t / row_tokens;
            call.outputs.store(set.block + b, t,
                               L::load_floats(call.scratch.totals.totals + tile * tile_sums +
                                              t % row_tokens * block_rows));
        }
    }
}

// turn: of the group within the call. The set's first group is unpacked, the following set's will be.
template <int halves, int blocks, int steps>
void multiply_set(FewRows& call, const BlockSet& set, const BlockSet& following, int64_t& turn) {
    FewScratch& scratch = call.scratch;
    const int64_t groups = call.activations.groups;
    const int64_t fetched = (call.tokens + groups - 1) / groups;
    for (int64_t i = 0; i < blocks * halves * tile_sums; i++) scratch.totals.totals[i] = 0;
    for (int64_t group = 0, token = 0; group < groups; group++, turn++, token += fetched) {
        Meanwhile meanwhile;
        int8_t* next = scratch.codes[(turn + 1) % 2];
        FewGroup& next_group = scratch.groups[(turn + 1) % 3];
        if (group + 1 < groups) {
            prepare(call, set, following, group + 1, next, next_group, meanwhile);
        } else if (following.count > 0) {
            prepare(call, following, BlockSet{0, 0}, 0, next, next_group, meanwhile);
        }
        if (group > 0) meanwhile.group = &scratch.groups[(turn + 2) % 3];
        fetch_outputs(call, set, token, token + fetched);
        multiply_group<halves, blocks, steps>(call, group, scratch.codes[turn % 2],
                                              scratch.groups[turn % 3], meanwhile);
    }
    Meanwhile last;
    last.group = &scratch.groups[(turn + 2) % 3];
    work_alone<halves, steps>(call, last, blocks);
    store_outputs<halves>(call, set);
}

template <int halves, int steps> void multiply_sets(FewRows& call, int64_t first, int64_t last) {
    auto set_at = [&](int64_t block) {
        return BlockSet{block, last - block < few_blocks ? last - block : few_blocks};
    };
    const FewTiles tiles(call.size < row_inputs ? call.size : row_inputs, call.tokens, halves);
    int64_t turn = 0;
    BlockSet set = set_at(first);
    Meanwhile before;
    prepare(call, set, set_at(first + set.count), 0, call.scratch.codes[0], call.scratch.groups[0],
            before);
    work_alone<halves, steps>(call, before, set.count);
    while (set.count > 0) {
        const BlockSet following = set_at(set.block + set.count);
        if (set.count == 1) multiply_set<halves, 1, steps>(call, set, following, turn);
        else multiply_set<halves, few_blocks, steps>(call, set, following, turn);
        set = following;
    }
}

// As LinearKernels::linear, for activations in rows.
inline void multiply_few_rows(const LinearView& view, const LinearGeometry& geometry,
                              const Activations& x, const ActivationGeometry& activations,
                              const Outputs<L>& outputs, FewScratch& scratch, int64_t first,
                              int64_t last) {
    const int64_t size = x.shape.group_size, tokens = x.shape.tokens;
    const FewThen then = geometry.scale_min             ? FewThen::scale_min
                         : geometry.group_width > size ? FewThen::parts
                                                       : FewThen::scaled;
    const bool wide = size > row_inputs, zeros = view.kind == LinearKind::int8 && view.zero_points;
    const BlockReader reader(view, geometry);
    FewRows call{view, geometry, reader, x, activations, scratch, outputs, size, tokens,
                 Finishing(then, zeros), reader.unpacking_ahead(wide), {}};
    for (int64_t tile = 0; tile < few_tokens / tile_tokens; tile++) {
        const int64_t left = tokens - tile * tile_tokens;
        call.counts[tile] = left < 0 ? 0 : left < tile_tokens ? left : tile_tokens;
    }
    if (tokens <= row_tokens) {
        wide ? multiply_sets<1, 2>(call, first, last) : multiply_sets<1, 1>(call, first, last);
    } else {
        wide ? multiply_sets<2, 2>(call, first, last) : multiply_sets<2, 1>(call, first, last);
    }
}

}  // namespace amx
}  // namespace dsconv
