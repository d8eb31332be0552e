// From integer sums to floats for few tokens: as in sums.h, 8 tokens of a block at a time.
//
// Include where the instructions of Avx512Vnni are switched on.
#pragma once

#include "linear/amx/sums.h"

namespace dsconv {
namespace amx {

constexpr int64_t few_tokens = 32;
constexpr int64_t few_sums = 4;  // tiles of sums: blocks times tiles of tokens
constexpr int64_t half_sums = tile_tokens * block_rows;

// All floats of a set of blocks: [block][tile of tokens][token][row].
struct FewTotals {
    alignas(64) float totals[few_sums * tile_sums];
    float parts[few_sums * tile_sums];  // of a group of weights
};

struct FewGroup;

// Adds the sums of `count` of 8 tokens, which start at `at`, in tile number `tile` of activations.
using Finish = void (*)(FewTotals& to, const FewGroup& group, int64_t at, int64_t block,
                        int64_t tile, int64_t count);

// What goes with a group of activations.
struct FewGroup {
    alignas(64) float scales[few_sums][block_rows];  // of the weights
    float minima[few_sums][block_rows];
    int32_t zeros[few_sums][block_rows];  // stored zeros of 8 bits, less 128
    int32_t codes[few_sums * tile_sums];  // sums of the codes
    int32_t upper[few_sums * tile_sums];  // of the upper terms
    const float* steps;                   // of the first 8 tokens' activations
    const int32_t* totals;
    int64_t next_tile;                    // from there to those of the next 8
    Finish finish;
    bool two[2];  // has any token an upper term there: in the first 64 inputs, in others
};

enum class FewThen { scaled, scale_min, parts };

// first, last: is the group the first and the last one of a group of weights.
template <FewThen then, bool two, bool zeros, bool first, bool last> struct FewSums {
    struct Rows {
        Floats weight;
        Floats minimum;
        Ints zero;
    };

    // minimum_step: the step times the sum of the token's activations.
    [[gnu::always_inline]] static inline void add(const Rows& rows, const int32_t* codes,
                                                  const int32_t* upper, float step_of,
                                                  float minimum_step, int32_t total_of,
                                                  float* totals, float* parts) {
        Ints sum = _mm512_load_si512(codes);
        if constexpr (two) sum = L::add(L::shift_left<8>(_mm512_load_si512(upper)), sum);
        if constexpr (zeros) {
            sum = L::subtract(sum, L::multiply(rows.zero, L::set_ints(total_of)));
        }
        const Floats step = L::set_floats(step_of);
        if constexpr (then == FewThen::parts) {
            const Floats before = first ? L::set_floats(0) : L::load_floats(parts);
            const Floats part = L::fma(L::to_floats(sum), step, before);
            if constexpr (!last) return L::store_floats(parts, part);
            L::store_floats(totals, L::fma(part, rows.weight, L::load_floats(totals)));
        } else {
            const Floats part = L::multiply(L::to_floats(sum), step);
            Floats total = L::fma(part, rows.weight, L::load_floats(totals));
            if constexpr (then == FewThen::scale_min) {
                total = L::negative_fma(L::set_floats(minimum_step), rows.minimum, total);
            }
            L::store_floats(totals, total);
        }
    }

    static void finish(FewTotals& to, const FewGroup& group, int64_t at, int64_t block,
                       int64_t tile, int64_t count) {
        const Rows rows{L::load_floats(group.scales[block]), L::load_floats(group.minima[block]),
                        _mm512_load_si512(group.zeros[block])};
        const float* steps = group.steps + tile * group.next_tile;
        const int32_t* sums = group.totals + tile * group.next_tile;
        float minimum_steps[tile_tokens];
        if constexpr (then == FewThen::scale_min) {
            const __m256 values = _mm256_cvtepi32_ps(
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)));
            _mm256_storeu_ps(minimum_steps, _mm256_mul_ps(values, _mm256_loadu_ps(steps)));
        }
        auto add_token = [&](int64_t t) __attribute__((always_inline)) {
            const int64_t i = at + t * block_rows;
            add(rows, group.codes + i, group.upper + i, steps[t],
                then == FewThen::scale_min ? minimum_steps[t] : 0, sums[t], to.totals + i,
                to.parts + i);
        };
        if (count == tile_tokens) {
#pragma GCC unroll 8
            for (int64_t t = 0; t < tile_tokens; t++) add_token(t);
        } else {
            for (int64_t t = 0; t < count; t++) add_token(t);
        }
    }
};

template <FewThen then, bool two, bool zeros> Finish finish_of(bool first, bool last) {
    if constexpr (then != FewThen::parts) return FewSums<then, two, zeros, true, true>::finish;
    if (first) return last ? FewSums<then, two, zeros, true, true>::finish
                           : FewSums<then, two, zeros, true, false>::finish;
    return last ? FewSums<then, two, zeros, false, true>::finish
                : FewSums<then, two, zeros, false, false>::finish;
}

template <bool two> Finish finish_of(FewThen then, bool zeros, bool first, bool last) {
    switch (then) {
        case FewThen::scale_min: return finish_of<FewThen::scale_min, two, false>(first, last);
        case FewThen::parts:
            return zeros ? finish_of<FewThen::parts, two, true>(first, last)
                         : finish_of<FewThen::parts, two, false>(first, last);
        default:
            return zeros ? finish_of<FewThen::scaled, two, true>(first, last)
                         : finish_of<FewThen::scaled, two, false>(first, last);
    }
}

// Whatever finishes the groups of a call.
class Finishing {
  public:
    Finishing(FewThen then, bool zeros) {
        for (int i = 0; i < 4; i++) {
            of_[0][i] = finish_of<false>(then, zeros, i & 1, i & 2);
            of_[1][i] = finish_of<true>(then, zeros, i & 1, i & 2);
        }
    }
    Finish of(bool two, bool first, bool last) const { return of_[two][first + 2 * last]; }

  private:
    Finish of_[2][4];
};

}  // namespace amx
}  // namespace dsconv
