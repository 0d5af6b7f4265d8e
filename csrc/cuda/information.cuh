// The write of a whole episode in information form, by a team: for episodes longer than the memory.
// The algebra is that of ../cpu/information.h with N factorised by elimination:
//   G = W' diag(1/n) W,  N = I + Q G Q' = F F',  B = F^-1 Q,  U = B'B   with U0 = Q'Q
//   H = W' diag(1/n) Z,  R = R0 + U (H - G R0),  ln|S| = sum ln n + ln|N|
// Addresses and values are scaled by n^-1/2 when they are loaded, so that G and U come out exactly
// symmetric. A masked step has address and value zero and noise one: it adds nothing to any sum.
//
// Where other blocks have added up G and H before (episode_sums.cuh) the team only adds their
// parts, and factorises in panels.
//
// Counted for T steps, K slots, C columns, L steps at a time: T (K^2 + K C) + 4.5 K^3 + 2 K^2 C
// multiply-adds and 4 T / L + 2 K barriers, or with such sums K / 16 + 20. Chunks of L steps: T (2
// K^2 + 2 K C + 2 L K + L C) and T (1 + 10 / L).
#pragma once

#include "episode_sums.cuh"
#include "panels.cuh"

namespace kanerva::cuda {

template <class F>
struct Information {
  F *scale, *pivots;  // n^-1/2 of the steps; squares of the diagonal of F
  int* kept;          // whether the mask keeps the step
  Mat<F> G, U;        // K x K; U is the root Q at first
  Mat<F> Y, N;        // K x K, where later
  Mat<F> W, Z, H;     // L x K, L x width, K x width are
  Mat<F> R;           // K x width, in place of Z
  PanelFactors panels;

