// The vector kernels for 64-bit ARM, where NEON is always there.
#include "vector_kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#include "lanes_neon.h"
#include "vector_kernels_impl.h"

namespace dsconv {
extern const VectorKernels* const neon_vector_kernels = &kernels_of_this_isa;
}

#else

namespace dsconv {
extern const VectorKernels* const neon_vector_kernels = nullptr;
}

#endif
