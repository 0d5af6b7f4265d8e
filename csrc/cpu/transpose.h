// Transposes of small dense matrices, and what is made of them: row-major, in blocks of width x
// width elements. Rows are padded to whole vectors unless they are said to be bare, to end at the
// last column.
#pragma once

#include <algorithm>

#include "simd.h"

namespace kanerva {
namespace KANERVA_ISA {

// The first n elements of a vector, converting; what follows them is read too unless `ends`.
template <class D, class S>
inline typename Simd<D>::Vector load_block_row(const S* p, int64_t n, bool ends) {
  if constexpr (std::is_same_v<D, S>) {
    if (ends) return Simd<D>::load_first(p, n);
  }
  return Simd<D>::template load_as<S>(p);
}

template <class T>
inline void store_block_row(T* p, int64_t n, bool ends, typename Simd<T>::Vector v) {
  if (ends) {
    Simd<T>::store_first(p, n, v);
  } else {
    Simd<T>::store(p, v);
  }
}

// dst (columns x rows) = src (rows x columns)', at most width of both, all of them where they are
// Whole. Writes whole vectors, zero beyond `rows`; bare as in transpose().
template <bool Whole, class D, class S>
inline void transpose_block(int64_t rows, int64_t columns, const S* src, int64_t lds, D* dst,
                            int64_t ldd, bool bare) {
  using V = Simd<D>;
  constexpr int W = V::width;
  const bool ends = !Whole && bare && columns < W;
  typename V::Vector x[W];
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r)
    x[r] =
        Whole || r < rows ? load_block_row<D>(src + r * lds, columns, ends) : typename V::Vector{};
  transpose_steps<D, W / 2>(x);
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r)
    if (Whole || r < columns) V::store(dst + r * ldd, x[r]);
}

// dst (n x m) = src (m x n)', converting. Writes whole vectors of dst, zero beyond m, and reads
// whole ones of src unless it is bare, which is of the same type.
template <class D, class S>
void transpose(int64_t m, int64_t n, const S* src, int64_t lds, D* dst, int64_t ldd,
               bool bare = false) {
  constexpr int64_t W = Simd<D>::width;
  for (int64_t i = 0; i < m; i += W)
    for (int64_t j = 0; j < n; j += W) {
      const int64_t rows = std::min(W, m - i), columns = std::min(W, n - j);
      const S* from = src + i * lds + j;
      D* to = dst + j * ldd + i;
      if (rows == W && columns == W) {
        transpose_block<true>(W, W, from, lds, to, ldd, false);
      } else {
        transpose_block<false>(rows, columns, from, lds, to, ldd, bare);
      }
    }
}

// Copies what is above the diagonal below it.
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

// The blocks of rows and columns [i, i + width) and [j, j + width) of symmetrise().
template <bool Whole, class T>
inline void symmetrise_blocks(int64_t n, int64_t i, int64_t j, const T* x, int64_t ldx, bool bare_x,
                              T* y, int64_t ldy, bool bare_y, double share) {
  using V = Simd<T>;
  constexpr int W = V::width;
  const int64_t rows = std::min<int64_t>(W, n - i), columns = std::min<int64_t>(W, n - j);
  const bool ends_x = !Whole && bare_x && columns < W, ends_y = !Whole && bare_y && columns < W;
  const auto scale = V::broadcast(T(share));
  T turned[W * W];
  if (!Whole) std::memset(turned, 0, sizeof(turned));  // for compilers that do not see it written
  typename V::Vector block[W];
  transpose_block<Whole>(columns, rows, x + j * ldx + i, ldx, turned, W, bare_x);
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r) {
    block[r] = typename V::Vector{};
    if (!Whole && r >= rows) continue;
    const auto given = load_block_row<T>(x + (i + r) * ldx + j, columns, ends_x);
    block[r] = scale * (given + V::load(turned + r * W));
    store_block_row(y + (i + r) * ldy + j, columns, ends_y, block[r]);
  }
  if (j == i) return;
  transpose_steps<T, W / 2>(block);  // of whole rows, for only the last j is short
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r)
    if (Whole || r < columns) V::store(y + (j + r) * ldy + i, block[r]);
}

// y = share (x + x'), bit by bit symmetric; y may be x.
template <class T>
void symmetrise(int64_t n, const T* x, int64_t ldx, bool bare_x, T* y, int64_t ldy, bool bare_y,
                double share) {
  constexpr int64_t W = Simd<T>::width;
  for (int64_t i = 0; i < n; i += W)
    for (int64_t j = i; j < n; j += W) {
      if (j + W <= n) {
        symmetrise_blocks<true>(n, i, j, x, ldx, false, y, ldy, false, share);
      } else {
        symmetrise_blocks<false>(n, i, j, x, ldx, bare_x, y, ldy, bare_y, share);
      }
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
