// A chunk of a write into a memory that moves, by a team: factors. The algebra is that of
// ../cpu/stationary_chunk.h with V' = F^-1 formed by elimination:
//   X = W U,  S = b b' o (X W') + N o (W Sigma W') + diag(v) = F F',  V' = F^-1,
//   P = V'(b_L D_b X + D_n W Sigma),  U <- b_L^2 U + h_L Sigma - P'P
// A masked step keeps all of the memory and writes as in write_chunk.cuh. A chunk of one step is
// the recursion: what serves in float64 where longer ones lose digits.
#pragma once

#include "write_block.cuh"

namespace kanerva::cuda {

// Steps of a chunk, at most `most`: more than twice the slots would overwrite the memory several
// times over, which costs digits and gains no speed.
inline int64_t most_moving_steps(int64_t slots, int64_t most) {
  const int64_t twice = slots > 8 ? 2 * slots : 16;
  return most < twice ? most : twice;
}

// Member by member: a struct that is copied whole takes its padding, which nobody wrote, along.
template <class F>
__host__ __device__ inline Mat<F> either(bool first, Mat<F> a, Mat<F> b) {
  return {first ? a.data : b.data, first ? a.ld : b.ld};
}

// A matrix, or none.
template <class F>
__host__ __device__ inline Mat<F> matrix_if(bool wanted, Arena& arena, int m, int n) {
  return {wanted ? arena.matrix<F>(m, n).data : nullptr, wanted ? odd_stride(n) : 0};
}

template <class F>
struct StationaryChunk {
  double *noise, *retention;  // v_t and a_t
  double *kept, *fresh;       // b_t and h_t
  double *before, *largest;   // variance of an address before the chunk's writes; or in Sigma
  F* pivots;                  // squares of the diagonal of F
  int* counts;                // whether the mask keeps the step
  Mat<F> S, V, between;       // L x L; V holds V' = F^-1, the last g_st, symmetric
  Mat<F> W, WS, X, P, gain;   // L x K: WS = W Sigma may be W; gain = F P may be X
  Mat<F> U, Sigma;            // K x K; the latter null: the identity
  Mat<F> drift, settled;      // L x L: W (U - Sigma) W' and W Sigma W'; only of an adjoint

  __host__ __device__ StationaryChunk(Arena& arena, int L, int K, bool identity, bool adjoint)
      : noise(arena.take<double>(L)),
        retention(arena.take<double>(L)),
        kept(arena.take<double>(L)),
        fresh(arena.take<double>(L)),
        before(arena.take<double>(L)),
        largest(arena.take<double>(L)),
        pivots(arena.take<F>(L)),
        counts(arena.take<int>(L)),
        S(arena.matrix<F>(L, L)),
        V(arena.matrix<F>(L, L)),
        between(arena.matrix<F>(L, L)),
        W(arena.matrix<F>(L, K)),
        WS(either(identity, W, matrix_if<F>(!identity, arena, L, K))),
        X(arena.matrix<F>(L, K)),
        P(arena.matrix<F>(L, K)),
        gain(either(!adjoint, X, matrix_if<F>(adjoint, arena, L, K))),
        U(arena.matrix<F>(K, K)),
        Sigma(matrix_if<F>(!identity, arena, K, K)),
        drift(matrix_if<F>(adjoint, arena, L, L)),
        settled(matrix_if<F>(adjoint, arena, L, L)) {}

