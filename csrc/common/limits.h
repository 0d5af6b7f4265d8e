// Up to what conditioning each arithmetic is trusted, on the CPU and on GPUs; measured against long
// double (docs/algorithms.md). Constants only: shared by all instruction sets.
#pragma once

#include "arguments.h"

namespace kanerva {

// Hardness max w'Uw / n of a write: up to these the error stays under 1e-4 (float32 columns) and
// 1e-10 (float64 state).
constexpr double kHardForFloat32Factors = 16.0;
constexpr double kHardForFloat32 = 1e6;
constexpr double kHardForFloat64 = 1e3;
constexpr double kHardForCholesky = 1e11;  // float64 factors of float32 data

// What a write may leave of a variance where its adjoint starts from the posterior, as its
// reciprocal: measured errors as above.
constexpr double kShrinkForFloat32 = 16.0;
constexpr double kShrinkForFloat64 = 1e3;

// The write in information form. Largest diagonal of N for a float32 and a float64 state: measured
// errors under 1e-6 and 1e-10. In float32 only where the condition of N, from its pivots, is low,
// and where it pays: for few slots float64 is fast enough, and the recursion, which is the
// yardstick, is more accurate. Shorter episodes are cheaper in chunks, and their log evidence would
// cancel.
constexpr double kHardInformation32 = 1e10;
constexpr double kHardInformation64 = 1e4;
constexpr double kEasyInformation = 64.0;
constexpr int64_t kManySlots = 256;
constexpr int64_t kLongEpisode = 64;

// Condition of a system of addresses, from its pivots. Up to the first, and with kManySlots, the
// products of memory_kl and statistics are float32 too, beside float64 factors.
constexpr double kEasy = 16.0;
constexpr double kWellConditioned = 1e3;
// Adaptive writes in float32: condition of a system that is kept up to date, from its diagonal and
// that of its inverse, and hardness of a step.
constexpr double kTrackedInFloat32 = 100.0;
constexpr double kHardStepInFloat32 = 1e4;

// Items of at most so many steps x slots x columns are so small that float64 costs nothing beside
// the call.
constexpr int64_t kSmallItem = 4096;

}  // namespace kanerva
