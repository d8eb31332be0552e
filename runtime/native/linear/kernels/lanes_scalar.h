// 16 lanes of plain C++: runs everywhere, and says what the other instruction sets must compute.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace dsconv {

struct Scalar {
    struct Ints { int32_t lane[16]; };
    struct Floats { float lane[16]; };
    struct Codes { uint8_t lane[64]; };
    struct Quad { int8_t lane[4]; };
    static constexpr int tokens = 1;
    static constexpr int row_blocks = 1;
    static constexpr int tall_blocks = 0;
    template <int bits> static constexpr int code_offset = 0;

    static Codes load_codes(const uint8_t* p) {
        Codes v;
        std::memcpy(v.lane, p, 64);
        return v;
    }
    template <int shift, int mask> [[gnu::noinline]] static Codes field(Codes v) {
        for (uint8_t& code : v.lane) {
            int moved = shift >= 0 ? code >> (shift & 7) : code << (-shift & 7);
            code = static_cast<uint8_t>(moved & mask);
        }
        return v;
    }
    static Codes either(Codes a, const Codes& b) {
        for (int i = 0; i < 64; i++) a.lane[i] |= b.lane[i];
        return a;
    }

    static Quad load_quad(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    // Not inlined: compilers would unroll it a thousand times.
    template <int bits>
    [[gnu::noinline]] static Ints dot(Ints sum, const Codes& codes, const Quad& x) {
        for (int row = 0; row < 16; row++) {
            const uint8_t* c = codes.lane + 4 * row;
            sum.lane[row] += c[0] * x.lane[0] + c[1] * x.lane[1] + c[2] * x.lane[2] + c[3] * x.lane[3];
        }
        return sum;
    }
    template <int bits> static Ints dot(Ints sum, const Codes& codes, const int8_t* p) {
        return dot<bits>(sum, codes, load_quad(p));
    }

    static Ints set_ints(int32_t v) { return each([=](int) { return v; }); }
    static Ints load_bytes(const uint8_t* p) { return each([=](int i) { return p[i]; }); }
    static Ints load_nibbles(const uint8_t* p) {
        return each([=](int i) { return i < 8 ? p[i] & 15 : p[i - 8] >> 4; });
    }
    static Ints add(const Ints& a, const Ints& b) {
        return each([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    static Ints subtract(const Ints& a, const Ints& b) {
        return each([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    static Ints multiply(const Ints& a, const Ints& b) {
        return each([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    template <int shift> static Ints shift_left(const Ints& v) {
        return each([&](int i) { return v.lane[i] * (1 << shift); });
    }
    template <int shift> static Ints shift_right(const Ints& v) {
        return each([&](int i) { return v.lane[i] >> shift; });
    }
    static Ints low_bits(const Ints& v, int32_t mask) {
        return each([&](int i) { return v.lane[i] & mask; });
    }
    static Ints or_ints(const Ints& a, const Ints& b) {
        return each([&](int i) { return a.lane[i] | b.lane[i]; });
    }

    static Floats set_floats(float v) { return floats([=](int) { return v; }); }
    static Floats to_floats(const Ints& v) {
        return floats([&](int i) { return static_cast<float>(v.lane[i]); });
    }
    static Floats load_floats(const float* p) { return floats([=](int i) { return p[i]; }); }
    static Floats load_float16(const uint8_t* p) {
        return floats([=](int i) { return half_to_float(Half{halfword(p, i)}); });
    }
    static Floats load_bfloat16(const uint8_t* p) {
        return floats([=](int i) { return bfloat16_to_float(BFloat16{halfword(p, i)}); });
    }
    static void store_floats(float* p, const Floats& v) { std::memcpy(p, v.lane, 64); }
    static Floats add(const Floats& a, const Floats& b) {
        return floats([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    static Floats multiply(const Floats& a, const Floats& b) {
        return floats([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
        return floats([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
    }
    static Floats negative_fma(const Floats& a, const Floats& b, const Floats& c) {
        return floats([&](int i) { return std::fma(-a.lane[i], b.lane[i], c.lane[i]); });
    }

    static void prefetch(const uint8_t*) {}
    static void prefetch_output(float*) {}

  private:
    static uint16_t halfword(const uint8_t* p, int i) {
        return static_cast<uint16_t>(p[2 * i] | p[2 * i + 1] << 8);
    }
    template <class Make> static Ints each(Make make) {
        Ints v;
        for (int i = 0; i < 16; i++) v.lane[i] = make(i);
        return v;
    }
    template <class Make> static Floats floats(Make make) {
        Floats v;
        for (int i = 0; i < 16; i++) v.lane[i] = make(i);
        return v;
    }
};

}  // namespace dsconv
