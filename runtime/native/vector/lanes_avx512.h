// Sixteen floats in one AVX-512 register; the interface is explained in lanes_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"
#include "vector/lane_sums.h"

namespace dsconv {
namespace {

struct Lanes {
    __m512 v;

    static constexpr int tile_rows = 6;  // 24 sums and what feeds them in 32 registers
    static constexpr int tile_blocks = 4;
    static constexpr const char* name = "avx512";

    static Lanes zero() { return {_mm512_setzero_ps()}; }
    static Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
    static Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Lanes load(const Half* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    static Lanes load(const int8_t* p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
    }
    static void prefetch(const void* p) {
        _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(Half* p) const {
        const __m256i halves =
            _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
    }

    static Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
        return {_mm512_fmadd_ps(a.v, b.v, c.v)};
    }
    static Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
    static Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
    static Lanes round(Lanes a) { return {_mm512_roundscale_ps(a.v, 0)}; }
    static Lanes power_of_two(Lanes a) {
        const __m512i exponent =
            _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
    }
    float sum() const {
        alignas(64) float lane[16];
        _mm512_store_ps(lane, v);
        return sum_of_lanes(lane);
    }
    float largest() const { return _mm512_reduce_max_ps(v); }
};

inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }

}  // namespace
}  // namespace dsconv
