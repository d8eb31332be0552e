// Weights as the tiles of AMX want them: signed bytes, zero points taken off, some blocks and
// inputs at a time.
//
// Include where the instructions of Avx512Vnni are switched on.
#pragma once

#include "linear/kernels/codes.h"
#include "linear/geometry.h"
#include "linear/kernels/lanes_avx512.h"

namespace dsconv {
namespace amx {

using L = Avx512Vnni;

constexpr int64_t span_blocks = 6;    // that are multiplied together
constexpr int64_t span_inputs = 512;
constexpr int64_t span_groups = span_inputs / unit_inputs;  // of activations, at most

// Some inputs of some blocks. A group is one of the activations; it lies within one of the weights.
struct Span {
    alignas(64) int8_t codes[span_blocks][span_inputs * block_rows];  // [quad][row][4]
    // Of the weights' group, whose end is that of [group]
    float scales[span_groups][span_blocks][block_rows];
    float minima[span_groups][span_blocks][block_rows];   // scale and minimum
    int32_t zeros[span_groups][span_blocks][block_rows];  // stored zeros of 8 bits, less 128
    bool ends[span_groups];  // does a group of weights end here
};

// Where the groups of a block lie.
class BlockReader {
  public:
    BlockReader(const LinearView& view, const LinearGeometry& geometry)
        : geometry_(geometry), stored_zeros_(view.zero_points) {}

    int64_t width(int64_t group) const {
        return group + 1 < geometry_.groups ? geometry_.group_width : geometry_.last_width;
    }

    int64_t group_start(int64_t group) const {
        int64_t bytes = geometry_.code_bytes(geometry_.group_width) + geometry_.parameter_bytes;
        int64_t headers = geometry_.scale_min ? group / geometry_.super_groups + 1 : 0;
        return group * bytes + headers * header_bytes;
    }

    // Where the codes of an input start.
    int64_t place(int64_t input) const {
        int64_t group = input / geometry_.group_width;
        return group_start(group) + geometry_.code_bytes(input - group * geometry_.group_width);
    }

    // Codes of inputs [input, input + size), with zeros after the end of their group (where the
    // activations may hold anything), and what belongs to the group.
    void read(const uint8_t* block, int64_t input, int64_t size, Span& span, int64_t at,
              int64_t index) const {
        int64_t group = input / geometry_.group_width;
        int64_t offset = input - group * geometry_.group_width;
        int64_t left = width(group) - offset;
        const uint8_t* start = block + group_start(group);
        const uint8_t* parameters = start + geometry_.code_bytes(width(group));
        int64_t inputs = left < size ? left : size;
        int8_t* to = span.codes[index] + at * size * block_rows;
        unpack(start + geometry_.code_bytes(offset), inputs, offset_of(parameters), to);
        __builtin_memset(to + inputs * block_rows, 0,
                         static_cast<size_t>((size - inputs) * block_rows));
        span.ends[at] = left <= size;
        if (geometry_.scale_min) {
            read_steps(block, group, parameters, span.scales[at][index], span.minima[at][index]);
            return;
        }
        L::store_floats(span.scales[at][index], L::load_float16(parameters));
        if (geometry_.bits == 8 && stored_zeros_) {
            L::Ints zeros = L::load_bytes(parameters + 2 * block_rows);
            _mm512_storeu_si512(span.zeros[at][index], L::subtract(zeros, L::set_ints(128)));
        }
    }

  private:
    static constexpr int64_t header_bytes = 4 * block_rows;

    // What is taken off the codes of each row, in every byte of its lane.
    L::Codes offset_of(const uint8_t* parameters) const {
        if (geometry_.scale_min) return _mm512_setzero_si512();
        if (geometry_.bits == 8) return _mm512_set1_epi8(-128);
        if (!stored_zeros_) return _mm512_set1_epi8(8);
        return L::multiply(L::load_nibbles(parameters + 2 * block_rows), L::set_ints(0x01010101));
    }

    void unpack(const uint8_t* codes, int64_t inputs, L::Codes offset, int8_t* to) const {
        switch (geometry_.bits) {
            case 3: return unpack_units<3>(codes, inputs, offset, to);
            case 4: return unpack_units<4>(codes, inputs, offset, to);
            case 5: return unpack_units<5>(codes, inputs, offset, to);
            case 6: return unpack_units<6>(codes, inputs, offset, to);
            default: return unpack_units<8>(codes, inputs, offset, to);
        }
    }

    template <int bits>
    static void unpack_units(const uint8_t* codes, int64_t inputs, L::Codes offset, int8_t* to) {
        constexpr int64_t unit_bytes = 64 * bits, pair_bytes = 16 * bits;
        for (; inputs >= unit_inputs; inputs -= unit_inputs, codes += unit_bytes) {
            pair<bits, 0>(codes, offset, to);
            pair<bits, 1>(codes, offset, to + 2 * vector_bytes);
            pair<bits, 2>(codes, offset, to + 4 * vector_bytes);
            pair<bits, 3>(codes, offset, to + 6 * vector_bytes);
            to += 8 * vector_bytes;
        }
        for (; inputs > 0; inputs -= 8, codes += pair_bytes, to += 2 * vector_bytes) {
            pair<bits, 0>(codes, offset, to);  // 4 and 8 bits only
        }
    }

    template <int bits, int index>
    static void pair(const uint8_t* unit, L::Codes offset, int8_t* to) {
        L::Codes first, second;
        UnitCodes<L, bits>::template load<index>(unit, first, second);
        _mm512_storeu_si512(to, _mm512_sub_epi8(first, offset));
        _mm512_storeu_si512(to + vector_bytes, _mm512_sub_epi8(second, offset));
    }

    void read_steps(const uint8_t* block, int64_t group, const uint8_t* steps, float* scales,
                    float* minima) const {
        int64_t first = group / geometry_.super_groups * geometry_.super_groups;
        const uint8_t* header = block + group_start(first) - header_bytes;
        L::Ints low = L::load_bytes(steps), high = L::load_nibbles(steps + block_rows);
        L::Ints minimum = L::or_ints(L::shift_right<6>(low), L::shift_left<2>(high));
        L::store_floats(scales, L::multiply(L::to_floats(L::low_bits(low, 63)),
                                            L::load_float16(header)));
        L::store_floats(minima, L::multiply(L::to_floats(minimum),
                                            L::load_float16(header + 2 * block_rows)));
    }

    const LinearGeometry& geometry_;
    bool stored_zeros_;
};

}  // namespace amx
}  // namespace dsconv