  // in_panels: whether it has room for panels.
  __host__ __device__ Information(Arena& arena, int L, int K, int width, bool in_panels)
      : scale(arena.take<F>(L)),
        pivots(arena.take<F>(K)),
        kept(arena.take<int>(L)),
        G(arena.matrix<F>(K, K)),
        U(arena.matrix<F>(K, K)),
        panels(arena, in_panels ? K : 0) {
    const int ld = G.ld, wide = odd_stride(width);
    const int64_t square = int64_t(K) * ld, addresses = int64_t(L) * ld;
    const int64_t values = int64_t(L > K ? L : K) * wide;
    const int64_t squares = 2 * square, rest = addresses + values + int64_t(K) * wide;
    F* room = arena.take<F>(squares > rest ? squares : rest);
    Y = {room, ld};
    N = {room + square, ld};
    W = {room, ld};
    Z = R = {room + addresses, wide};
    H = {room + addresses + values, wide};
  }
};

// Whether the form may serve so many steps of these.
__host__ __device__ inline bool information_serves(const BayesWriteArgs& args, int64_t steps) {
  return information_serves(args.method, args.decay.data != nullptr, steps, args.n.K);
}

// Steps of item b that the mask keeps: the same in every thread.
__device__ inline int64_t kept_steps(const BayesWriteArgs& args, int64_t b) {
  if (args.mask.data == nullptr) return args.n.T;
  double count = 0.0;
  for (int64_t t = thread(); t < args.n.T; t += threads())
    count += keeps_step(args.mask, b, t) ? 1.0 : 0.0;
  return int64_t(team_sum(count));
}

// f(t, kept, noise) for the steps [first, first + L), t from 0 on; this thread's share of their
// logarithms of noise is added to `logs`. False, in every thread, when a noise that counts is out
// of its domain. Leaves the team synchronised.
template <class Step>
__device__ inline bool load_noise(const BayesWriteArgs& args, int64_t b, int64_t first, int64_t L,
                                  double& logs, Step f) {
  bool bad = false;
  for (int64_t t = thread(); t < L; t += threads()) {
    const bool kept = keeps_step(args.mask, b, first + t);
    const double v = kept ? scalar(args.noise_var, b, first + t) : 1.0;
    bad = bad || !(v > 0.0 && v <= kLargestNoise);
    f(t, kept, v);
    if (kept) logs += log(v) + kLog2Pi;
  }
  return !any(bad);
}

// Scales of these steps, likewise.
template <class F>
__device__ inline bool load_scales(const BayesWriteArgs& args, int64_t b, int64_t first, int L,
                                   const Information<F>& m, double& logs) {
  return load_noise(args, b, first, L, logs, [&](int64_t t, bool kept, double v) {
    m.kept[t] = kept;
    m.scale[t] = F(1.0 / sqrt(v));
  });
}

// x = rows [first, first + L) and columns from c0 on, scaled. Not synchronised: an element is
// loaded and scaled by the same thread. Returns this thread's share of the sum of their squares.
template <class F>
__device__ __noinline__ double load_scaled(const View& v, int64_t b, int64_t first, int64_t c0,
                                           int L, int n, const Information<F>& m, Mat<F> x) {
  load(v, b, first, c0, L, n, x, m.kept);
  double squares = 0.0;
  each(L, n, [&](int i, int j) {
    const F scaled = x(i, j) * m.scale[i];
    x(i, j) = scaled;
    squares += double(scaled) * double(scaled);
  });
  return squares;
}

// G, the lower triangle and the upper the same, and this thread's share of the logarithms of noise.
// False, in every thread, when a noise that counts is out of its domain. Leaves the team
// synchronised.
template <class F>
__device__ __noinline__ bool sum_addresses(const BayesWriteArgs& args, int64_t b, int steps,
                                           const EpisodeSums& sums, const Information<F>& m,
                                           double& logs) {
  const int K = int(args.n.K);
  if (sums.are_there()) {
    add_parts(sums, false, K, K, [&](int i, int j, float x) { m.G(i, j) = m.G(j, i) = F(x); });
    return load_noise(args, b, 0, args.n.T, logs, [](int64_t, bool, double) {});
  }
  for (int64_t first = 0; first < args.n.T; first += steps) {
    const int L = int(first + steps <= args.n.T ? steps : args.n.T - first);
    if (!load_scales(args, b, first, L, m, logs)) return false;
    load_scaled(args.weights, b, first, 0, L, K, m, m.W);
    sync();
    product<true, false>(K, K, L, m.W, m.W,
                         [&](int i, int j, F x) { m.G(i, j) = first == 0 ? x : m.G(i, j) + x; });
  }
  return true;
}

// s (n x n) = F F', as F' with zeros below its diagonal or, if g is not null, as g = F^-1. False,
// in every thread, when a pivot is not positive. Expects s to be synchronised; leaves the team
// synchronised.
template <class F>
__device__ inline bool factorise_information(int n, const EpisodeSums& sums,
                                             const Information<F>& m, Mat<F> s, Mat<F> g) {
  if constexpr (sizeof(F) == 4) {
    if (sums.are_there()) return factorise_panels(n, s, g, m.pivots, m.panels);
  }
  if (!factorise(n, s, g, m.pivots)) return false;
  if (g.data != nullptr) return true;
  each(n, n, [&](int i, int j) { s(i, j) = j >= i ? s(i, j) / sqrt(m.pivots[i]) : F(0); });
  sync();
  return true;
}

// G and the posterior covariance U, the logarithms of noise and of |N| (of this thread). `harder`
// when the largest diagonal of N passes `limit` or its condition, from the pivots, `condition`, or
// when something is not positive definite. Leaves the team synchronised.
template <class F>
__device__ __noinline__ Outcome solve_covariance(const BayesWriteArgs& args, int64_t b, int steps,
                                                 const EpisodeSums& sums, const Information<F>& m,
                                                 double limit, double condition, double& logs) {
  const int K = int(args.n.K);
  if (!sum_addresses(args, b, steps, sums, m, logs)) return Outcome::failed;
  load_covariance(args.cov, b, K, m.U);
  sync();
  if (!factorise_information(K, sums, m, m.U, Mat<F>{nullptr, 0})) return Outcome::harder;
  product<false, false>(K, K, K, m.U, m.G, [&](int i, int j, F x) { m.Y(i, j) = x; });
  sync();
  product<false, true>(K, K, K, m.Y, m.U,
                       [&](int i, int j, F x) { m.N(i, j) = x + (i == j ? F(1) : F(0)); });
  sync();
  bool hard = false;
  for (int k = thread(); k < K; k += threads()) hard = hard || !(double(m.N(k, k)) - 1.0 <= limit);
  if (any(hard)) return Outcome::harder;
  if (!factorise_information(K, sums, m, m.N, m.Y)) return Outcome::harder;
  if (!(pivot_condition(K, m.pivots) <= condition)) return Outcome::harder;
  for (int k = thread(); k < K; k += threads()) logs += log(double(m.pivots[k]));
  product<false, false>(K, K, K, m.Y, m.U, [&](int i, int j, F x) { m.N(i, j) = x; });
  sync();
  // Tiles in tensor cores are not quite symmetric.
  product<true, false>(K, K, K, m.N, m.N, [&](int i, int j, F x) {
    if (j <= i) m.U(i, j) = m.U(j, i) = x;
  });
  sync();
  return Outcome::done;
}

// The columns [c0, c0 + n) of H, all of them where there are sums. Returns this thread's share of
// the sum of squares of the scaled values. Not synchronised.
template <class F>
__device__ __noinline__ double sum_values(const BayesWriteArgs& args, int64_t b, int64_t c0, int n,
                                          int steps, const EpisodeSums& sums,
                                          const Information<F>& m) {
  const int K = int(args.n.K);
  if (sums.are_there()) {
    add_parts(sums, true, K, n, [&](int i, int j, float x) { m.H(i, j) = F(x); });
    return share_of_squares(sums);
  }
  double squares = 0.0, logs = 0.0;
  for (int64_t first = 0; first < args.n.T; first += steps) {
    const int L = int(first + steps <= args.n.T ? steps : args.n.T - first);
    load_scales(args, b, first, L, m, logs);
    load_scaled(args.weights, b, first, 0, L, K, m, m.W);
    squares += load_scaled(args.values, b, first, c0, L, n, m, m.Z);
    sync();
    product<true, false>(K, n, L, m.W, m.Z,
                         [&](int i, int j, F x) { m.H(i, j) = first == 0 ? x : m.H(i, j) + x; });
  }
  return squares;
}

// The columns [c0, c0 + n) of the posterior mean, in m.R. Returns this thread's share of the
// squared norm of their Z - W R0 in the metric of S^-1. Leaves the team synchronised.
template <class F>
__device__ __noinline__ double solve_mean(const BayesWriteArgs& args, int64_t b, int64_t c0, int n,
                                          int steps, const EpisodeSums& sums,
                                          const Information<F>& m) {
  const int K = int(args.n.K);
  double squares = sum_values(args, b, c0, n, steps, sums, m);
  sync();
  load(args.mean, b, 0, c0, K, n, m.R);
  sync();
  // |Z - W R0|^2 / n is the sum of squares - <R0, 2 H - G R0>; <rhs, U rhs> comes off as well.
  product<false, false>(K, n, K, m.G, m.R, [&](int i, int j, F x) {
    const F h = m.H(i, j), rhs = h - x;
    squares -= double(m.R(i, j)) * (double(h) + double(rhs));
    m.H(i, j) = rhs;
  });
  sync();
  product<false, false>(K, n, K, m.U, m.H, [&](int i, int j, F x) {
    squares -= double(x) * double(m.H(i, j));
    m.R(i, j) += x;
  });
  sync();
  return squares;
}

// The write of one item's columns [c0, c0 + n) in arithmetic F, `steps` at a time or from sums that
// are there. `evidence` is their share of the log evidence. Leaves the team synchronised.
template <class F>
__device__ Outcome write_information(const BayesWriteArgs& args, int64_t b, int64_t c0, int n,
                                     int steps, int width, const EpisodeSums& sums, Arena arena,
                                     double limit, double condition, bool stores_cov,
                                     double& evidence) {
  const int K = int(args.n.K);
  const Information<F> m(arena, steps, K, width, sums.are_there());
  double logs = 0.0;  // of this thread
  const Outcome outcome = solve_covariance(args, b, steps, sums, m, limit, condition, logs);
  if (outcome != Outcome::done) return outcome;
  const double squares = solve_mean(args, b, c0, n, steps, sums, m);
  evidence = -0.5 * team_sum(squares + double(n) * logs);
  // Values that are not finite, or whose squares overflow in F, show here.
  if (!(evidence < kInfinite && evidence > -kInfinite)) return Outcome::harder;
  store(args.mean_out, b, 0, c0, K, n, m.R);
  if (stores_cov) store(args.cov_out, b, 0, 0, K, K, m.U);
  return Outcome::done;
}

}  // namespace kanerva::cuda
