// The matrix kernels compiled for NEON with dot products, whatever the build's own instruction set is.
#include "linear/kernels/kernels.h"

#if defined(__aarch64__)

#include "compile_for.h"

#if defined(__clang__)
DSCONV_COMPILE_FOR("dotprod")
#else
DSCONV_COMPILE_FOR("arch=armv8.2-a+dotprod")
#endif

#include "linear/kernels/lanes_neon.h"
#include "linear/kernels/product.h"

namespace dsconv {
constexpr LinearKernels neon_linear_kernels =
    kernels_on<NeonDotprod>(Isa::neon_dotprod, "neon_dotprod");
}

DSCONV_COMPILE_FOR_ALL

#endif
