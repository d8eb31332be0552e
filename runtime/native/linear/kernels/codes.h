// Codes of a unit (32 inputs of 16 rows) out of their bit planes, two quads at a time.
//
// L is the set of lanes of an instruction set (lanes_*.h).
#pragma once

#include <cstdint>

namespace dsconv {

template <class L, int bits> struct UnitCodes;

// Units of 4 and 8 bits are uniform: a pair of quads may also be addressed as pair 0 further on.
template <class L> struct UnitCodes<L, 4> {
    template <int pair>
    static void load(const uint8_t* unit, typename L::Codes& first, typename L::Codes& second) {
        auto v = L::load_codes(unit + 64 * pair);
        first = L::template field<0, 15>(v);
        second = L::template field<4, 15>(v);
    }
};

template <class L> struct UnitCodes<L, 8> {
    template <int pair>
    static void load(const uint8_t* unit, typename L::Codes& first, typename L::Codes& second) {
        first = L::load_codes(unit + 128 * pair);
        second = L::load_codes(unit + 128 * pair + 64);
    }
};

template <class L> struct UnitCodes<L, 3> {
    template <int pair>
    static void load(const uint8_t* unit, typename L::Codes& first, typename L::Codes& second) {
        auto low = L::load_codes(unit + 64 * (pair / 2));
        auto high = L::load_codes(unit + 128);
        constexpr int shift = 4 * (pair % 2);
        first = L::either(L::template field<shift, 3>(low),
                          L::template field<2 * pair - 2, 4>(high));
        second = L::either(L::template field<shift + 2, 3>(low),
                           L::template field<2 * pair - 1, 4>(high));
    }
};

template <class L> struct UnitCodes<L, 5> {
    template <int pair>
    static void load(const uint8_t* unit, typename L::Codes& first, typename L::Codes& second) {
        auto low = L::load_codes(unit + 64 * pair);
        auto high = L::load_codes(unit + 256);
        first = L::either(L::template field<0, 15>(low),
                          L::template field<2 * pair - 4, 16>(high));
        second = L::either(L::template field<4, 15>(low),
                           L::template field<2 * pair - 3, 16>(high));
    }
};

template <class L> struct UnitCodes<L, 6> {
    template <int pair>
    static void load(const uint8_t* unit, typename L::Codes& first, typename L::Codes& second) {
        auto low = L::load_codes(unit + 64 * pair);
        auto high = L::load_codes(unit + 256 + 64 * (pair / 2));
        constexpr int shift = 4 * (pair % 2) - 4;
        first = L::either(L::template field<0, 15>(low), L::template field<shift, 48>(high));
        second = L::either(L::template field<4, 15>(low), L::template field<shift + 2, 48>(high));
    }
};

}  // namespace dsconv
