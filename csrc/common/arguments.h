// Arguments of the operators, as plain pointers and strides: the boundary between the numerical
// core and whoever calls it (PyTorch operators, NumPy bindings).
#pragma once

#include <cstdint>

#include "executor.h"

namespace kanerva {

enum class Dtype : int8_t { float32, float64, float16, bfloat16 };

// A tensor with up to three dimensions, (batch, row, column); strides count elements and may be 0.
struct View {
  void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t stride[3] = {0, 0, 0};

  explicit operator bool() const { return data != nullptr; }
};

enum class WriteMethod : int8_t { automatic, chunk, information, sqrt };

// Sizes: B memories of K slots and C columns, T steps or queries.
struct Sizes {
  int64_t B = 0, T = 0, K = 0, C = 0;
};

// Inputs may have any strides; outputs are contiguous. Views left empty are absent: optional
// inputs, gradients that are zero, or outputs that are not wanted.
//
// What several operators are given stands in a base: a kernel that needs no more takes that.
struct WriteInputs {
  Sizes n;
  View mean, cov, weights, values, noise_var, mask, decay;
  View retention, stationary_cov;  // of a memory that moves; not beside a decay

  // Without steps a view of a retention may be empty.
  bool moves() const { return retention || stationary_cov; }
};

struct WriteBackward : WriteInputs {
  View grad_mean, grad_cov, grad_log_evidence;
  View d_mean, d_cov, d_weights, d_values, d_noise_var, d_decay;
  View d_retention, d_stationary_cov;
};

struct BayesWriteArgs : WriteInputs {
  WriteMethod method = WriteMethod::automatic;
  View mean_out, cov_out, log_evidence;
};

struct BayesWriteBackwardArgs : WriteBackward {
  WriteMethod method = WriteMethod::automatic;
  View posterior_mean, posterior_cov;
};

struct SolveInputs {
  Sizes n;
  View mean, queries, ridge;
};

struct SolveAddressesArgs : SolveInputs {
  View weights_out;
};

struct SolveAddressesBackwardArgs : SolveInputs {
  View grad_weights, weights;
  View d_mean, d_queries, d_ridge;
};

struct ReadArgs {
  Sizes n;
  View mean, cov, weights;
  View values_out, var_out;
};

struct ReadBackwardArgs {
  Sizes n;
  View grad_values, grad_var, mean, cov, weights;
  View d_mean, d_cov, d_weights;
};

// Of solving and of reading at the solution.
struct RecallArgs : SolveAddressesArgs {
  View cov;
  View values_out, var_out;
};

struct RecallBackwardArgs : SolveAddressesBackwardArgs {
  View grad_values, grad_var, cov;
  View d_cov;
};

struct MemoryKlArgs {
  Sizes n;
  View mean, cov, prior_mean, prior_cov;
  View kl_out;
};

struct MemoryKlBackwardArgs {
  Sizes n;
  View grad, mean, cov, prior_mean, prior_cov;
  View d_mean, d_cov, d_prior_mean, d_prior_cov;
};

// (mean, cov) -> (shift, precision) = (cov^-1 mean, cov^-1); the map is its own inverse.
struct StatisticsArgs {
  Sizes n;
  View mean, cov;
  View shift_out, precision_out;
};

struct StatisticsBackwardArgs {
  Sizes n;
  View grad_shift, grad_precision, shift, precision;
  View d_mean, d_cov;
};

// The Dynamic Kanerva write: each address is solved against the mean as it stands, `num_iters`
// times, the last ones against the memory as it would stand after the step.
struct AdaptiveWriteArgs {
  Sizes n;
  View mean, cov, values, noise_var, ridge, mask;
  int64_t num_iters = 1;
  View mean_out, cov_out, weights_out, step_kl, log_evidence;
};

struct AdaptiveWriteBackwardArgs {
  Sizes n;
  View grad_mean, grad_cov, grad_weights, grad_step_kl, grad_log_evidence;
  View mean, cov, values, noise_var, ridge, mask;
  int64_t num_iters = 1;
  View weights;  // that the forward gave
  View d_mean, d_cov, d_values, d_noise_var, d_ridge;
};

// Without decay and the gradients of it and of a log evidence.
struct ForgetArgs : WriteInputs {
  View mean_out, cov_out;
};

struct ForgetBackwardArgs : WriteBackward {
  View rest_mean, rest_cov;  // what the forward gave
};

// Sequences packed one after another along the steps: the n-th is bounds[n] .. bounds[n + 1].
struct Packing {
  const int64_t* bounds = nullptr;  // count + 1 of them; null: every row is one sequence
  int64_t stride = 1, count = 1;
};

// Each of the n.B states belongs to a sequence, state b N + i to the i-th of the N of row b.
struct CausalScanArgs : WriteInputs {
  Packing packing;
  int64_t chunk_size = 0;  // steps conditioned on at once, at most; 0: chosen
  View queries;
  View reads_out, read_var_out, mean_out, cov_out, log_evidence;  // mean_out may be mean: one step
};

struct CausalScanBackwardArgs : WriteBackward {
  Packing packing;
  int64_t chunk_size = 0;
  View queries, grad_reads, grad_read_var;
  View d_queries;
};

// X(name, type of its arguments) for every operator that a backend has.
#define KANERVA_OPERATORS(X)                              \
  X(bayes_write, BayesWriteArgs)                          \
  X(bayes_write_backward, BayesWriteBackwardArgs)         \
  X(solve_addresses, SolveAddressesArgs)                  \
  X(solve_addresses_backward, SolveAddressesBackwardArgs) \
  X(read, ReadArgs)                                       \
  X(read_backward, ReadBackwardArgs)                      \
  X(recall, RecallArgs)                                   \
  X(recall_backward, RecallBackwardArgs)                  \
  X(memory_kl, MemoryKlArgs)                              \
  X(memory_kl_backward, MemoryKlBackwardArgs)             \
  X(statistics, StatisticsArgs)                           \
  X(statistics_backward, StatisticsBackwardArgs)          \
  X(adaptive_write, AdaptiveWriteArgs)                    \
  X(adaptive_write_backward, AdaptiveWriteBackwardArgs)   \
  X(forget, ForgetArgs)                                   \
  X(forget_backward, ForgetBackwardArgs)                  \
  X(causal_scan, CausalScanArgs)                          \
  X(causal_scan_backward, CausalScanBackwardArgs)

// One table per instruction set; kernels() picks the best the processor has.
struct Kernels {
#define KANERVA_ENTRY(op, Args) void (*op)(const Args&, const Executor&);
  KANERVA_OPERATORS(KANERVA_ENTRY)
#undef KANERVA_ENTRY
};

const Kernels& kernels();
const char* simd_level();

}  // namespace kanerva
