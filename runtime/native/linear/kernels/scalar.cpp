// The portable matrix kernels.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-slp-vectorize")  // GCC 12 fails on the kernel with it
#endif

#include "linear/kernels/kernels.h"
#include "linear/kernels/lanes_scalar.h"
#include "linear/kernels/product.h"

namespace dsconv {
constexpr LinearKernels scalar_linear_kernels = kernels_on<Scalar>(Isa::scalar, "scalar");
}
