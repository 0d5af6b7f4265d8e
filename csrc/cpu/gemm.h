// Small dense products: C (=, +=, -=) A B, all row-major, with A read as stored or transposed.
//
// A is read element by element and may be any matrix. The rows of B and C are those of scratch
// matrices, padded to whole vectors (simd.h: row_stride), or end where they end, as tensors' do.
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

// What is multiplied. Bare: rows end at the last column.
template <class T>
struct Operand {
  const T* data;
  int64_t ld;
  Structure structure = Structure::full;
  bool bare = false;
};

// Where a product goes: C = from (+, -) A B, or C = A B.
template <class T>
struct Target {
  T* c;
  int64_t ldc;
  Store store;
  bool bare;
  const T* from;
  int64_t ldf;
  bool bare_from;

  Target(T* data, int64_t ld, Store how, bool is_bare, const T* start, int64_t lds, bool bare_start)
      : c(data), ldc(ld), store(how), bare(is_bare), from(start), ldf(lds), bare_from(bare_start) {}
  Target(T* data, int64_t ld, Store how, bool is_bare = false)  // from is C
      : Target(data, ld, how, is_bare, data, ld, is_bare) {}
  Target columns(int64_t first) const {
    Target part = *this;
    part.c += first;
    part.from += first;
    return part;
  }
  // When a part of the sum is in C.
  Target goes_on() const { return {c, ldc, store == Store::set ? Store::add : store, bare}; }
  // Whether C changes where nothing is added.
  bool is_set() const { return store == Store::set || from != c; }
};

// Elements of the last vectors of a tile's rows, where some of them end inside one.
struct Last {
  int64_t b, from, c;
};

