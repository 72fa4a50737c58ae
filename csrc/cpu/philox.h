// Philox4x32-10 (Salmon et al. 2011): the C++ twin of kernels/random/reference.py, equal bit for bit.
#pragma once

#include <cstdint>

namespace lad {

inline uint32_t philox_first_word(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = uint64_t{0xD2511F53u} * c0, second = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(second);
        c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(first);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

// 23 bits and a half are exact in fp32, so the result is never 0 and never 1.
inline float uniform_at(int64_t seed, int64_t position, int64_t step, int64_t purpose) {
    const uint32_t word = philox_first_word(static_cast<uint32_t>(position), static_cast<uint32_t>(step),
                                            static_cast<uint32_t>(purpose), 0, static_cast<uint64_t>(seed));
    return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

}  // namespace lad
