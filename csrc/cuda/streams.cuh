// Products of matrices in global memory by a block, in tiles of 64 x 64: strips of the factors come
// in by asynchronous copies while tensor cores multiply those before (3xTF32, fragments.cuh).
#pragma once

#include "fragments.cuh"

namespace kanerva::cuda {

constexpr int kStreamSide = 64;
constexpr int kStreamDepth = 32;  // numbers of a row at a time
constexpr int kStreamStages = 3;  // strips that are on their way or being multiplied
constexpr int kStreamThreads = 256;

// A factor: rows of numbers, side by side in each or, `across`, the rows side by side.
struct Source {
  Rows from;
  int rows;  // beyond them there are zeros
  bool across;
};

__host__ __device__ constexpr int stream_tiles(int n) {
  return (n + kStreamSide - 1) / kStreamSide;
}

// A product of rows of two factors over `depth` numbers, to which `scale` times what the tile was
// is added unless that is 0. If a lies across, b does too.
struct Product {
  Source a, b;
  int depth;
  float scale;
  int i0 = 0, j0 = 0;  // the first rows of a tile
};

// In a block's shared memory.
struct StreamMemory {
  static constexpr int kAlong = stride_along(kStreamDepth), kAcross = stride_across(kStreamSide);
  static constexpr int kStrip = kStreamSide * kAlong;
  static_assert(kStrip == kStreamDepth * kAcross);
  static constexpr int kTile = stride_across(kStreamSide);

