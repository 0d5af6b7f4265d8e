#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void recall_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                   const Tensor& queries, const Tensor& ridge) {
  STD_TORCH_CHECK(mean.dim() == 3 && queries.dim() == 3,
                  "mean and queries must have three dimensions");
  const Sizes n{mean.size(0), queries.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.queries = view(on, queries, "queries", {n.B, n.T, n.C});
  args.ridge = state_view(on, ridge, "ridge", {n.B}, state);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> recall(Tensor mean, Tensor cov, Tensor queries, Tensor ridge) {
  const Backend on(mean);
  RecallArgs args;
  recall_inputs(on, args, mean, cov, queries, ridge);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  Output values = output(on, mean, {B, T, C});
  Output var = output(on, mean, {B, T});
  Output weights = output(on, mean, {B, T, K});
  args.values_out = values.view;
  args.var_out = var.view;
  args.weights_out = weights.view;
  on.recall(args);
  return {values.tensor, var.tensor, weights.tensor};
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
  Output d_mean = output(on, mean, {B, K, C});
  Output d_cov = output(on, mean, {B, K, K});
  Output d_queries = output(on, queries, {B, T, C});
  Output d_ridge = output(on, mean, {B});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_queries = d_queries.view;
  args.d_ridge = d_ridge.view;
  on.recall_backward(args);
  return {d_mean.tensor, d_cov.tensor, d_queries.tensor, d_ridge.tensor};
}

}  // namespace kanerva::ops
