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

// Unpacks inputs (a unit, or fewer: a multiple of 8) of a block, less what `offset` has in each byte.
using Unpack = void (*)(const uint8_t* codes, int64_t inputs, L::Codes offset, int8_t* to);

// The same for one or two whole units, and fetches what lies `ahead` bytes after their codes.
using UnpackAhead = void (*)(const uint8_t* codes, int64_t ahead, L::Codes offset, int8_t* to);

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

    // Where an input of a block is, and what goes with it.
    struct Place {
        int64_t group;
        int64_t offset;  // of the input in its group
        int64_t left;    // inputs of the group from there on
        int64_t codes;   // in the block
        int64_t parameters;
    };

    Place find(int64_t input) const {
        // Sizes are below 2^31, and such a division is faster.
        auto group = static_cast<int64_t>(static_cast<uint32_t>(input) /
                                          static_cast<uint32_t>(geometry_.group_width));
        int64_t offset = input - group * geometry_.group_width, start = group_start(group);
        return {group, offset, width(group) - offset, start + geometry_.code_bytes(offset),
                start + geometry_.code_bytes(width(group))};
    }

    // Scales and, where there are any, minima and zero points (less 128) of a block's rows.
    void read_parameters(const uint8_t* block, const Place& place, float* scales, float* minima,
                         int32_t* zeros) const {
        const uint8_t* parameters = block + place.parameters;
        if (geometry_.scale_min) return read_steps(block, place.group, parameters, scales, minima);
        L::store_floats(scales, L::load_float16(parameters));
        if (geometry_.bits == 8 && stored_zeros_) {
            L::Ints stored = L::load_bytes(parameters + 2 * block_rows);
            _mm512_storeu_si512(zeros, L::subtract(stored, L::set_ints(128)));
        }
    }

    Unpack unpacking() const {
        switch (geometry_.bits) {
            case 3: return unpack_units<3>;
            case 4: return stored_zeros_ || geometry_.scale_min ? unpack_units<4> : unpack_middle4;
            case 5: return unpack_units<5>;
            case 6: return unpack_units<6>;
            default: return unpack_units<8>;
        }
    }

    UnpackAhead unpacking_ahead(bool two_units) const {
        switch (geometry_.bits) {
            case 3: return unpack_ahead<3, unpack_units<3>>(two_units);
            case 4:
                return stored_zeros_ || geometry_.scale_min
                           ? unpack_ahead<4, unpack_units<4>>(two_units)
                           : unpack_ahead<4, unpack_middle4>(two_units);
            case 5: return unpack_ahead<5, unpack_units<5>>(two_units);
            case 6: return unpack_ahead<6, unpack_units<6>>(two_units);
            default: return unpack_ahead<8, unpack_units<8>>(two_units);
        }
    }

    // Codes of inputs [input, input + size), with zeros after the end of their group (where the
    // activations may hold anything), and what belongs to the group.
    void read(const uint8_t* block, int64_t input, int64_t size, Span& span, int64_t at,
              int64_t index) const {
        const Place place = find(input);
        int64_t inputs = place.left < size ? place.left : size;
        int8_t* to = span.codes[index] + at * size * block_rows;
        unpacking()(block + place.codes, inputs, offset_of(block + place.parameters), to);
        __builtin_memset(to + inputs * block_rows, 0,
                         static_cast<size_t>((size - inputs) * block_rows));
        span.ends[at] = place.left <= size;
        read_parameters(block, place, span.scales[at][index], span.minima[at][index],
                        span.zeros[at][index]);
    }

    // What is taken off the codes of each row, in every byte of its lane.
    L::Codes offset_of(const uint8_t* parameters) const {
        if (geometry_.scale_min) return _mm512_setzero_si512();
        if (geometry_.bits == 8) return _mm512_set1_epi8(-128);
        if (!stored_zeros_) return _mm512_set1_epi8(8);
        return L::multiply(L::load_nibbles(parameters + 2 * block_rows), L::set_ints(0x01010101));
    }

  private:
    static constexpr int64_t header_bytes = 4 * block_rows;

    // Signed bytes of nibbles less 8 in one instruction each: of a byte's bits 0 to 2 stay, 3 to 7
    // become the inverse of bit 3. Every processor with AMX has it.
    template <uint64_t rows> static L::Codes middle4(L::Codes v) {
        L::Codes result;
        asm("vgf2p8affineqb $0xf8, %2, %1, %0"
            : "=v"(result)
            : "v"(v), "v"(_mm512_set1_epi64(static_cast<int64_t>(rows))));
        return result;
    }

    [[gnu::always_inline]] static inline void unpack_middle4(const uint8_t* codes, int64_t inputs, L::Codes, int8_t* to) {
        for (; inputs >= unit_inputs; inputs -= unit_inputs, codes += 4 * vector_bytes) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) middle4_pair(codes + i * vector_bytes, to + 2 * i * vector_bytes);
            to += 8 * vector_bytes;
        }
        for (; inputs > 0; inputs -= 8, codes += vector_bytes, to += 2 * vector_bytes) {
            middle4_pair(codes, to);
        }
    }

    [[gnu::always_inline]] static inline void middle4_pair(const uint8_t* codes, int8_t* to) {
        const L::Codes v = L::load_codes(codes);
        _mm512_storeu_si512(to, middle4<0x0102040808080808>(v));
        _mm512_storeu_si512(to + vector_bytes, middle4<0x1020408080808080>(v));
    }

    template <int bits, Unpack unpack> static UnpackAhead unpack_ahead(bool two_units) {
        return two_units ? unpack_and_fetch<bits, 2, unpack> : unpack_and_fetch<bits, 1, unpack>;
    }

    template <int bits, int units, Unpack unpack>
    static void unpack_and_fetch(const uint8_t* codes, int64_t ahead, L::Codes offset, int8_t* to) {
        for (int i = 0; i < units * bits; i++) {
            _mm_prefetch(codes + ahead + i * vector_bytes, _MM_HINT_T0);
        }
        unpack(codes, units * unit_inputs, offset, to);
    }

    template <int bits>
    [[gnu::always_inline]] static inline void unpack_units(const uint8_t* codes, int64_t inputs, L::Codes offset, int8_t* to) {
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
