// What a warp does with matrices in shared memory: products of small tiles in tensor cores, kept in
// registers, and copies from global memory that go on while it computes.
//
// The 3xTF32 product of tiles.cuh. A lane reads its elements straight from shared memory: rows that
// lie 4 modulo 8 numbers apart are read along k, and rows that lie 8 modulo 16 apart across it,
// without two lanes of a warp in one bank.
#pragma once

#include "tiles.cuh"

namespace kanerva::cuda {

constexpr int kMostSmallSlots = 64;  // of memories that fit this way

// The least row stride of at least n numbers for each of these ways to be read.
__host__ __device__ constexpr int stride_along(int n) { return (n + 7) / 8 * 8 + 4; }
__host__ __device__ constexpr int stride_across(int n) {
  return (n + 7) / 8 * 8 + ((n + 7) / 8 % 2 == 0 ? 8 : 0);
}

// Where two numbers of a product go.
__device__ inline void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = {x, y};
}

// A factor: element (i, p) is data[i * ld + p] or, of its transpose, data[p * ld + i].
template <bool kTransposed>
struct Factor {
  const float* data;
  int ld;
  __device__ float operator()(int i, int p) const {
    return kTransposed ? data[p * ld + i] : data[i * ld + p];
  }
};

// high + low = x up to 2^-22, of three operations in float32 (Dekker 1971) where cvt.rna takes four
// instructions for a number: 8193 x rounded, less 8192 x, is x with 11 bits, which high has, and
// low has 13 at most, of which tensor cores drop the last two. Above 4e34 it becomes NaN.
__device__ inline void split(float x, float& high, float& low) {
  high = fmaf(-8192.0f, x, __fmul_rn(8193.0f, x));
  low = x - high;
}

using Along = Factor<false>;
using Across = Factor<true>;

// Whether what a warp multiplies or copies next is got ready as far as registers go: for other
// architectures ptxas goes further, and spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr bool kLoadsAhead = true;
#else
constexpr bool kLoadsAhead = false;
#endif

// 16 M rows and 8 N columns of a product, over the lanes of a warp.
template <int M, int N>
struct Tiles {
  static constexpr bool kIsAlone = kLoadsAhead && M * N == 1;
  float sum[M][N][4] = {};

  // Adds rows i0 on of a times rows j0 on of b, over k numbers, a multiple of 8. Of b only the
  // first `columns` tiles are read.
  template <bool kTransposedA, bool kTransposedB>
  __device__ void add(Factor<kTransposedA> a, int i0, Factor<kTransposedB> b, int j0, int k,
                      int columns = N) {
    // Of the lane: its element of each factor's first tile, from which others lie as far as the
    // compiler knows or a few pointers say.
    const int g = lane() >> 2, t = lane() & 3;
    a.data += kTransposedA ? t * a.ld + i0 + g : (i0 + g) * a.ld + t;
    b.data += kTransposedB ? t * b.ld + j0 + g : (j0 + g) * b.ld + t;
    if constexpr (kLoadsAhead) {
#pragma unroll 1
      for (; k >= kShortSum; k -= kShortSum) {
        if (N == 1 || columns >= N) {  // the same in all lanes
          add_short<kShortSum, true>(a, b, N);
        } else {
          add_short<kShortSum, false>(a, b, columns);
        }
        a.data += kShortSum * (kTransposedA ? a.ld : 1);
        b.data += kShortSum * (kTransposedB ? b.ld : 1);
      }
      if (k > 0) add_short<8, false>(a, b, columns);
    } else {
      asm volatile("" : "+r"(k));  // so that it does not know how many: it would load them all
#pragma unroll 1
      for (; k > 0; k -= kShortSum) {
        add_short<kShortSum, false>(a, b, columns, k);
        a.data += kShortSum * (kTransposedA ? a.ld : 1);
        b.data += kShortSum * (kTransposedB ? b.ld : 1);
      }
    }
  }

