// The exact write of an episode into a memory that moves, with a read after every step: forward.
//
// In the notation of stationary_chunk.h, for queries Q and the state R, U before a chunk,
//   A' = F^-1 (b b' o (W U Q') + N o (W Sigma Q')) above its diagonal,
//   reads = D_b Q R + A E,  E = F^-1 (Z - D_b W R),  R <- b_L R + P'E,
//   read_var_t = b_t^2 q_t'U q_t + h_t q_t'Sigma q_t - sum_i A_ti^2.
// Source of the recursion: the Kalman filter (Kalman, 1960) of M_t = a M_{t-1} + sqrt(1 - a^2) N_t.
// Queries that are absent are not answered. Threads as in causal_scan.h.
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
  F* var = nullptr;                 // of the reads, before what the chunk writes

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
        step_(stationary_steps(K_, args.chunk_size, reads_, e.steps)),
        chunks_((e.steps + step_ - 1) / step_),
        ahead_(executor.threads() > 1 && K_ <= kSlotsWithoutForks && e.steps >= 2 * kStepsAhead),
        batch_(ahead_ ? std::max<int64_t>(1, kStepsAhead / step_) : 1),
        slots_(scope_.take<StationaryScanChunk<A, F>>((ahead_ ? 2 : 1) * batch_)),
        U_(scope_, K_, K_),
        Sigma_(load_stationary<F>(scope_, args.stationary_cov, K_)),
        mean_(scope_, K_, split_columns<A>(C_)),
        columns_(mean_.columns),
        reads_later_(reads_ && ahead_ && columns_.count == 1),
        partial_(scope_.take<double>(columns_.count * batch_)) {
    for (int64_t i = 0; i < (ahead_ ? 2 : 1) * batch_; ++i)
      new (slots_ + i) StationaryScanChunk<A, F>(scope_, step_, K_, !Sigma_, reads_);
  }

  // Outputs that may be inputs as well are written only when all is well.
  Outcome run() {
    load_covariance(args_.cov, 0, U_);
    executor_.for_each(columns_.count, [&](int64_t block) {
      load(args_.mean, 0, Rows{}, mean_[block], columns_.at(block));
    });
    double log_evidence = 0.0;
    const int64_t batches = (chunks_ + batch_ - 1) / batch_;
    const int64_t lag = ahead_ ? 1 : 0;
    for (int64_t i = 0; i < batches + lag; ++i) {
      Outcome outcome = Outcome::done;
      if (ahead_) {
        executor_.for_each(1 + columns_.count, [&](int64_t task) {
          if (task > 0 && i > 0) {
            write_block(i - 1, task - 1);
          } else if (task == 0 && i < batches) {
            outcome = factor_batch(i, serial_executor());
          }
        });
      } else {
        outcome = factor_batch(i, executor_);
        if (outcome == Outcome::done)
          executor_.for_each(columns_.count, [&](int64_t block) { write_block(i, block); });
      }
      if (outcome != Outcome::done) return outcome;
      if (i >= lag) log_evidence += batch_log_evidence(i - lag);
    }
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
  int64_t in_batch(int64_t batch) const { return std::min(batch_, chunks_ - batch * batch_); }
  StationaryScanChunk<A, F>& slot(int64_t batch, int64_t i) const {
    return slots_[(ahead_ ? batch % 2 : 0) * batch_ + i];
  }

  Outcome factor_batch(int64_t batch, const Executor& executor) {
    for (int64_t i = 0; i < in_batch(batch); ++i)
      if (!factor_and_read(slot(batch, i), (batch * batch_ + i) * step_, executor))
        return Outcome::harder;
    return Outcome::done;
  }

  // Factors of the chunk at step `first`, its read variances, and the covariance after it.
  bool factor_and_read(StationaryScanChunk<A, F>& s, int64_t first, const Executor& executor) {
    StationaryChunk<F>& c = s.chunk;
    s.first = first;
    const int64_t L = std::min(step_, e_.steps - first);
    load_chunk(c, args_.weights, e_, first, L, Sigma_, executor);
    if (!factor_chunk(c, U_, limit_, executor)) return false;
    s.factors.take(c);
    if (reads_) {
      s.set_steps(L);
      load(args_.queries, 0, Rows{nullptr, first}, s.Q);
      prior_variances(s, executor);
      if (!reads_later_) read(s, executor);
    }
    downdate(c, Sigma_, U_, executor);
    return true;
  }

  // b_t^2 q_t'U q_t + h_t q_t'Sigma q_t
  void prior_variances(const StationaryScanChunk<A, F>& s, const Executor& executor) const {
    const StationaryChunk<F>& c = s.chunk;
    Workspace::Scope scope(Workspace::of_thread());
    F* settled = scope.take<F>(padded<F>(c.L));
    const Matrix<F> UQ(scope, c.L, K_);
    energies(s.Q, U_, UQ, s.var, executor);
    if (Sigma_) {
      energies(s.Q, Sigma_, UQ, settled, executor);
    } else {
      for (int64_t t = 0; t < c.L; ++t) settled[t] = F(row_dot(K_, s.Q[t], s.Q[t]));
    }
    for (int64_t t = 0; t < c.L; ++t)
      s.var[t] = F(c.kept[t] * c.kept[t] * double(s.var[t]) + c.fresh[t] * double(settled[t]));
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
    const Matrix<A> R = mean_[block], all_D = take_block<A>(scope, step_, columns_, block),
                    all_E = take_block<A>(scope, step_, columns_, block);
    double* ones = scope.take<double>(step_);
    std::fill_n(ones, step_, 1.0);
    for (int64_t i = 0; i < in_batch(batch); ++i) {
      StationaryScanChunk<A, F>& s = slot(batch, i);
      if (reads_later_) read(s, serial_executor());
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
      partial_[block * batch_ + i] = weighted_square(E, ones);
    }
  }

  double batch_log_evidence(int64_t batch) const {
    double total = 0.0;
    for (int64_t i = 0; i < in_batch(batch); ++i) {
      double quadratic = 0.0;
      for (int64_t block = 0; block < columns_.count; ++block)
        quadratic += partial_[block * batch_ + i];
      total += chunk_log_evidence(slot(batch, i).chunk, C_, quadratic);
    }
    return total;
  }

  const CausalScanArgs& args_;
  const Episode& e_;
  const double limit_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const bool reads_;
  const int64_t K_, C_, step_, chunks_;
  const bool ahead_;
  const int64_t batch_;
  StationaryScanChunk<A, F>* slots_;
  const Matrix<F> U_, Sigma_;
  const MeanBlocks<A> mean_;
  const Columns columns_;
  const bool reads_later_;  // by the thread of the only block of columns, which has less to do
  double* partial_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
