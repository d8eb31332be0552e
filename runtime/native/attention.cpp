#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dsconv {
namespace {

// Key biases above this never enter the cache: half precision rounds a key of 158 by up to 0.06,
// which queries of the same size turn into wrong scores.
constexpr float large_bias = 4.0f;
constexpr int64_t few_tokens = 8;    // up to here the positions are split over threads
constexpr int64_t tile_tokens = 8;   // beyond, tokens are
constexpr int64_t largest_tile = 256;
constexpr int64_t most_splits = 64;
constexpr float start_maximum = -1e30f;

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// How the work of a pass is cut; depends on sizes only, never on the number of threads.
struct Attention::Split {
    int64_t group;     // query heads per key-value head
    int64_t tile;      // tokens per item
    int64_t tiles;
    int64_t segments;  // of all positions
    int64_t per_split; // segments per item
    int64_t splits;
    int64_t padded;    // padded head_dim

    int64_t items(int64_t kv_heads) const { return kv_heads * tiles * splits; }
    int64_t rows() const { return tile * group; }
    // Maximum, sum and output of one row.
    int64_t row_floats() const { return padded + 2; }
};

// What a member of the team knows about a pass.
struct Attention::Pass {
    const AttentionRows& rows;
    const Split split;
    KeyValueCache& cache;
    const VectorKernels& kernels;
    const AttentionWorkspace& workspace;
    float* scratch;  // the member's own

