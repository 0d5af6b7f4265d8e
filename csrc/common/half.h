// float16 and bfloat16 as bit patterns; conversions without branches on the common path, so that
// loops over rows vectorise on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define KANERVA_BOTH __host__ __device__
#else
#define KANERVA_BOTH
#endif

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_BOTH inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

KANERVA_BOTH inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

struct BFloat16 {
  uint16_t bits;
  KANERVA_BOTH operator float() const { return bits_to_float(uint32_t(bits) << 16); }
  KANERVA_BOTH static BFloat16 from(float f) {
    const uint32_t u = float_to_bits(f);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest even
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return {uint16_t(nan ? (u >> 16) | 0x40u : rounded)};
  }
};

struct Half {
  uint16_t bits;
  KANERVA_BOTH operator float() const {
    const uint32_t magnitude = uint32_t(bits & 0x7fffu) << 13;
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
    // 2^112 moves the exponent bias from 15 to 127 and makes subnormals right.
    const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000u);
    const uint32_t special =
        magnitude >= 0x0f800000u ? 0x7f800000u | magnitude : float_to_bits(scaled);
    return bits_to_float(special | sign);
  }
  KANERVA_BOTH static Half from(float f) {
    const uint32_t u = float_to_bits(f);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to infinity
    if (magnitude < 0x38800000u) {                                    // subnormal: steps of 2^-24
      const float steps = bits_to_float(magnitude) * 16777216.0f;
      const float rounded = (steps + 8388608.0f) - 8388608.0f;  // to nearest even
      return {uint16_t(sign | uint32_t(rounded))};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
  }
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
