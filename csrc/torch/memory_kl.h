#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend, class Args>
void memory_kl_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                      const Tensor& prior_mean, const Tensor& prior_cov) {
  check_dimensions(mean, "mean");
  const Sizes n{mean.size(0), 0, mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.prior_mean = state_view(on, prior_mean, "prior_mean", {n.B, n.K, n.C}, state);
  args.prior_cov = state_view(on, prior_cov, "prior_cov", {n.B, n.K, n.K}, state);
}

template <class Backend>
Tensor memory_kl(Tensor mean, Tensor cov, Tensor prior_mean, Tensor prior_cov) {
  const Backend on(mean);
  MemoryKlArgs args;
  memory_kl_inputs(on, args, mean, cov, prior_mean, prior_cov);
  Tensor kl = output(on, args.kl_out, mean, {args.n.B});
  on.memory_kl(args);
  return kl;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> memory_kl_backward(Tensor grad, Tensor mean, Tensor cov,
                                                              Tensor prior_mean, Tensor prior_cov) {
  const Backend on(mean);
  MemoryKlBackwardArgs args;
  memory_kl_inputs(on, args, mean, cov, prior_mean, prior_cov);
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  args.grad = state_view(on, grad, "grad", {B}, args.mean.dtype);
  Tensor d_mean = output(on, args.d_mean, mean, {B, K, C});
  Tensor d_cov = output(on, args.d_cov, mean, {B, K, K});
  Tensor d_prior_mean = output(on, args.d_prior_mean, mean, {B, K, C});
  Tensor d_prior_cov = output(on, args.d_prior_cov, mean, {B, K, K});
  on.memory_kl_backward(args);
  return {d_mean, d_cov, d_prior_mean, d_prior_cov};
}

}  // namespace kanerva::ops
