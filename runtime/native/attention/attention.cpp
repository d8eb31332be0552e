#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dsconv {
namespace {

// Key biases above this never enter the cache: half precision rounds a key of 158 by up to 0.06,
// which queries of the same size turn into wrong scores.
constexpr float large_bias = 4.0f;
constexpr int64_t tile_tokens = 8;
constexpr int64_t largest_tile = 256;    // rows
constexpr int64_t items_per_member = 8;  // enough to even out long and short sequences
constexpr float start_maximum = -1e30f;

}  // namespace

// What a member of the team knows about a pass.
struct Attention::Pass {
    const AttentionRows& rows;
    KeyValueCache& cache;
    const VectorKernels& kernels;
    const AttentionWorkspace& workspace;
    float* scratch;  // the member's own

    float* queries() const { return workspace.queries.as<float>(); }
    float* partials() const { return workspace.partials.as<float>(); }
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
    : step_(step),
      rotary_(rotary),
      group_(step.heads / step.kv_heads),
      padded_(padded_to_lanes(step.head_dim)) {
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

// Which tiles there are and who does what. Only the split into items depends on the members.
void Attention::plan(const std::vector<AttentionPiece>& pieces, int members) {
    tiles_.clear();
    items_.clear();
    joined_.clear();
    piece_of_row_.clear();
    const int64_t most = std::max<int64_t>(1, std::min(tile_tokens, largest_tile / group_));
    int64_t work = 0;
    for (const AttentionPiece& piece : pieces) {
        piece_of_row_.insert(piece_of_row_.end(), static_cast<size_t>(piece.tokens), &piece);
        for (int64_t first = 0; first < piece.tokens; first += most) {
            const int64_t tokens = std::min(most, piece.tokens - first);
            const int64_t segments = CachedSequence::blocks_for(piece.position + first + tokens);
            for (int64_t kv = 0; kv < step_.kv_heads; ++kv) {
                tiles_.push_back({&piece, first, tokens, kv, segments, -1});
                work += segments;
            }
        }
    }
    const int64_t most_segments = std::max<int64_t>(1, work / (members * items_per_member));
    int64_t partials = 0;
    for (size_t i = 0; i < tiles_.size(); ++i) {
        Tile& tile = tiles_[i];
        const auto index = static_cast<int64_t>(i);
        if (members == 1 || tile.segments <= most_segments) {
            items_.push_back({index, 0, tile.segments});
            continue;
        }
        tile.partial = partials;
        partials += tile.segments * state_floats(rows_of(tile));
        joined_.push_back(index);
        for (int64_t begin = 0; begin < tile.segments; begin += most_segments) {
            items_.push_back({index, begin, std::min(begin + most_segments, tile.segments)});
        }
    }
    std::stable_sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
        return a.end - a.begin > b.end - b.begin;
    });
}

void Attention::prepare(const std::vector<AttentionPiece>& pieces, int members,
                        AttentionWorkspace& workspace) {
    plan(pieces, members);
    int64_t rows = 0, partials = 0, largest = 0;
    for (const AttentionPiece& piece : pieces) {
        rotary_.reserve(piece.position + piece.tokens);
        rows += piece.tokens;
    }
    for (const Tile& tile : tiles_) {
        largest = std::max(largest, rows_of(tile));
        if (tile.partial >= 0) partials += tile.segments * state_floats(rows_of(tile));
    }
    const auto query_width = step_.head_dim + static_cast<int64_t>(bias_rows_.size());
    // Two states and scores; or cosines, sines, a key, and halves of it.
    const int64_t member = std::max(2 * state_floats(largest) + largest * segment_positions,
                                    4 * step_.head_dim);
    workspace.reserve(static_cast<size_t>(rows * step_.heads * query_width),
                      static_cast<size_t>(partials), static_cast<size_t>(member), members);
}

// Rotates a row's queries into the workspace [kv_head][row][head of the group][query_width],
// its keys and values into the cache.
void Attention::store(const Pass& pass, const AttentionPiece& piece, int64_t token) const {
    const int64_t dim = step_.head_dim, half = dim / 2, group = group_;
    const auto all = static_cast<int64_t>(piece_of_row_.size());
    const auto pairs = static_cast<int64_t>(bias_rows_.size() / 2);
    const int64_t query_width = dim + 2 * pairs, position = piece.position + token - piece.row;
    const float scale = 1.44269504088896341f / std::sqrt(static_cast<float>(dim));
    float *cosine = pass.scratch, *sine = cosine + half, *rotated = cosine + dim;
    auto* halves = reinterpret_cast<Half*>(cosine + 2 * dim);
    rotary_.at(position, cosine, sine);
    const float* query = pass.rows.query + token * step_.heads * dim;
    float* key = pass.rows.key + token * step_.kv_heads * dim;
    const float* value = pass.rows.value + token * step_.kv_heads * dim;
    const VectorKernels& kernels = pass.kernels;
    const auto block = piece.sequence->blocks[static_cast<size_t>(position / segment_positions)];
    const int64_t index = position % segment_positions;
    if (!cached_bias_.empty()) kernels.add(key, cached_bias_.data(), step_.kv_heads * dim);
    for (int64_t kv = 0; kv < step_.kv_heads; ++kv) {
        float* rows = pass.queries() + (kv * all + token) * group * query_width;
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
        pass.cache.store(step_.layer, kv, block, index, rotated, value + kv * dim, kernels,
                         halves);
    }
}

