// The adjoint of the exact write of an episode: from the posterior where that is cheaper and
// accurate, otherwise chunk by chunk.
#pragma once

#include "posterior_backward_long.h"
#include "posterior_backward_short.h"
#include "write_adjoint.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class S>
Outcome adjoint_adaptively(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                           const Executor& executor) {
  constexpr bool narrow_state = std::is_same_v<S, float>;
  const bool small = narrow_state && is_small(e.steps, args.n);
  const int64_t step = chunk_steps(args.n.K, e.steps);
  if (adjoint_of_long_episode<S>(args, b, e, executor)) return Outcome::done;
  if (!small && adjoint_of_short_episode<S>(args, b, e, executor)) return Outcome::done;
  if (args.method != WriteMethod::sqrt) {
    Outcome outcome = Outcome::harder;
    if (narrow_state && !small && e.decay == nullptr)  // gradients of decays cancel
      outcome =
          WriteAdjoint<float, float>(args, b, e, false, kHardForFloat32Factors, executor, step)
              .run();
    if (narrow_state && !small && outcome == Outcome::harder)
      outcome =
          WriteAdjoint<float, double>(args, b, e, false, kHardForFloat32Gradient, executor, step)
              .run();
    if (outcome == Outcome::harder) {
      const double limit = cholesky_limit(args.mean.dtype);
      outcome = WriteAdjoint<double, double>(args, b, e, false, limit, executor, step).run();
    }
    if (outcome != Outcome::harder) return outcome;
  }
  return WriteAdjoint<double, double>(args, b, e, true, kNoLimit, executor, step).run();
}

inline void bayes_write_backward(const BayesWriteBackwardArgs& args, const Executor& executor) {
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
    Outcome outcome = Outcome::failed;
    if (e.valid) {
      outcome = args.mean.dtype == Dtype::float32 ? adjoint_adaptively<float>(args, b, e, inner)
                                                  : adjoint_adaptively<double>(args, b, e, inner);
    }
    if (outcome != Outcome::done) fill_all(NAN, true);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
