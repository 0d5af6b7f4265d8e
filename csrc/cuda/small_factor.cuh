// Cholesky factors of 32 x 32 matrices in shared memory by one warp, and solves with them.
#pragma once

#include "fragments.cuh"

namespace kanerva::cuda {

constexpr int kSmallChunk = 32;  // rows of a matrix, a lane each

// S = F F', of which the first `size` rows count, becomes F': row t has F(t, t) on, of which the
// first is left as a pivot. A lane has a column. Gives 1 / F(t, t) and the lane's pivot F(t, t)^2.
// False, in every lane, where a pivot is not positive or far out of range.
__device__ inline bool factor_by_warp(float* S, int ld, int size, float* reciprocal, float& pivot) {
  constexpr unsigned all = 0xffffffffu;
  const int j = lane();
  float s[kSmallChunk];
#pragma unroll
  for (int i = 0; i < kSmallChunk; ++i) s[i] = S[i * ld + j];
  bool good = true;
#pragma unroll
  for (int t = 0; t < kSmallChunk; ++t) {
    if (t >= size) continue;  // the same in all lanes
    const float d = __shfl_sync(all, s[t], t);
    good = good && d > 1e-30f && d < 1e30f;
    const float multiplier = s[t] * approximate_reciprocal(d);
#pragma unroll
    for (int i = t + 1; i < kSmallChunk; ++i)
      s[i] = fmaf(-multiplier, __shfl_sync(all, s[t], i), s[i]);
    const float scale = approximate_rsqrt(d);
    S[t * ld + j] = s[t] * scale;
    if (j == t) {
      reciprocal[t] = scale;
      pivot = d;
    }
  }
  return good;
}

// Solves F x = x for F' as factor_by_warp leaves it, by one lane; calls f(t, x_t), which may change
// it, and stores x_t in row t of `column`.
template <class F>
__device__ inline void solve_loaded(float (&x)[kSmallChunk], float* column, int ld,
                                    const float* factor, int factor_ld, int size,
                                    const float* reciprocal, F f) {
#pragma unroll
  for (int t = 0; t < kSmallChunk; ++t, column += ld) {
    if (t >= size) continue;
    x[t] *= reciprocal[t];
    f(t, x[t]);
    const float minus = -x[t];
#pragma unroll
    for (int q = (t + 1) / 4; q < kSmallChunk / 4; ++q) {
      const auto row = *reinterpret_cast<const float4*>(factor + t * factor_ld + 4 * q);
      const float four[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (4 * q + r > t) x[4 * q + r] = fmaf(four[r], minus, x[4 * q + r]);
    }
    *column = x[t];
  }
}

// The same of a column, in its place.
template <class F>
__device__ inline void solve_column(float* column, int ld, const float* factor, int factor_ld,
                                    int size, const float* reciprocal, F f) {
  float x[kSmallChunk];
  const float* from = column;
#pragma unroll
  for (int t = 0; t < kSmallChunk; ++t, from += ld) x[t] = *from;
  solve_loaded(x, column, ld, factor, factor_ld, size, reciprocal, f);
}

// f(i, x'M x) for 16 rows x of a from i0 on, by one warp; M is symmetric, kSlots x kSlots, of which
// a product has so many tiles of columns together.
template <int kSlots, int kTogether = 1, class F>
__device__ inline void quadratic_forms(Along a, int i0, Along M, F f) {
  float upper = 0.0f, lower = 0.0f;  // of the lane's rows
  for (int j0 = 0; j0 < kSlots; j0 += 8 * kTogether) {
    Tiles<1, kTogether> sum;
    sum.add(a, i0, M, j0, kSlots);
    sum.each(i0, j0, [&](int i, int j, float x, float y) {
      const float share = fmaf(a(i, j), x, a(i, j + 1) * y);
      (i < i0 + 8 ? upper : lower) += share;
    });
  }
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    upper += __shfl_xor_sync(0xffffffffu, upper, distance);
    lower += __shfl_xor_sync(0xffffffffu, lower, distance);
  }
  if ((lane() & 3) != 0) return;
  f(i0 + (lane() >> 2), upper);
  f(i0 + 8 + (lane() >> 2), lower);
}

// Sum over the block of its threads' x, in every thread.
__device__ inline double block_sum(double x) {
  x = warp_sum(x);
  double* sums = head().sums;
  if (lane() == 0) sums[block_thread() >> 5] = x;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < block_threads() >> 5; ++w) total += sums[w];
  return total;
}

}  // namespace kanerva::cuda
