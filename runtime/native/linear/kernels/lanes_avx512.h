// 16 lanes of AVX-512 with VNNI. Include where these instructions are switched on.
#pragma once

#include <immintrin.h>

#include "linear/kernels/tall_avx512.h"

namespace dsconv {

struct Avx512Vnni {
    using Ints = __m512i;    // 16 x int32
    using Floats = __m512;   // 16 x float
    using Codes = __m512i;   // a vector: 16 rows x 4 inputs x uint8
    using Quad = __m512i;    // 4 activations, for all rows
    static constexpr int tokens = 8;      // in registers at once
    static constexpr int row_blocks = 2;
    static constexpr int tall_blocks = 3;  // of dot_tall, which takes 8 tokens
    template <int bits> static constexpr int code_offset = 0;

    static Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
    // Bits `shift` and up of every byte (a negative shift moves them up), as far as the mask goes.
    template <int shift, int mask> static Codes field(Codes v) {
        if constexpr (shift > 0) v = _mm512_srli_epi16(v, shift);
        if constexpr (shift < 0) v = _mm512_slli_epi16(v, -shift);
        return _mm512_and_si512(v, _mm512_set1_epi8(mask));
    }
    static Codes either(Codes a, Codes b) { return _mm512_or_si512(a, b); }

    static Quad load_quad(const int8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, 4);
        return _mm512_set1_epi32(quad);
    }
    template <int bits> static Ints dot(Ints sum, Codes codes, Quad x) {
        return _mm512_dpbusd_epi32(sum, codes, x);
    }
    // The same with a quad from memory, in one instruction: GCC 12 makes two.
    template <int bits> static Ints dot(Ints sum, Codes codes, const int8_t* p) {
        asm("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(codes), "m"(*reinterpret_cast<const int8_t(*)[4]>(p)));
        return sum;
    }

    template <int bits>
    static void dot_tall(const uint8_t* const* units, const int8_t* x, int64_t pairs,
                         Ints (&sums)[tall_blocks][8]) {
        dot_three_blocks<bits>(units, x, pairs, sums);
    }

    static Ints set_ints(int32_t v) { return _mm512_set1_epi32(v); }
    static Ints load_bytes(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Ints load_nibbles(const uint8_t* p) {  // value i and i + 8 in a byte
        __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        v = _mm_unpacklo_epi64(v, _mm_srli_epi16(v, 4));
        return _mm512_cvtepu8_epi32(_mm_and_si128(v, _mm_set1_epi8(15)));
    }
    static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
    static Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
    template <int shift> static Ints shift_left(Ints v) { return _mm512_slli_epi32(v, shift); }
    template <int shift> static Ints shift_right(Ints v) { return _mm512_srli_epi32(v, shift); }
    static Ints low_bits(Ints v, int32_t mask) {
        return _mm512_and_si512(v, _mm512_set1_epi32(mask));
    }
    static Ints or_ints(Ints a, Ints b) { return _mm512_or_si512(a, b); }

    static Floats set_floats(float v) { return _mm512_set1_ps(v); }
    static Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
    static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
    static Floats load_float16(const uint8_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Floats load_bfloat16(const uint8_t* p) {
        __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
    }
    static void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
    static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats negative_fma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }

    // Inlined at once: as a call GCC takes it for one without effect.
    [[gnu::always_inline]] static inline void prefetch(const uint8_t* p) { _mm_prefetch(p, _MM_HINT_T0); }
    [[gnu::always_inline]] static inline void prefetch_output(float* p) { __builtin_prefetch(p, 1); }
};

}  // namespace dsconv
