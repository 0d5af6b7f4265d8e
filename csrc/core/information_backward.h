// The adjoint of a long episode's write from the posterior, for easy conditioning and no decay.
//
// With the posterior (R, U), A = diag(1/n) (Z - W R), Wn = diag(1/n) W, Q = U gR, D = U0^-1 (R -
// R0) = W'A and M = 2 U gU U + gl C U, every sum over the steps but three products drops out:
//   dZ = Wn Q - gl A,  dW = A (Q + gl R)' - Wn (Q R' + M),
//   dn = -rowsum(Wn Q * A) + rowsum(Wn M * Wn) / 2 + gl/2 (rowsum(A * A) - C / n),
//   dR0 = U0^-1 Q + gl D,
//   dU0 = U0^-1 (M / 2) U0^-1 - gl C/2 U0^-1 + sym((U0^-1 Q + gl/2 D) D').
// Forming A from the posterior cancels when noise is small, hence the limit on hardness.
#pragma once

#include "information.h"
#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr double kHardForPosterior = 4e3;  // bound on max w'U0 w / v
constexpr double kPriorCondition = 16.0;   // of U0, from its pivots

// max_t |w_t|^2 / n_t times the largest absolute row sum of U0: bounds max w'U0 w / n.
inline double hardness_bound(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e) {
  const int64_t K = args.n.K, tile = std::min(kTile, e.steps);
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<float> W(scope, std::max(tile, K), K);
  load(args.cov, b, Rows{}, K, W);
  double norm = 0.0, energy = 0.0;
  for (int64_t k = 0; k < K; ++k) {
    double row = 0.0;
    for (int64_t j = 0; j < K; ++j) row += std::fabs(double(W[k][j]));
    norm = std::max(norm, row);
  }
  for (int64_t first = 0; first < e.steps; first += tile) {
    const int64_t m = std::min(tile, e.steps - first);
    load(args.weights, b, Rows{e.index, first}, m, W);
    for (int64_t t = 0; t < m; ++t) {
      double square = 0.0;
      for (int64_t k = 0; k < K; ++k) square += double(W[t][k]) * double(W[t][k]);
      energy = std::max(energy, square / e.noise[first + t]);
    }
  }
  return norm * energy;
}

