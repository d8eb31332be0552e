// The matrix kernels compiled for AVX-512 with VNNI, whatever the build's own instruction set is.
#include "linear/geometry.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

#include "linear/kernels/lanes_avx512.h"

#include "linear/kernels/product.h"
#include "linear/kernels/quantize.h"

namespace dsconv {
static const LinearKernels kernels{Isa::avx512_vnni, "avx512_vnni", ActivationLayout::quads,
                                   0, &Quantizer<Avx512Vnni>::run, &Linear<Avx512Vnni>::run};
}  // namespace dsconv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dsconv {
extern const LinearKernels* const avx512_linear_kernels = &kernels;
}

#else

namespace dsconv {
extern const LinearKernels* const avx512_linear_kernels = nullptr;
}

#endif
