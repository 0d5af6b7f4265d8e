#pragma once

#include <tuple>

#include "inputs.h"

namespace kanerva::ops {

template <class Backend>
Tensor solve_addresses(Tensor mean, Tensor queries, Tensor ridge) {
  const Backend on(mean);
  SolveAddressesArgs args;
  solve_inputs(on, args, mean, queries, ridge);
  Tensor weights = output(on, args.weights_out, mean, {args.n.B, args.n.T, args.n.K});
  on.solve_addresses(args);
  return weights;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> solve_addresses_backward(Tensor grad_weights, Tensor mean,
                                                            Tensor queries, Tensor ridge,
                                                            Tensor weights) {
  const Backend on(mean);
  SolveAddressesBackwardArgs args;
  solve_inputs(on, args, mean, queries, ridge);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  args.grad_weights = state_view(on, grad_weights, "grad_weights", {B, T, K}, args.mean.dtype);
  args.weights = state_view(on, weights, "weights", {B, T, K}, args.mean.dtype);
  Tensor d_mean = output(on, args.d_mean, mean, {B, K, C});
  Tensor d_queries = output(on, args.d_queries, queries, {B, T, C});
  Tensor d_ridge = output(on, args.d_ridge, mean, {B});
  on.solve_addresses_backward(args);
  return {d_mean, d_queries, d_ridge};
}

}  // namespace kanerva::ops
