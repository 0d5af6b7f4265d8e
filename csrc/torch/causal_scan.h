#pragma once

#include <tuple>

#include "inputs.h"

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
                           const OptionalTensor& decay, const OptionalTensor& retention,
                           const OptionalTensor& stationary_cov, const OptionalTensor& cu_seqlens,
                           int64_t chunk_size) {
  STD_TORCH_CHECK(chunk_size >= 0, "chunk_size must not be negative, got ", chunk_size);
  const int64_t rows = weights.dim() == 3 ? weights.size(0) : 0;
  args.packing = packing(on, cu_seqlens);
  args.chunk_size = chunk_size;
  write_inputs(on, args, mean, cov, weights, values, noise_var, mask, decay, retention,
               stationary_cov, rows);
  STD_TORCH_CHECK(args.n.B == rows * args.packing.count, "mean must hold a state for each of the ",
                  args.packing.count, " sequences of each of the ", rows, " rows of weights, got ",
                  args.n.B);
  args.queries = view(on, queries, "queries", {rows, args.n.T, args.n.K});
  return rows;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_scan(
    Tensor mean, Tensor cov, Tensor weights, Tensor values, Tensor queries, Tensor noise_var,
    OptionalTensor mask, OptionalTensor decay, OptionalTensor retention,
    OptionalTensor stationary_cov, OptionalTensor cu_seqlens, int64_t chunk_size) {
  const Backend on(mean);
  CausalScanArgs args;
  const int64_t rows =
      causal_scan_inputs(on, args, mean, cov, weights, values, queries, noise_var, mask, decay,
                         retention, stationary_cov, cu_seqlens, chunk_size);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  Tensor reads = output(on, args.reads_out, mean, {rows, T, C});
  Tensor read_var = output(on, args.read_var_out, mean, {rows, T});
  Tensor mean_out = output(on, args.mean_out, mean, {B, K, C});
  Tensor cov_out = output(on, args.cov_out, mean, {B, K, K});
  Tensor log_evidence = output(on, args.log_evidence, mean, {B});
  on.causal_scan(args);
  return {reads, read_var, mean_out, cov_out, log_evidence};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
causal_scan_backward(OptionalTensor grad_reads, OptionalTensor grad_read_var,
                     OptionalTensor grad_mean, OptionalTensor grad_cov,
                     OptionalTensor grad_log_evidence, Tensor mean, Tensor cov, Tensor weights,
                     Tensor values, Tensor queries, Tensor noise_var, OptionalTensor mask,
                     OptionalTensor decay, OptionalTensor retention, OptionalTensor stationary_cov,
                     OptionalTensor cu_seqlens, int64_t chunk_size) {
  const Backend on(mean);
  CausalScanBackwardArgs args;
  const int64_t rows =
      causal_scan_inputs(on, args, mean, cov, weights, values, queries, noise_var, mask, decay,
                         retention, stationary_cov, cu_seqlens, chunk_size);
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const Dtype state = args.mean.dtype;
  args.grad_reads = state_view(on, grad_reads, "grad_reads", {rows, T, C}, state);
  args.grad_read_var = state_view(on, grad_read_var, "grad_read_var", {rows, T}, state);
  write_gradients(on, args, grad_mean, grad_cov, grad_log_evidence);
  const WriteResults d = write_results(on, args, mean, weights, values);
  Tensor d_queries = output(on, args.d_queries, queries, {rows, T, K});
  const DynamicsResults dynamics =
      dynamics_results(on, args, mean, weights, decay, retention, stationary_cov);
  on.causal_scan_backward(args);
  return {d.mean,
          d.cov,
          d.weights,
          d.values,
          d_queries,
          d.noise_var,
          dynamics.decay,
          dynamics.retention,
          dynamics.stationary_cov};
}

}  // namespace kanerva::ops
