#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend>
std::tuple<Tensor, Tensor> statistics(Tensor mean, Tensor cov) {
  check_dimensions(mean, "mean");
  const Backend on(mean);
  StatisticsArgs args;
  args.n = {mean.size(0), 0, mean.size(1), mean.size(2)};
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype state = state_dtype(mean);
  args.mean = view(on, mean, "mean", {B, K, C});
  args.cov = state_view(on, cov, "cov", {B, K, K}, state);
  Tensor shift = output(on, args.shift_out, mean, {B, K, C});
  Tensor precision = output(on, args.precision_out, mean, {B, K, K});
  on.statistics(args);
  return {shift, precision};
}

// mean and cov are not read: the results determine the gradient.
template <class Backend>
std::tuple<Tensor, Tensor> statistics_backward(OptionalTensor grad_shift,
                                               OptionalTensor grad_precision, Tensor mean,
                                               Tensor cov, Tensor shift, Tensor precision) {
  check_dimensions(shift, "shift");
  const Backend on(shift);
  StatisticsBackwardArgs args;
  args.n = {shift.size(0), 0, shift.size(1), shift.size(2)};
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype state = state_dtype(shift);
  args.shift = view(on, shift, "shift", {B, K, C});
  args.precision = state_view(on, precision, "precision", {B, K, K}, state);
  args.grad_shift = state_view(on, grad_shift, "grad_shift", {B, K, C}, state);
  args.grad_precision = state_view(on, grad_precision, "grad_precision", {B, K, K}, state);
  Tensor d_mean = output(on, args.d_mean, mean, {B, K, C});
  Tensor d_cov = output(on, args.d_cov, cov, {B, K, K});
  on.statistics_backward(args);
  return {d_mean, d_cov};
}

}  // namespace kanerva::ops
