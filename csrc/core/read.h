// Reading at given addresses: values = W R, var_t = w_t'U w_t, and their adjoint.
#pragma once

#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

// var of m addresses; WU is left as the product W U.
template <class A>
void read_variance(const Executor& executor, int64_t m, const Matrix<A>& W, const Matrix<A>& U,
                   const Matrix<A>& WU, const View& var_out, int64_t b, int64_t first) {
  product(executor, m, W, U, WU);
  for (int64_t t = 0; t < m; ++t) {
    double var = 0.0;
    for (int64_t k = 0; k < W.columns; ++k) var += double(W[t][k]) * double(WU[t][k]);
    // Rounding must not make the variance of a positive semi-definite covariance negative.
    store_scalar(var_out, b, first + t, var < 0.0 ? 0.0 : var);
  }
}

// Adjoint of a read of m addresses: gW accumulated, dR and dU accumulated. Absent gradients are
// null.
template <class A>
void read_adjoint(const Executor& executor, int64_t m, const Matrix<A>& W, const Matrix<A>& Rt,
                  const Matrix<A>& U, const View& grad_values, const View& grad_var, int64_t b,
                  int64_t first, const Matrix<A>& gW, const Matrix<A>& dR, const Matrix<A>& dU) {
  Workspace::Scope scope(Workspace::of_thread());
  if (grad_values) {
    Matrix<A> gV(scope, m, Rt.rows);
    load(grad_values, b, Rows{nullptr, first}, m, gV);
    product(executor, m, gV, Rt, gW, Store::add);
    product_transposed(executor, m, W, gV, dR, Store::add);
  }
  if (grad_var) {
    Matrix<A> scaled(scope, m, W.columns);
    for (int64_t t = 0; t < m; ++t) {
      const A g = load_scalar<A>(grad_var, b, first + t);
      for (int64_t k = 0; k < scaled.ld; ++k) scaled[t][k] = k < W.columns ? g * W[t][k] : A(0);
    }
    product_transposed(executor, m, W, scaled, dU, Store::add);
    for (int64_t t = 0; t < m; ++t)
      for (int64_t k = 0; k < W.columns; ++k) scaled[t][k] += scaled[t][k];
    product(executor, m, scaled, U, gW, Store::add);
  }
}

template <class A>
void read_item(const ReadArgs& args, int64_t b, const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  const int64_t tile = std::min(kTile, T);
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<A> R(scope, K, C), U(scope, K, K), W(scope, tile, K), WU(scope, tile, K),
      V(scope, tile, C);
  load(args.mean, b, Rows{}, K, R);
  load(args.cov, b, Rows{}, K, U);
  bool bad = not_finite(K, R) || not_finite(K, U);
  for (int64_t first = 0; first < T && !bad; first += tile) {
    const int64_t m = std::min(tile, T - first);
    const Rows rows{nullptr, first};
    load(args.weights, b, rows, m, W);
    bad = not_finite(m, W);
    product(executor, m, W, R, V);
    store(args.values_out, b, rows, m, V);
    read_variance(executor, m, W, U, WU, args.var_out, b, first);
  }
  if (bad) {
    fill(args.values_out, b, T, C, NAN);
    fill(args.var_out, b, T, 1, NAN);
  }
}

template <class A>
void read_backward_item(const ReadBackwardArgs& args, int64_t b, const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  const int64_t tile = std::min(kTile, T);
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<A> R(scope, K, C), Rt(scope, C, K), U(scope, K, K), dR(scope, K, C), dU(scope, K, K);
  Matrix<A> W(scope, tile, K), gW(scope, tile, K);
  load(args.mean, b, Rows{}, K, R);
  transpose(R, Rt);
  load(args.cov, b, Rows{}, K, U);
  dR.zero();
  dU.zero();
  for (int64_t first = 0; first < T; first += tile) {
    const int64_t m = std::min(tile, T - first);
    const Rows rows{nullptr, first};
    load(args.weights, b, rows, m, W);
    gW.zero();
    read_adjoint(executor, m, W, Rt, U, args.grad_values, args.grad_var, b, first, gW, dR, dU);
    store(args.d_weights, b, rows, m, gW);
  }
  store(args.d_mean, b, Rows{}, K, dR);
  store(args.d_cov, b, Rows{}, K, dU);
}

inline void read(const ReadArgs& args, const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  for_each_item(B, double(T) * double(K) * double(K + C), executor,
                [&](int64_t b, const Executor& inner) {
                  args.mean.dtype == Dtype::float32 ? read_item<float>(args, b, inner)
                                                    : read_item<double>(args, b, inner);
                });
}

inline void read_backward(const ReadBackwardArgs& args, const Executor& executor) {
  const auto [B, T, K, C] = args.n;
  for_each_item(B, 2.0 * double(T) * double(K) * double(K + C), executor,
                [&](int64_t b, const Executor& inner) {
                  args.mean.dtype == Dtype::float32 ? read_backward_item<float>(args, b, inner)
                                                    : read_backward_item<double>(args, b, inner);
                });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
