// A chunk of a write into a memory that moves: factors.
//
// Before step t the memory forgets towards its stationary belief N(0, Sigma): R <- a R and
// U <- a^2 U + (1 - a^2) Sigma, with a the retention of the step. For a chunk let b_t be the
// product of the retentions up to t, h_t = 1 - b_t^2, g_st that of those after s up to t, and
// N_st = g_st h_s for s <= t, symmetric: what is new since the start of the chunk. Then
//   S = b b' o (W U W') + N o (W Sigma W') + diag(v) = F F',  V = F^-T,
//   P = F^-1 (b_L D_b W U + D_n W Sigma),  n_t = N_tL,
//   U <- b_L^2 U + h_L Sigma - P'P,
// and all that is as wide as the code is a product with D_b W, P and V, as in write_chunk.h. Both
// covariances enter with weights that are not negative, and nothing is divided by b: retentions may
// be as small as they like. Where they are one, this is write_chunk.h.
#pragma once

#include "bayes_write.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class F>
struct StationaryChunk {
  int64_t L = 0, K = 0;
  int64_t counted = 0;           // steps that are not neutral
  Matrix<F> W, WS, X;            // L x K: the addresses, W Sigma, which may be W, and W U
  Matrix<F> moved;               // D_b W
  Matrix<F> gain, P, Wt;         // L x K: F P, and P, which takes the place of W'
  Matrix<F> prior, stationary;   // L x L, above the diagonal: W U W' and W Sigma W'
  Matrix<F> S, V;                // L x L: S, then its upper factor F', and F^-T
  Matrix<F> renewal;             // N
  Matrix<double> between;        // g_st in row t
  F *inverse_diagonal, *factor;  // 1 / F(t, t), and b_t
  double *kept, *fresh;          // b_t and h_t
  const double* noise = nullptr;
  // How much of the variance of an address cancels. Of factors in float64 the largest ratio of
  // what it is without the chunk's writes, or in the stationary state, to a pivot of S: what moves
  // keeps pivots large, however small the noise, and forgets errors of U at the same rate. Of those
  // in float32 the one to the noise, which bounds it: that is what is left in a covariance.
  double hardness = 0.0;

  StationaryChunk(Workspace::Scope& scope, int64_t max_steps, int64_t slots, bool identity)
      : K(slots),
        W(scope, max_steps, K),
        WS(identity ? W : Matrix<F>(scope, max_steps, K)),
        X(scope, max_steps, K),
        moved(scope, max_steps, K),
        gain(scope, max_steps, K),
        prior(scope, max_steps, max_steps),
        stationary(scope, max_steps, max_steps),
        S(scope, max_steps, max_steps),
        V(scope, max_steps, max_steps),
        renewal(scope, max_steps, max_steps),
        between(scope, max_steps, max_steps),
        inverse_diagonal(scope.take<F>(max_steps)),
        factor(scope.take<F>(padded<F>(max_steps))),
        kept(scope.take<double>(max_steps)),
        fresh(scope.take<double>(padded<double>(max_steps))) {
    P = Matrix<F>(scope.take<F>(std::max(max_steps * W.ld, K * S.ld)), max_steps, K, W.ld);
    Wt = Matrix<F>(P.data, K, max_steps, S.ld);
    V.structure = Structure::upper;
    prior.zero();
    stationary.zero();
  }

  void set_steps(int64_t steps) {
    L = steps;
    for (Matrix<F>* m : {&W, &WS, &X, &moved, &gain, &P}) m->rows = L;
    for (Matrix<F>* m : {&prior, &stationary, &S, &V, &renewal}) m->rows = m->columns = L;
    Wt.columns = between.rows = between.columns = L;
  }

  double last_kept() const { return kept[L - 1]; }
  double last_fresh() const { return fresh[L - 1]; }
};

