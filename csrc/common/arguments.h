// Arguments of the operators, as plain pointers and strides: the boundary between the numerical
// core and whoever calls it (PyTorch operators, NumPy bindings).
#pragma once

#include <cstdint>
#include <string_view>

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

// False where none has that name.
inline bool find_method(std::string_view name, WriteMethod& method) {
  constexpr std::string_view names[] = {"auto", "chunk", "information", "sqrt"};
  for (int8_t i = 0; i < 4; ++i)
    if (name == names[i]) return method = WriteMethod(i), true;
  return false;
}
constexpr const char* kMethods = "method must be auto, chunk, information or sqrt, got ";
constexpr const char* kOneForgets = "decay and retention exclude each other: give one";
constexpr const char* kNeedsRetention = "stationary_cov needs a retention";

// Sizes: B memories of K slots and C columns, T steps or queries.
struct Sizes {
  int64_t B = 0, T = 0, K = 0, C = 0;
};

// Inputs may have any strides; outputs are contiguous. Views left empty are absent: optional
// inputs, gradients that are zero, or outputs that are not wanted.
//
// What several operators are given stands in a base: a kernel that needs no more takes that.
//
// fields(f) walks the arguments and then the results in the order of the operator's schema. Both
// who calls the core with tensors (torch/call.h) and with arrays (numpy/core.cpp) do no more than
// walk it. Shapes are words of B, T, K, C, and R, the rows that steps lie in, which are B unless
// sequences are packed. f has
//   memory(view, name)          the mean, (B, K, C), which gives these and the dtype of the state
//   steps(view, name, shape)    of any floating dtype; gives T
//   data(view, name, shape)     of any floating dtype
//   state(view, name, shape)    of the dtype of the state
//   maybe(view, name, shape)    the same, optional
//   mask(view)                  optional, (R, T)
//   number(x, name, least)      at least that; what it is before is its default
//   method(x), packing(x)       optional
//   unread(name)                not looked at
//   check(good, message), has(view)
//   result(view, shape)         of the dtype of the state
//   result(view, shape, like)   of the dtype of an argument
//   result_of(given, view, shape)  the same as the first, empty where an optional argument is
//   absent
// kText, where there is one, is what the function for NumPy says of itself: without, as gradients
// are, an operator has none.
struct WriteInputs {
  Sizes n;
  View mean, cov, weights, values, noise_var, mask, decay;
  View retention, stationary_cov;  // of a memory that moves; not beside a decay

  // Without steps a view of a retention may be empty.
  bool moves() const { return retention || stationary_cov; }

  template <class F>
  constexpr void items(F& f) {
    f.memory(mean, "mean");
    f.state(cov, "cov", "BKK");
    f.steps(weights, "weights", "RTK");
    f.data(values, "values", "RTC");
  }
  template <class F>
  constexpr void noise(F& f) {
    f.state(noise_var, "noise_var", "RT");
    f.mask(mask);
  }
  template <class F>
  constexpr void dynamics(F& f) {
    f.maybe(decay, "decay", "RT");
    f.maybe(retention, "retention", "RT");
    f.maybe(stationary_cov, "stationary_cov", "BKK");
    f.check(!f.has(decay) || !f.has(retention), kOneForgets);
    f.check(!f.has(stationary_cov) || f.has(retention), kNeedsRetention);
  }
};

struct WriteBackward : WriteInputs {
  View grad_mean, grad_cov, grad_log_evidence;
  View d_mean, d_cov, d_weights, d_values, d_noise_var, d_decay;
  View d_retention, d_stationary_cov;

  template <class F>
  constexpr void gradients(F& f) {
    f.maybe(grad_mean, "grad_mean", "BKC");
    f.maybe(grad_cov, "grad_cov", "BKK");
  }
  template <class F>
  constexpr void results(F& f) {
    f.result(d_mean, "BKC"), f.result(d_cov, "BKK"), f.result(d_weights, "RTK", weights),
        f.result(d_values, "RTC", values);
  }
  template <class F>
  constexpr void results_of_dynamics(F& f) {
    f.result_of(decay, d_decay, "RT"), f.result_of(retention, d_retention, "RT"),
        f.result_of(stationary_cov, d_stationary_cov, "BKK");
  }
};

