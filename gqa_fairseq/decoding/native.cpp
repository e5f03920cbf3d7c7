// What a decoding step does on a CPU in float32, for few rows. native.py builds and calls it.
//
// Products of few rows are bound by reading the weights, and a library that reads a block, then
// multiplies by it, takes the sum of both times. Here each block is multiplied while the next one
// is prefetched, so that a product takes about the longer of the two. Attention reads the keys and
// values that some beam can see, once for all rows (beams x queries of a group), and no others.
//
// Legend: attention.py. Rows are contiguous unless a stride (in elements) is given.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// Vectors of LANES floats; the compiler makes instructions of their arithmetic. Memory need not be
// aligned to them: `load` and `store` copy.
template <int LANES>
struct Vector {
  typedef float type __attribute__((vector_size(LANES * 4)));
  typedef int32_t ints __attribute__((vector_size(LANES * 4)));
};

#ifdef __AVX512F__
constexpr int kLanes = 16;  // 32 registers: 14 x 2 sums, 2 of weights, 1 of x
constexpr int kTileRows = 14;
#else
constexpr int kLanes = 8;  // 16 registers: 6 x 2 sums
constexpr int kTileRows = 6;
#endif
using Floats = Vector<kLanes>::type;

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
template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

template <typename V>
inline float sum(V x) {
  if constexpr (lanes<V>() == 2) {
    return x[0] + x[1];
  } else {
    using Half = typename Vector<lanes<V>() / 2>::type;
    Half halves[2];
    std::memcpy(halves, &x, sizeof x);
    return sum<Half>(halves[0] + halves[1]);
  }
}

template <typename V>
inline float maximum(V x) {
  if constexpr (lanes<V>() == 2) {
    return x[0] > x[1] ? x[0] : x[1];
  } else {
    using Half = typename Vector<lanes<V>() / 2>::type;
    Half halves[2];
    std::memcpy(halves, &x, sizeof x);
    return maximum<Half>(larger(halves[0], halves[1]));
  }
}

// e^x for x <= 0, to 2 units in the last place; 0 below -87.3, where floats lose precision; NaN
// for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series.
template <typename V>
inline V exponential(V x) {
  using Ints = typename Vector<lanes<V>()>::ints;
  const V round = V{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const V low = V{} - 87.3f;
  V clipped = x < low ? low : x;
  V n = (clipped * 1.44269504f + round) - round;
  V r = clipped - n * 0.693359375f;  // ln 2 in two parts: n times the first one is exact
  r = r + n * 2.12194440e-4f;
  V y = V{} + 1.f / 5040;
  for (float term : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f}) y = y * r + term;
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  V scale;
  std::memcpy(&scale, &power, sizeof scale);
  return x < low ? V{} : y * scale;
}

// ---- Products with packed weights --------------------------------------------------------------

constexpr int64_t kPanel = 2 * kLanes;       // outputs of a block
constexpr int64_t kDepth = 512;              // inputs of a block: 64 KiB of weights with AVX-512
constexpr int64_t kRowStride = kDepth + 16;  // of x: rows a power of two apart share a cache set
constexpr int64_t kMostRows = 128;           // so many rows of x stay in the L2 cache

struct Block {
  int64_t depth;  // inputs
  bool is_first, is_last;
};

struct Finish {
  const float *bias, *plus;  // [N], [M, N] or null
  bool is_relu;
};

// The first `width` elements of a vector, all of them if there are more.
struct Part {
  int64_t width;

  Floats load(const float* from) const {
    if (width >= kLanes) return ::load<Floats>(from);
    float x[kLanes] = {};
    for (int64_t i = 0; i < width; i++) x[i] = from[i];
    return ::load<Floats>(x);
  }
  void store(float* to, Floats x) const {
    if (width >= kLanes) return ::store(to, x);
    for (int64_t i = 0; i < width; i++) to[i] = x[i];
  }
};

