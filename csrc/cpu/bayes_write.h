// The exact Bayesian write of an episode: forward.
//
// Source: Wu et al., The Kanerva Machine (ICLR 2018), batch form of the update, applied chunk by
// chunk. The K x K half is in write_chunk.h; here is the half as wide as the code. For a block of
// columns,
//   D = Z - W R,  E = F^-1 D,  R <- R + P'E,  log_evidence -= (b |E|^2 + ...) / 2.
#pragma once

#include "../common/policy.h"
#include "information.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

// Factors of a chunk in the arithmetic A of the columns.
template <class A>
struct ChunkFactors {
  int64_t ldk, ldl;
  A *W, *P, *V;  // L x K, L x K, L x L

  template <class F>
  ChunkFactors(Workspace::Scope& scope, const Chunk<F>& c, int64_t max_steps)
      : ldk(row_stride<A>(c.K)), ldl(row_stride<A>(max_steps)) {
    if constexpr (std::is_same_v<A, F>) {  // those of the chunk themselves
      W = c.W, P = c.P, V = c.V;
    } else {
      W = scope.take<A>(max_steps * ldk);
      P = scope.take<A>(max_steps * ldk);
      V = scope.take<A>(max_steps * ldl);
    }
  }
  template <class F>
  void take(const Chunk<F>& c) {
    if constexpr (!std::is_same_v<A, F>) {
      convert(c.L, c.K, c.W, c.ldk, W, ldk);
      convert(c.L, c.K, c.P, c.ldk, P, ldk);
      convert(c.L, c.L, c.V, c.ldl, V, ldl);
    }
  }
};

// D = Z - W R and E = F^-1 D of a block of n columns; D may be null when only E is wanted.
template <class A>
void innovations(const ChunkFactors<A>& f, int64_t L, int64_t K, int64_t n, A* D, const A* R,
                 int64_t ld, A* E) {
  gemm<false>(L, n, K, f.W, f.ldk, R, ld, D, ld, Store::sub);
  gemm<true>(L, n, L, f.V, f.ldl, D, ld, E, ld, Store::set, Structure::lower);
}

// sum_t weight_t |E_t|^2: a row in its own arithmetic, the rows in float64.
template <class A>
double weighted_square(int64_t L, int64_t n, const A* E, int64_t ld, const double* weight) {
  using V = Simd<A>;
  typename V::Wide total{};
  for (int64_t t = 0; t < L; ++t) {
    typename V::Vector row{};
    for (int64_t j = 0; j < n; j += V::width) {
      const auto e = V::load(E + t * ld + j);
      row += e * e;
    }
    total += weight[t] * __builtin_convertvector(row, typename V::Wide);
  }
  double sum = 0.0;
  for (int l = 0; l < V::width; ++l) sum += total[l];
  return sum;
}

// Where the mean comes from before a chunk and goes to after it, beside its scratch copy; empty
// inside an episode. The first and last chunk move a block of columns while it is in the cache.
struct MeanEnds {
  View from, to;
};

// Writes the chunk into the mean R (blocks of K x width); returns sum_t b_t |E_t|^2.
template <class A, class F>
double write_columns(const Chunk<F>& c, const ChunkFactors<A>& f, const Columns& columns,
                     const View& values, int64_t b, const Episode& e, int64_t first,
                     const MeanEnds& mean, A* R, double* partial, const Executor& executor) {
  executor.for_each(columns.count, [&](int64_t block) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t ld = columns.width, n = columns.of(block), c0 = columns.at(block);
    A* D = scope.take<A>(c.L * ld);
    A* E = scope.take<A>(c.L * ld);
    A* Rb = R + block * c.K * ld;
    if (mean.from) load(mean.from, b, Rows{}, c.K, c0, n, Rb, ld);
    load(values, b, Rows{e.index, first}, c.L, c0, n, D, ld);
    clear_neutral(e, first, c.L, D, ld);
    innovations(f, c.L, c.K, n, D, Rb, ld, E);
    gemm<true>(c.K, n, c.L, f.P, f.ldk, E, ld, Rb, ld, Store::add);
    partial[block] = weighted_square(c.L, n, E, ld, c.decay);
    if (mean.to) store(mean.to, b, Rows{}, c.K, c0, n, Rb, ld);
  });
  double total = 0.0;
  for (int64_t i = 0; i < columns.count; ++i) total += partial[i];
  return total;
}

template <class A>
void load_mean(const View& mean, int64_t b, int64_t K, const Columns& columns, A* R) {
  for (int64_t i = 0; i < columns.count; ++i)
    load(mean, b, Rows{}, K, columns.at(i), columns.of(i), R + i * K * columns.width,
         columns.width);
}

template <class A>
void store_mean(const View& mean, int64_t b, int64_t K, const Columns& columns, const A* R) {
  for (int64_t i = 0; i < columns.count; ++i)
    store(mean, b, Rows{}, K, columns.at(i), columns.of(i), R + i * K * columns.width,
          columns.width);
}

// Upper factor of the covariance of item b, zeros below: U = root' root. Writes with tiny noise
// leave a covariance that the rounding of its own dtype makes indefinite; it is served with that
// rounding added to the diagonal. False for any other that is not positive definite.
template <class F>
bool load_root(const View& cov, int64_t b, int64_t K, F* root, int64_t ldk, Workspace& workspace) {
  Workspace::Scope scope(workspace);
  F* inverse_diagonal = scope.take<F>(K);
  load(cov, b, Rows{}, K, 0, K, root, ldk);
  double largest = 0.0;
  for (int64_t i = 0; i < K; ++i) largest = std::max(largest, double(root[i * ldk + i]));
  if (!cholesky(K, root, ldk, inverse_diagonal)) {
    load(cov, b, Rows{}, K, 0, K, root, ldk);
    for (int64_t i = 0; i < K; ++i)
      root[i * ldk + i] += F(2.0 * double(K) * rounding_of(cov.dtype) * largest);
    if (!cholesky(K, root, ldk, inverse_diagonal)) return false;
  }
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = 0; j < i; ++j) root[i * ldk + j] = F(0);
  return true;
}

