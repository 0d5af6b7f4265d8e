// The write of a whole episode in information form, for episodes much longer than the memory.
//
// With U0 = L0 L0' and n_t the noise variances:
//   G = W' diag(1/n) W,  N = I + L0' G L0 = M'M,  B = M^-T L0',  U = B'B
//   H = W' diag(1/n) Z,  R = R0 + U (H - G R0),  ln|S| = sum ln n + 2 sum ln diag M
// Two sums over the steps, and the K x K work once. It squares the condition number: the largest
// diagonal of N decides whether it may be used at all, and the pivots of N whether float32 serves
// for a float32 state.
#pragma once

#include "../common/policy.h"
#include "matrices.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr int64_t kInformationSteps = 256;  // steps at a time

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
        K_(args.n.K),
        C_(args.n.C),
        G_(scope_, K_, K_),
        U_(scope_, K_, K_) {}

  // False when it is too hard (see above) or something is not positive definite.
  bool run(double limit, double condition) {
    if (!solve_covariance(limit, condition)) return false;
    const double quadratic = write_mean();
    LogProduct noise;
    for (int64_t t = 0; t < e_.steps; ++t) noise.multiply(e_.noise[t]);
    const double log_evidence = -0.5 * (quadratic + double(C_) * (noise.value() + log_det_) +
                                        double(e_.steps) * double(C_) * kLog2Pi);
    if (!std::isfinite(log_evidence)) return false;
    store(args_.cov_out, b_, Rows{}, K_, U_);
    store_scalar(args_.log_evidence, b_, 0, log_evidence);
    return true;
  }

 private:
  // W and W / n of a run of steps.
  void load_steps(int64_t first, int64_t steps, const Matrix<F>& W, const Matrix<F>& Wn) const {
    load(executor_, args_.weights, b_, Rows{e_.index, first}, steps, W);
    for_rows(executor_, steps, K_, [&](int64_t begin, int64_t count) {
      for (int64_t t = begin; t < begin + count; ++t) {
        const F inverse = F(1.0 / e_.noise[first + t]);
        for (int64_t k = 0; k < W.ld; ++k) Wn[t][k] = k < K_ ? inverse * W[t][k] : F(0);
      }
    });
  }

  // G, and the posterior covariance U.
  bool solve_covariance(double limit, double condition) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t most = std::min(kInformationSteps, e_.steps);
    Matrix<F> W(scope, most, K_), Wn(scope, most, K_);
    G_.zero();
    for (int64_t first = 0; first < e_.steps; first += most) {
      const int64_t steps = std::min(most, e_.steps - first);
      load_steps(first, steps, W, Wn);
      product_transposed(executor_, steps, W, Wn, G_, Store::add, Part::upper);
    }
    mirror(G_);

    Matrix<F> L0(scope, K_, K_), Y(scope, K_, K_), N(scope, K_, K_), V(scope, K_, K_),
        B(scope, K_, K_);
    F* inverse_diagonal = scope.take<F>(K_);
    load(executor_, args_.cov, b_, Rows{}, K_, U_);
    if (!cholesky(U_, inverse_diagonal)) return false;
    clear_lower(U_);
    transpose(executor_, U_, L0);
    product(executor_, U_.of_structure(Structure::upper), G_, Y);
    product(executor_, Y, L0, N, Store::set, Part::upper);
    double largest = 0.0;
    for (int64_t k = 0; k < K_; ++k) {
      largest = std::max(largest, double(N[k][k]));
      N[k][k] += F(1);
    }
    if (!(largest <= limit) || !cholesky(N, inverse_diagonal)) return false;
    double low = HUGE_VAL, high = 0.0;
    LogProduct inverse;
    for (int64_t k = 0; k < K_; ++k) {
      inverse.multiply(inverse_diagonal[k]);
      low = std::min(low, double(inverse_diagonal[k]));
      high = std::max(high, double(inverse_diagonal[k]));
    }
    log_det_ = -2.0 * inverse.value();
    if (!((high / low) * (high / low) <= condition)) return false;
    invert_upper(N, inverse_diagonal, V);
    product_transposed(executor_, V.of_structure(Structure::upper), U_, B);
    product_transposed(executor_, B, B, U_, Store::set, Part::upper);
    mirror(U_);
    return true;
  }

  // The posterior mean; returns the squared norm of Z - W R0 in the metric of S^-1.
  double write_mean() {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t most = std::min(kInformationSteps, e_.steps);
    Matrix<F> H(scope, K_, C_), R(scope, K_, C_), delta(scope, K_, C_), Z(scope, most, C_),
        W(scope, most, K_), Wn(scope, most, K_);
    H.zero();
    double quadratic = 0.0;
    for (int64_t first = 0; first < e_.steps; first += most) {
      const int64_t steps = std::min(most, e_.steps - first);
      load_steps(first, steps, W, Wn);
      load(executor_, args_.values, b_, Rows{e_.index, first}, steps, Z);
      product_transposed(executor_, steps, Wn, Z, H, Store::add);
      for (int64_t t = 0; t < steps; ++t)
        quadratic += row_product(Z[t], Z[t]) / e_.noise[first + t];
    }
    load(executor_, args_.mean, b_, Rows{}, K_, R);
    // |Z - W R0|^2 / n is the sum of squares - <R0, 2 H - G R0>; <rhs, U rhs> comes off as well.
    for (int64_t k = 0; k < K_; ++k) quadratic -= row_product(R[k], H[k]);
    product(executor_, K_, G_, R, H, Store::sub);  // the right-hand side H - G R0
    product(executor_, K_, U_, H, delta);
    for (int64_t k = 0; k < K_; ++k) {
      quadratic -= row_product(R[k], H[k]) + row_product(delta[k], H[k]);
      axpy(0, C_, 1.0, delta[k], R[k]);
    }
    store(executor_, args_.mean_out, b_, Rows{}, K_, R);
    return quadratic;
  }

  // x . y over the code, added up in float64.
  double row_product(const F* x, const F* y) const {
    using V = Simd<double>;
    typename V::Vector sum{};
    for (int64_t j = 0; j < C_; j += V::width) sum += V::load_as(x + j) * V::load_as(y + j);
    return V::sum(sum);
  }

  const BayesWriteArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const Matrix<F> G_, U_;
  double log_det_ = 0.0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
