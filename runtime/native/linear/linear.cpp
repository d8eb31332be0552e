// Which kernels this build has and this CPU can run.
#include "linear/kernels/kernels.h"

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

#if defined(DSCONV_AMX)
// Linux gives the tiles' registers only to processes that ask for them.
bool has_amx_int8() {
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) &&
           (d >> 25 & 1) && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

#endif

#if defined(__aarch64__)

bool has_neon_dotprod() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return true;  // every Apple processor that runs arm64 programs
#else
    return false;
#endif
}

#endif

struct Candidate {
    const LinearKernels& kernels;
    bool (*runs_here)();
};

// The fastest first.
constexpr Candidate candidates[] = {
#if defined(DSCONV_AMX)
    {amx_linear_kernels, has_amx_int8},
#endif
#if defined(__x86_64__)
    {avx512_linear_kernels, has_avx512_vnni},
#endif
#if defined(DSCONV_AVX_VNNI)
    {avx_vnni_linear_kernels, has_avx_vnni},
#endif
#if defined(__x86_64__)
    {avx2_linear_kernels, has_avx2},
#endif
#if defined(__aarch64__)
    {neon_linear_kernels, has_neon_dotprod},
#endif
    {scalar_linear_kernels, [] { return true; }},
};

}  // namespace

const LinearKernels* linear_kernels(Isa isa) {
    for (const Candidate& candidate : candidates) {
        if (candidate.kernels.isa != isa) continue;
        return candidate.runs_here() ? &candidate.kernels : nullptr;
    }
    return nullptr;
}

const LinearKernels& best_linear_kernels() {
    for (const Candidate& candidate : candidates) {
        if (candidate.runs_here()) return candidate.kernels;
    }
    return scalar_linear_kernels;
}

}  // namespace dsconv
