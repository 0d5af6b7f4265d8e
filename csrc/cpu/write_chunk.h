// The K x K and L x L half of a write: factors of a chunk of L steps.
//
// For a chunk with addresses W (L x K), effective noise n_t = v_t b_t and row covariance U:
//   X = W U,  S = X W' + diag(n) = F F',  V = F^-T (upper),  P = F^-1 X,  U <- U - P'P
// so that everything as wide as the code is a plain product with V, P and W. Measured against long
// double, float64 here keeps float32 data at 1e-6 where factors in float32 break down.
#pragma once

#include "../common/policy.h"
#include "in_place.h"

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

// Zeroes the neutral ones of the rows of the steps from `first` on, whole rows.
template <class A>
void clear_neutral(const Episode& e, int64_t first, const Matrix<A>& rows) {
  if (e.counts == nullptr) return;
  for (int64_t t = 0; t < rows.rows; ++t)
    if (!e.counts[first + t]) std::memset(rows[t], 0, size_t(rows.ld) * sizeof(A));
}

template <class F>
struct Chunk {
  int64_t L = 0, K = 0;
  int64_t counted = 0;    // steps that are not neutral
  Matrix<F> W, X;         // L x K: the addresses, and W U, or what the root makes of them
  Matrix<F> S, V;         // L x L: S, then its upper factor F', and F^-T
  Matrix<F> P, Wt;        // L x K: the whitened gains, which take the place of W'
  F* inverse_diagonal;    // 1 / F(t, t)
  double *noise, *decay;  // v_t b_t, and b_t: product of the decays up to t inside the chunk
  double hardness = 0.0;  // max w'Uw / noise

  Chunk(Workspace::Scope& scope, int64_t max_steps, int64_t slots)
      : K(slots),
        W(scope, max_steps, K),
        X(scope, max_steps, K),
        S(scope, max_steps, max_steps),
        V(scope, max_steps, max_steps),
        P(scope.take<F>(std::max(max_steps * W.ld, K * S.ld)), max_steps, K, W.ld),
        Wt(P.data, K, max_steps, S.ld),
        inverse_diagonal(scope.take<F>(max_steps)),
        noise(scope.take<double>(max_steps)),
        decay(scope.take<double>(max_steps)) {
    V.structure = Structure::upper;
  }

  void set_steps(int64_t steps) {
    L = steps;
    for (Matrix<F>* m : {&W, &X, &S, &V, &P}) m->rows = L;
    for (Matrix<F>* m : {&S, &V, &Wt}) m->columns = L;
  }

  double final_decay() const { return L > 0 ? decay[L - 1] : 1.0; }
};

// Steps per chunk: long enough for full tiles, short enough that the L x L work stays small.
inline int64_t chunk_steps(int64_t K, int64_t steps) {
  const int64_t limit = K <= 96 ? 32 : K <= 384 ? 64 : 128;
  return std::max<int64_t>(1, std::min(limit, steps));
}

// May the addresses stay where they lie, they are not copied if they can be used there.
template <class F>
void load_chunk(Chunk<F>& c, const View& weights, int64_t b, const Episode& e, int64_t first,
                int64_t steps, bool may_stay = false) {
  c.set_steps(steps);
  const Rows rows{e.index, first};
  if (may_stay && e.counts == nullptr && serves<F>(weights, rows, c.K, Use::all)) {
    c.W = rows_in_place<F>(weights, b, rows, steps, c.K, 0);
  } else {
    load(weights, b, rows, c.W);
    clear_neutral(e, first, c.W);
  }
  c.counted = steps;
  double product = 1.0;
  for (int64_t t = 0; t < steps; ++t) {
    if (e.decay) product *= e.decay[first + t];
    c.decay[t] = product;
    c.noise[t] = e.noise[first + t] * product;
    if (e.counts && !e.counts[first + t]) --c.counted;
  }
}

// V and P from S, whose factor takes its place. False when a pivot is not positive.
template <class F>
bool whiten(Chunk<F>& c, const Executor& executor) {
  if (!cholesky(c.S, c.inverse_diagonal)) return false;
  invert_upper(c.S, c.inverse_diagonal, c.V);
  product_transposed(executor, c.V, c.X, c.P);
  return true;
}

// Factors by Cholesky from the covariance itself (not updated here). False when the chunk is harder
// than `limit` or a pivot is not positive.
template <class F>
bool factor_chunk(Chunk<F>& c, const Matrix<F>& U, double limit, const Executor& executor) {
  transpose(c.W, c.Wt);
  product(executor, c.W, U, c.X);
  product(executor, c.X, c.Wt, c.S, Store::set, Part::upper);
  c.hardness = 0.0;
  for (int64_t t = 0; t < c.L; ++t) {
    F& d = c.S[t][t];
    c.hardness = std::max(c.hardness, double(d) / c.noise[t]);
    d += F(c.noise[t]);
  }
  return c.hardness <= limit && whiten(c, executor);
}

// to = (U - P'P) / b, exactly symmetric; it may be U.
template <class F>
void downdate(const Chunk<F>& c, const Matrix<F>& U, const Matrix<F>& to,
              const Executor& executor) {
  constexpr int64_t mirror_pays = 48;
  const bool half = c.K > mirror_pays;
  product_transposed_from(executor, U, c.P, c.P, to, Store::sub, half ? Part::upper : Part::all);
  if (half) mirror(to);
  const double b = c.final_decay();
  if (b != 1.0) scale(1.0 / b, to);
}

