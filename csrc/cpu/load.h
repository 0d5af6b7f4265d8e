// Between tensors of any dtype and stride and padded scratch matrices.
#pragma once

#include <type_traits>

#include "../common/arguments.h"
#include "../common/half.h"
#include "simd.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class T>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::float32;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::float64;
};

// Calls f with a pointer of the view's own element type.
template <class F>
inline void with_type(const View& v, F&& f) {
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

template <class D>
inline D narrow(double x) {
  return D(x);
}
template <>
inline Half narrow<Half>(double x) {
  return Half::from(float(x));
}
template <>
inline BFloat16 narrow<BFloat16>(double x) {
  return BFloat16::from(float(x));
}

// Rows of a chunk: row i of the chunk is row (index ? index[i] : i) of the tensor.
struct Rows {
  const int64_t* index = nullptr;
  int64_t first = 0;
  int64_t operator[](int64_t i) const { return index ? index[first + i] : first + i; }
};

// dst (m x n, padding zero) = rows of view v, columns from c0.
template <class D>
void load(const View& v, int64_t b, Rows rows, int64_t m, int64_t c0, int64_t n, D* dst,
          int64_t ldd) {
  const int64_t pad = padded<D>(n) < ldd ? padded<D>(n) : ldd;
  with_type(v, [&](auto* base) {
    using S = std::remove_pointer_t<decltype(base)>;
    for (int64_t i = 0; i < m; ++i) {
      const S* src = base + b * v.stride[0] + rows[i] * v.stride[1] + c0 * v.stride[2];
      D* row = dst + i * ldd;
      int64_t done = n;
      if (v.stride[2] == 1) {
        if constexpr (std::is_same_v<S, D>) {
          using V = Simd<D>;
          int64_t j = 0;
          for (; j + V::width <= n; j += V::width) V::store(row + j, V::load(src + j));
          if (j < n) V::store(row + j, V::load_first(src + j, n - j));
          done = pad;
        } else if constexpr (std::is_same_v<S, double> || std::is_same_v<S, float>) {
          for (int64_t j = 0; j < n; ++j) row[j] = D(src[j]);
        } else {
          for (int64_t j = 0; j < n; ++j) row[j] = D(float(src[j]));
        }
      } else {
        for (int64_t j = 0; j < n; ++j) row[j] = D(src[j * v.stride[2]]);
      }
      for (int64_t j = done; j < pad; ++j) row[j] = D(0);
    }
  });
}

// Rows of view v, columns from c0 = src (m x n).
template <class S>
void store(const View& v, int64_t b, Rows rows, int64_t m, int64_t c0, int64_t n, const S* src,
           int64_t lds) {
  with_type(v, [&](auto* base) {
    using D = std::remove_pointer_t<decltype(base)>;
    for (int64_t i = 0; i < m; ++i) {
      D* dst = base + b * v.stride[0] + rows[i] * v.stride[1] + c0 * v.stride[2];
      const S* row = src + i * lds;
      if constexpr (std::is_same_v<S, D>) {
        using V = Simd<D>;
        int64_t j = 0;
        for (; j + V::width <= n; j += V::width) V::store(dst + j, V::load(row + j));
        if (j < n) V::store_first(dst + j, n - j, V::load(row + j));
      } else {
        for (int64_t j = 0; j < n; ++j) dst[j] = narrow<D>(row[j]);
      }
    }
  });
}

template <class D>
inline D load_scalar(const View& v, int64_t b, int64_t i = 0) {
  D x = 0;
  with_type(v, [&](auto* base) { x = D(base[b * v.stride[0] + i * v.stride[1]]); });
  return x;
}

inline void store_scalar(const View& v, int64_t b, int64_t i, double x) {
  with_type(v, [&](auto* base) {
    base[b * v.stride[0] + i * v.stride[1]] = narrow<std::remove_pointer_t<decltype(base)>>(x);
  });
}

// Fill item b (m x n) of an output with x.
inline void fill(const View& v, int64_t b, int64_t m, int64_t n, double x) {
  with_type(v, [&](auto* base) {
    using D = std::remove_pointer_t<decltype(base)>;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        base[b * v.stride[0] + i * v.stride[1] + j * v.stride[2]] = narrow<D>(x);
  });
}

// Items go over the threads when there are enough of them or they are small; otherwise the threads
// share each item.
template <class F>
void for_each_item(int64_t B, double operations, const Executor& executor, F&& body) {
  constexpr double small = 4e6;
  if (B >= executor.threads() || operations < small) {
    executor.for_each(B, [&](int64_t b) { body(b, serial_executor()); });
  } else {
    for (int64_t b = 0; b < B; ++b) body(b, executor);
  }
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
