// KL between two beliefs over a memory, in nats, and its adjoint. With U0 = F0 F0', U = F F' and
// D = R - R0,
//   2 KL = C (|F0^-1 F|^2 - K - ln|U| + ln|U0|) + |F0^-1 D|^2.
// The KL and all factors are float64. The products of the adjoint are float32 for a float32 state
// with many slots and well-conditioned covariances, which amplify rounding little.
#pragma once

#include "../common/policy.h"
#include "in_place.h"

namespace kanerva {
namespace KANERVA_ISA {

// U = A'A, both upper, A with zeros below the diagonal, and V = A^-1 where it is asked for.
struct Factor {
  Matrix<double> A;
  double* inverse_diagonal;
  SpdFacts facts;

  Factor(Workspace::Scope& scope, int64_t K)
      : A(scope, K, K), inverse_diagonal(scope.take<double>(K)) {}

  void build(const View& cov, int64_t b, const Executor& executor) {
    const int64_t K = A.rows;
    load_covariance(executor, cov, b, A);
    if (!cholesky(K, A.data, A.ld, inverse_diagonal)) return;
    LogProduct product;
    double smallest = HUGE_VAL, largest = 0.0;
    for (int64_t k = 0; k < K; ++k) {
      std::memset(A[k], 0, size_t(k) * sizeof(double));
      product.multiply(inverse_diagonal[k]);
      smallest = std::min(smallest, inverse_diagonal[k]);
      largest = std::max(largest, inverse_diagonal[k]);
    }
    facts.log_det = -2.0 * product.value();
    if (K > 0) facts.condition = (largest / smallest) * (largest / smallest);
    facts.ok = true;
  }

  void invert(const Executor& executor, const Matrix<double>& V) const {
    invert_upper(executor, A.rows, A.data, A.ld, inverse_diagonal, V.data, V.ld);
  }
};

// Whether the products of a state are float32 beside float64 factors.
inline bool products_in_float32(Dtype state, int64_t K, double condition) {
  return state == Dtype::float32 && K >= kManySlots && condition <= kEasy;
}

// The upper part of P (=, -=) V V', V upper and Vt its transpose.
template <class T>
void upper_square(const Executor& executor, const Matrix<T>& V, const Matrix<T>& Vt,
                  const Matrix<T>& P, Store how) {
  product(executor, V.of_structure(Structure::upper), Vt.of_structure(Structure::lower), P, how,
          Part::upper);
}

// Y = P X, P = V V'. In float32 by the factor: multiplied out it would double the error where X = U
// Z.
template <class T>
void solve(const Executor& executor, const Matrix<T>& V, const Matrix<T>& P, const Matrix<T>& X,
           const Matrix<T>& Y) {
  const int64_t K = V.rows, C = X.columns;
  if constexpr (std::is_same_v<T, double>) {
    product(executor, K, P, X, Y);
  } else {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<T> half(scope, K, C);
    const Matrix<T> upper = V.of_structure(Structure::upper);
    product_transposed(executor, upper, X, half);
    product(executor, upper, half, Y);
  }
}

template <class T>
double energy(const Matrix<T>& x) {
  double total = 0.0;
  for (int64_t i = 0; i < x.rows; ++i) total += row_dot(x.columns, x[i], x[i]);
  return total;
}

// What forward and backward share: the factors, and V = F0'^-1.
struct BeliefPair {
  Factor belief, prior;
  Matrix<double> V;

  BeliefPair(Workspace::Scope& scope, const Sizes& n)
      : belief(scope, n.K), prior(scope, n.K), V(scope, n.K, n.K) {}

