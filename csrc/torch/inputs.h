// What several operators are given and give back, checked and as views.
#pragma once

#include "tensors.h"

namespace kanerva::ops {

// Whether the memory moves, checked.
inline bool moves(const OptionalTensor& decay, const OptionalTensor& retention,
                  const OptionalTensor& stationary_cov) {
  STD_TORCH_CHECK(retention.has_value() || !stationary_cov.has_value(),
                  "stationary_cov needs a retention");
  if (!retention.has_value()) return false;
  STD_TORCH_CHECK(!decay.has_value(), "decay and retention exclude each other: give one");
  return true;
}

// `rows`: batches of the steps, one for each memory unless sequences are packed.
template <class Backend>
void write_inputs(const Backend& on, WriteInputs& args, const Tensor& mean, const Tensor& cov,
                  const Tensor& weights, const Tensor& values, const Tensor& noise_var,
                  const OptionalTensor& mask, const OptionalTensor& decay,
                  const OptionalTensor& retention, const OptionalTensor& stationary_cov,
                  std::optional<int64_t> rows_of_steps = {}) {
  check_dimensions(mean, "mean");
  check_dimensions(weights, "weights");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const int64_t rows = rows_of_steps.value_or(n.B);
  const Dtype state = state_dtype(mean);
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(on, weights, "weights", {rows, n.T, n.K});
  args.values = view(on, values, "values", {rows, n.T, n.C});
  args.noise_var = state_view(on, noise_var, "noise_var", {rows, n.T}, state);
  args.mask = mask_view(on, mask, {rows, n.T});
  args.decay = state_view(on, decay, "decay", {rows, n.T}, state);
  if (!moves(decay, retention, stationary_cov)) return;
  args.retention = state_view(on, retention, "retention", {rows, n.T}, state);
  args.stationary_cov = state_view(on, stationary_cov, "stationary_cov", {n.B, n.K, n.K}, state);
}

template <class Backend>
void write_gradients(const Backend& on, WriteBackward& args, const OptionalTensor& grad_mean,
                     const OptionalTensor& grad_cov, const OptionalTensor& grad_log_evidence) {
  const auto [B, T, K, C] = args.n;
  const Dtype state = args.mean.dtype;
  args.grad_mean = state_view(on, grad_mean, "grad_mean", {B, K, C}, state);
  args.grad_cov = state_view(on, grad_cov, "grad_cov", {B, K, K}, state);
  args.grad_log_evidence = state_view(on, grad_log_evidence, "grad_log_evidence", {B}, state);
}

// The gradients that the adjoint of a write gives.
struct WriteResults {
  Tensor mean, cov, weights, values, noise_var;
};

template <class Backend>
WriteResults write_results(const Backend& on, WriteBackward& args, const Tensor& mean,
                           const Tensor& weights, const Tensor& values) {
  const auto [B, T, K, C] = args.n;
  const int64_t rows = weights.size(0);
  return {output(on, args.d_mean, mean, {B, K, C}), output(on, args.d_cov, mean, {B, K, K}),
          output(on, args.d_weights, weights, {rows, T, K}),
          output(on, args.d_values, values, {rows, T, C}),
          output(on, args.d_noise_var, mean, {rows, T})};
}

// Those of the decay and of the dynamics: empty, and not asked for, without them.
struct DynamicsResults {
  Tensor decay, retention, stationary_cov;
};

template <class Backend>
DynamicsResults dynamics_results(const Backend& on, WriteBackward& args, const Tensor& mean,
                                 const Tensor& weights, const OptionalTensor& decay,
                                 const OptionalTensor& retention,
                                 const OptionalTensor& stationary_cov) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K;
  const int64_t rows = weights.size(0);
  View none;
  const auto per_step = [&](const OptionalTensor& given, View& d) {
    return given.has_value() ? output(on, d, mean, {rows, T}) : output(on, none, mean, {0});
  };
  Tensor d_decay = per_step(decay, args.d_decay);
  Tensor d_retention = per_step(retention, args.d_retention);
  Tensor d_stationary_cov = stationary_cov.has_value()
                                ? output(on, args.d_stationary_cov, mean, {B, K, K})
                                : output(on, none, mean, {0});
  return {d_decay, d_retention, d_stationary_cov};
}

template <class Backend>
void solve_inputs(const Backend& on, SolveInputs& args, const Tensor& mean, const Tensor& queries,
                  const Tensor& ridge) {
  check_dimensions(mean, "mean");
  check_dimensions(queries, "queries");
  const Sizes n{mean.size(0), queries.size(1), mean.size(1), mean.size(2)};
  args.n = n;
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.queries = view(on, queries, "queries", {n.B, n.T, n.C});
  args.ridge = state_view(on, ridge, "ridge", {n.B}, state_dtype(mean));
}

}  // namespace kanerva::ops
