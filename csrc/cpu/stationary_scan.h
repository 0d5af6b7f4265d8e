// The exact write of an episode into a memory that moves, with a read after every step: forward.
//
// In the notation of stationary_chunk.h, for queries Q and the state R, U before a chunk,
//   A' = F^-1 (b b' o (W U Q') + N o (W Sigma Q')) above its diagonal,
//   reads = D_b Q R + A E,  E = F^-1 (Z - D_b W R),  R <- b_L R + P'E,
//   read_var_t = b_t^2 q_t'U q_t + h_t q_t'Sigma q_t - sum_i A_ti^2.
// Source of the recursion: the Kalman filter (Kalman, 1960) of M_t = a M_{t-1} + sqrt(1 - a^2) N_t.
// Queries that are absent are not answered. Threads as in scan_batches.h.
#pragma once

#include "causal_scan.h"
#include "stationary_chunk.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F>
struct StationaryScanChunk {
  StationaryChunk<F> chunk;
  StationaryFactors<A, F> factors;
  int64_t first = 0;
  Matrix<F> Q, moved, inside;       // L x K: the queries, and D_b Q; L x L: A'
  Matrix<A> queries, read_factors;  // the last two in the arithmetic of the columns
  // Of the reads: in the stationary state, and before what the chunk writes.
  F *settled = nullptr, *var = nullptr;

  StationaryScanChunk(Workspace::Scope& scope, int64_t max_steps, int64_t K, bool identity,
                      bool reads)
      : chunk(scope, max_steps, K, identity), factors(scope, chunk) {
    if (!reads) return;
    Q = Matrix<F>(scope, max_steps, K);
    moved = Matrix<F>(scope, max_steps, K);
    inside = Matrix<F>(scope, max_steps, max_steps);
    inside.structure = Structure::upper;
    queries = room_in_arithmetic<A>(scope, moved);
    read_factors = room_in_arithmetic<A>(scope, inside);
    settled = scope.take<F>(padded<F>(max_steps));
    var = scope.take<F>(padded<F>(max_steps));
  }
  void set_steps(int64_t L) { Q.rows = moved.rows = inside.rows = inside.columns = L; }
};

// One item, with the arithmetics and the limit of write_item().
template <class A, class F>
class StationaryScan {
 public:
  StationaryScan(const CausalScanArgs& args, const Episode& e, double limit,
                 const Executor& executor)
      : args_(args),
        e_(e),
        limit_(limit),
        executor_(executor),
        scope_(Workspace::of_thread()),
        reads_(bool(args.queries)),
        K_(args.n.K),
        C_(args.n.C),
        U_(scope_, K_, K_),
        Sigma_(load_stationary<F>(scope_, args.stationary_cov, K_)),
        mean_(scope_, K_, split_columns<A>(C_)),
        columns_(mean_.columns),
        batches_(scope_, executor, stationary_steps(K_, args.chunk_size, reads_, e.steps), e.steps,
                 args.n, columns_, !Sigma_, reads_) {}

  // Outputs that may be inputs as well are written only when all is well.
  Outcome run() {
    load_covariance(args_.cov, 0, U_);
    executor_.for_each(columns_.count, [&](int64_t block) {
      load(args_.mean, 0, Rows{}, mean_[block], columns_.at(block));
    });
    double log_evidence = 0.0;
    const Outcome outcome = batches_.run(
        [&](StationaryScanChunk<A, F>& s, int64_t first, const Executor& executor) {
          load_steps(s, first, executor);
        },
        [&](StationaryScanChunk<A, F>& s, const Executor& executor) {
          return factor_and_read(s, executor) ? Outcome::done : Outcome::harder;
        },
        [&](int64_t batch, int64_t block) { write_block(batch, block); }, log_evidence);
    if (outcome != Outcome::done) return outcome;
    // Values that are not finite, or whose squares overflow in A, show here.
    if (!std::isfinite(log_evidence)) return Outcome::harder;

    executor_.for_each(columns_.count, [&](int64_t block) {
      store(args_.mean_out, 0, Rows{}, mean_[block], columns_.at(block));
    });
    store(args_.cov_out, 0, Rows{}, U_);
    store_scalar(args_.log_evidence, 0, 0, log_evidence);
    return Outcome::done;
  }

