// IEEE half precision and bfloat16 as they lie in memory, converted without hardware support.
#pragma once

#include <cstdint>
#include <cstring>

namespace dsconv {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float bfloat16_to_float(BFloat16 x) { return bits_to_float(uint32_t{x.bits} << 16); }

inline float half_to_float(Half x) {
    const uint32_t sign = uint32_t{x.bits} >> 15 << 31;
    const uint32_t exponent = x.bits >> 10 & 31u;
    const uint32_t fraction = x.bits & 1023u;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float subnormal = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    return bits_to_float(sign | float_to_bits(subnormal));
}

// Rounds to nearest, ties to even; too large values become infinite.
inline Half float_to_half(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t sign = bits >> 31 << 15;
    uint32_t result;
    if (magnitude > 0x7f800000u) {
        result = 0x7e00;  // not a number
    } else if (magnitude >= 0x477ff000u) {
        result = 0x7c00;
    } else if (magnitude < 0x38800000u) {
        // Adding 0.5 moves the half's last bit to the float's last bit: the sum is rounded for us.
        const float shifted = bits_to_float(magnitude) + 0.5f;
        result = float_to_bits(shifted) - 0x3f000000u;
    } else {
        const uint32_t odd = magnitude >> 13 & 1u;
        result = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
    }
    return Half{static_cast<uint16_t>(sign | result)};
}

}  // namespace dsconv