// Rows [row, row + M) of the target. Ends: with regard to `last`, as all tiles of fewer rows are.
template <class T, int M, int N, bool Transposed, bool Ends>
inline void tile(int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, const Target<T>& to,
                 int64_t row, const Last& last) {
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
    for (int j = 0; j < N; ++j)
      bv[j] = Ends && V::has_masks && j + 1 == N ? V::load_first(b + j * V::width, last.b)
                                                 : V::load(b + j * V::width);
    b += ldb;
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const auto av = V::broadcast(Transposed ? a[i] : rows[i][p]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[i][j] += av * bv[j];
    }
    if (Transposed) a += lda;
  }

  // By value, for what is stored may alias.
  const Store store = to.store;
  const int64_t ldc = to.ldc, ldf = to.ldf, of_c = last.c, of_from = last.from;
  T* c = to.c + row * ldc;
  const T* from = to.from + row * ldf;
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i, c += ldc, from += ldf) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const bool ends = Ends && j + 1 == N;
      const T* f = from + j * V::width;
      if (store == Store::add) {
        acc[i][j] = (ends ? V::load_last(f, of_from) : V::load(f)) + acc[i][j];
      } else if (store == Store::sub) {
        acc[i][j] = (ends ? V::load_last(f, of_from) : V::load(f)) - acc[i][j];
      }
      if (ends && of_c < V::width) {
        V::store_first(c + j * V::width, of_c, acc[i][j]);
      } else {
        V::store(c + j * V::width, acc[i][j]);
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
template <class T, int N, bool Transposed, bool Ends>
inline void rows_of_panel(int64_t i, int64_t m, int64_t k0, int64_t k1, const T* a, int64_t lda,
                          const T* b, int64_t ldb, const Target<T>& to, const Last& last,
                          Structure structure) {
  const auto run = [&](auto rows) {
    constexpr int M = decltype(rows)::value;
    int64_t lo = k0, hi = k1;
    clip(structure, i, M, lo, hi);
    const T* first = Transposed ? a + lo * lda + i : a + i * lda + lo;
    if (lo < hi || to.is_set())
      tile < T, M, N, Transposed,
          Ends || M<kRows>(hi - lo, first, lda, b + (lo - k0) * ldb, ldb, to, i, last);
    i += M;
  };
  while (i + kRows <= m) run(std::integral_constant<int, kRows>{});
  if (kRows > 4 && i + 4 <= m) run(std::integral_constant<int, 4>{});
  if (i + 2 <= m) run(std::integral_constant<int, 2>{});
  if (i < m) run(std::integral_constant<int, 1>{});
}

// The same for rows [0, m), whole tiles of A packed one after the other, steps [p0, p0 + depth).
template <class T, int N, bool Ends>
inline void packed_rows(int64_t m, int64_t p0, int64_t depth, const T* packed, const T* b,
                        int64_t ldb, const Target<T>& to, const Last& last, Structure structure) {
  for (int64_t i = 0; i < m; i += kRows) {
    int64_t lo = p0, hi = p0 + depth;
    clip(structure, i, kRows, lo, hi);
    if (lo < hi || to.is_set())
      tile<T, kRows, N, true, Ends>(hi - lo, packed + i * depth + (lo - p0) * kRows, kRows,
                                    b + (lo - p0) * ldb, ldb, to, i, last);
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
// of the operands, `panel` of all of B or of what ends inside a vector; see gemm.
template <bool Transposed, class T>
void gemm_panels(int64_t task, int64_t tasks, int64_t m, int64_t n, int64_t k, const Operand<T>& a,
                 const Operand<T>& b, const Target<T>& to, Part part, T* panel, bool all_of_b,
                 T* packed) {
  using V = Simd<T>;
  constexpr int W = V::width;
  const Panels panels = Panels::of<T>(n, tasks);
  const int64_t whole = m / kRows * kRows, rest = n - (panels.vectors - 1) * W;
  const Last ends{b.bare ? rest : W, to.bare_from ? rest : W, to.bare ? rest : W};
  for (int64_t p0 = 0; p0 == 0 || p0 < k; p0 += kDepth) {
    const int64_t depth = std::min(kDepth, k - p0);
    const Target<T> target = p0 > 0 ? to.goes_on() : to;
    if (packed != nullptr) {
      constexpr int64_t few = 16;  // rows at a time, whose pages stay in the translation buffer
      for (int64_t q = 0; q < depth; q += few)
        for (int64_t i = 0; i < whole; i += kRows)
          for (int64_t p = q; p < std::min(depth, q + few); ++p)
            std::memcpy(packed + i * depth + p * kRows, a.data + (p0 + p) * a.ld + i,
                        kRows * sizeof(T));
    }
    for (int64_t dealt = 0; dealt < panels.count; dealt += tasks) {
      const int64_t i = dealt + (dealt / tasks % 2 == 0 ? task : tasks - 1 - task);
      if (i >= panels.count) break;
      const int64_t j = panels.start(i) * W, vectors = panels.start(i + 1) - panels.start(i);
      int64_t lo = p0, hi = p0 + depth;  // where these columns of B are not zero
      if (b.structure == Structure::lower) lo = std::max(lo, j);
      if (b.structure == Structure::upper) hi = std::min(hi, j + vectors * W);
      hi = std::max(lo, hi);
      if (lo == hi && !target.is_set()) continue;
      Last last{W, W, W};
      if (i + 1 == panels.count) last = {ends.b, p0 > 0 ? ends.c : ends.from, ends.c};
      const T* bp = b.data + lo * b.ld + j;
      int64_t bs = b.ld;
      if (panel != nullptr && (all_of_b || last.b < W)) {
        for (int64_t p = 0; p < hi - lo; ++p, bp += b.ld)
          for (int64_t v = 0; v < vectors; ++v)
            V::store(panel + (p * vectors + v) * W,
                     v + 1 == vectors ? V::load_last(bp + v * W, last.b) : V::load(bp + v * W));
        bp = panel;
        bs = vectors * W;
        last.b = W;
      }
      const int64_t rows = part == Part::upper ? std::min(m, j + vectors * W) : m;
      const Target<T> columns = target.columns(j);
      const auto run = [&](auto count, auto ends) {
        constexpr int N = decltype(count)::value;
        constexpr bool Ends = decltype(ends)::value;
        int64_t done = 0;
        if (packed != nullptr) {
          done = std::min(whole, (rows + kRows - 1) / kRows * kRows);
          packed_rows<T, N, Ends>(done, p0, depth, packed, bp, bs, columns, last, a.structure);
        }
        if (done < rows) {
          rows_of_panel<T, N, Transposed, Ends>(done, rows, lo, hi, a.data, a.ld, bp, bs, columns,
                                                last, a.structure);
        }
      };
      const auto run_panel = [&](auto ends) {
        if (vectors == 3) {
          run(std::integral_constant<int, 3>{}, ends);
        } else if (vectors == 2) {
          run(std::integral_constant<int, 2>{}, ends);
        } else {
          run(std::integral_constant<int, 1>{}, ends);
        }
      };
      if (last.b < W || last.from < W || last.c < W) {
        run_panel(std::true_type{});
      } else {
        run_panel(std::false_type{});
      }
    }
  }
}

// C (m x n) = A (m x k) B (k x n). Transposed: A is stored k x m, and B is full. One task's panels.
template <bool Transposed, class T>
void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
          const Target<T>& to, Part part = Part::all, int64_t task = 0, int64_t tasks = 1) {
  constexpr int64_t width = kVectors * Simd<T>::width;
  constexpr int64_t page = 4096 / sizeof(T);
  if (m <= 0 || n <= 0) return;
  // Operands whose rows lie pages apart, or in few cache sets, are copied together first, where
  // they are read often enough; so is what ends inside a vector, where there are no masks.
  const bool apart = b.ld > page / 4 || b.ld % (page / 4) == 0;
  const bool pack_b = k >= 64 && m >= 4 * kRows && apart;
  const bool pack_end = !Simd<T>::has_masks && b.bare && n % Simd<T>::width != 0;
  const bool pack_a = Transposed && k >= 64 && n >= 4 * width && a.ld > page / 8;
  if (pack_a || pack_b || pack_end) {
    Workspace::Scope scope(Workspace::of_thread());
    T* panel = pack_b || pack_end ? scope.take<T>(kDepth * width) : nullptr;
    T* packed = pack_a ? scope.take<T>(kDepth * m) : nullptr;
    gemm_panels<Transposed>(task, tasks, m, n, k, a, b, to, part, panel, pack_b, packed);
  } else {
    gemm_panels<Transposed, T>(task, tasks, m, n, k, a, b, to, part, nullptr, false, nullptr);
  }
}

// The same over the threads of an executor.
template <bool Transposed, class T>
void gemm(const Executor& executor, int64_t m, int64_t n, int64_t k, const Operand<T>& a,
          const Operand<T>& b, const Target<T>& to, Part part = Part::all) {
  constexpr double worth_a_fork = 2e5;  // multiply-adds
  int64_t tasks = double(m) * double(n) * double(k) < worth_a_fork ? 1 : executor.threads();
  if (tasks > 1) tasks = std::min(tasks, Panels::of<T>(n).count);
  if (tasks <= 1) {
    gemm<Transposed>(m, n, k, a, b, to, part);
    return;
  }
  executor.for_each(tasks,
                    [&](int64_t task) { gemm<Transposed>(m, n, k, a, b, to, part, task, tasks); });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
