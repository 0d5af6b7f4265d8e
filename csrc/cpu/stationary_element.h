// What a segment of steps does to whatever memory it starts from: an element of the associative
// scan over time of Saerkkae and Garcia-Fernandez (Temporal Parallelization of Bayesian Smoothers,
// 2021), for a memory that moves. In float64 throughout.
//
// Given the memory M0 at its start, the one at its end is N(A M0 + b, C), and what its values say
// of M0 has the precision J and the shift eta. All five come from a write with U = 0 whose mean has
// the columns of b and, with values of zero, those of A: with H = F^-1 D_b W A and E = F^-1 (Z -
// D_b W b) of a chunk (stationary_chunk.h)
//   A <- b_L A - P'H,  b <- b_L b + P'E,  J += H'H,  eta += H'E.
// On a belief R, U = L L' with I + L'J L = G'G, V = L G^-1 and x = eta - J R,
//   R <- A (R + V V'x) + b,  U <- A V (A V)' + C.
// Of gradients g of the belief after it, with T = A - A V V'J and y = x - J V V'x, the part that
// comes through the belief before it is gR <- T'gR, gU <- T'gU T + sym(T'gR y').
#pragma once

#include "stationary_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

// A belief between segments, and the adjoint of the segment after it.
struct Boundary {
  Matrix<double> R, U;  // K x C, K x K
  Matrix<double> T, y;  // K x K, K x C; absent where no gradient is wanted

  Boundary() = default;
  Boundary(Workspace::Scope& scope, int64_t K, int64_t C, bool adjoint)
      : R(scope, K, C), U(scope, K, K) {
    if (!adjoint) return;
    T = Matrix<double>(scope, K, K);
    y = Matrix<double>(scope, K, C);
  }
};

class SegmentElement {
 public:
  SegmentElement() = default;
  SegmentElement(Workspace::Scope& scope, int64_t K, int64_t C)
      : A_(scope, K, K), b_(scope, K, C), C_(scope, K, K), eta_(scope, K, C), J_(scope, K, K) {}

  // False when a chunk is harder than `limit`.
  bool build(const WriteInputs& args, const Episode& e, int64_t chunk_size,
             const Matrix<double>& Sigma, double limit) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Executor& serial = serial_executor();
    const int64_t K = args.n.K, C = args.n.C;
    const int64_t step = stationary_steps(K, chunk_size, true, e.steps);
    StationaryChunk<double> c(scope, step, K, !Sigma);
    StationaryFactors<double, double> factors(scope, c);
    const Matrix<double> all_D(scope, step, C), all_E(scope, step, C), all_W(scope, step, K),
        all_H(scope, step, K);
    set_identity(A_);
    for (const Matrix<double>* x : {&b_, &C_, &eta_, &J_}) x->zero();
    for (int64_t first = 0; first < e.steps; first += step) {
      const int64_t L = std::min(step, e.steps - first);
      load_chunk(c, args.weights, e, first, L, Sigma, serial);
      if (!factor_chunk(c, C_, limit, serial)) return false;
      factors.take(c);
      const Matrix<double> D = all_D.top(L), E = all_E.top(L), W = all_W.top(L), H = all_H.top(L);
      load(args.values, 0, Rows{nullptr, first}, D);
      clear_neutral(e, first, D);
      innovations(factors, b_, D, E);
      product(factors.W, A_, W);
      product_transposed(factors.V, W, H);
      product_transposed(H, E, eta_, Store::add);
      product_transposed(serial, H, H, J_, Store::add, Part::upper);
      if (c.last_kept() != 1.0) {
        scale(c.last_kept(), A_);
        scale(c.last_kept(), b_);
      }
      product_transposed(factors.P, H, A_, Store::sub);
      product_transposed(factors.P, E, b_, Store::add);
      downdate(c, Sigma, C_, serial);
    }
    mirror(J_);
    return true;
  }

  // The belief after the segment from the one before it, which gets its adjoint where it has room.
  // False where a slot has more than `limit` times the precision with all others known than it has
  // without (V V' is the covariance at the segment's start once its values are seen): J is a sum,
  // with errors of J_ij of the size of the root of J_ii J_jj.
  bool apply(const Boundary& from, const Boundary& to, double limit) const {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t K = A_.rows, C = b_.columns;
    const Matrix<double> root(scope, K, K), lower(scope, K, K), JL(scope, K, K), M(scope, K, K),
        inverse(scope, K, K), V(scope, K, K), AV(scope, K, K), turned(scope, K, K);
    double* inverse_diagonal = scope.take<double>(K);
    copy(from.U, root);
    if (!cholesky(root, inverse_diagonal)) return false;
    clear_lower(root);
    transpose(root, lower);
    product(J_, lower, JL);
    product(root.of_structure(Structure::upper), JL, M);
    symmetrise(M);
    for (int64_t k = 0; k < K; ++k) M[k][k] += 1.0;
    if (!invert_factor(M, inverse).ok) return false;
    product(lower.of_structure(Structure::lower), inverse, V);
    for (int64_t k = 0; k < K; ++k)
      if (!(double(row_dot(K, V[k], V[k])) * J_[k][k] <= limit)) return false;

    const Matrix<double> x(scope, K, C), s(scope, K, C), seen(scope, K, C);
    copy(eta_, x);
    product(J_, from.R, x, Store::sub);
    product_transposed(V, x, seen);
    copy(from.R, s);
    product(V, seen, s, Store::add);
    copy(b_, to.R);
    product(A_, s, to.R, Store::add);
    product(A_, V, AV);
    transpose(AV, turned);
    copy(C_, to.U);
    product(AV, turned, to.U, Store::add);
    symmetrise(to.U);
    if (!from.T) return true;

    product_transposed(V, J_, turned);
    copy(A_, from.T);
    product(AV, turned, from.T, Store::sub);
    copy(x, from.y);
    product_transposed(turned, seen, from.y, Store::sub);
    return true;
  }

 private:
  Matrix<double> A_, b_, C_, eta_, J_;
};

// Adds to gR, gU, the gradients of the belief before a segment for none after it, what comes
// through the belief after it, of gradients gR_after, gU_after.
inline void add_through(const Boundary& at, const Matrix<double>& gR_after,
                        const Matrix<double>& gU_after, const Matrix<double>& gR,
                        const Matrix<double>& gU) {
  Workspace::Scope scope(Workspace::of_thread());
  const int64_t K = gU.rows, C = gR.columns;
  const Matrix<double> through(scope, K, C), turned(scope, C, K), UT(scope, K, K),
      square(scope, K, K);
  product_transposed(at.T, gR_after, through);
  axpy(1.0, through, gR);
  product(gU_after, at.T, UT);
  product_transposed(at.T, UT, square);
  transpose(at.y, turned);
  product(through, turned, square, Store::add);
  symmetrise(square);
  axpy(1.0, square, gU);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
