// The adjoint of a short episode's write from the posterior, for easy conditioning and no decay:
// nothing is factorised and no step waits for another.
//
// With the posterior (R, U), n the noise variances, A = diag(1/n) (Z - W R) = S^-1 (Z - W R0),
// G = diag(1/n) W U, gU the symmetrised gradient of U and gl that of the log evidence,
//   dZ = G gR - gl A,                    X = gR A',
//   I^ = sym(G (G gU - X' + gl C/2 diag(1/n) W)') + gl/2 (A A' - C diag(1/n)),   dn = diag(I^),
//   dW = (X' - 2 G gU - gl C diag(1/n) W) U - dZ R',
//   dR0 = gR - W'dZ,                     dU0 = gU + sym(W'(X' - 2 G gU + I^ W)).
// Without gl and with a wide code A is not formed: with Q = R gR' (K x K),
//   X' = diag(1/n) (Z gR' - W Q),        dZ R' = G Q'.
// Forming A and G from the posterior cancels where the episode leaves little of the prior variance:
// max w'U0 w / w'U w bounds the digits that are lost.
#pragma once

#include "../common/policy.h"
#include "matrices.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A>
class ShortPosteriorAdjoint {
 public:
  ShortPosteriorAdjoint(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                        const Executor& ex)
      : args_(args),
        b_(b),
        e_(e),
        executor_(ex),
        scope_(Workspace::of_thread()),
        T_(e.steps),
        K_(args.n.K),
        C_(args.n.C),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0),
        inverse_(scope_.take<A>(T_)),
        W_(rows_to_read<A>(scope_, ex, args.weights, b, rows(), T_, K_, Use::all)),
        G_(scope_, T_, K_),
        U_(rows_to_read<A>(scope_, ex, args.posterior_cov, b, Rows{}, K_, K_)) {}

  // False, with nothing written, when the variances shrink by more than `limit`.
  bool run(double limit) {
    for (int64_t t = 0; t < T_; ++t) inverse_[t] = A(1.0 / e_.noise[t]);
    product(executor_, W_, U_, G_);
    for (int64_t t = 0; t < T_; ++t) scale(0, K_, inverse_[t], G_[t]);
    if (!(shrink(limit) <= limit)) return false;

    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<A> X(scope, T_, K_), DR(scope, T_, K_), inner(scope, T_, T_);
    columns(X, DR, inner);
    slots(X, DR, inner);
    return true;
  }

 private:
  Rows rows() const { return {e_.index, 0}; }

  // max w'U0 w / w'U w, or a bound on it where that is good enough.
  double shrink(double limit) const {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> U0(scope, K_, K_);
    double* left = scope.take<double>(T_);  // w'U w / n
    load_covariance(args_.cov, b_, U0);
    const double norm = row_norm(U0);
    double bound = 1.0;
    for (int64_t t = 0; t < T_; ++t) {
      left[t] = row_dot(K_, G_[t], W_[t]);
      bound = worse(bound, norm * inverse_[t] * row_dot(K_, W_[t], W_[t]), left[t]);
    }
    if (bound <= limit) return bound;
    Matrix<A> G0(scope, T_, K_);
    product(executor_, W_, U0, G0);
    double largest = 1.0;
    for (int64_t t = 0; t < T_; ++t)
      largest = worse(largest, inverse_[t] * row_dot(K_, G0[t], W_[t]), left[t]);
    return largest;
  }

  static double worse(double so_far, double before, double after) {
    if (!(before >= 0.0 && after >= 0.0 && after < HUGE_VAL)) return HUGE_VAL;
    return before > 0.0 ? std::max(so_far, before / after) : so_far;
  }

  // The half as wide as the code: dZ, dR0, X', -dZ R' and, with gl, the upper half of A A'.
  void columns(const Matrix<A>& X, const Matrix<A>& DR, const Matrix<A>& AA) const {
    Workspace::Scope scope(Workspace::of_thread());
    const auto read = [&](const View& v, Rows at, int64_t m) {
      return rows_to_read<A>(scope, executor_, v, b_, at, m, C_);
    };
    const Matrix<A> R = read(args_.posterior_mean, Rows{}, K_), Z = read(args_.values, rows(), T_);
    const Matrix<A> gRt(scope, C_, K_);
    Matrix<A> gR(scope, args_.grad_mean ? 0 : K_, C_);
    if (args_.grad_mean) {
      gR = read(args_.grad_mean, Rows{}, K_);
    } else {
      gR.zero();
    }
    const RowsToWrite<A> dZ(scope, args_.d_values, b_, rows(), T_, C_),
        dR(scope, args_.d_mean, b_, Rows{}, K_, C_);
    transpose(executor_, gR, gRt);
    DR.zero();
    if (gl_ == 0.0 && K_ * (C_ + 2 * T_) <= 2 * T_ * C_) {
      Matrix<A> Q(scope, K_, K_), Qt(scope, K_, K_);
      product(executor_, R, gRt, Q);
      product(executor_, Z, gRt, X);
      product(executor_, W_, Q, X, Store::sub);
      for (int64_t t = 0; t < T_; ++t) scale(0, K_, inverse_[t], X[t]);
      transpose(Q, Qt);
      product(executor_, G_, Qt, DR, Store::sub);
      product(executor_, G_, gR, dZ.matrix());
    } else {
      Matrix<A> residual(scope, T_, C_), turned(scope, C_, std::max(T_, K_));
      product_from(executor_, Z, W_, R, residual, Store::sub);
      for (int64_t t = 0; t < T_; ++t) scale(0, C_, inverse_[t], residual[t]);  // A
      product(executor_, residual, gRt, X);
      if (gl_ != 0.0) {
        turned.columns = T_;
        transpose(executor_, residual, turned);
        product(executor_, residual, turned, AA, Store::set, Part::upper);
        scale(-gl_, residual);
        product_from(executor_, residual, G_, gR, dZ.matrix(), Store::add);
      } else {
        product(executor_, G_, gR, dZ.matrix());
      }
      turned.columns = K_;
      transpose(executor_, R, turned);
      product(executor_, dZ.matrix(), turned, DR, Store::sub);
    }
    product_transposed_from(executor_, gR, W_, dZ.matrix(), dR.matrix(), Store::sub);
    dZ.finish(executor_);
    dR.finish(executor_);
  }

  // The half as wide as the memory: dn, dW and dU0. `inner` comes as A A' and becomes I^, of which
  // only what is symmetric counts.
  void slots(const Matrix<A>& X, const Matrix<A>& DR, const Matrix<A>& inner) const {
    Workspace::Scope scope(Workspace::of_thread());
    const double evidence = gl_ * double(C_);
    Matrix<A> gU(scope, K_, K_), dU(scope, K_, K_), GU(scope, T_, K_), mixed(scope, T_, K_),
        turned(scope, K_, T_);
    if (args_.grad_cov) {
      load_covariance(executor_, args_.grad_cov, b_, gU);
    } else {
      gU.zero();
    }
    product(executor_, G_, gU, GU);

    // X and GU become X' - 2 G gU without and with the share of the evidence in dW.
    for (int64_t t = 0; t < T_; ++t) {
      A* __restrict x = X[t], * __restrict gu = GU[t], * __restrict m = mixed[t];
      const A* __restrict w = W_[t], share = A(evidence) * inverse_[t];
      for (int64_t k = 0; k < padded<A>(K_); ++k) {
        const A difference = x[k] - gu[k], scaled = share * w[k];
        m[k] = A(0.5) * scaled - difference;
        x[k] = difference - gu[k];
        gu[k] = x[k] - scaled;
      }
    }
    transpose(mixed, turned);
    if (gl_ != 0.0) {  // twice the upper half stands for A A'
      for (int64_t t = 0; t < T_; ++t) {
        std::fill(inner[t], inner[t] + t, A(0));
        inner[t][t] = A(0.5 * gl_) * inner[t][t] - A(0.5 * evidence / e_.noise[t]);
        for (int64_t s = t + 1; s < T_; ++s) inner[t][s] *= A(gl_);
      }
    }
    product(executor_, G_, turned, inner, gl_ != 0.0 ? Store::add : Store::set);
    for (int64_t t = 0; t < T_; ++t) store_scalar(args_.d_noise_var, b_, rows()[t], inner[t][t]);

    const RowsToWrite<A> dW(scope, args_.d_weights, b_, rows(), T_, K_);
    product_from(executor_, DR, GU, U_, dW.matrix(), Store::add);
    product(executor_, inner, W_, X, Store::add);
    product_transposed_from(executor_, gU, W_, X, dU, Store::add);
    dW.finish(executor_);
    const RowsToWrite<A> result(scope, args_.d_cov, b_, Rows{}, K_, K_);
    symmetrise(dU, result.matrix());
    result.finish(executor_);
  }

  const BayesWriteBackwardArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t T_, K_, C_;
  const double gl_;
  A* const inverse_;  // 1 / n
  const Matrix<A> W_, G_, U_;
};

// False when it does not apply.
template <class S>
bool adjoint_of_short_episode(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                              const Executor& executor) {
  const bool serves = args.method != WriteMethod::sqrt && e.decay == nullptr && e.steps > 0 &&
                      e.steps < 2 * args.n.K && args.posterior_mean;
  const double limit = std::is_same_v<S, float> ? kShrinkForFloat32 : kShrinkForFloat64;
  return serves && ShortPosteriorAdjoint<S>(args, b, e, executor).run(limit);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
