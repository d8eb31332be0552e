// The matrix kernels compiled for NEON with dot products, whatever the build's own instruction set is.
#include "linear/geometry.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "linear/kernels/lanes_neon.h"

#include "linear/kernels/product.h"
#include "linear/kernels/quantize.h"

namespace dsconv {
static const LinearKernels kernels{Isa::neon_dotprod, "neon_dotprod", ActivationLayout::quads,
                                   0, &Quantizer<NeonDotprod>::run, &Linear<NeonDotprod>::run};
}  // namespace dsconv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dsconv {
extern const LinearKernels* const neon_linear_kernels = &kernels;
}

#else

namespace dsconv {
extern const LinearKernels* const neon_linear_kernels = nullptr;
}

#endif
