#include <string>
#include <tuple>

#include "common.h"

namespace kanerva::cpu {

namespace {

WriteMethod write_method(const std::string& name) {
  if (name == "auto") return WriteMethod::automatic;
  if (name == "chunk") return WriteMethod::chunk;
  if (name == "information") return WriteMethod::information;
  if (name == "sqrt") return WriteMethod::sqrt;
  STD_TORCH_CHECK(false, "method must be auto, chunk, information or sqrt, got ", name);
}

// Inputs that forward and backward share.
template <class Args>
void take_inputs(Args& args, const Tensor& mean, const Tensor& cov, const Tensor& weights,
                 const Tensor& values, const Tensor& noise_var, const OptionalTensor& mask,
                 const OptionalTensor& decay, const std::string& method) {
  STD_TORCH_CHECK(mean.dim() == 3 && weights.dim() == 3,
                  "mean and weights must have three dimensions");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(weights, "weights", {n.B, n.T, n.K});
  args.values = view(values, "values", {n.B, n.T, n.C});
  args.noise_var = state_view(noise_var, "noise_var", {n.B, n.T}, state);
  args.mask = mask_view(mask, n.B, n.T);
  args.decay = state_view(decay, "decay", {n.B, n.T}, state);
  args.method = write_method(method);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> bayes_write(Tensor mean, Tensor cov, Tensor weights,
                                               Tensor values, Tensor noise_var, OptionalTensor mask,
                                               OptionalTensor decay, std::string method) {
  BayesWriteArgs args;
  take_inputs(args, mean, cov, weights, values, noise_var, mask, decay, method);
  const auto [B, T, K, C] = args.n;
  Output mean_out = output(mean, {B, K, C});
  Output cov_out = output(mean, {B, K, K});
  Output log_evidence = output(mean, {B});
  args.mean_out = mean_out.view;
  args.cov_out = cov_out.view;
  args.log_evidence = log_evidence.view;
  kernels().bayes_write(args, TorchExecutor());
  return {mean_out.tensor, cov_out.tensor, log_evidence.tensor};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bayes_write_backward(
    OptionalTensor grad_mean, OptionalTensor grad_cov, OptionalTensor grad_log_evidence,
    Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, OptionalTensor mask,
    OptionalTensor decay, std::string method, Tensor posterior_mean, Tensor posterior_cov) {
  BayesWriteBackwardArgs args;
  take_inputs(args, mean, cov, weights, values, noise_var, mask, decay, method);
  const auto [B, T, K, C] = args.n;
  args.grad_mean = state_view(grad_mean, "grad_mean", {B, K, C}, args.mean.dtype);
  args.grad_cov = state_view(grad_cov, "grad_cov", {B, K, K}, args.mean.dtype);
  args.grad_log_evidence = state_view(grad_log_evidence, "grad_log_evidence", {B}, args.mean.dtype);
  args.posterior_mean = state_view(posterior_mean, "posterior_mean", {B, K, C}, args.mean.dtype);
  args.posterior_cov = state_view(posterior_cov, "posterior_cov", {B, K, K}, args.mean.dtype);
  Output d_mean = output(mean, {B, K, C});
  Output d_cov = output(mean, {B, K, K});
  Output d_weights = output(weights, {B, T, K});
  Output d_values = output(values, {B, T, C});
  Output d_noise_var = output(mean, {B, T});
  Output d_decay = decay.has_value() ? output(mean, {B, T}) : output(mean, {0});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_weights = d_weights.view;
  args.d_values = d_values.view;
  args.d_noise_var = d_noise_var.view;
  if (args.decay) args.d_decay = d_decay.view;
  kernels().bayes_write_backward(args, TorchExecutor());
  return {d_mean.tensor,   d_cov.tensor,       d_weights.tensor,
          d_values.tensor, d_noise_var.tensor, d_decay.tensor};
}

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("bayes_write", TORCH_BOX(&bayes_write));
  m.impl("bayes_write_backward", TORCH_BOX(&bayes_write_backward));
}

}  // namespace kanerva::cpu
