// The K x K and L x L half of a write: factors of a chunk of L steps.
//
// For a chunk with addresses W (L x K), effective noise n_t = v_t b_t and row covariance U:
//   X = W U,  S = X W' + diag(n) = F F',  V = F^-T (upper),  P = F^-1 X,  U <- U - P'P
// so that everything as wide as the code is a plain product with V, P and W. Measured against long
// double, float64 here keeps float32 data at 1e-6 where factors in float32 break down.
#pragma once

#include "../common/policy.h"
#include "factor.h"
#include "load.h"
#include "workspace.h"

namespace kanerva {
namespace KANERVA_ISA {

// The steps of one episode that are written, with their noise and decay.
struct Episode {
  int64_t steps = 0;
  const int64_t* index = nullptr;  // steps that the mask keeps; null: all
  const double* noise = nullptr;
  const double* decay = nullptr;  // null: none
  bool valid = true;              // noise positive and finite, decay in (0, 1]
  // Where every step stays, those that the mask keeps; the others are neutral: address and value
  // zero, noise and decay one. Null: all count.
  const bool* counts = nullptr;
};

inline Episode gather_episode(Workspace::Scope& scope, int64_t T, int64_t b, const View& noise_var,
                              const View& mask, const View& decay) {
  Episode e;
  if (mask) {
    const bool* kept = static_cast<const bool*>(mask.data) + b * mask.stride[0];
    int64_t* index = scope.take<int64_t>(T);
    for (int64_t t = 0; t < T; ++t)
      if (kept[t * mask.stride[1]]) index[e.steps++] = t;
    e.index = index;
  } else {
    e.steps = T;
  }
  const auto collect = [&](const View& v, double upper) {
    double* x = scope.take<double>(e.steps);
    with_type(v, [&](auto* base) {
      for (int64_t t = 0; t < e.steps; ++t) {
        x[t] = double(base[b * v.stride[0] + (e.index ? e.index[t] : t) * v.stride[1]]);
        e.valid = e.valid && x[t] > 0.0 && x[t] <= upper;
      }
    });
    return x;
  };
  e.noise = collect(noise_var, kLargestNoise);
  if (decay) e.decay = collect(decay, 1.0);
  return e;
}

// All the steps, those that the mask drops as neutral ones.
inline Episode gather_all_steps(Workspace::Scope& scope, int64_t T, int64_t b,
                                const View& noise_var, const View& mask, const View& decay) {
  if (!mask) return gather_episode(scope, T, b, noise_var, mask, decay);
  bool* counts = scope.take<bool>(T);
  double* noise = scope.take<double>(T);
  double* shrink = decay ? scope.take<double>(T) : nullptr;
  for (int64_t t = 0; t < T; ++t) {
    counts[t] = false;
    noise[t] = 1.0;
    if (decay) shrink[t] = 1.0;
  }
  Workspace::Scope kept(Workspace::of_thread());
  Episode e = gather_episode(kept, T, b, noise_var, mask, decay);
  for (int64_t i = 0; i < e.steps; ++i) {
    counts[e.index[i]] = true;
    noise[e.index[i]] = e.noise[i];
    if (decay) shrink[e.index[i]] = e.decay[i];
  }
  return {T, nullptr, noise, shrink, e.valid, counts};
}

// Zeroes the neutral ones of the rows of steps [first, first + steps), whole rows.
template <class A>
void clear_neutral(const Episode& e, int64_t first, int64_t steps, A* rows, int64_t ld) {
  if (e.counts == nullptr) return;
  for (int64_t t = 0; t < steps; ++t)
    if (!e.counts[first + t]) std::memset(rows + t * ld, 0, size_t(ld) * sizeof(A));
}

template <class F>
struct Chunk {
  int64_t counted = 0;  // steps that are not neutral
  int64_t L = 0, K = 0, ldl = 0, ldk = 0;
  F* W;                   // L x K addresses
  F* Wt;                  // K x L; P takes its place
  F* X;                   // L x K
  F* S;                   // L x L, then its upper factor F'
  F* V;                   // L x L upper, F^-T
  F* P;                   // L x K whitened gains
  F* inverse_diagonal;    // 1 / F(t, t)
  double* noise;          // v_t b_t
  double* decay;          // b_t: product of the decays up to t inside the chunk
  double hardness = 0.0;  // max w'Uw / noise

