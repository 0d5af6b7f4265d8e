// Matrix products by a team.
#pragma once

#include "tiles.cuh"

namespace kanerva::cuda {

// store(i, j, sum over p of a(i, p) b(p, j)) for i < m, j < n; TransposedA: a is k x m,
// TransposedB: b is n x k. A thread keeps a 4 x 4 tile whose rows and columns lie apart, so that
// neighbouring threads read neighbouring columns; large float32 products of a team take tiles of
// its blocks. The order of a sum is fixed.
template <bool TransposedA, bool TransposedB, class T, class Store>
__device__ inline void product(int m, int n, int k, Mat<T> a, Mat<T> b, Store store) {
  if constexpr (sizeof(T) == 4) {
    if (fills_tiles(m, n)) {
      const TileFactor rows = {a.data, TransposedA ? 1 : a.ld, TransposedA ? a.ld : 1, m};
      const TileFactor columns = {b.data, TransposedB ? b.ld : 1, TransposedB ? 1 : b.ld, n};
      return product_in_tiles(rows, columns, k, store);
    }
  }
  constexpr int R = 4;
  const int mt = (m + R - 1) / R, nt = (n + R - 1) / R;
  for (int tile = thread(); tile < mt * nt; tile += threads()) {
    const int ti = tile / nt, tj = tile % nt;
    const T *pa[R], *pb[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = min(ti + r * mt, m - 1), j = min(tj + r * nt, n - 1);
      pa[r] = TransposedA ? a.data + i : a.data + int64_t(i) * a.ld;
      pb[r] = TransposedB ? b.data + int64_t(j) * b.ld : b.data + j;
    }
    T sum[R][R] = {};
    const int64_t step_a = TransposedA ? a.ld : 1, step_b = TransposedB ? 1 : b.ld;
    // Long float32 sums by parts, which rounds less.
    constexpr int part = sizeof(T) == 4 ? 64 : 1 << 30;
    for (int first = 0; first < k; first += part) {
      T partial[R][R] = {};
      const int last = k - first < part ? k : first + part;
      for (int p = first; p < last; ++p) {
        T x[R], y[R];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          x[r] = pa[r][p * step_a];
          y[r] = pb[r][p * step_b];
        }
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int c = 0; c < R; ++c) partial[r][c] = fma(x[r], y[c], partial[r][c]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < R; ++c) sum[r][c] += partial[r][c];
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < R; ++c) {
        const int i = ti + r * mt, j = tj + c * nt;
        if (i < m && j < n) store(i, j, sum[r][c]);
      }
  }
}

}  // namespace kanerva::cuda
