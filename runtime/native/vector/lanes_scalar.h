// Sixteen floats handled as one value: the portable twin of lanes_avx512.h and the others.
//
// The kernels in kernels_impl.h are written once against this interface. Every operation is
// one IEEE operation per lane, so all instruction sets give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "vector/lane_sums.h"

namespace dsconv {
namespace {

struct Lanes {
    float lane[16];

    // How many query rows and blocks of sixteen positions an attention kernel keeps in registers.
    static constexpr int tile_rows = 2;
    static constexpr int tile_blocks = 1;
    static constexpr const char* name = "scalar";

    template <class F>
    static Lanes make(F&& value) {
        Lanes result;
        for (int i = 0; i < 16; ++i) result.lane[i] = value(i);
        return result;
    }
    static Lanes zero() { return make([](int) { return 0.0f; }); }
    static Lanes broadcast(float x) { return make([&](int) { return x; }); }
    static Lanes load(const float* p) { return make([&](int i) { return p[i]; }); }
    static Lanes load(const Half* p) { return make([&](int i) { return half_to_float(p[i]); }); }
    static Lanes load(const int8_t* p) {
        return make([&](int i) { return static_cast<float>(p[i]); });
    }
    static void prefetch(const void*) {}
    void store(float* p) const { std::memcpy(p, lane, sizeof lane); }
    void store(Half* p) const {
        for (int i = 0; i < 16; ++i) p[i] = float_to_half(lane[i]);
    }

    static Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
        return make([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
    }
    static Lanes max(Lanes a, Lanes b) {
        return make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Lanes min(Lanes a, Lanes b) {
        return make([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Lanes round(Lanes a) {
        return make([&](int i) { return std::nearbyintf(a.lane[i]); });
    }
    // 2^a for whole numbers a in -126 .. 127.
    static Lanes power_of_two(Lanes a) {
        return make([&](int i) {
            const auto bits = static_cast<uint32_t>((static_cast<int32_t>(a.lane[i]) + 127) << 23);
            float result;
            std::memcpy(&result, &bits, sizeof result);
            return result;
        });
    }
    float sum() const { return sum_of_lanes(lane); }
    float largest() const {
        float result = lane[0];
        for (float x : lane) result = x > result ? x : result;
        return result;
    }
};

inline Lanes operator+(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Lanes operator-(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Lanes operator*(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Lanes operator/(Lanes a, Lanes b) {
    return Lanes::make([&](int i) { return a.lane[i] / b.lane[i]; });
}

}  // namespace
}  // namespace dsconv