// b, h, g and N of the steps from `first` on.
template <class F>
void load_dynamics(StationaryChunk<F>& c, const Episode& e, int64_t first) {
  Workspace::Scope scope(Workspace::of_thread());
  const int64_t L = c.L;
  const Matrix<F> lower(scope, L, L);
  const int64_t wide = std::max(padded<double>(L), padded<F>(L));
  double kept = 1.0, fresh = 0.0;
  for (int64_t t = 0; t < padded<F>(L); ++t) c.factor[t] = F(0);
  for (int64_t t = 0; t < L; ++t) {
    const double a = e.decay[first + t];
    kept *= a;
    fresh = a * a * fresh + (1.0 - a) * (1.0 + a);
    c.kept[t] = kept;
    c.fresh[t] = fresh;
    c.factor[t] = F(kept);
    double* g = c.between[t];
    std::memset(g, 0, size_t(c.between.ld) * sizeof(double));
    if (t > 0)
      for (int64_t s = 0; s < t; ++s) g[s] = a * c.between[t - 1][s];
    g[t] = 1.0;
    for (int64_t s = 0; s <= t; ++s) lower[t][s] = F(g[s] * c.fresh[s]);
    for (int64_t s = t + 1; s < std::min(wide, lower.ld); ++s) lower[t][s] = F(0);
  }
  transpose(lower, c.renewal);
  mirror(c.renewal);
}

// rows t of `to` = alpha b_t times those of `from`, whole vectors.
template <class F>
void move_rows(const StationaryChunk<F>& c, double alpha, const Matrix<F>& from,
               const Matrix<F>& to) {
  using V = Simd<F>;
  for (int64_t t = 0; t < c.L; ++t) {
    const auto b = V::broadcast(F(alpha * c.kept[t]));
    for (int64_t j = 0; j < from.columns; j += V::width)
      V::store(to[t] + j, b * V::load(from[t] + j));
  }
}

// b b' o prior + N o stationary; `to` may be either.
template <class F>
void combine(const StationaryChunk<F>& c, const Matrix<F>& prior, const Matrix<F>& stationary,
             const Matrix<F>& to) {
  using V = Simd<F>;
  for (int64_t s = 0; s < c.L; ++s) {
    const auto b = V::broadcast(c.factor[s]);
    for (int64_t t = 0; t < c.L; t += V::width)
      V::store(to[s] + t, b * V::load(c.factor + t) * V::load(prior[s] + t) +
                              V::load(c.renewal[s] + t) * V::load(stationary[s] + t));
  }
}

// The addresses of the steps from `first` on, and what the dynamics make of them. `Sigma` absent:
// the identity.
template <class F>
void load_chunk(StationaryChunk<F>& c, const View& weights, const Episode& e, int64_t first,
                int64_t steps, const Matrix<F>& Sigma, const Executor& executor) {
  c.set_steps(steps);
  load(weights, 0, Rows{nullptr, first}, c.W);
  clear_neutral(e, first, c.W);
  load_dynamics(c, e, first);
  c.noise = e.noise + first;
  c.counted = steps;
  for (int64_t t = 0; t < steps; ++t)
    if (e.counts && !e.counts[first + t]) --c.counted;
  move_rows(c, 1.0, c.W, c.moved);
  transpose(c.W, c.Wt);
  if (Sigma) product(executor, c.W, Sigma, c.WS);
  product(executor, c.WS, c.Wt, c.stationary, Store::set, Part::upper);
}

// False when the chunk is harder than `limit` or a pivot is not positive.
template <class F>
bool factor_chunk(StationaryChunk<F>& c, const Matrix<F>& U, double limit,
                  const Executor& executor) {
  using V = Simd<F>;
  Workspace::Scope scope(Workspace::of_thread());
  product(executor, c.W, U, c.X);
  product(executor, c.X, c.Wt, c.prior, Store::set, Part::upper);
  combine(c, c.prior, c.stationary, c.S);
  F* before = scope.take<F>(c.L);
  double by_noise = 0.0, by_pivot = 0.0;
  for (int64_t t = 0; t < c.L; ++t) {
    before[t] = c.S[t][t];
    by_noise = std::max(by_noise, double(before[t]) / c.noise[t]);
    c.S[t][t] += F(c.noise[t]);
  }
  constexpr bool narrow_factors = std::is_same_v<F, float>;
  if (narrow_factors && !(by_noise <= limit)) return false;
  if (!cholesky(c.S, c.inverse_diagonal)) return false;
  for (int64_t t = 0; t < c.L; ++t) {
    const double variance = std::max(double(before[t]), double(c.stationary[t][t]));
    const double inverse = double(c.inverse_diagonal[t]);
    by_pivot = std::max(by_pivot, variance * inverse * inverse);
  }
  c.hardness = narrow_factors ? by_noise : by_pivot;
  if (!(c.hardness <= limit)) return false;
  invert_upper(c.S, c.inverse_diagonal, c.V);
  for (int64_t t = 0; t < c.L; ++t) {
    const auto b = V::broadcast(F(c.last_kept() * c.kept[t]));
    const auto n = V::broadcast(c.renewal[t][c.L - 1]);
    for (int64_t j = 0; j < c.K; j += V::width)
      V::store(c.gain[t] + j, b * V::load(c.X[t] + j) + n * V::load(c.WS[t] + j));
  }
  product_transposed(executor, c.V, c.gain, c.P);
  return true;
}

