#include <tuple>

#include "common.h"

namespace kanerva::cpu {

std::tuple<Tensor, Tensor> statistics(Tensor mean, Tensor cov) {
  STD_TORCH_CHECK(mean.dim() == 3, "mean must have three dimensions");
  StatisticsArgs args;
  args.n = {mean.size(0), 0, mean.size(1), mean.size(2)};
  const auto [B, T, K, C] = args.n;
  const Dtype state = state_dtype(mean);
  args.mean = view(mean, "mean", {B, K, C});
  args.cov = state_view(cov, "cov", {B, K, K}, state);
  Output shift = output(mean, {B, K, C});
  Output precision = output(mean, {B, K, K});
  args.shift_out = shift.view;
  args.precision_out = precision.view;
  kernels().statistics(args, TorchExecutor());
  return {shift.tensor, precision.tensor};
}

// mean and cov are not read: the results determine the gradient.
std::tuple<Tensor, Tensor> statistics_backward(OptionalTensor grad_shift,
                                               OptionalTensor grad_precision, Tensor mean,
                                               Tensor cov, Tensor shift, Tensor precision) {
  STD_TORCH_CHECK(shift.dim() == 3, "shift must have three dimensions");
  StatisticsBackwardArgs args;
  args.n = {shift.size(0), 0, shift.size(1), shift.size(2)};
  const auto [B, T, K, C] = args.n;
  const Dtype state = state_dtype(shift);
  args.shift = view(shift, "shift", {B, K, C});
  args.precision = state_view(precision, "precision", {B, K, K}, state);
  args.grad_shift = state_view(grad_shift, "grad_shift", {B, K, C}, state);
  args.grad_precision = state_view(grad_precision, "grad_precision", {B, K, K}, state);
  Output d_mean = output(mean, {B, K, C});
  Output d_cov = output(cov, {B, K, K});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  kernels().statistics_backward(args, TorchExecutor());
  return {d_mean.tensor, d_cov.tensor};
}

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("statistics", TORCH_BOX(&statistics));
  m.impl("statistics_backward", TORCH_BOX(&statistics_backward));
}

}  // namespace kanerva::cpu