  Chunk(Workspace::Scope& scope, int64_t max_steps, int64_t slots)
      : K(slots), ldl(row_stride<F>(max_steps)), ldk(row_stride<F>(slots)) {
    W = scope.take<F>(max_steps * ldk);
    X = scope.take<F>(max_steps * ldk);
    S = scope.take<F>(max_steps * ldl);
    V = scope.take<F>(max_steps * ldl);
    P = Wt = scope.take<F>(std::max(max_steps * ldk, K * ldl));
    inverse_diagonal = scope.take<F>(max_steps);
    noise = scope.take<double>(max_steps);
    decay = scope.take<double>(max_steps);
  }

  double final_decay() const { return L > 0 ? decay[L - 1] : 1.0; }
};

// Steps per chunk: long enough for full tiles, short enough that the L x L work stays small.
inline int64_t chunk_steps(int64_t K, int64_t steps) {
  const int64_t limit = K <= 96 ? 32 : K <= 384 ? 64 : 128;
  return std::max<int64_t>(1, std::min(limit, steps));
}

template <class F>
void load_chunk(Chunk<F>& c, const View& weights, int64_t b, const Episode& e, int64_t first,
                int64_t steps) {
  c.L = steps;
  load(weights, b, Rows{e.index, first}, steps, 0, c.K, c.W, c.ldk);
  clear_neutral(e, first, steps, c.W, c.ldk);
  c.counted = steps;
  double product = 1.0;
  for (int64_t t = 0; t < steps; ++t) {
    if (e.decay) product *= e.decay[first + t];
    c.decay[t] = product;
    c.noise[t] = e.noise[first + t] * product;
    if (e.counts && !e.counts[first + t]) --c.counted;
  }
}

// Factors by Cholesky from the covariance itself (not updated here). False when the chunk is harder
// than `limit` or a pivot is not positive.
template <class F>
bool factor_chunk(Chunk<F>& c, const F* U, double limit, const Executor& executor) {
  const int64_t L = c.L, K = c.K;
  transpose(L, K, c.W, c.ldk, c.Wt, c.ldl);
  gemm<false>(executor, L, K, K, c.W, c.ldk, U, c.ldk, c.X, c.ldk, Store::set);
  gemm<false>(executor, L, L, K, c.X, c.ldk, c.Wt, c.ldl, c.S, c.ldl, Store::set, Structure::full,
              Part::upper);
  c.hardness = 0.0;
  for (int64_t t = 0; t < L; ++t) {
    F& d = c.S[t * c.ldl + t];
    c.hardness = std::max(c.hardness, double(d) / c.noise[t]);
    d += F(c.noise[t]);
  }
  if (!(c.hardness <= limit) || !cholesky(L, c.S, c.ldl, c.inverse_diagonal)) return false;
  invert_upper(L, c.S, c.ldl, c.inverse_diagonal, c.V, c.ldl);
  gemm<true>(executor, L, K, L, c.V, c.ldl, c.X, c.ldk, c.P, c.ldk, Store::set, Structure::lower);
  return true;
}

// U <- (U - P'P) / b, exactly symmetric.
template <class F>
void downdate(const Chunk<F>& c, F* U, const Executor& executor) {
  constexpr int64_t mirror_pays = 48;
  const bool half = c.K > mirror_pays;
  gemm<true>(executor, c.K, c.K, c.L, c.P, c.ldk, c.P, c.ldk, U, c.ldk, Store::sub, Structure::full,
             half ? Part::upper : Part::all);
  if (half) mirror(c.K, U, c.ldk);
  const double b = c.final_decay();
  if (b != 1.0)
    for (int64_t i = 0; i < c.K; ++i) scale(0, c.K, F(1.0 / b), U + i * c.ldk);
}

// The same factors from a square root of the covariance, U = root' root, by Potter's update step by
// step, which also updates the root. Nothing is squared and nothing is subtracted from U: it holds
// where Cholesky of S loses all digits (Grewal and Andrews, Kalman Filtering, ch. 7).
// after_step(t) is called when step t is in the root, which lacks the decays of the chunk.
template <class F, class AfterStep>
bool factor_chunk_sqrt(Chunk<F>& c, F* root, Workspace& workspace, AfterStep&& after_step) {
  const int64_t L = c.L, K = c.K, wide = padded<F>(K);
  using V = Simd<F>;
  Workspace::Scope scope(workspace);
  F* phi = scope.take<F>(K);
  c.hardness = 0.0;
  for (int64_t t = 0; t < L; ++t) {
    const F* w = c.W + t * c.ldk;
    F* gain = c.P + t * c.ldk;
    double energy = 0.0;
    for (int64_t j = 0; j < wide; j += V::width) V::store(gain + j, typename V::Vector{});
    for (int64_t k = 0; k < K; ++k) {
      const F* row = root + k * c.ldk;
      typename V::Vector sum{};
      for (int64_t j = 0; j < wide; j += V::width) sum += V::load(row + j) * V::load(w + j);
      const F x = F(V::sum(sum));
      phi[k] = x;
      energy += x * x;
      axpy(0, K, x, row, gain);
    }
    // Decay enters as noise scaled by b_t; the root is divided by sqrt(b) at the end of the chunk.
    const double s = energy + c.noise[t];
    if (!(s > 0.0 && s < HUGE_VAL)) return false;
    c.hardness = std::max(c.hardness, energy / c.noise[t]);
    const F factor = F(-1.0 / (s + std::sqrt(c.noise[t] * s)));
    for (int64_t k = 0; k < K; ++k) axpy(0, K, factor * phi[k], gain, root + k * c.ldk);
    const F inverse = F(1.0 / std::sqrt(s));
    c.inverse_diagonal[t] = inverse;
    scale(0, K, inverse, gain);
    // Column t of F' : F(t, s) = w_t . p_s for s < t.
    F* column = c.S + t;
    for (int64_t q = 0; q < t; ++q) {
      typename V::Vector sum{};
      const F* p = c.P + q * c.ldk;
      for (int64_t j = 0; j < wide; j += V::width) sum += V::load(p + j) * V::load(w + j);
      column[q * c.ldl] = F(V::sum(sum));
    }
    column[t * c.ldl] = F(std::sqrt(s));
    after_step(t);
  }
  invert_upper(L, c.S, c.ldl, c.inverse_diagonal, c.V, c.ldl);
  const double b = c.final_decay();
  if (b != 1.0)
    for (int64_t k = 0; k < K; ++k) scale(0, K, F(1.0 / std::sqrt(b)), root + k * c.ldk);
  return true;
}

template <class F>
bool factor_chunk_sqrt(Chunk<F>& c, F* root, Workspace& workspace) {
  return factor_chunk_sqrt(c, root, workspace, [](int64_t) {});
}

// Column blocks: as wide as a cache-resident update allows, of even width.
struct Columns {
  int64_t C = 0, width = 0, count = 0;
  int64_t at(int64_t block) const { return block * width; }
  int64_t of(int64_t block) const { return std::min(width, C - at(block)); }
};

template <class A>
Columns split_columns(int64_t C) {
  constexpr int64_t widest = 2 * kVectors * Simd<A>::width;
  const int64_t count = std::max<int64_t>(1, (C + widest - 1) / widest);
  const int64_t width = padded<A>(std::max<int64_t>(1, (C + count - 1) / count));
  return {C, width, C > 0 ? (C + width - 1) / width : 0};
}

// Beliefs at the starts of consecutive chunks. U is the covariance, or its root in sqrt form.
template <class A, class F>
struct States {
  int64_t U_size, R_size;
  F* U;
  A* R;
  States(Workspace::Scope& scope, int64_t count, int64_t U_elements, int64_t R_elements)
      : U_size(U_elements), R_size(R_elements) {
    U = scope.take<F>(count * U_elements);
    R = scope.take<A>(count * R_elements);
  }
  F* cov(int64_t i) const { return U + i * U_size; }
  A* mean(int64_t i) const { return R + i * R_size; }
  void copy(int64_t to, const States& source, int64_t from) const {
    std::memcpy(cov(to), source.cov(from), size_t(U_size) * sizeof(F));
    std::memcpy(mean(to), source.mean(from), size_t(R_size) * sizeof(A));
  }
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
