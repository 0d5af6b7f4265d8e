// The exact Bayesian write of an episode: forward.
//
// Source: Wu et al., The Kanerva Machine (ICLR 2018), batch form of the update, applied chunk by
// chunk. The K x K half is in write_chunk.h; here is the half as wide as the code. For a block of
// columns,
//   D = Z - W R,  E = F^-1 D,  R <- R + P'E,  log_evidence -= (b |E|^2 + ...) / 2.
#pragma once

#include "../common/policy.h"
#include "information.h"
#include "stationary.h"
#include "vectors.h"
#include "write_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

// Factors of a chunk in the arithmetic A of the columns.
template <class A>
struct ChunkFactors {
  Matrix<A> W, P, V;  // L x K, L x K, L x L

  template <class F>
  ChunkFactors(Workspace::Scope& scope, const Chunk<F>& c) : ChunkFactors(scope, c.W, c.P, c.V) {}

  template <class F>
  ChunkFactors(Workspace::Scope& scope, const Matrix<F>& w, const Matrix<F>& p, const Matrix<F>& v)
      : W(room_in_arithmetic<A>(scope, w)),
        P(room_in_arithmetic<A>(scope, p)),
        V(room_in_arithmetic<A>(scope, v)) {}

  template <class F>
  void take(const Chunk<F>& c) {
    take_into(W, c.W);
    take_into(P, c.P);
    take_into(V, c.V);
  }
};

// D = Z - W R, given Z in its place, and E = F^-1 D of a block of columns.
template <class A>
void innovations(const ChunkFactors<A>& f, const Matrix<A>& R, const Matrix<A>& D,
                 const Matrix<A>& E) {
  product(f.W, R, D, Store::sub);
  product_transposed(f.V, D, E);
}

// sum_t weight_t |E_t|^2: a row in its own arithmetic, the rows in float64.
template <class A>
double weighted_square(const Matrix<A>& E, const double* weight) {
  using V = Simd<A>;
  double sum = 0.0;
  const auto add = [&](int64_t t, auto count) {
    constexpr int rows = decltype(count)::value;
    typename V::Vector squares[rows]{};
    for (int64_t j = 0; j < E.columns; j += V::width) {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto e = V::load(E[t + r] + j);
        squares[r] += e * e;
      }
    }
    double sums[rows];
    sum_rows<A, rows>(squares, sums);
    for (int r = 0; r < rows; ++r) sum += weight[t + r] * sums[r];
  };
  int64_t t = 0;
  for (; t + 8 <= E.rows; t += 8) add(t, std::integral_constant<int, 8>{});
  for (; t < E.rows; ++t) add(t, std::integral_constant<int, 1>{});
  return sum;
}

// Where the mean comes from before a chunk and goes to after it, in place of its scratch copy;
// empty inside an episode.
struct MeanEnds {
  View from, to;
};

// Writes the chunk at step `first` into the mean; returns sum_t b_t |E_t|^2.
template <class A, class F>
double write_columns(const Chunk<F>& c, const ChunkFactors<A>& f, const View& values, int64_t b,
                     const Episode& e, int64_t first, const MeanEnds& ends,
                     const MeanBlocks<A>& mean, const Executor& executor) {
  const Columns& columns = mean.columns;
  Workspace::Scope outer(Workspace::of_thread());
  double* partial = outer.take<double>(columns.count);
  executor.for_each(columns.count, [&](int64_t block) {
    Workspace::Scope scope(Workspace::of_thread());
    const Executor& alone = serial_executor();
    const int64_t K = f.P.columns, c0 = columns.at(block), n = columns.of(block);
    const Matrix<A> D = take_block<A>(scope, c.L, columns, block),
                    E = take_block<A>(scope, c.L, columns, block);
    const auto read = [&](const View& v, Rows rows, int64_t m) {
      return rows_to_read<A>(scope, alone, v, b, rows, m, n, Use::products, c0);
    };
    const Matrix<A> R = ends.from ? read(ends.from, Rows{}, K) : mean[block];
    product_from(alone, read(values, Rows{e.index, first}, c.L), f.W, R, D, Store::sub);
    clear_neutral(e, first, D);
    product_transposed(f.V, D, E);
    const RowsToWrite<A> to(scope, ends.to, b, Rows{}, K, n, Use::products, c0);
    product_transposed_from(alone, R, f.P, E, ends.to ? to.matrix() : mean[block], Store::add);
    partial[block] = weighted_square(E, c.decay);
    if (ends.to) to.finish(alone);
  });
  double total = 0.0;
  for (int64_t i = 0; i < columns.count; ++i) total += partial[i];
  return total;
}

