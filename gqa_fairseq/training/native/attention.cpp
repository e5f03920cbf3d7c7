// Attention over sentences that lie one after the other, without padding, and its gradient.
//
// The lanes of a vector are queries: the sums of a softmax are then sums of vectors, and none is
// across lanes. A block is kLanes queries of a head; its scores fit the nearest cache, and they are
// made again for the gradient.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

// The fields of native/__init__.py, in their order; N rows of queries, M of keys and values.
struct Sentences {
  const float* queries;        // row n, head h: queries + n * query_stride + h * D
  const float *keys, *values;  // row m, head g: + m * key_stride + g * D
  int64_t query_stride, key_stride;
  const int64_t *query_begin, *key_begin;  // [B + 1]: where each sentence's rows begin
  float *highest, *shares;                 // [H, N]: the largest score; 1 / the sum of exponentials
  float* out;                              // [N, H, D]
  const float* d_out;                      // [N, H, D]; null: forward
  float *d_queries, *d_keys, *d_values;    // at the strides of what they belong to
  int64_t B, H, G, D;
  int64_t is_causal, window;  // window 0: all
  float scale;
};

namespace {

constexpr int64_t kRows = 8;  // of a product at a time: as many sums as hide an addition's latency

// A matrix of any layout: element (i, k) is at data[i * row + k * column].
struct Factor {
  const float* data;
  int64_t row, column;
};

// c[i][n] = or += the sum over k in [from, to) of a(i, k) * b[k * b_row + n], for ROWS rows.
template <typename V, int ROWS>
void multiply_rows(Factor a, const float* b, int64_t b_row, int64_t from, int64_t to, float* c, int64_t c_row,
                   int64_t width, bool adds) {
  for (int64_t n = 0; n < width; n += lanes<V>()) {
    V sums[ROWS];
    for (int i = 0; i < ROWS; i++) sums[i] = adds ? load<V>(c + i * c_row + n) : V{};
    for (int64_t k = from; k < to; k++) {
      const V own = load<V>(b + k * b_row + n);
      for (int i = 0; i < ROWS; i++) sums[i] += a.data[i * a.row + k * a.column] * own;
    }
    for (int i = 0; i < ROWS; i++) store(c + i * c_row + n, sums[i]);
  }
}

// The same for up to kRows rows.
template <typename V, int ROWS = kRows>
void multiply(int64_t rows, Factor a, const float* b, int64_t b_row, int64_t from, int64_t to, float* c,
              int64_t c_row, int64_t width, bool adds = false) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return multiply<V, ROWS - 1>(rows, a, b, b_row, from, to, c, c_row, width, adds);
  multiply_rows<V, ROWS>(a, b, b_row, from, to, c, c_row, width, adds);
}

// kLanes rows become columns: rows are interleaved with those half a matrix away until each has
// gone through every place.
inline void transpose(Floats (&rows)[kLanes]) {
  using Ints = Vector<kLanes>::ints;
  Ints low, high;  // of two vectors side by side: the interleaved lower halves, and the upper ones
  for (int i = 0; i < kLanes; i++) {
    low[i] = i / 2 + (i % 2) * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  for (int step = 1; step < kLanes; step *= 2) {
    Floats next[kLanes];
    for (int i = 0; i < kLanes / 2; i++) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
    std::memcpy(&rows, &next, sizeof next);
  }
}

// to [D, kLanes] = the transpose of from [count, D], times `scale`; lanes beyond the rows are 0.
void transpose(const float* from, int64_t stride, int64_t count, int64_t D, float scale, float* to) {
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    Floats rows[kLanes];
    for (int64_t i = 0; i < kLanes; i++) rows[i] = i < count ? load<Floats>(from + i * stride + d) * scale : Floats{};
    transpose(rows);
    for (int64_t i = 0; i < kLanes; i++) store(to + (d + i) * kLanes, rows[i]);
  }
  for (; d < D; d++)
    for (int64_t i = 0; i < kLanes; i++) to[d * kLanes + i] = i < count ? from[i * stride + d] * scale : 0.f;
}

struct Scratch {
  std::vector<float> queries, d_out, scores, gradients, d_keys, d_values;
};

// One sentence's rows of one key/value head.
template <typename V>
struct Part {
  const Sentences& work;
  Scratch& scratch;
  int64_t H, D, N, from, T, S, stride, out_stride;
  const float *keys, *values;
  // Of the block of queries at hand: what it reads, from `first` to `end`; a slot's scores and their
  // gradients, [S, kLanes].
  int64_t t, rows, h, first, end;
  float *p, *d_p;

  Part(const Sentences& all, Scratch& memory, int64_t b, int64_t g) : work(all), scratch(memory) {
    H = work.H, D = work.D, N = work.query_begin[work.B];
    from = work.query_begin[b], T = work.query_begin[b + 1] - from;
    stride = work.key_stride, out_stride = H * D;
    const int64_t key_from = work.key_begin[b];
    S = work.key_begin[b + 1] - key_from;
    keys = work.keys + key_from * stride + g * D;
    values = work.values + key_from * stride + g * D;
    scratch.queries.resize(D * kLanes);
    scratch.scores.resize(S * kLanes);
    p = scratch.scores.data();
    if (work.d_out) {
      scratch.d_out.resize(D * kLanes);
      scratch.gradients.resize(S * kLanes);
      scratch.d_keys.assign(S * D, 0.f);
      scratch.d_values.assign(S * D, 0.f);
      d_p = scratch.gradients.data();
    }
    for (h = g * (H / work.G); h < (g + 1) * (H / work.G); h++)
      for (t = 0; t < T; t += kLanes) {
        rows = std::min<int64_t>(kLanes, T - t);
        first = work.window ? std::max<int64_t>(0, t + 1 - work.window) : 0;
        end = work.is_causal ? std::min(t + rows, S) : S;
        transpose(query(), work.query_stride, rows, D, work.scale, scratch.queries.data());
        score(keys, scratch.queries, p);
        work.d_out ? backward() : forward();
      }
    if (!work.d_out) return;
    for (int64_t j = 0; j < S; j++) {
      const int64_t at = (key_from + j) * stride + g * D;
      std::memcpy(work.d_keys + at, scratch.d_keys.data() + j * D, D * sizeof(float));
      std::memcpy(work.d_values + at, scratch.d_values.data() + j * D, D * sizeof(float));
    }
  }

