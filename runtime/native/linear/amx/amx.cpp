// The matrix kernels for AMX: the products of many tokens with integer weights are computed in its
// tiles, everything else as in AVX-512.
//
// Weights are unpacked for some blocks and inputs, and then meet all tokens. Sums of a group come
// out of the tiles as integers; what is done with them afterwards is what integer_tile.h
// does, operation by operation.
#include "linear/kernels/kernels.h"

#if defined(DSCONV_AMX)

#include "compile_for.h"

DSCONV_COMPILE_FOR(DSCONV_AVX512_VNNI)

#include "linear/amx/few_rows.h"
#include "linear/amx/sums.h"
#include "linear/amx/tiles.h"
#include "linear/amx/weights.h"
#include "linear/kernels/outputs.h"
#include "linear/kernels/quantize.h"

namespace dsconv {
namespace amx {
namespace {

constexpr int64_t span_tokens = 256;  // that weights are unpacked for
constexpr int64_t strip_tokens = 64;  // that a span's groups are multiplied with, one by one

// Of a thread.
struct Scratch {
    Span span;
    Products products[2];  // one is added up while the other one is made
    float totals[span_tokens][span_blocks][block_rows];
    float parts[span_tokens][span_blocks][block_rows];  // of a group of weights
    FewScratch few;
};

// A product, as LinearKernels::linear is given it.
struct Call {
    const LinearView& view;
    const LinearGeometry& geometry;
    const BlockReader reader;
    const Activations& x;
    const ActivationGeometry& activations;
    int64_t group_size;  // of the activations
    Then then;
    Add add;
    Outputs<L> outputs;
    Scratch& scratch;
};

// What a group of the activations of 16 tokens brings along.
Tokens tokens_of(const Call& call, int64_t token, int64_t count, int64_t group, float* to) {
    int64_t unit = group * call.group_size / unit_inputs;
    int64_t last = unit + call.group_size / unit_inputs;
    if (last > call.activations.units) last = call.activations.units;
    Tokens tokens{count, false, {}, {}, to};
    uint8_t any = 0;
    for (int64_t half = 0; half < halves && half * tile_tokens < count; half++) {
        int64_t tile = token / tile_tokens + half;
        int64_t offset = (tile * call.activations.groups + group) * tile_tokens;
        tokens.scales[half] = call.x.scales + offset;
        tokens.totals[half] = call.x.sums + offset;
        for (int64_t u = unit; u < last; u++) any |= call.x.two[tile * call.activations.units + u];
    }
    tokens.two = any != 0;
    return tokens;
}

// One group of the activations of some tokens, times all blocks of the span.
void multiply_group(const Call& call, int64_t token, int64_t count, int64_t group, int64_t at,
                    int64_t blocks, float* to) {
    Span& span = call.scratch.span;
    int64_t input = group * call.group_size;
    bool two_steps = call.group_size > row_inputs && input + row_inputs < call.x.shape.cols;
    int64_t place = call.activations.codes_at(token / tile_tokens) +
                    input / row_inputs * call.activations.row_bytes + input % row_inputs;
    int64_t next_step = two_steps ? call.activations.row_bytes : 0;
    for (int64_t block = 0; block < blocks; block += 2) {
        Rows rows[2];
        for (int b = 0; b < 2; b++) {
            rows[b] = {L::load_floats(span.scales[at][block + b]),
                       L::load_floats(span.minima[at][block + b]),
                       _mm512_loadu_si512(span.zeros[at][block + b])};
        }
        Tiles::hold(span.codes[block] + at * call.group_size * block_rows,
                    span.codes[block + 1] + at * call.group_size * block_rows, two_steps);
        Tokens before{};
        int64_t x = place, tile = 0;
        for (int64_t t = 0; t < count; t += row_tokens, x += row_tokens * row_inputs, tile++) {
            int64_t some = count - t < row_tokens ? count - t : row_tokens;
            Products& products = call.scratch.products[tile % 2];
            Tokens tokens = tokens_of(call, token + t, some, group,
                                      to + (t * span_blocks + block) * block_rows);
            Tiles::multiply(call.x.codes + x, next_step, products.codes);
            if (tokens.two) Tiles::multiply(call.x.upper + x, next_step, products.upper);
            if (tile > 0) call.add(call.scratch.products[(tile - 1) % 2], rows, before);
            before = tokens;
        }
        call.add(call.scratch.products[(tile - 1) % 2], rows, before);
    }
}

// A group of weights has ended: totals += scale * parts.
void add_parts(Scratch& scratch, int64_t first, int64_t tokens, int64_t at, int64_t blocks) {
    for (int64_t t = first; t < first + tokens; t++) {
        for (int64_t b = 0; b < blocks; b++) {
            float *total = scratch.totals[t][b], *part = scratch.parts[t][b];
            L::store_floats(total, L::fma(L::load_floats(part),
                                          L::load_floats(scratch.span.scales[at][b]),
                                          L::load_floats(total)));
            L::store_floats(part, L::set_floats(0));
        }
    }
}

// The blocks of a call that are multiplied together, and the tokens.
struct Part {
    int64_t token;
    int64_t tokens;
    int64_t block;
    int64_t blocks;
};

// Unpacks the next span: `groups` groups of the activations from `group` on.
void read_span(const Call& call, const Part& part, int64_t group, int64_t groups) {
    for (int64_t b = 0; b < round_up(part.blocks, 2); b++) {  // in pairs: the last one twice
        int64_t block = part.block + (b < part.blocks ? b : part.blocks - 1);
        const uint8_t* data = call.view.data + block * call.geometry.block_bytes;
        for (int64_t at = 0; at < groups; at++) {
            call.reader.read(data, (group + at) * call.group_size, call.group_size,
                             call.scratch.span, at, b);
        }
    }
}

// Fetches a piece of what read_span will read. Weights come from memory, and nothing else would
// ask for them before they are needed.
void fetch_span(const Call& call, const Part& part, int64_t group, int64_t piece, int64_t pieces) {
    int64_t input = group * call.group_size, end = input + span_inputs;
    if (part.blocks <= 0 || input >= call.geometry.padded_cols) return;
    int64_t first = call.reader.place(input);
    int64_t last = end < call.geometry.padded_cols ? call.reader.place(end) : call.geometry.block_bytes;
    int64_t lines = (last - first + vector_bytes - 1) / vector_bytes;
    for (int64_t b = 0; b < part.blocks; b++) {
        const uint8_t* data =
            call.view.data + (part.block + b) * call.geometry.block_bytes + first;
        for (int64_t line = lines * piece / pieces; line < lines * (piece + 1) / pieces; line++) {
            _mm_prefetch(data + line * vector_bytes, _MM_HINT_T1);
        }
    }
}

// Outputs lie far apart; without this each store would wait for its line.
void fetch_outputs(const Call& call, const Part& part, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) {
        for (int64_t b = 0; b < part.blocks; b++) {
            asm volatile("prefetchw %0" : : "m"(*call.outputs.at(part.block + b, part.token + t)));
        }
    }
}

void store_outputs(const Call& call, const Part& part, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) {
        for (int64_t b = 0; b < part.blocks; b++) {
            call.outputs.store(part.block + b, part.token + t,
                               L::load_floats(call.scratch.totals[t][b]));
        }
    }
}

// Some blocks for some tokens; `next` are the blocks that will follow.
void multiply_part(const Call& call, const Part& part, const Part& next) {
    Scratch& scratch = call.scratch;
    auto bytes = static_cast<size_t>(part.tokens) * sizeof(scratch.totals[0]);
    __builtin_memset(scratch.totals, 0, bytes);
    if (call.then == Then::parts) __builtin_memset(scratch.parts, 0, bytes);
    auto& sums = call.then == Then::parts ? scratch.parts : scratch.totals;
    int64_t span_size = span_inputs / call.group_size, all = call.activations.groups;
    for (int64_t group = 0; group < all; group += span_size) {
        int64_t groups = all - group < span_size ? all - group : span_size;
        bool is_last = group + groups == all;
        read_span(call, part, group, groups);
        int64_t piece = 0, pieces = groups * ((part.tokens + strip_tokens - 1) / strip_tokens);
        for (int64_t first = 0; first < part.tokens; first += strip_tokens) {
            int64_t tokens = part.tokens - first < strip_tokens ? part.tokens - first : strip_tokens;
            for (int64_t at = 0; at < groups; at++, piece++) {
                fetch_span(call, is_last ? next : part, is_last ? 0 : group + groups, piece, pieces);
                if (is_last) {
                    fetch_outputs(call, part, first + tokens * at / groups,
                                  first + tokens * (at + 1) / groups);
                }
                multiply_group(call, part.token + first, tokens, group + at, at, part.blocks,
                               sums[first][0]);
                if (call.then == Then::parts && scratch.span.ends[at]) {
                    add_parts(scratch, first, tokens, at, part.blocks);
                }
            }
            if (is_last) store_outputs(call, part, first, first + tokens);
        }
    }
}

void run(const LinearView& view, const Activations& x, float* out, int64_t ld_out,
         int64_t first_block, int64_t last_block, const Epilogue& epilogue, void* scratch) {
    if (x.shape.layout != ActivationLayout::rows) {
        return avx512_linear_kernels.linear(view, x, out, ld_out, first_block, last_block,
                                             epilogue, nullptr);
    }
    LinearGeometry geometry;
    if (!linear_geometry(view, geometry)) return;
    ActivationGeometry activations(x.shape);
    if (x.shape.tokens <= few_tokens) {
        return multiply_few_rows(view, geometry, x, activations, {view.rows, out, ld_out, epilogue},
                                 static_cast<Scratch*>(scratch)->few, first_block, last_block);
    }
    Then then = geometry.scale_min                           ? Then::scale_min
                : geometry.group_width > x.shape.group_size ? Then::parts
                                                            : Then::scaled;
    bool zeros = view.kind == LinearKind::int8 && view.zero_points;
    Call call{view, geometry, BlockReader(view, geometry), x, activations, x.shape.group_size,
              then, add_of(then, zeros), {view.rows, out, ld_out, epilogue},
              *static_cast<Scratch*>(scratch)};
    Tiles tiles(x.shape.group_size < row_inputs ? x.shape.group_size : row_inputs);
    auto blocks_at = [&](int64_t block) {
        return last_block - block < span_blocks ? last_block - block : span_blocks;
    };
    for (int64_t token = 0; token < x.shape.tokens; token += span_tokens) {
        int64_t tokens = x.shape.tokens - token < span_tokens ? x.shape.tokens - token : span_tokens;
        for (int64_t block = first_block; block < last_block; block += span_blocks) {
            int64_t following = block + span_blocks;
            multiply_part(call, {token, tokens, block, blocks_at(block)},
                          {token, tokens, following, blocks_at(following)});
        }
    }
}

}  // namespace
}  // namespace amx

constexpr LinearKernels amx_linear_kernels{Isa::amx_int8, "amx_int8", ActivationLayout::rows,
                                           3, 9, sizeof(amx::Scratch), &Quantizer<Avx512Vnni>::run,
                                           &amx::run};

}  // namespace dsconv

DSCONV_COMPILE_FOR_ALL

#endif
