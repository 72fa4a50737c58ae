#include "update.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "draw.h"

namespace lad {

namespace {

// Purposes of kernels/random/reference.py.
constexpr int64_t RENOISE = 1, RETAIN = 2, TRANSFER = 3, EQUAL_PREDICTIONS = 3;

using Flags = std::vector<char>;

struct Numbers {
    int64_t visible, grows, count, keep, clusters, cluster_size, transfer, block_start, block_end;
    double probability;
};

Numbers numbers_at(const UpdateTables& tables, int64_t step, int64_t b, int64_t B) {
    const int64_t row = std::clamp<int64_t>(step, 0, tables.S - 1);
    const int64_t* whole = tables.whole + row * 9 * B + b;
    return {whole[0],     whole[B],     whole[2 * B], whole[3 * B], whole[4 * B], whole[5 * B], whole[6 * B],
            whole[7 * B], whole[8 * B], tables.probability[row * B + b]};
}

// One row at work; columns are answer positions.
class Row {
public:
    Row(int64_t R, unsigned used, int64_t mask_id)
        : R_(R),
          used_(used),
          mask_id_(mask_id),
          open_(size()),
          writable_(size()),
          eos_(size()),
          predicted_(size()),
          after_(size()),
          committed_(size()),
          confidence_(size()),
          pool_(size()),
          chosen_(size()) {}

    void update(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, const Prediction& prediction, int64_t b);

private:
    size_t size() const { return static_cast<size_t>(R_); }
    size_t at(int64_t r) const { return static_cast<size_t>(r); }
    bool uses(unsigned rule) const { return used_ & rule; }

    bool predict(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, const Prediction& prediction, int64_t b);
    void remask(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, int64_t b);
    void retain(const UpdateRules& rules, const Numbers& now, bool* retained, int64_t b);
    bool transfer(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, int64_t b);
    template <typename Key>
    int64_t mark_lowest(const Flags& pool, int64_t count, const Key& key);
    template <typename Mark>
    void over_pools(const UpdateRules& rules, int64_t count, int64_t b, const Mark& mark);
    // A delayed EOS comes behind all other tokens, whose scores are at least 0.
    float score(float value, int64_t r, bool delays_eos) const { return delays_eos && eos_[at(r)] ? -1.0f : value; }

