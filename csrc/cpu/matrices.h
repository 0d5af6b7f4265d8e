// Scratch matrices with padded rows, their products, and inverses of symmetric positive definite
// ones. How many rows and columns take part is a matter of the matrices: a part of one is top().
#pragma once

#include "factor.h"
#include "load.h"
#include "transpose.h"
#include "workspace.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A>
struct Matrix {
  A* data = nullptr;
  int64_t rows = 0, columns = 0, ld = 0;
  Structure structure = Structure::full;  // which of its elements products read
  bool bare = false;  // rows end at the last column, as a tensor's do: for products alone

  Matrix() = default;  // absent
  Matrix(A* first, int64_t m, int64_t n, int64_t stride)
      : data(first), rows(m), columns(n), ld(stride) {}
  Matrix(Workspace::Scope& scope, int64_t m, int64_t n)
      : Matrix(scope.take<A>(m * row_stride<A>(n)), m, n, row_stride<A>(n)) {}

  explicit operator bool() const { return data != nullptr; }
  A* operator[](int64_t i) const { return data + i * ld; }
  size_t bytes() const { return size_t(rows * ld) * sizeof(A); }
  void zero() const { std::memset(data, 0, bytes()); }

  Matrix top(int64_t m) const {
    Matrix part = *this;
    part.rows = m;
    return part;
  }
  Operand<A> operand() const { return {data, ld, structure, bare}; }
  Operand<A> full_operand() const { return {data, ld, Structure::full, bare}; }
  Operand<A> transposed_operand() const { return {data, ld, transposed(structure), bare}; }
  Target<A> target(Store how) const { return {data, ld, how, bare}; }
  Target<A> target(Store how, const Matrix& from) const {
    return {data, ld, how, bare, from.data, from.ld, from.bare};
  }

  Matrix of_structure(Structure s) const {
    Matrix same = *this;
    same.structure = s;
    return same;
  }
};

// to = from, of one stride.
template <class A>
void copy(const Matrix<A>& from, const Matrix<A>& to) {
  std::memcpy(to.data, from.data, from.bytes());
}

template <class A>
void set_identity(const Matrix<A>& x) {
  x.zero();
  for (int64_t i = 0; i < x.rows; ++i) x[i][i] = A(1);
}

template <class A>
void scale(double alpha, const Matrix<A>& x) {
  for (int64_t i = 0; i < x.rows; ++i) scale(0, x.columns, alpha, x[i]);
}

// y += alpha x
template <class A>
void axpy(double alpha, const Matrix<A>& x, const Matrix<A>& y) {
  for (int64_t i = 0; i < x.rows; ++i) axpy(0, x.columns, alpha, x[i], y[i]);
}

// Zeroes what is below the diagonal, or above it.
template <class A>
void clear_lower(const Matrix<A>& x) {
  for (int64_t i = 0; i < x.rows; ++i)
    std::memset(x[i], 0, size_t(std::min(i, x.columns)) * sizeof(A));
}

template <class A>
void clear_upper(const Matrix<A>& x) {
  for (int64_t i = 0; i < x.rows; ++i)
    std::memset(x[i] + i + 1, 0, size_t(x.ld - i - 1) * sizeof(A));
}

// All rows of `to`, columns from c0 of the view; and back.
template <class A>
void load(const View& v, int64_t b, Rows from, const Matrix<A>& to, int64_t c0 = 0) {
  load(v, b, from, to.rows, c0, to.columns, to.data, to.ld);
}

template <class A>
void store(const View& v, int64_t b, Rows at, const Matrix<A>& from, int64_t c0 = 0) {
  store(v, b, at, from.rows, c0, from.columns, from.data, from.ld);
}

template <class A>
void load(const View& v, int64_t b, Rows from, int64_t m, const Matrix<A>& to) {
  load(v, b, from, m, 0, to.columns, to.data, to.ld);
}

template <class A>
void store(const View& v, int64_t b, Rows at, int64_t m, const Matrix<A>& from) {
  store(v, b, at, m, 0, from.columns, from.data, from.ld);
}

// f(first, count) over the rows [0, rows), shared among the threads where there are many elements.
template <class F>
void for_rows(const Executor& executor, int64_t rows, int64_t columns, F&& f) {
  constexpr int64_t worth_a_fork = 1 << 15;
  const int64_t tasks = rows * columns < worth_a_fork ? 1 : executor.threads();
  const int64_t share = (rows / std::max<int64_t>(1, tasks) + 16) / 16 * 16;  // whole vectors
  executor.for_each(tasks, [&](int64_t task) {
    const int64_t first = std::min(rows, task * share);
    const int64_t last = task + 1 == tasks ? rows : std::min(rows, first + share);
    if (first < last) f(first, last - first);
  });
}

