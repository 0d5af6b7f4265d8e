// Whole-matrix helpers of the operators that read: scratch matrices with padded rows, and inverses
// of symmetric positive definite ones.
#pragma once

#include "factor.h"
#include "load.h"
#include "workspace.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A>
struct Matrix {
  A* data = nullptr;
  int64_t rows = 0, columns = 0, ld = 0;

  Matrix(Workspace::Scope& scope, int64_t m, int64_t n)
      : rows(m), columns(n), ld(row_stride<A>(n)) {
    data = scope.take<A>(m * ld);
  }
  A* operator[](int64_t i) const { return data + i * ld; }
  void zero() const { std::memset(data, 0, size_t(rows * ld) * sizeof(A)); }
};

template <class A>
void load(const View& v, int64_t b, Rows from, int64_t m, const Matrix<A>& to) {
  load(v, b, from, m, 0, to.columns, to.data, to.ld);
}

template <class A>
void store(const View& v, int64_t b, Rows at, int64_t m, const Matrix<A>& from) {
  store(v, b, at, m, 0, from.columns, from.data, from.ld);
}

// to = from', converting.
template <class D, class S>
void transpose(const Matrix<S>& from, const Matrix<D>& to) {
  transpose(from.rows, from.columns, from.data, from.ld, to.data, to.ld);
}

// m rows of c (=, +=, -=) a b
template <class A>
void product(const Executor& executor, int64_t m, const Matrix<A>& a, const Matrix<A>& b,
             const Matrix<A>& c, Store how = Store::set) {
  gemm<false>(executor, m, c.columns, b.rows, a.data, a.ld, b.data, b.ld, c.data, c.ld, how);
}

// c (=, +=, -=) a' b, over m rows of a and b
template <class A>
void product_transposed(const Executor& executor, int64_t m, const Matrix<A>& a, const Matrix<A>& b,
                        const Matrix<A>& c, Store how = Store::set) {
  gemm<true>(executor, c.rows, c.columns, m, a.data, a.ld, b.data, b.ld, c.data, c.ld, how);
}

template <class A>
double dot(int64_t m, const Matrix<A>& x, const Matrix<A>& y) {
  double total = 0.0;
  for (int64_t i = 0; i < m; ++i) {
    double row = 0.0;
    for (int64_t j = 0; j < x.columns; ++j) row += double(x[i][j]) * double(y[i][j]);
    total += row;
  }
  return total;
}

struct SpdInverse {
  bool ok = false;
  double log_det = 0.0;
  double condition = 1.0;  // a lower estimate, from the pivots
};

// s (upper part) is replaced by its factor; inverse = s^-1, exactly symmetric.
inline SpdInverse invert_spd(const Executor& executor, const Matrix<double>& s,
                             const Matrix<double>& inverse) {
  const int64_t n = s.rows;
  Workspace::Scope scope(Workspace::of_thread());
  double* inverse_diagonal = scope.take<double>(n);
  SpdInverse result;
  if (!cholesky(n, s.data, s.ld, inverse_diagonal)) return result;
  LogProduct product;
  double smallest = HUGE_VAL, largest = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    product.multiply(inverse_diagonal[i]);
    smallest = std::min(smallest, inverse_diagonal[i]);
    largest = std::max(largest, inverse_diagonal[i]);
  }
  result.log_det = -2.0 * product.value();
  if (n > 0) result.condition = (largest / smallest) * (largest / smallest);
  Matrix<double> v(scope, n, n), vt(scope, n, n);
  invert_upper(n, s.data, s.ld, inverse_diagonal, v.data, v.ld);
  transpose(v, vt);
  gemm<false>(executor, n, n, n, v.data, v.ld, vt.data, vt.ld, inverse.data, inverse.ld, Store::set,
              Structure::upper, Part::upper);
  mirror(n, inverse.data, inverse.ld);
  result.ok = true;
  return result;
}

// x = (x + x') / 2
template <class A>
void symmetrise(const Matrix<A>& x) {
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = i + 1; j < x.rows; ++j) x[i][j] = x[j][i] = A(0.5) * (x[i][j] + x[j][i]);
}

// Whether m rows hold a NaN or an infinity.
template <class A>
bool not_finite(int64_t m, const Matrix<A>& x) {
  using V = Simd<A>;
  typename V::Vector sum{};
  const auto zero = V::broadcast(A(0));
  for (int64_t i = 0; i < m; ++i) {
    int64_t j = 0;
    for (; j + V::width <= x.columns; j += V::width) sum += V::load(x[i] + j) * zero;
    if (j < x.columns) sum += V::load_first(x[i] + j, x.columns - j) * zero;
  }
  return !(V::sum(sum) == 0.0);
}

constexpr int64_t kTile = 128;  // queries at a time

}  // namespace KANERVA_ISA
}  // namespace kanerva
