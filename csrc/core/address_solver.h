// Least-squares addresses w = (R R' + lambda I)^-1 R z: the system of one memory, and its adjoint.
//
// The smaller of two equal forms is factorised, in float64: K x K as above, or, where the code is
// narrower than the memory, w = R (R'R + lambda I)^-1 z, which also spares a singular R R' the
// amplification of rounding by 1/lambda. Well-conditioned systems do the wide products in the
// state's arithmetic; others in float64 (float32 normal equations lose half the digits at condition
// 1e4).
#pragma once

#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr double kWellConditioned = 1e3;

struct AddressSystem {
  bool wide;  // K <= C: the K x K form
  int64_t K, C;
  double ridge = 0.0;
  Matrix<double> R, Rt, inverse;
  SpdInverse facts;

  AddressSystem(Workspace::Scope& scope, const Sizes& n)
      : wide(n.K <= n.C),
        K(n.K),
        C(n.C),
        R(scope, n.K, n.C),
        Rt(scope, n.C, n.K),
        inverse(scope, std::min(n.K, n.C), std::min(n.K, n.C)) {}

  // False when lambda is not positive or the mean is not finite.
  bool build(const View& mean, const View& ridge_view, int64_t b, const Executor& executor) {
    Workspace::Scope scope(Workspace::of_thread());
    ridge = load_scalar<double>(ridge_view, b);
    if (!(ridge > 0.0 && ridge < HUGE_VAL)) return false;
    load(mean, b, Rows{}, K, R);
    transpose(R, Rt);
    const int64_t n = inverse.rows;
    Matrix<double> system(scope, n, n);
    const Matrix<double>&a = wide ? R : Rt, &bt = wide ? Rt : R;
    gemm<false>(executor, n, n, a.columns, a.data, a.ld, bt.data, bt.ld, system.data, system.ld,
                Store::set, Structure::full, Part::upper);
    for (int64_t i = 0; i < n; ++i) system[i][i] += ridge;
    facts = invert_spd(executor, system, inverse);
    return facts.ok;
  }

  bool easy() const { return facts.condition <= kWellConditioned; }
};

// The system in arithmetic A, and what is done with it for a tile of m queries.
template <class A>
struct AddressTile {
  const AddressSystem& s;
  const Executor& executor;
  Matrix<A> R, Rt, inverse;
  Matrix<A> Z, W, narrow;  // queries m x C, addresses m x K, and m x min(K, C)

  AddressTile(Workspace::Scope& scope, const AddressSystem& system, int64_t m, const Executor& ex)
      : s(system),
        executor(ex),
        R(scope, s.K, s.C),
        Rt(scope, s.C, s.K),
        inverse(scope, s.inverse.rows, s.inverse.rows),
        Z(scope, m, s.C),
        W(scope, m, s.K),
        narrow(scope, m, s.inverse.rows) {
    convert(s.K, s.C, s.R.data, s.R.ld, R.data, R.ld);
    convert(s.C, s.K, s.Rt.data, s.Rt.ld, Rt.data, Rt.ld);
    convert(inverse.rows, inverse.rows, s.inverse.data, s.inverse.ld, inverse.data, inverse.ld);
  }

  // W = addresses of the m queries in Z. In the narrow form `narrow` is left as Z (R'R + lambda
  // I)^-1.
  void solve(int64_t m) {
    if (s.wide) {
      product(executor, m, Z, Rt, narrow);
      product(executor, m, narrow, inverse, W);
      if (!s.easy()) refine(m);
    } else {
      product(executor, m, Z, inverse, narrow);
      product(executor, m, narrow, Rt, W);
    }
  }

  // One step of iterative refinement of W: an explicit inverse alone is not backward stable.
  void refine(int64_t m) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> residual(scope, m, s.C), correction(scope, m, s.K);
    for (int64_t t = 0; t < m; ++t) std::memcpy(residual[t], Z[t], size_t(residual.ld) * sizeof(A));
    product(executor, m, W, R, residual, Store::sub);
    product(executor, m, residual, Rt, narrow);  // R (z - R'w) - lambda w
    for (int64_t t = 0; t < m; ++t)
      for (int64_t k = 0; k < s.K; ++k) narrow[t][k] -= A(s.ridge) * W[t][k];
    product(executor, m, narrow, inverse, correction);
    for (int64_t t = 0; t < m; ++t)
      for (int64_t k = 0; k < s.K; ++k) W[t][k] += correction[t][k];
  }

  // Adjoint of solve for m queries: gW in, gZ out, dR accumulated; returns d lambda.
  double adjoint(int64_t m, const Matrix<A>& gW, const Matrix<A>& gZ, const Matrix<A>& dR) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<A> Y(scope, m, s.K);
    double d_ridge;
    if (s.wide) {  // y = A^-1 gw, gz = R'y, dR = y (z - R'w)' - w gz'
      product(executor, m, gW, inverse, Y);
      product(executor, m, Y, R, gZ);
      product(executor, m, W, R, Z, Store::sub);  // Z becomes the residual
      product_transposed(executor, m, Y, Z, dR, Store::add);
      d_ridge = -dot(m, Y, W);
    } else {  // with u = (R'R + lambda I)^-1 z, so that the residual is lambda u: y lambda = gw - R
              // gz
      Matrix<A> gWR(scope, m, s.C);
      product(executor, m, gW, R, gWR);
      product(executor, m, gWR, inverse, gZ);
      for (int64_t t = 0; t < m; ++t) std::memcpy(Y[t], gW[t], size_t(s.K) * sizeof(A));
      product(executor, m, gZ, Rt, Y, Store::sub);
      product_transposed(executor, m, Y, narrow, dR, Store::add);
      d_ridge = -dot(m, gZ, narrow);
    }
    product_transposed(executor, m, W, gZ, dR, Store::sub);
    return d_ridge;
  }
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
