// Compiles the file named by LAD_BODY once per instruction level, each in its own namespace; define LAD_BODY, then include this.
// A body uses no templates of the standard library: the linker would keep one copy for all levels, whatever it was compiled for.
// No level contracts a product and a sum into one rounding (-ffp-contract=off), so all of them give the same bits.

// LAD_LEVEL is the level a body is compiled for, where it names instructions itself.

#define LAD_LEVEL 0
namespace lad::baseline {
#include "lanes_body.h"
#include LAD_BODY
}  // namespace lad::baseline
#undef LAD_LEVEL

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LAD_LEVEL 1
namespace lad::avx2 {
#include "lanes_body.h"
#include LAD_BODY
}  // namespace lad::avx2
#undef LAD_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
#define LAD_LEVEL 2
namespace lad::avx512 {
#include "lanes_body.h"
#include LAD_BODY
}  // namespace lad::avx512
#undef LAD_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// The function of the level in use.
#define LAD_AT_LEVEL(...)                                     \
    (lad::level() >= lad::AVX512 ? lad::avx512::__VA_ARGS__   \
     : lad::level() == lad::AVX2 ? lad::avx2::__VA_ARGS__     \
                                 : lad::baseline::__VA_ARGS__)

#else

#define LAD_AT_LEVEL(...) lad::baseline::__VA_ARGS__

#endif
