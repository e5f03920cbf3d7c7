// What the files of this folder call of each other.

#pragma once

#include <cstdint>

// One attention of a step, of W beams of B sentences each.
struct Attention {
  const float* query;  // [B, W, H, D], query_stride from one beam to the next
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

// relu(x W^T + bias) with packed weights; the bias may be null.
struct Product {
  const float *packed, *bias;
  int64_t outputs, inputs, is_relu;
};

struct Norm {
  const float *weight, *bias;  // [C]
  int64_t width;               // C
  float epsilon;
};

extern "C" {

void gqa_product(const Product* product, const float* x, const float* plus, float* y, int64_t rows);
void gqa_attend(const Attention* attention);
void gqa_norm(const Norm* norm, const float* x, float* y, int64_t rows);

}  // extern "C"
