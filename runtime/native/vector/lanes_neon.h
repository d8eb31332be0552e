// Sixteen floats in four NEON registers; the interface is explained in lanes_scalar.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "half.h"
#include "vector/lane_sums.h"

namespace dsconv {
namespace {

struct Lanes {
    float32x4_t part[4];

    static constexpr int tile_rows = 5;  // 20 registers of sums
    static constexpr int tile_blocks = 1;
    static constexpr const char* name = "neon";

    template <class F>
    static Lanes make(F&& value) {
        return {{value(0), value(1), value(2), value(3)}};
    }
    static Lanes zero() { return broadcast(0.0f); }
    static Lanes broadcast(float x) {
        return make([&](int) { return vdupq_n_f32(x); });
    }
    static Lanes load(const float* p) {
        return make([&](int i) { return vld1q_f32(p + 4 * i); });
    }
    static Lanes load(const Half* p) {
        const auto* bits = reinterpret_cast<const uint16_t*>(p);
        return make([&](int i) {
            return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(bits + 4 * i)));
        });
    }
    static Lanes load(const int8_t* p) {
        const int8x16_t bytes = vld1q_s8(p);
        const int16x8_t first = vmovl_s8(vget_low_s8(bytes));
        const int16x8_t second = vmovl_s8(vget_high_s8(bytes));
        return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(first))),
                 vcvtq_f32_s32(vmovl_s16(vget_high_s16(first))),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(second))),
                 vcvtq_f32_s32(vmovl_s16(vget_high_s16(second)))}};
    }
    static void prefetch([[maybe_unused]] const void* p) {
#if defined(__GNUC__)
        __builtin_prefetch(p);
#endif
    }
    void store(float* p) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, part[i]);
    }
    void store(Half* p) const {
        auto* bits = reinterpret_cast<uint16_t*>(p);
        for (int i = 0; i < 4; ++i) {
            vst1_u16(bits + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(part[i])));
        }
    }

    static Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
        return make([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
    }
    static Lanes max(Lanes a, Lanes b) {
        return make([&](int i) { return vmaxq_f32(a.part[i], b.part[i]); });
    }
    static Lanes min(Lanes a, Lanes b) {
        return make([&](int i) { return vminq_f32(a.part[i], b.part[i]); });
    }
    static Lanes round(Lanes a) {
        return make([&](int i) { return vrndnq_f32(a.part[i]); });
    }
    static Lanes power_of_two(Lanes a) {
        return make([&](int i) {
            const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(a.part[i]), vdupq_n_s32(127));
            return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
        });
    }
    float sum() const {
        float lane[16];
        store(lane);
        return sum_of_lanes(lane);
    }
    float largest() const {
        return vmaxvq_f32(vmaxq_f32(vmaxq_f32(part[0], part[1]), vmaxq_f32(part[2], part[3])));
    }
};

inline Lanes operator+(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
}
inline Lanes operator-(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return vsubq_f32(a.part[i], b.part[i]); });
}
inline Lanes operator*(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
}
inline Lanes operator/(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return vdivq_f32(a.part[i], b.part[i]); });
}

}  // namespace
}  // namespace dsconv
