#pragma once

#include <string>
#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

// A string argument of an operator. PyTorch's own conversion to std::string (up to 2.13) leaks one
// at every call.
class StringArgument {
 public:
  explicit StringArgument(StringHandle handle) : handle_(handle) {}
  StringArgument(const StringArgument&) = delete;
  StringArgument& operator=(const StringArgument&) = delete;
  ~StringArgument() { torch_delete_string(handle_); }

  std::string text() const {
    size_t length = 0;
    const char* data = nullptr;
    KANERVA_TORCH_CHECK(torch_string_length(handle_, &length));
    KANERVA_TORCH_CHECK(torch_string_c_str(handle_, &data));
    return {data, length};
  }

 private:
  StringHandle handle_;
};

inline WriteMethod write_method(const std::string& name) {
  if (name == "auto") return WriteMethod::automatic;
  if (name == "chunk") return WriteMethod::chunk;
  if (name == "information") return WriteMethod::information;
  if (name == "sqrt") return WriteMethod::sqrt;
  STD_TORCH_CHECK(false, "method must be auto, chunk, information or sqrt, got ", name);
}

// Inputs that forward and backward share.
template <class Backend, class Args>
void bayes_write_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                        const Tensor& weights, const Tensor& values, const Tensor& noise_var,
                        const OptionalTensor& mask, const OptionalTensor& decay,
                        const std::string& method) {
  STD_TORCH_CHECK(mean.dim() == 3 && weights.dim() == 3,
                  "mean and weights must have three dimensions");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(on, weights, "weights", {n.B, n.T, n.K});
  args.values = view(on, values, "values", {n.B, n.T, n.C});
  args.noise_var = state_view(on, noise_var, "noise_var", {n.B, n.T}, state);
  args.mask = mask_view(on, mask, n.B, n.T);
  args.decay = state_view(on, decay, "decay", {n.B, n.T}, state);
  args.method = write_method(method);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> bayes_write(Tensor mean, Tensor cov, Tensor weights,
                                               Tensor values, Tensor noise_var, OptionalTensor mask,
                                               OptionalTensor decay, StringHandle method) {
  const StringArgument method_name(method);
  const Backend on(mean);
  BayesWriteArgs args;
  bayes_write_inputs(on, args, mean, cov, weights, values, noise_var, mask, decay,
                     method_name.text());
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  Output mean_out = output(on, mean, {B, K, C});
  Output cov_out = output(on, mean, {B, K, K});
  Output log_evidence = output(on, mean, {B});
  args.mean_out = mean_out.view;
  args.cov_out = cov_out.view;
  args.log_evidence = log_evidence.view;
  on.bayes_write(args);
  return {mean_out.tensor, cov_out.tensor, log_evidence.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bayes_write_backward(
    OptionalTensor grad_mean, OptionalTensor grad_cov, OptionalTensor grad_log_evidence,
    Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, OptionalTensor mask,
    OptionalTensor decay, StringHandle method, Tensor posterior_mean, Tensor posterior_cov) {
  const StringArgument method_name(method);
  const Backend on(mean);
  BayesWriteBackwardArgs args;
  bayes_write_inputs(on, args, mean, cov, weights, values, noise_var, mask, decay,
                     method_name.text());
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  args.grad_mean = state_view(on, grad_mean, "grad_mean", {B, K, C}, args.mean.dtype);
  args.grad_cov = state_view(on, grad_cov, "grad_cov", {B, K, K}, args.mean.dtype);
  args.grad_log_evidence =
      state_view(on, grad_log_evidence, "grad_log_evidence", {B}, args.mean.dtype);
  args.posterior_mean =
      state_view(on, posterior_mean, "posterior_mean", {B, K, C}, args.mean.dtype);
  args.posterior_cov = state_view(on, posterior_cov, "posterior_cov", {B, K, K}, args.mean.dtype);
  Output d_mean = output(on, mean, {B, K, C});
  Output d_cov = output(on, mean, {B, K, K});
  Output d_weights = output(on, weights, {B, T, K});
  Output d_values = output(on, values, {B, T, C});
  Output d_noise_var = output(on, mean, {B, T});
  Output d_decay = decay.has_value() ? output(on, mean, {B, T}) : output(on, mean, {0});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_weights = d_weights.view;
  args.d_values = d_values.view;
  args.d_noise_var = d_noise_var.view;
  if (args.decay) args.d_decay = d_decay.view;
  on.bayes_write_backward(args);
  return {d_mean.tensor,   d_cov.tensor,       d_weights.tensor,
          d_values.tensor, d_noise_var.tensor, d_decay.tensor};
}

}  // namespace kanerva::ops
