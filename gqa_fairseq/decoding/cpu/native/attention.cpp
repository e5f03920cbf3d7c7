// Attention of one decoding step over a cache (attention.attend_cached; legend: attention.py).
//
// Keys and values that some beam sees are read, once for all rows (beams x queries of a group); the
// others are not: padding, and the slots of hypotheses that died. Late in a beam search all beams
// descend from one hypothesis but for a few steps, so that they share most of what they read.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "operators.h"
#include "vectors.h"

namespace {

// The sums of four vectors' elements, in 6 shuffles where one by one takes 24.
template <typename V>
inline Quad sums_of(const V (&x)[4]) {
  const Quad a = folded(x[0], plus), b = folded(x[1], plus);
  const Quad c = folded(x[2], plus), d = folded(x[3], plus);
  const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// Slots that are fetched before they are read. Rows are short, and a processor that fetches by
// itself loses the thread where the same rows are read again for other queries.
constexpr int kAhead = 4;
inline void fetch(const float* row, int64_t D) {
  for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(row + d);
}

// scores [ROWS, 4] = q [ROWS, D] times the keys in four slots.
template <typename V, int ROWS>
inline void score(const float* q, const float* keys, const int32_t* slots, int64_t D, float* scores,
                  int64_t stride, bool is_first) {
  if (is_first)
    for (int s = kAhead; s < kAhead + 4; s++) fetch(keys + slots[s] * D, D);
  V sums[ROWS][4] = {};
  for (int64_t d = 0; d < D; d += lanes<V>()) {
    V k[4];
    for (int s = 0; s < 4; s++) k[s] = load<V>(keys + slots[s] * D + d);
    for (int r = 0; r < ROWS; r++) {
      V x = load<V>(q + r * D + d);
      for (int s = 0; s < 4; s++) sums[r][s] += x * k[s];
    }
  }
  for (int r = 0; r < ROWS; r++) store(scores + r * stride, sums_of(sums[r]));
}

// out [ROWS, PARTS * lanes] += probabilities [ROWS, n] times the values in n slots.
template <typename V, int ROWS, int PARTS>
inline void mix(const float* probs, int64_t stride, const float* values, const int32_t* slots,
                int64_t n, int64_t D, float* out, bool is_first) {
  constexpr int kWidth = lanes<V>();
  V sums[ROWS][PARTS];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < PARTS; c++) sums[r][c] = load<V>(out + r * D + c * kWidth);
  for (int64_t i = 0; i < n; i++) {
    const float* v = values + slots[i] * D;
    if (is_first) fetch(values + slots[i + kAhead] * D, D);
    for (int c = 0; c < PARTS; c++) {
      V x = load<V>(v + c * kWidth);
      for (int r = 0; r < ROWS; r++) sums[r][c] += probs[r * stride + i] * x;
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < PARTS; c++) store(out + r * D + c * kWidth, sums[r][c]);
}

constexpr int kGroup = kLanes == 16 ? 4 : 2;  // rows that share a read of keys and values
// Slots that all rows read before the next ones: few, so that memory is not idle for long while the
// later groups of rows read what the first one has brought.
constexpr int64_t kSlots = 16;

// scores [rows, n] = q [rows, D] times the keys in n slots; up to 3 more scores are written.
template <typename V>
void score_all(const float* q, int64_t rows, const float* keys, const int32_t* slots, int64_t n,
               int64_t D, float* scores, int64_t stride) {
  for (int64_t first = 0; first < n; first += kSlots) {
    const int64_t end = std::min(first + kSlots, n);
    int64_t r = 0;
    for (; r + kGroup <= rows; r += kGroup)
      for (int64_t i = first; i < end; i += 4)
        score<V, kGroup>(q + r * D, keys, slots + i, D, scores + r * stride + i, stride, r == 0);
    for (; r < rows; r++)
      for (int64_t i = first; i < end; i += 4)
        score<V, 1>(q + r * D, keys, slots + i, D, scores + r * stride + i, stride, r == 0);
  }
}

template <typename V, int ROWS>
void mix_wide(const float* probs, int64_t stride, const float* values, const int32_t* slots,
              int64_t n, int64_t D, float* out, bool is_first) {
  constexpr int kWidth = lanes<V>(), kParts = ROWS == 1 ? 8 : 4;
  int64_t d = 0;
  for (; d + kParts * kWidth <= D; d += kParts * kWidth)
    mix<V, ROWS, kParts>(probs, stride, values + d, slots, n, D, out + d, is_first && d == 0);
  for (; d < D; d += kWidth)
    mix<V, ROWS, 1>(probs, stride, values + d, slots, n, D, out + d, is_first && d == 0);
}

// out [rows, D] += probs [rows, n] times the values in n slots.
template <typename V>
void mix_all(const float* probs, int64_t rows, int64_t stride, const float* values,
             const int32_t* slots, int64_t n, int64_t D, float* out) {
  for (int64_t first = 0; first < n; first += kSlots) {
    const int64_t count = std::min(kSlots, n - first);
    const float* part = probs + first;
    int64_t r = 0;
    for (; r + kGroup <= rows; r += kGroup)
      mix_wide<V, kGroup>(part + r * stride, stride, values, slots + first, count, D, out + r * D,
                          r == 0);
    for (; r < rows; r++)
      mix_wide<V, 1>(part + r * stride, stride, values, slots + first, count, D, out + r * D,
                     r == 0);
  }
}

// scores [n], n a multiple of kLanes, become e^(scores - max); returns their sum.
float exponentials(float* scores, int64_t n) {
  Floats top = Floats{} + kNegInf;
  for (int64_t i = 0; i < n; i += kLanes) top = larger(load<Floats>(scores + i), top);
  float highest = maximum(top);
  Floats total = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats e = exponential(load<Floats>(scores + i) - highest);
    store(scores + i, e);
    total += e;
  }
  return sum(total);
}

// Which slots of a sentence are seen: those that all its beams see, and each beam's others.
struct Sight {
  std::vector<int32_t> slots;
  Range shared;                // places in `slots`
  std::vector<Range> own;      // the same of each beam; none where all slots are shared
  std::vector<uint32_t> seen;  // [N] one bit a beam

