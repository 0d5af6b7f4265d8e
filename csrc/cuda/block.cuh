// What the threads of a block do together: products, factorisations, sums and copies of matrices in
// shared or global memory. Nothing here synchronises at its start; functions that leave the block
// synchronised say so.
#pragma once

#ifndef KANERVA_ISA
#define KANERVA_ISA device
#endif

#include <cmath>

#include "../core/half.h"
#include "device.h"

namespace kanerva::cuda {

using KANERVA_ISA::BFloat16;
using KANERVA_ISA::Half;

constexpr double kLog2Pi = 1.8378770664093454836;
constexpr double kInfinite = 1.7976931348623157e308;

__device__ inline int thread() { return int(threadIdx.x); }
__device__ inline int threads() { return int(blockDim.x); }
__device__ inline int lane() { return int(threadIdx.x) & 31; }
__device__ inline int warp() { return int(threadIdx.x) >> 5; }
__device__ inline int warps() { return int(blockDim.x) >> 5; }

// Row-major. Scratch matrices have odd row strides: neither rows nor columns share a memory bank.
template <class T>
struct Mat {
  T* data;
  int ld;
  __device__ T& operator()(int i, int j) const { return data[int64_t(i) * ld + j]; }
};

__host__ __device__ inline int odd_stride(int64_t n) { return int(n) | 1; }

// Scratch memory of a block: shared as far as it goes, then the block's part of the workspace. The
// host runs the same requests on null pointers to learn how much is needed.
class Arena {
 public:
  __host__ __device__ Arena(char* shared, size_t shared_size, char* global)
      : shared_(shared), global_(global), shared_size_(shared_size) {}

  template <class T>
  __host__ __device__ T* take(int64_t n) {
    const size_t bytes = (size_t(n) * sizeof(T) + 15) / 16 * 16;
    if (shared_used_ + bytes <= shared_size_) {
      T* p = reinterpret_cast<T*>(shared_ + shared_used_);
      shared_used_ += bytes;
      return p;
    }
    T* p = reinterpret_cast<T*>(global_ + global_used_);
    global_used_ += bytes;
    return p;
  }
  template <class T>
  __host__ __device__ Mat<T> matrix(int64_t m, int64_t n) {
    const int ld = odd_stride(n);
    return {take<T>(m * ld), ld};
  }
  __host__ __device__ size_t shared_used() const { return shared_used_; }
  __host__ __device__ size_t global_used() const { return global_used_; }

