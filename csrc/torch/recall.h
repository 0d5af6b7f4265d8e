#pragma once

#include <tuple>

#include "inputs.h"

namespace kanerva::ops {

template <class Backend, class Args>
void recall_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                   const Tensor& queries, const Tensor& ridge) {
  solve_inputs(on, args, mean, queries, ridge);
  args.cov = state_view(on, cov, "cov", {args.n.B, args.n.K, args.n.K}, args.mean.dtype);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> recall(Tensor mean, Tensor cov, Tensor queries, Tensor ridge) {
  const Backend on(mean);
  RecallArgs args;
  recall_inputs(on, args, mean, cov, queries, ridge);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  Tensor values = output(on, args.values_out, mean, {B, T, C});
  Tensor var = output(on, args.var_out, mean, {B, T});
  Tensor weights = output(on, args.weights_out, mean, {B, T, K});
  on.recall(args);
  return {values, var, weights};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> recall_backward(OptionalTensor grad_values,
                                                           OptionalTensor grad_var,
                                                           OptionalTensor grad_weights, Tensor mean,
                                                           Tensor cov, Tensor queries, Tensor ridge,
                                                           Tensor weights) {
  const Backend on(mean);
  RecallBackwardArgs args;
  recall_inputs(on, args, mean, cov, queries, ridge);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  args.grad_values = state_view(on, grad_values, "grad_values", {B, T, C}, args.mean.dtype);
  args.grad_var = state_view(on, grad_var, "grad_var", {B, T}, args.mean.dtype);
  args.grad_weights = state_view(on, grad_weights, "grad_weights", {B, T, K}, args.mean.dtype);
  args.weights = state_view(on, weights, "weights", {B, T, K}, args.mean.dtype);
  Tensor d_mean = output(on, args.d_mean, mean, {B, K, C});
  Tensor d_cov = output(on, args.d_cov, mean, {B, K, K});
  Tensor d_queries = output(on, args.d_queries, queries, {B, T, C});
  Tensor d_ridge = output(on, args.d_ridge, mean, {B});
  on.recall_backward(args);
  return {d_mean, d_cov, d_queries, d_ridge};
}

}  // namespace kanerva::ops