// U <- b^2 U + h Sigma, of a covariance.
template <class F>
void move_covariance(double kept, double fresh, const Matrix<F>& Sigma, const Matrix<F>& U,
                     const Executor& executor) {
  using V = Simd<F>;
  if (kept == 1.0 && fresh == 0.0) return;
  const auto b = V::broadcast(F(kept * kept)), h = V::broadcast(F(fresh));
  for_rows(executor, U.rows, U.columns, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      for (int64_t j = 0; j < U.columns; j += V::width) {
        auto x = b * V::load(U[i] + j);
        if (Sigma) x += h * V::load(Sigma[i] + j);
        V::store(U[i] + j, x);
      }
      if (!Sigma) U[i][i] += F(fresh);
    }
  });
}

// U <- b_L^2 U + h_L Sigma - P'P, exactly symmetric.
template <class F>
void downdate(const StationaryChunk<F>& c, const Matrix<F>& Sigma, const Matrix<F>& U,
              const Executor& executor) {
  constexpr int64_t mirror_pays = 48;
  const bool half = c.K > mirror_pays;
  move_covariance(c.last_kept(), c.last_fresh(), Sigma, U, executor);
  product_transposed(executor, c.P, c.P, U, Store::sub, half ? Part::upper : Part::all);
  if (half) mirror(U);
}

// Of a chunk, given sum |E|^2.
template <class F>
double chunk_log_evidence(const StationaryChunk<F>& c, int64_t C, double quadratic) {
  LogProduct inverse;
  for (int64_t t = 0; t < c.L; ++t) inverse.multiply(c.inverse_diagonal[t]);
  return -0.5 *
         (quadratic - double(C) * 2.0 * inverse.value() + double(c.counted) * double(C) * kLog2Pi);
}

// What the columns need of a chunk, in their arithmetic: D_b W, P and V.
template <class A, class F>
struct StationaryFactors : ChunkFactors<A> {
  StationaryFactors(Workspace::Scope& scope, const StationaryChunk<F>& c)
      : ChunkFactors<A>(scope, c.moved, c.P, c.V) {}

  void take(const StationaryChunk<F>& c) {
    take_into(this->W, c.moved);
    take_into(this->P, c.P);
    take_into(this->V, c.V);
  }
};

// Sigma of an item in the arithmetic of its factors; absent: the identity.
template <class F>
Matrix<F> load_stationary(Workspace::Scope& scope, const View& stationary_cov, int64_t K) {
  if (!stationary_cov) return {};
  Matrix<F> Sigma(scope, K, K);
  load_covariance(stationary_cov, 0, Sigma);
  return Sigma;
}

// Steps of a chunk: those of a scan, or of a write where there are no reads. More than twice the
// slots would overwrite the memory several times over, which costs digits and gains no speed.
inline int64_t stationary_steps(int64_t K, int64_t chunk_size, bool reads, int64_t steps) {
  constexpr int64_t longest = 128;
  int64_t L = K <= 96 ? 16 : K <= 192 ? 32 : 64;
  if (!reads) L = chunk_steps(K, steps);
  if (chunk_size > 0) L = std::min(chunk_size, longest);
  L = std::min(L, std::max<int64_t>(16, 2 * K));
  return std::max<int64_t>(1, std::min(L, steps));
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
