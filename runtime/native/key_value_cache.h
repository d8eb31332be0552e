// Keys and values of the positions so far, in segments that are allocated as they are needed.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "vector/kernels.h"

namespace dsconv {

enum class CacheType { half, int8 };

struct CacheShape {
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
};

class KeyValueCache {
   public:
    KeyValueCache(std::vector<CacheShape> layers, CacheType type);

    CacheType type() const { return type_; }
    // Makes room for positions [0, count).
    void reserve(int64_t count);
    // Gives back all memory.
    void clear() { segments_.clear(); }

    CacheView view(int64_t layer, int64_t head, int64_t segment) const;
    // key, value: [head_dim]; scratch: as many halves.
    void store(int64_t layer, int64_t head, int64_t position, const float* key, const float* value,
               const VectorKernels& kernels, Half* scratch);

   private:
    // Bytes from the start of a head to each of its arrays, and to the next head.
    struct Offsets {
        size_t values, key_scales, value_scales, end;
    };
    Offsets offsets(const CacheShape& shape) const;
    uint8_t* head_start(int64_t layer, int64_t head, int64_t segment) const;

    std::vector<CacheShape> layers_;
    std::vector<size_t> layer_starts_;
    size_t segment_bytes_ = 0;
    CacheType type_;
    std::vector<Memory> segments_;
};

}  // namespace dsconv
