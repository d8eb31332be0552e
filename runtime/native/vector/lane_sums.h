// The one order in which the lanes of a vector are added, whatever the instruction set.
#pragma once

namespace dsconv {

// lane: 16 values. Halves are folded onto each other, as vector units do it best.
inline float sum_of_lanes(const float* lane) {
    float folded[8];
    for (int i = 0; i < 8; ++i) folded[i] = lane[i] + lane[i + 8];
    for (int width = 4; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) folded[i] += folded[i + width];
    }
    return folded[0];
}

}  // namespace dsconv