  float strips[kStreamStages][2][kStrip];
  float tile[kStreamSide * kTile];  // the product, kTile apart
  Product product;                  // for registers are short
};

__device__ inline StreamMemory& stream_memory() {
  return *reinterpret_cast<StreamMemory*>(block_memory());
}

// Starts the copy of rows i0 on and numbers p0 on of x, of which there are `depth`.
__device__ inline void start_strip(const Source& x, int i0, int p0, int depth, float* to) {
  using M = StreamMemory;
  const bool across = x.across;
  const int64_t row = x.from.row;
  const float* from = x.from.data + (across ? p0 * row + i0 : i0 * row + p0);
  const int m = across ? depth - p0 : x.rows - i0, n = across ? x.rows - i0 : depth - p0;
  const int ld = across ? M::kAcross : M::kAlong;
  if (!is_aligned({from, row})) {
    const auto always = [](int) { return true; };
    start_copy_by<1>({from, row}, m, n, to, ld, across ? kStreamDepth : kStreamSide,
                     across ? kStreamSide : kStreamDepth, always);
    return;
  }
  // Sixteen or eight lanes for a row, in two halves.
  const int shift = across ? 4 : 3, half = kStreamThreads >> shift;
  const int i = block_thread() >> shift, j = (block_thread() & ((1 << shift) - 1)) * 4;
  const int given = 4 * max(0, min(4, n - j));
  from += i * row + j;
  to += i * ld + j;
  copy_async<16>(to, from, i < m ? given : 0);
  copy_async<16>(to + half * ld, from + half * row, i + half < m ? given : 0);
}

// The tile becomes that of product(), which only the first thread asks for, from (i0, j0) on. By
// kStreamThreads. What the tile was may be in use by others until the call. Leaves the block
// synchronised.
template <class Find>
__device__ inline void multiply_streams(int i0, int j0, Find product) {
  using M = StreamMemory;
  M& m = stream_memory();
  if (block_thread() == 0) {
    m.product = product();
    m.product.i0 = i0, m.product.j0 = j0;
  }
  __syncthreads();
  // A warp has 32 x 16 of the tile.
  const Product& p = m.product;
  const int warp = block_thread() >> 5, row = warp % 2 * 32, column = warp / 2 * 16;
  const bool busy = p.i0 + row < p.a.rows && p.j0 + column < p.b.rows;
  const int depth = p.depth;
  const auto start = [&](int p0, int stage) {
    if (p0 < depth) {
      start_strip(p.a, p.i0, p0, depth, m.strips[stage][0]);
      start_strip(p.b, p.j0, p0, depth, m.strips[stage][1]);
    }
    end_copies();
  };
  Tiles<2, 2> sum;
#pragma unroll 1
  for (int stage = 0; stage + 1 < kStreamStages; ++stage) start(stage * kStreamDepth, stage);
  int stage = 0;
  for (int p0 = 0; p0 < depth; p0 += kStreamDepth) {
    wait_for_copies<kStreamStages - 2>();
    __syncthreads();  // and every warp is done with the strips before
    start(p0 + (kStreamStages - 1) * kStreamDepth, stage == 0 ? kStreamStages - 1 : stage - 1);
    if (busy) {
      const int k = min(kStreamDepth, (depth - p0 + 7) / 8 * 8);
      const float *x = m.strips[stage][0], *y = m.strips[stage][1];
      if (p.a.across) {
        sum.add(Across{x, M::kAcross}, row, Across{y, M::kAcross}, column, k);
      } else if (p.b.across) {
        sum.add(Along{x, M::kAlong}, row, Across{y, M::kAcross}, column, k);
      } else {
        sum.add(Along{x, M::kAlong}, row, Along{y, M::kAlong}, column, k);
      }
    }
    stage = stage + 1 < kStreamStages ? stage + 1 : 0;
  }
  const float scale = p.scale;
  sum.each(row, column, [&](int i, int j, float x, float y) {
    float* const to = m.tile + i * M::kTile + j;
    if (scale != 0.0f) x = fmaf(scale, to[0], x), y = fmaf(scale, to[1], y);
    store_pair(to, x, y);
  });
  __syncthreads();
}

// Four numbers of a row.
struct Four {
  float x[4];
};

__device__ inline Four load_four(const float* from) {
  const auto x = *reinterpret_cast<const float4*>(from);
  return {x.x, x.y, x.z, x.w};
}

__device__ inline void store_four(float* to, const Four& x) {
  *reinterpret_cast<float4*>(to) = {x.x[0], x.x[1], x.x[2], x.x[3]};
}

// The same of row i from column j on, of which only those before `end` are there.
__device__ inline Four load_four(const Rows& x, int i, int j, int end) {
  const float* const from = x.data + i * x.row + j;
  if (is_aligned(x) && j + 4 <= end) return load_four(from);
  Four y = {};
#pragma unroll
  for (int r = 0; r < 4; ++r)
    if (j + r < end) y.x[r] = from[r];
  return y;
}

__device__ inline void store_four(float* to, int ld, int i, int j, int end, const Four& x) {
  float* const place = to + i * ld + j;
  if (is_aligned({to, ld}) && j + 4 <= end) return store_four(place, x);
#pragma unroll
  for (int r = 0; r < 4; ++r)
    if (j + r < end) place[r] = x.x[r];
}

// store(i, j, x, load(i, j)) for each four elements x of the tile that starts at (i0, j0) of rows x
// columns; loads go on side by side. Not synchronised.
template <class Load, class Store>
__device__ inline void finish_tile(int i0, int rows, int j0, int columns, Load load, Store store) {
  constexpr int kStep = kStreamThreads / (kStreamSide / 4);
  constexpr int kTogether = 1;
  const int own = block_thread() % (kStreamSide / 4) * 4, j = j0 + own;
  const float* const tile = stream_memory().tile + own;
  if (j >= columns) return;
#pragma unroll 1
  for (int first = block_thread() / (kStreamSide / 4); first < kStreamSide;
       first += kTogether * kStep) {
    decltype(load(0, 0)) x[kTogether];
#pragma unroll
    for (int q = 0; q < kTogether; ++q) {
      const int i = first + q * kStep;
      if (i0 + i < rows) x[q] = load(i0 + i, j);
    }
#pragma unroll
    for (int q = 0; q < kTogether; ++q) {
      const int i = first + q * kStep;
      if (i0 + i < rows) store(i0 + i, j, load_four(tile + i * StreamMemory::kTile), x[q]);
    }
  }
}

}  // namespace kanerva::cuda
