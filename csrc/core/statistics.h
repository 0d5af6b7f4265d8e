// Additive sufficient statistics: (R, U) -> (U^-1 R, U^-1). The map is its own inverse.
#pragma once

#include "matrices.h"
#include "memory_kl.h"

namespace kanerva {
namespace KANERVA_ISA {

inline void statistics_item(const StatisticsArgs& args, int64_t b, const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<double> factor(scope, K, K), inverse(scope, K, K), R(scope, K, C), shift(scope, K, C);
  load(args.cov, b, Rows{}, K, factor);
  load(args.mean, b, Rows{}, K, R);
  if (not_finite(K, R) || !invert_spd(executor, factor, inverse).ok) {
    fill(args.shift_out, b, K, C, NAN);
    fill(args.precision_out, b, K, K, NAN);
    return;
  }
  product(executor, K, inverse, R, shift);
  store(args.shift_out, b, Rows{}, K, shift);
  store(args.precision_out, b, Rows{}, K, inverse);
}

// With P = U^-1 and S = P R: dR = P gS,  dU = -sym(P gP P + dR S').
inline void statistics_backward_item(const StatisticsBackwardArgs& args, int64_t b,
                                     const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<double> P(scope, K, K), dU(scope, K, K), dR(scope, K, C);
  load(args.precision, b, Rows{}, K, P);
  dU.zero();
  dR.zero();
  if (args.grad_shift) {
    Matrix<double> gS(scope, K, C), S(scope, K, C), St(scope, C, K);
    load(args.grad_shift, b, Rows{}, K, gS);
    load(args.shift, b, Rows{}, K, S);
    transpose(S, St);
    product(executor, K, P, gS, dR);
    product(executor, K, dR, St, dU, Store::sub);
  }
  if (args.grad_precision) {
    Matrix<double> gP(scope, K, K), PgP(scope, K, K);
    load(args.grad_precision, b, Rows{}, K, gP);
    symmetrise(gP);
    product(executor, K, P, gP, PgP);
    product(executor, K, PgP, P, dU, Store::sub);
  }
  symmetrise(dU);
  store(args.d_mean, b, Rows{}, K, dR);
  store(args.d_cov, b, Rows{}, K, dU);
}

inline void statistics(const StatisticsArgs& args, const Executor& executor) {
  for_each_item(args.n.B, kl_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) { statistics_item(args, b, inner); });
}

inline void statistics_backward(const StatisticsBackwardArgs& args, const Executor& executor) {
  for_each_item(
      args.n.B, 2.0 * kl_operations(args.n), executor,
      [&](int64_t b, const Executor& inner) { statistics_backward_item(args, b, inner); });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