// The same as the serial ones, over the threads.
template <class A>
void load(const Executor& executor, const View& v, int64_t b, Rows from, int64_t m,
          const Matrix<A>& to) {
  for_rows(executor, m, to.columns, [&](int64_t first, int64_t count) {
    load(v, b, Rows{from.index, from.first + first}, count, 0, to.columns, to[first], to.ld);
  });
}

template <class A>
void store(const Executor& executor, const View& v, int64_t b, Rows at, int64_t m,
           const Matrix<A>& from) {
  for_rows(executor, m, from.columns, [&](int64_t first, int64_t count) {
    store(v, b, Rows{at.index, at.first + first}, count, 0, from.columns, from[first], from.ld);
  });
}

template <class D, class S>
void transpose(const Executor& executor, const Matrix<S>& from, const Matrix<D>& to) {
  for_rows(executor, from.rows, from.columns, [&](int64_t first, int64_t count) {
    transpose(count, from.columns, from[first], from.ld, to.data + first, to.ld, from.bare);
  });
}

template <class D, class S>
void convert(const Matrix<S>& from, const Matrix<D>& to) {
  convert(from.rows, from.columns, from.data, from.ld, to.data, to.ld);
}

// x in arithmetic A: x itself, or a converted copy.
template <class A, class F>
Matrix<A> in_arithmetic(const Executor& executor, Workspace::Scope& scope, const Matrix<F>& x) {
  if constexpr (std::is_same_v<A, F>) {
    return x;
  } else {
    Matrix<A> copy(scope, x.rows, x.columns);
    copy.structure = x.structure;
    for_rows(executor, x.rows, x.columns, [&](int64_t first, int64_t count) {
      convert(count, x.columns, x[first], x.ld, copy[first], copy.ld);
    });
    return copy;
  }
}

// Room for x in arithmetic A, as in_arithmetic(), for a matrix that changes; take_into() fills it.
template <class A, class F>
Matrix<A> room_in_arithmetic(Workspace::Scope& scope, const Matrix<F>& x) {
  if constexpr (std::is_same_v<A, F>) {
    return x;
  } else {
    return Matrix<A>(scope, x.rows, x.columns);
  }
}

template <class A, class F>
void take_into(Matrix<A>& copy, const Matrix<F>& x) {
  if constexpr (std::is_same_v<A, F>) {
    copy = x;
  } else {
    copy.rows = x.rows, copy.columns = x.columns, copy.structure = x.structure;
    convert(x, copy);
  }
}

// The same, with zeros where the copy's rows are padded, as sums over whole rows need them.
template <class A, class F>
void take_padded_into(Matrix<A>& copy, const Matrix<F>& x) {
  if constexpr (std::is_same_v<A, F>) {
    copy = x;
  } else {
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.columns; ++j) copy[i][j] = A(x[i][j]);
      std::fill(copy[i] + x.columns, copy[i] + copy.ld, A(0));
    }
  }
}

// An item of an optional view: zero where it is absent.
template <class A>
void load_or_zero(const Executor& executor, const View& v, int64_t b, const Matrix<A>& to) {
  if (v) {
    load(executor, v, b, Rows{}, to.rows, to);
  } else {
    to.zero();
  }
}

// to = from', converting.
template <class D, class S>
void transpose(const Matrix<S>& from, const Matrix<D>& to) {
  transpose(from.rows, from.columns, from.data, from.ld, to.data, to.ld, from.bare);
}

// c (=, +=, -=) a b, as many rows of a as c has; of a symmetric c the upper part is enough.
template <class A>
void product(const Matrix<A>& a, const Matrix<A>& b, const Matrix<A>& c, Store how = Store::set) {
  gemm<false>(c.rows, c.columns, b.rows, a.operand(), b.operand(), c.target(how));
}

template <class A>
void product(const Executor& executor, const Matrix<A>& a, const Matrix<A>& b, const Matrix<A>& c,
             Store how = Store::set, Part part = Part::all) {
  gemm<false>(executor, c.rows, c.columns, b.rows, a.operand(), b.operand(), c.target(how), part);
}

// m rows of it.
template <class A>
void product(const Executor& executor, int64_t m, const Matrix<A>& a, const Matrix<A>& b,
             const Matrix<A>& c, Store how = Store::set) {
  product(executor, a, b, c.top(m), how);
}

