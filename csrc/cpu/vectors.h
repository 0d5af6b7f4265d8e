// Products of a matrix and a vector, and updates of low rank. Rows are padded to whole vectors and
// what pads them is zero, in matrices and in vectors. Matrices go by value, so that pointer and
// stride stay in registers beside stores that could alias them.
#pragma once

#include <cmath>

#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

// Of two vectors whose segments of S lanes belong to different rows, one with segments of S / 2.
template <class T, int S, size_t... lane>
inline typename Simd<T>::Vector fold(typename Simd<T>::Vector a, typename Simd<T>::Vector b,
                                     std::index_sequence<lane...>) {
  constexpr int half = S / 2;
  return __builtin_shufflevector(a, b, int(lane / half * S + lane % half)...) +
         __builtin_shufflevector(a, b, int(lane / half * S + lane % half + half)...);
}

template <class T, int distance, size_t... lane>
inline typename Simd<T>::Vector exchanged(typename Simd<T>::Vector a,
                                          std::index_sequence<lane...>) {
  return __builtin_shufflevector(a, a, int(lane ^ distance)...);
}

// y[r] = the sum of vector r; the rows share the additions.
template <class T, int rows, int S = Simd<T>::width>
inline void sum_rows(typename Simd<T>::Vector* v, double* y) {
  constexpr int W = Simd<T>::width;
  constexpr auto lanes = std::make_index_sequence<W>{};
  if constexpr (S > 1 && rows > 1) {
#pragma GCC unroll 8
    for (int r = 0; r < rows / 2; ++r) v[r] = fold<T, S>(v[2 * r], v[2 * r + 1], lanes);
    sum_rows<T, rows / 2, S / 2>(v, y);
  } else if constexpr (S > 1) {  // one vector, of W / S rows
    auto x = v[0];
    if constexpr (S > 8) x += exchanged<T, 8>(x, lanes);
    if constexpr (S > 4) x += exchanged<T, 4>(x, lanes);
    if constexpr (S > 2) x += exchanged<T, 2>(x, lanes);
    x += exchanged<T, 1>(x, lanes);
#pragma GCC unroll 8
    for (int r = 0; r < W / S; ++r) y[r] = double(x[r * S]);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) y[r * W + l] = double(v[r][l]);
  }
}

// ys[q] = M xs[q], for a few vectors at once: M is read once. Threads share the rows.
template <int count, class A>
void row_products(const Executor& executor, const Matrix<A> M, const A* const (&xs)[count],
                  double* const (&ys)[count]) {
  using V = Simd<A>;
  const auto run = [=](int64_t i, auto block) {
    constexpr int rows = decltype(block)::value;
    typename V::Vector sums[count][rows]{};
    for (int64_t j = 0; j < M.columns; j += V::width) {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto element = V::load(M[i + r] + j);
#pragma GCC unroll 2
        for (int q = 0; q < count; ++q) sums[q][r] += element * V::load(xs[q] + j);
      }
    }
    for (int q = 0; q < count; ++q) sum_rows<A, rows>(sums[q], ys[q] + i);
  };
  for_rows(executor, M.rows, M.columns, [=](int64_t i, int64_t share) {
    const int64_t end = i + share;
    for (; i + 8 <= end; i += 8) run(i, std::integral_constant<int, 8>{});
    for (; i < end; ++i) run(i, std::integral_constant<int, 1>{});
  });
}

// Ys[q] = M' Xs[q], for a few vectors at once: M is read once. Threads share the columns.
template <int count, class A>
void column_products(const Executor& executor, const Matrix<A> M, const A* const (&xs)[count],
                     A* const (&ys)[count]) {
  using V = Simd<A>;
  const auto run = [=](int64_t j, auto block) {
    constexpr int vectors = decltype(block)::value;
    typename V::Vector sums[count][vectors]{};
    const A* row = M.data + j;
    for (int64_t i = 0; i < M.rows; ++i, row += M.ld) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const auto x = V::load(row + v * V::width);
#pragma GCC unroll 2
        for (int q = 0; q < count; ++q) sums[q][v] += V::broadcast(xs[q][i]) * x;
      }
    }
    for (int q = 0; q < count; ++q)
      for (int v = 0; v < vectors; ++v) V::store(ys[q] + j + v * V::width, sums[q][v]);
  };
  constexpr int widest = count == 1 && kVectorBytes >= 32 ? 8 : 4;
  for_rows(executor, M.columns, M.rows, [=](int64_t j, int64_t share) {
    const int64_t end = padded<A>(j + share);
    for (; j + widest * V::width <= end; j += widest * V::width)
      run(j, std::integral_constant<int, widest>{});
    for (; j + 4 * V::width <= end; j += 4 * V::width) run(j, std::integral_constant<int, 4>{});
    for (; j + 2 * V::width <= end; j += 2 * V::width) run(j, std::integral_constant<int, 2>{});
    for (; j < end; j += V::width) run(j, std::integral_constant<int, 1>{});
  });
}

