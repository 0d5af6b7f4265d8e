// The sums of information.h by themselves, and the posterior from them: several processes add up
// theirs in between.
#pragma once

#include "../common/parts.h"
#include "posterior_of_sums.h"
#include "step_sums.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class F>
void sums_of_item(const EpisodeSumsArgs& args, int64_t b, const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<F> G = args.g ? Matrix<F>(scope, K, K) : Matrix<F>(), H(scope, K, args.n.C);
  double* scale = scope.take<double>(T);
  for (int64_t t = 0; t < T; ++t) scale[t] = load_scalar<double>(args.scale, b, t);
  if (G) G.zero();
  H.zero();
  const WeightedSteps steps{args.weights, args.values, b, T, nullptr, scale};
  const double energy = add_steps(steps, G, H, executor);
  if (G) {
    mirror(G);
    store(executor, args.g, b, Rows{}, K, G);
  }
  store(executor, args.h, b, Rows{}, K, H);
  store_scalar(args.energy, b, 0, energy);
}

inline void episode_sums(const EpisodeSumsArgs& args, const Executor& executor) {
  const double operations = double(args.n.T) * double(args.n.K) * double(args.n.K + 2 * args.n.C);
  for_each_item(args.n.B, operations, executor, [&](int64_t b, const Executor& inner) {
    if (args.h.dtype == Dtype::float32) {
      sums_of_item<float>(args, b, inner);
    } else {
      sums_of_item<double>(args, b, inner);
    }
  });
}

template <class F>
bool posterior_of_item(const PosteriorOfSumsArgs& args, int64_t b, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  PosteriorOfSums<F> posterior(scope, K, C, executor);
  posterior.G.zero();
  const View& triangle = args.triangle;
  const double* at = static_cast<const double*>(triangle.data) + b * triangle.stride[0];
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = i; j < K; ++j, at += triangle.stride[1]) posterior.G[i][j] = F(*at);
  mirror(posterior.G);
  load(executor, args.h, b, Rows{}, K, posterior.H);
  InformationLimits limits{kNoLimit};
  if (!args.always) limits.diagonal = information_limit(args.mean.dtype);
  if (args.in_float32) limits.condition = kEasyInformation;
  if (!posterior.solve_covariance(args.cov, b, limits)) return false;
  const double square = load_scalar<double>(args.square, b, 0);
  const double quadratic = posterior.write_mean(args.mean, b, square);
  store(executor, args.mean_out, b, Rows{}, K, posterior.R);
  store(executor, args.cov_out, b, Rows{}, K, posterior.U);
  store_scalar(args.terms, b, 0, posterior.log_det());
  store_scalar(args.terms, b, 1, quadratic);
  return true;
}

inline void posterior_of_sums(const PosteriorOfSumsArgs& args, const Executor& executor) {
  const double K = double(args.n.K), operations = K * K * (7.0 * K + 4.0 * double(args.n.C));
  for_each_item(args.n.B, operations, executor, [&](int64_t b, const Executor& inner) {
    const bool done = args.in_float32 ? posterior_of_item<float>(args, b, inner)
                                      : posterior_of_item<double>(args, b, inner);
    if (done) return;
    store_scalar(args.terms, b, 0, NAN);
    store_scalar(args.terms, b, 1, NAN);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
