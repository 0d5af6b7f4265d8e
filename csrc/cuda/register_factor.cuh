// Cholesky factors, or their inverses, of matrices that a block of 256 threads holds in registers:
// a barrier for each pivot, and no other trip to memory but for its row.
#pragma once

#include "block.cuh"

namespace kanerva::cuda {

constexpr int kFactorThreads = 256;
constexpr int kFactorSide = 16;           // of the threads, in a square
constexpr int kMostInRegisters = 8 * 16;  // rows of a matrix

// A matrix of n rows is held as so many times so many squares of threads.
__host__ __device__ inline int tiles_of_factor(int n) {
  return n <= 2 * kFactorSide ? 2 : n <= 4 * kFactorSide ? 4 : 8;
}
// Numbers of shared memory that it takes: two rows, and their pivots.
__host__ __device__ inline int room_of_factor(int n) {
  return 2 * (tiles_of_factor(n) * kFactorSide + 1);
}

// s (n x n, upper part) = F F', n <= 16 kTiles. to = F' with zeros below its diagonal or, kInverse,
// F^-1 with zeros above; it may be s. False, in every thread, when a pivot is not positive and
// finite. A thread has every 16th row and column. Columns that are done become those of the
// inverse, whose rows are divided by the roots of the pivots at the end; nothing is left out where
// a factor of zero does the same. Expects s to be synchronised; leaves the block so.
template <int kTiles, bool kInverse>
__device__ inline bool factorise_tiles(int n, Mat<double> s, Mat<double> to, double* room) {
  constexpr int side = kFactorSide;
  const int ti = block_thread() / side, tj = block_thread() % side;
  constexpr int padded = kTiles * side;
  double* const by_rows = room + ti;
  double* const by_columns = room + tj;
  bool ok = true;
  double x[kTiles][kTiles], reciprocals[kTiles];
#pragma unroll
  for (int a = 0; a < kTiles; ++a)
#pragma unroll
    for (int b = 0; b < kTiles; ++b) {
      const int r = ti + side * a, c = tj + side * b;
      x[a][b] = r < n && c < n ? s(min(r, c), max(r, c)) : 0.0;
    }
#pragma unroll
  for (int o = 0; o < kTiles; ++o) {
    reciprocals[o] = 1.0;
    const int last = n - side * o < side ? n - side * o : side;
    for (int d = 0; d < last; ++d) {
      const int at = (d & 1) * (padded + 1);  // an even number of pivots came before
      if (ti == d) {
#pragma unroll
        for (int b = 0; b < kTiles; ++b) by_columns[at + side * b] = x[o][b];
        if (tj == d) {
          room[at + padded] = 1.0 / x[o][o];
          if (kInverse) by_columns[at + side * o] = 1.0;
        }
      }
      __syncthreads();
      const double reciprocal = room[at + padded];
      double w[kTiles], factors[kTiles];
#pragma unroll
      for (int b = 0; b < kTiles; ++b) w[b] = by_columns[at + side * b];
#pragma unroll
      for (int a = o; a < kTiles; ++a) factors[a] = by_rows[at + side * a];
      ok = ok && reciprocal > 0.0 && reciprocal < kInfinite;
      reciprocals[o] = ti == d ? reciprocal : reciprocals[o];
#pragma unroll
      for (int a = o; a < kTiles; ++a) {
        const bool is_below = a > o || ti > d;
        const double factor = is_below ? -factors[a] * reciprocal : 0.0;
#pragma unroll
        for (int b = 0; b < kTiles; ++b) x[a][b] = fma(factor, w[b], x[a][b]);
        if (kInverse) x[a][o] = tj == d && is_below ? factor : x[a][o];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < kTiles; ++a) {
    const int r = ti + side * a;
    const double scale = sqrt(reciprocals[a]);
#pragma unroll
    for (int b = 0; b < kTiles; ++b) {
      const int c = tj + side * b;
      const double own = c == r && kInverse ? 1.0 : x[a][b];
      if (r < n && c < n) to(r, c) = (kInverse ? c <= r : c >= r) ? own * scale : 0.0;
    }
  }
  __syncthreads();
  return ok;
}

// The same for any n up to kMostInRegisters.
template <bool kInverse>
__device__ __noinline__ bool factorise_in_registers(int n, Mat<double> s, Mat<double> to,
                                                    double* room) {
  const int tiles = tiles_of_factor(n);
  if (tiles == 2) return factorise_tiles<2, kInverse>(n, s, to, room);
  if (tiles == 4) return factorise_tiles<4, kInverse>(n, s, to, room);
  return factorise_tiles<8, kInverse>(n, s, to, room);
}

}  // namespace kanerva::cuda