// Adds the log evidence of a chunk, given sum b |E|^2.
template <class F>
double chunk_log_evidence(const Chunk<F>& c, int64_t C, double quadratic) {
  LogProduct inverse, decay;
  for (int64_t t = 0; t < c.L; ++t) {
    inverse.multiply(c.inverse_diagonal[t]);
    decay.multiply(c.decay[t]);
  }
  return -0.5 * (quadratic - double(C) * (2.0 * inverse.value() + decay.value()) +
                 double(c.counted) * double(C) * kLog2Pi);
}

// One episode with the columns in arithmetic A and the factors in F. `limit`: the hardness
// max w'Uw/v above which this arithmetic is given up. `use_sqrt` asks for F = double.
template <class A, class F>
Outcome write_item(const BayesWriteArgs& args, int64_t b, const Episode& e, bool use_sqrt,
                   double limit, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace& workspace = Workspace::of_thread();
  Workspace::Scope scope(workspace);
  const int64_t step = chunk_steps(K, e.steps);
  Chunk<F> chunk(scope, step, K);
  ChunkFactors<A> factors(scope, chunk, step);
  const Columns columns = split_columns<A>(C);
  F* U = scope.take<F>(K * chunk.ldk);
  A* R = scope.take<A>(columns.count * K * columns.width);
  double* partial = scope.take<double>(columns.count);
  if (!use_sqrt) {
    load(args.cov, b, Rows{}, K, 0, K, U, chunk.ldk);
  } else if (!load_root(args.cov, b, K, U, chunk.ldk, workspace)) {
    return Outcome::failed;
  }

  double log_evidence = 0.0;
  for (int64_t first = 0; first < e.steps; first += step) {
    const int64_t steps = std::min(step, e.steps - first);
    load_chunk(chunk, args.weights, b, e, first, steps);
    const bool ok =
        use_sqrt ? factor_chunk_sqrt(chunk, U, workspace) : factor_chunk(chunk, U, limit, executor);
    if (!(chunk.hardness <= limit)) return Outcome::harder;
    if (!ok) return use_sqrt ? Outcome::failed : Outcome::harder;
    factors.take(chunk);
    const MeanEnds ends = {first == 0 ? args.mean : View{},
                           first + steps == e.steps ? args.mean_out : View{}};
    const double quadratic = write_columns(chunk, factors, columns, args.values, b, e, first, ends,
                                           R, partial, executor);
    log_evidence += chunk_log_evidence(chunk, C, quadratic);
    if (!use_sqrt) downdate(chunk, U, executor);
  }

  // Values that are not finite, or whose squares overflow in A, show here.
  if (!std::isfinite(log_evidence)) return limit == kNoLimit ? Outcome::failed : Outcome::harder;

  F* cov = U;
  if (use_sqrt) {
    cov = scope.take<F>(K * chunk.ldk);
    gemm<true>(executor, K, K, K, U, chunk.ldk, U, chunk.ldk, cov, chunk.ldk, Store::set);
  }
  if (e.steps == 0) {
    load_mean(args.mean, b, K, columns, R);
    store_mean(args.mean_out, b, K, columns, R);
  }
  store(args.cov_out, b, Rows{}, K, 0, K, cov, chunk.ldk);
  store_scalar(args.log_evidence, b, 0, log_evidence);
  return Outcome::done;
}

// The forms of the write from the cheapest that may serve to the one that always does. A method
// that was asked for is where to start: one that would lose digits gives way to the next.
template <class S>
Outcome write_adaptively(const BayesWriteArgs& args, int64_t b, const Episode& e,
                         const Executor& executor) {
  constexpr bool narrow_state = std::is_same_v<S, float>;
  if (information_serves(args.method, bool(args.decay), e.steps, args.n.K)) {
    const double limit = information_limit(args.mean.dtype);
    if (narrow_state && args.n.K >= kManySlots &&
        InformationWrite<float>(args, b, e, executor).run(limit, kEasyInformation))
      return Outcome::done;
    if (InformationWrite<double>(args, b, e, executor).run(limit, kNoLimit)) return Outcome::done;
  }
  if (args.method != WriteMethod::sqrt) {
    Outcome outcome = Outcome::harder;
    if (narrow_state)
      outcome = write_item<float, float>(args, b, e, false, kHardForFloat32Factors, executor);
    if (narrow_state && outcome == Outcome::harder && !is_small(e.steps, args.n))
      outcome = write_item<float, double>(args, b, e, false, kHardForFloat32, executor);
    if (outcome == Outcome::harder) {
      const double limit = cholesky_limit(args.mean.dtype);
      outcome = write_item<double, double>(args, b, e, false, limit, executor);
    }
    if (outcome != Outcome::harder) return outcome;
  }
  return write_item<double, double>(args, b, e, true, kNoLimit, executor);
}

inline void bayes_write(const BayesWriteArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = double(T + K) * double(K) * double(2 * K + C);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, args.decay);
    Outcome outcome = Outcome::failed;
    if (e.valid) {
      outcome = args.mean.dtype == Dtype::float32 ? write_adaptively<float>(args, b, e, inner)
                                                  : write_adaptively<double>(args, b, e, inner);
    }
    if (outcome != Outcome::done) {
      fill(args.mean_out, b, K, C, NAN);
      fill(args.cov_out, b, K, K, NAN);
      store_scalar(args.log_evidence, b, 0, NAN);
    }
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
