// Single rows of a packed matrix as floats.
#include <cmath>

#include "half.h"
#include "linear/geometry.h"

namespace dsconv {
namespace {

// One row (lane) of a block.
struct PackedRow {
    const uint8_t* block;
    int64_t lane;

    int bits_of_plane(const uint8_t* plane, int width, int64_t input) const {
        int64_t quads = 8 / width, quad = input / 4;
        uint8_t byte = plane[quad / quads * vector_bytes + lane * 4 + input % 4];
        return byte >> quad % quads * width & ((1 << width) - 1);
    }

    // Of an input of a group of `width` inputs whose codes start at `codes`.
    int code(const uint8_t* codes, int bits, int64_t width, int64_t input) const {
        int low = bits == 8 ? 8 : bits == 3 ? 2 : 4;
        int value = bits_of_plane(codes, low, input);
        if (bits == low) return value;
        const uint8_t* high = codes + width * low * block_rows / 8;
        return value | bits_of_plane(high, bits - low, input) << low;
    }

    float half(const uint8_t* values) const {
        return half_to_float(Half{static_cast<uint16_t>(values[2 * lane] | values[2 * lane + 1] << 8)});
    }

    int nibble(const uint8_t* values) const {
        return lane < 8 ? values[lane] & 15 : values[lane - 8] >> 4;
    }
};

void integer_row(const LinearView& view, const LinearGeometry& geometry, PackedRow row, float* out) {
    const uint8_t* data = row.block;
    int64_t input = 0;
    for (int64_t g = 0; g < geometry.groups; g++) {
        int64_t width = g + 1 < geometry.groups ? geometry.group_width : geometry.last_width;
        const uint8_t* parameters = data + geometry.code_bytes(width);
        const uint8_t* zeros = parameters + 2 * block_rows;
        float scale = row.half(parameters);
        int zero = 1 << (geometry.bits - 1);
        if (view.zero_points) zero = geometry.bits == 4 ? row.nibble(zeros) : zeros[row.lane];
        for (int64_t i = 0; i < width && input < view.cols; i++, input++) {
            out[input] = scale * static_cast<float>(row.code(data, geometry.bits, width, i) - zero);
        }
        data = parameters + geometry.parameter_bytes;
    }
}

void scale_min_row(const LinearView& view, const LinearGeometry& geometry, PackedRow row,
                   float* out) {
    const uint8_t* data = row.block;
    float scale_unit = 0, minimum_unit = 0;
    for (int64_t g = 0; g < geometry.groups; g++) {
        if (g % geometry.super_groups == 0) {
            scale_unit = row.half(data);
            minimum_unit = row.half(data + 2 * block_rows);
            data += 4 * block_rows;
        }
        const uint8_t* parameters = data + geometry.code_bytes(32);
        int low = parameters[row.lane];
        int minimum_step = low >> 6 | row.nibble(parameters + block_rows) << 2;
        float scale = scale_unit * static_cast<float>(low & 63);
        float minimum = minimum_unit * static_cast<float>(minimum_step);
        for (int64_t i = 0; i < 32 && g * 32 + i < view.cols; i++) {
            float product = scale * static_cast<float>(row.code(data, geometry.bits, 32, i));
            out[g * 32 + i] = product - minimum;
        }
        data = parameters + geometry.parameter_bytes;
    }
}

}  // namespace

void dequantize_row(const LinearView& view, int64_t row, float* out) {
    LinearGeometry geometry;
    if (!linear_geometry(view, geometry) || row < 0 || row >= view.rows) return;
    PackedRow packed{view.data + row / block_rows * geometry.block_bytes, row % block_rows};
    if (geometry.scale_min) return scale_min_row(view, geometry, packed, out);
    if (geometry.bits != 16) return integer_row(view, geometry, packed, out);
    for (int64_t i = 0; i < view.cols; i++) {
        const uint8_t* p = packed.block + (i * block_rows + packed.lane) * 2;
        auto bits = static_cast<uint16_t>(p[0] | p[1] << 8);
        out[i] = view.kind == LinearKind::float16 ? half_to_float(Half{bits})
                                                  : bfloat16_to_float(BFloat16{bits});
    }
}

}  // namespace dsconv