 private:
  void load_steps(StationaryScanChunk<A, F>& s, int64_t first, const Executor& executor) const {
    s.first = first;
    const int64_t L = std::min(batches_.step(), e_.steps - first);
    load_chunk(s.chunk, args_.weights, e_, first, L, Sigma_, executor);
    if (!reads_) return;
    s.set_steps(L);
    load(args_.queries, 0, Rows{nullptr, first}, s.Q);
    if (Sigma_) {
      Workspace::Scope scope(Workspace::of_thread());
      energies(s.Q, Sigma_, Matrix<F>(scope, L, K_), s.settled, executor);
    } else {
      for (int64_t t = 0; t < L; ++t) s.settled[t] = F(row_dot(K_, s.Q[t], s.Q[t]));
    }
  }

  // Factors of a chunk, its read variances, and the covariance after it.
  bool factor_and_read(StationaryScanChunk<A, F>& s, const Executor& executor) {
    StationaryChunk<F>& c = s.chunk;
    if (!factor_chunk(c, U_, limit_, executor)) return false;
    s.factors.take(c);
    if (reads_) {
      prior_variances(s, executor);
      read(s, executor);
    }
    downdate(c, Sigma_, U_, executor);
    return true;
  }

  // b_t^2 q_t'U q_t + h_t q_t'Sigma q_t
  void prior_variances(const StationaryScanChunk<A, F>& s, const Executor& executor) const {
    const StationaryChunk<F>& c = s.chunk;
    Workspace::Scope scope(Workspace::of_thread());
    energies(s.Q, U_, Matrix<F>(scope, c.L, K_), s.var, executor);
    for (int64_t t = 0; t < c.L; ++t)
      s.var[t] = F(c.kept[t] * c.kept[t] * double(s.var[t]) + c.fresh[t] * double(s.settled[t]));
    for (int64_t t = c.L; t < padded<F>(c.L); ++t) s.var[t] = F(0);
  }

  // A' and the read variances; needs no state.
  void read(StationaryScanChunk<A, F>& s, const Executor& executor) const {
    const StationaryChunk<F>& c = s.chunk;
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> Qt(scope, K_, c.L), cross(scope, c.L, c.L), stationary(scope, c.L, c.L);
    cross.zero();
    stationary.zero();
    move_rows(c, 1.0, s.Q, s.moved);
    transpose(s.Q, Qt);
    product(executor, c.X, Qt, cross, Store::set, Part::upper);
    product(executor, c.WS, Qt, stationary, Store::set, Part::upper);
    combine(c, cross, stationary, cross);
    product_transposed(executor, c.V, cross, s.inside, Store::set, Part::upper);
    clear_lower(s.inside);
    subtract_squares(s.inside, s.var);
    for (int64_t t = 0; t < c.L; ++t)  // rounding must not make a variance negative
      store_scalar(args_.read_var_out, 0, s.first + t, s.var[t] < F(0) ? 0.0 : double(s.var[t]));
    take_into(s.queries, s.moved);
    take_into(s.read_factors, s.inside);
  }

  // Writes and reads a block of columns of the chunks of a batch.
  void write_block(int64_t batch, int64_t block) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t c0 = columns_.at(block);
    const Matrix<A> R = mean_[block],
                    all_D = take_block<A>(scope, batches_.step(), columns_, block),
                    all_E = take_block<A>(scope, batches_.step(), columns_, block);
    double* ones = scope.take<double>(batches_.step());
    std::fill_n(ones, batches_.step(), 1.0);
    for (int64_t i = 0; i < batches_.count(batch); ++i) {
      const StationaryScanChunk<A, F>& s = batches_.at(batch, i);
      const Matrix<A> D = all_D.top(s.chunk.L), E = all_E.top(s.chunk.L);
      const Rows rows{nullptr, s.first};
      load(args_.values, 0, rows, D, c0);
      clear_neutral(e_, s.first, D);
      innovations(s.factors, R, D, E);
      if (reads_) {
        const Matrix<A>& reads = D;
        product(s.queries, R, reads);
        product_transposed(s.read_factors, E, reads, Store::add);
        store(args_.reads_out, 0, rows, reads, c0);
      }
      if (s.chunk.last_kept() != 1.0) scale(s.chunk.last_kept(), R);
      product_transposed(s.factors.P, E, R, Store::add);
      batches_.square(block, i) = weighted_square(E, ones);
    }
  }

  const CausalScanArgs& args_;
  const Episode& e_;
  const double limit_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const bool reads_;
  const int64_t K_, C_;
  const Matrix<F> U_, Sigma_;
  const MeanBlocks<A> mean_;
  const Columns columns_;
  const ScanBatches<StationaryScanChunk<A, F>> batches_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
