// The inverse of a system of addresses, kept up to date while the mean changes by outer products.
//
// A = R R' + lambda I (K x K) or, with more slots than columns, R'R + lambda I (C x C). After R +=
// gamma d' either changes by p g' + g p':
//   K x K:  g = gamma,  p = R d + |d|^2 gamma / 2
//   C x C:  g = d,      p = R'gamma + |gamma|^2 d / 2
// and with P = A^-1 p, G = A^-1 g, a = p.P, b = p.G, c = g.G, D = (1 + b)^2 - a c, H = c P - (1 +
// b) G, its inverse by H H' / (c D) - G G' / c: two squares, so that it stays symmetric bit by bit.
// D is the ratio of the determinants; where it cancels, and every so often, the inverse is formed
// afresh.
#pragma once

#include "../common/policy.h"
#include "delayed_matrix.h"

namespace kanerva {
namespace KANERVA_ISA {

struct TrackedInverse {
  const Executor& executor;
  const bool wide;  // K <= C: the K x K form
  const int64_t n;
  DelayedMatrix<double> M;
  double *diagonal, *inverse_diagonal;  // of A and of its inverse
  double *p, *g, *P, *G;                // of the update at hand
  double a = 0.0, b = 0.0, c = 0.0, D = 1.0;
  double ridge = 1.0;
  double condition = 1.0;  // a lower estimate, of the K x K system in either form
  int64_t age = 0, period;

  TrackedInverse(Workspace::Scope& scope, const Sizes& sizes, const Executor& ex)
      : executor(ex),
        wide(sizes.K <= sizes.C),
        n(std::min(sizes.K, sizes.C)),
        M(scope, n, n, ex),
        diagonal(take_vector<double>(scope, n)),
        inverse_diagonal(take_vector<double>(scope, n)),
        p(take_vector<double>(scope, n)),
        g(take_vector<double>(scope, n)),
        P(take_vector<double>(scope, n)),
        G(take_vector<double>(scope, n)),
        period(std::max<int64_t>(32, n)) {}

  // From R itself. False when the system is not positive definite or not finite.
  template <class A>
  bool refresh(const Matrix<A>& R) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<double> Rd(scope, R.rows, R.columns), Rt(scope, R.columns, R.rows);
    Matrix<double> system(scope, n, n);
    convert(R, Rd);
    transpose(Rd, Rt);
    const Matrix<double>&x = wide ? Rd : Rt, &xt = wide ? Rt : Rd;
    product(executor, x, xt, system, Store::set, Part::upper);
    for (int64_t i = 0; i < n; ++i) diagonal[i] = system[i][i] += ridge;
    const SpdFacts facts = invert_spd(executor, system, M.base);
    for (int64_t i = 0; i < n; ++i) {
      inverse_diagonal[i] = M.base[i][i];
      // What pads a mirrored matrix is not defined.
      for (int64_t j = n; j < padded<double>(n); ++j) M.base[i][j] = 0.0;
    }
    M.reset();
    age = 0;
    if (facts.ok) estimate_condition();
    return facts.ok;
  }

  void apply(const double* x, double* y) const { M.multiply_transposed(x, y); }

  // For p and g as they stand; false where too many digits cancel.
  bool prepare() {
    M.multiply_transposed<2>({p, g}, {P, G});
    a = row_dot(n, p, P);
    b = row_dot(n, p, G);
    c = row_dot(n, g, G);
    const double square = (1.0 + b) * (1.0 + b);
    D = square - a * c;
    return D >= kCancelled * (square + std::fabs(a * c)) && D < HUGE_VAL;
  }

  void commit() {
    ++age;
    if (!(c > 0.0)) return;  // nothing changes
    const double u = 1.0 / std::sqrt(c * D), v = 1.0 / std::sqrt(c);
    const double w = -(1.0 + b) * u, k = c * u;
    double* __restrict x = P, * __restrict y = G, * __restrict minus = p;
    double* __restrict of_a = diagonal, * __restrict of_inverse = inverse_diagonal;
    for (int64_t i = 0; i < n; ++i) {
      of_a[i] += 2.0 * minus[i] * g[i];
      x[i] = k * x[i] + w * y[i];
      y[i] *= v;
      minus[i] = -y[i];
      of_inverse[i] += x[i] * x[i] - y[i] * y[i];
    }
    M.add(P, P, p, G);
    estimate_condition();
  }

  // y = (A + p g' + g p')^-1 x from y = A^-1 x, for what was prepared.
  void correct(const double* x, double* y) const {
    const double px = row_dot(n, P, x), gx = row_dot(n, G, x);
    const double alpha = (c * px - (1.0 + b) * gx) / D, beta = (a * gx - (1.0 + b) * px) / D;
    for (int64_t i = 0; i < n; ++i) y[i] += alpha * P[i] + beta * G[i];
  }

 private:
  // With more slots than columns the K x K system has the eigenvalue lambda, which the C x C one
  // need not have; what rounds in the gradient is governed by it all the same.
  void estimate_condition() {
    const double inverse = largest(n, inverse_diagonal);
    condition = largest(n, diagonal) * (wide ? inverse : std::max(inverse, 1.0 / ridge));
  }
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
