// Which kernels this build has and this CPU can run.
#include <initializer_list>

#include "linear/linear.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace dsconv {

extern const LinearKernels* const scalar_linear_kernels;
extern const LinearKernels* const avx2_linear_kernels;
extern const LinearKernels* const avx_vnni_linear_kernels;
extern const LinearKernels* const avx512_linear_kernels;
extern const LinearKernels* const neon_linear_kernels;
extern const LinearKernels* const amx_linear_kernels;

namespace {

#if defined(__x86_64__)

// The operating system saves these registers too: what __builtin_cpu_supports asks as well.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512_vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

// Linux gives the tiles' registers only to processes that ask for them.
bool has_amx_int8() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) &&
           (d >> 25 & 1) && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

#else

bool has_avx2() { return false; }
bool has_avx_vnni() { return false; }
bool has_avx512_vnni() { return false; }
bool has_amx_int8() { return false; }

#endif

bool has_neon_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__aarch64__) && defined(__APPLE__)
    return true;  // every Apple processor that runs arm64 programs
#else
    return false;
#endif
}

}  // namespace

const LinearKernels* linear_kernels(Isa isa) {
    switch (isa) {
        case Isa::scalar: return scalar_linear_kernels;
        case Isa::avx2: return has_avx2() ? avx2_linear_kernels : nullptr;
        case Isa::avx_vnni: return has_avx_vnni() ? avx_vnni_linear_kernels : nullptr;
        case Isa::avx512_vnni: return has_avx512_vnni() ? avx512_linear_kernels : nullptr;
        case Isa::neon_dotprod: return has_neon_dotprod() ? neon_linear_kernels : nullptr;
        case Isa::amx_int8: return has_amx_int8() ? amx_linear_kernels : nullptr;
    }
    return nullptr;
}

const LinearKernels& best_linear_kernels() {
    for (Isa isa : {Isa::amx_int8, Isa::avx512_vnni, Isa::neon_dotprod, Isa::avx_vnni, Isa::avx2}) {
        if (const LinearKernels* kernels = linear_kernels(isa)) return *kernels;
    }
    return *scalar_linear_kernels;
}

}  // namespace dsconv
