// What a step does with each row by itself: layer norm, softmax and the best of a vocabulary.

#include <cmath>

#include "operators.h"
#include "vectors.h"

extern "C" {

// y [rows, C] = each row of x with mean 0 and variance 1, times weight, plus bias; y may be x.
void gqa_norm(const Norm* norm, const float* x, float* y, int64_t rows) {
  const int64_t C = norm->width;
  constexpr int64_t kWorthThreads = 1 << 15;  // elements: waking a thread takes as long
#pragma omp parallel for schedule(static) if (rows * C >= kWorthThreads)
  for (int64_t r = 0; r < rows; r++) {
    const float* row = x + r * C;
    const int64_t body = C - C % kLanes;
    Floats total = {};
    for (int64_t i = 0; i < body; i += kLanes) total += load<Floats>(row + i);
    float mean = sum(total);
    for (int64_t i = body; i < C; i++) mean += row[i];
    mean /= C;
    total = Floats{};
    for (int64_t i = 0; i < body; i += kLanes) {
      const Floats centred = load<Floats>(row + i) - mean;
      total += centred * centred;
    }
    float variance = sum(total);
    for (int64_t i = body; i < C; i++) variance += (row[i] - mean) * (row[i] - mean);
    const float scale = 1.f / std::sqrt(variance / C + norm->epsilon);
    for (int64_t i = 0; i < C; i++) y[r * C + i] = (row[i] - mean) * scale * norm->weight[i] + norm->bias[i];
  }
}

// x [rows, V] becomes log(softmax(x)), in place.
void gqa_log_softmax(float* x, int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    float* row = x + r * V;
    const int64_t body = V - V % kLanes;
    Floats top = Floats{} + kNegInf, total = {};
    for (int64_t i = 0; i < body; i += kLanes) top = larger(load<Floats>(row + i), top);
    float highest = maximum(top);
    for (int64_t i = body; i < V; i++) highest = row[i] > highest ? row[i] : highest;
    for (int64_t i = 0; i < body; i += kLanes) total += exponential(load<Floats>(row + i) - highest);
    float all = sum(total);
    for (int64_t i = body; i < V; i++) all += std::exp(row[i] - highest);
    const float log_all = std::log(all);
    for (int64_t i = 0; i < V; i++) row[i] = (row[i] - highest) - log_all;
  }
}

// The k largest of each row of x [rows, V], largest first; a NaN is never among them.
void gqa_top_k(const float* x, int64_t rows, int64_t V, int64_t k, float* values, int64_t* indices) {
  constexpr int64_t kChunk = 64;
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const float* row = x + r * V;
    float* best = values + r * k;
    int64_t* at = indices + r * k;
    int64_t held = 0;
    auto consider = [&](int64_t i, float value) {
      int64_t j = held < k ? held++ : k - 1;
      for (; j > 0 && best[j - 1] < value; j--) best[j] = best[j - 1], at[j] = at[j - 1];
      best[j] = value, at[j] = i;
    };
    int64_t i = 0;
    for (; i < k; i++) consider(i, row[i] == row[i] ? row[i] : kNegInf);
    while (i < V) {
      if (i + kChunk <= V) {
        Floats top = Floats{} + kNegInf;  // a NaN is not larger
        for (int64_t j = 0; j < kChunk; j += kLanes) top = larger(load<Floats>(row + i + j), top);
        if (!(maximum(top) > best[k - 1])) {
          i += kChunk;
          continue;
        }
      }
      const int64_t end = i + kChunk < V ? i + kChunk : V;
      for (; i < end; i++)
        if (row[i] > best[k - 1]) consider(i, row[i]);
    }
  }
}

}  // extern "C"