// y [rows, width] (+)= products [rows, kPanel], and what comes after the last block. By itself: in
// `tile` the compiler would run out of registers in the loop that counts.
__attribute__((noinline)) void finish_rows(const float* products, int rows, Block block, float* y,
                                           int64_t stride, int64_t width, Finish finish) {
  for (int r = 0; r < rows; r++) {
    for (int c = 0; c < 2; c++) {
      const int64_t at = r * stride + c * kLanes;
      const Part part{width - c * kLanes};
      Floats to = load<Floats>(products + r * kPanel + c * kLanes);
      if (!block.is_first) to += part.load(y + at);
      if (block.is_last) {
        if (finish.bias) to += part.load(finish.bias + c * kLanes);
        if (finish.plus) to += part.load(finish.plus + at);
        if (finish.is_relu) to = larger(to, Floats{});
      }
      part.store(y + at, to);
    }
  }
}

// y [ROWS, width] (+)= x [ROWS, depth] times a block [depth, kPanel]; `ahead` is fetched meanwhile.
template <int ROWS>
void tile(const float* x, const float* weights, Block block, const char* ahead, int64_t ahead_step,
          float* y, int64_t stride, int64_t width, Finish finish) {
  Floats sums[ROWS][2] = {};
  for (int64_t k = 0; k < block.depth; k++) {
    Floats w0 = load<Floats>(weights + k * kPanel), w1 = load<Floats>(weights + k * kPanel + kLanes);
    __builtin_prefetch(ahead + k * ahead_step, 0, 2);
    if (ahead_step > 64) __builtin_prefetch(ahead + k * ahead_step + 64, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      sums[r][0] += x[r * kRowStride + k] * w0;
      sums[r][1] += x[r * kRowStride + k] * w1;
    }
  }
  float products[ROWS * kPanel];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    store(products + r * kPanel, sums[r][0]);
    store(products + r * kPanel + kLanes, sums[r][1]);
  }
  finish_rows(products, ROWS, block, y, stride, width, finish);
}

using Tile = decltype(&tile<1>);
template <int... I>
constexpr auto tiles_of(std::integer_sequence<int, I...>) {
  struct {
    Tile of[sizeof...(I)];
  } table = {{tile<I + 1>...}};
  return table;
}
constexpr auto kTiles = tiles_of(std::make_integer_sequence<int, kTileRows>());

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Share i of n: as even as they can be.
struct Range {
  int64_t begin, count;
};
inline Range share(int64_t i, int64_t shares, int64_t n) {
  const int64_t begin = i * n / shares;
  return {begin, (i + 1) * n / shares - begin};
}

// ---- Attention over a cache --------------------------------------------------------------------

using Quad = Vector<4>::type;

template <typename V>
inline Quad folded(V x) {
  if constexpr (lanes<V>() == 4) {
    return x;
  } else {
    using Half = typename Vector<lanes<V>() / 2>::type;
    Half halves[2];
    std::memcpy(halves, &x, sizeof x);
    return folded<Half>(halves[0] + halves[1]);
  }
}

// The sums of four vectors' elements, in 6 shuffles where one by one takes 24.
template <typename V>
inline Quad sums_of(const V (&x)[4]) {
  Quad a = folded(x[0]), b = folded(x[1]), c = folded(x[2]), d = folded(x[3]);
  Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
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
constexpr int64_t kSlots = 64;                // slots whose keys or values stay in the L1 cache

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
  struct Part {
    int64_t begin, count;  // places in `slots`
  };
  std::vector<int32_t> slots;
  Part shared;
  std::vector<Part> own;       // [beams], of none where all slots are shared
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
  Part part_from(int64_t begin) {
    const int64_t count = slots.size() - begin;
    slots.insert(slots.end(), kAhead + 4, count ? slots.back() : 0);
    return {begin, count};
  }
};

