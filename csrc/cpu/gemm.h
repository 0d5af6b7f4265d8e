// Small dense products: C (=, +=, -=) A B, all row-major, with A read as stored or transposed.
//
// B and C are scratch matrices whose rows are padded to whole vectors (simd.h: row_stride), so a
// register tile never needs a column tail; A is read element by element and may be any matrix.
// Rows beyond whole tiles are served by narrower tiles. One multiply-add per element and step, in
// the order of k: a product that is symmetric in exact arithmetic comes out symmetric bit by bit.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../common/executor.h"
#include "simd.h"
#include "workspace.h"

namespace kanerva {
namespace KANERVA_ISA {

enum class Store { set, add, sub };

// Structure of an operand: lower means X(i, j) = 0 for j > i, upper means X(i, j) = 0 for j < i.
enum class Structure { full, lower, upper };

inline Structure transposed(Structure s) {
  return s == Structure::lower   ? Structure::upper
         : s == Structure::upper ? Structure::lower
                                 : Structure::full;
}

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

// The part of [k0, k1) in which rows [i, i + M) of A are not zero.
inline void clip(Structure structure, int64_t i, int64_t M, int64_t& k0, int64_t& k1) {
  if (structure == Structure::lower) k1 = std::min(k1, i + M);
  if (structure == Structure::upper) k0 = std::max(k0, i);
  k1 = std::max(k0, k1);
}

// Rows [i, m) of a column panel, steps [k0, k1).
template <class T, int N, bool Transposed>
inline void rows_of_panel(int64_t i, int64_t m, int64_t k0, int64_t k1, const T* a, int64_t lda,
                          const T* b, int64_t ldb, T* c, int64_t ldc, Store store,
                          Structure structure) {
  const auto run = [&](auto rows) {
    constexpr int M = decltype(rows)::value;
    int64_t lo = k0, hi = k1;
    clip(structure, i, M, lo, hi);
    const T* first = Transposed ? a + lo * lda + i : a + i * lda + lo;
    if (lo < hi || store == Store::set)
      tile<T, M, N, Transposed>(hi - lo, first, lda, b + (lo - k0) * ldb, ldb, c + i * ldc, ldc,
                                store);
    i += M;
  };
  while (i + kRows <= m) run(std::integral_constant<int, kRows>{});
  if (kRows > 4 && i + 4 <= m) run(std::integral_constant<int, 4>{});
  if (i + 2 <= m) run(std::integral_constant<int, 2>{});
  if (i < m) run(std::integral_constant<int, 1>{});
}

// The same for rows [0, m), whole tiles of A packed one after the other, steps [p0, p0 + depth).
template <class T, int N>
inline void packed_rows(int64_t m, int64_t p0, int64_t depth, const T* packed, const T* b,
                        int64_t ldb, T* c, int64_t ldc, Store store, Structure structure) {
  for (int64_t i = 0; i < m; i += kRows) {
    int64_t lo = p0, hi = p0 + depth;
    clip(structure, i, kRows, lo, hi);
    if (lo < hi || store == Store::set)
      tile<T, kRows, N, true>(hi - lo, packed + i * depth + (lo - p0) * kRows, kRows,
                              b + (lo - p0) * ldb, ldb, c + i * ldc, ldc, store);
  }
}

constexpr int64_t kDepth = 256;  // steps of k whose panel of B stays in the first-level cache

// Column panels of at most kVectors vectors, as even as possible: 2 + 2 beats 3 + 1. Every task has
// as many, where there are enough vectors.
struct Panels {
  int64_t vectors, count;
  template <class T>
  static Panels of(int64_t n, int64_t tasks = 1) {
    const int64_t v = padded<T>(n) / Simd<T>::width;
    const int64_t rounds = (v + kVectors * tasks - 1) / (kVectors * tasks);
    return {v, std::min(v, rounds * tasks)};
  }
  int64_t start(int64_t panel) const { return panel * vectors / count; }
};

// The panels of one task of C (m x n) = A (m x k) B (k x n). They are dealt out to and fro, for in
// a triangle each is dearer than the one before. `panel` and `packed`, where not null, take copies
// of the operands; see gemm.
template <bool Transposed, class T>
void gemm_panels(int64_t task, int64_t tasks, int64_t m, int64_t n, int64_t k, const T* a,
                 int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, Store store,
                 Structure structure, Part part, Structure right, T* panel, T* packed) {
  constexpr int W = Simd<T>::width;
  const Panels panels = Panels::of<T>(n, tasks);
  const int64_t whole = m / kRows * kRows;
  for (int64_t p0 = 0; p0 == 0 || p0 < k; p0 += kDepth) {
    const int64_t depth = std::min(kDepth, k - p0);
    const Store mode = p0 > 0 && store == Store::set ? Store::add : store;
    if (packed != nullptr) {
      constexpr int64_t few = 16;  // rows at a time, whose pages stay in the translation buffer
      for (int64_t q = 0; q < depth; q += few)
        for (int64_t i = 0; i < whole; i += kRows)
          for (int64_t p = q; p < std::min(depth, q + few); ++p)
            std::memcpy(packed + i * depth + p * kRows, a + (p0 + p) * lda + i, kRows * sizeof(T));
    }
    for (int64_t dealt = 0; dealt < panels.count; dealt += tasks) {
      const int64_t i = dealt + (dealt / tasks % 2 == 0 ? task : tasks - 1 - task);
      if (i >= panels.count) break;
      const int64_t j = panels.start(i) * W, vectors = panels.start(i + 1) - panels.start(i);
      int64_t lo = p0, hi = p0 + depth;  // where these columns of B are not zero
      if (right == Structure::lower) lo = std::max(lo, j);
      if (right == Structure::upper) hi = std::min(hi, j + vectors * W);
      hi = std::max(lo, hi);
      if (lo == hi && mode != Store::set) continue;
      const T* bp = b + lo * ldb + j;
      int64_t bs = ldb;
      if (panel != nullptr) {
        for (int64_t p = 0; p < hi - lo; ++p)
          for (int64_t v = 0; v < vectors; ++v)
            Simd<T>::store(panel + (p * vectors + v) * W, Simd<T>::load(bp + p * ldb + v * W));
        bp = panel;
        bs = vectors * W;
      }
      const int64_t rows = part == Part::upper ? std::min(m, j + vectors * W) : m;
      const auto run = [&](auto count) {
        constexpr int N = decltype(count)::value;
        int64_t done = 0;
        if (packed != nullptr) {
          done = std::min(whole, (rows + kRows - 1) / kRows * kRows);
          packed_rows<T, N>(done, p0, depth, packed, bp, bs, c + j, ldc, mode, structure);
        }
        if (done < rows) {
          rows_of_panel<T, N, Transposed>(done, rows, lo, hi, a, lda, bp, bs, c + j, ldc, mode,
                                          structure);
        }
      };
      if (vectors == 3) {
        run(std::integral_constant<int, 3>{});
      } else if (vectors == 2) {
        run(std::integral_constant<int, 2>{});
      } else {
        run(std::integral_constant<int, 1>{});
      }
    }
  }
}

// C (m x n) = A (m x k) B (k x n). Transposed: A is stored k x m, and B is full. One task's panels.
template <bool Transposed, class T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
          int64_t ldc, Store store, Structure structure = Structure::full, Part part = Part::all,
          Structure right = Structure::full, int64_t task = 0, int64_t tasks = 1) {
  constexpr int64_t width = kVectors * Simd<T>::width;
  constexpr int64_t page = 4096 / sizeof(T);
  if (m <= 0 || n <= 0) return;
  // Operands whose rows lie pages apart are copied together first, where they are read often
  // enough.
  const bool pack_b = k >= 64 && m >= 4 * kRows && ldb > page / 4;
  const bool pack_a = Transposed && k >= 64 && n >= 4 * width && lda > page / 8;
  if (pack_a || pack_b) {
    Workspace::Scope scope(Workspace::of_thread());
    T* panel = pack_b ? scope.take<T>(kDepth * width) : nullptr;
    T* packed = pack_a ? scope.take<T>(kDepth * m) : nullptr;
    gemm_panels<Transposed>(task, tasks, m, n, k, a, lda, b, ldb, c, ldc, store, structure, part,
                            right, panel, packed);
  } else {
    gemm_panels<Transposed>(task, tasks, m, n, k, a, lda, b, ldb, c, ldc, store, structure, part,
                            right, static_cast<T*>(nullptr), static_cast<T*>(nullptr));
  }
}

// The same over the threads of an executor.
template <bool Transposed, class T>
void gemm(const Executor& executor, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
          const T* b, int64_t ldb, T* c, int64_t ldc, Store store,
          Structure structure = Structure::full, Part part = Part::all,
          Structure right = Structure::full) {
  constexpr double worth_a_fork = 2e5;  // multiply-adds
  int64_t tasks = double(m) * double(n) * double(k) < worth_a_fork ? 1 : executor.threads();
  if (tasks > 1) tasks = std::min(tasks, Panels::of<T>(n).count);
  if (tasks <= 1) {
    gemm<Transposed>(m, n, k, a, lda, b, ldb, c, ldc, store, structure, part, right);
    return;
  }
  executor.for_each(tasks, [&](int64_t task) {
    gemm<Transposed>(m, n, k, a, lda, b, ldb, c, ldc, store, structure, part, right, task, tasks);
  });
}

// dst (n x m) = src (m x n)', converting. Reads whole vectors of src and writes whole vectors of
// dst; the padding of dst becomes zero.
template <class D, class S>
void transpose(int64_t m, int64_t n, const S* src, int64_t lds, D* dst, int64_t ldd) {
  using V = Simd<D>;
  constexpr int W = V::width;
  for (int64_t i0 = 0; i0 < m; i0 += W)
    for (int64_t j0 = 0; j0 < n; j0 += W) {
      typename V::Vector rows[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r)
        rows[r] = i0 + r < m ? V::load_as(src + (i0 + r) * lds + j0) : typename V::Vector{};
      transpose_steps<D, W / 2>(rows);
      const int count = int(std::min<int64_t>(W, n - j0));
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r)
        if (r < count) V::store(dst + (j0 + r) * ldd + i0, rows[r]);
    }
}

