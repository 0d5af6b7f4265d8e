// The write of a whole episode in information form, for episodes much longer than the memory.
//
// With U0 = L0 L0' and n_t the noise variances:
//   G = W' diag(1/n) W,  N = I + L0' G L0 = M'M,  B = M^-T L0',  U = B'B          (float64)
//   H = W' diag(1/n) Z,  R = R0 + U (H - G R0),  ln|S| = sum ln n + 2 sum ln diag M
// Two sums over the steps, and the K x K work once. It squares the condition number: the largest
// diagonal of N decides whether it may be used at all, and the pivots of N whether the products as
// wide as the code are done in the state's arithmetic or in float64.
#pragma once

#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr double kHardInformation32 = 1e10;  // largest diagonal of N: measured error under 1e-6
constexpr double kHardInformation64 = 1e4;   // measured error under 1e-10
// Columns in float32 only where the condition of N, from its pivots, is low, and where they pay:
// for few slots float64 is fast enough, and the recursion, which is the yardstick, is more
// accurate.
constexpr double kEasyInformation = 64.0;
constexpr int64_t kManySlots = 256;
constexpr int64_t kInformationSteps = 256;  // steps at a time

// Shorter episodes are cheaper in chunks, and their log evidence would cancel here.
inline bool information_serves(WriteMethod method, const Sizes& n, const Episode& e) {
  if (method != WriteMethod::automatic && method != WriteMethod::information) return false;
  return e.decay == nullptr && e.steps >= 2 * n.K &&
         (e.steps >= 64 || method == WriteMethod::information);
}

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
        ldk_(row_stride<double>(K_)),
        G_(scope_.take<double>(K_ * ldk_)),
        U_(scope_.take<double>(K_ * ldk_)) {}

  // False when it is too hard (see above) or something is not positive definite.
  template <class S>
  bool run(double limit) {
    if (!solve_covariance(limit)) return false;
    const bool easy =
        std::is_same_v<S, float> && K_ >= kManySlots && condition_ <= kEasyInformation;
    const double quadratic = easy ? write_mean<float>() : write_mean<double>();
    LogProduct noise;
    for (int64_t t = 0; t < e_.steps; ++t) noise.multiply(e_.noise[t]);
    const double log_evidence = -0.5 * (quadratic + double(C_) * (noise.value() + log_det_) +
                                        double(e_.steps) * double(C_) * kLog2Pi);
    if (!std::isfinite(log_evidence)) return false;
    store(args_.cov_out, b_, Rows{}, K_, 0, K_, U_, ldk_);
    store_scalar(args_.log_evidence, b_, 0, log_evidence);
    return true;
  }

 private:
  // W and W / n of a run of steps.
  template <class A>
  void load_steps(int64_t first, int64_t steps, A* W, A* Wn, int64_t ld) const {
    load(args_.weights, b_, Rows{e_.index, first}, steps, 0, K_, W, ld);
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t k = 0; k < padded<A>(K_); ++k)
        Wn[t * ld + k] = W[t * ld + k] / A(e_.noise[first + t]);
  }

  // G, and the posterior covariance U.
  bool solve_covariance(double limit) {
    Workspace::Scope scope(Workspace::of_thread());
    const auto matrix = [&](int64_t rows) { return scope.take<double>(rows * ldk_); };
    double *W = matrix(kInformationSteps), *Wn = matrix(kInformationSteps);
    std::memset(G_, 0, size_t(K_ * ldk_) * sizeof(double));
    for (int64_t first = 0; first < e_.steps; first += kInformationSteps) {
      const int64_t steps = std::min(kInformationSteps, e_.steps - first);
      load_steps(first, steps, W, Wn, ldk_);
      gemm<true>(executor_, K_, K_, steps, W, ldk_, Wn, ldk_, G_, ldk_, Store::add, Structure::full,
                 Part::upper);
    }
    mirror(K_, G_, ldk_);

    double *L0 = matrix(K_), *Y = matrix(K_), *N = matrix(K_), *V = matrix(K_);
    double* inverse_diagonal = scope.take<double>(K_);
    load(args_.cov, b_, Rows{}, K_, 0, K_, U_, ldk_);
    if (!cholesky(K_, U_, ldk_, inverse_diagonal)) return false;
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < i; ++j) U_[i * ldk_ + j] = 0.0;
    transpose(K_, K_, U_, ldk_, L0, ldk_);
    gemm<false>(executor_, K_, K_, K_, U_, ldk_, G_, ldk_, Y, ldk_, Store::set, Structure::upper);
    gemm<false>(executor_, K_, K_, K_, Y, ldk_, L0, ldk_, N, ldk_, Store::set, Structure::full,
                Part::upper);
    double largest = 0.0;
    for (int64_t k = 0; k < K_; ++k) {
      largest = std::max(largest, N[k * ldk_ + k]);
      N[k * ldk_ + k] += 1.0;
    }
    if (!(largest <= limit) || !cholesky(K_, N, ldk_, inverse_diagonal)) return false;
    double low = HUGE_VAL, high = 0.0;
    LogProduct inverse;
    for (int64_t k = 0; k < K_; ++k) {
      inverse.multiply(inverse_diagonal[k]);
      low = std::min(low, inverse_diagonal[k]);
      high = std::max(high, inverse_diagonal[k]);
    }
    log_det_ = -2.0 * inverse.value();
    condition_ = (high / low) * (high / low);
    invert_upper(K_, N, ldk_, inverse_diagonal, V, ldk_);
    gemm<true>(executor_, K_, K_, K_, V, ldk_, U_, ldk_, Y, ldk_, Store::set,
               Structure::lower);  // B
    gemm<true>(executor_, K_, K_, K_, Y, ldk_, Y, ldk_, U_, ldk_, Store::set, Structure::full,
               Part::upper);
    mirror(K_, U_, ldk_);
    return true;
  }

  // The posterior mean with the columns in arithmetic A; returns the squared norm of Z - W R0 in
  // the metric of S^-1.
  template <class A>
  double write_mean() {
    Workspace::Scope scope(Workspace::of_thread());
    const Columns columns = split_columns<A>(C_);
    const int64_t ld = columns.width, size = K_ * ld, ldk = row_stride<A>(K_);
    double* partial = scope.take<double>(columns.count);
    A *W = scope.take<A>(kInformationSteps * ldk), *Wn = scope.take<A>(kInformationSteps * ldk);
    A* H = scope.take<A>(columns.count * size);
    std::memset(H, 0, size_t(columns.count * size) * sizeof(A));
    double quadratic = 0.0;
    const auto add_partial = [&] {
      for (int64_t i = 0; i < columns.count; ++i) quadratic += partial[i];
    };
    for (int64_t first = 0; first < e_.steps; first += kInformationSteps) {
      const int64_t steps = std::min(kInformationSteps, e_.steps - first);
      load_steps(first, steps, W, Wn, ldk);
      executor_.for_each(columns.count, [&](int64_t block) {
        Workspace::Scope inner(Workspace::of_thread());
        const int64_t n = columns.of(block);
        A* Z = inner.take<A>(steps * ld);
        load(args_.values, b_, Rows{e_.index, first}, steps, columns.at(block), n, Z, ld);
        gemm<true>(K_, n, steps, Wn, ldk, Z, ld, H + block * size, ld, Store::add);
        partial[block] = 0.0;
        for (int64_t t = 0; t < steps; ++t)
          partial[block] += row_product(n, Z + t * ld, Z + t * ld) / e_.noise[first + t];
      });
      add_partial();
    }

    A *U = scope.take<A>(K_ * ldk), *G = scope.take<A>(K_ * ldk);
    convert(K_, K_, U_, ldk_, U, ldk);
    convert(K_, K_, G_, ldk_, G, ldk);
    executor_.for_each(columns.count, [&](int64_t block) {
      Workspace::Scope inner(Workspace::of_thread());
      const int64_t n = columns.of(block);
      A *R = inner.take<A>(size), *delta = inner.take<A>(size), *Hb = H + block * size;
      load(args_.mean, b_, Rows{}, K_, columns.at(block), n, R, ld);
      // |Z - W R0|^2 / n is the sum of squares - <R0, 2 H - G R0>; <rhs, U rhs> comes off as well.
      double taken = 0.0;
      for (int64_t k = 0; k < K_; ++k) taken += row_product(n, R + k * ld, Hb + k * ld);
      gemm<false>(K_, n, K_, G, ldk, R, ld, Hb, ld, Store::sub);  // the right-hand side H - G R0
      gemm<false>(K_, n, K_, U, ldk, Hb, ld, delta, ld, Store::set);
      for (int64_t k = 0; k < K_; ++k) {
        A* row = R + k * ld;
        taken += row_product(n, row, Hb + k * ld) + row_product(n, delta + k * ld, Hb + k * ld);
        for (int64_t j = 0; j < n; ++j) row[j] += delta[k * ld + j];
      }
      store(args_.mean_out, b_, Rows{}, K_, columns.at(block), n, R, ld);
      partial[block] = -taken;
    });
    add_partial();
    return quadratic;
  }

  // x . y over n elements whose padding is zero, added up in float64.
  template <class A>
  static double row_product(int64_t n, const A* x, const A* y) {
    using V = Simd<double>;
    typename V::Vector sum{};
    for (int64_t j = 0; j < n; j += V::width) sum += V::load_as(x + j) * V::load_as(y + j);
    return V::sum(sum);
  }

  const BayesWriteArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_, ldk_;
  double *G_, *U_;
  double log_det_ = 0.0, condition_ = 1.0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