// Upper factor of the covariance of item b, zeros below: U = root' root. Writes with tiny noise
// leave a covariance that the rounding of its own dtype makes indefinite; it is served with that
// rounding added to the diagonal. False for any other that is not positive definite.
template <class F>
bool load_root(const View& cov, int64_t b, const Matrix<F>& root) {
  const int64_t K = root.rows;
  Workspace::Scope scope(Workspace::of_thread());
  F* inverse_diagonal = scope.take<F>(K);
  load_covariance(cov, b, root);
  double largest = 0.0;
  for (int64_t i = 0; i < K; ++i) largest = std::max(largest, double(root[i][i]));
  if (!cholesky(root, inverse_diagonal)) {
    load_covariance(cov, b, root);
    for (int64_t i = 0; i < K; ++i)
      root[i][i] += F(2.0 * double(K) * rounding_of(cov.dtype) * largest);
    if (!cholesky(root, inverse_diagonal)) return false;
  }
  clear_lower(root);
  return true;
}

// The covariance of item b, or its root. False where it has none.
template <class F>
bool load_state(const View& cov, int64_t b, bool use_sqrt, const Matrix<F>& U) {
  if (use_sqrt) return load_root(cov, b, U);
  load_covariance(cov, b, U);
  return true;
}

// U = root' root
template <class F>
Matrix<F> square(const Executor& executor, Workspace::Scope& scope, const Matrix<F>& root) {
  Matrix<F> U(scope, root.rows, root.rows);
  product_transposed(executor, root, root, U);
  return U;
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
  Workspace::Scope scope(Workspace::of_thread());
  const int64_t step = chunk_steps(K, e.steps);
  Chunk<F> chunk(scope, step, K);
  ChunkFactors<A> factors(scope, chunk);
  Matrix<F> U(scope, K, K);
  const MeanBlocks<A> mean(scope, K, split_columns<A>(C));
  const RowsToWrite<F> posterior(scope, args.cov_out, b, Rows{}, K, K, Use::all);
  if (!load_state(args.cov, b, use_sqrt, U)) return Outcome::failed;

  double log_evidence = 0.0;
  for (int64_t first = 0; first < e.steps; first += step) {
    const int64_t steps = std::min(step, e.steps - first);
    load_chunk(chunk, args.weights, b, e, first, steps, true);
    const Outcome outcome = factor(chunk, U, use_sqrt, limit, executor);
    if (outcome != Outcome::done) return outcome;
    factors.take(chunk);
    const MeanEnds ends = {first == 0 ? args.mean : View{},
                           first + steps == e.steps ? args.mean_out : View{}};
    const double quadratic =
        write_columns(chunk, factors, args.values, b, e, first, ends, mean, executor);
    log_evidence += chunk_log_evidence(chunk, C, quadratic);
    const bool last = first + steps == e.steps;
    if (!use_sqrt) downdate(chunk, U, last ? posterior.matrix() : U, executor);
  }

  // Values that are not finite, or whose squares overflow in A, show here.
  if (!std::isfinite(log_evidence)) return limit == kNoLimit ? Outcome::failed : Outcome::harder;

  if (e.steps == 0) {
    load(args.mean, b, mean);
    store(args.mean_out, b, mean);
  }
  if (use_sqrt || e.steps == 0) {
    store(args.cov_out, b, Rows{}, use_sqrt ? square(executor, scope, U) : U);
  } else {
    posterior.finish(executor);
  }
  store_scalar(args.log_evidence, b, 0, log_evidence);
  return Outcome::done;
}

