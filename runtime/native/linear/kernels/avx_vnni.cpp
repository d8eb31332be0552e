// The matrix kernels compiled for AVX2 with AVX-VNNI, whatever the build's own instruction set is.
#include "linear/geometry.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)

#include <immintrin.h>

#define DSCONV_AVX_VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avxvnni,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,avxvnni,fma,f16c")
#endif

#include "linear/kernels/lanes_avx2.h"

#include "linear/kernels/product.h"
#include "linear/kernels/quantize.h"

namespace dsconv {
static const LinearKernels kernels{Isa::avx_vnni, "avx_vnni", ActivationLayout::quads,
                                   0, &Quantizer<Avx2<true>>::run, &Linear<Avx2<true>>::run};
}  // namespace dsconv

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dsconv {
extern const LinearKernels* const avx_vnni_linear_kernels = &kernels;
}

#else

namespace dsconv {
extern const LinearKernels* const avx_vnni_linear_kernels = nullptr;
}

#endif
