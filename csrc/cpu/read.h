// Reading at given addresses: values = W R, var_t = w_t'U w_t, and their adjoint.
#pragma once

#include <atomic>

#include "queries.h"

namespace kanerva {
namespace KANERVA_ISA {

// How U enters the variances: as an upper triangle, which halves the product unless a single panel
// of columns holds it.
template <class A>
Structure form_of(const Matrix<A>& U) {
  return U.columns > kVectors * Simd<A>::width ? Structure::upper : Structure::full;
}

template <class A>
void prepare_form(const Matrix<A>& U) {
  if (form_of(U) == Structure::upper) fold_upper(U);
}

// var of m addresses, after prepare_form(U); WU is left as the product W U.
template <class A>
void read_variance(const Executor& executor, int64_t m, const Matrix<A>& W, const Matrix<A>& U,
                   const Matrix<A>& WU, const View& var_out, int64_t b, int64_t first) {
  product(executor, m, W, U.of_structure(form_of(U)), WU);
  for (int64_t t = 0; t < m; ++t) {
    const double var = row_dot(W.columns, W[t], WU[t]);
    // Rounding must not make the variance of a positive semi-definite covariance negative.
    store_scalar(var_out, b, first + t, var < 0.0 ? 0.0 : var);
  }
}

// Adjoint of a read of m addresses: gW accumulated, dR and the upper part of dU accumulated. Absent
// gradients are null.
template <class A>
void read_adjoint(const Executor& executor, int64_t m, const Matrix<A>& W, const Matrix<A>& Rt,
                  const Matrix<A>& U, const View& grad_values, const View& grad_var, int64_t b,
                  int64_t first, const Matrix<A>& gW, const Matrix<A>& dR, const Matrix<A>& dU) {
  Workspace::Scope scope(Workspace::of_thread());
  if (grad_values) {
    Matrix<A> gV(scope, m, Rt.rows);
    load(executor, grad_values, b, Rows{nullptr, first}, m, gV);
    product(executor, m, gV, Rt, gW, Store::add);
    product_transposed(executor, m, W, gV, dR, Store::add);
  }
  if (grad_var) {
    Matrix<A> scaled(scope, m, W.columns);
    for_rows(executor, m, W.columns, [&](int64_t from, int64_t count) {
      for (int64_t t = from; t < from + count; ++t) {
        std::memcpy(scaled[t], W[t], size_t(padded<A>(W.columns)) * sizeof(A));
        scale(0, W.columns, load_scalar<A>(grad_var, b, first + t), scaled[t]);
      }
    });
    product_transposed(executor, m, W, scaled, dU, Store::add, Part::upper);
    for_rows(executor, m, W.columns, [&](int64_t from, int64_t count) {
      for (int64_t t = from; t < from + count; ++t) scale(0, W.columns, 2.0, scaled[t]);
    });
    product(executor, m, scaled, U, gW, Store::add);
  }
}

template <class A>
void read_item(const ReadArgs& args, int64_t b, const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<A> R(scope, K, C), U(scope, K, K);
  load(executor, args.mean, b, Rows{}, K, R);
  load(executor, args.cov, b, Rows{}, K, U);
  std::atomic<bool> bad{not_finite(K, R) || not_finite(K, U)};
  prepare_form(U);
  for_each_segment(executor, T, [&](int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<A> W(scope, tile, K), WU(scope, tile, K), V(scope, tile, C);
    for (int64_t first = begin; first < end && !bad; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      load(inner, args.weights, b, rows, m, W);
      if (not_finite(m, W)) bad = true;
      product(inner, m, W, R, V);
      store(inner, args.values_out, b, rows, m, V);
      read_variance(inner, m, W, U, WU, args.var_out, b, first);
    }
  });
  if (bad) {
    fill(args.values_out, b, T, C, NAN);
    fill(args.var_out, b, T, 1, NAN);
  }
}

// What the gradients of the state add up to.
template <class A>
struct ReadSums {
  Matrix<A> dR, dU;

  ReadSums(Workspace::Scope& scope, int64_t K, int64_t C) : dR(scope, K, C), dU(scope, K, K) {
    dR.zero();
    dU.zero();
  }
  void add(const ReadSums& other) const {
    axpy(1.0, other.dR, dR);
    axpy(1.0, other.dU, dU);
  }
};

template <class A>
void read_backward_item(const ReadBackwardArgs& args, int64_t b, const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<A> R(scope, K, C), Rt(scope, C, K), U(scope, K, K);
  load(executor, args.mean, b, Rows{}, K, R);
  transpose(executor, R, Rt);
  load_covariance(executor, args.cov, b, U);
  const auto run = [&](const ReadSums<A>& sums, int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<A> W(scope, tile, K), gW(scope, tile, K);
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      load(inner, args.weights, b, rows, m, W);
      gW.zero();
      read_adjoint(inner, m, W, Rt, U, args.grad_values, args.grad_var, b, first, gW, sums.dR,
                   sums.dU);
      store(inner, args.d_weights, b, rows, m, gW);
    }
  };
  const auto& sums = sum_segments<ReadSums<A>>(scope, executor, T, K, run, K, C);
  mirror(sums.dU);
  store(executor, args.d_mean, b, Rows{}, K, sums.dR);
  store(executor, args.d_cov, b, Rows{}, K, sums.dU);
}

inline void read(const ReadArgs& args, const Executor& executor) {
  const double operations = double(args.n.T) * double(args.n.K) * double(args.n.K + args.n.C);
  for_each_item_of_queries(args.n, operations, executor, [&](int64_t b, const Executor& inner) {
    args.mean.dtype == Dtype::float32 ? read_item<float>(args, b, inner)
                                      : read_item<double>(args, b, inner);
  });
}

inline void read_backward(const ReadBackwardArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  for_each_item(B, 2.0 * double(T) * double(K) * double(K + C), executor,
                [&](int64_t b, const Executor& inner) {
                  args.mean.dtype == Dtype::float32 ? read_backward_item<float>(args, b, inner)
                                                    : read_backward_item<double>(args, b, inner);
                });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
