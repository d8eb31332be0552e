// The matrix kernels compiled for AVX2 with AVX-VNNI, whatever the build's own instruction set is.
#include "linear/kernels/kernels.h"

#if defined(DSCONV_AVX_VNNI)

#include "compile_for.h"

DSCONV_COMPILE_FOR("avx2,avxvnni,fma,f16c")

#include "linear/kernels/lanes_avx2.h"
#include "linear/kernels/product.h"

namespace dsconv {
constexpr LinearKernels avx_vnni_linear_kernels =
    kernels_on<Avx2<true>>(Isa::avx_vnni, "avx_vnni");
}

DSCONV_COMPILE_FOR_ALL

#endif
