// Small dense products: C (=, +=, -=) A B, all row-major, with A read as stored or transposed.
//
// B and C are scratch matrices whose rows are padded to whole vectors (simd.h: row_stride), so a
// register tile never needs a column tail; A is read element by element and may be any matrix.
// Rows beyond whole tiles are served by narrower tiles. One multiply-add per element and step, in
// the order of k: a product that is symmetric in exact arithmetic comes out symmetric bit by bit.
#pragma once

#include <algorithm>
#include <type_traits>

#include "executor.h"
#include "simd.h"

namespace kanerva {
namespace KANERVA_ISA {

enum class Store { set, add, sub };

// Structure of A: lower means A(i, p) = 0 for p > i, upper means A(i, p) = 0 for p < i.
enum class Structure { full, lower, upper };

// Which part of C is wanted: all, or only the tiles that touch j >= i (mirror() fills the rest).
enum class Part { all, upper };

template <class T, int M, int N, bool Transposed>
inline void tile(int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                 Store store) {
  using V = Simd<T>;
  typename V::Vector acc[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[i][j] = typename V::Vector{};

  const T* rows[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) rows[i] = Transposed ? a + i : a + i * lda;

  for (int64_t p = 0; p < k; ++p) {
    typename V::Vector bv[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) bv[j] = V::load(b + j * V::width);
    b += ldb;
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const auto av = V::broadcast(Transposed ? a[i] : rows[i][p]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[i][j] += av * bv[j];
    }
    if (Transposed) a += lda;
  }

#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    T* row = c + i * ldc;
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      T* p = row + j * V::width;
      if (store == Store::add) {
        V::store(p, V::load(p) + acc[i][j]);
      } else if (store == Store::sub) {
        V::store(p, V::load(p) - acc[i][j]);
      } else {
        V::store(p, acc[i][j]);
      }
    }
  }
}

template <class T, int N, bool Transposed>
inline void rows_of_panel(int64_t m, int64_t k0, int64_t k1, const T* a, int64_t lda, const T* b,
                          int64_t ldb, T* c, int64_t ldc, Store store, Structure structure) {
  const auto at = [&](int64_t i, int64_t p) { return Transposed ? a + p * lda + i : a + i * lda + p; };
  int64_t i = 0;
  const auto run = [&](auto rows_tag) {
    constexpr int M = decltype(rows_tag)::value;
    int64_t lo = k0, hi = k1;
    if (structure == Structure::lower) hi = std::min(hi, i + M);
    if (structure == Structure::upper) lo = std::max(lo, i);
    if (lo < hi || store == Store::set) {
      tile<T, M, N, Transposed>(std::max<int64_t>(hi - lo, 0), at(i, lo), lda, b + (lo - k0) * ldb, ldb,
                                c + i * ldc, ldc, store);
    }
    i += M;
  };
  while (i + kRows <= m) run(std::integral_constant<int, kRows>{});
  if (kRows > 4 && i + 4 <= m) run(std::integral_constant<int, 4>{});
  if (i + 2 <= m) run(std::integral_constant<int, 2>{});
  if (i < m) run(std::integral_constant<int, 1>{});
}

constexpr int64_t kDepth = 256;  // steps of k whose panel of B stays in the first-level cache

// C (m x n) = A (m x k) B (k x n). Transposed: A is stored k x m.
template <bool Transposed, class T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
          int64_t ldc, Store store, Structure structure = Structure::full, Part part = Part::all) {
  constexpr int W = Simd<T>::width;
  if (m <= 0 || n <= 0) return;
  // A panel that is read many times with a long row stride is copied together first.
  const bool pack = k >= 64 && m >= 4 * kRows && ldb * int64_t(sizeof(T)) > 1024;
  alignas(64) static thread_local T panel[kDepth * kVectors * W];

  const int64_t vectors = (n + W - 1) / W;
  for (int64_t p0 = 0; p0 == 0 || p0 < k; p0 += kDepth) {
    const int64_t p1 = std::min(k, p0 + kDepth);
    const Store mode = p0 > 0 && store == Store::set ? Store::add : store;
    for (int64_t v = 0; v < vectors;) {
      // 4 left: 2 + 2 keeps the multiply-add units busier than 3 + 1.
      const int64_t left = vectors - v;
      const int N = left == 4 ? 2 : int(std::min<int64_t>(left, kVectors));
      const T* bp = b + p0 * ldb + v * W;
      int64_t bs = ldb;
      if (pack) {
        for (int64_t p = 0; p < p1 - p0; ++p)
          std::memcpy(panel + p * N * W, bp + p * ldb, N * kVectorBytes);
        bp = panel;
        bs = N * W;
      }
      const int64_t rows = part == Part::upper ? std::min(m, (v + N) * W) : m;
      T* cp = c + v * W;
      if (N == 3) {
        rows_of_panel<T, 3, Transposed>(rows, p0, p1, a, lda, bp, bs, cp, ldc, mode, structure);
      } else if (N == 2) {
        rows_of_panel<T, 2, Transposed>(rows, p0, p1, a, lda, bp, bs, cp, ldc, mode, structure);
      } else {
        rows_of_panel<T, 1, Transposed>(rows, p0, p1, a, lda, bp, bs, cp, ldc, mode, structure);
      }
      v += N;
    }
  }
}

