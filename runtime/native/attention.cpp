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

// Rotates a token's queries into `queries` [kv_head][token][head of the group][query_width], its
// keys and values into the cache.
void Attention::store(const float* query, float* key, const float* value, int64_t token,
                      int64_t tokens, int64_t position, float* scratch, KeyValueCache& cache,
                      const VectorKernels& kernels, float* queries) const {
    const int64_t dim = step_.head_dim, half = dim / 2;
    const int64_t group = step_.heads / step_.kv_heads;
    const auto pairs = static_cast<int64_t>(bias_rows_.size() / 2);
    const int64_t query_width = dim + 2 * pairs;
    const float scale = 1.44269504088896341f / std::sqrt(static_cast<float>(dim));
    float *cosine = scratch, *sine = scratch + half, *rotated = scratch + dim;
    auto* halves = reinterpret_cast<Half*>(scratch + 2 * dim);
    rotary_.at(position + token, cosine, sine);
    query += token * step_.heads * dim;
    key += token * step_.kv_heads * dim;
    value += token * step_.kv_heads * dim;
    if (!cached_bias_.empty()) kernels.add(key, cached_bias_.data(), step_.kv_heads * dim);
    for (int64_t kv = 0; kv < step_.kv_heads; ++kv) {
        float* rows = queries + (kv * tokens + token) * group * query_width;
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
        cache.store(step_.layer, kv, position + token, rotated, value + kv * dim, kernels, halves);
    }
}

void Attention::run(const float* query, float* key, const float* value, float* output,
                    int64_t tokens, int64_t position, ThreadTeam::Member& member,
                    KeyValueCache& cache, const VectorKernels& kernels,
                    AttentionWorkspace& workspace) const {
    const Split s = split(tokens, position);
    const int64_t dim = step_.head_dim;
    const auto query_width = dim + static_cast<int64_t>(bias_rows_.size());
    float* queries = workspace.queries.as<float>();
    float* scratch = workspace.members[static_cast<size_t>(member.index())].as<float>();
    member.share(tokens, 4, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            store(query, key, value, token, tokens, position, scratch, cache, kernels, queries);
        }
    });

    const auto attend = cache.type() == CacheType::half ? kernels.attend_half : kernels.attend_int8;
    // Divides by the sum of the weights -> the output's own place.
    auto finish = [&](const float* sums, const float* rows, int64_t kv, int64_t first_row,
                      int64_t count) {
        for (int64_t r = 0; r < count; ++r) {
            const int64_t token = (first_row + r) / s.group, g = (first_row + r) % s.group;
            float* out = output + (token * step_.heads + kv * s.group + g) * dim;
            for (int64_t i = 0; i < dim; ++i) out[i] = rows[r * s.padded + i] / sums[r];
        }
    };
    const int64_t items = s.items(step_.kv_heads);
    member.share(items, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            // The last tiles see the most positions: they come first, so that the end is even.
            const int64_t index = items - 1 - item;
            const int64_t kv = index % step_.kv_heads;
            const int64_t part = index / step_.kv_heads % s.splits;
            const int64_t first = index / step_.kv_heads / s.splits * s.tile;
            const int64_t last = std::min(first + s.tile, tokens);
            const int64_t rows = (last - first) * s.group;
            float* state = s.splits > 1
                               ? workspace.partials.as<float>() + index * s.rows() * s.row_floats()
                               : scratch + s.rows() * segment_positions;
            AttentionTile tile;
            tile.queries = queries + (kv * tokens + first) * s.group * query_width;
            tile.query_stride = query_width;
            tile.rows = rows;
            tile.rows_per_position = s.group;
            tile.first_position = position + first;
            tile.head_dim = dim;
            tile.bias_rows = bias_rows_.data();
            tile.bias_row_count = static_cast<int64_t>(bias_rows_.size());
            tile.maximum = state;
            tile.sum = state + s.rows();
            tile.output = state + 2 * s.rows();
            tile.scores = scratch;
            std::fill_n(tile.maximum, rows, start_maximum);
            std::fill_n(tile.sum, rows, 0.0f);
            std::fill_n(tile.output, rows * s.padded, 0.0f);
            for (int64_t segment = part * s.per_split;
                 segment < std::min((part + 1) * s.per_split, s.segments); ++segment) {
                const int64_t start = segment * segment_positions;
                const int64_t visible = std::min(position + last - start, segment_positions);
                if (visible <= 0) break;
                attend(tile, cache.view(step_.layer, kv, segment), rotary_.segment(segment),
                       rotary_.rows(), start, visible);
            }
            if (s.splits == 1) finish(tile.sum, tile.output, kv, first * s.group, rows);
        }
    });
    if (s.splits == 1) return;

    // Join the parts of every row, in the order of their positions.
    member.share(step_.kv_heads * s.tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t kv = item % step_.kv_heads, first = item / step_.kv_heads * s.tile;
            const int64_t rows = (std::min(first + s.tile, tokens) - first) * s.group;
            auto state = [&](int64_t part) {
                const int64_t index =
                    (item / step_.kv_heads * s.splits + part) * step_.kv_heads + kv;
                return workspace.partials.as<float>() + index * s.rows() * s.row_floats();
            };
            float* sums = scratch;
            float* outputs = scratch + s.rows();
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
            finish(sums, outputs, kv, first * s.group, rows);
        }
    });
}

}  // namespace dsconv
