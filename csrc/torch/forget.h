#pragma once

#include <tuple>

#include "inputs.h"

namespace kanerva::ops {

template <class Backend>
std::tuple<Tensor, Tensor> forget(Tensor mean, Tensor cov, Tensor weights, Tensor values,
                                  Tensor noise_var, OptionalTensor mask) {
  const Backend on(mean);
  ForgetArgs args;
  write_inputs(on, args, mean, cov, weights, values, noise_var, mask, {}, {}, {});
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  Tensor mean_out = output(on, args.mean_out, mean, {B, K, C});
  Tensor cov_out = output(on, args.cov_out, mean, {B, K, K});
  on.forget(args);
  return {mean_out, cov_out};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forget_backward(
    OptionalTensor grad_mean, OptionalTensor grad_cov, Tensor mean, Tensor cov, Tensor weights,
    Tensor values, Tensor noise_var, OptionalTensor mask, Tensor rest_mean, Tensor rest_cov) {
  const Backend on(mean);
  ForgetBackwardArgs args;
  write_inputs(on, args, mean, cov, weights, values, noise_var, mask, {}, {}, {});
  write_gradients(on, args, grad_mean, grad_cov, {});
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  const Dtype state = args.mean.dtype;
  args.rest_mean = state_view(on, rest_mean, "rest_mean", {B, K, C}, state);
  args.rest_cov = state_view(on, rest_cov, "rest_cov", {B, K, K}, state);
  const WriteResults d = write_results(on, args, mean, weights, values);
  on.forget_backward(args);
  return {d.mean, d.cov, d.weights, d.values, d.noise_var};
}

}  // namespace kanerva::ops
