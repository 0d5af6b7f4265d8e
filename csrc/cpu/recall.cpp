#include <tuple>

#include "common.h"

namespace kanerva::cpu {

namespace {

template <class Args>
void take_inputs(Args& args, const Tensor& mean, const Tensor& cov, const Tensor& queries,
                 const Tensor& ridge) {
  STD_TORCH_CHECK(mean.dim() == 3 && queries.dim() == 3,
                  "mean and queries must have three dimensions");
  const Sizes n{mean.size(0), queries.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(cov, "cov", {n.B, n.K, n.K}, state);
  args.queries = view(queries, "queries", {n.B, n.T, n.C});
  args.ridge = state_view(ridge, "ridge", {n.B}, state);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> recall(Tensor mean, Tensor cov, Tensor queries, Tensor ridge) {
  RecallArgs args;
  take_inputs(args, mean, cov, queries, ridge);
  const auto [B, T, K, C] = args.n;
  Output values = output(mean, {B, T, C});
  Output var = output(mean, {B, T});
  Output weights = output(mean, {B, T, K});
  args.values_out = values.view;
  args.var_out = var.view;
  args.weights_out = weights.view;
  kernels().recall(args, TorchExecutor());
  return {values.tensor, var.tensor, weights.tensor};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recall_backward(OptionalTensor grad_values,
                                                           OptionalTensor grad_var,
                                                           OptionalTensor grad_weights, Tensor mean,
                                                           Tensor cov, Tensor queries, Tensor ridge,
                                                           Tensor weights) {
  RecallBackwardArgs args;
  take_inputs(args, mean, cov, queries, ridge);
  const auto [B, T, K, C] = args.n;
  args.grad_values = state_view(grad_values, "grad_values", {B, T, C}, args.mean.dtype);
  args.grad_var = state_view(grad_var, "grad_var", {B, T}, args.mean.dtype);
  args.grad_weights = state_view(grad_weights, "grad_weights", {B, T, K}, args.mean.dtype);
  args.weights = state_view(weights, "weights", {B, T, K}, args.mean.dtype);
  Output d_mean = output(mean, {B, K, C});
  Output d_cov = output(mean, {B, K, K});
  Output d_queries = output(queries, {B, T, C});
  Output d_ridge = output(mean, {B});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_queries = d_queries.view;
  args.d_ridge = d_ridge.view;
  kernels().recall_backward(args, TorchExecutor());
  return {d_mean.tensor, d_cov.tensor, d_queries.tensor, d_ridge.tensor};
}

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("recall", TORCH_BOX(&recall));
  m.impl("recall_backward", TORCH_BOX(&recall_backward));
}

}  // namespace kanerva::cpu
