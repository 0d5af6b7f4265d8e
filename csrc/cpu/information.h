// The write of a whole episode in information form, for episodes much longer than the memory.
//
// With U0 = L0 L0' and n_t the noise variances:
//   G = W' diag(1/n) W,  N = I + L0' G L0 = M'M,  B = M^-T L0',  U = B'B
//   H = W' diag(1/n) Z,  R = R0 + U (H - G R0),  ln|S| = sum ln n + 2 sum ln diag M
// Two sums over the steps, and the K x K work once. It squares the condition number: the largest
// diagonal of N decides whether it may be used at all, and the pivots of N whether float32 serves
// for a float32 state, in all of it or in the sums alone (block_sums.h).
#pragma once

#include "../common/policy.h"
#include "block_sums.h"
#include "matrices.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr int64_t kInformationSteps = 256;  // steps at a time

// What may go wrong in an arithmetic: the largest diagonal of N, its condition (from its pivots, or
// more carefully from its norm and the diagonal of its inverse), and how many times larger the
// squares of the values may be than what the memory leaves of them.
struct InformationLimits {
  double diagonal, condition = kNoLimit, condition_by_norms = kNoLimit, explained = kNoLimit;
};

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

  // False when it is too hard or something is not positive definite.
  bool run(const InformationLimits& limits) {
    Workspace::Scope scope(Workspace::of_thread());
    sum_covariance();
    if (!solve_covariance(limits)) return false;
    const Matrix<F> H(scope, K_, C_);
    const double square = sum_values(H);
    return finish(H, square, limits);
  }

  // The same with the sums in float32.
  bool run_with_float32_sums(const InformationLimits& limits) {
    static_assert(std::is_same_v<F, double>);
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> H(scope, K_, C_);
    BlockSums sums(scope, G_, H);
    sums.add_up(args_.weights, args_.values, b_, e_, executor_);
    return solve_covariance(limits) && finish(H, sums.square(), limits);
  }

 private:
  bool finish(const Matrix<F>& H, double square, const InformationLimits& limits) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> R(scope, K_, C_);
    const double quadratic = write_mean(H, square, R);
    if (!(square <= limits.explained * quadratic)) return false;
    LogProduct noise;
    for (int64_t t = 0; t < e_.steps; ++t) noise.multiply(e_.noise[t]);
    const double log_evidence = -0.5 * (quadratic + double(C_) * (noise.value() + log_det_) +
                                        double(e_.steps) * double(C_) * kLog2Pi);
    if (!std::isfinite(log_evidence)) return false;
    store(executor_, args_.mean_out, b_, Rows{}, K_, R);
    store(args_.cov_out, b_, Rows{}, K_, U_);
    store_scalar(args_.log_evidence, b_, 0, log_evidence);
    return true;
  }

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

  void sum_covariance() {
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
  }

  // The posterior covariance U.
  bool solve_covariance(const InformationLimits& limits) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<F> L0(scope, K_, K_), Y(scope, K_, K_), N(scope, K_, K_), V(scope, K_, K_),
        B(scope, K_, K_);
    F* inverse_diagonal = scope.take<F>(K_);
    load_covariance(executor_, args_.cov, b_, U_);
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
    const double norm = limits.condition_by_norms == kNoLimit ? 0.0 : norm_of_symmetric(N);
    if (!(largest <= limits.diagonal) || !cholesky(N, inverse_diagonal)) return false;
    double low = HUGE_VAL, high = 0.0;
    LogProduct inverse;
    for (int64_t k = 0; k < K_; ++k) {
      inverse.multiply(inverse_diagonal[k]);
      low = std::min(low, double(inverse_diagonal[k]));
      high = std::max(high, double(inverse_diagonal[k]));
    }
    log_det_ = -2.0 * inverse.value();
    if (!((high / low) * (high / low) <= limits.condition)) return false;
    invert_upper(N, inverse_diagonal, V);
    for (int64_t k = 0; norm > 0.0 && k < K_; ++k)  // a diagonal element of the inverse of N
      if (!(norm * row_dot(K_, V[k], V[k]) <= limits.condition_by_norms)) return false;
    product_transposed(executor_, V.of_structure(Structure::upper), U_, B);
    product_transposed(executor_, B, B, U_, Store::set, Part::upper);
    mirror(U_);
    return true;
  }

  // H; returns the sum of |z_t|^2 / n_t.
  double sum_values(const Matrix<F>& H) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t most = std::min(kInformationSteps, e_.steps);
    Matrix<F> Z(scope, most, C_), W(scope, most, K_), Wn(scope, most, K_);
    H.zero();
    double square = 0.0;
    for (int64_t first = 0; first < e_.steps; first += most) {
      const int64_t steps = std::min(most, e_.steps - first);
      load_steps(first, steps, W, Wn);
      load(executor_, args_.values, b_, Rows{e_.index, first}, steps, Z);
      product_transposed(executor_, steps, Wn, Z, H, Store::add);
      for (int64_t t = 0; t < steps; ++t) square += row_product(Z[t], Z[t]) / e_.noise[first + t];
    }
    return square;
  }

  // R, the posterior mean; returns the squared norm of Z - W R0 in the metric of S^-1.
  double write_mean(const Matrix<F>& H, double square, const Matrix<F>& R) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> delta(scope, K_, C_);
    double quadratic = square;
    load(executor_, args_.mean, b_, Rows{}, K_, R);
    // |Z - W R0|^2 / n is the sum of squares - <R0, 2 H - G R0>; <rhs, U rhs> comes off as well.
    for (int64_t k = 0; k < K_; ++k) quadratic -= row_product(R[k], H[k]);
    product(executor_, K_, G_, R, H, Store::sub);  // the right-hand side H - G R0
    product(executor_, K_, U_, H, delta);
    for (int64_t k = 0; k < K_; ++k) {
      quadratic -= row_product(R[k], H[k]) + row_product(delta[k], H[k]);
      axpy(0, C_, 1.0, delta[k], R[k]);
    }
    return quadratic;
  }

  // The largest absolute row sum, from the upper part.
  double norm_of_symmetric(const Matrix<F>& N) const {
    Workspace::Scope scope(Workspace::of_thread());
    double* sums = scope.take<double>(K_);
    std::fill(sums, sums + K_, 0.0);
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = i; j < K_; ++j) {
        const double x = std::abs(double(N[i][j]));
        sums[i] += x;
        if (j > i) sums[j] += x;
      }
    return *std::max_element(sums, sums + K_);
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