// Copies what is above the diagonal below it. Rows are padded.
template <class T>
void mirror(int64_t n, T* c, int64_t ldc) {
  constexpr int64_t W = Simd<T>::width;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t rows = std::min(W, n - i);
    for (int64_t r = i; r < i + rows; ++r)
      for (int64_t j = r + 1; j < i + rows; ++j) c[j * ldc + r] = c[r * ldc + j];
    for (int64_t j = i + W; j < n; j += W)
      transpose(rows, std::min(W, n - j), c + i * ldc + j, ldc, c + j * ldc + i, ldc);
  }
}

// x = (x + x') / 2, bit by bit symmetric. Rows are padded.
template <class T>
void symmetrise(int64_t n, T* x, int64_t ld) {
  using V = Simd<T>;
  constexpr int W = V::width;
  T turned[W * W];
  const auto half = V::broadcast(T(0.5));
  for (int64_t i = 0; i < n; i += W)
    for (int64_t j = i; j < n; j += W) {
      const int64_t rows = std::min<int64_t>(W, n - i), columns = std::min<int64_t>(W, n - j);
      transpose(columns, rows, x + j * ld + i, ld, turned, W);
      for (int64_t r = 0; r < rows; ++r) {
        T* row = x + (i + r) * ld + j;
        V::store(row, half * (V::load(row) + V::load(turned + r * W)));
      }
      if (j > i) transpose(rows, columns, x + i * ld + j, ld, x + j * ld + i, ld);
    }
}

// dst = src, converting, in whole vectors.
template <class D, class S>
void convert(int64_t m, int64_t n, const S* src, int64_t lds, D* dst, int64_t ldd) {
  using V = Simd<D>;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; j += V::width)
      V::store(dst + i * ldd + j, V::load_as(src + i * lds + j));
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