  // mask [rows, N]: 0 where a slot is seen, -inf elsewhere; or null.
  void look(const float* mask, int64_t rows, int64_t stride, int64_t N) {
    slots.clear();
    own.clear();
    if (!mask) {
      slots.resize(N);
      std::iota(slots.begin(), slots.end(), 0);
      shared = part_from(0);
      return;
    }
    const uint32_t all = ~0u >> (32 - rows);
    seen.assign(N, 0);
    for (int64_t w = 0; w < rows; w++)
      for (int64_t n = 0; n < N; n++)
        seen[n] |= static_cast<uint32_t>(mask[w * stride + n] == 0.f) << w;
    for (int64_t n = 0; n < N; n++)
      if (seen[n] == all) slots.push_back(n);
    shared = part_from(0);
    for (int64_t w = 0; w < rows && rows > 1; w++) {
      const int64_t begin = slots.size();
      for (int64_t n = 0; n < N; n++)
        if (seen[n] != all && seen[n] >> w & 1) slots.push_back(n);
      own.push_back(part_from(begin));
    }
  }

  // What was added since `begin`; after it slots that may be read and do not count.
  Range part_from(int64_t begin) {
    const int64_t count = slots.size() - begin;
    slots.insert(slots.end(), kAhead + 4, count ? slots.back() : 0);
    return {begin, count};
  }
};

template <typename V>
void attend(const Attention& a) {
  const int64_t R = a.H / a.G, rows = a.W * R, D = a.D;
  const float scale = 1.f / std::sqrt(static_cast<float>(D));
#pragma omp parallel
  {
    Sight sight;
    std::vector<float> q(rows * D), out(rows * D), totals(rows), scores;
    int64_t looked = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < a.B * a.G; item++) {
      const int64_t b = item / a.G, g = item % a.G;
      float* keys = a.keys + b * a.sentence_stride + g * a.head_stride;
      float* values = a.values + b * a.sentence_stride + g * a.head_stride;
      if (a.new_keys) {
        for (int64_t w = 0; w < a.W; w++) {
          const int64_t from = (b * a.W + w) * a.query_stride + g * D, to = (a.new_slot + w) * D;
          std::memcpy(keys + to, a.new_keys + from, D * sizeof(float));
          std::memcpy(values + to, a.new_values + from, D * sizeof(float));
        }
      }
      if (looked != b) {
        const float* mask = a.mask ? a.mask + b * a.mask_sentence_stride : nullptr;
        sight.look(mask, a.mask_rows, a.mask_row_stride, a.N);
        looked = b;
      }
      for (int64_t r = 0; r < rows; r++) {
        const float* from = a.query + (b * a.W + r / R) * a.query_stride + (g * R + r % R) * D;
        for (int64_t d = 0; d < D; d++) q[r * D + d] = from[d] * scale;
      }
      // A row's scores: those of the shared slots, then its beam's own; -inf fills both up.
      const int64_t n = sight.shared.count, middle = rounded_up(n, 16);
      int64_t stride = middle;
      for (auto part : sight.own) stride = std::max(stride, middle + rounded_up(part.count, 16));
      scores.resize(rows * stride);
      const int32_t* slots = sight.slots.data();
      score_all<V>(q.data(), rows, keys, slots, n, D, scores.data(), stride);
      for (size_t w = 0; w < sight.own.size(); w++)
        score_all<V>(&q[w * R * D], R, keys, slots + sight.own[w].begin, sight.own[w].count, D,
                     &scores[w * R * stride + middle], stride);
      for (int64_t r = 0; r < rows; r++) {
        float* row = scores.data() + r * stride;
        std::fill(row + n, row + middle, kNegInf);
        if (!sight.own.empty())
          std::fill(row + middle + sight.own[r / R].count, row + stride, kNegInf);
        totals[r] = exponentials(row, stride);
      }
      std::fill(out.begin(), out.end(), 0.f);
      mix_all<V>(scores.data(), rows, stride, values, slots, n, D, out.data());
      for (size_t w = 0; w < sight.own.size(); w++)
        mix_all<V>(&scores[w * R * stride + middle], R, stride, values,
                   slots + sight.own[w].begin, sight.own[w].count, D, &out[w * R * D]);
      for (int64_t r = 0; r < rows; r++) {
        float* to = a.out + ((b * a.W + r / R) * a.H + g * R + r % R) * D;
        for (int64_t d = 0; d < D; d++) to[d] = out[r * D + d] / totals[r];
      }
    }
  }
}

}  // namespace

extern "C" {

// Grouped attention of one step; writes the step's keys and values first, if there are any.
void gqa_attend(const Attention* a) {
  if (a->D % 16 == 0 && kLanes == 16) {
    attend<Vector<16>::type>(*a);
  } else if (a->D % 8 == 0) {
    attend<Vector<8>::type>(*a);
  } else {
    attend<Vector<4>::type>(*a);
  }
}

}  // extern "C"
