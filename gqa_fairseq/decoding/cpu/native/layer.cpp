// A whole decoder layer of one step, so that Python is left once a layer and not twelve times:
// between operators that stream weights through the caches, Python finds them cold.

#include <algorithm>
#include <vector>

#include "operators.h"

extern "C" {

// A decoder layer's weights; with pre-norm a block normalizes its input, else its output.
struct Layer {
  Norm self_norm, source_norm, ffn_norm;
  Product self_qkv, self_out, source_q, source_out, fc1, fc2;
  int64_t is_pre_norm;
};

// y [B * W, C] = the layer's output for x. `self` and `source` describe the caches; the queries, the
// new keys and values and the outputs are the layer's and filled in here.
void gqa_layer(const Layer* layer, Attention* self, Attention* source, const float* x, float* y) {
  const int64_t rows = self->B * self->W, C = layer->self_out.outputs;
  const int64_t queries = self->H * self->D, kv = self->G * self->D;
  const int64_t widest = std::max(layer->self_qkv.outputs, layer->fc1.outputs);
  static thread_local std::vector<float> buffer;
  const size_t needed = rows * (3 * C + queries + widest);
  if (buffer.size() < needed) buffer.resize(needed);
  float *normed = buffer.data(), *first = normed + rows * C, *second = first + rows * C;
  float *mixed = second + rows * C, *inner = mixed + rows * queries;

  const auto before = [&](const Norm& norm, const float* from) -> const float* {
    if (!layer->is_pre_norm) return from;
    gqa_norm(&norm, from, normed, rows);
    return normed;
  };
  const auto after = [&](const Norm& norm, float* to) {
    if (!layer->is_pre_norm) gqa_norm(&norm, to, to, rows);
  };

  gqa_product(&layer->self_qkv, before(layer->self_norm, x), nullptr, inner, rows);
  self->query = inner;
  self->query_stride = queries + 2 * kv;
  self->new_keys = inner + queries;
  self->new_values = inner + queries + kv;
  self->out = mixed;
  gqa_attend(self);
  gqa_product(&layer->self_out, mixed, x, first, rows);
  after(layer->self_norm, first);

  gqa_product(&layer->source_q, before(layer->source_norm, first), nullptr, inner, rows);
  source->query = inner;
  source->query_stride = queries;
  source->out = mixed;
  gqa_attend(source);
  gqa_product(&layer->source_out, mixed, first, second, rows);
  after(layer->source_norm, second);

  gqa_product(&layer->fc1, before(layer->ffn_norm, second), nullptr, inner, rows);
  gqa_product(&layer->fc2, inner, second, y, rows);
  after(layer->ffn_norm, y);
}

}  // extern "C"
