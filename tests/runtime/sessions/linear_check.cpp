// All matrix kernels that run here against the portable ones, bit for bit, on buffers of the exact
// size: for sanitizers, and for processors that are emulated. tests/runtime/sessions/test_native_sanitizers.py
// compiles and runs it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "linear/linear.h"

using namespace dsconv;

namespace {

uint32_t state = 1;

uint32_t random_bits() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

struct Buffer {
    explicit Buffer(size_t size)
        : bytes(static_cast<uint8_t*>(::operator new(size, std::align_val_t{64}))), count(size) {}
    ~Buffer() { ::operator delete(bytes, std::align_val_t{64}); }
    Buffer(const Buffer&) = delete;
    uint8_t* bytes;
    size_t count;
};

// tokens x rows; 0x7f in memory that nobody writes shows up as a difference.
std::vector<float> product(const LinearKernels& kernels, const LinearView& view,
                           Precision precision, const std::vector<float>& x, int64_t tokens) {
    const ActivationShape shape = activation_shape(kernels, view, tokens, precision);
    Buffer workspace(activation_bytes(shape));
    std::memset(workspace.bytes, 0x7f, workspace.count);
    const Activations activations = place_activations(shape, workspace.bytes);
    kernels.quantize(x.data(), view.cols, activations, 0, activation_tiles(shape));
    std::vector<float> out(static_cast<size_t>(tokens * view.rows));
    Buffer scratch(kernels.scratch_bytes);
    std::memset(scratch.bytes, 0x7f, scratch.count);
    kernels.linear(view, activations, out.data(), view.rows, 0, linear_blocks_of(view), Epilogue{},
                   scratch.bytes);
    return out;
}

int differences(LinearView view, Precision precision, int64_t tokens) {
    Buffer weights(linear_bytes(view));
    // Halves below 2: sums stay finite.
    for (size_t i = 0; i < weights.count; i++) {
        weights.bytes[i] = static_cast<uint8_t>(random_bits() & 0x3f);
    }
    view.data = weights.bytes;
    std::vector<float> x(static_cast<size_t>(tokens * view.cols));
    for (float& value : x) {
        value = (static_cast<float>(random_bits()) * 0x1p-24f - 0.5f) *
                (random_bits() % 50 == 0 ? 100.0f : 1.0f);
    }
    std::vector<float> row(static_cast<size_t>(view.cols));
    dequantize_row(view, view.rows - 1, row.data());
    const std::vector<float> expected =
        product(*linear_kernels(Isa::scalar), view, precision, x, tokens);
    int different = 0;
    for (Isa isa : {Isa::avx2, Isa::avx_vnni, Isa::avx512_vnni, Isa::amx_int8,
                    Isa::neon_dotprod}) {
        const LinearKernels* kernels = linear_kernels(isa);
        if (!kernels) continue;
        const std::vector<float> got = product(*kernels, view, precision, x, tokens);
        if (std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0) continue;
        std::printf("%s differs: kind %u, %lld x %lld, groups of %lld, zeros %d, precision %u, "
                    "%lld tokens\n", kernels->name, static_cast<unsigned>(view.kind),
                    static_cast<long long>(view.rows), static_cast<long long>(view.cols),
                    static_cast<long long>(view.group_size), view.zero_points,
                    static_cast<unsigned>(precision), static_cast<long long>(tokens));
        different++;
    }
    return different;
}

}  // namespace

int main() {
    std::printf("kernels: %s\n", best_linear_kernels().name);
    int different = 0;
    for (auto [rows, cols] : {std::pair<int64_t, int64_t>{40, 288}, {17, 90}, {1, 1}, {16, 1100}}) {
        for (Precision precision : {Precision::int8, Precision::mixed, Precision::int16}) {
            for (int64_t tokens : {1, 2, 3, 7, 8, 13, 37, 300}) {
                for (LinearKind kind : {LinearKind::scale_min3, LinearKind::scale_min4,
                                        LinearKind::scale_min5, LinearKind::scale_min6,
                                        LinearKind::float16, LinearKind::bfloat16}) {
                    different += differences({kind, rows, cols, 0, false, nullptr}, precision, tokens);
                }
                for (LinearKind kind : {LinearKind::int4, LinearKind::int8}) {
                    for (int64_t group : {0, 16, 32, 48, 128}) {
                        for (bool zeros : {false, true}) {
                            different += differences({kind, rows, cols, group, zeros, nullptr},
                                                     precision, tokens);
                        }
                    }
                }
            }
        }
    }
    std::printf("%d differences\n", different);
    return different != 0;
}
