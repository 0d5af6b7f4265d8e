// Cholesky factors and triangular inverses of small symmetric matrices, in rows of vectors.
//
// The upper factor is used: S = U'U with U = F' in the notation of the write, S = F F'.
#pragma once

#include <cmath>

#include "gemm.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr double kLog2Pi = 1.8378770664093454836;
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

template <class T>
void scale(int64_t j0, int64_t n, double alpha, T* dst) {
  using V = Simd<T>;
  const auto a = V::broadcast(T(alpha));
  for (int64_t j = j0; j < n; j += V::width) V::store(dst + j, a * V::load(dst + j));
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
      gemm<true>(i1 - i0, n - i0, i0, s + i0, lds, s + i0, lds, s + i0 * lds + i0, lds, Store::sub);
    }
    for (int64_t i = i0; i < i1; ++i) {
      T* row = s + i * lds;
      eliminate(i0, n, i - i0, s + i0 * lds + i, lds, s + i0 * lds, lds, row);
      const T pivot = row[i];
      if (!(pivot > T(0) && pivot < T(HUGE_VAL))) return false;
      const T inverse = T(1) / std::sqrt(pivot);
      inverse_diagonal[i] = inverse;
      scale(i0, n, inverse, row);
    }
  }
  return true;
}

// v = U^-1, upper, with zeros below the diagonal.
template <class T>
void invert_upper(int64_t n, const T* u, int64_t ldu, const T* inverse_diagonal, T* v,
                  int64_t ldv) {
  const int64_t blocks = (n + kBlock<T> - 1) / kBlock<T>;
  const int64_t width = padded<T>(n);
  for (int64_t k = blocks - 1; k >= 0; --k) {
    const int64_t i0 = k * kBlock<T>, i1 = std::min(n, i0 + kBlock<T>);
    for (int64_t i = i0; i < i1; ++i) {
      std::memset(v + i * ldv, 0, size_t(width) * sizeof(T));
      v[i * ldv + i] = T(1);
    }
    if (i1 < n) {
      gemm<false>(i1 - i0, n - i1, n - i1, u + i0 * ldu + i1, ldu, v + i1 * ldv + i1, ldv,
                  v + i0 * ldv + i1, ldv, Store::sub);
    }
    for (int64_t i = i1 - 1; i >= i0; --i) {
      T* row = v + i * ldv;
      // The row computed last comes last: the others need not wait for it.
      eliminate(i0, n, i1 - 1 - i, u + i * ldu + i1 - 1, -1, v + (i1 - 1) * ldv, -ldv, row);
      scale(i0, n, inverse_diagonal[i], row);
    }
  }
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
