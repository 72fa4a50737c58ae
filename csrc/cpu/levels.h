// Which instructions the vector loops use: the best this processor has, or a lower level a test asks for.
#pragma once

namespace lad {

// Bodies are compiled once per level (each_level.h) and give the same bits on every one; fused products need AVX2, which includes FMA here.
// AVX512_VNNI adds sums of byte products; what needs none is compiled for AVX512 alone.
enum Level : int { BASELINE = 0, AVX2 = 1, AVX512 = 2, AVX512_VNNI = 3 };

// The best level of this processor and of this build.
Level best_level();

// The level in use: the best one unless a lower one is forced.
Level level();

// Use `wanted` from now on, at most the best level; a negative number goes back to the best. Returns the level in use.
Level force_level(int wanted);

}  // namespace lad
