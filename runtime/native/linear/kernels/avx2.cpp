// The matrix kernels compiled for AVX2, whatever the build's own instruction set is.
#include "linear/kernels/kernels.h"

#if defined(__x86_64__)

#include "compile_for.h"

DSCONV_COMPILE_FOR("avx2,fma,f16c")

#include "linear/kernels/lanes_avx2.h"
#include "linear/kernels/product.h"

namespace dsconv {
constexpr LinearKernels avx2_linear_kernels = kernels_on<Avx2<false>>(Isa::avx2, "avx2");
}

DSCONV_COMPILE_FOR_ALL

#endif
