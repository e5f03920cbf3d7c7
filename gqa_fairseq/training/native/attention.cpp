// Attention over sentences that lie one after the other, without padding, and its gradient.
//
// Rows of queries, keys and values may be parts of wider rows. A vector over the slots of a sentence
// scores them, a vector over D sums values. Scores are made again for the gradient: the logarithm of
// their sum is all that is kept of them.

#include <cmath>
#include <vector>

#include "vectors.h"

// The fields of native/__init__.py, in their order; N rows of queries, M of keys and values.
struct Sentences {
  const float* queries;  // row n, head h: queries + n * query_stride + h * D
  const float *keys, *values;  // row m, head g: + m * key_stride + g * D
  int64_t query_stride, key_stride;
  const int64_t *query_begin, *key_begin;  // [B + 1]: where each sentence's rows begin
  float* log_sums;                         // [N, H]: of the exponentials of the scores
  float* out;                              // [N, H, D]
  const float* d_out;                      // [N, H, D]; null: forward
  float *d_queries, *d_keys, *d_values;    // at the strides of what they belong to
  int64_t B, H, G, D;
  int64_t is_causal, window;  // window 0: all
  float scale;
};

namespace {

struct Slots {
  int64_t first, end;
};

// The slots that query t of a sentence reads, of `count`.
Slots slots_of(const Sentences& work, int64_t t, int64_t count) {
  const int64_t end = work.is_causal && t + 1 < count ? t + 1 : count;
  const int64_t first = work.window && t + 1 > work.window ? t + 1 - work.window : 0;
  return {first, end};
}

// to [D, stride] = the transpose of from [count, D]; what is beyond `count` is 0.
void transpose(const float* from, int64_t from_stride, int64_t count, int64_t D, float* to, int64_t stride) {
  for (int64_t d = 0; d < D; d++)
    for (int64_t i = count; i < stride; i++) to[d * stride + i] = 0;
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < D; d++) to[d * stride + i] = from[i * from_stride + d];
}

// The products of one row with the columns of a transposed matrix: kLanes columns at `column`.
inline Floats products(const float* row, const float* transposed, int64_t stride, int64_t D, int64_t column) {
  Floats even = {}, odd = {};
  const float* from = transposed + column;
  int64_t d = 0;
  for (; d + 1 < D; d += 2) {
    even += row[d] * load<Floats>(from + d * stride);
    odd += row[d + 1] * load<Floats>(from + (d + 1) * stride);
  }
  if (d < D) even += row[d] * load<Floats>(from + d * stride);
  return even + odd;
}

// x where a lane's slot is one of `slots`, else `other`.
inline Floats within(Floats x, int64_t column, Slots slots, float other) {
  if (column >= slots.first && column + kLanes <= slots.end) return x;
  for (int64_t i = 0; i < kLanes; i++)
    if (column + i < slots.first || column + i >= slots.end) x[i] = other;
  return x;
}

struct Scratch {
  std::vector<float> keys, values, first, second, d_keys, d_values;
};

template <typename V>
void attend(const Sentences& work, int64_t b, int64_t g, Scratch& scratch) {
  const int64_t H = work.H, D = work.D, R = H / work.G;
  const int64_t from = work.query_begin[b], T = work.query_begin[b + 1] - from;
  const int64_t key_from = work.key_begin[b], S = work.key_begin[b + 1] - key_from;
  const int64_t stride = rounded_up(S, kLanes);
  const float* keys = work.keys + key_from * work.key_stride + g * D;
  const float* values = work.values + key_from * work.key_stride + g * D;
  scratch.keys.resize(D * stride);
  scratch.first.resize(stride);
  transpose(keys, work.key_stride, S, D, scratch.keys.data(), stride);
  float* p = scratch.first.data();
  for (int64_t t = 0; t < T; t++) {
    const Slots slots = slots_of(work, t, S);
    const int64_t begin = slots.first / kLanes * kLanes;
    for (int64_t r = 0; r < R; r++) {
      const int64_t h = g * R + r, n = from + t;
      const float* query = work.queries + n * work.query_stride + h * D;
      Floats top = Floats{} + kNegInf;
      for (int64_t i = begin; i < slots.end; i += kLanes) {
        Floats s = products(query, scratch.keys.data(), stride, D, i) * work.scale;
        s = within(s, i, slots, kNegInf);
        top = larger(s, top);
        store(p + i, s);
      }
      const float highest = maximum(top);
      Floats total = {};
      for (int64_t i = begin; i < slots.end; i += kLanes) {
        const Floats e = exponential(load<Floats>(p + i) - highest);
        total += e;
        store(p + i, e);
      }
      const float all = sum(total);
      work.log_sums[n * H + h] = highest + std::log(all);
      float* out = work.out + (n * H + h) * D;
      for (int64_t d = 0; d < D; d += lanes<V>()) {
        V even = {}, odd = {};
        const float* value = values + d;
        int64_t j = slots.first;
        for (; j + 1 < slots.end; j += 2) {
          even += p[j] * load<V>(value + j * work.key_stride);
          odd += p[j + 1] * load<V>(value + (j + 1) * work.key_stride);
        }
        if (j < slots.end) even += p[j] * load<V>(value + j * work.key_stride);
        store(out + d, (even + odd) / all);
      }
    }
  }
}