// c (=, +=, -=) a' b, b without structure.
template <class A>
void product_transposed(const Matrix<A>& a, const Matrix<A>& b, const Matrix<A>& c,
                        Store how = Store::set) {
  gemm<true>(c.rows, c.columns, b.rows, a.transposed_operand(), b.full_operand(), c.target(how));
}

template <class A>
void product_transposed(const Executor& executor, const Matrix<A>& a, const Matrix<A>& b,
                        const Matrix<A>& c, Store how = Store::set, Part part = Part::all) {
  gemm<true>(executor, c.rows, c.columns, b.rows, a.transposed_operand(), b.full_operand(),
             c.target(how), part);
}

// Over m rows of a and b.
template <class A>
void product_transposed(const Executor& executor, int64_t m, const Matrix<A>& a, const Matrix<A>& b,
                        const Matrix<A>& c, Store how = Store::set, Part part = Part::all) {
  product_transposed(executor, a, b.top(m), c, how, part);
}

// c = from (+, -) a b
template <class A>
void product_from(const Executor& executor, const Matrix<A>& from, const Matrix<A>& a,
                  const Matrix<A>& b, const Matrix<A>& c, Store how) {
  gemm<false>(executor, c.rows, c.columns, b.rows, a.operand(), b.operand(), c.target(how, from));
}

// c = from (+, -) a' b, over the rows of b, b without structure.
template <class A>
void product_transposed_from(const Executor& executor, const Matrix<A>& from, const Matrix<A>& a,
                             const Matrix<A>& b, const Matrix<A>& c, Store how,
                             Part part = Part::all) {
  gemm<true>(executor, c.rows, c.columns, b.rows, a.transposed_operand(), b.full_operand(),
             c.target(how, from), part);
}

template <class A>
bool cholesky(const Matrix<A>& s, A* inverse_diagonal) {
  return cholesky(s.rows, s.data, s.ld, inverse_diagonal);
}

template <class A>
void invert_upper(const Matrix<A>& u, const A* inverse_diagonal, const Matrix<A>& v) {
  invert_upper(u.rows, u.data, u.ld, inverse_diagonal, v.data, v.ld);
}

template <class A>
void mirror(const Matrix<A>& x) {
  mirror(x.rows, x.data, x.ld);
}

// y = share (x + x')
template <class A>
void symmetrise(const Matrix<A>& x, const Matrix<A>& y, double share = 0.5) {
  symmetrise(x.rows, x.data, x.ld, x.bare, y.data, y.ld, y.bare, share);
}

// x = (x + x') / 2
template <class A>
void symmetrise(const Matrix<A>& x) {
  symmetrise(x, x);
}

// x += x'
template <class A>
void add_transposed(const Matrix<A>& x) {
  symmetrise(x, x, 1.0);
}

// y has the quadratic form of x as an upper triangle: w'y w = w'x w, and a product with it costs
// half.
template <class A>
void fold_upper(const Matrix<A>& x, const Matrix<A>& y) {
  using V = Simd<A>;
  constexpr int64_t W = V::width;
  A turned[W * W] = {};
  const int64_t n = x.rows;
  for (int64_t i = 0; i < n; i += W)
    for (int64_t j = i; j < n; j += W) {
      const int64_t rows = std::min(W, n - i), columns = std::min(W, n - j);
      transpose(columns, rows, x[j] + i, x.ld, turned, W);
      for (int64_t r = 0; r < rows; ++r) {
        A* row = y[i + r] + j;
        V::store(row, V::load(x[i + r] + j) + V::load(turned + r * W));
        if (j > i) continue;
        row[r] = x[i + r][j + r];
        for (int64_t c = 0; c < r; ++c) row[c] = A(0);
      }
      for (int64_t c = 0; j > i && c < columns; ++c) V::store(y[j + c] + i, typename V::Vector{});
    }
}

// x . y over n elements, in their own arithmetic; what pads a row is zero.
template <class A>
double row_dot(int64_t n, const A* x, const A* y) {
  using V = Simd<A>;
  typename V::Vector sum{};
  for (int64_t j = 0; j < n; j += V::width) sum += V::load(x + j) * V::load(y + j);
  return V::sum(sum);
}

// The largest absolute row sum.
template <class A>
double row_norm(const Matrix<A>& x) {
  using V = Simd<A>;
  double norm = 0.0;
  for (int64_t i = 0; i < x.rows; ++i) {
    typename V::Vector sum{};
    for (int64_t j = 0; j < x.columns; j += V::width) {
      const auto v = V::load(x[i] + j);
      sum += v < V::broadcast(A(0)) ? -v : v;
    }
    norm = std::max(norm, V::sum(sum));
  }
  return norm;
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

// The same in vectors; what pads a row is zero.
template <class A>
double padded_dot(int64_t m, const Matrix<A>& x, const Matrix<A>& y) {
  using V = Simd<double>;
  typename V::Vector sum{};
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < x.columns; j += V::width)
      sum += V::load_as(x[i] + j) * V::load_as(y[i] + j);
  return V::sum(sum);
}

