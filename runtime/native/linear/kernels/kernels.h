// The matrix kernels of each instruction set, as far as this build has them.
#pragma once

#include "linear/geometry.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)
#define DSCONV_AVX_VNNI
#endif
#if defined(__x86_64__) && defined(__linux__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)  // their assemblers know AMX
#define DSCONV_AMX
#endif

namespace dsconv {

extern const LinearKernels scalar_linear_kernels;
extern const LinearKernels avx2_linear_kernels;
extern const LinearKernels avx_vnni_linear_kernels;
extern const LinearKernels avx512_linear_kernels;
extern const LinearKernels amx_linear_kernels;
extern const LinearKernels neon_linear_kernels;

}  // namespace dsconv
