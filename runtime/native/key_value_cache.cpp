#include "key_value_cache.h"

#include <cstring>
#include <utility>

namespace dsconv {
namespace {

size_t aligned(int64_t bytes) { return (static_cast<size_t>(bytes) + 63) / 64 * 64; }

}  // namespace

KeyValueCache::KeyValueCache(std::vector<CacheShape> layers, CacheType type)
    : layers_(std::move(layers)), type_(type) {
    for (const CacheShape& shape : layers_) {
        layer_starts_.push_back(segment_bytes_);
        segment_bytes_ += static_cast<size_t>(shape.kv_heads) * offsets(shape).end;
    }
}

KeyValueCache::Offsets KeyValueCache::offsets(const CacheShape& shape) const {
    const int64_t element = type_ == CacheType::half ? sizeof(Half) : 1;
    const int64_t scales = type_ == CacheType::half ? 0 : segment_positions * sizeof(float);
    Offsets result;
    result.values = aligned(segment_positions * shape.head_dim * element);
    result.key_scales =
        result.values + aligned(segment_positions * padded_to_lanes(shape.head_dim) * element);
    result.value_scales = result.key_scales + aligned(scales);
    result.end = result.value_scales + aligned(scales);
    return result;
}

void KeyValueCache::reserve(int64_t count) {
    while (static_cast<int64_t>(segments_.size()) * segment_positions < count) {
        segments_.emplace_back(segment_bytes_);
    }
}

uint8_t* KeyValueCache::head_start(int64_t layer, int64_t head, int64_t segment) const {
    const size_t layer_index = static_cast<size_t>(layer);
    return segments_[static_cast<size_t>(segment)].as<uint8_t>() + layer_starts_[layer_index] +
           static_cast<size_t>(head) * offsets(layers_[layer_index]).end;
}

CacheView KeyValueCache::view(int64_t layer, int64_t head, int64_t segment) const {
    const Offsets offset = offsets(layers_[static_cast<size_t>(layer)]);
    const uint8_t* start = head_start(layer, head, segment);
    CacheView result;
    result.keys = start;
    result.values = start + offset.values;
    if (type_ == CacheType::int8) {
        result.key_scales = reinterpret_cast<const float*>(start + offset.key_scales);
        result.value_scales = reinterpret_cast<const float*>(start + offset.value_scales);
    }
    return result;
}

void KeyValueCache::store(int64_t layer, int64_t head, int64_t position, const float* key,
                          const float* value, const VectorKernels& kernels, Half* scratch) {
    const CacheShape& shape = layers_[static_cast<size_t>(layer)];
    const Offsets offset = offsets(shape);
    uint8_t* start = head_start(layer, head, position / segment_positions);
    const int64_t index = position % segment_positions;
    const int64_t key_at =
        index / position_block * shape.head_dim * position_block + index % position_block;
    const int64_t stride = padded_to_lanes(shape.head_dim);
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

}  // namespace dsconv
