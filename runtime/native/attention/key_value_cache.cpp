#include "attention/key_value_cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace dsconv {
namespace {

int64_t element_bytes(CacheType type) {
    switch (type) {
        case CacheType::float32: return sizeof(float);
        case CacheType::half: return sizeof(Half);
        default: return 1;
    }
}

size_t aligned(int64_t bytes) { return (static_cast<size_t>(bytes) + 63) / 64 * 64; }

}  // namespace

KeyValueCache::KeyValueCache(std::vector<CacheShape> layers, CacheType type, int64_t bytes)
    : layers_(std::move(layers)), type_(type) {
    for (const CacheShape& shape : layers_) {
        layer_starts_.push_back(block_bytes_);
        block_bytes_ += static_cast<size_t>(shape.kv_heads) * offsets(shape).end;
    }
    if (bytes > 0) limit_ = std::max<int64_t>(1, bytes / std::max<int64_t>(1, block_bytes()));
}

KeyValueCache::Offsets KeyValueCache::offsets(const CacheShape& shape) const {
    const int64_t element = element_bytes(type_);
    const int64_t scales = type_ == CacheType::int8 ? segment_positions * sizeof(float) : 0;
    Offsets result;
    result.values = aligned(segment_positions * shape.head_dim * element);
    result.key_scales =
        result.values + aligned(segment_positions * padded_to_lanes(shape.head_dim) * element);
    result.value_scales = result.key_scales + aligned(scales);
    result.end = result.value_scales + aligned(scales);
    return result;
}

KeyValueCache::Block KeyValueCache::take() {
    if (limit_ > 0 && used_ >= limit_) throw std::bad_alloc();
    if (free_.empty()) {
        blocks_.emplace_back(block_bytes_);
        owners_.push_back(0);
        free_.reserve(blocks_.size());  // so that release() allocates nothing
        free_.push_back(static_cast<Block>(blocks_.size()) - 1);
    }
    const Block block = free_.back();
    Memory& memory = blocks_[static_cast<size_t>(block)];
    if (memory.size() == 0) memory = Memory(block_bytes_);
    free_.pop_back();
    owners_[static_cast<size_t>(block)] = 1;
    ++used_;
    return block;
}

void KeyValueCache::release(Block block) {
    if (--owners_[static_cast<size_t>(block)] > 0) return;
    free_.push_back(block);
    --used_;
}

KeyValueCache::Block KeyValueCache::copy(Block block) {
    const Block result = take();
    std::memcpy(blocks_[static_cast<size_t>(result)].as<uint8_t>(),
                blocks_[static_cast<size_t>(block)].as<uint8_t>(), block_bytes_);
    return result;
}

void KeyValueCache::trim() {
    for (const Block block : free_) blocks_[static_cast<size_t>(block)] = Memory();
}

uint8_t* KeyValueCache::head_start(int64_t layer, int64_t head, Block block) const {
    const size_t layer_index = static_cast<size_t>(layer);
    return blocks_[static_cast<size_t>(block)].as<uint8_t>() + layer_starts_[layer_index] +
           static_cast<size_t>(head) * offsets(layers_[layer_index]).end;
}

CacheView KeyValueCache::view(int64_t layer, int64_t head, Block block) const {
    const Offsets offset = offsets(layers_[static_cast<size_t>(layer)]);
    const uint8_t* start = head_start(layer, head, block);
    CacheView result;
    result.keys = start;
    result.values = start + offset.values;
    if (type_ == CacheType::int8) {
        result.key_scales = reinterpret_cast<const float*>(start + offset.key_scales);
        result.value_scales = reinterpret_cast<const float*>(start + offset.value_scales);
    }
    return result;
}

