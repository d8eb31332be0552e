// Exact sums of codes * activations in the tiles of AMX: 16 tokens x two blocks of rows.
//
// Written in assembly: so the compiler needs no support for the tiles, and cannot move the writes
// of what they read past them.
#pragma once

#include <cstdint>

namespace dsconv {
namespace amx {

constexpr int64_t tile_rows = 16;  // tokens of a tile of activations
constexpr int64_t tile_sums = tile_rows * 16;

// What LDTILECFG reads.
struct TileConfiguration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfiguration) == 64);

// Until the end of its life this thread's tiles are: 0 and 1 sums, 2 and 3 activations, 4 to 7 codes,
// of `inputs` (64 or 32) each.
class Tiles {
  public:
    explicit Tiles(int64_t inputs) {
        TileConfiguration configuration;
        for (int i = 0; i < 8; i++) {
            configuration.row_bytes[i] = i == 2 || i == 3 ? static_cast<uint16_t>(inputs) : 64;
            configuration.rows[i] = i < 4 ? tile_rows : static_cast<uint8_t>(inputs / 4);
        }
        asm volatile("ldtilecfg %0" : : "m"(configuration));
    }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    // Keeps the codes of two blocks, for one or two steps of inputs: [quad][row][4].
    static void hold(const int8_t* codes0, const int8_t* codes1, bool two_steps) {
        asm volatile(
            "tileloadd (%[codes0], %[row], 1), %%tmm4\n"
            "tileloadd (%[codes1], %[row], 1), %%tmm6\n"
            :
            : [codes0] "r"(codes0), [codes1] "r"(codes1), [row] "r"(row_bytes)
            : "memory");
        if (!two_steps) return;
        asm volatile(
            "tileloadd 1024(%[codes0], %[row], 1), %%tmm5\n"
            "tileloadd 1024(%[codes1], %[row], 1), %%tmm7\n"
            :
            : [codes0] "r"(codes0), [codes1] "r"(codes1), [row] "r"(row_bytes)
            : "memory");
    }

    // sums [2 blocks][token][row]; x: rows of 64 bytes per token, the second step's `next_step`
    // bytes after the first one's (0: there is none).
    static void multiply(const int8_t* x, int64_t next_step, int32_t* sums) {
        asm volatile(
            "tilezero %%tmm0\n"
            "tilezero %%tmm1\n"
            "tileloadd (%[x], %[row], 1), %%tmm2\n"
            "tdpbssd %%tmm4, %%tmm2, %%tmm0\n"
            "tdpbssd %%tmm6, %%tmm2, %%tmm1\n"
            :
            : [x] "r"(x), [row] "r"(row_bytes)
            : "memory");
        if (next_step != 0) {
            asm volatile(
                "tileloadd (%[x], %[row], 1), %%tmm3\n"
                "tdpbssd %%tmm5, %%tmm3, %%tmm0\n"
                "tdpbssd %%tmm7, %%tmm3, %%tmm1\n"
                :
                : [x] "r"(x + next_step), [row] "r"(row_bytes)
                : "memory");
        }
        asm volatile(
            "tilestored %%tmm0, (%[sums], %[row], 1)\n"
            "tilestored %%tmm1, 1024(%[sums], %[row], 1)\n"
            :
            : [sums] "r"(sums), [row] "r"(row_bytes)
            : "memory");
    }

  private:
    static constexpr int64_t row_bytes = 64;
};

// The same registers for few tokens: 0 to 3 sums, 4 and 5 activations, 5 to 7 codes.
class FewTiles {
  public:
    // halves: tiles of tokens. With two, sums 2 and 3 and activations 5 are those of
    // the second.
    FewTiles(int64_t inputs, int64_t tokens, int64_t halves) {
        TileConfiguration configuration;
        const auto rows = static_cast<uint8_t>(tokens < tile_rows ? tokens : tile_rows);
        const auto second = static_cast<uint8_t>(tokens - rows);
        const auto bytes = static_cast<uint16_t>(inputs);
        for (int i = 0; i < 8; i++) {
            configuration.row_bytes[i] = i == 4 || (i == 5 && halves == 2) ? bytes : 64;
            configuration.rows[i] = i < 5 ? rows : static_cast<uint8_t>(inputs / 4);
        }
        if (halves == 2) {
            configuration.rows[2] = configuration.rows[3] = configuration.rows[5] = second;
        }
        asm volatile("ldtilecfg %0" : : "m"(configuration));
    }
    ~FewTiles() { asm volatile("tilerelease"); }
    FewTiles(const FewTiles&) = delete;
    FewTiles& operator=(const FewTiles&) = delete;

    template <int count> [[gnu::always_inline]] static inline void clear() {
        asm volatile("tilezero %%tmm%c0" : : "i"(count - 1));
        if constexpr (count > 1) clear<count - 1>();
    }
    template <int tile> [[gnu::always_inline]] static inline void load(const int8_t* from) {
        asm volatile("tileloadd (%[from], %[row], 1), %%tmm%c[tile]"
                     :
                     : [from] "r"(from), [row] "r"(int64_t{64}), [tile] "i"(tile)
                     : "memory");
    }
    template <int sum, int activations, int codes>
    [[gnu::always_inline]] static inline void multiply() {
        asm volatile("tdpbssd %%tmm%c[codes], %%tmm%c[activations], %%tmm%c[sum]"
                     :
                     : [sum] "i"(sum), [activations] "i"(activations), [codes] "i"(codes));
    }
    template <int tile> [[gnu::always_inline]] static inline void store(int32_t* to) {
        asm volatile("tilestored %%tmm%c[tile], (%[to], %[row], 1)"
                     :
                     : [to] "r"(to), [row] "r"(int64_t{64}), [tile] "i"(tile)
                     : "memory");
    }
};

}  // namespace amx
}  // namespace dsconv
