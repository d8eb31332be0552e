// Three blocks of rows times eight tokens in AVX-512: 24 sums, and in the other registers just what
// feeds them. Written in assembly because GCC moves sums to memory when so many are in use.
#pragma once

#include <cstdint>

namespace dsconv {

// clang-format off
#define DSCONV_EACH_SUM(m) \
    m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) \
    m(12) m(13) m(14) m(15) m(16) m(17) m(18) m(19) m(20) m(21) m(22) m(23)
#define DSCONV_CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define DSCONV_STORE(i) "vmovdqu64 %%zmm" #i ", 64*" #i "(%[sums])\n"
// Four activations of a token, in register x, times the codes of three blocks.
#define DSCONV_TOKEN(at, x, a, b, c)                      \
    "vpbroadcastd " #at "(%[activations]), %%zmm" #x "\n" \
    "vpdpbusd %%zmm" #x ", %%zmm24, %%zmm" #a "\n"        \
    "vpdpbusd %%zmm" #x ", %%zmm25, %%zmm" #b "\n"        \
    "vpdpbusd %%zmm" #x ", %%zmm26, %%zmm" #c "\n"
#define DSCONV_TOKENS(at)                                                   \
    DSCONV_TOKEN(at, 28, 0, 8, 16) DSCONV_TOKEN(at + 4, 29, 1, 9, 17)       \
    DSCONV_TOKEN(at + 8, 30, 2, 10, 18) DSCONV_TOKEN(at + 12, 31, 3, 11, 19) \
    DSCONV_TOKEN(at + 16, 28, 4, 12, 20) DSCONV_TOKEN(at + 20, 29, 5, 13, 21) \
    DSCONV_TOKEN(at + 24, 30, 6, 14, 22) DSCONV_TOKEN(at + 28, 31, 7, 15, 23)
// The first quad of a pair in 4 bits, the second one, and quads in 8 bits.
#define DSCONV_LOW(block, code) "vpandd (%[" #block "]), %%zmm27, %%zmm" #code "\n"
#define DSCONV_HIGH(block, code)                     \
    "vpsrlw $4, (%[" #block "]), %%zmm" #code "\n"   \
    "vpandd %%zmm27, %%zmm" #code ", %%zmm" #code "\n"
#define DSCONV_FIRST(block, code) "vmovdqu64 (%[" #block "]), %%zmm" #code "\n"
#define DSCONV_SECOND(block, code) "vmovdqu64 64(%[" #block "]), %%zmm" #code "\n"
#define DSCONV_BLOCKS(m) m(first, 24) m(second, 25) m(third, 26)
#define DSCONV_PAIRS(one, two, bytes)                                              \
    asm volatile(                                                                  \
        "vpbroadcastd %[mask], %%zmm27\n"                                          \
        DSCONV_EACH_SUM(DSCONV_CLEAR)                                              \
        ".p2align 5\n"                                                             \
        "1:\n"                                                                     \
        DSCONV_BLOCKS(one) DSCONV_TOKENS(0)                                        \
        DSCONV_BLOCKS(two) DSCONV_TOKENS(32)                                       \
        "add $" #bytes ", %[first]\n"                                              \
        "add $" #bytes ", %[second]\n"                                             \
        "add $" #bytes ", %[third]\n"                                              \
        "add $64, %[activations]\n"                                                \
        "dec %[pairs]\n"                                                           \
        "jnz 1b\n"                                                                 \
        DSCONV_EACH_SUM(DSCONV_STORE)                                              \
        : [first] "+r"(first), [second] "+r"(second), [third] "+r"(third),         \
          [activations] "+r"(activations), [pairs] "+r"(pairs)                     \
        : [mask] "r"(0x0f0f0f0f), [sums] "r"(sums)                                 \
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",  \
          "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",     \
          "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",  \
          "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30",  \
          "xmm31")
// clang-format on

// sums [3][8][16]: of code * activation over `pairs` (at least one) pairs of quads. Activations:
// [quad][8 tokens][4].
template <int bits>
inline void dot_three_blocks(const uint8_t* const* units, const int8_t* activations, int64_t pairs,
                             void* sums) {
    const uint8_t *first = units[0], *second = units[1], *third = units[2];
    static_assert(bits == 4 || bits == 8);
    if constexpr (bits == 4) {
        DSCONV_PAIRS(DSCONV_LOW, DSCONV_HIGH, 64);
    } else {
        DSCONV_PAIRS(DSCONV_FIRST, DSCONV_SECOND, 128);
    }
}

#undef DSCONV_EACH_SUM
#undef DSCONV_CLEAR
#undef DSCONV_STORE
#undef DSCONV_TOKEN
#undef DSCONV_TOKENS
#undef DSCONV_LOW
#undef DSCONV_HIGH
#undef DSCONV_FIRST
#undef DSCONV_SECOND
#undef DSCONV_BLOCKS
#undef DSCONV_PAIRS

}  // namespace dsconv
