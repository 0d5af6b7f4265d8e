// The posterior of a memory from the sums over the steps; the notation is that of information.h.
#pragma once

#include "../common/policy.h"
#include "in_place.h"

namespace kanerva {
namespace KANERVA_ISA {

// What may go wrong in an arithmetic: the largest diagonal of N, its condition (from its pivots, or
// more carefully from its norm and the diagonal of its inverse), and how many times larger the
// squares of the values may be than what the memory leaves of them.
struct InformationLimits {
  double diagonal, condition = kNoLimit, condition_by_norms = kNoLimit, explained = kNoLimit;
};

// F: arithmetic of the K x K work and of the columns.
template <class F>
class PosteriorOfSums {
 public:
  PosteriorOfSums(Workspace::Scope& scope, int64_t slots, int64_t code, const Executor& executor)
      : G(scope, slots, slots),
        U(scope, slots, slots),
        H(scope, slots, code),
        R(scope, slots, code),
        executor_(executor),
        K_(slots),
        C_(code) {}

  const Matrix<F> G, U;  // the sum of addresses, whole; the posterior covariance
  const Matrix<F> H, R;  // the sum of codes, until write_mean(); the posterior mean

  double log_det() const { return log_det_; }  // of N

  // U. False when that is too hard or something is not positive definite.
  bool solve_covariance(const View& cov, int64_t b, const InformationLimits& limits) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<F> L0(scope, K_, K_), Y(scope, K_, K_), N(scope, K_, K_), V(scope, K_, K_),
        B(scope, K_, K_);
    F* inverse_diagonal = scope.take<F>(K_);
    load_covariance(executor_, cov, b, U);
    if (!cholesky(U, inverse_diagonal)) return false;
    clear_lower(U);
    transpose(executor_, U, L0);
    product(executor_, U.of_structure(Structure::upper), G, Y);
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
    product_transposed(executor_, V.of_structure(Structure::upper), U, B);
    product_transposed(executor_, B, B, U, Store::set, Part::upper);
    mirror(U);
    return true;
  }

  // R; returns the squared norm of Z - W R0 in the metric of S^-1, given sum |z_t|^2 / n_t.
  double write_mean(const View& mean, int64_t b, double square) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> delta(scope, K_, C_);
    double quadratic = square;
    load(executor_, mean, b, Rows{}, K_, R);
    // |Z - W R0|^2 / n is the sum of squares - <R0, 2 H - G R0>; <rhs, U rhs> comes off as well.
    for (int64_t k = 0; k < K_; ++k) quadratic -= row_product(R[k], H[k]);
    if (!is_zero(R)) product(executor_, K_, G, R, H, Store::sub);  // the right-hand side H - G R0
    product(executor_, K_, U, H, delta);
    for (int64_t k = 0; k < K_; ++k) {
      quadratic -= row_product(R[k], H[k]) + row_product(delta[k], H[k]);
      axpy(0, C_, 1.0, delta[k], R[k]);
    }
    return quadratic;
  }

 private:
  bool is_zero(const Matrix<F>& x) const {
    for (int64_t k = 0; k < x.rows; ++k)
      for (int64_t j = 0; j < x.columns; ++j)
        if (x[k][j] != F(0)) return false;
    return true;
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

  const Executor& executor_;
  const int64_t K_, C_;
  double log_det_ = 0.0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
