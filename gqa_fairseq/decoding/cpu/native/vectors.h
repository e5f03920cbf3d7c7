// Vectors of floats, whose arithmetic the compiler turns into the processor's instructions.

#pragma once

#ifdef __clang__
#error "g++ is needed: clang's OpenMP would start threads beside PyTorch's"
#endif

#include <cstdint>
#include <cstring>
#include <limits>

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// Memory need not be aligned to vectors: `load` and `store` copy.
template <int LANES>
struct Vector {
  typedef float type __attribute__((vector_size(LANES * 4)));
  typedef int32_t ints __attribute__((vector_size(LANES * 4)));
};

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Floats = Vector<kLanes>::type;
using Quad = Vector<4>::type;

template <typename V>
constexpr int lanes() {
  return sizeof(V) / sizeof(float);
}

template <typename V>
inline V load(const float* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <typename V>
inline void store(float* to, V x) {
  std::memcpy(to, &x, sizeof x);
}

// a where a > b, else b: of a NaN and a number the second one.
template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

// x, its upper half combined with its lower one until four elements are left.
template <typename V, typename Combine>
inline Quad folded(V x, Combine combine) {
  if constexpr (lanes<V>() == 4) {
    return x;
  } else {
    using Half = typename Vector<lanes<V>() / 2>::type;
    Half halves[2];
    std::memcpy(halves, &x, sizeof x);
    return folded(combine(halves[0], halves[1]), combine);
  }
}

constexpr auto plus = [](auto a, auto b) { return a + b; };

template <typename V>
inline float sum(V x) {
  const Quad four = folded(x, plus);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

template <typename V>
inline float maximum(V x) {
  const Quad four = folded(x, [](auto a, auto b) { return larger(a, b); });
  return larger(larger(four[0], four[1]), larger(four[2], four[3]));
}

// e^x for x <= 0, to 2 units in the last place; 0 below -87.3, where floats lose precision; NaN
// for NaN. x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series.
template <typename V>
inline V exponential(V x) {
  using Ints = typename Vector<lanes<V>()>::ints;
  const V round = V{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const V low = V{} - 87.3f;
  V clipped = x < low ? low : x;
  V n = (clipped * 1.44269504f + round) - round;
  V r = clipped - n * 0.693359375f;  // ln 2 in two parts: n times the first one is exact
  r = r + n * 2.12194440e-4f;
  constexpr float terms[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f};
  V y = V{} + 1.f / 5040;
  for (float term : terms) y = y * r + term;
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  V scale;
  std::memcpy(&scale, &power, sizeof scale);
  return x < low ? V{} : y * scale;
}

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Share i of n: as even as they can be.
struct Range {
  int64_t begin, count;
};
inline Range share(int64_t i, int64_t shares, int64_t n) {
  const int64_t begin = i * n / shares;
  return {begin, (i + 1) * n / shares - begin};
}
