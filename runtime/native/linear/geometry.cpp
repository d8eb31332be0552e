#include "linear/geometry.h"

namespace dsconv {
namespace {

bool integer_geometry(const LinearView& view, int bits, LinearGeometry& geometry) {
    int64_t size = view.group_size == 0 ? view.cols : view.group_size;
    if (size < 1 || size > max_group_size) return false;
    if (view.group_size != 0 && view.group_size % 16 != 0) return false;
    int64_t rest = view.cols % size;
    geometry.bits = bits;
    geometry.groups = view.cols / size + (rest > 0);
    geometry.group_width = round_up(size, 8);
    geometry.last_width = rest > 0 ? round_up(rest, 8) : geometry.group_width;
    geometry.super_groups = geometry.groups;
    geometry.padded_cols = (geometry.groups - 1) * geometry.group_width + geometry.last_width;
    geometry.parameter_bytes = 2 * block_rows + (view.zero_points ? block_rows * bits / 8 : 0);
    return true;
}

void scale_min_geometry(const LinearView& view, int bits, LinearGeometry& geometry) {
    geometry.bits = bits;
    geometry.scale_min = true;
    geometry.groups = (view.cols + 31) / 32;
    geometry.group_width = geometry.last_width = 32;
    // Equal parts of at least 8 groups, as in quant/scale_min.py.
    int64_t parts = geometry.groups / 8 > 1 ? geometry.groups / 8 : 1;
    geometry.super_groups = (geometry.groups + parts - 1) / parts;
    geometry.padded_cols = geometry.groups * 32;
    geometry.parameter_bytes = block_rows + block_rows / 2;
}

}  // namespace

bool linear_geometry(const LinearView& view, LinearGeometry& geometry) {
    if (view.rows < 1 || view.rows > max_dimension) return false;
    if (view.cols < 1 || view.cols > max_dimension) return false;
    geometry = LinearGeometry{};
    switch (view.kind) {
        case LinearKind::int4:
        case LinearKind::int8:
            if (!integer_geometry(view, static_cast<int>(view.kind), geometry)) return false;
            break;
        case LinearKind::scale_min3:
        case LinearKind::scale_min4:
        case LinearKind::scale_min5:
        case LinearKind::scale_min6:
            scale_min_geometry(view, static_cast<int>(view.kind) - 16, geometry);
            break;
        case LinearKind::float16:
        case LinearKind::bfloat16:
            geometry.bits = 16;
            geometry.padded_cols = view.cols;
            break;
        default:
            return false;
    }
    int64_t supers = geometry.scale_min
        ? (geometry.groups + geometry.super_groups - 1) / geometry.super_groups : 0;
    geometry.block_bytes = round_up(
        geometry.code_bytes(geometry.padded_cols) + geometry.groups * geometry.parameter_bytes +
            supers * 4 * block_rows,
        vector_bytes);
    return true;
}

int64_t linear_blocks_of(const LinearView& view) {
    return (view.rows + block_rows - 1) / block_rows;
}

uint64_t linear_block_bytes(const LinearView& view) {
    LinearGeometry geometry;
    return linear_geometry(view, geometry) ? static_cast<uint64_t>(geometry.block_bytes) : 0;
}

uint64_t linear_bytes(const LinearView& view) {
    // Both factors are bounded: at most 2^27 blocks of less than 2^38 bytes need 65 bits.
    uint64_t block = linear_block_bytes(view);
    uint64_t blocks = block == 0 ? 0 : static_cast<uint64_t>(linear_blocks_of(view));
    return blocks != 0 && block > UINT64_MAX / blocks ? 0 : block * blocks;
}

}  // namespace dsconv
