// Vector type of the instruction set this translation unit is compiled for.
//
// Every source named kernels*.cpp is compiled once per instruction set with
// -DKANERVA_ISA=baseline|avx2|avx512 and the matching compiler flags; everything below lives in
// kanerva::KANERVA_ISA, so that the linker never mixes the copies.
#pragma once

#include <cstdint>
#include <cstring>

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
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));

  static inline Vector load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void store(T* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline Vector broadcast(T x) { return x - Vector{}; }
};

template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + Simd<T>::width - 1) / Simd<T>::width * Simd<T>::width;
}

// Row stride of a scratch matrix with n columns: whole vectors, and never a multiple of 1 KiB, which
// would put the rows of a column panel in the same cache sets.
template <class T>
constexpr int64_t row_stride(int64_t n) {
  int64_t ld = padded<T>(n);
  if (ld * sizeof(T) % 1024 == 0 && ld > 0) ld += kVectorBytes / sizeof(T);
  return ld;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
