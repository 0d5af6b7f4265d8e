// The write of a whole episode in information form, for episodes much longer than the memory.
//
// With U0 = L0 L0' and n_t the noise variances:
//   G = W' diag(1/n) W,  N = I + L0' G L0 = M'M,  B = M^-T L0',  U = B'B
//   H = W' diag(1/n) Z,  R = R0 + U (H - G R0),  ln|S| = sum ln n + 2 sum ln diag M
// Two sums over the steps, and the K x K work once. It squares the condition number: the largest
// diagonal of N decides whether it may be used at all, and the pivots of N whether float32 serves
// for a float32 state, in all of it or in the sums alone (block_sums.h).
#pragma once

#include "block_sums.h"
#include "posterior_of_sums.h"
#include "step_sums.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

// F: arithmetic of the K x K work and of the columns.
template <class F>
class InformationWrite {
 public:
  InformationWrite(const BayesWriteArgs& args, int64_t b, const Episode& e,
                   const Executor& executor)
      : args_(args),
        b_(b),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        posterior_(scope_, args.n.K, args.n.C, executor) {}

  // False when it is too hard or something is not positive definite.
  bool run(const InformationLimits& limits) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F>&G = posterior_.G, &H = posterior_.H, none;
    double* scale = scope.take<double>(e_.steps);
    for (int64_t t = 0; t < e_.steps; ++t) scale[t] = 1.0 / e_.noise[t];
    const WeightedSteps steps{args_.weights, args_.values, b_, e_.steps, e_.index, scale};
    G.zero();
    add_steps(steps, G, none, executor_);
    mirror(G);
    if (!posterior_.solve_covariance(args_.cov, b_, limits)) return false;
    H.zero();
    return finish(add_steps(steps, none, H, executor_), limits);
  }

  // The same with the sums in float32.
  bool run_with_float32_sums(const InformationLimits& limits) {
    static_assert(std::is_same_v<F, double>);
    Workspace::Scope scope(Workspace::of_thread());
    BlockSums sums(scope, posterior_.G, posterior_.H);
    sums.add_up(args_.weights, args_.values, b_, e_, executor_);
    return posterior_.solve_covariance(args_.cov, b_, limits) && finish(sums.square(), limits);
  }

 private:
  bool finish(double square, const InformationLimits& limits) {
    const int64_t K = args_.n.K;
    const double C = double(args_.n.C);
    const double quadratic = posterior_.write_mean(args_.mean, b_, square);
    if (!(square <= limits.explained * quadratic)) return false;
    LogProduct noise;
    for (int64_t t = 0; t < e_.steps; ++t) noise.multiply(e_.noise[t]);
    const double log_evidence = -0.5 * (quadratic + C * (noise.value() + posterior_.log_det()) +
                                        double(e_.steps) * C * kLog2Pi);
    if (!std::isfinite(log_evidence)) return false;
    store(executor_, args_.mean_out, b_, Rows{}, K, posterior_.R);
    store(executor_, args_.cov_out, b_, Rows{}, K, posterior_.U);
    store_scalar(args_.log_evidence, b_, 0, log_evidence);
    return true;
  }

  const BayesWriteArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  PosteriorOfSums<F> posterior_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