void KeyValueCache::store(int64_t layer, int64_t head, Block block, int64_t index,
                          const float* key, const float* value, const VectorKernels& kernels,
                          Half* scratch) {
    const CacheShape& shape = layers_[static_cast<size_t>(layer)];
    const Offsets offset = offsets(shape);
    uint8_t* start = head_start(layer, head, block);
    const int64_t key_at =
        index / position_block * shape.head_dim * position_block + index % position_block;
    const int64_t stride = padded_to_lanes(shape.head_dim);
    if (type_ == CacheType::float32) {
        auto* keys = reinterpret_cast<float*>(start) + key_at;
        for (int64_t i = 0; i < shape.head_dim; ++i) keys[i * position_block] = key[i];
        auto* values = reinterpret_cast<float*>(start + offset.values) + index * stride;
        std::memcpy(values, value, static_cast<size_t>(shape.head_dim) * sizeof(float));
        std::fill(values + shape.head_dim, values + stride, 0.0f);
        return;
    }
    if (type_ == CacheType::half) {
        auto* keys = reinterpret_cast<Half*>(start) + key_at;
        kernels.to_half(key, shape.head_dim, scratch);
        for (int64_t i = 0; i < shape.head_dim; ++i) keys[i * position_block] = scratch[i];
        auto* values = reinterpret_cast<Half*>(start + offset.values) + index * stride;
        kernels.to_half(value, shape.head_dim, values);
        std::memset(values + shape.head_dim, 0,
                    static_cast<size_t>(stride - shape.head_dim) * sizeof(Half));
        return;
    }
    auto* codes = reinterpret_cast<int8_t*>(scratch);
    auto* keys = reinterpret_cast<int8_t*>(start) + key_at;
    reinterpret_cast<float*>(start + offset.key_scales)[index] =
        kernels.to_int8(key, shape.head_dim, codes);
    for (int64_t i = 0; i < shape.head_dim; ++i) keys[i * position_block] = codes[i];
    auto* values = reinterpret_cast<int8_t*>(start + offset.values) + index * stride;
    reinterpret_cast<float*>(start + offset.value_scales)[index] =
        kernels.to_int8(value, shape.head_dim, values);
    std::memset(values + shape.head_dim, 0, static_cast<size_t>(stride - shape.head_dim));
}

int64_t CachedSequence::missing_blocks(const KeyValueCache& cache, int64_t tokens) const {
    const auto there = static_cast<int64_t>(blocks.size());
    const bool copies = length % segment_positions != 0 &&
                        cache.is_shared(blocks[static_cast<size_t>(length / segment_positions)]);
    return std::max<int64_t>(0, blocks_for(length + tokens) - there) + (copies ? 1 : 0);
}

void CachedSequence::reserve(KeyValueCache& cache, int64_t tokens) {
    if (length % segment_positions != 0) {
        KeyValueCache::Block& last = blocks[static_cast<size_t>(length / segment_positions)];
        if (cache.is_shared(last)) {
            const KeyValueCache::Block copy = cache.copy(last);
            cache.release(last);
            last = copy;
        }
    }
    const auto wanted = static_cast<size_t>(blocks_for(length + tokens));
    blocks.reserve(wanted);
    while (blocks.size() < wanted) blocks.push_back(cache.take());
}

void CachedSequence::truncate(KeyValueCache& cache, int64_t count) {
    if (count >= length) return;
    length = std::max<int64_t>(count, 0);
    const auto kept = static_cast<size_t>(blocks_for(length));
    while (blocks.size() > kept) {
        cache.release(blocks.back());
        blocks.pop_back();
    }
}

CachedSequence CachedSequence::fork(KeyValueCache& cache, int64_t count) const {
    CachedSequence result;
    result.length = std::clamp<int64_t>(count, 0, length);
    const auto kept = static_cast<size_t>(blocks_for(result.length));
    result.blocks.assign(blocks.begin(), blocks.begin() + static_cast<ptrdiff_t>(kept));
    for (const KeyValueCache::Block block : result.blocks) cache.share(block);
    return result;
}

}  // namespace dsconv
