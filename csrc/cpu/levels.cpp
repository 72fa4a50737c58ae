#include "levels.h"

#include <algorithm>
#include <atomic>

namespace lad {

namespace {

std::atomic<int> forced{-1};

}  // namespace

Level best_level() {
#if defined(__x86_64__)
    static const Level best = [] {
        const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                                __builtin_cpu_supports("avx512dq");
        if (has_avx512) return __builtin_cpu_supports("avx512vnni") ? AVX512_VNNI : AVX512;
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? AVX2 : BASELINE;
    }();
    return best;
#else
    return BASELINE;
#endif
}

Level level() {
    const int wanted = forced.load(std::memory_order_relaxed);
    return wanted < 0 ? best_level() : static_cast<Level>(std::min<int>(wanted, best_level()));
}

Level force_level(int wanted) {
    forced.store(wanted, std::memory_order_relaxed);
    return level();
}

}  // namespace lad
