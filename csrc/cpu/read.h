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

// A covariance in that form, where it lies if it can be used so.
template <class A>
Matrix<A> covariance_to_read(Workspace::Scope& scope, const Executor& executor, const View& cov,
                             int64_t b, int64_t K) {
  const Matrix<A> U = rows_to_read<A>(scope, executor, cov, b, Rows{}, K, K, Use::all);
  if (form_of(U) == Structure::full) return U;
  const Matrix<A> folded(scope, K, K);
  fold_upper(U, folded);
  return folded;
}

// var of m addresses, with U of covariance_to_read(); WU is left as the product W U.
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

// Adjoint of a read of m addresses: gives their gradient, in gW where `other` does not give all of
// it, and adds to dR and to the upper part of dU. UU is U + U'. What is absent is null.
template <class A>
Matrix<A> read_adjoint(const Executor& executor, int64_t m, const Matrix<A>& W, const Matrix<A>& Rt,
                       const Matrix<A>& UU, const View& grad_values, const View& grad_var,
                       int64_t b, int64_t first, Matrix<A> other, const Matrix<A>& gW,
                       const Matrix<A>& dR, const Matrix<A>& dU) {
  Workspace::Scope scope(Workspace::of_thread());
  const auto add = [&](const Matrix<A>& x, const Matrix<A>& y) {
    if (other) {
      product_from(executor, other, x, y, gW, Store::add);
    } else {
      product(executor, x, y, gW);
    }
    other = gW;
  };
  if (grad_values) {
    const Rows rows{nullptr, first};
    const auto gV = rows_to_read<A>(scope, executor, grad_values, b, rows, m, Rt.rows);
    add(gV, Rt);
    product_transposed(executor, m, W, gV, dR, Store::add);
  }
  if (grad_var) {
    const Matrix<A> scaled(scope, m, W.columns);
    for_rows(executor, m, W.columns, [&](int64_t from, int64_t count) {
      for (int64_t t = from; t < from + count; ++t)
        scale_into(0, W.columns, load_scalar<A>(grad_var, b, first + t), W[t], scaled[t]);
    });
    product_transposed(executor, m, W, scaled, dU, Store::add, Part::upper);
    add(scaled, UU);
  }
  if (!other) gW.zero();
  return other ? other : gW;
}

template <class A>
void read_item(const ReadArgs& args, int64_t b, const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  const auto R = rows_to_read<A>(scope, executor, args.mean, b, Rows{}, K, C);
  const auto U = covariance_to_read<A>(scope, executor, args.cov, b, K);
  std::atomic<bool> bad{not_finite(K, R) || not_finite(K, U)};
  for_each_segment(executor, T, [&](int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<A> WU(scope, tile, K);
    for (int64_t first = begin; first < end && !bad; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      Workspace::Scope of_tile(Workspace::of_thread());
      const auto W = rows_to_read<A>(of_tile, inner, args.weights, b, rows, m, K, Use::all);
      const RowsToWrite<A> V(of_tile, args.values_out, b, rows, m, C);
      if (not_finite(m, W)) bad = true;
      product(inner, W, R, V.matrix());
      V.finish(inner);
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
  const Matrix<A> Rt(scope, C, K), UU(scope, K, K);
  transpose(executor, rows_to_read<A>(scope, executor, args.mean, b, Rows{}, K, C), Rt);
  load_covariance(executor, args.cov, b, UU, 1.0);
  const auto run = [&](const ReadSums<A>& sums, int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      Workspace::Scope of_tile(Workspace::of_thread());
      const auto W = rows_to_read<A>(of_tile, inner, args.weights, b, rows, m, K, Use::all);
      const RowsToWrite<A> gW(of_tile, args.d_weights, b, rows, m, K, Use::all);
      read_adjoint(inner, m, W, Rt, UU, args.grad_values, args.grad_var, b, first, Matrix<A>(),
                   gW.matrix(), sums.dR, sums.dU);
      gW.finish(inner);
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
