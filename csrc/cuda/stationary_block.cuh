// The write into a memory that moves, of a block of its columns, chunk by chunk, by a team: with
// reads after every step, that of causal_scan. The algebra of the reads is that of
// ../cpu/stationary_scan.h:
//   A' = V'(b b' o (X Q') + N o (W Sigma Q')) above its diagonal,  E = V'(Z - D_b W R),
//   reads = D_b Q R + A E,  R <- b_L R + P'E,
//   read_var_t = b_t^2 q'U q + h_t q'Sigma q - |A_t|^2
#pragma once

#include "stationary_chunk.cuh"

namespace kanerva::cuda {

template <class F>
struct StationaryBuffers {
  StationaryChunk<F> chunk;
  Mat<F> D, E, R;           // L x width, L x width, K x width
  Mat<F> Q, cross, inside;  // L x K, L x L twice: A' before V' and after; only with reads

  __host__ __device__ StationaryBuffers(Arena& arena, int L, int K, int width, bool reads,
                                        bool identity)
      : chunk(arena, L, K, identity, false),
        D(arena.matrix<F>(L, width)),
        E(arena.matrix<F>(L, width)),
        R(arena.matrix<F>(K, width)),
        Q(matrix_if<F>(reads, arena, L, K)),
        cross(matrix_if<F>(reads, arena, L, L)),
        inside(matrix_if<F>(reads, arena, L, L)) {}
};

// The variances of the queries Q, given Q U and Q Sigma: by a warp each. No barrier.
template <class F>
__device__ __noinline__ void store_read_variances(const View& var, int64_t row, int64_t first,
                                                  int L, int K, const StationaryChunk<F>& c,
                                                  Mat<F> Q, Mat<F> QU, Mat<F> QS, Mat<F> inside) {
  for (int t = warp(); t < L; t += warps()) {
    const double kept = c.kept[t] * c.kept[t], fresh = c.fresh[t];
    double sum = 0.0;
    for (int k = lane(); k < K; k += 32)
      sum += double(Q(t, k)) * (kept * double(QU(t, k)) + fresh * double(QS(t, k)));
    for (int s = lane(); s <= t; s += 32) sum -= double(inside(s, t)) * double(inside(s, t));
    sum = warp_sum(sum);
    if (lane() == 0) store_variance(var, row, first + t, sum);
  }
}

// Factors of a chunk, D = Z - D_b W R from D = Z, and with reads A' before V'. Not inlined: it
// would leave the rest too few registers. Leaves the team synchronised, but for the gain.
template <class F, bool kWithReads>
__device__ __noinline__ bool factor_block(int L, int n, int K, const StationaryBuffers<F>& m,
                                          double limit) {
  const StationaryChunk<F>& c = m.chunk;
  const bool easy = factor_chunk(L, K, c, limit, [&] {
    product<false, false>(L, n, K, c.W, m.R,
                          [&](int i, int j, F x) { m.D(i, j) -= F(c.kept[i]) * x; });
    if constexpr (kWithReads) {
      product<false, true>(L, L, K, c.X, m.Q,
                           [&](int i, int j, F x) { m.cross(i, j) = c.moved(i, j) * x; });
      product<false, true>(L, L, K, c.WS, m.Q,
                           [&](int i, int j, F x) { m.cross(i, j) += c.renewal(i, j) * x; });
    }
  });
  if (easy) form_gain(L, K, c);
  return easy;
}

// What write_block() of write_block.cuh is to a memory that keeps still.
template <class F, class Args>
__device__ __noinline__ Outcome write_moving_block(const Args& args, const Item& item,
                                                   const ColumnBlock& columns, int steps, int width,
                                                   Arena arena, double limit, double& evidence) {
  constexpr bool reads = kReads<Args>;
  const int K = int(args.n.K), n = columns.count;
  const int64_t b = item.state, c0 = columns.first;
  const bool stores_cov = columns.index == 0, identity = args.stationary_cov.data == nullptr;
  const StationaryBuffers<F> m(arena, steps, K, width, reads, identity);
  const StationaryChunk<F>& c = m.chunk;
  load_covariance(args.cov, b, K, c.U);
  load_stationary(args.stationary_cov, item.dynamics, K, c);
  load(args.mean, b, 0, c0, K, n, m.R);
  double squares = 0.0, logs = 0.0;  // of this thread
  for (int64_t passed = 0; passed < item.steps; passed += steps) {
    const int64_t first = item.first + passed;
    const int L = int(passed + steps <= item.steps ? steps : item.steps - passed);
    if (!load_chunk(args, item.row, first, L, c)) return Outcome::failed;
    load(args.values, item.row, first, c0, L, n, m.D, c.counts);
    if constexpr (reads) load(args.queries, item.row, first, 0, L, K, m.Q);
    if (!factor_block<F, reads>(L, n, K, m, limit))
      return limit == kNoLimit ? Outcome::failed : Outcome::harder;
    product<false, false>(L, n, L, c.V, m.D, [&](int i, int j, F x) {
      m.E(i, j) = x;
      squares += double(x) * double(x);
    });
    if constexpr (reads)
      product<false, false>(L, L, L, c.V, m.cross,
                            [&](int i, int j, F x) { m.inside(i, j) = j >= i ? x : F(0); });
    for (int t = thread(); t < L; t += threads())
      if (c.counts[t]) logs += log(double(c.pivots[t])) + kLog2Pi;
    sync();
    product<false, false>(L, K, L, c.V, c.gain, [&](int i, int j, F x) { c.P(i, j) = x; });
    if constexpr (reads) {  // W, WS and D are free
      product<false, false>(L, n, K, m.Q, m.R,
                            [&](int i, int j, F x) { m.D(i, j) = F(c.kept[i]) * x; });
      if (stores_cov) {
        product<false, false>(L, K, K, m.Q, c.U, [&](int i, int j, F x) { c.W(i, j) = x; });
        if (!identity)
          product<false, false>(L, K, K, m.Q, c.Sigma, [&](int i, int j, F x) { c.WS(i, j) = x; });
      }
    }
    sync();
    if constexpr (reads) {
      product<true, false>(L, n, L, m.inside, m.E, [&](int i, int j, F x) { m.D(i, j) += x; });
      if (stores_cov)
        store_read_variances(args.read_var_out, item.row, first, L, K, c, m.Q, c.W,
                             either(identity, m.Q, c.WS), m.inside);
    }
    product<true, false>(K, n, L, c.P, m.E,
                         [&](int i, int j, F x) { m.R(i, j) = F(c.kept[L - 1]) * m.R(i, j) + x; });
    downdate(L, K, c);
    sync();
    if constexpr (reads) store(args.reads_out, item.row, first, c0, L, n, m.D);
  }
  squares = team_sum(squares);
  logs = team_sum(logs);
  evidence = -0.5 * (squares + double(n) * logs);
  // Values that are not finite, or whose squares overflow in F, show here.
  if (!(evidence < kInfinite && evidence > -kInfinite))
    return limit == kNoLimit ? Outcome::failed : Outcome::harder;
  store(args.mean_out, b, 0, c0, K, n, m.R);
  if (stores_cov) store(args.cov_out, b, 0, 0, K, K, c.U);
  return Outcome::done;
}

}  // namespace kanerva::cuda