struct BayesWriteArgs : WriteInputs {
  static constexpr const char* kText = "Exact posterior of an episode: (mean, cov, log_evidence).";
  WriteMethod method = WriteMethod::automatic;
  View mean_out, cov_out, log_evidence;

  template <class F>
  constexpr void fields(F& f) {
    items(f), noise(f), dynamics(f);
    f.method(method);
    const bool sums = method == WriteMethod::information;
    f.check(!sums || !f.has(decay), "method information does not take decay");
    f.check(!sums || !f.has(retention), "method information does not take retention");
    f.result(mean_out, "BKC"), f.result(cov_out, "BKK"), f.result(log_evidence, "B");
  }
};

struct BayesWriteBackwardArgs : WriteBackward {
  WriteMethod method = WriteMethod::automatic;
  View posterior_mean, posterior_cov;

  template <class F>
  constexpr void fields(F& f) {
    gradients(f);
    f.maybe(grad_log_evidence, "grad_log_evidence", "B");
    items(f), noise(f), dynamics(f);
    f.method(method);
    f.state(posterior_mean, "posterior_mean", "BKC");
    f.state(posterior_cov, "posterior_cov", "BKK");
    results(f);
    f.result(d_noise_var, "RT");
    results_of_dynamics(f);
  }
};

struct SolveInputs {
  Sizes n;
  View mean, queries, ridge;

  template <class F>
  constexpr void system(F& f) {
    f.memory(mean, "mean");
    f.steps(queries, "queries", "BTC");
    f.state(ridge, "ridge", "B");
  }
};

struct SolveAddressesArgs : SolveInputs {
  static constexpr const char* kText = "Least-squares addresses (B, T, K).";
  View weights_out;

  template <class F>
  constexpr void fields(F& f) {
    system(f);
    f.result(weights_out, "BTK");
  }
};

struct SolveAddressesBackwardArgs : SolveInputs {
  View grad_weights, weights;
  View d_mean, d_queries, d_ridge;

  template <class F>
  constexpr void fields(F& f) {
    f.state(grad_weights, "grad_weights", "BTK");
    system(f);
    f.state(weights, "weights", "BTK");
    f.result(d_mean, "BKC"), f.result(d_queries, "BTC", queries), f.result(d_ridge, "B");
  }
};

// What read and its gradient are given, whose structs have no base.
template <class Args, class F>
constexpr void read_inputs(Args& a, F& f) {
  f.memory(a.mean, "mean");
  f.state(a.cov, "cov", "BKK");
  f.steps(a.weights, "weights", "BTK");
}

struct ReadArgs {
  static constexpr const char* kText = "Read-out: (values, var).";
  Sizes n;
  View mean, cov, weights;
  View values_out, var_out;

  template <class F>
  constexpr void fields(F& f) {
    read_inputs(*this, f);
    f.result(values_out, "BTC"), f.result(var_out, "BT");
  }
};

struct ReadBackwardArgs {
  Sizes n;
  View grad_values, grad_var, mean, cov, weights;
  View d_mean, d_cov, d_weights;

  template <class F>
  constexpr void fields(F& f) {
    f.maybe(grad_values, "grad_values", "BTC");
    f.maybe(grad_var, "grad_var", "BT");
    read_inputs(*this, f);
    f.result(d_mean, "BKC"), f.result(d_cov, "BKK"), f.result(d_weights, "BTK", weights);
  }
};

// What recall and its gradient are given; a base would move what kernels take.
template <class Args, class F>
constexpr void recall_inputs(Args& a, F& f) {
  f.memory(a.mean, "mean");
  f.state(a.cov, "cov", "BKK");
  f.steps(a.queries, "queries", "BTC");
  f.state(a.ridge, "ridge", "B");
}

// Of solving and of reading at the solution.
struct RecallArgs : SolveAddressesArgs {
  static constexpr const char* kText = "Solve and read: (values, var, weights).";
  View cov;
  View values_out, var_out;

