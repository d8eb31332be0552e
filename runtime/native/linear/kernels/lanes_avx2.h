// 16 lanes of AVX2, in pairs of registers. Include where these instructions are switched on.
#pragma once

#include <immintrin.h>

namespace dsconv {

struct Ints256 {
    __m256i low, high;
};
struct Floats256 {
    __m256 low, high;
};

// `vnni`: the processor multiplies and adds bytes in one instruction.
template <bool vnni> struct Avx2 {
    using Ints = Ints256;
    using Floats = Floats256;
    using Codes = Ints256;
    using Quad = __m256i;
    static constexpr int tokens = 4;
    static constexpr int row_blocks = 1;
    static constexpr int tall_blocks = 0;
    template <int bits> static constexpr int code_offset = bits == 8 && !vnni ? 128 : 0;

    static Codes load_codes(const uint8_t* p) {
        auto v = reinterpret_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
    }
    template <int shift, int mask> static __m256i field(__m256i v) {
        if constexpr (shift > 0) v = _mm256_srli_epi16(v, shift);
        if constexpr (shift < 0) v = _mm256_slli_epi16(v, -shift);
        return _mm256_and_si256(v, _mm256_set1_epi8(mask));
    }
    template <int shift, int mask> static Codes field(Codes v) {
        return {field<shift, mask>(v.low), field<shift, mask>(v.high)};
    }
    static Codes either(Codes a, Codes b) { return or_ints(a, b); }

    static Quad load_quad(const int8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, 4);
        return _mm256_set1_epi32(quad);
    }

    // Without VNNI pairs of products are first added to int16, saturating. Codes below 64 cannot
    // reach that. Codes of 8 bits are taken as signed (128 less), and their sign moves to the
    // activation: 2 * 128 * 127 fits, as activations are never -128.
    template <int bits> static __m256i dot(__m256i sum, __m256i codes, Quad x) {
        if constexpr (bits == 8) {
            __m256i centred = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            x = _mm256_sign_epi8(x, centred);
            codes = _mm256_abs_epi8(centred);
        }
        __m256i pairs = _mm256_maddubs_epi16(codes, x);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    template <int bits> static Ints dot(Ints sum, Codes codes, Quad x) {
#if defined(DSCONV_AVX_VNNI)
        if constexpr (vnni) {
            return {_mm256_dpbusd_avx_epi32(sum.low, codes.low, x),
                    _mm256_dpbusd_avx_epi32(sum.high, codes.high, x)};
        }
#endif
        return {dot<bits>(sum.low, codes.low, x), dot<bits>(sum.high, codes.high, x)};
    }
    template <int bits> static Ints dot(Ints sum, Codes codes, const int8_t* p) {
        return dot<bits>(sum, codes, load_quad(p));
    }

    static Ints set_ints(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
    static Ints widen(__m128i bytes) {
        return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
    }
    static Ints load_bytes(const uint8_t* p) {
        return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Ints load_nibbles(const uint8_t* p) {  // value i and i + 8 in a byte
        __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        v = _mm_unpacklo_epi64(v, _mm_srli_epi16(v, 4));
        return widen(_mm_and_si128(v, _mm_set1_epi8(15)));
    }
    static Ints add(Ints a, Ints b) {
        return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
    }
    static Ints subtract(Ints a, Ints b) {
        return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
    }
    static Ints multiply(Ints a, Ints b) {
        return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
    }
    template <int shift> static Ints shift_left(Ints v) {
        return {_mm256_slli_epi32(v.low, shift), _mm256_slli_epi32(v.high, shift)};
    }
    template <int shift> static Ints shift_right(Ints v) {
        return {_mm256_srli_epi32(v.low, shift), _mm256_srli_epi32(v.high, shift)};
    }
    static Ints low_bits(Ints v, int32_t mask) {
        __m256i wide = _mm256_set1_epi32(mask);
        return {_mm256_and_si256(v.low, wide), _mm256_and_si256(v.high, wide)};
    }
    static Ints or_ints(Ints a, Ints b) {
        return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
    }

    static Floats set_floats(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
    static Floats to_floats(Ints v) {
        return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)};
    }
    static Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static Floats load_float16(const uint8_t* p) {
        auto v = reinterpret_cast<const __m128i*>(p);
        return {_mm256_cvtph_ps(_mm_loadu_si128(v)), _mm256_cvtph_ps(_mm_loadu_si128(v + 1))};
    }
    static __m256 widen_bfloat16(const __m128i* p) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    }
    static Floats load_bfloat16(const uint8_t* p) {
        auto v = reinterpret_cast<const __m128i*>(p);
        return {widen_bfloat16(v), widen_bfloat16(v + 1)};
    }
    static void store_floats(float* p, Floats v) {
        _mm256_storeu_ps(p, v.low);
        _mm256_storeu_ps(p + 8, v.high);
    }
    static Floats add(Floats a, Floats b) {
        return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
    }
    static Floats multiply(Floats a, Floats b) {
        return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
    }
    static Floats fma(Floats a, Floats b, Floats c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static Floats negative_fma(Floats a, Floats b, Floats c) {
        return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
    }

    // Inlined at once: as a call GCC takes it for one without effect.
    [[gnu::always_inline]] static inline void prefetch_output(float* p) { __builtin_prefetch(p, 1); }
    [[gnu::always_inline]] static inline void prefetch(const uint8_t* p) {
        _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
    }
};

}  // namespace dsconv
