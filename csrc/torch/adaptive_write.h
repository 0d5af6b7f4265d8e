#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void adaptive_write_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                           const Tensor& values, const Tensor& noise_var, const Tensor& ridge,
                           const OptionalTensor& mask, int64_t num_iters) {
  check_dimensions(mean, "mean");
  check_dimensions(values, "values");
  STD_TORCH_CHECK(num_iters >= 1, "num_iters must be at least 1, got ", num_iters);
  const Sizes n{mean.size(0), values.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.values = view(on, values, "values", {n.B, n.T, n.C});
  args.noise_var = state_view(on, noise_var, "noise_var", {n.B, n.T}, state);
  args.ridge = state_view(on, ridge, "ridge", {n.B}, state);
  args.mask = mask_view(on, mask, {n.B, n.T});
  args.num_iters = num_iters;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adaptive_write(Tensor mean, Tensor cov,
                                                                  Tensor values, Tensor noise_var,
                                                                  Tensor ridge, OptionalTensor mask,
                                                                  int64_t num_iters) {
  const Backend on(mean);
  AdaptiveWriteArgs args;
  adaptive_write_inputs(on, args, mean, cov, values, noise_var, ridge, mask, num_iters);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  Tensor mean_out = output(on, args.mean_out, mean, {B, K, C});
  Tensor cov_out = output(on, args.cov_out, mean, {B, K, K});
  Tensor weights = output(on, args.weights_out, mean, {B, T, K});
  Tensor step_kl = output(on, args.step_kl, mean, {B, T});
  Tensor log_evidence = output(on, args.log_evidence, mean, {B});
  on.adaptive_write(args);
  return {mean_out, cov_out, weights, step_kl, log_evidence};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adaptive_write_backward(
    OptionalTensor grad_mean, OptionalTensor grad_cov, OptionalTensor grad_weights,
    OptionalTensor grad_step_kl, OptionalTensor grad_log_evidence, Tensor mean, Tensor cov,
    Tensor values, Tensor noise_var, Tensor ridge, OptionalTensor mask, int64_t num_iters,
    Tensor weights) {
  const Backend on(mean);
  AdaptiveWriteBackwardArgs args;
  adaptive_write_inputs(on, args, mean, cov, values, noise_var, ridge, mask, num_iters);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype state = args.mean.dtype;
  args.grad_mean = state_view(on, grad_mean, "grad_mean", {B, K, C}, state);
  args.grad_cov = state_view(on, grad_cov, "grad_cov", {B, K, K}, state);
  args.grad_weights = state_view(on, grad_weights, "grad_weights", {B, T, K}, state);
  args.grad_step_kl = state_view(on, grad_step_kl, "grad_step_kl", {B, T}, state);
  args.grad_log_evidence = state_view(on, grad_log_evidence, "grad_log_evidence", {B}, state);
  args.weights = state_view(on, weights, "weights", {B, T, K}, state);
  Tensor d_mean = output(on, args.d_mean, mean, {B, K, C});
  Tensor d_cov = output(on, args.d_cov, mean, {B, K, K});
  Tensor d_values = output(on, args.d_values, values, {B, T, C});
  Tensor d_noise_var = output(on, args.d_noise_var, mean, {B, T});
  Tensor d_ridge = output(on, args.d_ridge, mean, {B});
  on.adaptive_write_backward(args);
  return {d_mean, d_cov, d_values, d_noise_var, d_ridge};
}

}  // namespace kanerva::ops
