// What training does with each row or element by itself: the loss over a vocabulary, dropout.

#include <cmath>

#include "vectors.h"

namespace {

// Generators side by side: as many on every processor, so that a seed drops the same elements on all.
constexpr int kGenerators = 16;
using Words = uint32_t __attribute__((vector_size(kGenerators * 4)));
using Elements = Vector<kGenerators>::type;

inline Words rotated(Words x, int by) { return (x << by) | (x >> (32 - by)); }

// SplitMix64 (Steele et al. 2014): well-mixed words out of successive states.
inline uint64_t mixed(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Generators xoshiro128++ (Blackman and Vigna 2021) side by side.
struct Generator {
  Words state[4];

  explicit Generator(uint64_t seed) {
    for (Words& words : state)
      for (int i = 0; i < kGenerators; i += 2) {
        const uint64_t two = mixed(seed);
        words[i] = static_cast<uint32_t>(two);
        words[i + 1] = static_cast<uint32_t>(two >> 32);
      }
  }

  Words next() {
    const Words result = rotated(state[0] + state[3], 7) + state[0];
    const Words t = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= t;
    state[3] = rotated(state[3], 11);
    return result;
  }
};

constexpr int64_t kBlock = 8192;  // elements that one seed serves, whatever the number of threads

}  // namespace

extern "C" {

// y [n] = plus + x / (1 - p) where an element is kept, plus elsewhere; `plus` may be null, y may be
// x or plus. An element is dropped where its 16 random bits are below `threshold` = p * 65,536. The
// same seed drops the same elements.
void gqa_dropout(const float* x, const float* plus, float* y, int64_t n, uint64_t seed, int64_t threshold) {
  const float scale = 65536.f / (65536 - threshold);
  const Words limit = Words{} + static_cast<uint32_t>(threshold);
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; block++) {
    uint64_t own = seed + block;
    Generator generator(mixed(own));
    const int64_t end = (block + 1) * kBlock < n ? (block + 1) * kBlock : n;
    Words random = {};
    for (int64_t i = block * kBlock, half = 0; i < end; i += kGenerators, half ^= 1) {
      random = half ? random >> 16 : generator.next();
      const auto is_kept = (random & 0xffff) >= limit;
      if (i + kGenerators <= end) {
        const Elements base = plus ? load<Elements>(plus + i) : Elements{};
        store(y + i, is_kept ? base + load<Elements>(x + i) * scale : base);
      } else {
        for (int64_t j = i; j < end; j++)
          y[j] = (plus ? plus[j] : 0.f) + (is_kept[j - i] ? x[j] * scale : 0.f);
      }
    }
  }
}

// Label-smoothed cross entropy of logits [rows, V], which become its gradient: softmax(logits) minus
// `other` everywhere and minus `right` more at the target. sums [rows, 2] = -log p of the target, and
// of all words together.
void gqa_smoothed_loss(
    float* logits, const int64_t* targets, int64_t rows, int64_t V, float right, float other, float* sums) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    float* row = logits + r * V;
    const int64_t body = V - V % kLanes, target = targets[r];
    Floats top = Floats{} + kNegInf;
    for (int64_t i = 0; i < body; i += kLanes) top = larger(load<Floats>(row + i), top);
    float highest = maximum(top);
    for (int64_t i = body; i < V; i++) highest = row[i] > highest ? row[i] : highest;
    const float correct = row[target] - highest;
    Floats below = {}, total = {};
    for (int64_t i = 0; i < body; i += kLanes) {
      const Floats x = load<Floats>(row + i) - highest, e = exponential(x);
      below += x;
      total += e;
      store(row + i, e);
    }
    float all_below = sum(below), all = sum(total);
    for (int64_t i = body; i < V; i++) {
      all_below += row[i] - highest;
      all += row[i] = std::exp(row[i] - highest);
    }
    const float log_all = std::log(all), scale = 1.f / all;
    sums[2 * r] = log_all - correct;
    sums[2 * r + 1] = V * log_all - all_below;
    for (int64_t i = 0; i < V; i++) row[i] = row[i] * scale - other;
    row[target] -= right;
  }
}

}  // extern "C"
