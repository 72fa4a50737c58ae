// One LAD step after its prediction; contract of kernels/update/reference.py and buffers.py.
#pragma once

#include <cstdint>

#include "views.h"

namespace lad {

// [B, R] arrays share one distance between rows.
struct UpdateBuffers {
    int64_t stride;
    int64_t *answer, *before, *predicted, *shown, *first_set, *last_changed;
    bool *is_open, *was_shown, *retained;
    float* confidence;
    // [B], contiguous or not by their strides.
    Column<int64_t> answer_start, answer_length, seeds, steps, evaluations;
    Rows<int64_t> repeats, nfe, row_steps;
    Column<bool> early_stop;
    Rows<bool> done, acted, stopped_early;
    Rows<int64_t> ids;
    int64_t T;
    const int64_t* eos_ids;
    int64_t eos_count;
    int64_t* step;
};

struct UpdateRules {
    Column<bool> redraws, is_weighted, is_clusters, is_bernoulli, is_lowest, retains, transfers, locks, is_permanent, splits, by_confidence,
        delays_eos;
    Column<float> noise_clip, threshold;
};

// whole [S, 9, B], probability [S, B], contiguous.
struct UpdateTables {
    const int64_t* whole;
    const double* probability;
    int64_t S;
};

// Rules that rows follow, as bits.
enum UsedRules : unsigned {
    USES_DRAWS = 1,
    USES_CONFIDENCE = 2,
    USES_SPANS = 4,
    USES_RETAIN = 8,
    USES_TRANSFER = 16,
    USES_SPLIT = 32,
    USES_THRESHOLD = 64
};

// The prediction, [B, R] of any strides.
struct Prediction {
    const int64_t* token;
    int64_t token_row, token_column;
    const float* confidence;
    int64_t confidence_row, confidence_column;
};

void update(const UpdateBuffers& buffers, const UpdateRules& rules, const UpdateTables& tables, const Prediction& prediction, int64_t B,
            int64_t R, int64_t mask_id, unsigned used);

}  // namespace lad
