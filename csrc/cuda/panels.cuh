// Cholesky factors and their inverses in float32 by a team, 32 pivots between two of its barriers:
// factorise() of factorise.cuh, which has a barrier for each, for matrices of many rows.
//
// For each panel of 32 rows every block factors the panel's 32 x 32 block on the diagonal, all of
// them the same; then it solves for the panel's rows that its tiles of the rest need, and subtracts
// their products. The panel's rows themselves are solved for at the end, all panels at once, since
// until then all blocks read them as they were.
//
//         panel p                      ranks 0, 1, 2 ... each have a tile of 64 x 64
//     +--+-----------+
//     |D |  S        |   D = F F'                     by every block
//     +--+---+---+---+
//        |0  |1  |2  |   tile -= (F^-1 S_rows)' (F^-1 S_columns)
//        +---+---+---+   and of the inverse's columns up to the panel likewise
//            |3  |4  |
//            +---+---+
#pragma once

#include "small_factor.cuh"

namespace kanerva::cuda {

constexpr int kPanel = kSmallChunk;
constexpr int kPanelTile = 64;

// In a block's shared memory.
struct PanelMemory {
  static constexpr int kFactor = stride_along(kPanel);

  float factor[kPanel * kFactor], reciprocal[kPanel];
  float rows[kPanel][kPanelTile], columns[kPanel][kPanelTile];
  int good;
};

__device__ inline PanelMemory& panel_memory() {
  return *reinterpret_cast<PanelMemory*>(block_memory());
}

// In global memory: the factors of all panels of a matrix of n rows, and their reciprocals.
struct PanelFactors {
  float *factor, *reciprocal;

