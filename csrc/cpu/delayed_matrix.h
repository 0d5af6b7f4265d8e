// A matrix that changes by outer products, kept apart for a while: M + X'Y with a few rows of X and
// Y, added in one product when there are enough of them. A large matrix is then read once for each
// product with a vector and seldom written; one that fits the first-level cache changes at once.
#pragma once

#include "vectors.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A>
class DelayedMatrix {
 public:
  Matrix<A> base;  // up to date after settle()

  DelayedMatrix(Workspace::Scope& scope, int64_t rows, int64_t columns, const Executor& executor)
      : base(scope, rows, columns),
        executor_(executor),
        delay_(rows * base.ld * int64_t(sizeof(A)) > kInCache ? kDelay : 0),
        left_(scope, delay_, rows),
        right_(scope, delay_, columns) {}

  // What was kept apart is dropped: base was written anew.
  void reset() { count_ = 0; }

  void settle() {
    if (count_ == 0) return;
    product_transposed(executor_, count_, left_, right_, base, Store::add);
    count_ = 0;
  }

  // y = M x
  void multiply(const A* x, double* y) const {
    row_products<1, A>(executor_, base, {x}, {y});
    correct_rows(x, y);
  }

  // Ys[q] = M' Xs[q]
  template <int count>
  void multiply_transposed(const A* const (&xs)[count], A* const (&ys)[count]) const {
    column_products<count, A>(executor_, base, xs, ys);
    for (int q = 0; q < count; ++q)
      for (int64_t i = 0; i < count_; ++i)
        add_scaled(base.columns, row_dot(base.rows, left_[i], xs[q]), right_[i], ys[q]);
  }
  void multiply_transposed(const A* x, A* y) const { multiply_transposed<1>({x}, {y}); }

  // M += x y'
  void add(const A* x, const A* y) {
    if (delay_ == 0) {
      add_outer(executor_, base, x, y);
    } else {
      keep(x, y);
    }
  }

  // M += x y' + u v'
  void add(const A* x, const A* y, const A* u, const A* v) {
    if (delay_ == 0) {
      add_outers(executor_, base, x, y, u, v);
    } else {
      keep(x, y);
      keep(u, v);
    }
  }

  // before = M y, M += x y', after = M v
  void add_and_multiply(const A* x, const A* y, double* before, const A* v, double* after) {
    if (delay_ == 0) return add_outer_and_multiply(executor_, base, x, y, before, v, after);
    row_products<2, A>(executor_, base, {y, v}, {before, after});
    correct_rows(y, before);
    correct_rows(v, after);
    add_scaled(base.rows, row_dot(base.columns, y, v), x, after);
    keep(x, y);
  }

 private:
  static constexpr int64_t kInCache = 1 << 17;  // bytes
  static constexpr int64_t kDelay = 16;

  void correct_rows(const A* x, double* y) const {
    for (int64_t i = 0; i < count_; ++i)
      add_scaled(base.rows, row_dot(base.columns, right_[i], x), left_[i], y);
  }

  void keep(const A* x, const A* y) {
    std::memcpy(left_[count_], x, size_t(padded<A>(base.rows)) * sizeof(A));
    std::memcpy(right_[count_], y, size_t(padded<A>(base.columns)) * sizeof(A));
    if (++count_ == delay_) settle();
  }

  const Executor& executor_;
  const int64_t delay_;
  Matrix<A> left_, right_;
  int64_t count_ = 0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
