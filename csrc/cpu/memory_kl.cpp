#include <tuple>

#include "common.h"

namespace kanerva::cpu {

namespace {

template <class Args>
void take_inputs(Args& args, const Tensor& mean, const Tensor& cov, const Tensor& prior_mean,
                 const Tensor& prior_cov) {
  STD_TORCH_CHECK(mean.dim() == 3, "mean must have three dimensions");
  const Sizes n{mean.size(0), 0, mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(cov, "cov", {n.B, n.K, n.K}, state);
  args.prior_mean = state_view(prior_mean, "prior_mean", {n.B, n.K, n.C}, state);
  args.prior_cov = state_view(prior_cov, "prior_cov", {n.B, n.K, n.K}, state);
}

}  // namespace

Tensor memory_kl(Tensor mean, Tensor cov, Tensor prior_mean, Tensor prior_cov) {
  MemoryKlArgs args;
  take_inputs(args, mean, cov, prior_mean, prior_cov);
  Output kl = output(mean, {args.n.B});
  args.kl_out = kl.view;
  kernels().memory_kl(args, TorchExecutor());
  return kl.tensor;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> memory_kl_backward(Tensor grad, Tensor mean, Tensor cov,
                                                              Tensor prior_mean, Tensor prior_cov) {
  MemoryKlBackwardArgs args;
  take_inputs(args, mean, cov, prior_mean, prior_cov);
  const auto [B, T, K, C] = args.n;
  args.grad = state_view(grad, "grad", {B}, args.mean.dtype);
  Output d_mean = output(mean, {B, K, C});
  Output d_cov = output(mean, {B, K, K});
  Output d_prior_mean = output(mean, {B, K, C});
  Output d_prior_cov = output(mean, {B, K, K});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_prior_mean = d_prior_mean.view;
  args.d_prior_cov = d_prior_cov.view;
  kernels().memory_kl_backward(args, TorchExecutor());
  return {d_mean.tensor, d_cov.tensor, d_prior_mean.tensor, d_prior_cov.tensor};
}

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("memory_kl", TORCH_BOX(&memory_kl));
  m.impl("memory_kl_backward", TORCH_BOX(&memory_kl_backward));
}

}  // namespace kanerva::cpu
