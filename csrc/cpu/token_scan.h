// Top-k, log-normaliser, filters and draw of a token over rows of logits that arrive whole or in chunks of the vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "views.h"

namespace lad {

// The arguments of kernels/choose_token/reference.py, one entry per row.
struct TokenRule {
    Column<float> uniforms, temperature;
    Column<int64_t> top_k;
    Column<float> top_p;
    Column<bool> drop_crossing, full_confidence;
    Rows<float> bias;
};

// What a scan has seen of one row: `count` candidates in descending order, ties to the lower id, and the mass relative to `top`.
struct RowScan {
    float top;
    double mass;
    int64_t count;
};

class TokenScan {
public:
    // bias_ids: [M]; K: candidates kept, at least every top_k of the rows.
    TokenScan(const TokenRule& rule, const int64_t* bias_ids, int64_t M, int64_t N, int64_t K);

    // Read the logits of ids [first, first + width), each row in one task; chunks come in ascending order, their widths multiples of
    // BLOCK but for the last, so that a row's sums are the same in chunks and whole. T: float, or uint16_t for bfloat16.
    template <typename T>
    void scan(Rows<T> logits, int64_t first, int64_t width, int threads);

    // Draw every row from its candidates.
    void draw(int64_t* token, float* confidence) const;

    // Scan and draw rows of whole logits: K of 0 orders as many ids as a row's filters need; samples_all: unfiltered rows draw in id order.
    template <typename T>
    void choose(Rows<T> logits, int64_t V, bool samples_all, int threads, int64_t* token, float* confidence);

    // Ids whose mass is summed in fp32 before it joins the row's fp64 sum.
    static constexpr int64_t BLOCK = 1024;

private:
    struct Candidate {
        float score;
        int32_t id;
    };
    struct Bias {
        int64_t id, column;
    };

    static bool is_before(const Candidate& a, const Candidate& b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }
    float scale(int64_t row) const;
    bool is_unfiltered(int64_t row) const;
    bool needs_mass(int64_t row) const;
    float least(int64_t row) const;
    template <typename T>
    const float* block(const T* logits, int64_t row, int64_t first, int64_t count, float* scratch) const;
    template <typename T>
    void scan_row(const T* logits, int64_t row, int64_t first, int64_t width, bool sums);
    void insert(int64_t row, float score, int64_t id);
    void draw_row(int64_t row, const Candidate* candidates, int64_t count, double all_mass, int64_t* token, float* confidence) const;
    template <typename T>
    void draw_in_order(const T* logits, int64_t V, int64_t row, int64_t* token, float* confidence) const;
    template <typename T>
    void draw_nucleus(const T* logits, int64_t V, int64_t row, int64_t* token, float* confidence) const;
    template <typename T>
    void draw_sorted(const T* logits, int64_t V, int64_t row, int64_t* token, float* confidence) const;

    TokenRule rule_;
    std::vector<Bias> biases_;
    int64_t N_, K_;
    std::vector<Candidate> candidates_;
    std::vector<RowScan> rows_;
};

}  // namespace lad