    float* queries() const { return workspace.queries.as<float>(); }
    // Where an item of a split pass leaves maxima, sums and outputs.
    float* partial(int64_t item) const {
        return workspace.partials.as<float>() + item * split.rows() * split.row_floats();
    }
};

void AttentionWorkspace::reserve(size_t floats_of_queries, size_t floats_of_partials,
                                 size_t floats_per_member, int count) {
    auto grow = [](Memory& memory, size_t floats) {
        if (memory.size() < floats * sizeof(float)) memory = Memory(floats * sizeof(float));
    };
    grow(queries, floats_of_queries);
    grow(partials, floats_of_partials);
    members.resize(static_cast<size_t>(count));
    for (Memory& memory : members) grow(memory, floats_per_member);
}

Attention::Attention(const AttentionStep& step, RotaryTable& rotary)
    : step_(step), rotary_(rotary) {
    if (!step.key_bias) return;
    const int64_t size = step.kv_heads * step.head_dim, half = step.head_dim / 2;
    cached_bias_.assign(step.key_bias, step.key_bias + size);
    std::vector<float> apart(static_cast<size_t>(size), 0.0f);
    for (int64_t pair = 0; pair < half; ++pair) {
        float largest = 0;
        for (int64_t head = 0; head < step.kv_heads; ++head) {
            const float* bias = step.key_bias + head * step.head_dim + pair;
            largest = std::max({largest, std::fabs(bias[0]), std::fabs(bias[half])});
        }
        if (!(largest > large_bias)) continue;
        bias_rows_.push_back(static_cast<int32_t>(pair));
        for (int64_t head = 0; head < step.kv_heads; ++head) {
            for (const int64_t i : {head * step.head_dim + pair, head * step.head_dim + pair + half}) {
                std::swap(apart[static_cast<size_t>(i)], cached_bias_[static_cast<size_t>(i)]);
            }
        }
    }
    const size_t pairs = bias_rows_.size();
    for (size_t i = 0; i < pairs; ++i) {
        bias_rows_.push_back(bias_rows_[i] + static_cast<int32_t>(half));
    }
    if (pairs) apart_bias_ = std::move(apart);
}

Attention::Split Attention::split(int64_t tokens, int64_t position) const {
    Split s;
    s.group = step_.heads / step_.kv_heads;
    s.tile = std::max<int64_t>(1, std::min({tokens, tile_tokens, largest_tile / s.group}));
    s.tiles = divided(tokens, s.tile);
    s.segments = divided(position + tokens, segment_positions);
    s.per_split = tokens <= few_tokens ? divided(s.segments, most_splits) : s.segments;
    s.splits = divided(s.segments, s.per_split);
    s.padded = padded_to_lanes(step_.head_dim);
    return s;
}

void Attention::prepare(int64_t tokens, int64_t position, int members,
                        AttentionWorkspace& workspace) {
    rotary_.reserve(position + tokens);
    const Split s = split(tokens, position);
    const auto query_width = step_.head_dim + static_cast<int64_t>(bias_rows_.size());
    const int64_t partials =
        s.splits > 1 ? s.items(step_.kv_heads) * s.rows() * s.row_floats() : 0;
    const int64_t scores = s.rows() * segment_positions;
    // Also: cosines, sines, a key, and halves of it.
    const int64_t member = std::max(s.rows() * s.row_floats() + scores, 4 * step_.head_dim);
    workspace.reserve(static_cast<size_t>(tokens * step_.heads * query_width),
                      static_cast<size_t>(partials), static_cast<size_t>(member), members);
}

// Rotates a token's queries into the workspace [kv_head][token][head of the group][query_width],
// its keys and values into the cache.
void Attention::store(const Pass& pass, int64_t token) const {
    const int64_t dim = step_.head_dim, half = dim / 2, group = pass.split.group;
    const auto pairs = static_cast<int64_t>(bias_rows_.size() / 2);
    const int64_t query_width = dim + 2 * pairs, position = pass.rows.position + token;
    const float scale = 1.44269504088896341f / std::sqrt(static_cast<float>(dim));
    float *cosine = pass.scratch, *sine = cosine + half, *rotated = cosine + dim;
    auto* halves = reinterpret_cast<Half*>(cosine + 2 * dim);
    rotary_.at(position, cosine, sine);
    const float* query = pass.rows.query + token * step_.heads * dim;
    float* key = pass.rows.key + token * step_.kv_heads * dim;
    const float* value = pass.rows.value + token * step_.kv_heads * dim;
    const VectorKernels& kernels = pass.kernels;
    if (!cached_bias_.empty()) kernels.add(key, cached_bias_.data(), step_.kv_heads * dim);
    for (int64_t kv = 0; kv < step_.kv_heads; ++kv) {
        float* rows = pass.queries() + (kv * pass.rows.tokens + token) * group * query_width;
        for (int64_t g = 0; g < group; ++g) {
            float* row = rows + g * query_width;
            kernels.rotate(query + (kv * group + g) * dim, cosine, sine, half, scale, row);
            // q · R(p) b = sum of (q1 b1 + q2 b2) cos(p w) + (q2 b1 - q1 b2) sin(p w) over pairs
            for (int64_t i = 0; i < pairs; ++i) {
                const int64_t pair = bias_rows_[static_cast<size_t>(i)];
                const float* bias = apart_bias_.data() + kv * dim + pair;
                const float b1 = bias[0], b2 = bias[half], q1 = row[pair], q2 = row[pair + half];
                row[dim + i] = q1 * b1 + q2 * b2;
                row[dim + pairs + i] = q2 * b1 - q1 * b2;
            }
        }
        kernels.rotate(key + kv * dim, cosine, sine, half, 1.0f, rotated);
        pass.cache.store(step_.layer, kv, position, rotated, value + kv * dim, kernels, halves);
    }
}

void Attention::run(const AttentionRows& rows, ThreadTeam::Member& member, KeyValueCache& cache,
                    const VectorKernels& kernels, AttentionWorkspace& workspace) const {
    const Pass pass{rows, split(rows.tokens, rows.position), cache, kernels, workspace,
                    workspace.members[static_cast<size_t>(member.index())].as<float>()};
    member.share(rows.tokens, 4, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) store(pass, token);
    });
    const int64_t items = pass.split.items(step_.kv_heads);
    member.share(items, 1, [&](int64_t begin, int64_t end) {
        // The last tiles see the most positions: they come first, so that the end is even.
        for (int64_t item = begin; item < end; ++item) attend(pass, items - 1 - item);
    });
    if (pass.split.splits == 1) return;
    member.share(step_.kv_heads * pass.split.tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) join(pass, tile);
    });
}

