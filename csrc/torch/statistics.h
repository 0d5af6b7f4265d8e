#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend>
std::tuple<Tensor, Tensor> statistics(Tensor mean, Tensor cov) {
  STD_TORCH_CHECK(mean.dim() == 3, "mean must have three dimensions");
  const Backend on(mean);
  StatisticsArgs args;
  args.n = {mean.size(0), 0, mean.size(1), mean.size(2)};
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype state = state_dtype(mean);
  args.mean = view(on, mean, "mean", {B, K, C});
  args.cov = state_view(on, cov, "cov", {B, K, K}, state);
  Output shift = output(on, mean, {B, K, C});
  Output precision = output(on, mean, {B, K, K});
  args.shift_out = shift.view;
  args.precision_out = precision.view;
  on.statistics(args);
  return {shift.tensor, precision.tensor};
}

// mean and cov are not read: the results determine the gradient.
template <class Backend>
std::tuple<Tensor, Tensor> statistics_backward(OptionalTensor grad_shift,
                                               OptionalTensor grad_precision, Tensor mean,
                                               Tensor cov, Tensor shift, Tensor precision) {
  STD_TORCH_CHECK(shift.dim() == 3, "shift must have three dimensions");
  const Backend on(shift);
  StatisticsBackwardArgs args;
  args.n = {shift.size(0), 0, shift.size(1), shift.size(2)};
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype state = state_dtype(shift);
  args.shift = view(on, shift, "shift", {B, K, C});
  args.precision = state_view(on, precision, "precision", {B, K, K}, state);
  args.grad_shift = state_view(on, grad_shift, "grad_shift", {B, K, C}, state);
  args.grad_precision = state_view(on, grad_precision, "grad_precision", {B, K, K}, state);
  Output d_mean = output(on, mean, {B, K, C});
  Output d_cov = output(on, cov, {B, K, K});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  on.statistics_backward(args);
  return {d_mean.tensor, d_cov.tensor};
}

}  // namespace kanerva::ops
