// The exact write of an episode with a read after every step: forward.
//
// The write is that of bayes_write.h, chunk by chunk. A Cholesky factor conditions in order: row i
// of P and E is what step i adds. So with the queries Q of a chunk, the state R0, U0 before it and
// b the decays inside it,
//   A = tril(Q P'),  reads = Q R0 + A E,  read_var_t = (q_t'U0 q_t - sum_i A_ti^2) / b_t,
// where A' = F^-1 (W U0 Q') above its diagonal. In sqrt form the difference would cancel, and the
// root that step t leaves gives the variance. Masked steps stay in the chunk as neutral ones.
#pragma once

#include "scan_batches.h"
#include "sequences.h"
#include "stationary.h"

namespace kanerva {
namespace KANERVA_ISA {

// Steps conditioned on at once, as measured: what a step costs beside the K x K and K x C products
// grows with them. Decays inside a chunk act as smaller noise, so strong ones shorten it.
inline int64_t scan_steps(int64_t K, int64_t chunk_size, const Episode& e) {
  constexpr int64_t longest = 128;
  constexpr double strongest = -0.25;  // logarithm of the product of the decays of a chunk
  int64_t steps = K <= 96 ? 16 : K <= 192 ? 32 : 64;
  if (chunk_size > 0) steps = std::min(chunk_size, longest);
  if (e.decay && chunk_size == 0) {
    LogProduct product;
    for (int64_t t = 0; t < e.steps; ++t) product.multiply(e.decay[t]);
    const double rate = product.value() / double(std::max<int64_t>(1, e.steps));
    while (steps > 16 && double(steps) * rate < strongest) steps /= 2;
  }
  return std::max<int64_t>(1, std::min(steps, e.steps));
}

// What a chunk needs for its reads beside its factors: the queries and A, transposed.
template <class A, class F>
struct ScanChunk {
  Chunk<F> chunk;
  ChunkFactors<A> factors;
  int64_t first = 0;
  Matrix<F> Q, inside;              // L x K, L x L
  Matrix<A> queries, read_factors;  // the same in the arithmetic of the columns

  ScanChunk(Workspace::Scope& scope, int64_t max_steps, int64_t K)
      : chunk(scope, max_steps, K),
        factors(scope, chunk),
        Q(scope, max_steps, K),
        inside(scope, max_steps, max_steps),
        queries(room_in_arithmetic<A>(scope, Q)),
        read_factors(room_in_arithmetic<A>(scope, inside)) {
    inside.structure = Structure::upper;
  }
  void set_steps(int64_t L) { Q.rows = inside.rows = inside.columns = L; }
  void narrow() {
    factors.take(chunk);
    take_into(queries, Q);
    take_into(read_factors, inside);
  }
};

// U q for U = root' root; returns q'U q. `phi` is room for as many elements as there are slots.
template <class F>
double root_product(const Matrix<F>& root, const F* q, F* phi, F* Uq) {
  const int64_t K = root.rows;
  double energy = 0.0;
  std::memset(Uq, 0, size_t(padded<F>(K)) * sizeof(F));
  for (int64_t k = 0; k < K; ++k) {
    phi[k] = F(row_dot(K, root[k], q));
    energy += double(phi[k]) * double(phi[k]);
    axpy(0, K, phi[k], root[k], Uq);
  }
  return energy;
}

// var_t = q_t'U q_t; UQ is room. U is symmetric: of its panels of columns, what lies above the
// diagonal block counts twice.
template <class F>
void energies(const Matrix<F>& Q, const Matrix<F>& U, const Matrix<F>& UQ, F* var,
              const Executor& executor) {
  Workspace::Scope scope(Workspace::of_thread());
  const int64_t L = Q.rows, K = Q.columns;
  Matrix<F> twice(scope, L, K);
  copy(Q, twice);
  scale(2.0, twice);
  const Panels panels = Panels::of<F>(K);
  auto run = [&](int64_t panel) {
    const int64_t j = panels.start(panel) * Simd<F>::width;
    const int64_t n = std::min(K, panels.start(panel + 1) * Simd<F>::width) - j;
    const Matrix<F> part = block_of(UQ, 0, j, L, n);
    product(block_of(Q, 0, j, L, n), block_of(U, j, j, n, n), part);
    product(twice, block_of(U, 0, j, j, n), part, Store::add);
  };
  if (K > kSlotsWithoutForks) {
    executor.for_each(panels.count, run);
  } else {
    for (int64_t panel = 0; panel < panels.count; ++panel) run(panel);
  }
  for (int64_t t = 0; t < L; ++t) var[t] = F(row_dot(K, Q[t], UQ[t]));
}

// var_t -= sum_i inside(i, t)^2
template <class F>
void subtract_squares(const Matrix<F>& inside, F* var) {
  using V = Simd<F>;
  const int64_t L = inside.rows;
  for (int64_t j = 0; j < L; j += V::width) {
    auto sum = V::load(inside[0] + j) * V::load(inside[0] + j);
    for (int64_t i = 1; i < std::min<int64_t>(L, j + V::width); ++i)
      sum += V::load(inside[i] + j) * V::load(inside[i] + j);
    V::store(var + j, V::load(var + j) - sum);
  }
}

// One item, with the arithmetics and the limit of write_item().
template <class A, class F>
class Scan {
 public:
  Scan(const CausalScanArgs& args, const Episode& e, bool use_sqrt, double limit,
       const Executor& executor)
      : args_(args),
        e_(e),
        use_sqrt_(use_sqrt),
        limit_(limit),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        mean_(scope_, K_, split_columns<A>(C_)),
        columns_(mean_.columns),
        batches_(scope_, executor, scan_steps(K_, args.chunk_size, e), e.steps, args.n, columns_),
        U_(scope_, K_, K_),
        Qt_(scope_, K_, batches_.step()),
        UQ_(scope_, batches_.step(), K_),
        cross_(scope_, batches_.step(), batches_.step()) {}

