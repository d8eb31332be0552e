// The matrix kernels compiled for AVX-512 with VNNI, whatever the build's own instruction set is.
#include "linear/kernels/kernels.h"

#if defined(__x86_64__)

#include "compile_for.h"

DSCONV_COMPILE_FOR(DSCONV_AVX512_VNNI)

#include "linear/kernels/lanes_avx512.h"
#include "linear/kernels/product.h"

namespace dsconv {
constexpr LinearKernels avx512_linear_kernels =
    kernels_on<Avx512Vnni>(Isa::avx512_vnni, "avx512_vnni");
}

DSCONV_COMPILE_FOR_ALL

#endif