struct SpdFacts {
  bool ok = false;
  double log_det = 0.0;
  double condition = 1.0;  // a lower estimate, from the pivots
};

// Facts of s = U'U from the inverse v of its factor.
template <class A>
SpdFacts facts_of(const Matrix<A>& v, double log_det) {
  SpdFacts facts{true, log_det, 1.0};
  double smallest = HUGE_VAL, largest = 0.0;
  for (int64_t i = 0; i < v.rows; ++i) {
    smallest = std::min(smallest, double(v[i][i]));
    largest = std::max(largest, double(v[i][i]));
  }
  if (v.rows > 0) facts.condition = (largest / smallest) * (largest / smallest);
  return facts;
}

// s = U'U (its upper part) is replaced by U; v = U^-1, upper, so that s^-1 = v v'.
template <class A>
SpdFacts invert_factor(const Matrix<A>& s, const Matrix<A>& v) {
  const int64_t n = s.rows;
  Workspace::Scope scope(Workspace::of_thread());
  A* inverse_diagonal = scope.take<A>(n);
  SpdFacts facts;
  if (!cholesky(s, inverse_diagonal)) return facts;
  LogProduct product;
  double smallest = HUGE_VAL, largest = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    product.multiply(inverse_diagonal[i]);
    smallest = std::min(smallest, double(inverse_diagonal[i]));
    largest = std::max(largest, double(inverse_diagonal[i]));
  }
  facts.log_det = -2.0 * product.value();
  if (n > 0) facts.condition = (largest / smallest) * (largest / smallest);
  invert_upper(s, inverse_diagonal, v);
  facts.ok = true;
  return facts;
}

// m x n of x, from (i, j) on.
template <class A>
Matrix<A> block_of(const Matrix<A>& x, int64_t i, int64_t j, int64_t m, int64_t n) {
  return {x[i] + j, m, n, x.ld};
}

// The same by halves of the matrix: most of the work is in products, which threads share.
template <class A>
SpdFacts invert_factor(const Executor& executor, const Matrix<A>& s, const Matrix<A>& v) {
  constexpr int64_t small = 128;
  const int64_t n = s.rows, h = n / 2 / kBlock<A> * kBlock<A>, rest = n - h;
  if (n <= small) return invert_factor(s, v);
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<A> s22 = block_of(s, h, h, rest, rest), v22 = block_of(v, h, h, rest, rest);
  const Matrix<A> v11 = block_of(v, 0, 0, h, h), u11_inverse = v11.of_structure(Structure::upper);
  const SpdFacts upper = invert_factor(executor, block_of(s, 0, 0, h, h), v11);
  if (!upper.ok) return upper;
  Matrix<A> u12(scope, h, rest), u12_v22(scope, h, rest);
  product_transposed(executor, u11_inverse, block_of(s, 0, h, h, rest), u12);
  product_transposed(executor, u12, u12, s22, Store::sub, Part::upper);
  const SpdFacts lower = invert_factor(executor, s22, v22);
  if (!lower.ok) return lower;
  product(executor, u12, v22.of_structure(Structure::upper), u12_v22);
  const size_t bytes = size_t(padded<A>(rest)) * sizeof(A);
  for (int64_t i = 0; i < h; ++i) std::memset(v[i] + h, 0, bytes);
  for (int64_t i = h; i < n; ++i) std::memset(v[i], 0, size_t(h) * sizeof(A));
  product(executor, u11_inverse, u12_v22, block_of(v, 0, h, h, rest), Store::sub);
  return facts_of(v, upper.log_det + lower.log_det);
}

// s (upper part) is replaced by its factor; inverse = s^-1, exactly symmetric.
template <class A>
SpdFacts invert_spd(const Executor& executor, const Matrix<A>& s, const Matrix<A>& inverse) {
  const int64_t n = s.rows;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<A> v(scope, n, n), vt(scope, n, n);
  const SpdFacts facts = invert_factor(s, v);
  if (!facts.ok) return facts;
  transpose(v, vt);
  product(executor, v.of_structure(Structure::upper), vt, inverse, Store::set, Part::upper);
  mirror(inverse);
  return facts;
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
// Where threads share an item they meet less often.
}  // namespace KANERVA_ISA
}  // namespace kanerva
