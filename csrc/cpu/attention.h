// The whole of kernels/packed_attention: scores of a few rows stay in the first-level cache from the product that makes them to the one
// that uses them.
#pragma once

#include <cstdint>

#include "rows.h"

namespace lad {

// Whether the level in use fuses a product and a sum, without which the library's products are the faster ones.
bool attends();

// fp32 numbers that one sequence's keys and values take while they are in use.
int64_t attention_room(int64_t positions, int64_t G, int64_t K);

// qkv and tables as rotate_and_stack takes them; lengths: keys seen of each sequence, or null; room: B times attention_room; y: [B, T, H, K]
// contiguous, rounded to T. Only where attends().
template <typename T>
void packed_attention(Heads<T> qkv, Rows<const float> cos, Rows<const float> sin, const int64_t* lengths, int64_t B, int64_t positions,
                      int64_t H, int64_t G, int64_t K, float* room, T* y, int threads);

}  // namespace lad
