// The adjoint of the exact write of an episode: from the posterior where that is cheaper and
// accurate, otherwise chunk by chunk.
#pragma once

#include "posterior_backward_long.h"
#include "posterior_backward_short.h"
#include "write_adjoint.h"

namespace kanerva {
namespace KANERVA_ISA {

inline bool adjoint_from_posterior(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                                   const Executor& executor) {
  const bool small = is_small(e.steps, args.n);
  if (args.mean.dtype == Dtype::float64)
    return adjoint_of_long_episode(args, b, e, executor) ||
           adjoint_of_short_episode<double>(args, b, e, executor);
  return adjoint_of_long_episode(args, b, e, executor) ||
         (!small && adjoint_of_short_episode<float>(args, b, e, executor));
}

inline Outcome adjoint_adaptively(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                                  const Executor& executor) {
  if (adjoint_from_posterior(args, b, e, executor)) return Outcome::done;
  Arithmetics may = arithmetics_of_adjoint(args.n, e, args.mean.dtype);
  may.only_sqrt = args.method == WriteMethod::sqrt;
  return try_in_turn(may, [&](auto columns, auto factors, bool use_sqrt, double limit) {
    using A = decltype(columns);
    using F = decltype(factors);
    return WriteAdjoint<A, F>(args, b, e, use_sqrt, limit, executor, chunk_steps(args.n.K, e.steps))
        .run();
  });
}

inline void reverse_moving(const BayesWriteBackwardArgs& args, const Executor& executor) {
  CausalScanBackwardArgs scan;
  static_cast<WriteBackward&>(scan) = args;
  stationary_scan_backward(scan, args.method == WriteMethod::sqrt, executor);
}

inline void bayes_write_backward(const BayesWriteBackwardArgs& args, const Executor& executor) {
  if (args.moves()) return reverse_moving(args, executor);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = 3.0 * double(T + K) * double(K) * double(2 * K + C);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, args.decay);
    const auto fill_all = [&](double x, bool state) {
      if (state) {
        fill(args.d_mean, b, K, C, x);
        fill(args.d_cov, b, K, K, x);
      }
      fill(args.d_weights, b, T, K, x);
      fill(args.d_values, b, T, C, x);
      fill(args.d_noise_var, b, T, 1, x);
      if (args.d_decay) fill(args.d_decay, b, T, 1, x);
    };
    if (e.index) fill_all(0.0, false);  // masked steps have no gradient
    const Outcome outcome = e.valid ? adjoint_adaptively(args, b, e, inner) : Outcome::failed;
    if (outcome != Outcome::done) fill_all(NAN, true);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
