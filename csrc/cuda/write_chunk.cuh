// The K x K and L x L half of a write, by a team: factors of a chunk of L steps, from the
// covariance or from a square root of it. The algebra is that of ../cpu/write_chunk.h with V' =
// F^-1 formed by elimination:
//   X = W U,  S = X W' + diag(n) = F F',  V' = F^-1,  P = V'X,  U <- (U - P'P) / b
// A masked step is a step with address and value zero and noise one: it changes nothing.
#pragma once

#include "factorise.cuh"

namespace kanerva::cuda {

// Whether the mask, if there is one, keeps step t of item b.
__device__ inline bool keeps_step(const View& mask, int64_t b, int64_t t) {
  return mask.data == nullptr || static_cast<const bool*>(mask.data)[offset(mask, b, t, 0)];
}

template <class F>
struct Chunk {
  double *noise, *decay;  // n_t = v_t b_t; b_t
  F* pivots;              // squares of the diagonal of F
  int* kept;              // whether the mask keeps the step
  Mat<F> S, V;            // L x L; V holds V' = F^-1
  Mat<F> W, X, P;         // L x K
  Mat<F> U;               // K x K: the covariance, or its root

  __host__ __device__ Chunk(Arena& arena, int L, int K)
      : noise(arena.take<double>(L)),
        decay(arena.take<double>(L)),
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
// out of its domain. Leaves the team synchronised.
template <class F, class Args>
__device__ __noinline__ bool load_chunk(const Args& args, int64_t b, int64_t first, int L,
                                        const Chunk<F>& c) {
  bool bad = false;
  for (int t = thread(); t < L; t += threads()) {
    const bool kept = keeps_step(args.mask, b, first + t);
    const double v = kept ? scalar(args.noise_var, b, first + t) : 1.0;
    const double g = kept && args.decay.data != nullptr ? scalar(args.decay, b, first + t) : 1.0;
    bad = bad || !(v > 0.0 && v <= kLargestNoise && g > 0.0 && g <= 1.0);
    c.kept[t] = kept;
    c.noise[t] = v;
    c.decay[t] = g;
  }
  sync();
  if (thread() == 0) {
    double product = 1.0;
    for (int t = 0; t < L; ++t) {
      product *= c.decay[t];
      c.decay[t] = product;
      if (c.kept[t]) c.noise[t] *= product;
    }
  }
  load(args.weights, b, first, 0, L, int(args.n.K), c.W, c.kept);
  return !any(bad);
}

// Factors of the chunk from the covariance U, which stays. False, in every thread, when the chunk
// is harder than `limit` or a pivot is not positive. `hardness` is that of the chunk. Leaves the
// team synchronised.
template <class F>
__device__ inline bool factor_chunk(int L, int K, const Chunk<F>& c, double limit,
                                    double& hardness) {
  product<false, false>(L, K, K, c.W, c.U, [&](int i, int j, F x) { c.X(i, j) = x; });
  sync();
  product<false, true>(L, L, K, c.X, c.W,
                       [&](int i, int j, F x) { c.S(i, j) = x + (i == j ? F(c.noise[i]) : F(0)); });
  sync();
  bool easy = true;
  hardness = 0.0;
  for (int t = 0; t < L; ++t) {
    const double h = double(c.S(t, t)) / c.noise[t] - 1.0;
    easy = easy && h <= limit;
    hardness = h > hardness ? h : hardness;
  }
  if (!easy || !factorise(L, c.S, c.V, c.pivots)) {
    sync();
    return false;
  }
  product<false, false>(L, K, L, c.V, c.X, [&](int i, int j, F x) { c.P(i, j) = x; });
  sync();
  return true;
}

// U <- (U - P'P) / b. Its lower part is that above the diagonal, mirrored: products in tiles are
// not symmetric to the last bit. Not synchronised.
template <class F>
__device__ inline void downdate(int L, int K, const Chunk<F>& c) {
  const F scale = F(1.0 / c.decay[L - 1]);
  product<true, false>(K, K, L, c.P, c.P, [&](int i, int j, F x) {
    if (j >= i) c.U(i, j) = c.U(j, i) = (c.U(i, j) - x) * scale;
  });
}

// U, an item's covariance, becomes its upper factor: U = root' root. A covariance that the rounding
// of its own dtype made indefinite gets that rounding added to its diagonal. False, in every
// thread, for any other that is not positive definite. Leaves the team synchronised.
template <class F>
__device__ __noinline__ bool load_root(const View& cov, int64_t b, int K, Mat<F> root, F* pivots) {
  const double epsilon = rounding_of(cov.dtype);
  bool ok = false;
  for (int attempt = 0; attempt < 2 && !ok; ++attempt) {
    load_covariance(cov, b, K, root);
    sync();
    if (attempt > 0) {
      double largest = 0.0;
      for (int i = 0; i < K; ++i) largest = fmax(largest, double(root(i, i)));
      sync();
      for (int i = thread(); i < K; i += threads())
        root(i, i) += F(2.0 * double(K) * epsilon * largest);
      sync();
    }
    ok = factorise(K, root, Mat<F>{nullptr, 0}, pivots);
  }
  if (!ok) return false;
  each(K, K, [&](int i, int j) { root(i, j) = j >= i ? root(i, j) / sqrt(pivots[i]) : F(0); });
  sync();
  return true;
}

// The same factors from a root of the covariance, U = root' root, by Potter's update step by step,
// which also updates the root: nothing is squared and nothing subtracted from U. Decay enters as
// noise scaled by b_t; the root is divided by sqrt(b) at the end of the chunk. after(t) is called,
// synchronised, when the root is that after step t, up to the decay. False, in every thread, when a
// pivot is not positive and finite. Leaves the team synchronised.
template <class F, class After>
__device__ __noinline__ bool factor_chunk_sqrt(int L, int K, const Chunk<F>& c, double& hardness,
                                               After after) {
  hardness = 0.0;
  for (int t = 0; t < L; ++t) {
    double energy = 0.0;
    for (int k = warp(); k < K; k += warps()) {
      F sum = 0;
      for (int j = lane(); j < K; j += 32) sum += c.U(k, j) * c.W(t, j);
      sum = warp_sum(sum);
      if (lane() == 0) {
        c.X(t, k) = sum;
        energy += double(sum) * double(sum);
      }
    }
    energy = team_sum(energy);
    const double s = energy + c.noise[t];
    if (!(s > 0.0 && s < kInfinite)) return false;
    hardness = fmax(hardness, energy / c.noise[t]);
    for (int j = thread(); j < K; j += threads()) {
      F sum = 0;
      for (int k = 0; k < K; ++k) sum += c.X(t, k) * c.U(k, j);
      c.P(t, j) = sum;
    }
    sync();
    const F factor = F(-1.0 / (s + sqrt(c.noise[t] * s)));
    each(K, K, [&](int k, int j) { c.U(k, j) += factor * c.X(t, k) * c.P(t, j); });
    sync();
    for (int j = thread(); j < K; j += threads()) c.P(t, j) *= F(1.0 / sqrt(s));
    if (thread() == 0) {
      c.pivots[t] = F(s);
      c.S(t, t) = F(sqrt(s));
    }
    for (int q = warp(); q < t; q += warps()) {  // F(t, q) = w_t . p_q
      F sum = 0;
      for (int j = lane(); j < K; j += 32) sum += c.W(t, j) * c.P(q, j);
      sum = warp_sum(sum);
      if (lane() == 0) c.S(t, q) = sum;
    }
    sync();
    after(t);
  }
  for (int j = thread(); j < L; j += threads()) {  // a column of F^-1
    for (int i = 0; i < L; ++i) {
      F sum = i == j ? F(1) : F(0);
      for (int q = j; q < i; ++q) sum -= c.S(i, q) * c.V(q, j);
      c.V(i, j) = i < j ? F(0) : sum / c.S(i, i);
    }
  }
  const double b = c.decay[L - 1];
  if (b != 1.0) each(K, K, [&](int i, int j) { c.U(i, j) *= F(1.0 / sqrt(b)); });
  sync();
  return true;
}

}  // namespace kanerva::cuda
