#include <tuple>

#include "common.h"

namespace kanerva::cpu {

namespace {

template <class Args>
void take_inputs(Args& args, const Tensor& mean, const Tensor& queries, const Tensor& ridge) {
  STD_TORCH_CHECK(mean.dim() == 3 && queries.dim() == 3,
                  "mean and queries must have three dimensions");
  const Sizes n{mean.size(0), queries.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(mean, "mean", {n.B, n.K, n.C});
  args.queries = view(queries, "queries", {n.B, n.T, n.C});
  args.ridge = state_view(ridge, "ridge", {n.B}, state);
}

}  // namespace

Tensor solve_addresses(Tensor mean, Tensor queries, Tensor ridge) {
  SolveAddressesArgs args;
  take_inputs(args, mean, queries, ridge);
  Output weights = output(mean, {args.n.B, args.n.T, args.n.K});
  args.weights_out = weights.view;
  kernels().solve_addresses(args, TorchExecutor());
  return weights.tensor;
}

std::tuple<Tensor, Tensor, Tensor> solve_addresses_backward(Tensor grad_weights, Tensor mean,
                                                            Tensor queries, Tensor ridge,
                                                            Tensor weights) {
  SolveAddressesBackwardArgs args;
  take_inputs(args, mean, queries, ridge);
  const auto [B, T, K, C] = args.n;
  args.grad_weights = state_view(grad_weights, "grad_weights", {B, T, K}, args.mean.dtype);
  args.weights = state_view(weights, "weights", {B, T, K}, args.mean.dtype);
  Output d_mean = output(mean, {B, K, C});
  Output d_queries = output(queries, {B, T, C});
  Output d_ridge = output(mean, {B});
  args.d_mean = d_mean.view;
  args.d_queries = d_queries.view;
  args.d_ridge = d_ridge.view;
  kernels().solve_addresses_backward(args, TorchExecutor());
  return {d_mean.tensor, d_queries.tensor, d_ridge.tensor};
}

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("solve_addresses", TORCH_BOX(&solve_addresses));
  m.impl("solve_addresses_backward", TORCH_BOX(&solve_addresses_backward));
}

}  // namespace kanerva::cpu
