// Least-squares addresses w = (R R' + lambda I)^-1 R z: the system of one memory, and its adjoint.
//
// The smaller of two equal forms is factorised: K x K as above, or, where the code is narrower than
// the memory, w = R (R'R + lambda I)^-1 z, which also spares a singular R R' the amplification of
// rounding by 1/lambda. For a float32 state, easy systems are all float32; well-conditioned ones
// factorise in float64 and do the wide products in float32; others are all float64 (float32 normal
// equations lose half the digits at condition 1e4). The inverse is applied by its triangular factor
// V, which rounds as a triangular solve does; an explicit inverse doubles the error of R'w.
#pragma once

#include "../common/policy.h"
#include "in_place.h"

namespace kanerva {
namespace KANERVA_ISA {

// The system in arithmetic F.
template <class F>
struct AddressSystem {
  bool wide;  // K <= C: the K x K form
  int64_t K, C;
  double ridge = 0.0;
  Matrix<F> R, Rt, V, Vt;  // V V' is the inverse
  SpdFacts facts;

  AddressSystem(Workspace::Scope& scope, const Sizes& n)
      : wide(n.K <= n.C),
        K(n.K),
        C(n.C),
        Rt(scope, n.C, n.K),
        V(scope, std::min(n.K, n.C), std::min(n.K, n.C)),
        Vt(scope, std::min(n.K, n.C), std::min(n.K, n.C)) {}

  // False when lambda is not positive or the mean is not finite.
  bool build(Workspace::Scope& kept, const View& mean, const View& ridge_view, int64_t b,
             const Executor& executor) {
    ridge = load_scalar<double>(ridge_view, b);
    if (!(ridge > 0.0 && ridge < HUGE_VAL)) return false;
    R = rows_to_read<F>(kept, executor, mean, b, Rows{}, K, C);
    Workspace::Scope scope(Workspace::of_thread());
    transpose(executor, R, Rt);
    const int64_t n = V.rows;
    Matrix<F> system(scope, n, n);
    const Matrix<F>&a = wide ? R : Rt, &bt = wide ? Rt : R;
    product(executor, a, bt, system, Store::set, Part::upper);
    for (int64_t i = 0; i < n; ++i) system[i][i] += F(ridge);
    facts = invert_factor(executor, system, V);
    if (facts.ok) transpose(executor, V, Vt);
    return facts.ok;
  }

  bool well_conditioned() const { return facts.condition <= kWellConditioned; }

  // Whether the adjoint adds up by pairs of slots: fewer operations for T >> K queries; cancels
  // more, so easy systems alone.
  bool is_summed_by_slots(int64_t T) const {
    return wide && facts.condition <= kEasy && T * K + K * C < 2 * T * C;
  }
};

// The system in arithmetic A, and what is done with it for a tile of m queries.
template <class A, class F>
struct AddressTile {
  const AddressSystem<F>& s;
  const Executor& executor;
  Matrix<A> R, Rt, V, Vt;
  Matrix<A> Z, W, narrow, half;  // queries m x C, addresses m x K, and m x min(K, C)

  AddressTile(Workspace::Scope& scope, const AddressSystem<F>& system, int64_t m,
              const Executor& ex)
      : s(system),
        executor(ex),
        R(in_arithmetic<A>(ex, scope, s.R)),
        Rt(in_arithmetic<A>(ex, scope, s.Rt)),
        V(in_arithmetic<A>(ex, scope, s.V)),
        Vt(in_arithmetic<A>(ex, scope, s.Vt)),
        W(scope, m, s.K),
        narrow(scope, m, s.V.rows),
        half(scope, m, s.V.rows) {}

  // Y = X V V', m rows
  void apply_inverse(int64_t m, const Matrix<A>& X, const Matrix<A>& Y) const {
    product(executor, m, X, V.of_structure(Structure::upper), half);
    product(executor, m, half, Vt.of_structure(Structure::lower), Y);
  }

  // Queries of a view, for as long as the scope.
  void take(Workspace::Scope& scope, const View& queries, int64_t b, Rows rows, int64_t m) {
    Z = rows_to_read<A>(scope, executor, queries, b, rows, m, s.C);
  }

  // W = addresses of the m queries in Z. In the narrow form `narrow` is left as Z (R'R + lambda
  // I)^-1.
  void solve(int64_t m) {
    if (s.wide) {
      product(executor, m, Z, Rt, narrow);
      apply_inverse(m, narrow, W);
      if (!s.well_conditioned()) refine(m);
    } else {
      apply_inverse(m, Z, narrow);
      product(executor, m, narrow, Rt, W);
    }
  }

  // What the adjoint needs of solve(): the addresses that the forward gave are as good where the
  // system is well-conditioned.
  void solve_again(Workspace::Scope& scope, int64_t m, const View& weights, int64_t b, Rows rows) {
    if (std::is_same_v<A, float> && s.wide) {
      W = rows_to_read<A>(scope, executor, weights, b, rows, m, s.K, Use::all);
    } else {
      solve(m);
    }
  }