void Attention::run(const AttentionRows& rows, ThreadTeam::Member& member, KeyValueCache& cache,
                    const VectorKernels& kernels, AttentionWorkspace& workspace) const {
    const Pass pass{rows, cache, kernels, workspace,
                    workspace.members[static_cast<size_t>(member.index())].as<float>()};
    member.share(static_cast<int64_t>(piece_of_row_.size()), 4, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            store(pass, *piece_of_row_[static_cast<size_t>(row)], row);
        }
    });
    member.share(static_cast<int64_t>(items_.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) run(pass, items_[static_cast<size_t>(i)]);
    });
    if (joined_.empty()) return;
    member.share(static_cast<int64_t>(joined_.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            join(pass, tiles_[static_cast<size_t>(joined_[static_cast<size_t>(i)])]);
        }
    });
}

// One segment of a tile, from nothing. state: maxima, sums, outputs [row][padded].
void Attention::attend(const Pass& pass, const Tile& tile, int64_t segment, float* state) const {
    const AttentionPiece& piece = *tile.piece;
    const int64_t rows = rows_of(tile), start = segment * segment_positions;
    const auto all = static_cast<int64_t>(piece_of_row_.size());
    AttentionTile of_kernel;
    of_kernel.query_stride = step_.head_dim + static_cast<int64_t>(bias_rows_.size());
    of_kernel.queries = pass.queries() + (tile.kv * all + piece.row + tile.first) * group_ *
                                             of_kernel.query_stride;
    of_kernel.rows = rows;
    of_kernel.rows_per_position = group_;
    of_kernel.first_position = piece.position + tile.first;
    of_kernel.head_dim = step_.head_dim;
    of_kernel.bias_rows = bias_rows_.data();
    of_kernel.bias_row_count = static_cast<int64_t>(bias_rows_.size());
    of_kernel.maximum = state;
    of_kernel.sum = state + rows;
    of_kernel.output = state + 2 * rows;
    of_kernel.scores = pass.scratch;
    std::fill_n(of_kernel.maximum, rows, start_maximum);
    std::fill_n(of_kernel.sum, rows, 0.0f);
    std::fill_n(of_kernel.output, rows * padded_, 0.0f);
    const int64_t visible =
        std::min(piece.position + tile.first + tile.tokens - start, segment_positions);
    const VectorKernels& kernels = pass.kernels;
    const auto attend_segment = pass.cache.type() == CacheType::float32 ? kernels.attend_float
                                : pass.cache.type() == CacheType::half  ? kernels.attend_half
                                                                        : kernels.attend_int8;
    const auto block = piece.sequence->blocks[static_cast<size_t>(segment)];
    attend_segment(of_kernel, pass.cache.view(step_.layer, tile.kv, block),
                   rotary_.segment(segment), rotary_.rows(), start, visible);
}

// Adds a segment's state to that of those before it, in the rows that see the segment.
void Attention::merge(const Tile& tile, int64_t segment, const float* part, float* total) const {
    const int64_t rows = rows_of(tile);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t position = tile.piece->position + tile.first + r / group_;
        if (position < segment * segment_positions) continue;
        const float maximum = std::max(total[r], part[r]);
        const float before = std::exp2(total[r] - maximum), now = std::exp2(part[r] - maximum);
        total[r] = maximum;
        total[rows + r] = before * total[rows + r] + now * part[rows + r];
        float* sums = total + 2 * rows + r * padded_;
        const float* added = part + 2 * rows + r * padded_;
        for (int64_t i = 0; i < padded_; ++i) sums[i] = before * sums[i] + now * added[i];
    }
}

void Attention::run(const Pass& pass, const Item& item) const {
    const Tile& tile = tiles_[static_cast<size_t>(item.tile)];
    const int64_t floats = state_floats(rows_of(tile));
    if (tile.partial >= 0) {
        for (int64_t segment = item.begin; segment < item.end; ++segment) {
            attend(pass, tile, segment, pass.partials() + tile.partial + segment * floats);
        }
        return;
    }
    float* total = pass.scratch + rows_of(tile) * segment_positions;
    attend(pass, tile, 0, total);
    for (int64_t segment = 1; segment < tile.segments; ++segment) {
        attend(pass, tile, segment, total + floats);
        merge(tile, segment, total + floats, total);
    }
    finish(pass, tile, total);
}

// The same of a tile whose segments were computed apart.
void Attention::join(const Pass& pass, const Tile& tile) const {
    const int64_t floats = state_floats(rows_of(tile));
    float* total = pass.partials() + tile.partial;
    for (int64_t segment = 1; segment < tile.segments; ++segment) {
        merge(tile, segment, total + segment * floats, total);
    }
    finish(pass, tile, total);
}

// Divides the rows of a tile by the sum of their weights -> the output's own place.
void Attention::finish(const Pass& pass, const Tile& tile, const float* state) const {
    const int64_t dim = step_.head_dim, rows = rows_of(tile);
    const float *sums = state + rows, *outputs = state + 2 * rows;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = tile.piece->row + tile.first + r / group_, g = r % group_;
        float* out = pass.rows.output + (row * step_.heads + tile.kv * group_ + g) * dim;
        for (int64_t i = 0; i < dim; ++i) out[i] = outputs[r * padded_ + i] / sums[r];
    }
}

}  // namespace dsconv