struct Attention {
  const float* query;  // [B, W, H, D], W x H x D of a sentence at query_stride a row
  int64_t query_stride;
  float *keys, *values;  // [B, G, N, D]
  int64_t sentence_stride, head_stride;
  const float* mask;  // [B, W or 1, N]: 0 where a slot is seen, -inf elsewhere; or null
  int64_t mask_rows, mask_sentence_stride, mask_row_stride;
  const float *new_keys, *new_values;  // [B, W, G, D] at query_stride a row, or null
  int64_t new_slot;                    // where the first of them is to go
  float* out;                          // [B, W, H, D]
  int64_t B, W, H, G, N, D;
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

// Floats that gqa_pack writes.
int64_t gqa_packed_size(int64_t outputs, int64_t inputs) {
  return rounded_up(outputs, kPanel) * inputs;
}

// weight [outputs, inputs] -> blocks [depth, kPanel], those of the first kDepth inputs first.
void gqa_pack(const float* weight, float* packed, int64_t outputs, int64_t inputs) {
  for (int64_t k0 = 0; k0 < inputs; k0 += kDepth) {
    const int64_t end = k0 + kDepth < inputs ? k0 + kDepth : inputs;
    for (int64_t n0 = 0; n0 < outputs; n0 += kPanel)
      for (int64_t k = k0; k < end; k++)
        for (int64_t n = n0; n < n0 + kPanel; n++)
          *packed++ = n < outputs ? weight[n * inputs + k] : 0.f;
  }
}

// y [M, N] = x [M, K] W^T + bias + plus, then ReLU if wanted; W packed, bias and plus may be null.
void gqa_linear(const float* x, const float* packed, const float* bias, const float* plus, float* y,
                int64_t M, int64_t N, int64_t K, int64_t is_relu) {
  const int64_t panels = rounded_up(N, kPanel) / kPanel;
  const int64_t parts = (M + kMostRows - 1) / kMostRows;
#pragma omp parallel
  {
    static thread_local std::vector<float> copy(kMostRows * kRowStride);
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const Range own = share(me, threads, panels);
    for (int64_t part = 0; part < parts && own.count; part++) {
      const Range rows = share(part, parts, M);
      const int64_t tiles = (rows.count + kTileRows - 1) / kTileRows;
      const int64_t step = kPanel * sizeof(float) / tiles;  // bytes to fetch with each input
      for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
        const int64_t depth = std::min(kDepth, K - k0), next_depth = std::min(kDepth, K - k0 - depth);
        for (int64_t r = 0; r < rows.count; r++)
          std::memcpy(&copy[r * kRowStride], x + (rows.begin + r) * K + k0, depth * sizeof(float));
        const float* column = packed + k0 * panels * kPanel;
        for (int64_t p = own.begin; p < own.begin + own.count; p++) {
          const float* block = column + p * depth * kPanel;
          const float* next = p + 1 < own.begin + own.count ? block + depth * kPanel
                              : next_depth ? column + panels * depth * kPanel +
                                                 own.begin * next_depth * kPanel
                                           : block;
          for (int64_t i = 0; i < tiles; i++) {
            const Range mine = share(i, tiles, rows.count);
            const int64_t n = p * kPanel, at = (rows.begin + mine.begin) * N + n;
            kTiles.of[mine.count - 1](
                &copy[mine.begin * kRowStride], block, {depth, k0 == 0, !next_depth},
                reinterpret_cast<const char*>(next) + i * step * depth, step, y + at, N, N - n,
                {bias ? bias + n : nullptr, plus ? plus + at : nullptr, is_relu != 0});
          }
        }
      }
    }
  }
}

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

// y [rows, C] = each row of x with mean 0 and variance 1, times weight [C], plus bias [C].
void gqa_layer_norm(const float* x, const float* weight, const float* bias, float epsilon, float* y,
                    int64_t rows, int64_t C) {
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
    const float scale = 1.f / std::sqrt(variance / C + epsilon);
    for (int64_t i = 0; i < C; i++) y[r * C + i] = (row[i] - mean) * scale * weight[i] + bias[i];
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
