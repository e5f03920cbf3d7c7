// Products of few rows with packed weights.
//
// They are bound by reading the weights, and a library that reads a block, then multiplies by it,
// takes the sum of both times. Here each block is multiplied while the next one is fetched, so that
// a product takes about the longer of the two.

#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "operators.h"
#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int kTileRows = 14;  // of 32 registers 14 x 2 hold sums, 2 weights, 1 an input
#else
constexpr int kTileRows = 6;  // of 16 registers 6 x 2 hold sums
#endif
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
        if (finish.is_relu) to = to < Floats{} ? Floats{} : to;  // a NaN stays
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

// y [M, outputs] = the product for x [M, inputs], plus [M, outputs] or null added before ReLU.
void gqa_product(const Product* product, const float* x, const float* plus, float* y, int64_t M) {
  const float *packed = product->packed, *bias = product->bias;
  const int64_t N = product->outputs, K = product->inputs;
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
      const int64_t line = kPanel * sizeof(float);             // of weights, for one input
      const int64_t step = (line + tiles - 1) / tiles;  // bytes of the next block for one input
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
                {bias ? bias + n : nullptr, plus ? plus + at : nullptr, product->is_relu != 0});
          }
        }
      }
    }
  }
}

}  // extern "C"
