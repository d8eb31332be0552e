#include "attention/rotary.h"

#include <cmath>
#include <utility>

#include "vector/kernels.h"

namespace dsconv {

RotaryTable::RotaryTable(std::vector<float> frequencies, float factor)
    : frequencies_(std::move(frequencies)), factor_(factor) {}

void RotaryTable::reserve(int64_t count) {
    while (static_cast<int64_t>(segments_.size()) * segment_positions < count) {
        const auto start = static_cast<int64_t>(segments_.size()) * segment_positions;
        Memory memory(static_cast<size_t>(segment_positions * rows()) * sizeof(float));
        float* out = memory.as<float>();
        for (int64_t i = 0; i < segment_positions; ++i) {
            float* of_block = out + i / position_block * rows() * position_block;
            float* column = of_block + i % position_block;
            for (int64_t pair = 0; pair < half(); ++pair) {
                // The product in single precision, as the models' authors compute it.
                const float angle = static_cast<float>(start + i) * frequencies_[pair];
                column[pair * position_block] = static_cast<float>(std::cos(double{angle})) * factor_;
                column[(half() + pair) * position_block] =
                    static_cast<float>(std::sin(double{angle})) * factor_;
            }
        }
        segments_.push_back(std::move(memory));
    }
}

const float* RotaryTable::segment(int64_t index) const {
    return segments_[static_cast<size_t>(index)].as<float>();
}

void RotaryTable::at(int64_t position, float* cosine, float* sine) const {
    const int64_t i = position % segment_positions;
    const float* block = segment(position / segment_positions) +
                         i / position_block * rows() * position_block + i % position_block;
    for (int64_t pair = 0; pair < half(); ++pair) {
        cosine[pair] = block[pair * position_block];
        sine[pair] = block[(half() + pair) * position_block];
    }
}

}  // namespace dsconv