  template <class F>
  constexpr void fields(F& f) {
    recall_inputs(*this, f);
    f.result(values_out, "BTC"), f.result(var_out, "BT"), f.result(weights_out, "BTK");
  }
};

struct RecallBackwardArgs : SolveAddressesBackwardArgs {
  View grad_values, grad_var, cov;
  View d_cov;

  template <class F>
  constexpr void fields(F& f) {
    f.maybe(grad_values, "grad_values", "BTC");
    f.maybe(grad_var, "grad_var", "BT");
    f.maybe(grad_weights, "grad_weights", "BTK");
    recall_inputs(*this, f);
    f.state(weights, "weights", "BTK");
    f.result(d_mean, "BKC"), f.result(d_cov, "BKK"), f.result(d_queries, "BTC", queries),
        f.result(d_ridge, "B");
  }
};

// Of memory_kl and its gradient.
template <class Args, class F>
constexpr void beliefs(Args& a, F& f) {
  f.memory(a.mean, "mean");
  f.state(a.cov, "cov", "BKK");
  f.state(a.prior_mean, "prior_mean", "BKC");
  f.state(a.prior_cov, "prior_cov", "BKK");
}

struct MemoryKlArgs {
  static constexpr const char* kText = "KL between beliefs in nats (B,).";
  Sizes n;
  View mean, cov, prior_mean, prior_cov;
  View kl_out;

  template <class F>
  constexpr void fields(F& f) {
    beliefs(*this, f);
    f.result(kl_out, "B");
  }
};

struct MemoryKlBackwardArgs {
  Sizes n;
  View grad, mean, cov, prior_mean, prior_cov;
  View d_mean, d_cov, d_prior_mean, d_prior_cov;

  template <class F>
  constexpr void fields(F& f) {
    f.state(grad, "grad", "B");
    beliefs(*this, f);
    f.result(d_mean, "BKC"), f.result(d_cov, "BKK"), f.result(d_prior_mean, "BKC"),
        f.result(d_prior_cov, "BKK");
  }
};

// (mean, cov) -> (shift, precision) = (cov^-1 mean, cov^-1); the map is its own inverse.
struct StatisticsArgs {
  static constexpr const char* kText = "(cov^-1 mean, cov^-1), its own inverse.";
  Sizes n;
  View mean, cov;
  View shift_out, precision_out;

  template <class F>
  constexpr void fields(F& f) {
    f.memory(mean, "mean");
    f.state(cov, "cov", "BKK");
    f.result(shift_out, "BKC"), f.result(precision_out, "BKK");
  }
};

struct StatisticsBackwardArgs {
  Sizes n;
  View grad_shift, grad_precision, shift, precision;
  View d_mean, d_cov;

  template <class F>
  constexpr void fields(F& f) {
    f.maybe(grad_shift, "grad_shift", "BKC");
    f.maybe(grad_precision, "grad_precision", "BKK");
    f.unread("mean");  // the results determine the gradient
    f.unread("cov");
    f.memory(shift, "shift");
    f.state(precision, "precision", "BKK");
    f.result(d_mean, "BKC"), f.result(d_cov, "BKK");
  }
};

// Of adaptive_write and its gradient.
template <class Args, class F>
constexpr void adaptive_inputs(Args& a, F& f) {
  f.memory(a.mean, "mean");
  f.state(a.cov, "cov", "BKK");
  f.steps(a.values, "values", "BTC");
  f.state(a.noise_var, "noise_var", "BT");
  f.state(a.ridge, "ridge", "B");
  f.mask(a.mask);
  f.number(a.num_iters, "num_iters", 1);
}

// The Dynamic Kanerva write: each address is solved against the mean as it stands, `num_iters`
// times, the last ones against the memory as it would stand after the step.
struct AdaptiveWriteArgs {
  static constexpr const char* kText =
      "The Dynamic Kanerva write: (mean, cov, weights, step_kl, log_evidence).";
  Sizes n;
  View mean, cov, values, noise_var, ridge, mask;
  int64_t num_iters = 1;
  View mean_out, cov_out, weights_out, step_kl, log_evidence;