// M += x y'
template <class A>
void add_outer(const Executor& executor, const Matrix<A> M, const A* x, const A* y) {
  using V = Simd<A>;
  for_rows(executor, M.rows, M.columns, [=](int64_t i, int64_t count) {
    for (const int64_t end = i + count; i < end; ++i) {
      const auto a = V::broadcast(x[i]);
      A* row = M[i];
      for (int64_t j = 0; j < M.columns; j += V::width)
        V::store(row + j, V::load(row + j) + a * V::load(y + j));
    }
  });
}

// M += x y' + u v'
template <class A>
void add_outers(const Executor& executor, const Matrix<A> M, const A* x, const A* y, const A* u,
                const A* v) {
  using V = Simd<A>;
  for_rows(executor, M.rows, M.columns, [=](int64_t i, int64_t count) {
    for (const int64_t end = i + count; i < end; ++i) {
      const auto a = V::broadcast(x[i]), b = V::broadcast(u[i]);
      A* row = M[i];
      for (int64_t j = 0; j < M.columns; j += V::width)
        V::store(row + j, V::load(row + j) + a * V::load(y + j) + b * V::load(v + j));
    }
  });
}

// before = M y, M += x y', after = M v, in one pass.
template <class A>
void add_outer_and_multiply(const Executor& executor, const Matrix<A> M, const A* x, const A* y,
                            double* before, const A* v, double* after) {
  using V = Simd<A>;
  const auto run = [=](int64_t i, auto count) {
    constexpr int rows = decltype(count)::value;
    typename V::Vector old[rows]{}, sums[rows]{};
    for (int64_t j = 0; j < M.columns; j += V::width) {
      const auto b = V::load(y + j), c = V::load(v + j);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        A* at = M[i + r] + j;
        const auto element = V::load(at);
        const auto sum = element + V::broadcast(x[i + r]) * b;
        V::store(at, sum);
        old[r] += element * b;
        sums[r] += sum * c;
      }
    }
    sum_rows<A, rows>(old, before + i);
    sum_rows<A, rows>(sums, after + i);
  };
  for_rows(executor, M.rows, M.columns, [=](int64_t i, int64_t count) {
    const int64_t end = i + count;
    for (; i + 8 <= end; i += 8) run(i, std::integral_constant<int, 8>{});
    for (; i < end; ++i) run(i, std::integral_constant<int, 1>{});
  });
}

// y = a x, and y += a x, converting; what pads them stays.
template <class D, class S>
void scaled(int64_t n, double a, const S* __restrict x, D* __restrict y) {
  for (int64_t j = 0; j < n; ++j) y[j] = D(a * double(x[j]));
}

template <class D, class S>
void add_scaled(int64_t n, double a, const S* x, D* y) {
  for (int64_t j = 0; j < n; ++j) y[j] = D(double(y[j]) + a * double(x[j]));
}

// The largest of n elements that are not negative.
inline double largest(int64_t n, const double* x) {
  using V = Simd<double>;
  typename V::Vector best{};
  for (int64_t j = 0; j < n; j += V::width) {
    const auto v = V::load(x + j);
    best = v > best ? v : best;
  }
  double found = 0.0;
  for (int l = 0; l < V::width; ++l) found = std::max(found, best[l]);
  return found;
}

// Room for n elements, zero up to whole vectors of any type.
template <class A>
A* take_vector(Workspace::Scope& scope, int64_t n) {
  const int64_t length = (n + 15) / 16 * 16;
  A* x = scope.take<A>(length);
  std::memset(x, 0, size_t(length) * sizeof(A));
  return x;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
