#include "vector/kernels.h"

namespace dsconv {

const VectorKernels* vector_kernels(Isa isa) {
    switch (isa) {
        case Isa::scalar: return &scalar_vector_kernels;
#if defined(__x86_64__) || defined(_M_X64)
        case Isa::avx2:
        case Isa::avx_vnni: return &avx2_vector_kernels;
        case Isa::avx512_vnni:
        case Isa::amx_int8: return &avx512_vector_kernels;
#elif defined(__aarch64__) || defined(_M_ARM64)
        case Isa::neon_dotprod: return &neon_vector_kernels;
#endif
        default: return nullptr;
    }
}

}  // namespace dsconv