template <class A>
class PosteriorAdjoint {
 public:
  PosteriorAdjoint(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                   const Executor& executor)
      : args_(args),
        b_(b),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0),
        R_(scope_, K_, C_),
        Q_(scope_, K_, C_),
        mixed_(scope_, C_, K_),
        M_(scope_, K_, K_),
        QR_(scope_, K_, K_) {}

  // U0_inverse: of the prior covariance.
  void run(const Matrix<double>& U0_inverse) {
    solve_state(U0_inverse);
    const int64_t tile = std::min(2 * kTile, e_.steps);
    for (int64_t first = 0; first < e_.steps; first += tile)
      adjoint_steps(first, std::min(tile, e_.steps - first));
  }

 private:
  void solve_state(const Matrix<double>& U0_inverse) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> U(scope, K_, K_), P0(scope, K_, K_), gU(scope, K_, K_), X(scope, K_, K_),
        dU(scope, K_, K_);
    Matrix<A> gR(scope, K_, C_), Y(scope, K_, C_), D(scope, K_, C_), turned(scope, C_, K_);
    convert(K_, K_, U0_inverse.data, U0_inverse.ld, P0.data, P0.ld);
    load(args_.posterior_cov, b_, Rows{}, K_, U);
    load(args_.posterior_mean, b_, Rows{}, K_, R_);
    load_or_zero(args_.grad_mean, gR);
    load_or_zero(args_.grad_cov, gU);
    symmetrise(gU);

    product(executor_, K_, U, gU, X);
    product(executor_, K_, X, U, M_);
    const A twice = 2, evidence = A(gl_ * double(C_));
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < M_.ld; ++j) M_[i][j] = twice * M_[i][j] + evidence * U[i][j];
    product(executor_, K_, U, gR, Q_);
    transpose(R_, turned);
    product(executor_, K_, Q_, turned, QR_);

    // D starts as R - R0; Y = U0^-1 Q
    load(args_.mean, b_, Rows{}, K_, Y);
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < Y.ld; ++j) gR[i][j] = R_[i][j] - Y[i][j];
    product(executor_, K_, P0, gR, D);
    product(executor_, K_, P0, Q_, Y);
    transpose(D, turned);
    product(executor_, K_, P0, M_, X);
    product(executor_, K_, X, P0, dU);
    for (int64_t i = 0; i < K_; ++i) {
      for (int64_t j = 0; j < dU.ld; ++j) dU[i][j] = A(0.5) * (dU[i][j] - evidence * P0[i][j]);
      for (int64_t j = 0; j < Y.ld; ++j) gR[i][j] = Y[i][j] + A(0.5 * gl_) * D[i][j];
    }
    product(executor_, K_, gR, turned, dU, Store::add);
    symmetrise(dU);
    store(args_.d_cov, b_, Rows{}, K_, dU);
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < Y.ld; ++j) {
        Y[i][j] += A(gl_) * D[i][j];
        gR[i][j] = Q_[i][j] + A(gl_) * R_[i][j];
      }
    store(args_.d_mean, b_, Rows{}, K_, Y);
    transpose(gR, mixed_);
  }

  void adjoint_steps(int64_t first, int64_t m) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> W(scope, m, K_), Wn(scope, m, K_), dW(scope, m, K_), WM(scope, m, K_),
        Z(scope, m, C_), X(scope, m, C_);
    const Rows rows{e_.index, first};
    load(args_.weights, b_, rows, m, W);
    load(args_.values, b_, rows, m, Z);
    product(executor_, m, W, R_, Z, Store::sub);
    for (int64_t t = 0; t < m; ++t) {
      const A n = A(e_.noise[first + t]);
      for (int64_t k = 0; k < W.ld; ++k) Wn[t][k] = k < K_ ? W[t][k] / n : A(0);
      for (int64_t j = 0; j < Z.ld; ++j) Z[t][j] /= n;  // Z becomes A
    }
    product(executor_, m, Z, mixed_, dW);
    product(executor_, m, Wn, M_, WM);
    product(executor_, m, Wn, QR_, dW, Store::sub);
    product(executor_, m, Wn, Q_, X);
    for (int64_t t = 0; t < m; ++t) {
      double cross = 0.0, square = 0.0, quadratic = 0.0;
      for (int64_t j = 0; j < C_; ++j) {
        cross += double(X[t][j]) * double(Z[t][j]);
        square += double(Z[t][j]) * double(Z[t][j]);
        X[t][j] -= A(gl_) * Z[t][j];
      }
      for (int64_t k = 0; k < K_; ++k) {
        quadratic += double(WM[t][k]) * double(Wn[t][k]);
        dW[t][k] -= WM[t][k];
      }
      const double d =
          -cross + 0.5 * (quadratic + gl_ * (square - double(C_) / e_.noise[first + t]));
      store_scalar(args_.d_noise_var, b_, rows[t], d);
    }
    store(args_.d_weights, b_, rows, m, dW);
    store(args_.d_values, b_, rows, m, X);
  }

  void load_or_zero(const View& v, const Matrix<A>& to) const {
    if (v) {
      load(v, b_, Rows{}, to.rows, to);
    } else {
      to.zero();
    }
  }

  const BayesWriteBackwardArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const double gl_;
  Matrix<A> R_, Q_, mixed_, M_, QR_;
};

// False when it does not apply: too hard, or a prior whose inverse amplifies the posterior's
// rounding.
template <class S>
bool adjoint_from_posterior(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                            const Executor& executor) {
  const bool serves =
      information_serves(args.method, args.n, e) && args.n.K >= kManySlots && args.posterior_mean;
  if (!serves || !(hardness_bound(args, b, e) <= kHardForPosterior)) return false;
  const int64_t K = args.n.K;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<double> U0(scope, K, K), inverse(scope, K, K);
  load(args.cov, b, Rows{}, K, U0);
  const SpdInverse facts = invert_spd(executor, U0, inverse);
  if (!facts.ok || !(facts.condition <= kPriorCondition)) return false;
  PosteriorAdjoint<S>(args, b, e, executor).run(inverse);
  return true;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
