// Vector type of the instruction set this translation unit is compiled for.
//
// Every source named kernels*.cpp is compiled once per instruction set with
// -DKANERVA_ISA=baseline|avx2|avx512 and the matching compiler flags; everything below lives in
// kanerva::KANERVA_ISA, so that the linker never mixes the copies.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef KANERVA_ISA
#error "compile with -DKANERVA_ISA=<name of the instruction set>"
#endif

namespace kanerva {
namespace KANERVA_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRows = 8;     // rows of a register tile: 8 x 3 accumulators of 32 registers
constexpr int kVectors = 3;  // vectors of a register tile
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 4;  // 4 x 3 of 16 registers
constexpr int kVectors = 3;
#else
constexpr int kVectorBytes = 16;
constexpr int kRows = 4;
constexpr int kVectors = 3;
#endif

template <class T>
struct Simd {
  static constexpr int width = kVectorBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef double Wide __attribute__((vector_size(width * sizeof(double))));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
#if defined(__AVX512F__)
  static constexpr bool has_masks = true;  // load_first() costs what load() does
#else
  static constexpr bool has_masks = false;
#endif

  static inline Vector load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void store(T* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline Vector broadcast(T x) { return x - Vector{}; }

  // A vector of elements of another type, converted.
  template <class S>
  static inline Vector load_as(const S* p) {
    if constexpr (std::is_same_v<S, T>) {
      return load(p);
    } else {
      typedef S Source
          __attribute__((vector_size(width * sizeof(S)), aligned(sizeof(S)), may_alias));
      return __builtin_convertvector(*reinterpret_cast<const Source*>(p), Vector);
    }
  }

  // The first n <= width elements; what follows them in memory is not touched.
  static inline Vector load_first(const T* p, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return (Vector)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1u), p);
    } else {
      return (Vector)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1u), p);
    }
#else
    Vector v{};
    std::memcpy(&v, p, size_t(n) * sizeof(T));
    return v;
#endif
  }

  // The same where n may well be width.
  static inline Vector load_last(const T* p, int64_t n) {
    return has_masks || n < width ? load_first(p, n) : load(p);
  }

  static inline void store_first(T* p, int64_t n, Vector v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1u), (__m512)v);
    } else {
      _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1u), (__m512d)v);
    }
#else
    std::memcpy(p, &v, size_t(n) * sizeof(T));
#endif
  }

  static inline double sum(Vector v) {
    return sum_halves<width / 2>(v, std::make_index_sequence<width>{});
  }

 private:
  template <int distance, size_t... lane>
  static inline double sum_halves(Vector v, std::index_sequence<lane...> lanes) {
    if constexpr (distance == 0) {
      return v[0];
    } else {
      return sum_halves<distance / 2>(v + __builtin_shufflevector(v, v, int(lane ^ distance)...),
                                      lanes);
    }
  }
};

// One step of the transposition of a width x width block held in vectors: exchanges the
// off-diagonal halves of every pair of rows that are `distance` apart.
template <class T, int distance, size_t... lane>
inline void exchange(typename Simd<T>::Vector& a, typename Simd<T>::Vector& b,
                     std::index_sequence<lane...>) {
  constexpr int W = Simd<T>::width;
  const auto x = a, y = b;
  a = __builtin_shufflevector(x, y, ((lane & distance) ? W + int(lane) - distance : int(lane))...);
  b = __builtin_shufflevector(x, y, ((lane & distance) ? W + int(lane) : int(lane) + distance)...);
}

template <class T, int distance>
inline void transpose_steps(typename Simd<T>::Vector* rows) {
  constexpr int W = Simd<T>::width;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & distance))
      exchange<T, distance>(rows[i], rows[i + distance], std::make_index_sequence<W>{});
  if constexpr (distance > 1) transpose_steps<T, distance / 2>(rows);
}

template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + Simd<T>::width - 1) / Simd<T>::width * Simd<T>::width;
}

// Row stride of a scratch matrix with n columns: whole vectors, and never a multiple of 1 KiB,
// which would put the rows of a column panel in the same cache sets.
template <class T>
constexpr int64_t row_stride(int64_t n) {
  int64_t ld = padded<T>(n);
  if (ld * sizeof(T) % 1024 == 0 && ld > 0) ld += kVectorBytes / sizeof(T);
  return ld;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