// gemm over the threads of an executor: column panels are dealt out in turn.
template <bool Transposed, class T>
void gemm(const Executor& executor, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
          int64_t ldb, T* c, int64_t ldc, Store store, Structure structure = Structure::full,
          Part part = Part::all) {
  constexpr int64_t width = kVectors * Simd<T>::width;
  constexpr double worth_a_fork = 2e5;  // multiply-adds
  const int64_t panels = (n + width - 1) / width;
  const int64_t tasks = std::min(executor.threads(), panels);
  if (tasks <= 1 || double(m) * double(n) * double(k) < worth_a_fork) {
    gemm<Transposed>(m, n, k, a, lda, b, ldb, c, ldc, store, structure, part);
    return;
  }
  executor.for_each(tasks, [&](int64_t task) {
    for (int64_t panel = task; panel < panels; panel += tasks) {
      const int64_t j = panel * width, columns = std::min(width, n - j);
      const int64_t rows = part == Part::upper ? std::min(m, j + width) : m;
      gemm<Transposed>(rows, columns, k, a, lda, b + j, ldb, c + j, ldc, store, structure);
    }
  });
}

// Copy the upper triangle to the lower one.
template <class T>
void mirror(int64_t n, T* c, int64_t ldc) {
  constexpr int64_t block = 16;
  for (int64_t i0 = 0; i0 < n; i0 += block)
    for (int64_t j0 = i0; j0 < n; j0 += block)
      for (int64_t i = i0; i < std::min(n, i0 + block); ++i)
        for (int64_t j = std::max(j0, i + 1); j < std::min(n, j0 + block); ++j)
          c[j * ldc + i] = c[i * ldc + j];
}

// dst (n x m) = src (m x n)', converting.
template <class D, class S>
void transpose(int64_t m, int64_t n, const S* src, int64_t lds, D* dst, int64_t ldd) {
  constexpr int64_t block = 16;
  for (int64_t j0 = 0; j0 < n; j0 += block)
    for (int64_t i0 = 0; i0 < m; i0 += block)
      for (int64_t j = j0; j < std::min(n, j0 + block); ++j)
        for (int64_t i = i0; i < std::min(m, i0 + block); ++i) dst[j * ldd + i] = D(src[i * lds + j]);
}

// dst = src, converting; whole rows.
template <class D, class S>
void convert(int64_t m, int64_t n, const S* src, int64_t lds, D* dst, int64_t ldd) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) dst[i * ldd + j] = D(src[i * lds + j]);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
