// The K x K and L x L half of a write, by one block: factors of a chunk of L steps, and single
// steps on a square root of the covariance. The algebra is that of ../core/write_chunk.h with
// V' = F^-1 formed by elimination:
//   X = W U,  S = X W' + diag(n) = F F',  V' = F^-1,  P = V'X,  U <- (U - P'P) / b
// A masked step is a step with address and value zero and noise one: it changes nothing.
#pragma once

#include "../core/limits.h"
#include "block.cuh"

namespace kanerva::cuda {

enum class Outcome : int { done, harder, failed };

constexpr double kNoLimit = kInfinite;

template <class F>
struct Chunk {
  double *noise, *decay, *room;  // n_t = v_t b_t; b_t; 32 elements for sums
  F* pivots;                     // squares of the diagonal of F
  int* kept;                     // whether the mask keeps the step
  Mat<F> S, V;                   // L x L; V holds V' = F^-1
  Mat<F> W, X, P;                // L x K
  Mat<F> U;                      // K x K: the covariance, or its root

  __host__ __device__ Chunk(Arena& arena, int L, int K)
      : noise(arena.take<double>(L)),
        decay(arena.take<double>(L)),
        room(arena.take<double>(32)),
        pivots(arena.take<F>(L)),
        kept(arena.take<int>(L)),
        S(arena.matrix<F>(L, L)),
        V(arena.matrix<F>(L, L)),
        W(arena.matrix<F>(L, K)),
        X(arena.matrix<F>(L, K)),
        P(arena.matrix<F>(L, K)),
        U(arena.matrix<F>(K, K)) {}
};

// Steps [first, first + L) of item b. False, in every thread, when a noise or decay that counts is
// out of its domain. Leaves the block synchronised.
template <class F, class Args>
__device__ __noinline__ bool load_chunk(const Args& args, int64_t b, int64_t first, int L,
                                        const Chunk<F>& c) {
  bool bad = false;
  for (int t = thread(); t < L; t += threads()) {
    const bool kept = args.mask.data == nullptr ||
                      static_cast<const bool*>(args.mask.data)[offset(args.mask, b, first + t, 0)];
    const double v = kept ? scalar(args.noise_var, b, first + t) : 1.0;
    const double g = kept && args.decay.data != nullptr ? scalar(args.decay, b, first + t) : 1.0;
    bad = bad || !(v > 0.0 && v <= 1e300 && g > 0.0 && g <= 1.0);
    c.kept[t] = kept;
    c.noise[t] = v;
    c.decay[t] = g;
  }
  __syncthreads();
  if (thread() == 0) {
    double product = 1.0;
    for (int t = 0; t < L; ++t) {
      product *= c.decay[t];
      c.decay[t] = product;
      if (c.kept[t]) c.noise[t] *= product;
    }
  }
  load(args.weights, b, first, 0, L, int(args.n.K), c.W, c.kept);
  return __syncthreads_or(bad) == 0;
}

// Factors of the chunk from the covariance U, which stays. False, in every thread, when the chunk
// is harder than `limit` or a pivot is not positive. `hardness` is that of the chunk. Leaves the
// block synchronised.
template <class F>
__device__ inline bool factor_chunk(int L, int K, const Chunk<F>& c, double limit,
                                    double& hardness) {
  product<false, false>(L, K, K, c.W, c.U, [&](int i, int j, F x) { c.X(i, j) = x; });
  __syncthreads();
  product<false, true>(L, L, K, c.X, c.W,
                       [&](int i, int j, F x) { c.S(i, j) = x + (i == j ? F(c.noise[i]) : F(0)); });
  __syncthreads();
  bool easy = true;
  hardness = 0.0;
  for (int t = 0; t < L; ++t) {
    const double h = double(c.S(t, t)) / c.noise[t] - 1.0;
    easy = easy && h <= limit;
    hardness = h > hardness ? h : hardness;
  }
  if (!easy || !factorise(L, c.S, c.V, c.pivots)) {
    __syncthreads();
    return false;
  }
  product<false, false>(L, K, L, c.V, c.X, [&](int i, int j, F x) { c.P(i, j) = x; });
  __syncthreads();
  return true;
}

// U <- (U - P'P) / b, exactly symmetric. Not synchronised.
template <class F>
__device__ inline void downdate(int L, int K, const Chunk<F>& c) {
  const F scale = F(1.0 / c.decay[L - 1]);
  product<true, false>(K, K, L, c.P, c.P,
                       [&](int i, int j, F x) { c.U(i, j) = (c.U(i, j) - x) * scale; });
}

// U, an item's covariance, becomes its upper factor: U = root' root. A covariance that the rounding
// of its own dtype made indefinite gets that rounding added to its diagonal. False, in every
// thread, for any other that is not positive definite. Leaves the block synchronised.
template <class F>
__device__ __noinline__ bool load_root(const View& cov, int64_t b, int K, Mat<F> root, F* pivots) {
  const double epsilon = cov.dtype == Dtype::float32 ? 1.2e-7 : 2.2e-16;
  bool ok = false;
  for (int attempt = 0; attempt < 2 && !ok; ++attempt) {
    load(cov, b, 0, 0, K, K, root);
    __syncthreads();
    if (attempt > 0) {
      double largest = 0.0;
      for (int i = 0; i < K; ++i) largest = fmax(largest, double(root(i, i)));
      __syncthreads();
      for (int i = thread(); i < K; i += threads())
        root(i, i) += F(2.0 * double(K) * epsilon * largest);
      __syncthreads();
    }
    ok = factorise(K, root, Mat<F>{nullptr, 0}, pivots);
  }
  if (!ok) return false;
  each(K, K, [&](int i, int j) { root(i, j) = j >= i ? root(i, j) / sqrt(pivots[i]) : F(0); });
  __syncthreads();
  return true;
}

// One step (row 0 of W, its noise and decay) on a root of the covariance, by Potter's update:
// nothing is squared and nothing subtracted from U. The root is decayed before the step, so that
// noise and evidence are those of a step without decay. Leaves in P the whitened gain, in X the
// product root w, in V the reciprocal root of the pivot. False, in every thread, when the pivot is
// not positive and finite. Leaves the block synchronised.
template <class F>
__device__ __noinline__ bool sqrt_step(int K, const Chunk<F>& c) {
  const double g = c.decay[0], v = c.noise[0] / (c.kept[0] ? g : 1.0);
  if (g != 1.0) each(K, K, [&](int i, int j) { c.U(i, j) /= sqrt(F(g)); });
  __syncthreads();
  double energy = 0.0;
  for (int k = warp(); k < K; k += warps()) {
    F sum = 0;
    for (int j = lane(); j < K; j += 32) sum += c.U(k, j) * c.W(0, j);
    sum = warp_sum(sum);
    if (lane() == 0) {
      c.X(0, k) = sum;
      energy += double(sum) * double(sum);
    }
  }
  energy = block_sum(energy, c.room);
  const double s = energy + v;
  if (!(s > 0.0 && s < kInfinite)) return false;
  for (int j = thread(); j < K; j += threads()) {
    F sum = 0;
    for (int k = 0; k < K; ++k) sum += c.X(0, k) * c.U(k, j);
    c.P(0, j) = sum;
  }
  __syncthreads();
  const F factor = F(-1.0 / (s + sqrt(v * s)));
  each(K, K, [&](int k, int j) { c.U(k, j) += factor * c.X(0, k) * c.P(0, j); });
  __syncthreads();
  for (int j = thread(); j < K; j += threads()) c.P(0, j) *= F(1.0 / sqrt(s));
  if (thread() == 0) {
    c.pivots[0] = F(s);
    c.V(0, 0) = F(1.0 / sqrt(s));
    c.decay[0] = 1.0;
    c.noise[0] = v;
  }
  __syncthreads();
  return true;
}

// Items so small that float64 costs nothing beside the call.
__host__ __device__ inline bool is_small(const Sizes& n) { return n.T * n.K * n.C <= kSmallItem; }

}  // namespace kanerva::cuda