  template <class Args>
  bool build(const Args& args, int64_t b, const Executor& executor) {
    executor.for_each(2, [&](int64_t which) {
      if (which == 0) prior.build(args.prior_cov, b, serial_executor());
      if (which == 1) belief.build(args.cov, b, serial_executor());
    });
    if (!belief.facts.ok || !prior.facts.ok) return false;
    prior.invert(executor, V);
    return true;
  }
};

template <class T, class Args>
void load_difference(const Args& args, int64_t b, const Executor& executor, const Matrix<T>& D) {
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<T> R0(scope, D.rows, D.columns);
  for_rows(executor, D.rows, D.columns, [&](int64_t first, int64_t count) {
    const Rows rows{nullptr, first};
    load(args.mean, b, rows, count, 0, D.columns, D[first], D.ld);
    load(args.prior_mean, b, rows, count, 0, D.columns, R0[first], R0.ld);
    for (int64_t k = first; k < first + count; ++k) axpy(0, D.columns, -1.0, R0[k], D[k]);
  });
}

// Y = F'F0'^-1, upper: |Y|^2 is the trace of U0^-1 U, and Y the identity for equal beliefs.
template <class T>
void whiten(const Executor& executor, const Matrix<T>& A, const Matrix<T>& V, const Matrix<T>& Y) {
  product(executor, A.of_structure(Structure::upper), V.of_structure(Structure::upper), Y);
}

inline void memory_kl_item(const MemoryKlArgs& args, int64_t b, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  BeliefPair p(scope, args.n);
  double kl = NAN;
  if (p.build(args, b, executor)) {
    Matrix<double> Y(scope, K, K), D(scope, K, C), X(scope, K, C);
    load_difference(args, b, executor, D);
    whiten(executor, p.belief.A, p.V, Y);
    product_transposed(executor, p.V.of_structure(Structure::upper), D, X);
    const double log_ratio = p.belief.facts.log_det - p.prior.facts.log_det;
    kl = 0.5 * (double(C) * (energy(Y) - double(K) - log_ratio) + energy(X));
    if (kl < 0.0) kl = 0.0;  // two equal beliefs, up to rounding
  }
  store_scalar(args.kl_out, b, 0, kl);
}

// With P0 = U0^-1 = V V', Y = F'V, G = V Y' and Q = P0 D, the products in arithmetic A,
//   dU0 = g/2 (C (P0 - G G') - Q Q'),  dU = g C/2 (P0 - U^-1),  dR = g Q = -dR0.
template <class A>
void memory_kl_adjoint(const MemoryKlBackwardArgs& args, int64_t b, const BeliefPair& p,
                       const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  const double g = load_scalar<double>(args.grad, b);
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<A> P0(scope, K, K), Vt(scope, K, K), S(scope, K, K), Q(scope, K, C);
  const auto scale_all = [&](double factor) {
    for_rows(executor, K, K, [&](int64_t first, int64_t count) {
      for (int64_t k = first; k < first + count; ++k) scale(0, K, factor, S[k]);
    });
  };
  // The upper part of S is complete.
  const auto finish = [&](const View& to) {
    scale_all(0.5 * g);
    mirror(S);
    store(executor, to, b, Rows{}, K, S);
  };
  {
    Workspace::Scope inner(Workspace::of_thread());
    Matrix<A> V = in_arithmetic<A>(executor, inner, p.V);
    transpose(executor, p.V, Vt);
    upper_square(executor, V, Vt, P0, Store::set);
    mirror(P0);
    Matrix<A> Y(inner, K, K), Gt(inner, K, K);
    whiten(executor, in_arithmetic<A>(executor, inner, p.belief.A), V, Y);
    product(executor, Y.of_structure(Structure::upper), Vt.of_structure(Structure::lower), Gt);
    copy(P0, S);
    product_transposed(executor, Gt, Gt, S, Store::sub, Part::upper);
    scale_all(double(C));
  }
  {
    Workspace::Scope inner(Workspace::of_thread());
    Matrix<A> D(inner, K, C), Qt(inner, C, K);
    load_difference(args, b, executor, D);
    solve(executor, in_arithmetic<A>(executor, inner, p.V), P0, D, Q);
    transpose(executor, Q, Qt);
    product_transposed(executor, Qt, Qt, S, Store::sub, Part::upper);
    finish(args.d_prior_cov);
  }
  const auto scale_and_store = [&](double factor, const View& to) {
    for_rows(executor, K, C, [&](int64_t first, int64_t count) {
      for (int64_t k = first; k < first + count; ++k) scale(0, C, factor, Q[k]);
      store(to, b, Rows{nullptr, first}, count, 0, C, Q[first], Q.ld);
    });
  };
  scale_and_store(g, args.d_mean);
  scale_and_store(-1.0, args.d_prior_mean);
  Matrix<double> inverse(scope, K, K);
  p.belief.invert(executor, inverse);
  transpose(executor, inverse, Vt);
  copy(P0, S);
  upper_square(executor, in_arithmetic<A>(executor, scope, inverse), Vt, S, Store::sub);
  scale_all(double(C));
  finish(args.d_cov);
}

inline void memory_kl_backward_item(const MemoryKlBackwardArgs& args, int64_t b,
                                    const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  BeliefPair p(scope, args.n);
  if (!p.build(args, b, executor)) {
    fill(args.d_mean, b, K, C, NAN);
    fill(args.d_prior_mean, b, K, C, NAN);
    fill(args.d_cov, b, K, K, NAN);
    fill(args.d_prior_cov, b, K, K, NAN);
    return;
  }
  const double condition = std::max(p.belief.facts.condition, p.prior.facts.condition);
  if (products_in_float32(args.mean.dtype, K, condition)) {
    memory_kl_adjoint<float>(args, b, p, executor);
  } else {
    memory_kl_adjoint<double>(args, b, p, executor);
  }
}

inline double kl_operations(const Sizes& n) {
  return double(n.K) * double(n.K) * double(n.K + n.C);
}

inline void memory_kl(const MemoryKlArgs& args, const Executor& executor) {
  for_each_item(args.n.B, kl_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) { memory_kl_item(args, b, inner); });
}

inline void memory_kl_backward(const MemoryKlBackwardArgs& args, const Executor& executor) {
  for_each_item(args.n.B, 3.0 * kl_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) { memory_kl_backward_item(args, b, inner); });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
