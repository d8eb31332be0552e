// Where the sums of a matrix product go, written once for all instruction sets. As in
// integer_tile.h everything is a member of a template on the lanes L.
#pragma once

#include "linear/linear.h"

namespace dsconv {

template <class L> struct Outputs {
    using Floats = typename L::Floats;

    int64_t rows;
    float* out;
    int64_t ld_out;
    const Epilogue& epilogue;

    // The outputs of a block's rows for a token.
    float* at(int64_t block, int64_t token) const {
        return out + token * ld_out + block * block_rows;
    }

    [[gnu::always_inline]] inline void store(int64_t block, int64_t token, Floats total) const {
        int64_t row = block * block_rows;
        float* to = at(block, token);
        const float* bias = epilogue.bias ? epilogue.bias + row : nullptr;
        if (rows - row < block_rows) return store_some(rows - row, to, bias, total);
        if (bias) total = L::add(total, L::load_floats(bias));
        if (epilogue.accumulate) total = L::add(total, L::load_floats(to));
        L::store_floats(to, total);
    }

    // The last block, whose other rows are padding.
    void store_some(int64_t count, float* to, const float* bias, Floats total) const {
        float values[block_rows];
        L::store_floats(values, total);
        for (int64_t i = 0; i < count; i++) {
            float value = bias ? values[i] + bias[i] : values[i];
            to[i] = epilogue.accumulate ? value + to[i] : value;
        }
    }
};

}  // namespace dsconv
