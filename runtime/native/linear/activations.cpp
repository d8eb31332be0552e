#include "linear/geometry.h"

namespace dsconv {
namespace {

bool holds_floats(LinearKind kind) {
    return kind == LinearKind::float16 || kind == LinearKind::bfloat16;
}

// Hands out parts of the workspace, each on its own cache line; without one it only counts.
struct Arena {
    uint8_t* base;
    size_t used = 0;

    template <class T> T* take(int64_t count) {
        T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
        return p;
    }
};

Activations place(const ActivationShape& shape, Arena& arena) {
    ActivationGeometry geometry(shape);
    Activations x;
    x.shape = shape;
    int64_t values = geometry.code_bytes;
    int64_t groups = geometry.width * geometry.groups;
    if (shape.precision == Precision::float32) {
        x.floats = arena.take<float>(values);
        return x;
    }
    x.codes = arena.take<int8_t>(values);
    if (shape.precision != Precision::int8) x.upper = arena.take<int8_t>(values);
    x.scales = arena.take<float>(groups);
    x.sums = arena.take<int32_t>(groups);
    x.two = arena.take<uint8_t>(geometry.tiles * geometry.units);
    return x;
}

}  // namespace

ActivationShape activation_shape(const LinearKernels& kernels, const LinearView& view,
                                 int64_t tokens, Precision precision) {
    if (holds_floats(view.kind)) return {tokens, view.cols, 32, Precision::float32};
    bool integer = view.kind == LinearKind::int4 || view.kind == LinearKind::int8;
    if (integer && view.group_size % unit_inputs != 0) return {tokens, view.cols, 16, precision};
    bool mixed = precision == Precision::mixed || precision == Precision::own;
    bool wide = mixed && integer && view.group_size % wide_group == 0;
    int64_t from = wide ? kernels.wide_from : kernels.small_from;
    ActivationLayout layout = tokens >= from ? kernels.layout : ActivationLayout::quads;
    return {tokens, view.cols, wide ? wide_group : unit_inputs, precision, layout};
}

size_t activation_bytes(const ActivationShape& shape) {
    Arena arena{nullptr};
    place(shape, arena);
    return arena.used;
}

Activations place_activations(const ActivationShape& shape, void* workspace) {
    Arena arena{static_cast<uint8_t*>(workspace)};
    return place(shape, arena);
}

int64_t activation_tiles(const ActivationShape& shape) { return ActivationGeometry(shape).tiles; }

}  // namespace dsconv
