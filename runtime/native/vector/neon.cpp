// The vector kernels for 64-bit ARM, where NEON is always there.
#include "vector/kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#include "vector/lanes_neon.h"
#include "vector/kernels_impl.h"

namespace dsconv {
constexpr VectorKernels neon_vector_kernels = kernels_of_this_isa;
}

#endif