// Which arithmetics of the write by chunks may be tried, beside float64 throughout.
struct Arithmetics {
  Dtype state;
  bool float32;          // all of it
  bool float32_columns;  // beside float64 factors
  double hard_for_columns = kHardForFloat32;
  bool only_sqrt = false;
};

// From the cheapest that may serve to the square root, which always does:
// attempt(float{} or double{} for the columns, the same for the factors, use_sqrt, limit).
template <class Attempt>
Outcome try_in_turn(const Arithmetics& may, Attempt&& attempt) {
  if (!may.only_sqrt) {
    Outcome outcome = Outcome::harder;
    if (may.float32) outcome = attempt(float{}, float{}, false, kHardForFloat32Factors);
    if (may.float32_columns && outcome == Outcome::harder)
      outcome = attempt(float{}, double{}, false, may.hard_for_columns);
    if (outcome == Outcome::harder)
      outcome = attempt(double{}, double{}, false, cholesky_limit(may.state));
    if (outcome != Outcome::harder) return outcome;
  }
  return attempt(double{}, double{}, true, kNoLimit);
}

// Gradients of decays cancel and are never formed in float32.
inline Arithmetics arithmetics_of_adjoint(const Sizes& n, const Episode& e, Dtype state) {
  const bool may = state == Dtype::float32 && !is_small(e.steps, n);
  return {state, may && e.decay == nullptr, may, kHardForFloat32Gradient};
}

// A method that was asked for is where to start: one that would lose digits gives way to the next.
inline Outcome write_adaptively(const BayesWriteArgs& args, int64_t b, const Episode& e,
                                const Executor& executor) {
  const Dtype state = args.mean.dtype;
  const bool narrow_state = state == Dtype::float32;
  if (information_serves(args.method, bool(args.decay), e.steps, args.n.K)) {
    const double limit = information_limit(state);
    if (narrow_state && args.n.K >= kManySlots &&
        InformationWrite<float>(args, b, e, executor).run({limit, kEasyInformation}))
      return Outcome::done;
    InformationWrite<double> write(args, b, e, executor);
    const InformationLimits for_sums{limit, kNoLimit, kConditionForFloat32Sums,
                                     kExplainedForFloat32Sums};
    if (narrow_state && float32_sums_serve(e.steps, args.n.K) &&
        write.run_with_float32_sums(for_sums))
      return Outcome::done;
    if (write.run({limit})) return Outcome::done;
  }
  const Arithmetics may{state, narrow_state, narrow_state && !is_small(e.steps, args.n),
                        kHardForFloat32, args.method == WriteMethod::sqrt};
  return try_in_turn(may, [&](auto columns, auto factors, bool use_sqrt, double limit) {
    return write_item<decltype(columns), decltype(factors)>(args, b, e, use_sqrt, limit, executor);
  });
}

// With dynamics there is no information form: the scan, without reads.
inline void write_moving(const BayesWriteArgs& args, const Executor& executor) {
  CausalScanArgs scan;
  static_cast<WriteInputs&>(scan) = args;
  scan.mean_out = args.mean_out;
  scan.cov_out = args.cov_out;
  scan.log_evidence = args.log_evidence;
  stationary_scan(scan, args.method == WriteMethod::sqrt, executor);
}

inline void bayes_write(const BayesWriteArgs& args, const Executor& executor) {
  if (args.moves()) return write_moving(args, executor);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = double(T + K) * double(K) * double(2 * K + C);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, args.decay);
    const Outcome outcome = e.valid ? write_adaptively(args, b, e, inner) : Outcome::failed;
    if (outcome != Outcome::done) {
      fill(args.mean_out, b, K, C, NAN);
      fill(args.cov_out, b, K, K, NAN);
      store_scalar(args.log_evidence, b, 0, NAN);
    }
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
