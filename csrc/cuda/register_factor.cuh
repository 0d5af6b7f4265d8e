// Cholesky factors, or their inverses, of matrices that a block of 256 threads holds in registers:
// a barrier for each pivot, and no other trip to memory but for its row.
#pragma once

#include "block.cuh"

namespace kanerva::cuda {

constexpr int kFactorThreads = 256;
constexpr int kFactorSide = 16;            // of the threads, in a square
constexpr int kMostInRegisters = 8 * 16;  // rows of a matrix

// Numbers of shared memory that it takes: two rows, and their pivots.
__host__ __device__ inline int room_of_factor(int n) {
  return 2 * ((n + kFactorSide - 1) / kFactorSide * kFactorSide + 1);
}

// s (n x n, upper part) = F F', n <= 16 kTiles. to = F' with zeros below its diagonal or, kInverse,
// F^-1 with zeros above; it may be s. False, in every thread, when a pivot is not positive and
// finite. A thread has every 16th row and column. Below the diagonal are the rows of the inverse
// as they come to be, each divided by its pivot's root at the end. Expects s to be synchronised;
// leaves the block so.
template <int kTiles, bool kInverse>
__device__ inline bool factorise_tiles(int n, Mat<double> s, Mat<double> to, double* room) {
  constexpr int side = kFactorSide;
  const int ti = block_thread() / side, tj = block_thread() % side;
  const int stride = room_of_factor(n) / 2;
  double x[kTiles][kTiles], pivots[kTiles];
#pragma unroll
  for (int a = 0; a < kTiles; ++a)
#pragma unroll
    for (int b = 0; b < kTiles; ++b) {
      const int r = ti + side * a, c = tj + side * b;
      x[a][b] = c >= r && c < n ? s(r, c) : 0.0;
    }
#pragma unroll
  for (int o = 0; o < kTiles; ++o) {
    pivots[o] = 1.0;
    for (int d = 0; d < side && side * o + d < n; ++d) {
      const int i = side * o + d;
      double* const row = room + i % 2 * stride;
      if (ti == d) {
#pragma unroll
        for (int b = 0; b < kTiles; ++b) {
          const int c = tj + side * b;
          if (c < stride - 1) row[c] = c == i ? 1.0 : x[o][b];
          if (c == i) row[stride - 1] = x[o][b];
        }
      }
      __syncthreads();
      const double pivot = row[stride - 1];
      if (!(pivot > 0.0 && pivot < kInfinite)) {
        __syncthreads();
        return false;
      }
      if (ti == d) pivots[o] = pivot;
      const double reciprocal = 1.0 / pivot;
      double w[kTiles];
#pragma unroll
      for (int b = 0; b < kTiles; ++b) w[b] = tj + side * b < n ? row[tj + side * b] : 0.0;
#pragma unroll
      for (int a = o; a < kTiles; ++a) {
        const int r = ti + side * a;
        if (r <= i || r >= n) continue;
        const double factor = row[r] * reciprocal;
#pragma unroll
        for (int b = 0; b < kTiles; ++b) {
          const int c = tj + side * b;
          if (c >= r || (kInverse && c <= i)) x[a][b] -= factor * w[b];
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < kTiles; ++a) {
    const int r = ti + side * a;
    if (r >= n) continue;
    const double scale = 1.0 / sqrt(pivots[a]);
#pragma unroll
    for (int b = 0; b < kTiles; ++b) {
      const int c = tj + side * b;
      if (c >= n) continue;
      const double own = c == r && kInverse ? 1.0 : x[a][b];
      to(r, c) = (kInverse ? c <= r : c >= r) ? own * scale : 0.0;
    }
  }
  __syncthreads();
  return true;
}

// The same for any n up to kMostInRegisters.
template <bool kInverse>
__device__ __noinline__ bool factorise_in_registers(int n, Mat<double> s, Mat<double> to,
                                                    double* room) {
  if (n <= 2 * kFactorSide) return factorise_tiles<2, kInverse>(n, s, to, room);
  if (n <= 4 * kFactorSide) return factorise_tiles<4, kInverse>(n, s, to, room);
  return factorise_tiles<8, kInverse>(n, s, to, room);
}

}  // namespace kanerva::cuda
