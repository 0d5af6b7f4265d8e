// Which arithmetic and which form of the write serve, on the CPU and on GPUs: the thresholds, each
// measured against long double (docs/algorithms.md), and the decisions that both make alike.
#pragma once

#include <cmath>

#include "arguments.h"
#include "half.h"

namespace kanerva {

// How an attempt in one arithmetic ended; after `harder` the next one is tried.
enum class Outcome : int { done, harder, failed };

constexpr double kNoLimit = HUGE_VAL;

// Hardness max w'Uw / n of a write: up to these the error stays under 1e-4 (float32 columns) and
// 1e-10 (float64 state).
constexpr double kHardForFloat32Factors = 16.0;
constexpr double kHardForFloat32 = 1e6;
constexpr double kHardForFloat64 = 1e3;
constexpr double kHardForCholesky = 1e11;  // float64 factors of float32 data
// The same for the adjoint: float32 columns beside float64 factors, and from where on subtracting
// what a chunk overwrites cancels.
constexpr double kHardForFloat32Gradient = 1e4;
constexpr double kHardForSubtracting = 16.0;
// Hardness of a chunk of a memory that moves (cpu/stationary_chunk.h) up to which float32 columns
// serve beside float64 factors, in the write and in its adjoint. It is the ratio that digits are
// lost by, where that of a memory that keeps still is a bound.
constexpr double kHardStationary = 1e4;
constexpr double kHardStationaryGradient = 256.0;
// Steps after which float32 factors of a memory that moves have gathered too much, if the mean of
// 1 - a is below one in so many.
constexpr int64_t kLongInFloat32 = 4096;
// The largest precision that a segment of steps adds to a slot, times the slot's variance after it
// (cpu/stationary_element.h), up to which segments serve a state of float32, and of float64: about
// what the chain's own errors are.
constexpr double kHardSegment32 = 1e8;
constexpr double kHardSegment64 = 64.0;

// The write in information form. Largest diagonal of N for a float32 and a float64 state: measured
// errors under 1e-6 and 1e-10. In float32 only where the condition of N, from its pivots, is low,
// and where it pays: for few slots float64 is fast enough, and the recursion, which is the
// yardstick, is more accurate. Shorter episodes are cheaper in chunks, and their log evidence would
// cancel.
constexpr double kHardInformation32 = 1e10;
constexpr double kHardInformation64 = 1e4;
constexpr double kEasyInformation = 64.0;
// With the sums over the steps in float32 and the rest in float64: the condition of N, and the
// squares of the values over what the memory leaves of them, as log evidence cancels.
constexpr double kConditionForFloat32Sums = 32.0;
constexpr double kExplainedForFloat32Sums = 16.0;
constexpr int64_t kManySteps = 1024;
constexpr int64_t kManySlots = 256;
constexpr int64_t kLongEpisode = 64;

// The adjoint from the posterior. Of long episodes: a bound on max w'U0 w / n, the condition of U0,
// from its pivots, and how far the mean has moved, of its size. Of short ones: the reciprocal of
// what may be left of a variance, with errors as for the hardness of a write.
constexpr double kHardForPosterior = 4e3;
constexpr double kPriorCondition = 16.0;
constexpr double kLeastMoved = 0.03;
constexpr double kShrinkForFloat32 = 16.0;
constexpr double kShrinkForFloat64 = 1e3;

// Condition of a system of addresses, from its pivots. Up to kEasy, and with kManySlots, the
// products of memory_kl and statistics are float32 too, beside float64 factors. Solutions in
// float32 are refined above kVeryEasy, those in float64 above kWellConditioned.
constexpr double kVeryEasy = 2.0;
constexpr double kEasy = 16.0;
constexpr double kWellConditioned = 1e3;
// Adaptive writes in float32: condition of a system that is kept up to date, from its diagonal and
// that of its inverse, and hardness of a step. An inverse is formed afresh where so little is left
// of the ratio of the determinants.
constexpr double kTrackedInFloat32 = 100.0;
constexpr double kHardStepInFloat32 = 1e4;
constexpr double kCancelled = 1e-4;
// With all of it in float32, as in small GPU kernels, less: up to these, and with so much left of
// the ratio of the determinants, the error stays within that of a float32 recursion with a full
// solve for every step.
constexpr double kTrackedAllInFloat32 = 16.0;
constexpr double kHardStepAllInFloat32 = 1e3;
constexpr double kLeastDeterminant = 0.1;

// A noise variance above this is out of its domain: squares of it would overflow.
constexpr double kLargestNoise = 1e300;

// Of every log evidence.
constexpr double kLog2Pi = 1.8378770664093454836;

// Items of at most so many steps x slots x columns are so small that float64 costs nothing beside
// the call.
constexpr int64_t kSmallItem = 4096;

namespace KANERVA_ISA {

// Of `steps` steps: on the CPU those that the mask keeps, on GPUs all, since what is planned before
// the launch cannot see the mask.
KANERVA_BOTH inline bool is_small(int64_t steps, const Sizes& n) {
  return steps * n.K * n.C <= kSmallItem;
}

// Whether the information form may serve an episode of so many steps.
KANERVA_BOTH inline bool information_serves(WriteMethod method, bool decays, int64_t steps,
                                            int64_t slots) {
  const bool asked_for = method == WriteMethod::information;
  if (method != WriteMethod::automatic && !asked_for) return false;
  return !decays && steps >= 2 * slots && (asked_for || steps >= kLongEpisode);
}

// Whether sums over so many steps are worth their own arithmetic; the rounding of few blocks does
// not average out.
inline bool float32_sums_serve(int64_t steps, int64_t slots) {
  return steps >= kManySteps && steps >= 16 * slots;
}

// Of Cholesky factors in float64: beyond it the write goes on with a square root.
KANERVA_BOTH inline double cholesky_limit(Dtype state) {
  return state == Dtype::float32 ? kHardForCholesky : kHardForFloat64;
}

KANERVA_BOTH inline double information_limit(Dtype state) {
  return state == Dtype::float32 ? kHardInformation32 : kHardInformation64;
}

// Relative rounding of a state.
KANERVA_BOTH inline double rounding_of(Dtype state) {
  return state == Dtype::float32 ? 1.2e-7 : 2.2e-16;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
