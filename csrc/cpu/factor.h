// Cholesky factors and triangular inverses of small symmetric matrices, in rows of vectors.
//
// The upper factor is used: S = U'U with U = F' in the notation of the write, S = F F'.
#pragma once

#include <cmath>

#include "gemm.h"

namespace kanerva {
namespace KANERVA_ISA {

// Rows of a diagonal block: its columns start at whole vectors.
template <class T>
constexpr int64_t kBlock = Simd<T>::width > 8 ? Simd<T>::width : 8;

// dst[j0, n) += alpha * src[j0, n), whole vectors; j0 is a multiple of the vector width.
template <class T>
void axpy(int64_t j0, int64_t n, double alpha, const T* src, T* dst) {
  using V = Simd<T>;
  const auto a = V::broadcast(T(alpha));
  for (int64_t j = j0; j < n; j += V::width)
    V::store(dst + j, V::load(dst + j) + a * V::load(src + j));
}

// dst[j0, n) = alpha * src[j0, n), whole vectors.
template <class T>
void scale_into(int64_t j0, int64_t n, double alpha, const T* src, T* dst) {
  using V = Simd<T>;
  const auto a = V::broadcast(T(alpha));
  for (int64_t j = j0; j < n; j += V::width) V::store(dst + j, a * V::load(src + j));
}

template <class T>
void scale(int64_t j0, int64_t n, double alpha, T* dst) {
  scale_into(j0, n, alpha, dst, dst);
}

// target[j0, n) -= sum_q coefficients[q * stride] * rows[q][j0, n), the sums in registers.
template <class T>
void eliminate(int64_t j0, int64_t n, int64_t count, const T* coefficients, int64_t stride,
               const T* rows, int64_t ld, T* target) {
  using V = Simd<T>;
  for (int64_t j = j0; j < n; j += V::width) {
    auto x = V::load(target + j);
    for (int64_t q = 0; q < count; ++q)
      x -= V::broadcast(coefficients[q * stride]) * V::load(rows + q * ld + j);
    V::store(target + j, x);
  }
}

// Upper Cholesky factor of s (n x n; only j >= i is read), in place. inverse_diagonal[i] = 1 / U(i,
// i). False when a pivot is not positive and finite. What is below the diagonal is not defined.
template <class T>
bool cholesky(int64_t n, T* s, int64_t lds, T* inverse_diagonal) {
  for (int64_t i0 = 0; i0 < n; i0 += kBlock<T>) {
    const int64_t i1 = std::min(n, i0 + kBlock<T>);
    // Left-looking: one product brings the block of rows up to date.
    if (i0 > 0) {
      const Operand<T> above{s + i0, lds};
      gemm<true, T>(i1 - i0, n - i0, i0, above, above, {s + i0 * lds + i0, lds, Store::sub});
    }
    // Row after row is taken off the later ones; roots come last, for none waits for them.
    for (int64_t i = i0; i < i1; ++i) {
      const T* row = s + i * lds;
      const T pivot = row[i];
      if (!(pivot > T(0) && pivot < T(HUGE_VAL))) return false;
      const T inverse = T(1) / pivot;
      if (!(inverse < T(HUGE_VAL))) return false;
      inverse_diagonal[i] = inverse;
      for (int64_t r = i + 1; r < i1; ++r)
        axpy(i0, n, double(-(row[r] * inverse)), row, s + r * lds);
    }
    for (int64_t i = i0; i < i1; ++i) {
      inverse_diagonal[i] = std::sqrt(inverse_diagonal[i]);
      scale(i0, n, inverse_diagonal[i], s + i * lds);
    }
  }
  return true;
}

// Columns [c0, c1) of v = U^-1; c0 and, unless it is n, c1 are multiples of kBlock.
template <class T>
void invert_upper(int64_t n, int64_t c0, int64_t c1, const T* u, int64_t ldu,
                  const T* inverse_diagonal, T* v, int64_t ldv) {
  const int64_t blocks = (c1 + kBlock<T> - 1) / kBlock<T>;
  const size_t bytes = size_t(padded<T>(c1) - c0) * sizeof(T);
  for (int64_t i = c1; i < n; ++i) std::memset(v + i * ldv + c0, 0, bytes);
  for (int64_t k = blocks - 1; k >= 0; --k) {
    const int64_t i0 = k * kBlock<T>, i1 = std::min(c1, i0 + kBlock<T>);
    for (int64_t i = i0; i < i1; ++i) {
      std::memset(v + i * ldv + c0, 0, bytes);
      if (i >= c0) v[i * ldv + i] = T(1);
    }
    const int64_t from = std::max(i1, c0);
    if (i1 < c0) {
      gemm<false, T>(i1 - i0, c1 - c0, c0 - i1, {u + i0 * ldu + i1, ldu}, {v + i1 * ldv + c0, ldv},
                     {v + i0 * ldv + c0, ldv, Store::sub});
    }
    if (from < c1) {
      gemm<false, T>(i1 - i0, c1 - from, c1 - from, {u + i0 * ldu + from, ldu},
                     {v + from * ldv + from, ldv, Structure::upper},
                     {v + i0 * ldv + from, ldv, Store::sub});
    }
    for (int64_t i = i1 - 1; i >= i0; --i) {
      T* row = v + i * ldv;
      // The row computed last comes last: the others need not wait for it.
      eliminate(std::max(i0, c0), c1, i1 - 1 - i, u + i * ldu + i1 - 1, -1, v + (i1 - 1) * ldv,
                -ldv, row);
      scale(std::max(i0, c0), c1, inverse_diagonal[i], row);
    }
  }
}

// v = U^-1, upper, with zeros below the diagonal.
template <class T>
void invert_upper(int64_t n, const T* u, int64_t ldu, const T* inverse_diagonal, T* v,
                  int64_t ldv) {
  invert_upper(n, 0, n, u, ldu, inverse_diagonal, v, ldv);
}

// The same over the threads of an executor: no column needs another.
template <class T>
void invert_upper(const Executor& executor, int64_t n, const T* u, int64_t ldu,
                  const T* inverse_diagonal, T* v, int64_t ldv) {
  constexpr int64_t worth_a_fork = 256;
  const int64_t tasks = n < worth_a_fork ? 1 : executor.threads();
  // A column takes as many operations as its number squared.
  const auto start = [&](int64_t task) {
    const double share = std::cbrt(double(task) / double(tasks));
    return task == tasks ? n : int64_t(share * double(n)) / kBlock<T> * kBlock<T>;
  };
  executor.for_each(tasks, [&](int64_t task) {
    invert_upper(n, start(task), start(task + 1), u, ldu, inverse_diagonal, v, ldv);
  });
}

// sum ln x_i of positive numbers, with few logarithms.
class LogProduct {
 public:
  void multiply(double x) {
    product_ *= x;
    if (!(product_ > 1e-100 && product_ < 1e100)) flush();
  }
  double value() {
    flush();
    return sum_;
  }

 private:
  void flush() {
    sum_ += std::log(product_);
    product_ = 1.0;
  }
  double product_ = 1.0, sum_ = 0.0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
