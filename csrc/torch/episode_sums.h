#pragma once

#include "../common/episode_sums.h"
#include "tensors.h"

namespace kanerva::ops {

// Writes g and h, in whose dtype it computes, and returns the energy (B,). Of the CPU alone.
template <class Backend>
Tensor episode_sums(OptionalTensor g, Tensor h, Tensor weights, Tensor values, Tensor scale) {
  check_dimensions(h, "h");
  check_dimensions(weights, "weights");
  const Backend on(h);
  EpisodeSumsArgs args;
  args.n = {h.size(0), weights.size(1), h.size(1), h.size(2)};
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype arithmetic = state_dtype(h);
  args.h = view(on, h, "h", {B, K, C});
  args.g = state_view(on, g, "g", {B, K, K}, arithmetic);
  args.weights = view(on, weights, "weights", {B, T, K});
  args.values = view(on, values, "values", {B, T, C});
  args.scale = state_view(on, scale, "scale", {B, T}, Dtype::float64);
  Tensor energy = output(on, args.energy, scale, {B});
  Backend::run_sums(args);
  return energy;
}

}  // namespace kanerva::ops
