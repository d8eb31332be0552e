// The matrix kernels compiled for AVX2, whatever the build's own instruction set is.
#include "linear/geometry.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "linear/kernels/lanes_avx2.h"

#include "linear/kernels/product.h"
#include "linear/kernels/quantize.h"

namespace dsconv {
static const LinearKernels kernels{Isa::avx2, "avx2", ActivationLayout::quads,
                                   0, &Quantizer<Avx2<false>>::run, &Linear<Avx2<false>>::run};
}  // namespace dsconv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dsconv {
extern const LinearKernels* const avx2_linear_kernels = &kernels;
}

#else

namespace dsconv {
extern const LinearKernels* const avx2_linear_kernels = nullptr;
}

#endif
