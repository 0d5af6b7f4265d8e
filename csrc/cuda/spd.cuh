// Inverses of symmetric positive definite matrices by a team, and what operators that read have in
// common.
#pragma once

#include "factorise.cuh"
#include "plan.cuh"

namespace kanerva::cuda {

struct SpdFacts {
  bool ok = false;
  double log_det = 0.0;
  double condition = 1.0;  // a lower estimate, from the pivots
};

// inverse = s^-1, exactly symmetric. `factor` (n x n) and pivots (n) are room;
// s is lost. The same facts in every thread. Expects s to be synchronised; leaves the team so.
template <class F>
__device__ inline SpdFacts invert_spd(int n, Mat<F> s, Mat<F> factor, Mat<F> inverse, F* pivots) {
  SpdFacts facts;
  if (!factorise(n, s, factor, pivots)) return facts;
  double logs = 0.0;
  for (int i = thread(); i < n; i += threads()) logs += log(double(pivots[i]));
  facts.log_det = team_sum(logs);
  facts.condition = pivot_condition(n, pivots);
  product<true, false>(n, n, n, factor, factor, [&](int i, int j, F x) { inverse(i, j) = x; });
  sync();
  facts.ok = true;
  return facts;
}

// Whether m x n elements hold a NaN or an infinity: the same answer in every thread.
template <class F>
__device__ inline bool not_finite(int m, int n, Mat<F> x) {
  bool bad = false;
  each(m, n, [&](int i, int j) {
    const double v = double(x(i, j));
    bad = bad || !(v <= kInfinite && v >= -kInfinite);
  });
  return any(bad);
}

// var of `count` addresses from W and W U: a warp each.
template <class F>
__device__ inline void store_variances(const View& var, int64_t b, int64_t first, int count, int K,
                                       Mat<F> W, Mat<F> WU) {
  for (int t = warp(); t < count; t += warps()) {
    double sum = 0.0;
    for (int k = lane(); k < K; k += 32) sum += double(W(t, k)) * double(WU(t, k));
    sum = warp_sum(sum);
    // Rounding must not make the variance of a positive semi-definite covariance negative.
    if (lane() == 0) store_scalar(var, b, first + t, sum < 0.0 ? 0.0 : sum);
  }
}

// Adjoint of a read of `count` addresses: gW, dR and dU are added to; gV (count x C) is room.
// Gradients may be absent. Leaves the team synchronised.
template <class F>
__device__ inline void read_adjoint(const View& grad_values, const View& grad_var, int64_t b,
                                    int64_t first, int count, int K, int C, Mat<F> W, Mat<F> R,
                                    Mat<F> U, Mat<F> gV, Mat<F> gW, Mat<F> dR, Mat<F> dU) {
  if (grad_values.data != nullptr) {
    load(grad_values, b, first, 0, count, C, gV);
    sync();
    product<false, true>(count, K, C, gV, R, [&](int i, int j, F x) { gW(i, j) += x; });
    product<true, false>(K, C, count, W, gV, [&](int i, int j, F x) { dR(i, j) += x; });
    sync();
  }
  if (grad_var.data != nullptr) {
    const auto g = [&](int t) { return F(scalar(grad_var, b, first + t)); };
    product<false, false>(count, K, K, W, U,
                          [&](int i, int j, F x) { gW(i, j) += F(2) * g(i) * x; });
    for (int t = 0; t < count; ++t) {
      const F scale = g(t);
      each(K, K, [&](int i, int j) { dU(i, j) += W(t, i) * (scale * W(t, j)); });
    }
    sync();
  }
}

}  // namespace kanerva::cuda