  __host__ __device__ PanelFactors(Arena& arena, int64_t n)
      : factor(arena.take<float>((n + kPanel - 1) / kPanel * kPanel * PanelMemory::kFactor)),
        reciprocal(arena.take<float>((n + kPanel - 1) / kPanel * kPanel)) {}
};

// Factors the block on the diagonal, from row i0 on, in panel_memory(). Leaves the block
// synchronised. False, in every thread, where a pivot is not positive or far out of range.
__device__ inline bool factor_panel(int n, int i0, Mat<float> s, float* pivots,
                                    const PanelFactors& to) {
  PanelMemory& m = panel_memory();
  const int size = min(kPanel, n - i0);
  for (int e = block_thread(); e < kPanel * kPanel; e += block_threads()) {
    const int i = e / kPanel, j = e % kPanel;
    m.factor[i * m.kFactor + j] = i < size && j < size ? s(i0 + i, i0 + j) : 0.0f;
  }
  __syncthreads();
  if (block_thread() < 32) {
    float pivot = 1.0f;
    const bool good = factor_by_warp(m.factor, m.kFactor, size, m.reciprocal, pivot);
    if (lane() == 0) m.good = good;
    if (block_rank() == 0 && lane() < size) pivots[i0 + lane()] = pivot;
  }
  __syncthreads();
  if (block_rank() == 0) {
    for (int e = block_thread(); e < kPanel * kPanel; e += block_threads()) {
      const int i = e / kPanel, j = e % kPanel, at = i * m.kFactor + j;
      if (i < size && j >= i) to.factor[i0 * m.kFactor + at] = m.factor[at];
    }
    for (int i = block_thread(); i < size; i += block_threads())
      to.reciprocal[i0 + i] = m.reciprocal[i];
  }
  return m.good != 0;
}

// Rows i0 to i0 + size of x, of columns c0 on; zeros from column `end` on.
__device__ inline void load_strip(int i0, int size, Mat<float> x, int c0, int end,
                                  float (&to)[kPanel][kPanelTile]) {
  constexpr int each = kPanel * kPanelTile / kTileThreads;
  float kept[each];
#pragma unroll
  for (int e = 0; e < each; ++e) {
    const int i = (block_thread() + e * kTileThreads) / kPanelTile, j = block_thread() % kPanelTile;
    kept[e] = i < size && c0 + j < end ? x(i0 + i, c0 + j) : 0.0f;
  }
#pragma unroll
  for (int e = 0; e < each; ++e)
    to[(block_thread() + e * kTileThreads) / kPanelTile][block_thread() % kPanelTile] = kept[e];
}

__device__ inline void solve_strip(int size, float (&x)[kPanel][kPanelTile], int column) {
  const PanelMemory& m = panel_memory();
  solve_column(&x[0][column], kPanelTile, m.factor, m.kFactor, size, m.reciprocal,
               [](int, float) {});
}

// x(r, c) -= the product of columns of two strips, for rows r0 and columns c0 on, up to their ends.
__device__ inline void subtract_product(Mat<float> x, int r0, int row_end, int c0, int column_end) {
  const PanelMemory& m = panel_memory();
  const int i0 = block_thread() / 16 * 4, j0 = block_thread() % 16 * 4;
  float sum[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = r0 + i0 + i, c = c0 + j0 + j;
      sum[i][j] = r < row_end && c < column_end ? x(r, c) : 0.0f;
    }
#pragma unroll 8
  for (int p = 0; p < kPanel; ++p) {
    const auto a = *reinterpret_cast<const float4*>(&m.rows[p][i0]);
    const auto b = *reinterpret_cast<const float4*>(&m.columns[p][j0]);
    const float of_row[4] = {a.x, a.y, a.z, a.w}, of_column[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(-of_row[i], of_column[j], sum[i][j]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = r0 + i0 + i, c = c0 + j0 + j;
      if (r < row_end && c < column_end) x(r, c) = sum[i][j];
    }
}

__host__ __device__ inline int strips_of(int columns) {
  return (columns + kPanelTile - 1) / kPanelTile;
}

// What lies below the rows of a panel, tile by tile: of s from their own rows on, of g the columns
// up to the panel's. The factor of the panel is in panel_memory().
__device__ inline void subtract_panel(int n, int i0, Mat<float> s, Mat<float> g) {
  PanelMemory& m = panel_memory();
  const int size = min(kPanel, n - i0), below = i0 + size;
  const int down = strips_of(n - below), across = g.data != nullptr ? strips_of(below) : 0;
  const int of_s = down * (down + 1) / 2;
  for (int tile = block_rank(); tile < of_s + down * across; tile += blocks()) {
    int row = 0, column = 0;
    const bool is_of_s = tile < of_s;
    if (is_of_s) {
      int left = tile;
      for (; left >= down - row; ++row) left -= down - row;
      column = row + left;
    } else {
      row = (tile - of_s) / across, column = (tile - of_s) % across;
    }
    const int r0 = below + row * kPanelTile;
    const int c0 = (is_of_s ? below : 0) + column * kPanelTile, end = is_of_s ? n : below;
    const Mat<float> x = is_of_s ? s : g;
    load_strip(i0, size, s, r0, n, m.rows);
    load_strip(i0, size, x, c0, end, m.columns);
    __syncthreads();
    if (block_thread() < kPanelTile) {
      solve_strip(size, m.rows, block_thread());
    } else if (block_thread() < 2 * kPanelTile) {
      solve_strip(size, m.columns, block_thread() - kPanelTile);
    }
    __syncthreads();
    subtract_product(x, r0, n, c0, end);
    __syncthreads();
  }
}

// The rows of all panels: of s, or of g if it is not null. A strip of them each.
__device__ inline void solve_panels(int n, Mat<float> s, Mat<float> g, const PanelFactors& from) {
  PanelMemory& m = panel_memory();
  const bool inverse = g.data != nullptr;
  const Mat<float> x = inverse ? g : s;
  const int across = strips_of(n), panels = (n + kPanel - 1) / kPanel;
  for (int strip = block_rank(); strip < panels * across; strip += blocks()) {
    const int i0 = strip / across * kPanel, c0 = strip % across * kPanelTile;
    const int size = min(kPanel, n - i0);
    // Nothing on the other side of the diagonal.
    const int first = inverse ? 0 : i0, end = inverse ? i0 + size : n;
    if (c0 < end && c0 + kPanelTile > first) {
      for (int e = block_thread(); e < kPanel * m.kFactor; e += block_threads())
        m.factor[e] =
            e / m.kFactor < size && e % m.kFactor < kPanel && e % m.kFactor >= e / m.kFactor
                ? from.factor[i0 * m.kFactor + e]
                : 0.0f;
      for (int i = block_thread(); i < size; i += block_threads())
        m.reciprocal[i] = from.reciprocal[i0 + i];
      load_strip(i0, size, x, c0, end, m.columns);
      __syncthreads();
      if (block_thread() < kPanelTile) solve_strip(size, m.columns, block_thread());
      __syncthreads();
    }
    for (int e = block_thread(); e < size * kPanelTile; e += block_threads()) {
      const int i = i0 + e / kPanelTile, j = c0 + e % kPanelTile;
      const bool inside = inverse ? j <= i : j >= i;
      if (j < n) x(i, j) = inside ? m.columns[e / kPanelTile][e % kPanelTile] : 0.0f;
    }
    __syncthreads();
  }
}

// s (n x n, upper part) = F F'. Where g is null s becomes F', with zeros below its diagonal; else g
// becomes F^-1, with zeros above its, and s is lost. pivots become the squares of the diagonal of
// F. False, in every thread, when one is not positive or far out of range. Expects s to be
// synchronised, blocks of kTileThreads and room for a PanelMemory; leaves the team synchronised.
__device__ __noinline__ inline bool factorise_panels(int n, Mat<float> s, Mat<float> g,
                                                     float* pivots, const PanelFactors& factors) {
  if (g.data != nullptr) each(n, n, [&](int i, int j) { g(i, j) = i == j ? 1.0f : 0.0f; });
  sync();
  for (int i0 = 0; i0 < n; i0 += kPanel) {
    const bool good = factor_panel(n, i0, s, pivots, factors);
    if (good) subtract_panel(n, i0, s, g);
    sync();
    if (!good) return false;
  }
  solve_panels(n, s, g, factors);
  sync();
  return true;
}

}  // namespace kanerva::cuda
