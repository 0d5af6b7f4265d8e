// float16, bfloat16 and tf32 as bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_from(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// x as a multiple of 2^-10 of its power of two, to nearest, ties away from zero (.rna).
inline uint32_t to_tf32(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinite or NaN
  return (bits + 0x1000u) & ~0x1fffu;
}

inline uint16_t to_bfloat(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const float sign = h & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
  return sign * std::ldexp(float(fraction + 1024), exponent - 25);
}

inline uint16_t to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (x != x) return 0x7fff;
  const float a = std::fabs(x);
  if (a >= 65520.0f) return uint16_t(sign | 0x7c00);
  if (a < std::ldexp(1.0f, -14))
    return uint16_t(sign | uint16_t(std::nearbyint(std::ldexp(a, 24))));
  const int exponent = std::ilogb(a);
  const int fraction = int(std::nearbyint(std::ldexp(a, 10 - exponent)));  // 1024 to 2048
  return uint16_t(sign + ((exponent + 15) << 10) + (fraction - 1024));
}

}  // namespace ptx
