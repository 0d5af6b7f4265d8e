#include <tuple>

#include "common.h"

namespace kanerva::cpu {

namespace {

template <class Args>
void take_inputs(Args& args, const Tensor& mean, const Tensor& cov, const Tensor& weights) {
  STD_TORCH_CHECK(mean.dim() == 3 && weights.dim() == 3,
                  "mean and weights must have three dimensions");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(weights, "weights", {n.B, n.T, n.K});
}

}  // namespace

std::tuple<Tensor, Tensor> read(Tensor mean, Tensor cov, Tensor weights) {
  ReadArgs args;
  take_inputs(args, mean, cov, weights);
  Output values = output(mean, {args.n.B, args.n.T, args.n.C});
  Output var = output(mean, {args.n.B, args.n.T});
  args.values_out = values.view;
  args.var_out = var.view;
  kernels().read(args, TorchExecutor());
  return {values.tensor, var.tensor};
}

std::tuple<Tensor, Tensor, Tensor> read_backward(OptionalTensor grad_values,
                                                 OptionalTensor grad_var, Tensor mean, Tensor cov,
                                                 Tensor weights) {
  ReadBackwardArgs args;
  take_inputs(args, mean, cov, weights);
  const auto [B, T, K, C] = args.n;
  args.grad_values = state_view(grad_values, "grad_values", {B, T, C}, args.mean.dtype);
  args.grad_var = state_view(grad_var, "grad_var", {B, T}, args.mean.dtype);
  Output d_mean = output(mean, {B, K, C});
  Output d_cov = output(mean, {B, K, K});
  Output d_weights = output(weights, {B, T, K});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_weights = d_weights.view;
  kernels().read_backward(args, TorchExecutor());
  return {d_mean.tensor, d_cov.tensor, d_weights.tensor};
}

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("read", TORCH_BOX(&read));
  m.impl("read_backward", TORCH_BOX(&read_backward));
}

}  // namespace kanerva::cpu
