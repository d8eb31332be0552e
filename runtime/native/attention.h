// Grouped-query attention over the key-value cache, split into items that threads share.
#pragma once

#include <cstdint>
#include <vector>

#include "key_value_cache.h"
#include "memory.h"
#include "program.h"
#include "rotary.h"
#include "thread_team.h"
#include "vector/kernels.h"

namespace dsconv {

// Scratch memory of all layers, for a pass of so many tokens.
class AttentionWorkspace {
   public:
    void reserve(size_t floats_of_queries, size_t floats_of_partials, size_t floats_per_member,
                 int members);

    Memory queries, partials;
    std::vector<Memory> members;
};

// The rows of a pass in one layer: query [tokens][heads * head_dim], key and value
// [tokens][kv_heads * head_dim] -> output like query. Changes key.
struct AttentionRows {
    const float* query;
    float* key;
    const float* value;
    float* output;
    int64_t tokens;
    int64_t position;  // of the first token
};

// One layer's attention.
class Attention {
   public:
    // The part of the key bias that is too large for the cache is taken out of the keys.
    Attention(const AttentionStep& step, RotaryTable& rotary);

    // Before a pass: makes room for `tokens` at `position`. Not thread-safe.
    void prepare(int64_t tokens, int64_t position, int members, AttentionWorkspace& workspace);

    // In a pass, on every member.
    void run(const AttentionRows& rows, ThreadTeam::Member& member, KeyValueCache& cache,
             const VectorKernels& kernels, AttentionWorkspace& workspace) const;

   private:
    struct Split;
    struct Pass;
    Split split(int64_t tokens, int64_t position) const;
    void store(const Pass& pass, int64_t token) const;
    AttentionTile tile_at(const Pass& pass, int64_t kv, int64_t first, int64_t rows,
                          float* state) const;
    void attend(const Pass& pass, int64_t item) const;
    void join(const Pass& pass, int64_t tile) const;
    void finish(const Pass& pass, const float* sums, const float* outputs, int64_t kv,
                int64_t first, int64_t rows) const;

    AttentionStep step_;
    RotaryTable& rotary_;
    std::vector<float> cached_bias_;  // [kv_heads * head_dim]: what is added to the cached keys
    std::vector<float> apart_bias_;   // the rest; empty if nothing is large
    std::vector<int32_t> bias_rows_;  // rows of the rotary table that it meets
};

}  // namespace dsconv
