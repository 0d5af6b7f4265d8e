#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void forget_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                   const Tensor& weights, const Tensor& values, const Tensor& noise_var,
                   const OptionalTensor& mask) {
  STD_TORCH_CHECK(mean.dim() == 3 && weights.dim() == 3,
                  "mean and weights must have three dimensions");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(on, weights, "weights", {n.B, n.T, n.K});
  args.values = view(on, values, "values", {n.B, n.T, n.C});
  args.noise_var = state_view(on, noise_var, "noise_var", {n.B, n.T}, state);
  args.mask = mask_view(on, mask, n.B, n.T);
}

template <class Backend>
std::tuple<Tensor, Tensor> forget(Tensor mean, Tensor cov, Tensor weights, Tensor values,
                                  Tensor noise_var, OptionalTensor mask) {
  const Backend on(mean);
  ForgetArgs args;
  forget_inputs(on, args, mean, cov, weights, values, noise_var, mask);
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  Output mean_out = output(on, mean, {B, K, C});
  Output cov_out = output(on, mean, {B, K, K});
  args.mean_out = mean_out.view;
  args.cov_out = cov_out.view;
  on.forget(args);
  return {mean_out.tensor, cov_out.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forget_backward(
    OptionalTensor grad_mean, OptionalTensor grad_cov, Tensor mean, Tensor cov, Tensor weights,
    Tensor values, Tensor noise_var, OptionalTensor mask, Tensor rest_mean, Tensor rest_cov) {
  const Backend on(mean);
  ForgetBackwardArgs args;
  forget_inputs(on, args, mean, cov, weights, values, noise_var, mask);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype state = args.mean.dtype;
  args.grad_mean = state_view(on, grad_mean, "grad_mean", {B, K, C}, state);
  args.grad_cov = state_view(on, grad_cov, "grad_cov", {B, K, K}, state);
  args.rest_mean = state_view(on, rest_mean, "rest_mean", {B, K, C}, state);
  args.rest_cov = state_view(on, rest_cov, "rest_cov", {B, K, K}, state);
  Output d_mean = output(on, mean, {B, K, C});
  Output d_cov = output(on, mean, {B, K, K});
  Output d_weights = output(on, weights, {B, T, K});
  Output d_values = output(on, values, {B, T, C});
  Output d_noise_var = output(on, mean, {B, T});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_weights = d_weights.view;
  args.d_values = d_values.view;
  args.d_noise_var = d_noise_var.view;
  on.forget_backward(args);
  return {d_mean.tensor, d_cov.tensor, d_weights.tensor, d_values.tensor, d_noise_var.tensor};
}

}  // namespace kanerva::ops
