// What the threads of a team do together: factorisations and copies of matrices in shared or global
// memory. Nothing here synchronises at its start; functions that leave the team synchronised say
// so.
#pragma once

#ifndef KANERVA_ISA
#define KANERVA_ISA device
#endif

#include <cmath>

#include "../common/policy.h"
#include "team.cuh"

namespace kanerva::cuda {

using KANERVA_ISA::BFloat16;
using KANERVA_ISA::cholesky_limit;
using KANERVA_ISA::Half;
using KANERVA_ISA::information_limit;
using KANERVA_ISA::information_serves;
using KANERVA_ISA::is_small;
using KANERVA_ISA::rounding_of;

constexpr double kInfinite = 1.7976931348623157e308;

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

// f(i, j) for i < m, j < n: warps over rows, lanes over columns.
template <class F>
__device__ inline void each(int m, int n, F f) {
  for (int i = warp(); i < m; i += warps())
    for (int j = lane(); j < n; j += 32) f(i, j);
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

// to (n x n) = the symmetric part of item b. The last digit of one that was computed elsewhere may
// differ across the diagonal, and writes that shrink the rest would not shrink that.
template <class T>
__device__ __noinline__ void load_covariance(const View& v, int64_t b, int n, Mat<T> to) {
  with_type(v, [&](auto* data) {
    for (int i = warp(); i < n; i += warps())
      for (int j = i + lane(); j < n; j += 32) {
        const T upper = T(widen(data[offset(v, b, i, j)]));
        const T lower = T(widen(data[offset(v, b, j, i)]));
        to(i, j) = to(j, i) = T(0.5) * (upper + lower);
      }
  });
}

// As load() for an optional view: zero where it is absent.
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

// x = (x + x') / 2. Expects x to be synchronised; leaves the team synchronised.
template <class T>
__device__ inline void symmetrise(int n, Mat<T> x) {
  each(n, n, [&](int i, int j) {
    if (j > i) x(i, j) = x(j, i) = T(0.5) * (x(i, j) + x(j, i));
  });
  sync();
}

}  // namespace kanerva::cuda