  // Outputs that may be inputs as well are written only when all is well.
  Outcome run() {
    if (!load_state(args_.cov, 0, use_sqrt_, U_)) return Outcome::failed;
    executor_.for_each(columns_.count, [&](int64_t block) {
      load(args_.mean, 0, Rows{}, mean_[block], columns_.at(block));
    });
    double log_evidence = 0.0;
    const Outcome outcome = batches_.run(
        [&](ScanChunk<A, F>& s, int64_t first, const Executor&) { load_steps(s, first); },
        [&](ScanChunk<A, F>& s, const Executor& executor) { return factor_and_read(s, executor); },
        [&](int64_t batch, int64_t block) { write_block(batch, block); }, log_evidence);
    if (outcome != Outcome::done) return outcome;
    // Values that are not finite, or whose squares overflow in A, show here.
    if (!std::isfinite(log_evidence)) return limit_ == kNoLimit ? Outcome::failed : Outcome::harder;

    executor_.for_each(columns_.count, [&](int64_t block) {
      store(args_.mean_out, 0, Rows{}, mean_[block], columns_.at(block));
    });
    store(args_.cov_out, 0, Rows{}, use_sqrt_ ? square(executor_, scope_, U_) : U_);
    store_scalar(args_.log_evidence, 0, 0, log_evidence);
    return Outcome::done;
  }

 private:
  void load_steps(ScanChunk<A, F>& s, int64_t first) const {
    const int64_t L = std::min(batches_.step(), e_.steps - first);
    s.first = first;
    s.set_steps(L);
    load_chunk(s.chunk, args_.weights, 0, e_, first, L);
    load(args_.queries, 0, Rows{nullptr, first}, s.Q);
  }

