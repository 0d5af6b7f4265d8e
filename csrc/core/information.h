// The write of a whole episode in information form, for episodes much longer than the memory.
//
// With U0 = L0 L0' and n_t the noise variances, in float64:
//   G = W' diag(1/n) W,  H = W' diag(1/n) Z,  N = I + L0' G L0 = M'M,  B = M^-T L0',
//   U = B'B,  R = R0 + U (H - G R0),  ln|S| = sum ln n + 2 sum ln diag M.
// One pass over the steps, a sum; the K x K work is done once. It squares the condition number, so
// the largest diagonal of N decides whether it may be used.
#pragma once

#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr double kHardInformation32 = 1e10;  // largest diagonal of N: measured error under 1e-6
constexpr double kHardInformation64 = 1e4;   // measured error under 1e-10

inline bool information_pays(const Sizes& n, const Episode& e) {
  return e.decay == nullptr && e.steps >= 2 * n.K && e.steps >= 64;
}

// Sums over the episode. H is kept in blocks of K x width, like the mean.
struct InformationSums {
  double *G, *H;
  double squares = 0.0;  // sum |z_t|^2 / n_t
};

inline void accumulate_information(const BayesWriteArgs& args, int64_t b, const Episode& e, int64_t ldk,
                                   const Columns& columns, InformationSums& sums, double* partial,
                                   const Executor& executor) {
  constexpr int64_t kSteps = 256;
  const int64_t K = args.n.K;
  Workspace::Scope scope(Workspace::of_thread());
  double* W = scope.take<double>(kSteps * ldk);
  double* Wn = scope.take<double>(kSteps * ldk);
  for (int64_t first = 0; first < e.steps; first += kSteps) {
    const int64_t steps = std::min(kSteps, e.steps - first);
    const Rows rows{e.index, first};
    load(args.weights, b, rows, steps, 0, K, W, ldk);
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t k = 0; k < ldk; ++k) Wn[t * ldk + k] = k < K ? W[t * ldk + k] / e.noise[first + t] : 0.0;
    gemm<true>(executor, K, K, steps, W, ldk, Wn, ldk, sums.G, ldk, Store::add, Structure::full, Part::upper);
    executor.for_each(columns.count, [&](int64_t block) {
      Workspace::Scope inner(Workspace::of_thread());
      const int64_t ld = columns.width, n = columns.of(block);
      double* Z = inner.take<double>(steps * ld);
      load(args.values, b, rows, steps, columns.at(block), n, Z, ld);
      gemm<true>(K, n, steps, Wn, ldk, Z, ld, sums.H + block * K * ld, ld, Store::add);
      double squares = 0.0;
      for (int64_t t = 0; t < steps; ++t) {
        double row = 0.0;
        for (int64_t j = 0; j < n; ++j) row += Z[t * ld + j] * Z[t * ld + j];
        squares += row / e.noise[first + t];
      }
      partial[block] = squares;
    });
    for (int64_t i = 0; i < columns.count; ++i) sums.squares += partial[i];
  }
  mirror(K, sums.G, ldk);
}

// False when it is too hard (see above) or the covariance is not positive definite.
template <class S>
bool write_item_information(const BayesWriteArgs& args, int64_t b, const Episode& e, double limit,
                            const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C, ldk = row_stride<double>(K);
  Workspace::Scope scope(Workspace::of_thread());
  const Columns columns = split_columns<double>(C);
  const int64_t ld = columns.width, block_size = K * ld;
  const auto matrix = [&] { return scope.take<double>(K * ldk); };
  double *U = matrix(), *L0 = matrix(), *Y = matrix(), *N = matrix(), *V = matrix();
  double* inverse_diagonal = scope.take<double>(K);
  double* partial = scope.take<double>(columns.count);
  InformationSums sums{matrix(), scope.take<double>(columns.count * block_size)};
  std::memset(sums.G, 0, size_t(K * ldk) * sizeof(double));
  std::memset(sums.H, 0, size_t(columns.count * block_size) * sizeof(double));

  load(args.cov, b, Rows{}, K, 0, K, U, ldk);
  if (!cholesky(K, U, ldk, inverse_diagonal)) return false;
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = 0; j < i; ++j) U[i * ldk + j] = 0.0;
  transpose(K, K, U, ldk, L0, ldk);

  accumulate_information(args, b, e, ldk, columns, sums, partial, executor);
  gemm<false>(executor, K, K, K, U, ldk, sums.G, ldk, Y, ldk, Store::set, Structure::upper);
  gemm<false>(executor, K, K, K, Y, ldk, L0, ldk, N, ldk, Store::set, Structure::full, Part::upper);
  double largest = 0.0;
  for (int64_t k = 0; k < K; ++k) {
    largest = std::max(largest, N[k * ldk + k]);
    N[k * ldk + k] += 1.0;
  }
  if (!(largest <= limit) || !cholesky(K, N, ldk, inverse_diagonal)) return false;
  LogProduct inverse, noise;
  for (int64_t k = 0; k < K; ++k) inverse.multiply(inverse_diagonal[k]);
  for (int64_t t = 0; t < e.steps; ++t) noise.multiply(e.noise[t]);
  const double log_det = noise.value() - 2.0 * inverse.value();

  invert_upper(K, N, ldk, inverse_diagonal, V, ldk);
  gemm<true>(executor, K, K, K, V, ldk, U, ldk, Y, ldk, Store::set, Structure::lower);  // Y = B
  gemm<true>(executor, K, K, K, Y, ldk, Y, ldk, U, ldk, Store::set, Structure::full, Part::upper);
  mirror(K, U, ldk);

  executor.for_each(columns.count, [&](int64_t block) {
    Workspace::Scope inner(Workspace::of_thread());
    const int64_t n = columns.of(block);
    double* R = inner.take<double>(block_size);
    double* delta = inner.take<double>(block_size);
    double* H = sums.H + block * block_size;
    load(args.mean, b, Rows{}, K, columns.at(block), n, R, ld);
    // |Z - W R0|^2 in the noise metric is squares - <R0, 2 H - G R0>; the last takes <rhs, U rhs> off.
    double quadratic = 0.0;
    for (int64_t i = 0; i < K * ld; ++i) quadratic -= R[i] * H[i];
    gemm<false>(K, n, K, sums.G, ldk, R, ld, H, ld, Store::sub);  // H = rhs
    for (int64_t i = 0; i < K * ld; ++i) quadratic -= R[i] * H[i];
    gemm<false>(K, n, K, U, ldk, H, ld, delta, ld, Store::set);
    for (int64_t i = 0; i < K * ld; ++i) {
      quadratic -= delta[i] * H[i];
      R[i] += delta[i];
    }
    store(args.mean_out, b, Rows{}, K, columns.at(block), n, R, ld);
    partial[block] = quadratic;
  });
  double quadratic = sums.squares;
  for (int64_t i = 0; i < columns.count; ++i) quadratic += partial[i];
  store(args.cov_out, b, Rows{}, K, 0, K, U, ldk);
  const double log_evidence =
      -0.5 * (quadratic + double(C) * log_det + double(e.steps) * double(C) * kLog2Pi);
  store_scalar(args.log_evidence, b, 0, log_evidence);
  return std::isfinite(log_evidence);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