  // One step of iterative refinement of W.
  void refine(int64_t m) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<A> residual(scope, m, s.C), correction(scope, m, s.K);
    product_from(executor, Z, W, R, residual, Store::sub);
    product(executor, m, residual, Rt, narrow);  // R (z - R'w) - lambda w
    for (int64_t t = 0; t < m; ++t)
      for (int64_t k = 0; k < s.K; ++k) narrow[t][k] -= A(s.ridge) * W[t][k];
    apply_inverse(m, narrow, correction);
    for (int64_t t = 0; t < m; ++t)
      for (int64_t k = 0; k < s.K; ++k) W[t][k] += correction[t][k];
  }
};

// What the adjoint of the solve adds up.
template <class A>
struct AddressSums {
  Matrix<A> dR, outer;  // outer: sum y w', or absent
  double d_ridge = 0.0;

  AddressSums(Workspace::Scope& scope, int64_t K, int64_t C, bool by_slots) : dR(scope, K, C) {
    dR.zero();
    if (!by_slots) return;
    outer = Matrix<A>(scope, K, K);
    outer.zero();
  }

  void add(const AddressSums& other) {
    axpy(1.0, other.dR, dR);
    if (outer) axpy(1.0, other.outer, outer);
    d_ridge += other.d_ridge;
  }

  // dR, complete, to an item of a view.
  template <class F>
  void finish(const AddressSystem<F>& system, const View& d_mean, int64_t b,
              const Executor& executor) {
    if (!outer) return store(executor, d_mean, b, Rows{}, dR.rows, dR);
    Workspace::Scope scope(Workspace::of_thread());
    add_transposed(outer);
    const RowsToWrite<A> result(scope, d_mean, b, Rows{}, dR.rows, dR.columns);
    product_from(executor, dR, outer, in_arithmetic<A>(executor, scope, system.R), result.matrix(),
                 Store::sub);
    result.finish(executor);
  }
};

// Adjoint of the solve, tile by tile.
template <class A, class F>
class AddressAdjoint {
 public:
  AddressAdjoint(Workspace::Scope& scope, const AddressTile<A, F>& solver, AddressSums<A>& sums)
      : t_(solver),
        sums_(sums),
        Y_(scope, solver.half.rows, sums.dR.rows),
        wide_(scope, sums.outer ? 0 : solver.half.rows, sums.dR.columns) {}

  // m queries: gW in, gZ out.
  void add(int64_t m, const Matrix<A>& gW, const Matrix<A>& gZ) {
    const Executor& executor = t_.executor;
    if (sums_.outer) {  // y = A^-1 gw, gz = R'y, dR = y z' - (y w' + w y') R
      t_.apply_inverse(m, gW, Y_);
      product(executor, m, Y_, t_.R, gZ);
      product_transposed(executor, m, Y_, t_.Z, sums_.dR, Store::add);
      product_transposed(executor, m, Y_, t_.W, sums_.outer, Store::add);
      sums_.d_ridge -= padded_dot(m, Y_, t_.W);
      return;
    }
    if (t_.s.wide) {  // the same as y (z - R'w)' - w gz'
      t_.apply_inverse(m, gW, Y_);
      product(executor, m, Y_, t_.R, gZ);
      product_from(executor, t_.Z, t_.W, t_.R, wide_.top(m), Store::sub);  // the residual
      product_transposed(executor, m, Y_, wide_, sums_.dR, Store::add);
      sums_.d_ridge -= padded_dot(m, Y_, t_.W);
    } else {  // with u = (R'R + lambda I)^-1 z, so that the residual is lambda u: y lambda = gw - R
              // gz
      product(executor, m, gW, t_.R, wide_);
      t_.apply_inverse(m, wide_, gZ);
      product_from(executor, gW, gZ, t_.Rt, Y_.top(m), Store::sub);
      product_transposed(executor, m, Y_, t_.narrow, sums_.dR, Store::add);
      sums_.d_ridge -= padded_dot(m, gZ, t_.narrow);
    }
    product_transposed(executor, m, t_.W, gZ, sums_.dR, Store::sub);
  }

 private:
  const AddressTile<A, F>& t_;
  AddressSums<A>& sums_;
  const Matrix<A> Y_, wide_;
};

// Calls run(system, A()) with the system of item b and the arithmetic A of what is as wide as the
// queries; failed() when there is none.
template <class Run, class Failed>
void with_address_system(const View& mean, const View& ridge, const Sizes& n, int64_t b,
                         const Executor& executor, Run&& run, Failed&& failed) {
  const bool narrow_state = mean.dtype == Dtype::float32;
  if (narrow_state) {
    Workspace::Scope scope(Workspace::of_thread());
    AddressSystem<float> system(scope, n);
    if (system.build(scope, mean, ridge, b, executor) && system.facts.condition <= kEasy)
      return run(system, float());
  }
  Workspace::Scope scope(Workspace::of_thread());
  AddressSystem<double> system(scope, n);
  if (!system.build(scope, mean, ridge, b, executor)) return failed();
  if (narrow_state && system.well_conditioned()) return run(system, float());
  run(system, double());
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
