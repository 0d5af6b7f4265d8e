// One step of causal_scan whose results take the place of the state.
#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

// A view of a tensor without the dimension of steps.
inline View one_step(View v) {
  v.stride[2] = v.stride[1];
  v.stride[1] = 0;
  return v;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> causal_step(Tensor mean, Tensor cov, Tensor weights,
                                               Tensor values, Tensor queries, Tensor noise_var,
                                               OptionalTensor mask, OptionalTensor decay,
                                               OptionalTensor retention,
                                               OptionalTensor stationary_cov) {
  const Backend on(mean);
  check_dimensions(mean, "mean");
  STD_TORCH_CHECK(mean.is_contiguous() && cov.is_contiguous(),
                  "mean and cov must be contiguous: they are changed in place");
  STD_TORCH_CHECK(!decay.has_value() || !retention.has_value(), kOneForgets);
  STD_TORCH_CHECK(!stationary_cov.has_value() || retention.has_value(), kNeedsRetention);
  const int64_t B = mean.size(0), K = mean.size(1), C = mean.size(2);
  const Dtype state = state_dtype(mean, "mean");
  CausalScanArgs args;
  args.n = {B, 1, K, C};
  args.mean_out = args.mean = view(on, mean, "mean", {B, K, C});
  args.cov_out = args.cov = state_view(on, cov, "cov", {B, K, K}, state);
  args.weights = one_step(view(on, weights, "weights", {B, K}));
  args.values = one_step(view(on, values, "values", {B, C}));
  args.queries = one_step(view(on, queries, "queries", {B, K}));
  args.noise_var = state_view(on, noise_var, "noise_var", {B}, state);
  args.mask = mask_view(on, mask, {B});
  args.decay = state_view(on, decay, "decay", {B}, state);
  args.retention = state_view(on, retention, "retention", {B}, state);
  args.stationary_cov = state_view(on, stationary_cov, "stationary_cov", {B, K, K}, state);
  Tensor reads = output(on, args.reads_out, state, {B, C});
  Tensor read_var = output(on, args.read_var_out, state, {B});
  Tensor log_evidence = output(on, args.log_evidence, state, {B});
  args.reads_out = one_step(args.reads_out);
  on.run(args);
  return {reads, read_var, log_evidence};
}

}  // namespace kanerva::ops
