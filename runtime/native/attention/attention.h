// Grouped-query attention of many sequences over the key-value cache, split into items that threads
// share.
//
// Positions are taken in segments: each has a softmax of its own, and these are merged in order. So
// what a token gets does not depend on the tokens beside it, of its own sequence or of others, nor
// on how the work was split.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/key_value_cache.h"
#include "memory.h"
#include "program.h"
#include "attention/rotary.h"
#include "thread_team.h"
#include "vector/kernels.h"

namespace dsconv {

// Tokens of one sequence in a pass: rows [row, row + tokens), at `position` and those after it.
struct AttentionPiece {
    const CachedSequence* sequence;
    int64_t row;
    int64_t tokens;
    int64_t position;
};

// Scratch memory of all layers.
class AttentionWorkspace {
   public:
    void reserve(size_t floats_of_queries, size_t floats_of_partials, size_t floats_per_member,
                 int members);

    Memory queries, partials;
    std::vector<Memory> members;
};

// The rows of a pass in one layer: query [rows][heads * head_dim], key and value
// [rows][kv_heads * head_dim] -> output like query. Changes key.
struct AttentionRows {
    const float* query;
    float* key;
    const float* value;
    float* output;
};

// One layer's attention.
class Attention {
   public:
    // The part of the key bias that is too large for the cache is taken out of the keys.
    Attention(const AttentionStep& step, RotaryTable& rotary);

    // Before a pass: plans it and makes room. The pieces lie side by side from row 0 on, and must
    // stay where they are during the pass. Not thread-safe.
    void prepare(const std::vector<AttentionPiece>& pieces, int members,
                 AttentionWorkspace& workspace);

    // In a pass, on every member.
    void run(const AttentionRows& rows, ThreadTeam::Member& member, KeyValueCache& cache,
             const VectorKernels& kernels, AttentionWorkspace& workspace) const;

   private:
    // Some tokens of a piece and one key-value head.
    struct Tile {
        const AttentionPiece* piece;
        int64_t first, tokens;  // in the piece
        int64_t kv;
        int64_t segments;       // that the last of its tokens sees
        int64_t partial;        // where its segments' states are, in floats; -1: merged at once
    };
    // Some segments of a tile.
    struct Item {
        int64_t tile, begin, end;
    };
    struct Pass;

    int64_t rows_of(const Tile& tile) const { return tile.tokens * group_; }
    // Maximum, sum and output of so many rows.
    int64_t state_floats(int64_t rows) const { return rows * (padded_ + 2); }
    void plan(const std::vector<AttentionPiece>& pieces, int members);
    void store(const Pass& pass, const AttentionPiece& piece, int64_t token) const;
    void attend(const Pass& pass, const Tile& tile, int64_t segment, float* state) const;
    void merge(const Tile& tile, int64_t segment, const float* part, float* total) const;
    void run(const Pass& pass, const Item& item) const;
    void join(const Pass& pass, const Tile& tile) const;
    void finish(const Pass& pass, const Tile& tile, const float* state) const;

    AttentionStep step_;
    RotaryTable& rotary_;
    int64_t group_;   // query heads per key-value head
    int64_t padded_;  // padded head_dim
    std::vector<float> cached_bias_;  // [kv_heads * head_dim]: what is added to the cached keys
    std::vector<float> apart_bias_;   // the rest; empty if nothing is large
    std::vector<int32_t> bias_rows_;  // rows of the rotary table that it meets
    // Of the pass.
    std::vector<Tile> tiles_;
    std::vector<Item> items_;      // the longest first
    std::vector<int64_t> joined_;  // tiles that were split
    std::vector<const AttentionPiece*> piece_of_row_;
};

}  // namespace dsconv
