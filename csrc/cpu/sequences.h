// Items of a scan: each state with the steps of its sequence, as a problem of its own.
#pragma once

#include <initializer_list>

#include "../common/arguments.h"

namespace kanerva {
namespace KANERVA_ISA {

// Whether the bounds rise from 0 to the last step: what makes it safe to use them.
inline bool bounds_rise(const Packing& p, int64_t T) {
  if (p.bounds == nullptr) return true;
  bool rise = p.bounds[0] == 0 && p.bounds[p.count * p.stride] == T;
  for (int64_t i = 0; i < p.count; ++i)
    rise = rise && p.bounds[i * p.stride] <= p.bounds[(i + 1) * p.stride];
  return rise;
}

// The steps [first, first + steps) of a row.
struct Sequence {
  int64_t row, first, steps;
};

// The sequence of state s. Where the bounds do not rise, the first of a row has all the steps.
inline Sequence sequence_of(const Packing& p, bool rise, int64_t T, int64_t s) {
  const int64_t row = s / p.count, n = s % p.count;
  if (p.bounds == nullptr || !rise) return {row, 0, n == 0 ? T : 0};
  const int64_t first = p.bounds[n * p.stride];
  return {row, first, p.bounds[(n + 1) * p.stride] - first};
}

inline int64_t element_bytes(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

inline void move(View& v, int64_t batch, int64_t row, int64_t bytes) {
  if (v) v.data = static_cast<char*>(v.data) + (batch * v.stride[0] + row * v.stride[1]) * bytes;
}

// Moves the views to state s and its steps: those that forward and backward share, and the others.
template <class Args>
void move_to_item(Args& args, const Sequence& at, int64_t s, std::initializer_list<View*> states,
                  std::initializer_list<View*> steps) {
  args.n.B = 1;
  args.n.T = at.steps;
  for (View* v : {&args.mean, &args.cov, &args.stationary_cov})
    move(*v, s, 0, element_bytes(v->dtype));
  for (View* v : states) move(*v, s, 0, element_bytes(v->dtype));
  for (View* v :
       {&args.weights, &args.values, &args.queries, &args.noise_var, &args.decay, &args.retention})
    move(*v, at.row, at.first, element_bytes(v->dtype));
  for (View* v : steps) move(*v, at.row, at.first, element_bytes(v->dtype));
  move(args.mask, at.row, at.first, sizeof(bool));
}

inline CausalScanArgs item_of(CausalScanArgs args, const Sequence& at, int64_t s) {
  move_to_item(args, at, s, {&args.mean_out, &args.cov_out, &args.log_evidence},
               {&args.reads_out, &args.read_var_out});
  return args;
}

inline CausalScanBackwardArgs item_of(CausalScanBackwardArgs args, const Sequence& at, int64_t s) {
  move_to_item(args, at, s,
               {&args.grad_mean, &args.grad_cov, &args.grad_log_evidence, &args.d_mean, &args.d_cov,
                &args.d_stationary_cov},
               {&args.grad_reads, &args.grad_read_var, &args.d_weights, &args.d_values,
                &args.d_queries, &args.d_noise_var, &args.d_decay, &args.d_retention});
  return args;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
