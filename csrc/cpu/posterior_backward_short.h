// The adjoint of a short episode's write from the posterior, for easy conditioning and no decay:
// nothing is factorised and no step waits for another.
//
// With the posterior (R, U), n the noise variances, A = diag(1/n) (Z - W R) = S^-1 (Z - W R0),
// G = diag(1/n) W U, gU the symmetrised gradient of U and gl that of the log evidence,
//   dZ = G gR - gl A,                    X = gR A',
//   I^ = sym(G (G gU - X' + gl C/2 diag(1/n) W)') + gl/2 (A A' - C diag(1/n)),   dn = diag(I^),
//   dW = (X' - 2 G gU - gl C diag(1/n) W) U - dZ R',
//   dR0 = gR - W'dZ,                     dU0 = gU + sym(W'(X' - 2 G gU + I^ W)).
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
                        const Executor& executor)
      : args_(args),
        b_(b),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        T_(e.steps),
        K_(args.n.K),
        C_(args.n.C),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0),
        W_(scope_, T_, K_),
        Wn_(scope_, T_, K_),
        U_(scope_, K_, K_),
        G_(scope_, T_, K_) {}

  // False, with nothing written, when the variances shrink by more than `limit`.
  bool run(double limit) {
    const Rows rows{e_.index, 0};
    load(args_.weights, b_, rows, T_, W_);
    load(args_.posterior_cov, b_, Rows{}, K_, U_);
    for (int64_t t = 0; t < T_; ++t) {
      const A inverse = A(1.0 / e_.noise[t]);
      for (int64_t k = 0; k < W_.ld; ++k) Wn_[t][k] = k < K_ ? inverse * W_[t][k] : A(0);
    }
    product(executor_, T_, Wn_, U_, G_);
    if (!(shrink(limit) <= limit)) return false;

    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> gR(scope, K_, C_), X(scope, K_, T_), dW(scope, T_, K_), AA(scope, T_, T_);
    load_or_zero(executor_, args_.grad_mean, b_, gR);
    columns(gR, X, dW, AA);
    slots(X, dW, AA);
    return true;
  }

 private:
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
      bound = worse(bound, norm * row_dot(K_, Wn_[t], W_[t]), left[t]);
    }
    if (bound <= limit) return bound;
    Matrix<A> G0(scope, T_, K_);
    product(executor_, T_, Wn_, U0, G0);
    double largest = 1.0;
    for (int64_t t = 0; t < T_; ++t) largest = worse(largest, row_dot(K_, G0[t], W_[t]), left[t]);
    return largest;
  }

  static double worse(double so_far, double before, double after) {
    if (!(before >= 0.0 && after >= 0.0)) return HUGE_VAL;
    return before > 0.0 ? std::max(so_far, before / after) : so_far;
  }

  // The half as wide as the code: dZ, dR0, X, -dZ R' and A A'.
  void columns(const Matrix<A>& gR, const Matrix<A>& X, const Matrix<A>& dW,
               const Matrix<A>& AA) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Rows rows{e_.index, 0};
    Matrix<A> R(scope, K_, C_), residual(scope, T_, C_), dZ(scope, T_, C_);
    Matrix<A> Rt(scope, C_, K_), residual_t(scope, C_, T_);
    load(args_.posterior_mean, b_, Rows{}, K_, R);
    load(args_.values, b_, rows, T_, residual);
    product(executor_, T_, W_, R, residual, Store::sub);
    for (int64_t t = 0; t < T_; ++t) scale(0, C_, 1.0 / e_.noise[t], residual[t]);

    product(executor_, T_, G_, gR, dZ);
    if (gl_ != 0.0) axpy(-gl_, residual, dZ);
    store(args_.d_values, b_, rows, T_, dZ);

    transpose(residual, residual_t);
    product(executor_, gR, residual_t, X);
    if (gl_ != 0.0) product(executor_, residual, residual_t, AA, Store::set, Part::upper);
    transpose(R, Rt);
    dW.zero();
    product(executor_, dZ, Rt, dW, Store::sub);
    product_transposed(executor_, T_, W_, dZ, gR, Store::sub);  // gR becomes dR0
    store(args_.d_mean, b_, Rows{}, K_, gR);
  }

  // The half as wide as the memory: dn, dW and dU0.
  void slots(const Matrix<A>& X, const Matrix<A>& dW, const Matrix<A>& AA) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Rows rows{e_.index, 0};
    const double evidence = gl_ * double(C_);
    Matrix<A> gU(scope, K_, K_), GU(scope, T_, K_), Xt(scope, T_, K_), mixed(scope, T_, K_),
        turned(scope, K_, T_), inner(scope, T_, T_);
    load_or_zero(executor_, args_.grad_cov, b_, gU);
    symmetrise(gU);
    transpose(X, Xt);
    product(executor_, T_, G_, gU, GU);

    // Xt and GU become X' - 2 G gU without and with the share of the evidence in dW.
    for (int64_t t = 0; t < T_; ++t) {
      A *x = Xt[t], *gu = GU[t], *m = mixed[t];
      const A* wn = Wn_[t];
      for (int64_t k = 0; k < Xt.ld; ++k) {
        const A difference = x[k] - gu[k], scaled = A(evidence) * wn[k];
        m[k] = A(0.5) * scaled - difference;
        x[k] = difference - gu[k];
        gu[k] = x[k] - scaled;
      }
    }
    transpose(mixed, turned);
    product(executor_, T_, G_, turned, inner);
    // Only what is symmetric in I^ counts below: twice the upper half stands for A A'.
    if (gl_ != 0.0) {
      for (int64_t t = 0; t < T_; ++t) {
        inner[t][t] += A(0.5 * gl_) * AA[t][t] - A(0.5 * evidence / e_.noise[t]);
        for (int64_t s = t + 1; s < T_; ++s) inner[t][s] += A(gl_) * AA[t][s];
      }
    }
    for (int64_t t = 0; t < T_; ++t) store_scalar(args_.d_noise_var, b_, rows[t], inner[t][t]);

    product(executor_, T_, GU, U_, dW, Store::add);
    store(args_.d_weights, b_, rows, T_, dW);
    product(executor_, T_, inner, W_, Xt, Store::add);
    Matrix<A> dU(scope, K_, K_);
    product_transposed(executor_, T_, W_, Xt, dU);
    symmetrise(dU);
    axpy(1.0, gU, dU);
    store(args_.d_cov, b_, Rows{}, K_, dU);
  }

  const BayesWriteBackwardArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t T_, K_, C_;
  const double gl_;
  const Matrix<A> W_, Wn_, U_, G_;
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