 private:
  char *shared_, *global_;
  size_t shared_size_, shared_used_ = 0, global_used_ = 0;
};

// store(i, j, sum over p of a(i, p) b(p, j)) for i < m, j < n; TransposedA: a is k x m,
// TransposedB: b is n x k. A thread keeps a 4 x 4 tile whose rows and columns lie apart, so that
// neighbouring threads read neighbouring columns. The sum is in the order of p.
template <bool TransposedA, bool TransposedB, class T, class Store>
__device__ inline void product(int m, int n, int k, Mat<T> a, Mat<T> b, Store store) {
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
    for (int p = 0; p < k; ++p) {
      T x[R], y[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        x[r] = pa[r][p * step_a];
        y[r] = pb[r][p * step_b];
      }
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < R; ++c) sum[r][c] = fma(x[r], y[c], sum[r][c]);
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

// f(i, j) for i < m, j < n: warps over rows, lanes over columns.
template <class F>
__device__ inline void each(int m, int n, F f) {
  for (int i = warp(); i < m; i += warps())
    for (int j = lane(); j < n; j += 32) f(i, j);
}

// Sum over the block, the same in every thread and on every run. `room`: 32 elements of shared
// memory. Leaves the block synchronised.
template <class T>
__device__ inline T block_sum(T x, T* room) {
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  __syncthreads();
  if (lane() == 0) room[warp()] = x;
  __syncthreads();
  T total = 0;
  for (int w = 0; w < warps(); ++w) total += room[w];
  __syncthreads();
  return total;
}

// Sum over a warp, in every lane.
template <class T>
__device__ inline T warp_sum(T x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// s (n x n, upper part) = F F'. Row i of s becomes that of F' times the root of pivots[i], and g,
// if not null, F^-1 with zeros above its diagonal. False, in every thread, when a pivot is not
// positive and finite. Expects s to be synchronised; leaves the block synchronised.
template <class T>
__device__ __noinline__ bool factorise(int n, Mat<T> s, Mat<T> g, T* pivots) {
  const bool inverse = g.data != nullptr;
  if (inverse) each(n, n, [&](int i, int j) { g(i, j) = i == j ? T(1) : T(0); });
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    const T pivot = s(i, i);
    if (!(pivot > T(0) && double(pivot) < kInfinite)) {
      __syncthreads();
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
    __syncthreads();
  }
  if (inverse) {
    for (int i = warp(); i < n; i += warps()) {
      const T scale = T(1) / sqrt(pivots[i]);
      for (int c = lane(); c <= i; c += 32) g(i, c) *= scale;
    }
    __syncthreads();
  }
  return true;
}

// Calls f with a pointer of the view's own element type.
template <class F>
__device__ inline void with_type(const View& v, F f) {
  switch (v.dtype) {
    case Dtype::float32:
      f(static_cast<float*>(v.data));
      break;
    case Dtype::float64:
      f(static_cast<double*>(v.data));
      break;
    case Dtype::float16:
      f(static_cast<Half*>(v.data));
      break;
    case Dtype::bfloat16:
      f(static_cast<BFloat16*>(v.data));
      break;
  }
}

__device__ inline double widen(float x) { return double(x); }
__device__ inline double widen(double x) { return x; }
__device__ inline double widen(Half x) { return double(float(x)); }
__device__ inline double widen(BFloat16 x) { return double(float(x)); }

template <class D>
__device__ inline D narrow(double x) {
  return D(x);
}
template <>
__device__ inline Half narrow<Half>(double x) {
  return Half::from(float(x));
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(double x) {
  return BFloat16::from(float(x));
}

__device__ inline int64_t offset(const View& v, int64_t b, int64_t i, int64_t j) {
  return b * v.stride[0] + i * v.stride[1] + j * v.stride[2];
}

__device__ inline double scalar(const View& v, int64_t b, int64_t i = 0) {
  double x = 0.0;
  with_type(v, [&](auto* data) { x = widen(data[offset(v, b, i, 0)]); });
  return x;
}

// By one thread.
__device__ inline void store_scalar(const View& v, int64_t b, int64_t i, double x) {
  with_type(v, [&](auto* data) {
    auto& target = data[offset(v, b, i, 0)];
    target = narrow<std::remove_reference_t<decltype(target)>>(x);
  });
}

// to (m x n) = rows from i0 on and columns from j0 on of item b; zero in the rows that `kept`, if
// not null, does not keep. Not inlined, nor are the next: they would be most of the code.
template <class T>
__device__ __noinline__ void load(const View& v, int64_t b, int64_t i0, int64_t j0, int m, int n,
                                  Mat<T> to, const int* kept = nullptr) {
  with_type(v, [&](auto* data) {
    each(m, n, [&](int i, int j) {
      const bool skip = kept != nullptr && kept[i] == 0;
      to(i, j) = skip ? T(0) : T(widen(data[offset(v, b, i0 + i, j0 + j)]));
    });
  });
}

// The same for an optional view: zero where it is absent.
template <class T>
__device__ inline void load_or_zero(const View& v, int64_t b, int64_t j0, int m, int n, Mat<T> to) {
  if (v.data != nullptr) {
    load(v, b, 0, j0, m, n, to);
  } else {
    each(m, n, [&](int i, int j) { to(i, j) = T(0); });
  }
}

template <class T>
__device__ __noinline__ void store(const View& v, int64_t b, int64_t i0, int64_t j0, int m, int n,
                                   Mat<T> from) {
  with_type(v, [&](auto* data) {
    each(m, n, [&](int i, int j) {
      auto& target = data[offset(v, b, i0 + i, j0 + j)];
      target = narrow<std::remove_reference_t<decltype(target)>>(double(from(i, j)));
    });
  });
}

// Item b (rows i0 to i0 + m, columns j0 to j0 + n) of an output = x.
__device__ __noinline__ inline void fill(const View& v, int64_t b, int64_t i0, int64_t j0,
                                         int64_t m, int n, double x) {
  with_type(v, [&](auto* data) {
    for (int64_t i = warp(); i < m; i += warps())
      for (int j = lane(); j < n; j += 32) {
        auto& target = data[offset(v, b, i0 + i, j0 + j)];
        target = narrow<std::remove_reference_t<decltype(target)>>(x);
      }
  });
}

// x = (x + x') / 2. Expects x to be synchronised; leaves the block synchronised.
template <class T>
__device__ inline void symmetrise(int n, Mat<T> x) {
  each(n, n, [&](int i, int j) {
    if (j > i) x(i, j) = x(j, i) = T(0.5) * (x(i, j) + x(j, i));
  });
  __syncthreads();
}

}  // namespace kanerva::cuda
