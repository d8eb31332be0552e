// Cosines and sines of rotary positions, in the layout that attention reads.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"

namespace dsconv {

class RotaryTable {
   public:
    // frequencies [half]: radians per position; all values are multiplied by `factor`.
    RotaryTable(std::vector<float> frequencies, float factor);

    int64_t half() const { return static_cast<int64_t>(frequencies_.size()); }
    // Rows of a block: the cosines of every pair, then the sines.
    int64_t rows() const { return 2 * half(); }

    // Makes room for positions [0, count).
    void reserve(int64_t count);
    // [block][row][position in the block] of one segment of positions.
    const float* segment(int64_t index) const;
    // The cosines and sines of one position -> two arrays of half() values.
    void at(int64_t position, float* cosine, float* sine) const;

   private:
    std::vector<float> frequencies_;
    float factor_;
    std::vector<Memory> segments_;
};

}  // namespace dsconv
