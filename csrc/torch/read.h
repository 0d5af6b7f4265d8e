#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void read_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                 const Tensor& weights) {
  STD_TORCH_CHECK(mean.dim() == 3 && weights.dim() == 3,
                  "mean and weights must have three dimensions");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(on, weights, "weights", {n.B, n.T, n.K});
}

template <class Backend>
std::tuple<Tensor, Tensor> read(Tensor mean, Tensor cov, Tensor weights) {
  const Backend on(mean);
  ReadArgs args;
  read_inputs(on, args, mean, cov, weights);
  Output values = output(on, mean, {args.n.B, args.n.T, args.n.C});
  Output var = output(on, mean, {args.n.B, args.n.T});
  args.values_out = values.view;
  args.var_out = var.view;
  on.read(args);
  return {values.tensor, var.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> read_backward(OptionalTensor grad_values,
                                                 OptionalTensor grad_var, Tensor mean, Tensor cov,
                                                 Tensor weights) {
  const Backend on(mean);
  ReadBackwardArgs args;
  read_inputs(on, args, mean, cov, weights);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  args.grad_values = state_view(on, grad_values, "grad_values", {B, T, C}, args.mean.dtype);
  args.grad_var = state_view(on, grad_var, "grad_var", {B, T}, args.mean.dtype);
  Output d_mean = output(on, mean, {B, K, C});
  Output d_cov = output(on, mean, {B, K, K});
  Output d_weights = output(on, weights, {B, T, K});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_weights = d_weights.view;
  on.read_backward(args);
  return {d_mean.tensor, d_cov.tensor, d_weights.tensor};
}

}  // namespace kanerva::ops
