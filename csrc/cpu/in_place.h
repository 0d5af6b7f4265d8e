// Tensors that are read and written where they lie, where products can: of the arithmetic's own
// type, their rows in order and contiguous. Others go through scratch matrices.
#pragma once

#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A>
bool lies_in_rows(const View& v, Rows rows) {
  return v.dtype == DtypeOf<A>::value && v.stride[2] == 1 && rows.index == nullptr;
}

// Who reads or writes rows: products, or all that asks for whole vectors.
enum class Use { products, all };

template <class A>
bool serves(const View& v, Rows rows, int64_t n, Use use) {
  return lies_in_rows<A>(v, rows) && (use == Use::products || n % Simd<A>::width == 0);
}

// To be written in place: not where many rows share few cache sets (simd.h: row_stride), which
// would push out what is multiplied.
template <class A>
bool serves_to_write(const View& v, Rows rows, int64_t m, int64_t n, Use use) {
  constexpr int64_t many = 64;
  const bool crowded = m > many && v.stride[1] * int64_t(sizeof(A)) % 1024 == 0;
  return serves<A>(v, rows, n, use) && !crowded;
}

// m rows of n columns from c0 of such a tensor.
template <class A>
Matrix<A> rows_in_place(const View& v, int64_t b, Rows rows, int64_t m, int64_t n, int64_t c0) {
  A* first = static_cast<A*>(v.data) + b * v.stride[0] + rows.first * v.stride[1] + c0;
  Matrix<A> x(first, m, n, v.stride[1]);
  x.bare = n % Simd<A>::width != 0;
  return x;
}

// The same of any tensor, to read.
template <class A>
Matrix<A> rows_to_read(Workspace::Scope& scope, const Executor& executor, const View& v, int64_t b,
                       Rows rows, int64_t m, int64_t n, Use use = Use::products, int64_t c0 = 0) {
  if (serves<A>(v, rows, n, use)) return rows_in_place<A>(v, b, rows, m, n, c0);
  Matrix<A> copy(scope, m, n);
  for_rows(executor, m, n, [&](int64_t first, int64_t count) {
    load(v, b, Rows{rows.index, rows.first + first}, count, c0, n, copy[first], copy.ld);
  });
  return copy;
}

// The same, to write; they are in the tensor after finish().
template <class A>
class RowsToWrite {
 public:
  RowsToWrite(Workspace::Scope& scope, const View& v, int64_t b, Rows rows, int64_t m, int64_t n,
              Use use = Use::products, int64_t c0 = 0)
      : v_(v),
        b_(b),
        rows_(rows),
        c0_(c0),
        in_place_(serves_to_write<A>(v, rows, m, n, use)),
        matrix_(in_place_ ? rows_in_place<A>(v, b, rows, m, n, c0) : Matrix<A>(scope, m, n)) {}

  const Matrix<A>& matrix() const { return matrix_; }

  void finish(const Executor& executor) const {
    if (in_place_) return;
    for_rows(executor, matrix_.rows, matrix_.columns, [&](int64_t first, int64_t count) {
      store(v_, b_, Rows{rows_.index, rows_.first + first}, count, c0_, matrix_.columns,
            matrix_[first], matrix_.ld);
    });
  }

 private:
  const View& v_;
  const int64_t b_;
  const Rows rows_;
  const int64_t c0_;
  const bool in_place_;
  const Matrix<A> matrix_;
};

// A covariance of item b. The last digit of one that was computed elsewhere may differ across the
// diagonal, and writes that shrink the rest would not shrink that. With a share of 1 twice of it.
template <class A>
void load_covariance(const Executor& executor, const View& v, int64_t b, const Matrix<A>& to,
                     double share = 0.5) {
  Workspace::Scope scope(Workspace::of_thread());
  symmetrise(rows_to_read<A>(scope, executor, v, b, Rows{}, to.rows, to.columns), to, share);
}

template <class A>
void load_covariance(const View& v, int64_t b, const Matrix<A>& to) {
  load_covariance(serial_executor(), v, b, to);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
