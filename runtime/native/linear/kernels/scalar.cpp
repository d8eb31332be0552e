#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-slp-vectorize")  // GCC 12 fails on the kernel with it
#endif

#include "linear/kernels/lanes_scalar.h"

#include "linear/kernels/product.h"
#include "linear/kernels/quantize.h"

namespace dsconv {

static const LinearKernels kernels{Isa::scalar, "scalar", ActivationLayout::quads,
                                   0, &Quantizer<Scalar>::run, &Linear<Scalar>::run};
extern const LinearKernels* const scalar_linear_kernels = &kernels;

}  // namespace dsconv
