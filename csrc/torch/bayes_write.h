#pragma once

#include <string>
#include <tuple>

#include "inputs.h"

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

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> bayes_write(Tensor mean, Tensor cov, Tensor weights,
                                               Tensor values, Tensor noise_var, OptionalTensor mask,
                                               OptionalTensor decay, OptionalTensor retention,
                                               OptionalTensor stationary_cov, StringHandle method) {
  const StringArgument method_name(method);
  const Backend on(mean);
  BayesWriteArgs args;
  write_inputs(on, args, mean, cov, weights, values, noise_var, mask, decay, retention,
               stationary_cov);
  args.method = write_method(method_name.text());
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  Tensor mean_out = output(on, args.mean_out, mean, {B, K, C});
  Tensor cov_out = output(on, args.cov_out, mean, {B, K, K});
  Tensor log_evidence = output(on, args.log_evidence, mean, {B});
  on.bayes_write(args);
  return {mean_out, cov_out, log_evidence};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bayes_write_backward(
    OptionalTensor grad_mean, OptionalTensor grad_cov, OptionalTensor grad_log_evidence,
    Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor noise_var, OptionalTensor mask,
    OptionalTensor decay, OptionalTensor retention, OptionalTensor stationary_cov,
    StringHandle method, Tensor posterior_mean, Tensor posterior_cov) {
  const StringArgument method_name(method);
  const Backend on(mean);
  BayesWriteBackwardArgs args;
  write_inputs(on, args, mean, cov, weights, values, noise_var, mask, decay, retention,
               stationary_cov);
  args.method = write_method(method_name.text());
  write_gradients(on, args, grad_mean, grad_cov, grad_log_evidence);
  const int64_t B = args.n.B, K = args.n.K, C = args.n.C;
  args.posterior_mean =
      state_view(on, posterior_mean, "posterior_mean", {B, K, C}, args.mean.dtype);
  args.posterior_cov = state_view(on, posterior_cov, "posterior_cov", {B, K, K}, args.mean.dtype);
  const WriteResults d = write_results(on, args, mean, weights, values);
  const DynamicsResults dynamics =
      dynamics_results(on, args, mean, weights, decay, retention, stationary_cov);
  on.bayes_write_backward(args);
  return {d.mean,      d.cov,          d.weights,          d.values,
          d.noise_var, dynamics.decay, dynamics.retention, dynamics.stationary_cov};
}

}  // namespace kanerva::ops
