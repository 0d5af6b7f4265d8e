// Additive sufficient statistics: (R, U) -> (U^-1 R, U^-1). The map is its own inverse.
// Arithmetic as in memory_kl.h: float64 factors, and for many slots float32 products.
#include "kernels.h"
#include "matrices.h"
#include "memory_kl.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A>
void statistics_products(const StatisticsArgs& args, int64_t b, const Matrix<A>& R,
                         const Matrix<double>& V, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<A> Vt(scope, K, K), P(scope, K, K), shift(scope, K, C);
  transpose(executor, V, Vt);
  const Matrix<A> factor = in_arithmetic<A>(executor, scope, V);
  upper_square(executor, factor, Vt, P, Store::set);
  mirror(K, P.data, P.ld);
  store(executor, args.precision_out, b, Rows{}, K, P);
  solve(executor, factor, P, R, shift);
  store(executor, args.shift_out, b, Rows{}, K, shift);
}

inline void statistics_item(const StatisticsArgs& args, int64_t b, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  Factor factor(scope, K);
  Matrix<double> V(scope, K, K);
  factor.build(args.cov, b, executor);
  bool done = factor.facts.ok;
  const auto run = [&](const auto& R) {
    load(executor, args.mean, b, Rows{}, K, R);
    done = !not_finite(K, R);
    if (done) statistics_products(args, b, R, V, executor);
  };
  if (done) {
    factor.invert(executor, V);
    if (products_in_float32(args.mean.dtype, K, factor.facts.condition)) {
      run(Matrix<float>(scope, K, C));
    } else {
      run(Matrix<double>(scope, K, C));
    }
  }
  if (!done) {
    fill(args.shift_out, b, K, C, NAN);
    fill(args.precision_out, b, K, K, NAN);
  }
}

// With P = U^-1 and S = P R: dR = P gS,  dU = -sym(P gP P + dR S').
template <class A>
void statistics_adjoint(const StatisticsBackwardArgs& args, int64_t b, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<A> P(scope, K, K), dU(scope, K, K), dR(scope, K, C);
  load(executor, args.precision, b, Rows{}, K, P);
  dU.zero();
  if (args.grad_shift) {
    Workspace::Scope inner(Workspace::of_thread());
    Matrix<A> gS(inner, K, C), S(inner, K, C), St(inner, C, K);
    load(executor, args.grad_shift, b, Rows{}, K, gS);
    load(executor, args.shift, b, Rows{}, K, S);
    transpose(executor, S, St);
    product(executor, K, P, gS, dR);
    product(executor, K, dR, St, dU, Store::sub);
    symmetrise(dU);
  } else {
    dR.zero();
  }
  if (args.grad_precision) {
    Workspace::Scope inner(Workspace::of_thread());
    Matrix<A> gP(inner, K, K), PgP(inner, K, K);
    load(executor, args.grad_precision, b, Rows{}, K, gP);
    symmetrise(gP);
    product(executor, K, P, gP, PgP);
    product(executor, PgP, P, dU, Store::sub, Part::upper);
    mirror(dU);
  }
  store(executor, args.d_mean, b, Rows{}, K, dR);
  store(executor, args.d_cov, b, Rows{}, K, dU);
}

inline void statistics_backward_item(const StatisticsBackwardArgs& args, int64_t b,
                                     const Executor& executor) {
  // P came rounded, which the products amplify as much as their own rounding: no condition helps.
  if (products_in_float32(args.shift.dtype, args.n.K, 1.0)) {
    statistics_adjoint<float>(args, b, executor);
  } else {
    statistics_adjoint<double>(args, b, executor);
  }
}

inline void statistics(const StatisticsArgs& args, const Executor& executor) {
  for_each_item(args.n.B, kl_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) { statistics_item(args, b, inner); });
}

inline void statistics_backward(const StatisticsBackwardArgs& args, const Executor& executor) {
  for_each_item(
      args.n.B, 2.0 * kl_operations(args.n), executor,
      [&](int64_t b, const Executor& inner) { statistics_backward_item(args, b, inner); });
}

KANERVA_KERNEL(statistics, StatisticsArgs)
KANERVA_KERNEL(statistics_backward, StatisticsBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