  template <class F>
  constexpr void fields(F& f) {
    adaptive_inputs(*this, f);
    f.result(mean_out, "BKC"), f.result(cov_out, "BKK"), f.result(weights_out, "BTK"),
        f.result(step_kl, "BT"), f.result(log_evidence, "B");
  }
};

struct AdaptiveWriteBackwardArgs {
  Sizes n;
  View grad_mean, grad_cov, grad_weights, grad_step_kl, grad_log_evidence;
  View mean, cov, values, noise_var, ridge, mask;
  int64_t num_iters = 1;
  View weights;  // that the forward gave
  View d_mean, d_cov, d_values, d_noise_var, d_ridge;

  template <class F>
  constexpr void fields(F& f) {
    f.maybe(grad_mean, "grad_mean", "BKC");
    f.maybe(grad_cov, "grad_cov", "BKK");
    f.maybe(grad_weights, "grad_weights", "BTK");
    f.maybe(grad_step_kl, "grad_step_kl", "BT");
    f.maybe(grad_log_evidence, "grad_log_evidence", "B");
    adaptive_inputs(*this, f);
    f.state(weights, "weights", "BTK");
    f.result(d_mean, "BKC"), f.result(d_cov, "BKK"), f.result(d_values, "BTC", values),
        f.result(d_noise_var, "BT"), f.result(d_ridge, "B");
  }
};

// Without decay and the gradients of it and of a log evidence.
struct ForgetArgs : WriteInputs {
  static constexpr const char* kText = "Exact removal of written items: (mean, cov).";
  View mean_out, cov_out;

  template <class F>
  constexpr void fields(F& f) {
    items(f), noise(f);
    f.result(mean_out, "BKC"), f.result(cov_out, "BKK");
  }
};

struct ForgetBackwardArgs : WriteBackward {
  View rest_mean, rest_cov;  // what the forward gave

  template <class F>
  constexpr void fields(F& f) {
    gradients(f), items(f), noise(f);
    f.state(rest_mean, "rest_mean", "BKC");
    f.state(rest_cov, "rest_cov", "BKK");
    results(f);
    f.result(d_noise_var, "RT");
  }
};

// Sequences packed one after another along the steps: the n-th is bounds[n] .. bounds[n + 1].
struct Packing {
  const int64_t* bounds = nullptr;  // count + 1 of them; null: every row is one sequence
  int64_t stride = 1, count = 1;
};

// Each of the n.B states belongs to a sequence, state b N + i to the i-th of the N of row b.
struct CausalScanArgs : WriteInputs {
  static constexpr const char* kText =
      "A write with a read after every step: (reads, read_var, mean, cov, log_evidence).";
  Packing packing;
  int64_t chunk_size = 0;  // steps conditioned on at once, at most; 0: chosen
  View queries;
  View reads_out, read_var_out, mean_out, cov_out, log_evidence;  // mean_out may be mean: one step

  template <class F>
  constexpr void fields(F& f) {
    items(f);
    f.data(queries, "queries", "RTK");
    noise(f), dynamics(f);
    f.packing(packing);
    f.number(chunk_size, "chunk_size", 0);
    f.result(reads_out, "RTC"), f.result(read_var_out, "RT"), f.result(mean_out, "BKC"),
        f.result(cov_out, "BKK"), f.result(log_evidence, "B");
  }
};

struct CausalScanBackwardArgs : WriteBackward {
  Packing packing;
  int64_t chunk_size = 0;
  View queries, grad_reads, grad_read_var;
  View d_queries;

  template <class F>
  constexpr void fields(F& f) {
    f.maybe(grad_reads, "grad_reads", "RTC");
    f.maybe(grad_read_var, "grad_read_var", "RT");
    gradients(f);
    f.maybe(grad_log_evidence, "grad_log_evidence", "B");
    items(f);
    f.data(queries, "queries", "RTK");
    noise(f), dynamics(f);
    f.packing(packing);
    f.number(chunk_size, "chunk_size", 0);
    results(f);
    f.result(d_queries, "RTK", queries), f.result(d_noise_var, "RT");
    results_of_dynamics(f);
  }
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
