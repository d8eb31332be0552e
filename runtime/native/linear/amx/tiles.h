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

}  // namespace amx
}  // namespace dsconv
