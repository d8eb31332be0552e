#include "vector/kernels.h"

namespace dsconv {

extern const VectorKernels* const scalar_vector_kernels;
extern const VectorKernels* const avx2_vector_kernels;
extern const VectorKernels* const avx512_vector_kernels;
extern const VectorKernels* const neon_vector_kernels;

const VectorKernels* vector_kernels(Isa isa) {
    switch (isa) {
        case Isa::scalar: return scalar_vector_kernels;
        case Isa::avx2:
        case Isa::avx_vnni: return avx2_vector_kernels;
        case Isa::avx512_vnni:
        case Isa::amx_int8: return avx512_vector_kernels;
        case Isa::neon_dotprod: return neon_vector_kernels;
    }
    return nullptr;
}

}  // namespace dsconv
