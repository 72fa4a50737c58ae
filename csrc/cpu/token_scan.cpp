#include "token_scan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "levels.h"
#include "parallel.h"

namespace lad {

// Ids that share one comparison with the least candidate.
constexpr int64_t PIECE = 128;

}  // namespace lad

#define LAD_BODY "token_scan_body.h"
#include "each_level.h"

namespace lad {

namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
// Candidates of a row that is cut by mass alone, and how many times more where they do not reach it.
constexpr int64_t FIRST_CANDIDATES = 256, MORE = 8;
// Scores of a nucleus are told apart to a 64th of a nat, over 64 nats; what is less likely shares the last bucket.
constexpr int BUCKETS = 4096;
constexpr float BUCKETS_PER_NAT = 64.0f;

int64_t padded(int64_t count) { return (count + PIECE - 1) / PIECE * PIECE; }

}  // namespace

TokenScan::TokenScan(const TokenRule& rule, const int64_t* bias_ids, int64_t M, int64_t N, int64_t K)
    : rule_(rule), N_(N), K_(K), candidates_(static_cast<size_t>(N * K)), rows_(static_cast<size_t>(N), RowScan{NOTHING, 0.0, 0}) {
    for (int64_t m = 0; m < M; ++m) biases_.push_back({bias_ids[m], m});
    std::stable_sort(biases_.begin(), biases_.end(), [](const Bias& a, const Bias& b) { return a.id < b.id; });
}

float TokenScan::scale(int64_t row) const { return rule_.temperature[row] == 0 ? 1.0f : rule_.temperature[row]; }

bool TokenScan::needs_mass(int64_t row) const { return rule_.full_confidence[row] || is_unfiltered(row); }

bool TokenScan::is_unfiltered(int64_t row) const { return rule_.top_k[row] == 0 && rule_.top_p[row] >= 1; }

// `count` scores from id `first` on, widened, biased and padded with -inf to whole pieces; in `scratch` unless they lie so already.
template <typename T>
const float* TokenScan::block(const T* logits, int64_t row, int64_t first, int64_t count, float* scratch) const {
    auto bias = std::lower_bound(biases_.begin(), biases_.end(), first, [](const Bias& b, int64_t id) { return b.id < id; });
    const bool is_biased = bias != biases_.end() && bias->id < first + count;
    const int64_t whole = padded(count);
    if constexpr (std::is_same_v<T, float>) {
        if (!is_biased && whole == count) return logits;
        std::memcpy(scratch, logits, static_cast<size_t>(count) * sizeof(float));
    } else {
        const int64_t groups = count / 16 * 16;
        LAD_AT_LEVEL(widen)(logits, groups, scratch);
        for (int64_t i = groups; i < count; ++i) {
            const uint32_t bits = static_cast<uint32_t>(logits[i]) << 16;
            std::memcpy(scratch + i, &bits, sizeof bits);
        }
    }
    std::fill(scratch + count, scratch + whole, NOTHING);
    for (; bias != biases_.end() && bias->id < first + count; ++bias) scratch[bias->id - first] += rule_.bias[row][bias->column];
    return scratch;
}

void TokenScan::insert(int64_t row, float score, int64_t id) {
    Candidate* list = candidates_.data() + row * K_;
    int64_t& count = rows_[static_cast<size_t>(row)].count;
    const Candidate found{score, static_cast<int32_t>(id)};
    Candidate* place = std::upper_bound(list, list + count, found, is_before);
    count = std::min(count + 1, K_);
    std::memmove(place + 1, place, static_cast<size_t>(list + count - 1 - place) * sizeof(Candidate));
    *place = found;
}

// What a score must exceed to become a candidate: of equal scores the id that came first stays.
float TokenScan::least(int64_t row) const {
    if (K_ == 0) return -NOTHING;
    return rows_[static_cast<size_t>(row)].count < K_ ? NOTHING : candidates_[static_cast<size_t>((row + 1) * K_ - 1)].score;
}