// Some query rows from a token on, before they have seen anything. state: maxima, sums, outputs.
AttentionTile Attention::tile_at(const Pass& pass, int64_t kv, int64_t first, int64_t rows,
                                 float* state) const {
    const Split& s = pass.split;
    AttentionTile tile;
    tile.query_stride = step_.head_dim + static_cast<int64_t>(bias_rows_.size());
    tile.queries = pass.queries() + (kv * pass.rows.tokens + first) * s.group * tile.query_stride;
    tile.rows = rows;
    tile.rows_per_position = s.group;
    tile.first_position = pass.rows.position + first;
    tile.head_dim = step_.head_dim;
    tile.bias_rows = bias_rows_.data();
    tile.bias_row_count = static_cast<int64_t>(bias_rows_.size());
    tile.maximum = state;
    tile.sum = state + s.rows();
    tile.output = state + 2 * s.rows();
    tile.scores = pass.scratch;
    std::fill_n(tile.maximum, rows, start_maximum);
    std::fill_n(tile.sum, rows, 0.0f);
    std::fill_n(tile.output, rows * s.padded, 0.0f);
    return tile;
}

// One item: a tile of tokens over a part of the positions.
void Attention::attend(const Pass& pass, int64_t item) const {
    const Split& s = pass.split;
    const int64_t kv = item % step_.kv_heads;
    const int64_t part = item / step_.kv_heads % s.splits;
    const int64_t first = item / step_.kv_heads / s.splits * s.tile;
    const int64_t last = std::min(first + s.tile, pass.rows.tokens);
    float* state = s.splits > 1 ? pass.partial(item) : pass.scratch + s.rows() * segment_positions;
    const AttentionTile tile = tile_at(pass, kv, first, (last - first) * s.group, state);
    const auto attend_segment = pass.cache.type() == CacheType::half ? pass.kernels.attend_half
                                                                     : pass.kernels.attend_int8;
    const int64_t end = std::min((part + 1) * s.per_split, s.segments);
    for (int64_t segment = part * s.per_split; segment < end; ++segment) {
        const int64_t start = segment * segment_positions;
        const int64_t visible =
            std::min(pass.rows.position + last - start, segment_positions);
        if (visible <= 0) break;
        attend_segment(tile, pass.cache.view(step_.layer, kv, segment), rotary_.segment(segment),
                       rotary_.rows(), start, visible);
    }
    if (s.splits == 1) finish(pass, tile.sum, tile.output, kv, first, tile.rows);
}

// Joins the parts of every row of a tile, in the order of their positions.
void Attention::join(const Pass& pass, int64_t tile) const {
    const Split& s = pass.split;
    const int64_t kv = tile % step_.kv_heads, first_item = tile / step_.kv_heads * s.splits;
    const int64_t first = tile / step_.kv_heads * s.tile;
    const int64_t rows = (std::min(first + s.tile, pass.rows.tokens) - first) * s.group;
    auto state = [&](int64_t part) {
        return pass.partial((first_item + part) * step_.kv_heads + kv);
    };
    float *sums = pass.scratch, *outputs = sums + s.rows();
    for (int64_t r = 0; r < rows; ++r) {
        float maximum = start_maximum;
        for (int64_t part = 0; part < s.splits; ++part) {
            maximum = std::max(maximum, state(part)[r]);
        }
        float* out = outputs + r * s.padded;
        std::fill_n(out, s.padded, 0.0f);
        sums[r] = 0;
        for (int64_t part = 0; part < s.splits; ++part) {
            const float* from = state(part);
            const float factor = std::exp2(from[r] - maximum);
            sums[r] += factor * from[s.rows() + r];
            const float* values = from + 2 * s.rows() + r * s.padded;
            for (int64_t i = 0; i < s.padded; ++i) out[i] += factor * values[i];
        }
    }
    finish(pass, sums, outputs, kv, first, rows);
}

// Divides rows from a token on by the sum of their weights -> the output's own place.
void Attention::finish(const Pass& pass, const float* sums, const float* outputs, int64_t kv,
                       int64_t first, int64_t rows) const {
    const Split& s = pass.split;
    const int64_t dim = step_.head_dim;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = first + r / s.group, g = r % s.group;
        float* out = pass.rows.output + (token * step_.heads + kv * s.group + g) * dim;
        for (int64_t i = 0; i < dim; ++i) out[i] = outputs[r * s.padded + i] / sums[r];
    }
}

}  // namespace dsconv
