#pragma once

#include <tuple>

#include "tensors.h"

namespace kanerva::ops {

template <class Backend>
Packing packing(const Backend& on, const OptionalTensor& cu_seqlens) {
  Packing p;
  if (!cu_seqlens.has_value()) return p;
  on.check_device(*cu_seqlens, "cu_seqlens");
  STD_TORCH_CHECK(cu_seqlens->scalar_type() == ScalarType::Long && cu_seqlens->dim() == 1 &&
                      cu_seqlens->size(0) >= 2,
                  "cu_seqlens must be int64 of shape (N + 1,) with N at least 1");
  p.bounds = static_cast<const int64_t*>(cu_seqlens->data_ptr());
  p.stride = cu_seqlens->stride(0);
  p.count = cu_seqlens->size(0) - 1;
  return p;
}

// Inputs that forward and backward share; returns the rows that the sequences lie in.
template <class Backend, class Args>
int64_t causal_scan_inputs(const Backend& on, Args& args, const Tensor& mean, const Tensor& cov,
                           const Tensor& weights, const Tensor& values, const Tensor& queries,
                           const Tensor& noise_var, const OptionalTensor& mask,
                           const OptionalTensor& decay, const OptionalTensor& cu_seqlens,
                           int64_t chunk_size) {
  STD_TORCH_CHECK(mean.dim() == 3 && weights.dim() == 3,
                  "mean and weights must have three dimensions");
  STD_TORCH_CHECK(chunk_size >= 0, "chunk_size must not be negative");
  const Sizes n{mean.size(0), weights.size(1), mean.size(1), mean.size(2)};
  const Dtype state = state_dtype(mean);
  const int64_t rows = weights.size(0);
  args.n = n;
  args.packing = packing(on, cu_seqlens);
  args.chunk_size = chunk_size;
  STD_TORCH_CHECK(n.B == rows * args.packing.count,
                  "mean must hold a state for each sequence of each row of weights");
  args.mean = view(on, mean, "mean", {n.B, n.K, n.C});
  args.cov = state_view(on, cov, "cov", {n.B, n.K, n.K}, state);
  args.weights = view(on, weights, "weights", {rows, n.T, n.K});
  args.values = view(on, values, "values", {rows, n.T, n.C});
  args.queries = view(on, queries, "queries", {rows, n.T, n.K});
  args.noise_var = state_view(on, noise_var, "noise_var", {rows, n.T}, state);
  args.mask = mask_view(on, mask, rows, n.T);
  args.decay = state_view(on, decay, "decay", {rows, n.T}, state);
  return rows;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_scan(
    Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor queries, Tensor noise_var,
    OptionalTensor mask, OptionalTensor decay, OptionalTensor cu_seqlens, int64_t chunk_size) {
  const Backend on(mean);
  CausalScanArgs args;
  const int64_t rows = causal_scan_inputs(on, args, mean, cov, weights, values, queries, noise_var,
                                          mask, decay, cu_seqlens, chunk_size);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  Output reads = output(on, mean, {rows, T, C});
  Output read_var = output(on, mean, {rows, T});
  Output mean_out = output(on, mean, {B, K, C});
  Output cov_out = output(on, mean, {B, K, K});
  Output log_evidence = output(on, mean, {B});
  args.reads_out = reads.view;
  args.read_var_out = read_var.view;
  args.mean_out = mean_out.view;
  args.cov_out = cov_out.view;
  args.log_evidence = log_evidence.view;
  on.causal_scan(args);
  return {reads.tensor, read_var.tensor, mean_out.tensor, cov_out.tensor, log_evidence.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> causal_scan_backward(
    OptionalTensor grad_reads, OptionalTensor grad_read_var, OptionalTensor grad_mean,
    OptionalTensor grad_cov, OptionalTensor grad_log_evidence, Tensor mean, Tensor cov,
    Tensor weights, Tensor values, Tensor queries, Tensor noise_var, OptionalTensor mask,
    OptionalTensor decay, OptionalTensor cu_seqlens, int64_t chunk_size) {
  const Backend on(mean);
  CausalScanBackwardArgs args;
  const int64_t rows = causal_scan_inputs(on, args, mean, cov, weights, values, queries, noise_var,
                                          mask, decay, cu_seqlens, chunk_size);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype state = args.mean.dtype;
  args.grad_reads = state_view(on, grad_reads, "grad_reads", {rows, T, C}, state);
  args.grad_read_var = state_view(on, grad_read_var, "grad_read_var", {rows, T}, state);
  args.grad_mean = state_view(on, grad_mean, "grad_mean", {B, K, C}, state);
  args.grad_cov = state_view(on, grad_cov, "grad_cov", {B, K, K}, state);
  args.grad_log_evidence = state_view(on, grad_log_evidence, "grad_log_evidence", {B}, state);
  Output d_mean = output(on, mean, {B, K, C});
  Output d_cov = output(on, mean, {B, K, K});
  Output d_weights = output(on, weights, {rows, T, K});
  Output d_values = output(on, values, {rows, T, C});
  Output d_queries = output(on, queries, {rows, T, K});
  Output d_noise_var = output(on, mean, {rows, T});
  Output d_decay = decay.has_value() ? output(on, mean, {rows, T}) : output(on, mean, {0});
  args.d_mean = d_mean.view;
  args.d_cov = d_cov.view;
  args.d_weights = d_weights.view;
  args.d_values = d_values.view;
  args.d_queries = d_queries.view;
  args.d_noise_var = d_noise_var.view;
  if (args.decay) args.d_decay = d_decay.view;
  on.causal_scan_backward(args);
  return {d_mean.tensor,    d_cov.tensor,       d_weights.tensor, d_values.tensor,
          d_queries.tensor, d_noise_var.tensor, d_decay.tensor};
}

}  // namespace kanerva::ops
