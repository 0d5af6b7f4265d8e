// What the retentions of a chunk of 32 steps make of it, by one warp: for small_moving.cuh.
#pragma once

#include "small_write.cuh"

namespace kanerva::cuda {

// What the numbers of a chunk's steps make of it, in shared memory.
struct Dynamics {
  static constexpr int kAlong = stride_along(kSmallChunk), kSize = kSmallChunk * (kAlong + 4);
  float* data;

  // N_st for s <= t, else zero.
  __device__ float& renewal(int s, int t) const { return data[t * kAlong + s]; }
  // v_t, b_t, h_t and whether the mask keeps the step.
  __device__ float& noise(int t) const { return data[kSmallChunk * kAlong + t]; }
  __device__ float& kept(int t) const { return data[kSmallChunk * (kAlong + 1) + t]; }
  __device__ float& fresh(int t) const { return data[kSmallChunk * (kAlong + 2) + t]; }
  __device__ float& counts(int t) const { return data[kSmallChunk * (kAlong + 3) + t]; }
};

// The dynamics of steps of row b from `first` on, by one warp, a step per lane, as load_numbers();
// `forgotten` grows by the lane's 1 - a. False in a lane whose noise or retention is out of its
// domain.
template <class Args>
__device__ inline bool load_dynamics(const Args& args, int64_t b, int64_t first, int steps,
                                     const Dynamics& to, double& forgotten) {
  constexpr unsigned all = 0xffffffffu;
  const int t = lane();
  const bool counts = t < steps && keeps_step(args.mask, b, first + t);
  const double v = counts ? scalar(args.noise_var, b, first + t) : 1.0;
  const double a = counts ? scalar(args.retention, b, first + t) : 1.0;
  const bool valid = v > 0.0 && v <= kLargestNoise && a > 0.0 && a <= 1.0;
  forgotten += 1.0 - a;
  double kept = a, fresh = (1.0 - a) * (1.0 + a);
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double kept_before = __shfl_up_sync(all, kept, distance);
    const double fresh_before = __shfl_up_sync(all, fresh, distance);
    if (t < distance) continue;
    fresh = fma(kept * kept, fresh_before, fresh);
    kept *= kept_before;
  }
  to.noise(t) = float(v);
  to.kept(t) = float(kept);
  to.fresh(t) = float(fresh);
  to.counts(t) = counts ? 1.0f : 0.0f;
  double renewal = 0.0;  // of step t and each after it; zero of those before
#pragma unroll 4
  for (int later = 0; later < kSmallChunk; ++later) {
    const double retention = __shfl_sync(all, a, later);
    renewal = later == t ? fresh : renewal * retention;
    to.renewal(t, later) = float(renewal);
  }
  return valid;
}

}  // namespace kanerva::cuda