template <class F>
void downdate(const Chunk<F>& c, const Matrix<F>& U, const Executor& executor) {
  downdate(c, U, U, executor);
}

// The same factors from a square root of the covariance, U = root' root, by Potter's update step by
// step, which also updates the root. Nothing is squared and nothing is subtracted from U: it holds
// where Cholesky of S loses all digits (Grewal and Andrews, Kalman Filtering, ch. 7).
// after_step(t) is called when step t is in the root, which lacks the decays of the chunk.
template <class F, class AfterStep>
bool factor_chunk_sqrt(Chunk<F>& c, const Matrix<F>& root, AfterStep&& after_step) {
  using V = Simd<F>;
  const int64_t L = c.L, K = c.K, wide = padded<F>(K);
  c.hardness = 0.0;
  for (int64_t t = 0; t < L; ++t) {
    const F* w = c.W[t];
    F *gain = c.P[t], *phi = c.X[t];
    double energy = 0.0;
    for (int64_t j = 0; j < wide; j += V::width) V::store(gain + j, typename V::Vector{});
    V::store(phi + wide - V::width, typename V::Vector{});
    for (int64_t k = 0; k < K; ++k) {
      const F* row = root[k];
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
    for (int64_t k = 0; k < K; ++k) axpy(0, K, factor * phi[k], gain, root[k]);
    const F inverse = F(1.0 / std::sqrt(s));
    c.inverse_diagonal[t] = inverse;
    scale(0, K, inverse, gain);
    // Column t of F' : F(t, s) = w_t . p_s for s < t.
    for (int64_t q = 0; q < t; ++q) c.S[q][t] = F(row_dot(K, c.P[q], w));
    c.S[t][t] = F(std::sqrt(s));
    after_step(t);
  }
  invert_upper(c.S, c.inverse_diagonal, c.V);
  const double b = c.final_decay();
  if (b != 1.0) scale(1.0 / std::sqrt(b), root);
  return true;
}

// The factors from the covariance, or from its root, which is updated.
template <class F, class AfterStep>
Outcome factor(Chunk<F>& c, const Matrix<F>& U, bool use_sqrt, double limit,
               const Executor& executor, AfterStep&& after_step) {
  const bool ok =
      use_sqrt ? factor_chunk_sqrt(c, U, after_step) : factor_chunk(c, U, limit, executor);
  if (!(c.hardness <= limit)) return Outcome::harder;
  if (ok) return Outcome::done;
  return use_sqrt ? Outcome::failed : Outcome::harder;
}

template <class F>
Outcome factor(Chunk<F>& c, const Matrix<F>& U, bool use_sqrt, double limit,
               const Executor& executor) {
  return factor(c, U, use_sqrt, limit, executor, [](int64_t) {});
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

// A mean as blocks of columns.
template <class A>
struct MeanBlocks {
  A* data;
  int64_t rows;
  Columns columns;

  MeanBlocks(A* first, int64_t K, const Columns& all) : data(first), rows(K), columns(all) {}
  MeanBlocks(Workspace::Scope& scope, int64_t K, const Columns& all)
      : MeanBlocks(scope.take<A>(size(K, all)), K, all) {}

  static int64_t size(int64_t K, const Columns& all) { return all.count * K * all.width; }
  size_t bytes() const { return size_t(size(rows, columns)) * sizeof(A); }
  Matrix<A> operator[](int64_t block) const {
    return {data + block * rows * columns.width, rows, columns.of(block), columns.width};
  }
};

// Room for m rows of a block of columns.
template <class A>
Matrix<A> take_block(Workspace::Scope& scope, int64_t m, const Columns& columns, int64_t block) {
  return {scope.take<A>(m * columns.width), m, columns.of(block), columns.width};
}

template <class A>
void load(const View& v, int64_t b, const MeanBlocks<A>& mean) {
  for (int64_t i = 0; i < mean.columns.count; ++i) load(v, b, Rows{}, mean[i], mean.columns.at(i));
}

template <class A>
void store(const View& v, int64_t b, const MeanBlocks<A>& mean) {
  for (int64_t i = 0; i < mean.columns.count; ++i) store(v, b, Rows{}, mean[i], mean.columns.at(i));
}

// A belief before a chunk. U is the covariance, or its root in sqrt form.
template <class A, class F>
struct Belief {
  Matrix<F> U;
  MeanBlocks<A> R;

  void copy_from(const Belief& other) const {
    copy(other.U, U);
    std::memcpy(R.data, other.R.data, R.bytes());
  }
};

// Those at the starts of consecutive chunks.
template <class A, class F>
class States {
 public:
  States(Workspace::Scope& scope, int64_t count, int64_t K, const Columns& columns)
      : K_(K),
        columns_(columns),
        covs_(scope, count * K, K),
        means_(scope.take<A>(count * MeanBlocks<A>::size(K, columns))) {}

  Belief<A, F> operator[](int64_t i) const {
    A* mean = means_ + i * MeanBlocks<A>::size(K_, columns_);
    return {{covs_[i * K_], K_, K_, covs_.ld}, {mean, K_, columns_}};
  }

 private:
  const int64_t K_;
  const Columns columns_;
  const Matrix<F> covs_;
  A* const means_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
