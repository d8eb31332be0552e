// Code for an instruction set that is not the build's own: between DSCONV_COMPILE_FOR("avx2,…") and
// DSCONV_COMPILE_FOR_ALL functions are compiled for it. What instruction sets share must be included
// before: here is what the standard library adds to it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#endif

// What two files are compiled for.
#define DSCONV_AVX512_VNNI "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"

#define DSCONV_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define DSCONV_COMPILE_FOR(features) \
    DSCONV_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DSCONV_COMPILE_FOR_ALL DSCONV_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define DSCONV_COMPILE_FOR(features) \
    DSCONV_PRAGMA(GCC push_options) DSCONV_PRAGMA(GCC target(features))
#define DSCONV_COMPILE_FOR_ALL DSCONV_PRAGMA(GCC pop_options)
#else  // MSVC takes every intrinsic everywhere
#define DSCONV_COMPILE_FOR(features)
#define DSCONV_COMPILE_FOR_ALL
#endif