  // Over kDepth numbers or the k that are left, from where the lane's are; all tiles of b if they
  // are whole.
  template <int kDepth, bool kWhole, bool kTransposedA, bool kTransposedB>
  __device__ void add_short(const Factor<kTransposedA>& a, const Factor<kTransposedB>& b,
                            int columns, int k = kDepth) {
    float part[M][N][4] = {}, rest[M][N][4] = {};
#pragma unroll
    for (int q = 0; q < kDepth; q += 8) {
      if (q >= k) continue;  // the same in all lanes, as is the next
      float high[M][4], low[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          split(a(16 * m + r % 2 * 8, q + r / 2 * 4), high[m][r], low[m][r]);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (!kWhole && n >= columns) continue;
        float b_high[2], b_low[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) split(b(8 * n, q + r * 4), b_high[r], b_low[r]);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          // A product waits for the one before with the same sum: of one tile there are two.
          float (&small)[4] = kIsAlone ? rest[m][n] : part[m][n];
          multiply_add_tf32(small, low[m], b_high);
          multiply_add_tf32(small, high[m], b_low);
          multiply_add_tf32(part[m][n], high[m], b_high);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          sum[m][n][r] += kIsAlone ? part[m][n][r] + rest[m][n][r] : part[m][n][r];
  }

  // f(i, j, x, y) for the elements (i, j) and (i, j + 1), by the lane that has them.
  template <class F>
  __device__ void each(int i0, int j0, F f, int columns = N) const {
    const int g = lane() >> 2, t = lane() & 3;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (n >= columns) continue;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          f(i0 + 16 * m + g + 8 * r, j0 + 8 * n + 2 * t, sum[m][n][2 * r], sum[m][n][2 * r + 1]);
      }
  }
};

// f(i, j, x, y) for the elements (i, j) and (i, j + 1) of rows of a times rows of b, of which there
// are 8 for each of `tiles`, over `depth` numbers; 16 M rows and N tiles at a time, by the block's
// warps from `begin` on.
template <int M, int N, bool kTransposedA, bool kTransposedB, class F>
__device__ inline void multiply(Factor<kTransposedA> a, Factor<kTransposedB> b, int rows, int tiles,
                                int depth, F f, int begin = 0) {
  const int warp = (block_thread() >> 5) - begin, warps = (block_threads() >> 5) - begin;
  if (warp < 0) return;
  const int down = rows / (16 * M), across = (tiles + N - 1) / N;
  for (int item = warp; item < down * across; item += warps) {
    const int i0 = item % down * 16 * M, tile = item / down * N, left = tiles - tile;
    Tiles<M, N> sum;
    sum.add(a, i0, b, 8 * tile, depth, left);
    sum.each(i0, 8 * tile, f, left);
  }
}

// A float32 matrix in global memory whose columns lie side by side.
struct Rows {
  const float* data;
  int64_t row;
};

// Whether all of these that are there are such matrices.
template <class... Views>
bool are_float32_by_rows(const Views&... views) {
  return (... && (!views || (views.dtype == Dtype::float32 && views.stride[2] == 1)));
}

__device__ inline Rows rows_of(const View& v, int64_t b, int64_t i0, int64_t j0) {
  return {static_cast<const float*>(v.data) + b * v.stride[0] + i0 * v.stride[1] + j0, v.stride[1]};
}

__device__ inline bool is_aligned(const Rows& x) {
  return (reinterpret_cast<uintptr_t>(x.data) & 15) == 0 && (x.row & 3) == 0;
}

// Starts the copy of m x n numbers to shared memory, kStep at a time, by all threads of a block;
// the matrix there is padded with zeros to all_m x all_n, and so are the rows that kept(i) does not
// keep.
template <int kStep, class Kept>
__device__ inline void start_copy_by(const Rows& x, int m, int n, float* to, int ld, int all_m,
                                     int all_n, Kept kept) {
  // A row by 8, 16 or 32 lanes: by shifts, since divisions took longer than the copies.
  const int shift = all_n > 16 * kStep ? 5 : all_n > 8 * kStep ? 4 : 3;
  const int column = (block_thread() & ((1 << shift) - 1)) * kStep;
  const int first = block_thread() >> shift, rows = block_threads() >> shift;
  if constexpr (kLoadsAhead) {
    const int64_t next = rows * x.row;
    for (int j = column; j < all_n; j += kStep << shift) {
      const float* from = x.data + first * x.row + j;
      float* place = to + first * ld + j;
      const int given = 4 * max(0, min(kStep, n - j));
      for (int i = first; i < all_m; i += rows, from += next, place += rows * ld)
        copy_async<4 * kStep>(place, from, i < m && kept(i) ? given : 0);
    }
  } else {
    for (int i = first; i < all_m; i += rows) {
      const int count = i < m && kept(i) ? n : 0;
      for (int j = column; j < all_n; j += kStep << shift)
        copy_async<4 * kStep>(to + i * ld + j, x.data + i * x.row + j,
                              4 * max(0, min(kStep, count - j)));
    }
  }
}

// The same by 16 bytes where they are aligned. all_n and ld are multiples of 4.
template <class Kept>
__device__ inline void start_copy(const Rows& x, int m, int n, float* to, int ld, int all_m,
                                  int all_n, Kept kept) {
  if (is_aligned(x)) {
    start_copy_by<4>(x, m, n, to, ld, all_m, all_n, kept);
  } else {
    start_copy_by<1>(x, m, n, to, ld, all_m, all_n, kept);
  }
}

// x = (x + x') / 2 for kSize x kSize numbers of shared memory, ld apart, by all threads of a block.
// Not synchronised.
template <int kSize>
__device__ inline void symmetrise_square(float* x, int ld) {
  // Tiles of 4 x 8 by a warp, so that what lies below the diagonal is in as many banks; of the
  // strips of tiles the first and the last have together as many above the diagonal as any two.
  constexpr int kAcross = kSize / 8, kPairs = kSize / 8, kTiles = kPairs * (kAcross + 1);
  constexpr int kTogether = kSize > 32 ? 3 : 5;  // whose loads go on side by side
  const int warps = block_threads() >> 5;
  for (int first = block_thread() >> 5; first < kTiles; first += kTogether * warps) {
    int upper[kTogether], lower[kTogether];
    float above[kTogether], below[kTogether];
#pragma unroll
    for (int q = 0; q < kTogether; ++q) {
      const int tile = first + q * warps, pair = tile % kPairs, place = tile / kPairs;
      const int in_first = kAcross - pair / 2;
      const int strip = place < in_first ? pair : 2 * kPairs - 1 - pair;
      const int across = strip / 2 + (place < in_first ? place : place - in_first);
      const int i = 4 * strip + (lane() >> 3), j = 8 * across + (lane() & 7);
      const bool counts = tile < kTiles && j > i;
      upper[q] = counts ? i * ld + j : 0, lower[q] = counts ? j * ld + i : 0;
      above[q] = x[upper[q]], below[q] = x[lower[q]];
    }
#pragma unroll
    for (int q = 0; q < kTogether; ++q)
      if (upper[q] != lower[q] && above[q] != below[q])
        x[upper[q]] = x[lower[q]] = 0.5f * (above[q] + below[q]);
  }
}

// m x n numbers of shared memory, ld apart, to global memory, by all threads of a block; by 16
// bytes where these are aligned there, as `from` and ld are. Calls f with each number.
template <class F>
__device__ inline void store_rows(float* to, int64_t row, int m, int n, const float* from, int ld,
                                  F f) {
  if (n % 4 != 0 || !is_aligned({to, row})) {
    for (int i = block_thread() >> 5; i < m; i += block_threads() >> 5)
      for (int j = lane(); j < n; j += 32) {
        const float x = from[i * ld + j];
        f(x);
        to[i * row + j] = x;
      }
    return;
  }
  const int shift = n > 64 ? 5 : n > 32 ? 4 : 3;  // as start_copy_by
  const int column = (block_thread() & ((1 << shift) - 1)) * 4;
  const int first = block_thread() >> shift, rows = block_threads() >> shift;
  for (int j = column; j < n; j += 4 << shift) {
    float* place = to + first * row + j;
    const float* own = from + first * ld + j;
    for (int i = first; i < m; i += rows, place += rows * row, own += rows * ld) {
      const auto x = *reinterpret_cast<const float4*>(own);
      f(x.x), f(x.y), f(x.z), f(x.w);
      *reinterpret_cast<float4*>(place) = x;
    }
  }
}

}  // namespace kanerva::cuda
