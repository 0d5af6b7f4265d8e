// KL between two beliefs over a memory, in nats, and its adjoint; all in float64.
//   2 KL = C tr(U0^-1 U) + tr(D'U0^-1 D) - K C - C (ln|U| - ln|U0|),  D = R - R0
#pragma once

#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

// What forward and backward share: the inverses, D, and Q = U0^-1 D.
struct BeliefPair {
  Matrix<double> U, U_inverse, U0_inverse, D, Q;
  double log_det = 0.0, log_det0 = 0.0;

  BeliefPair(Workspace::Scope& scope, const Sizes& n)
      : U(scope, n.K, n.K),
        U_inverse(scope, n.K, n.K),
        U0_inverse(scope, n.K, n.K),
        D(scope, n.K, n.C),
        Q(scope, n.K, n.C) {}

  template <class Args>
  bool build(const Args& args, int64_t b, bool with_inverse, const Executor& executor) {
    const auto [B, T, K, C] = args.n;
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<double> factor(scope, K, K), R0(scope, K, C);
    load(args.prior_cov, b, Rows{}, K, factor);
    const SpdFacts prior = invert_spd(executor, factor, U0_inverse);
    if (!prior.ok) return false;
    log_det0 = prior.log_det;
    load(args.cov, b, Rows{}, K, U);
    load(args.cov, b, Rows{}, K, factor);
    if (with_inverse) {
      const SpdFacts belief = invert_spd(executor, factor, U_inverse);
      if (!belief.ok) return false;
      log_det = belief.log_det;
    } else {
      double* inverse_diagonal = scope.take<double>(K);
      if (!cholesky(K, factor.data, factor.ld, inverse_diagonal)) return false;
      LogProduct product;
      for (int64_t k = 0; k < K; ++k) product.multiply(inverse_diagonal[k]);
      log_det = -2.0 * product.value();
    }
    load(args.mean, b, Rows{}, K, D);
    load(args.prior_mean, b, Rows{}, K, R0);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t c = 0; c < D.ld; ++c) D[k][c] = c < C ? D[k][c] - R0[k][c] : 0.0;
    product(executor, K, U0_inverse, D, Q);
    return true;
  }
};

inline void memory_kl_item(const MemoryKlArgs& args, int64_t b, const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  Workspace::Scope scope(Workspace::of_thread());
  BeliefPair p(scope, args.n);
  double kl = NAN;
  if (p.build(args, b, false, executor)) {
    kl = 0.5 * (double(C) * (dot(K, p.U0_inverse, p.U) - double(K) - p.log_det + p.log_det0) +
                dot(K, p.Q, p.D));
    if (kl < 0.0) kl = 0.0;  // two equal beliefs, up to rounding
  }
  store_scalar(args.kl_out, b, 0, kl);
}

inline void memory_kl_backward_item(const MemoryKlBackwardArgs& args, int64_t b,
                                    const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  Workspace::Scope scope(Workspace::of_thread());
  BeliefPair p(scope, args.n);
  if (!p.build(args, b, true, executor)) {
    fill(args.d_mean, b, K, C, NAN);
    fill(args.d_prior_mean, b, K, C, NAN);
    fill(args.d_cov, b, K, K, NAN);
    fill(args.d_prior_cov, b, K, K, NAN);
    return;
  }
  const double g = load_scalar<double>(args.grad, b);
  // dU0 = g/2 (C U0^-1 - C U0^-1 U U0^-1 - Q Q'),  dU = g C/2 (U0^-1 - U^-1),  dR = g Q = -dR0
  Matrix<double> product1(scope, K, K), dU0(scope, K, K), Qt(scope, C, K);
  product(executor, K, p.U0_inverse, p.U, product1);
  product(executor, K, product1, p.U0_inverse, dU0);
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = 0; j < K; ++j) dU0[i][j] = double(C) * (p.U0_inverse[i][j] - dU0[i][j]);
  transpose(p.Q, Qt);
  product(executor, K, p.Q, Qt, dU0, Store::sub);
  symmetrise(dU0);
  const Matrix<double>& dU = product1;
  for (int64_t i = 0; i < K; ++i) {
    for (int64_t j = 0; j < K; ++j) {
      dU0[i][j] *= 0.5 * g;
      dU[i][j] = 0.5 * g * double(C) * (p.U0_inverse[i][j] - p.U_inverse[i][j]);
    }
    for (int64_t c = 0; c < C; ++c) p.Q[i][c] *= g;
  }
  store(args.d_prior_cov, b, Rows{}, K, dU0);
  store(args.d_cov, b, Rows{}, K, dU);
  store(args.d_mean, b, Rows{}, K, p.Q);
  for (int64_t i = 0; i < K; ++i)
    for (int64_t c = 0; c < C; ++c) p.Q[i][c] = -p.Q[i][c];
  store(args.d_prior_mean, b, Rows{}, K, p.Q);
}

inline double kl_operations(const Sizes& n) {
  return double(n.K) * double(n.K) * double(n.K + n.C);
}

inline void memory_kl(const MemoryKlArgs& args, const Executor& executor) {
  for_each_item(args.n.B, kl_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) { memory_kl_item(args, b, inner); });
}

inline void memory_kl_backward(const MemoryKlBackwardArgs& args, const Executor& executor) {
  for_each_item(args.n.B, 3.0 * kl_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) { memory_kl_backward_item(args, b, inner); });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
