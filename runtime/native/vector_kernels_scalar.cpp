// The portable vector kernels.
#include "lanes_scalar.h"
#include "vector_kernels_impl.h"

namespace dsconv {
extern const VectorKernels* const scalar_vector_kernels = &kernels_of_this_isa;
}
