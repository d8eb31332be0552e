// Keys and values of many sequences, in blocks that sequences with the same beginning share.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "vector/kernels.h"

namespace dsconv {

enum class CacheType { float32, half, int8 };

struct CacheShape {
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
};

// A block holds segment_positions positions of all layers. Blocks are counted: who shares one must
// not write into it.
class KeyValueCache {
   public:
    using Block = int64_t;

    // bytes: of blocks at most, but one at least; 0 is as many as there is memory for.
    KeyValueCache(std::vector<CacheShape> layers, CacheType type, int64_t bytes);

    CacheType type() const { return type_; }
    int64_t block_bytes() const { return static_cast<int64_t>(block_bytes_); }
    // Blocks at most, or 0.
    int64_t limit() const { return limit_; }
    int64_t used() const { return used_; }

    // A block that nobody else has. Throws std::bad_alloc.
    Block take();
    void share(Block block) { ++owners_[static_cast<size_t>(block)]; }
    // Its memory is kept for whoever takes one next.
    void release(Block block);
    bool is_shared(Block block) const { return owners_[static_cast<size_t>(block)] > 1; }
    // A copy that nobody else has. Throws std::bad_alloc.
    Block copy(Block block);
    // Gives back the memory of blocks that nobody has.
    void trim();

    CacheView view(int64_t layer, int64_t head, Block block) const;
    // key, value: [head_dim]; scratch: as many halves; index: of the position in the block.
    void store(int64_t layer, int64_t head, Block block, int64_t index, const float* key,
               const float* value, const VectorKernels& kernels, Half* scratch);

   private:
    // Bytes from the start of a head to each of its arrays, and to the next head.
    struct Offsets {
        size_t values, key_scales, value_scales, end;
    };
    Offsets offsets(const CacheShape& shape) const;
    uint8_t* head_start(int64_t layer, int64_t head, Block block) const;

    std::vector<CacheShape> layers_;
    std::vector<size_t> layer_starts_;
    size_t block_bytes_ = 0;
    CacheType type_;
    int64_t limit_ = 0;
    int64_t used_ = 0;
    std::vector<Memory> blocks_;
    std::vector<int64_t> owners_;
    std::vector<Block> free_;  // with memory
};

// What one sequence has in the cache.
struct CachedSequence {
    std::vector<KeyValueCache::Block> blocks;
    int64_t length = 0;  // positions

    static int64_t blocks_for(int64_t positions) {
        return (positions + segment_positions - 1) / segment_positions;
    }
    // Blocks that `tokens` more positions will take, copies of shared ones included.
    int64_t missing_blocks(const KeyValueCache& cache, int64_t tokens) const;
    // Makes room for them. Throws std::bad_alloc; then nothing is lost.
    void reserve(KeyValueCache& cache, int64_t tokens);
    void truncate(KeyValueCache& cache, int64_t count);
    // Another one that begins with the first `count` positions; whole blocks are shared.
    CachedSequence fork(KeyValueCache& cache, int64_t count) const;
};

}  // namespace dsconv