    int64_t R_;
    unsigned used_;
    int64_t mask_id_;
    Flags open_, writable_, eos_;
    std::vector<int64_t> predicted_, after_, committed_;
    std::vector<float> confidence_;
    Flags pool_, chosen_;
    std::vector<Draw> draws_;
    int64_t seed_ = 0, step_ = 0;
};

// Set chosen_ to the min(count, pool) smallest keys inside the pool, ties to the lower index; returns how many.
template <typename Key>
int64_t Row::mark_lowest(const Flags& pool, int64_t count, const Key& key) {
    std::fill(chosen_.begin(), chosen_.end(), 0);
    draws_.clear();
    for (int64_t r = 0; r < R_; ++r) {
        if (!pool[at(r)]) continue;
        const double value = -static_cast<double>(key(r));
        draws_.push_back({std::isnan(value) ? -std::numeric_limits<double>::infinity() : value, r});
    }
    const int64_t drawn = draw_first(draws_, count);
    for (int64_t i = 0; i < drawn; ++i) chosen_[at(draws_[at(i)].index)] = 1;
    return drawn;
}

// Call mark(pool, count) with pool_, or with its text and its EOS apart where the row splits its budget.
template <typename Mark>
void Row::over_pools(const UpdateRules& rules, int64_t count, int64_t b, const Mark& mark) {
    if (!uses(USES_SPLIT) || !rules.splits[b]) return mark(pool_, count);
    Flags text(size()), eos(size());
    int64_t in_text = 0, in_eos = 0;
    for (int64_t r = 0; r < R_; ++r) {
        text[at(r)] = pool_[at(r)] && !eos_[at(r)];
        eos[at(r)] = pool_[at(r)] && eos_[at(r)];
        in_text += text[at(r)];
        in_eos += eos[at(r)];
    }
    const double share = static_cast<double>(count * in_text) / (static_cast<double>(in_text + in_eos) + 1e-5);
    const int64_t for_text = static_cast<int64_t>(std::floor(share));
    mark(text, for_text);
    mark(eos, count - for_text);
}

// Fill open_, writable_, eos_, predicted_ and confidence_; whether the row predicts what it predicted before.
bool Row::predict(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, const Prediction& prediction, int64_t b) {
    const int64_t base = b * buffers.stride;
    const bool transfers = uses(USES_TRANSFER) && rules.transfers[b], locks = uses(USES_RETAIN) && rules.locks[b];
    const int64_t* token = prediction.token + b * prediction.token_row;
    const float* confidence = prediction.confidence + b * prediction.confidence_row;
    bool is_same = true;
    for (int64_t r = 0; r < R_; ++r) {
        const int64_t place = base + r, held = buffers.answer[place];
        const bool in_window = r < now.visible, is_open = buffers.is_open[place] && in_window;
        const bool is_writable = is_open && !(transfers && held != mask_id_) && !(locks && buffers.retained[place]);
        const int64_t predicted = is_writable ? token[r * prediction.token_column] : held;
        open_[at(r)] = is_open;
        writable_[at(r)] = is_writable;
        predicted_[at(r)] = predicted;
        confidence_[at(r)] = is_writable ? confidence[r * prediction.confidence_column] : buffers.confidence[place];
        is_same = is_same && predicted == buffers.predicted[place];
        const int64_t* last_eos = buffers.eos_ids + buffers.eos_count;
        eos_[at(r)] = in_window && std::find(buffers.eos_ids, last_eos, predicted) != last_eos;
    }
    return is_same && !(now.grows > 0);
}

// Fill after_: the prediction with noise put back by the row's rule.
void Row::remask(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, int64_t b) {
    const int64_t base = b * buffers.stride;
    bool* retained = buffers.retained + base;
    const auto is_eligible = [&](int64_t r) { return open_[at(r)] && !(buffers.was_shown[base + r] && rules.is_permanent[b]); };
    const auto mask_chosen = [&] {
        for (int64_t r = 0; r < R_; ++r)
            if (chosen_[at(r)]) after_[at(r)] = mask_id_;
    };
    after_ = predicted_;
    for (int64_t r = 0; r < R_; ++r) pool_[at(r)] = is_eligible(r);
    if (uses(USES_DRAWS) && rules.redraws[b]) {
        const bool is_weighted = rules.is_weighted[b];
        over_pools(rules, now.count, b, [&](const Flags& pool, int64_t count) {
            mark_lowest(pool, count, [&](int64_t r) {
                // Equal weights: a logarithm would order the numbers as they are ordered.
                if (!is_weighted) return -static_cast<double>(uniform_at(seed_, r, step_, RENOISE));
                return -draw_key(std::max(1.0f - confidence_[at(r)], rules.noise_clip[b]), seed_, r, step_, RENOISE);
            });
            mask_chosen();
        });
    }
    if (uses(USES_CONFIDENCE) && rules.is_lowest[b])
        over_pools(rules, now.count, b, [&](const Flags& pool, int64_t count) {
            mark_lowest(pool, count, [&](int64_t r) { return score(confidence_[at(r)], r, rules.delays_eos[b]); });
            mask_chosen();
        });
    if (uses(USES_SPANS) && rules.is_clusters[b]) {
        for (int64_t j = 0; j < std::min(now.clusters, R_); ++j) {
            const double u = static_cast<double>(uniform_at(seed_, j, step_, RENOISE));
            const int64_t centre = static_cast<int64_t>(u * static_cast<double>(now.visible));
            const int64_t start = std::max<int64_t>(0, centre - now.cluster_size / 2), end = std::min(start + now.cluster_size, now.visible);
            for (int64_t r = start; r < std::min(end, R_); ++r)
                if (pool_[at(r)]) after_[at(r)] = mask_id_;
        }
    }
    if (uses(USES_SPANS) && rules.is_bernoulli[b])
        for (int64_t r = 0; r < R_; ++r) {
            const bool is_drawn = static_cast<double>(uniform_at(seed_, r, step_, RENOISE)) < now.probability;
            if (pool_[at(r)] && (is_drawn || (eos_[at(r)] && rules.delays_eos[b]))) after_[at(r)] = mask_id_;
        }
    if (uses(USES_RETAIN) && rules.retains[b]) {
        retain(rules, now, retained, b);
        for (int64_t r = 0; r < R_; ++r)
            if (is_eligible(r) && !retained[r]) after_[at(r)] = mask_id_;
    }
}

// Grow `retained` to now.keep positions, best score first (kernels/update/commit.py: retain).
void Row::retain(const UpdateRules& rules, const Numbers& now, bool* retained, int64_t b) {
    const bool by_confidence = rules.by_confidence[b], delays_eos = rules.delays_eos[b];
    const auto key = [&](int64_t r) {
        return -score(by_confidence ? confidence_[at(r)] : uniform_at(seed_, r, step_, RETAIN), r, delays_eos);
    };
    const int64_t boundary = std::find(eos_.begin(), eos_.end(), 1) - eos_.begin();
    int64_t held = 0, held_before = 0, open = 0, open_before = 0;
    for (int64_t r = 0; r < R_; ++r) {
        held += retained[r];
        held_before += retained[r] && r < boundary;
        open += open_[at(r)];
        open_before += open_[at(r)] && r < boundary;
    }
    const int64_t needed = std::max<int64_t>(0, now.keep - held);
    if (needed == 0) return;
    const auto grow = [&](int64_t first, int64_t last, int64_t count, const auto& by) {
        for (int64_t r = 0; r < R_; ++r) pool_[at(r)] = r >= first && r < last && open_[at(r)] && !retained[r];
        const int64_t grown = mark_lowest(pool_, count, by);
        for (int64_t r = 0; r < R_; ++r)
            if (chosen_[at(r)]) retained[r] = true;
        return grown;
    };
    if (!rules.splits[b]) {
        grow(0, R_, needed, key);
        return;
    }
    const double part = static_cast<double>(now.keep * open_before) / static_cast<double>(std::max<int64_t>(1, open));
    const int64_t share = static_cast<int64_t>(std::nearbyint(part));
    int64_t grown = grow(0, boundary, share - held_before, key);
    grown += grow(boundary, R_, now.keep - share - (held - held_before), key);
    grow(0, R_, needed - grown, [](int64_t r) { return static_cast<float>(r); });
}

// Fill committed_ with the state after this step's budget of a transferring row; whether no position that is read is masked. An end of text
// ends what is read, unless given tokens stand behind it.
bool Row::transfer(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, int64_t b) {
    const int64_t base = b * buffers.stride;
    const bool by_confidence = rules.by_confidence[b], delays_eos = rules.delays_eos[b];
    const auto key = [&](int64_t r) {
        return score(by_confidence ? confidence_[at(r)] : uniform_at(seed_, r, step_, TRANSFER), r, delays_eos);
    };
    const bool has_threshold = uses(USES_THRESHOLD) && rules.threshold[b] < std::numeric_limits<float>::infinity();
    int64_t block_end = now.block_end;
    if (has_threshold) {
        const int64_t first = std::find(writable_.begin(), writable_.end(), 1) - writable_.begin();
        block_end = (first / std::max<int64_t>(1, now.block_end) + 1) * now.block_end;
    }
    for (int64_t r = 0; r < R_; ++r) pool_[at(r)] = writable_[at(r)] && r >= now.block_start && r < block_end;
    mark_lowest(pool_, now.transfer, [&](int64_t r) { return -key(r); });
    if (has_threshold)
        for (int64_t r = 0; r < R_; ++r)
            if (pool_[at(r)] && key(r) >= rules.threshold[b]) chosen_[at(r)] = 1;
    int64_t given_until = 0;
    for (int64_t r = 0; r < R_; ++r) {
        committed_[at(r)] = chosen_[at(r)] ? predicted_[at(r)] : buffers.answer[base + r];
        if (!buffers.is_open[base + r] && r < buffers.answer_length[b]) given_until = r + 1;
    }
    for (int64_t r = 0; r < R_; ++r) {
        const int64_t token = committed_[at(r)];
        if (token == mask_id_ && buffers.is_open[base + r]) return false;
        if (r >= given_until && std::find(buffers.eos_ids, buffers.eos_ids + buffers.eos_count, token) != buffers.eos_ids + buffers.eos_count)
            return true;
    }
    return true;
}

void Row::update(const UpdateBuffers& buffers, const UpdateRules& rules, const Numbers& now, const Prediction& prediction, int64_t b) {
    seed_ = buffers.seeds[b];
    step_ = *buffers.row_steps[b];
    const bool is_same = predict(buffers, rules, now, prediction, b);
    *buffers.repeats[b] = is_same ? *buffers.repeats[b] + 1 : 1;
    remask(buffers, rules, now, b);
    const bool is_last = step_ >= buffers.steps[b] - 1;
    bool stops = buffers.early_stop[b] && *buffers.repeats[b] >= EQUAL_PREDICTIONS;
    if (is_last || stops) after_ = predicted_;
    if (uses(USES_TRANSFER) && rules.transfers[b]) {
        stops = transfer(buffers, rules, now, b) && buffers.early_stop[b];
        after_ = stops ? predicted_ : committed_;
    }
    const int64_t base = b * buffers.stride;
    for (int64_t r = 0; r < R_; ++r) {
        const int64_t place = base + r, token = after_[at(r)];
        buffers.before[place] = buffers.answer[place];
        buffers.predicted[place] = predicted_[at(r)];
        buffers.confidence[place] = confidence_[at(r)];
        buffers.answer[place] = token;
        if (!open_[at(r)] || token == mask_id_) continue;
        if (buffers.first_set[place] < 0) buffers.first_set[place] = step_;
        if (token != buffers.shown[place]) buffers.last_changed[place] = step_;
        buffers.shown[place] = token;
        buffers.was_shown[place] = true;
    }
    const int64_t start = buffers.answer_start[b], end = std::min(start + buffers.answer_length[b], buffers.T);
    for (int64_t t = std::max<int64_t>(start, 0); t < end; ++t) buffers.ids[b][t] = after_[at(std::min(t - start, R_ - 1))];
    *buffers.nfe[b] += buffers.evaluations[b];
    *buffers.row_steps[b] += 1;
    if (stops && !is_last) *buffers.stopped_early[b] = true;
    if (stops || is_last) *buffers.done[b] = true;
}

}  // namespace

void update(const UpdateBuffers& buffers, const UpdateRules& rules, const UpdateTables& tables, const Prediction& prediction, int64_t B,
            int64_t R, int64_t mask_id, unsigned used) {
    Row row(R, used, mask_id);
    for (int64_t b = 0; b < B; ++b) {
        const bool is_active = !*buffers.done[b];
        *buffers.acted[b] = is_active;
        if (is_active) row.update(buffers, rules, numbers_at(tables, *buffers.row_steps[b], b, B), prediction, b);
    }
    *buffers.step += 1;
}

}  // namespace lad
