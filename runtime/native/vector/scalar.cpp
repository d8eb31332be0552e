// The portable vector kernels.
#include "vector/lanes_scalar.h"
#include "vector/kernels_impl.h"

namespace dsconv {
constexpr VectorKernels scalar_vector_kernels = kernels_of_this_isa;
}
