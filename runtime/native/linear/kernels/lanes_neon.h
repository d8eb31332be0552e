// 16 lanes of NEON with the dot product extension, in four registers.
#pragma once

#include <arm_neon.h>

namespace dsconv {

struct NeonDotprod {
    struct Ints { int32x4_t part[4]; };
    struct Floats { float32x4_t part[4]; };
    struct Codes { uint8x16_t part[4]; };
    using Quad = int8x16_t;
    static constexpr int tokens = 4;
    static constexpr int row_blocks = 1;
    static constexpr int tall_blocks = 0;
    // The instruction multiplies signed bytes: codes of 8 bits are taken as 128 less.
    template <int bits> static constexpr int code_offset = bits == 8 ? 128 : 0;

    static Codes load_codes(const uint8_t* p) {
        return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
    }
    template <int shift, int mask> static Codes field(Codes v) {
        for (auto& part : v.part) {
            if constexpr (shift > 0) part = vshrq_n_u8(part, shift);
            if constexpr (shift < 0) part = vshlq_n_u8(part, -shift);
            part = vandq_u8(part, vdupq_n_u8(mask));
        }
        return v;
    }
    static Codes either(Codes a, const Codes& b) {
        for (int i = 0; i < 4; i++) a.part[i] = vorrq_u8(a.part[i], b.part[i]);
        return a;
    }

    static Quad load_quad(const int8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(quad));
    }
    template <int bits> static Ints dot(Ints sum, const Codes& codes, Quad x) {
        for (int i = 0; i < 4; i++) {
            uint8x16_t code = codes.part[i];
            if constexpr (bits == 8) code = veorq_u8(code, vdupq_n_u8(128));
            sum.part[i] = vdotq_s32(sum.part[i], vreinterpretq_s8_u8(code), x);
        }
        return sum;
    }
    template <int bits> static Ints dot(Ints sum, const Codes& codes, const int8_t* p) {
        return dot<bits>(sum, codes, load_quad(p));
    }

    static Ints set_ints(int32_t v) { return ints([=](int) { return vdupq_n_s32(v); }); }
    static Ints widen(uint8x16_t bytes) {
        uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
        return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
    }
    static Ints load_bytes(const uint8_t* p) { return widen(vld1q_u8(p)); }
    static Ints load_nibbles(const uint8_t* p) {  // value i and i + 8 in a byte
        uint8x8_t v = vld1_u8(p);
        return widen(vcombine_u8(vand_u8(v, vdup_n_u8(15)), vshr_n_u8(v, 4)));
    }
    static Ints add(const Ints& a, const Ints& b) {
        return ints([&](int i) { return vaddq_s32(a.part[i], b.part[i]); });
    }
    static Ints subtract(const Ints& a, const Ints& b) {
        return ints([&](int i) { return vsubq_s32(a.part[i], b.part[i]); });
    }
    static Ints multiply(const Ints& a, const Ints& b) {
        return ints([&](int i) { return vmulq_s32(a.part[i], b.part[i]); });
    }
    template <int shift> static Ints shift_left(const Ints& v) {
        return ints([&](int i) { return vshlq_n_s32(v.part[i], shift); });
    }
    template <int shift> static Ints shift_right(const Ints& v) {
        return ints([&](int i) { return vshrq_n_s32(v.part[i], shift); });
    }
    static Ints low_bits(const Ints& v, int32_t mask) {
        return ints([&](int i) { return vandq_s32(v.part[i], vdupq_n_s32(mask)); });
    }
    static Ints or_ints(const Ints& a, const Ints& b) {
        return ints([&](int i) { return vorrq_s32(a.part[i], b.part[i]); });
    }

    static Floats set_floats(float v) { return floats([=](int) { return vdupq_n_f32(v); }); }
    static Floats to_floats(const Ints& v) {
        return floats([&](int i) { return vcvtq_f32_s32(v.part[i]); });
    }
    static Floats load_floats(const float* p) {
        return floats([=](int i) { return vld1q_f32(p + 4 * i); });
    }
    static uint16x4_t halves(const uint8_t* p, int i) { return vreinterpret_u16_u8(vld1_u8(p + 8 * i)); }
    static Floats load_float16(const uint8_t* p) {
        return floats([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(halves(p, i))); });
    }
    static Floats load_bfloat16(const uint8_t* p) {
        return floats([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(halves(p, i), 16)); });
    }
    static void store_floats(float* p, const Floats& v) {
        for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, v.part[i]);
    }
    static Floats add(const Floats& a, const Floats& b) {
        return floats([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
    }
    static Floats multiply(const Floats& a, const Floats& b) {
        return floats([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
    }
    static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
        return floats([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
    }
    static Floats negative_fma(const Floats& a, const Floats& b, const Floats& c) {
        return floats([&](int i) { return vfmsq_f32(c.part[i], a.part[i], b.part[i]); });
    }

    // Inlined at once: as a call GCC takes it for one without effect.
    [[gnu::always_inline]] static inline void prefetch(const uint8_t* p) { __builtin_prefetch(p); }
    [[gnu::always_inline]] static inline void prefetch_output(float* p) { __builtin_prefetch(p, 1); }

  private:
    template <class Make> static Ints ints(Make make) {
        return {{make(0), make(1), make(2), make(3)}};
    }
    template <class Make> static Floats floats(Make make) {
        return {{make(0), make(1), make(2), make(3)}};
    }
};

}  // namespace dsconv