template <typename V>
void gradient(const Sentences& work, int64_t b, int64_t g, Scratch& scratch) {
  const int64_t H = work.H, D = work.D, R = H / work.G;
  const int64_t from = work.query_begin[b], T = work.query_begin[b + 1] - from;
  const int64_t key_from = work.key_begin[b], S = work.key_begin[b + 1] - key_from;
  const int64_t stride = rounded_up(S, kLanes);
  const float* keys = work.keys + key_from * work.key_stride + g * D;
  const float* values = work.values + key_from * work.key_stride + g * D;
  scratch.keys.resize(D * stride);
  scratch.values.resize(D * stride);
  scratch.first.resize(stride);
  scratch.second.resize(stride);
  scratch.d_keys.assign(S * D, 0.f);
  scratch.d_values.assign(S * D, 0.f);
  transpose(keys, work.key_stride, S, D, scratch.keys.data(), stride);
  transpose(values, work.key_stride, S, D, scratch.values.data(), stride);
  float *p = scratch.first.data(), *ds = scratch.second.data();
  float *d_keys = scratch.d_keys.data(), *d_values = scratch.d_values.data();
  for (int64_t t = 0; t < T; t++) {
    const Slots slots = slots_of(work, t, S);
    const int64_t begin = slots.first / kLanes * kLanes;
    for (int64_t r = 0; r < R; r++) {
      const int64_t h = g * R + r, n = from + t;
      const float* query = work.queries + n * work.query_stride + h * D;
      const float* d_out = work.d_out + (n * H + h) * D;
      const float log_sum = work.log_sums[n * H + h];
      Floats both = {};
      for (int64_t i = begin; i < slots.end; i += kLanes) {
        const Floats s = products(query, scratch.keys.data(), stride, D, i) * work.scale - log_sum;
        // Rounding may leave a score above the logarithm of the sum by a unit: exponential is for x <= 0.
        const Floats probability = within(exponential(s > 0.f ? Floats{} : s), i, slots, 0.f);
        const Floats d_probability = products(d_out, scratch.values.data(), stride, D, i);
        both += probability * d_probability;
        store(p + i, probability);
        store(ds + i, d_probability);
      }
      const float mean = sum(both);
      for (int64_t i = begin; i < slots.end; i += kLanes)
        store(ds + i, load<Floats>(p + i) * (load<Floats>(ds + i) - mean) * work.scale);
      float* d_query = work.d_queries + n * work.query_stride + h * D;
      for (int64_t d = 0; d < D; d += lanes<V>()) {
        const V q = load<V>(query + d), d_o = load<V>(d_out + d);
        V total = {};
        for (int64_t j = slots.first; j < slots.end; j++) {
          float *d_key = d_keys + j * D + d, *d_value = d_values + j * D + d;
          store(d_value, load<V>(d_value) + p[j] * d_o);
          store(d_key, load<V>(d_key) + ds[j] * q);
          total += ds[j] * load<V>(keys + j * work.key_stride + d);
        }
        store(d_query + d, total);
      }
    }
  }
  for (int64_t j = 0; j < S; j++) {
    const int64_t at = (key_from + j) * work.key_stride + g * D;
    std::memcpy(work.d_keys + at, d_keys + j * D, D * sizeof(float));
    std::memcpy(work.d_values + at, d_values + j * D, D * sizeof(float));
  }
}

template <typename V>
void each(const Sentences& work) {
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for collapse(2) schedule(dynamic, 16)
    for (int64_t b = 0; b < work.B; b++)
      for (int64_t g = 0; g < work.G; g++) {
        if (work.d_out)
          gradient<V>(work, b, g, scratch);
        else
          attend<V>(work, b, g, scratch);
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
