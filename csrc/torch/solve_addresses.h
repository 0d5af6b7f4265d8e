#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void solve_addresses_inputs(const Backend& on, Args& args, const Tensor& mean,
                            const Tensor& queries, const Tensor& ridge) {
  STD_TORCH_CHECK(mean.dim() == 3 && queries.dim() == 3,
                  "mean and queries must have three dimensions");
  const Sizes n{mean.size(0), queries.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.queries = view(on, queries, "queries", {n.B, n.T, n.C});
  args.ridge = state_view(on, ridge, "ridge", {n.B}, state);
}

template <class Backend>
Tensor solve_addresses(Tensor mean, Tensor queries, Tensor ridge) {
  const Backend on(mean);
  SolveAddressesArgs args;
  solve_addresses_inputs(on, args, mean, queries, ridge);
  Output weights = output(on, mean, {args.n.B, args.n.T, args.n.K});
  args.weights_out = weights.view;
  on.solve_addresses(args);
  return weights.tensor;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> solve_addresses_backward(Tensor grad_weights, Tensor mean,
                                                            Tensor queries, Tensor ridge,
                                                            Tensor weights) {
  const Backend on(mean);
  SolveAddressesBackwardArgs args;
  solve_addresses_inputs(on, args, mean, queries, ridge);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  args.grad_weights = state_view(on, grad_weights, "grad_weights", {B, T, K}, args.mean.dtype);
  args.weights = state_view(on, weights, "weights", {B, T, K}, args.mean.dtype);
  Output d_mean = output(on, mean, {B, K, C});
  Output d_queries = output(on, queries, {B, T, C});
  Output d_ridge = output(on, mean, {B});
  args.d_mean = d_mean.view;
  args.d_queries = d_queries.view;
  args.d_ridge = d_ridge.view;
  on.solve_addresses_backward(args);
  return {d_mean.tensor, d_queries.tensor, d_ridge.tensor};
}

}  // namespace kanerva::ops