  // Factors of a chunk, its read variances, and the covariance after it.
  Outcome factor_and_read(ScanChunk<A, F>& s, const Executor& executor) {
    Chunk<F>& c = s.chunk;
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = c.L;
    F* var = scope.take<F>(padded<F>(L));  // times the decays
    F* phi = scope.take<F>(K_);
    Matrix<F> Qt = Qt_;
    Qt.columns = L;
    transpose(s.Q, Qt);
    const Outcome outcome = factor(c, U_, use_sqrt_, limit_, executor, [&](int64_t t) {
      var[t] = F(root_product(U_, s.Q[t], phi, UQ_[0]));
    });
    if (outcome != Outcome::done) return outcome;
    if (use_sqrt_) {
      product(executor, c.P, Qt, s.inside, Store::set, Part::upper);
    } else {
      Matrix<F> cross = cross_.top(L);
      cross.columns = L;
      cross.zero();
      product(executor, c.X, Qt, cross, Store::set, Part::upper);
      product_transposed(executor, c.V, cross, s.inside, Store::set, Part::upper);
    }
    clear_lower(s.inside);
    if (!use_sqrt_) {
      energies(s.Q, U_, UQ_, var, executor);
      subtract_squares(s.inside, var);
      downdate(c, U_, executor);
    }
    for (int64_t t = 0; t < L; ++t)  // rounding must not make a variance negative
      store_scalar(args_.read_var_out, 0, s.first + t, var[t] < F(0) ? 0.0 : var[t] / c.decay[t]);
    s.narrow();
    return Outcome::done;
  }

  // Writes and reads a block of columns of the chunks of a batch.
  void write_block(int64_t batch, int64_t block) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t c0 = columns_.at(block);
    const Matrix<A> R = mean_[block],
                    all_D = take_block<A>(scope, batches_.step(), columns_, block),
                    all_E = take_block<A>(scope, batches_.step(), columns_, block);
    for (int64_t i = 0; i < batches_.count(batch); ++i) {
      const ScanChunk<A, F>& s = batches_.at(batch, i);
      const Matrix<A> D = all_D.top(s.chunk.L), E = all_E.top(s.chunk.L);
      const Rows rows{nullptr, s.first};
      load(args_.values, 0, rows, D, c0);
      clear_neutral(e_, s.first, D);
      innovations(s.factors, R, D, E);
      const Matrix<A>& reads = D;
      product(s.queries, R, reads);
      product_transposed(s.read_factors, E, reads, Store::add);
      store(args_.reads_out, 0, rows, reads, c0);
      product_transposed(s.factors.P, E, R, Store::add);
      batches_.square(block, i) = weighted_square(E, s.chunk.decay);
    }
  }

  const CausalScanArgs& args_;
  const Episode& e_;
  const bool use_sqrt_;
  const double limit_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const MeanBlocks<A> mean_;
  const Columns columns_;
  const ScanBatches<ScanChunk<A, F>> batches_;
  const Matrix<F> U_, Qt_, UQ_, cross_;
};

inline Outcome scan_adaptively(const CausalScanArgs& args, const Episode& e,
                               const Executor& executor) {
  const Dtype state = args.mean.dtype;
  const bool narrow_state = state == Dtype::float32;
  const Arithmetics may{state, narrow_state, narrow_state && !is_small(e.steps, args.n)};
  return try_in_turn(may, [&](auto columns, auto factors, bool use_sqrt, double limit) {
    return Scan<decltype(columns), decltype(factors)>(args, e, use_sqrt, limit, executor).run();
  });
}

inline void causal_scan(const CausalScanArgs& args, const Executor& executor) {
  if (args.moves()) return stationary_scan(args, false, executor);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const auto fail = [](const CausalScanArgs& item) {
    fill(item.reads_out, 0, item.n.T, item.n.C, NAN);
    fill(item.read_var_out, 0, item.n.T, 1, NAN);
    fill(item.mean_out, 0, item.n.K, item.n.C, NAN);
    fill(item.cov_out, 0, item.n.K, item.n.K, NAN);
    store_scalar(item.log_evidence, 0, 0, NAN);
  };
  const bool rise = bounds_rise(args.packing, T);
  const double operations = double(T + K) * double(K) * double(2 * K + C);
  for_each_item(B, operations, executor, [&](int64_t s, const Executor& inner) {
    const CausalScanArgs item = item_of(args, sequence_of(args.packing, rise, T, s), s);
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_all_steps(scope, item.n.T, 0, item.noise_var, item.mask, item.decay);
    const Outcome outcome = rise && e.valid ? scan_adaptively(item, e, inner) : Outcome::failed;
    if (outcome != Outcome::done) fail(item);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