template <typename T>
void TokenScan::scan_row(const T* logits, int64_t row, int64_t first, int64_t width, bool sums) {
    alignas(64) float scratch[BLOCK], tops[BLOCK / PIECE];
    RowScan& seen = rows_[static_cast<size_t>(row)];
    const float inverse = 1.0f / scale(row);
    for (int64_t start = 0; start < width; start += BLOCK) {
        const int64_t count = std::min(BLOCK, width - start), whole = padded(count);
        const float* x = block(logits + start, row, first + start, count, scratch);
        LAD_AT_LEVEL(piece_tops)(x, whole, tops);
        float top = seen.top;
        for (int64_t piece = 0; piece < whole / PIECE; ++piece) {
            top = std::max(top, tops[piece]);
            float limit = least(row);
            if (!(tops[piece] > limit)) continue;
            for (int64_t i = piece * PIECE; i < (piece + 1) * PIECE; ++i)
                if (x[i] > limit) {
                    insert(row, x[i], first + start + i);
                    limit = least(row);
                }
        }
        if (sums && top > NOTHING) {
            if (top > seen.top) seen.mass *= static_cast<double>(LAD_AT_LEVEL(exponential_of)((seen.top - top) * inverse));
            seen.mass += LAD_AT_LEVEL(block_mass)(x, whole, top, inverse);
        }
        seen.top = top;
    }
}

template <typename T>
void TokenScan::scan(Rows<T> logits, int64_t first, int64_t width, int threads) {
    parallel_for(N_, threads, [&](int64_t row) { scan_row(logits[row], row, first, width, needs_mass(row)); });
}

void TokenScan::draw(int64_t* token, float* confidence) const {
    for (int64_t row = 0; row < N_; ++row) {
        const RowScan& seen = rows_[static_cast<size_t>(row)];
        draw_row(row, candidates_.data() + row * K_, seen.count, seen.mass, token + row, confidence + row);
    }
}