  const float* query() const { return work.queries + (from + t) * work.query_stride + h * D; }

  // to [slot, query] = the products of slots and queries.
  void score(const float* slots, const std::vector<float>& queries, float* to) const {
    for (int64_t j = first; j < end; j += kRows)
      multiply<Floats>(std::min(kRows, end - j), {slots + j * stride, stride, 1}, queries.data(), kLanes, 0, D,
                       to + j * kLanes, kLanes, kLanes);
  }

  // to [query, D] = the sums of slots, weighed by `weights` [slot, query].
  void gather(const float* weights, const float* slots, float* to, int64_t to_stride) const {
    for (int64_t i = 0; i < rows; i += kRows)
      multiply<V>(std::min(kRows, rows - i), {weights + i, 1, kLanes}, slots, stride, first, end, to + i * to_stride,
                  to_stride, D);
  }

  // to [slot, D] += the sums of queries, weighed likewise.
  void scatter(const float* weights, const float* queries, int64_t query_stride, float* to) const {
    for (int64_t j = first; j < end; j += kRows)
      multiply<V>(std::min(kRows, end - j), {weights + j * kLanes, kLanes, 1}, queries, query_stride, 0, rows,
                  to + j * D, D, D, true);
  }

  // x where a query reads slot j, else `other`.
  Floats seen(Floats x, int64_t j, float other) const {
    const bool all_see = (!work.is_causal || j <= t) && (!work.window || t + kLanes <= j + work.window);
    if (all_see) return x;
    using Ints = Vector<kLanes>::ints;
    Ints at = {};
    for (int i = 0; i < kLanes; i++) at[i] = i;
    at += static_cast<int32_t>(t - j);  // how far the slot lies behind the query
    Ints is_seen = Ints{} - 1;
    if (work.is_causal) is_seen &= at >= 0;
    if (work.window) is_seen &= at < static_cast<int32_t>(work.window);
    return is_seen ? x : Floats{} + other;
  }

  void forward() {
    Floats top = Floats{} + kNegInf, total = {};
    for (int64_t j = first; j < end; j++) {
      const Floats s = seen(load<Floats>(p + j * kLanes), j, kNegInf);
      top = larger(s, top);
      store(p + j * kLanes, s);
    }
    for (int64_t j = first; j < end; j++) {
      const Floats e = exponential(load<Floats>(p + j * kLanes) - top);
      total += e;
      store(p + j * kLanes, e);
    }
    const Floats share = 1.f / total;
    for (int64_t j = first; j < end; j++) store(p + j * kLanes, load<Floats>(p + j * kLanes) * share);
    const int64_t at = h * N + from + t;
    std::memcpy(work.highest + at, &top, rows * sizeof(float));
    std::memcpy(work.shares + at, &share, rows * sizeof(float));
    gather(p, values, work.out + (from + t) * out_stride + h * D, out_stride);
  }

  void backward() {
    const int64_t at = h * N + from + t;
    Floats top = {}, share = {}, mean = {};
    std::memcpy(&top, work.highest + at, rows * sizeof(float));
    std::memcpy(&share, work.shares + at, rows * sizeof(float));
    const float* d_out = work.d_out + (from + t) * out_stride + h * D;
    transpose(d_out, out_stride, rows, D, 1.f, scratch.d_out.data());
    score(values, scratch.d_out, d_p);
    for (int64_t j = first; j < end; j++) {
      const Floats e = exponential(load<Floats>(p + j * kLanes) - top);  // the same scores: none is above
      const Floats probability = seen(e * share, j, 0.f);
      mean += probability * load<Floats>(d_p + j * kLanes);
      store(p + j * kLanes, probability);
    }
    for (int64_t j = first; j < end; j++) {
      const Floats d_score = load<Floats>(p + j * kLanes) * (load<Floats>(d_p + j * kLanes) - mean);
      store(d_p + j * kLanes, d_score * work.scale);
    }
    gather(d_p, keys, work.d_queries + (from + t) * work.query_stride + h * D, work.query_stride);
    scatter(p, d_out, out_stride, scratch.d_values.data());
    scatter(d_p, query(), work.query_stride, scratch.d_keys.data());
  }
};

template <typename V>
void each(const Sentences& work) {
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for collapse(2) schedule(dynamic, 16)
    for (int64_t b = 0; b < work.B; b++)
      for (int64_t g = 0; g < work.G; g++) {
        Part<V>(work, scratch, b, g);
      }
  }
}

}  // namespace

extern "C" {

// D is a multiple of 4. Forward or, with d_out, the gradient.
void gqa_sentences(const Sentences* work) {
  if (work->D % kLanes == 0)
    each<Floats>(*work);
  else if (work->D % 8 == 0)
    each<Vector<8>::type>(*work);
  else
    each<Quad>(*work);
}

}  // extern "C"
