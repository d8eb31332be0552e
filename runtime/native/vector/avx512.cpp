// The vector kernels compiled for AVX512, whatever the build's own instruction set is.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "half.h"
#include "vector/lane_sums.h"
#include "vector/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "vector/lanes_avx512.h"
#include "vector/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace dsconv {
extern const VectorKernels* const avx512_vector_kernels = &kernels_of_this_isa;
}

#else

namespace dsconv {
extern const VectorKernels* const avx512_vector_kernels = nullptr;
}

#endif
