// Cholesky factors and their inverses by elimination, by a team.
#pragma once

#include "product.cuh"

namespace kanerva::cuda {

// s (n x n, upper part) = F F'. Row i of s becomes that of F' times the root of pivots[i], and g,
// if not null, F^-1 with zeros above its diagonal. False, in every thread, when a pivot is not
// positive and finite. Expects s to be synchronised; leaves the team synchronised.
template <class T>
__device__ __noinline__ bool factorise(int n, Mat<T> s, Mat<T> g, T* pivots) {
  const bool inverse = g.data != nullptr;
  if (inverse) each(n, n, [&](int i, int j) { g(i, j) = i == j ? T(1) : T(0); });
  sync();
  for (int i = 0; i < n; ++i) {
    const T pivot = s(i, i);
    if (!(pivot > T(0) && double(pivot) < kInfinite)) {
      sync();
      return false;
    }
    if (thread() == 0) pivots[i] = pivot;
    const T reciprocal = T(1) / pivot;
    for (int r = i + 1 + warp(); r < n; r += warps()) {
      const T factor = s(i, r) * reciprocal;
      for (int c = r + lane(); c < n; c += 32) s(r, c) -= factor * s(i, c);
      if (inverse)
        for (int c = lane(); c <= i; c += 32) g(r, c) -= factor * g(i, c);
    }
    sync();
  }
  if (inverse) {
    for (int i = warp(); i < n; i += warps()) {
      const T scale = T(1) / sqrt(pivots[i]);
      for (int c = lane(); c <= i; c += 32) g(i, c) *= scale;
    }
    sync();
  }
  return true;
}

// A lower estimate of the condition of s = F F', from its pivots: the same in every thread.
template <class T>
__device__ inline double pivot_condition(int n, const T* pivots) {
  double low = kInfinite, high = 0.0;
  for (int i = lane(); i < n; i += 32) {
    low = fmin(low, double(pivots[i]));
    high = fmax(high, double(pivots[i]));
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    low = fmin(low, __shfl_xor_sync(0xffffffffu, low, distance));
    high = fmax(high, __shfl_xor_sync(0xffffffffu, high, distance));
  }
  return n > 0 ? high / low : 1.0;
}

}  // namespace kanerva::cuda
