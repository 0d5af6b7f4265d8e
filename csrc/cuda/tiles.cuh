// Tiles of large float32 products, by the blocks of a team, in tensor cores.
//
// A factor is split into two numbers of 11 bits (tf32) and three of their four products are summed,
// which keeps the accuracy of float32 (3xTF32; Ootomo and Yokota 2022). Tensor cores truncate where
// they add: their sums are short and are added up outside.
#pragma once

#include "block.cuh"

namespace kanerva::cuda {

constexpr int kTileSide = 64;
constexpr int kTileDepth = 32;  // of k at a time
constexpr int kShortSum = 16;   // of k in tensor cores
constexpr int kTileThreads = 256;

// In a block's shared memory. Odd multiples of 4 apart, rows do not share banks.
struct TileMemory {
  float a[kTileSide][kTileDepth + 4], b[kTileSide][kTileDepth + 4];
  float c[kTileSide][kTileSide + 1];
};

// A factor seen as rows of k numbers: element (i, p) is data[i * row + p * step].
struct TileFactor {
  const float* data;
  int64_t row, step;
  int rows;
};

__device__ inline TileMemory& tile_memory() {
  return *reinterpret_cast<TileMemory*>(block_memory());
}

// Rows from i0 and numbers from p0 of x; zeros beyond its end. Neighbouring threads read what is
// contiguous.
__device__ inline void stage(const TileFactor& x, int i0, int p0, int k,
                             float (&to)[kTileSide][kTileDepth + 4]) {
  for (int e = block_thread(); e < kTileSide * kTileDepth; e += kTileThreads) {
    const int i = x.step == 1 ? e / kTileDepth : e % kTileSide;
    const int p = x.step == 1 ? e % kTileDepth : e / kTileSide;
    const bool inside = i0 + i < x.rows && p0 + p < k;
    to[i][p] = inside ? x.data[(i0 + i) * x.row + (p0 + p) * x.step] : 0.0f;
  }
}

// high + low = x up to a rounding of 2^-22
__device__ inline void split_tf32(float x, float& high, float& low) {
  high = round_to_tf32(x);
  low = round_to_tf32(x - high);
}

// tile_memory().c = rows i0 on of a times rows j0 on of b, over k, by one block of kTileThreads.
// Leaves the block synchronised.
__device__ __noinline__ inline void multiply_tile(const TileFactor a, const TileFactor b, int i0,
                                                  int j0, int k) {
  TileMemory& m = tile_memory();
  // A warp has 16 x 32 of the tile, as four products of 16 x 8; the lane's place in them:
  const int w = block_thread() >> 5, g = lane() >> 2, t = lane() & 3;
  const int row = w % 4 * 16, column = w / 4 * 32;
  const bool busy = i0 + row < a.rows && j0 + column < b.rows;
  float sum[4][4] = {};
  for (int p0 = 0; p0 < k; p0 += kTileDepth) {
    stage(a, i0, p0, k, m.a);
    stage(b, j0, p0, k, m.b);
    __syncthreads();
    for (int first = 0; busy && first < kTileDepth && p0 + first < k; first += kShortSum) {
      float part[4][4] = {};
#pragma unroll
      for (int p = first; p < first + kShortSum; p += 8) {
        float high[4], low[4];
        split_tf32(m.a[row + g][p + t], high[0], low[0]);
        split_tf32(m.a[row + g + 8][p + t], high[1], low[1]);
        split_tf32(m.a[row + g][p + t + 4], high[2], low[2]);
        split_tf32(m.a[row + g + 8][p + t + 4], high[3], low[3]);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          float b_high[2], b_low[2];
          split_tf32(m.b[column + 8 * q + g][p + t], b_high[0], b_low[0]);
          split_tf32(m.b[column + 8 * q + g][p + t + 4], b_high[1], b_low[1]);
          multiply_add_tf32(part[q], low, b_high);
          multiply_add_tf32(part[q], high, b_low);
          multiply_add_tf32(part[q], high, b_high);
        }
      }
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[q][r] += part[q][r];
    }
    __syncthreads();
  }
#pragma unroll
  for (int q = 0; q < 4; ++q)
#pragma unroll
    for (int r = 0; r < 4; ++r)
      m.c[row + g + r / 2 * 8][column + 8 * q + 2 * t + r % 2] = sum[q][r];
  __syncthreads();
}

__host__ __device__ inline int tiles_of(int n) { return (n + kTileSide - 1) / kTileSide; }

// Whether a product of m x n is shared well by the blocks in tiles.
__device__ inline bool fills_tiles(int m, int n) {
  return !alone() && block_threads() == kTileThreads && 2 * tiles_of(m) * tiles_of(n) >= blocks();
}

// store(i, j, sum over p of a(i, p) b(j, p)), tile by tile.
template <class Store>
__device__ inline void product_in_tiles(const TileFactor& a, const TileFactor& b, int k,
                                        Store store) {
  const int mt = tiles_of(a.rows), nt = tiles_of(b.rows);
  for (int tile = block_rank(); tile < mt * nt; tile += blocks()) {
    const int i0 = tile / nt * kTileSide, j0 = tile % nt * kTileSide;
    multiply_tile(a, b, i0, j0, k);
    for (int e = block_thread(); e < kTileSide * kTileSide; e += kTileThreads) {
      const int i = e / kTileSide, j = e % kTileSide;
      if (i0 + i < a.rows && j0 + j < b.rows) store(i0 + i, j0 + j, tile_memory().c[i][j]);
    }
    __syncthreads();
  }
}

}  // namespace kanerva::cuda
