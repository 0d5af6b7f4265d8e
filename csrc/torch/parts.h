#pragma once

#include "../common/parts.h"
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
  const Dtype arithmetic = state_dtype(h, "h");
  args.h = view(on, h, "h", {B, K, C});
  args.g = state_view(on, g, "g", {B, K, K}, arithmetic);
  args.weights = view(on, weights, "weights", {B, T, K});
  args.values = view(on, values, "values", {B, T, C});
  args.scale = state_view(on, scale, "scale", {B, T}, Dtype::float64);
  Tensor energy = output(on, args.energy, Dtype::float64, {B});
  Backend::run(args);
  return energy;
}

// Writes the posterior of the sums and returns its terms (B, 2), as PosteriorOfSumsArgs has them.
template <class Backend>
Tensor posterior_of_sums(Tensor mean_out, Tensor cov_out, Tensor mean, Tensor cov, Tensor triangle,
                         Tensor h, Tensor square, bool in_float32, bool always) {
  check_dimensions(mean, "mean");
  const Backend on(mean);
  PosteriorOfSumsArgs args;
  args.n = {mean.size(0), 0, mean.size(1), mean.size(2)};
  args.in_float32 = in_float32;
  args.always = always;
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype state = state_dtype(mean, "mean");
  args.mean = view(on, mean, "mean", {B, K, C});
  args.cov = state_view(on, cov, "cov", {B, K, K}, state);
  args.triangle = state_view(on, triangle, "triangle", {B, K * (K + 1) / 2}, Dtype::float64);
  args.h = state_view(on, h, "h", {B, K, C}, Dtype::float64);
  args.square = state_view(on, square, "square", {B}, Dtype::float64);
  args.mean_out = state_view(on, mean_out, "mean_out", {B, K, C}, state);
  args.cov_out = state_view(on, cov_out, "cov_out", {B, K, K}, state);
  Tensor terms = output(on, args.terms, Dtype::float64, {B, 2});
  Backend::run(args);
  return terms;
}

}  // namespace kanerva::ops