  // N
  __device__ F renewal(int i, int j) const { return between(i, j) * F(fresh[min(i, j)]); }
  // b_i b_j
  __device__ F moved(int i, int j) const { return F(kept[i] * kept[j]); }
  __device__ F stationary(int i, int j) const {
    return Sigma.data != nullptr ? Sigma(i, j) : i == j ? F(1) : F(0);
  }
};

// Steps [first, first + L) of item b. False, in every thread, when a noise or retention that counts
// is out of its domain. Leaves the team synchronised.
template <class F, class Args>
__device__ __noinline__ bool load_chunk(const Args& args, int64_t b, int64_t first, int L,
                                        const StationaryChunk<F>& c) {
  bool bad = false;
  for (int t = thread(); t < L; t += threads()) {
    const bool counts = keeps_step(args.mask, b, first + t);
    const double v = counts ? scalar(args.noise_var, b, first + t) : 1.0;
    const double a = counts ? scalar(args.retention, b, first + t) : 1.0;
    bad = bad || !(v > 0.0 && v <= kLargestNoise && a > 0.0 && a <= 1.0);
    c.counts[t] = counts;
    c.noise[t] = v;
    c.retention[t] = a;
  }
  sync();
  for (int s = thread(); s < L; s += threads()) {
    double kept = 1.0, fresh = 0.0, between = 1.0;
    for (int t = 0; t <= s; ++t) {
      const double a = c.retention[t];
      kept *= a;
      fresh = a * a * fresh + (1.0 - a) * (1.0 + a);
    }
    c.kept[s] = kept;
    c.fresh[s] = fresh;
    c.between(s, s) = F(1);
    for (int t = s + 1; t < L; ++t) {
      between *= c.retention[t];
      c.between(s, t) = c.between(t, s) = F(between);
    }
  }
  load(args.weights, b, first, 0, L, int(args.n.K), c.W, c.counts);
  return !any(bad);
}

// Factors of the chunk from the covariance U, which stays; also() is called when X and WS are there
// and what was written before is seen. False, in every thread, when the chunk is harder than
// `limit` or a pivot is not positive. Hardness is that of ../cpu/stationary_chunk.h: in float32 by
// the noise, in float64 by the pivots. Leaves the team synchronised.
template <class F, class Also>
__device__ inline bool factor_chunk(int L, int K, const StationaryChunk<F>& c, double limit,
                                    Also also) {
  product<false, false>(L, K, K, c.W, c.U, [&](int i, int j, F x) { c.X(i, j) = x; });
  if (c.Sigma.data != nullptr)
    product<false, false>(L, K, K, c.W, c.Sigma, [&](int i, int j, F x) { c.WS(i, j) = x; });
  sync();
  const bool adjoint = c.drift.data != nullptr;
  product<false, true>(L, L, K, c.X, c.W, [&](int i, int j, F x) {
    c.S(i, j) = c.moved(i, j) * x;
    if (adjoint) c.drift(i, j) = x;
  });
  product<false, true>(L, L, K, c.WS, c.W, [&](int i, int j, F x) {
    F s = c.S(i, j) + c.renewal(i, j) * x;
    if (adjoint) {
      c.drift(i, j) -= x;
      c.settled(i, j) = x;
    }
    if (i == j) {
      c.before[i] = double(s);
      c.largest[i] = fmax(double(s), double(x));
      s += F(c.noise[i]);
    }
    c.S(i, j) = s;
  });
  also();
  sync();
  constexpr bool by_noise = sizeof(F) == 4;
  bool easy = true;
  for (int t = 0; by_noise && t < L; ++t) easy = easy && c.before[t] / c.noise[t] <= limit;
  easy = easy && factorise(L, c.S, c.V, c.pivots);
  for (int t = 0; !by_noise && easy && t < L; ++t)
    easy = c.largest[t] / double(c.pivots[t]) <= limit;
  if (!easy) sync();
  return easy;
}

// gain = F P. Not synchronised.
template <class F>
__device__ inline void form_gain(int L, int K, const StationaryChunk<F>& c) {
  each(L, K, [&](int t, int k) {
    c.gain(t, k) = c.moved(t, L - 1) * c.X(t, k) + c.renewal(t, L - 1) * c.WS(t, k);
  });
}

// U <- b_L^2 U + h_L Sigma - P'P, symmetric to the last bit. Not synchronised.
template <class F>
__device__ inline void downdate(int L, int K, const StationaryChunk<F>& c) {
  const F kept = c.moved(L - 1, L - 1), fresh = F(c.fresh[L - 1]);
  product<true, false>(K, K, L, c.P, c.P, [&](int i, int j, F x) {
    if (j >= i) c.U(i, j) = c.U(j, i) = kept * c.U(i, j) + fresh * c.stationary(i, j) - x;
  });
}

// The stationary covariance of item b. Not synchronised.
template <class F>
__device__ inline void load_stationary(const View& cov, int64_t b, int K,
                                       const StationaryChunk<F>& c) {
  if (c.Sigma.data != nullptr) load_covariance(cov, b, K, c.Sigma);
}

}  // namespace kanerva::cuda
