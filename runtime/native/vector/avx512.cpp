// The vector kernels compiled for AVX-512, whatever the build's own instruction set is.
#include "vector/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "compile_for.h"
#include "vector/lane_sums.h"

DSCONV_COMPILE_FOR("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "vector/lanes_avx512.h"
#include "vector/kernels_impl.h"

DSCONV_COMPILE_FOR_ALL

namespace dsconv {
constexpr VectorKernels avx512_vector_kernels = kernels_of_this_isa;
}

#endif