// `candidates`: the largest scores in descending order. all_mass: of the vocabulary relative to the first, where the row asks for it.
void TokenScan::draw_row(
    int64_t row, const Candidate* candidates, int64_t count, double all_mass, int64_t* token, float* confidence) const {
    if (count == 0) {
        // Every logit is NaN.
        *token = 0;
        *confidence = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    const float divisor = scale(row), top = candidates[0].score;
    const auto exponential_of = LAD_AT_LEVEL(exponential_of);
    const auto weight = [&](int64_t rank) { return static_cast<double>(exponential_of((candidates[rank].score - top) / divisor)); };
    const int64_t limit = rule_.top_k[row] == 0 ? count : std::min(rule_.top_k[row], count);
    double total = 0;
    for (int64_t rank = 0; rank < limit; ++rank) total += weight(rank);
    // A row cut by mass alone is measured against the whole vocabulary, of which only the head of the order is here.
    if (rule_.top_k[row] == 0 && K_ == 0) total = std::max(total, all_mass);
    int64_t kept = limit;
    double kept_mass = total;
    if (rule_.top_p[row] < 1) {
        const double allowed = static_cast<double>(rule_.top_p[row]) * total;
        double before = weight(0);
        for (kept = 1; kept < limit; ++kept) {
            const double after = before + weight(kept);
            if (!((rule_.drop_crossing[row] ? after : before) <= allowed)) break;
            before = after;
        }
        kept_mass = before;
    }
    int64_t rank = 0;
    if (rule_.temperature[row] != 0) {
        const double target = static_cast<double>(rule_.uniforms[row]) * kept_mass;
        double cumulative = weight(0);
        while (cumulative <= target && rank + 1 < kept) cumulative += weight(++rank);
    }
    *token = candidates[rank].id;
    const double whole = needs_mass(row) ? all_mass : kept_mass;
    *confidence = static_cast<float>(weight(rank) / whole);
}

template <typename T>
void TokenScan::draw_in_order(const T* logits, int64_t V, int64_t row, int64_t* token, float* confidence) const {
    alignas(64) float scratch[BLOCK], weights[BLOCK];
    const float top = rows_[static_cast<size_t>(row)].top, inverse = 1.0f / scale(row);
    std::vector<double> masses;
    for (int64_t start = 0; start < V; start += BLOCK) {
        const int64_t count = std::min(BLOCK, V - start);
        masses.push_back(LAD_AT_LEVEL(block_mass)(block(logits + start, row, start, count, scratch), padded(count), top, inverse));
    }
    double total = 0;
    for (double mass : masses) total += mass;
    const double target = static_cast<double>(rule_.uniforms[row]) * total;
    double before = 0;
    size_t place = 0;
    while (place + 1 < masses.size() && before + masses[place] <= target) before += masses[place++];
    const int64_t start = static_cast<int64_t>(place) * BLOCK, count = std::min(BLOCK, V - start);
    LAD_AT_LEVEL(block_weights)(block(logits + start, row, start, count, scratch), padded(count), top, inverse, weights);
    int64_t drawn = 0;
    for (int64_t i = 0; i < count && before <= target; ++i) {
        if (weights[i] > 0) drawn = i;
        before += static_cast<double>(weights[i]);
    }
    *token = start + drawn;
    *confidence = static_cast<float>(static_cast<double>(weights[drawn]) / total);
}

template <typename T>
void TokenScan::draw_sorted(const T* logits, int64_t V, int64_t row, int64_t* token, float* confidence) const {
    alignas(64) float scratch[BLOCK];
    std::vector<Candidate> order(static_cast<size_t>(V));
    float top = NOTHING;
    for (int64_t start = 0; start < V; start += BLOCK) {
        const int64_t count = std::min(BLOCK, V - start);
        const float* x = block(logits + start, row, start, count, scratch);
        for (int64_t i = 0; i < count; ++i) {
            order[static_cast<size_t>(start + i)] = {x[i], static_cast<int32_t>(start + i)};
            top = std::max(top, x[i]);
        }
    }
    double all_mass = 0;
    for (int64_t start = 0; start < V; start += BLOCK) {
        const int64_t count = std::min(BLOCK, V - start);
        const float* x = block(logits + start, row, start, count, scratch);
        all_mass += LAD_AT_LEVEL(block_mass)(x, padded(count), top, 1.0f / scale(row));
    }
    const bool is_cut_by_mass = rule_.top_k[row] == 0;
    const double needed = static_cast<double>(rule_.top_p[row] < 1 ? rule_.top_p[row] : rule_.uniforms[row]) * all_mass;
    int64_t count = is_cut_by_mass ? FIRST_CANDIDATES : rule_.top_k[row];
    for (;; count *= MORE) {
        count = std::min(count, V);
        std::partial_sort(order.begin(), order.begin() + count, order.end(), is_before);
        double mass = 0;
        for (int64_t rank = 0; rank < count; ++rank)
            mass += static_cast<double>(LAD_AT_LEVEL(exponential_of)((order[static_cast<size_t>(rank)].score - top) / scale(row)));
        if (!is_cut_by_mass || count == V || mass > needed) break;
    }
    draw_row(row, order.data(), count, all_mass, token, confidence);
}

// A row cut by mass alone: masses by bucket of the score, so that only the buckets in which the cut and the draw fall are ordered.
template <typename T>
void TokenScan::draw_nucleus(const T* logits, int64_t V, int64_t row, int64_t* token, float* confidence) const {
    alignas(64) float scratch[BLOCK], weights[BLOCK], tops[BLOCK / PIECE];
    const float inverse = 1.0f / scale(row);
    float top = NOTHING;
    for (int64_t start = 0; start < V; start += BLOCK) {
        const int64_t count = std::min(BLOCK, V - start), whole = padded(count);
        LAD_AT_LEVEL(piece_tops)(block(logits + start, row, start, count, scratch), whole, tops);
        top = std::max(top, *std::max_element(tops, tops + whole / PIECE));
    }
    std::vector<double> masses(BUCKETS, 0.0);
    std::vector<uint16_t> home(static_cast<size_t>(V));
    for (int64_t start = 0; start < V; start += BLOCK) {
        const int64_t count = std::min(BLOCK, V - start);
        const float* x = block(logits + start, row, start, count, scratch);
        LAD_AT_LEVEL(block_weights)(x, padded(count), top, inverse, weights);
        for (int64_t i = 0; i < count; ++i) {
            // Monotone in the score, so that the order of buckets is the order of scores.
            const float depth = (top - x[i]) * inverse * BUCKETS_PER_NAT;
            const auto bucket = static_cast<uint16_t>(depth < BUCKETS - 1 ? depth : BUCKETS - 1);
            home[static_cast<size_t>(start + i)] = bucket;
            masses[bucket] += static_cast<double>(weights[i]);
        }
    }
    const auto ordered = [&](size_t bucket) {
        std::vector<Candidate> out;
        for (int64_t start = 0; start < V; start += BLOCK) {
            const int64_t count = std::min(BLOCK, V - start);
            if (std::find(home.begin() + start, home.begin() + start + count, bucket) == home.begin() + start + count) continue;
            const float* x = block(logits + start, row, start, count, scratch);
            for (int64_t i = 0; i < count; ++i)
                if (home[static_cast<size_t>(start + i)] == bucket) out.push_back({x[i], static_cast<int32_t>(start + i)});
        }
        std::sort(out.begin(), out.end(), is_before);
        return out;
    };
    const auto weight = [&](const Candidate& c) { return static_cast<double>(LAD_AT_LEVEL(exponential_of)((c.score - top) * inverse)); };
    double all_mass = 0;
    for (double mass : masses) all_mass += mass;
    const double allowed = static_cast<double>(rule_.top_p[row]) * all_mass;
    size_t cut = 0;
    double kept_mass = 0;
    while (cut + 1 < masses.size() && kept_mass + masses[cut] <= allowed) kept_mass += masses[cut++];
    std::vector<Candidate> last = ordered(cut);
    size_t kept = 0;
    for (; kept < last.size(); ++kept) {
        const double after = kept_mass + weight(last[kept]);
        const bool is_best = cut == 0 && kept == 0;
        if (!is_best && !((rule_.drop_crossing[row] ? after : kept_mass) <= allowed)) break;
        kept_mass = after;
    }
    last.resize(kept);
    const double target = rule_.temperature[row] == 0 ? 0.0 : static_cast<double>(rule_.uniforms[row]) * kept_mass;
    double before = 0;
    size_t bucket = 0, filled = 0;
    while (bucket < cut && (masses[bucket] == 0 || before + masses[bucket] <= target)) {
        if (masses[bucket] > 0) filled = bucket;
        before += masses[bucket++];
    }
    std::vector<Candidate> drawn = bucket < cut ? ordered(bucket) : last;
    // A cut may leave nothing of its bucket: the draw then ends with the last one before it.
    if (drawn.empty()) {
        drawn = ordered(filled);
        before = std::numeric_limits<double>::max();
        std::swap(drawn.front(), drawn.back());
    }
    size_t rank = 0;
    double cumulative = before + weight(drawn[0]);
    while (cumulative <= target && rank + 1 < drawn.size()) cumulative += weight(drawn[++rank]);
    *token = drawn[rank].id;
    *confidence = static_cast<float>(weight(drawn[rank]) / (rule_.full_confidence[row] ? all_mass : kept_mass));
}

template <typename T>
void TokenScan::choose(Rows<T> logits, int64_t V, bool samples_all, int threads, int64_t* token, float* confidence) {
    parallel_for(N_, threads, [&](int64_t row) {
        const bool in_order = samples_all && is_unfiltered(row) && rule_.temperature[row] != 0;
        if (K_ == 0 && rule_.top_k[row] == 0 && rule_.top_p[row] < 1) return draw_nucleus(logits[row], V, row, token + row, confidence + row);
        if (K_ == 0 && !in_order) return draw_sorted(logits[row], V, row, token + row, confidence + row);
        scan_row(logits[row], row, 0, V, needs_mass(row) && !in_order);
        if (in_order) return draw_in_order(logits[row], V, row, token + row, confidence + row);
        const RowScan& seen = rows_[static_cast<size_t>(row)];
        draw_row(row, candidates_.data() + row * K_, seen.count, seen.mass, token + row, confidence + row);
    });
}

template void TokenScan::scan(Rows<const float>, int64_t, int64_t, int);
template void TokenScan::scan(Rows<const uint16_t>, int64_t, int64_t, int);
template void TokenScan::choose(Rows<const float>, int64_t, bool, int, int64_t*, float*);
template void TokenScan::choose(Rows<const uint16_t>, int64_t, bool, int, int64_t*, float*);

}  // namespace lad
