#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void read_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                 const Tensor& weights) {
  check_dimensions(mean, "mean");
  check_dimensions(weights, "weights");
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
  Tensor values = output(on, args.values_out, mean, {args.n.B, args.n.T, args.n.C});
  Tensor var = output(on, args.var_out, mean, {args.n.B, args.n.T});
  on.read(args);
  return {values, var};
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
  Tensor d_mean = output(on, args.d_mean, mean, {B, K, C});
  Tensor d_cov = output(on, args.d_cov, mean, {B, K, K});
  Tensor d_weights = output(on, args.d_weights, weights, {B, T, K});
  on.read_backward(args);
  return {d_mean, d_cov, d_weights};
}

}  // namespace kanerva::ops
