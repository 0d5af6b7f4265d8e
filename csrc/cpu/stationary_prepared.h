// What the adjoint of a chunk of a memory that moves takes from the states and from the gradients
// of the reads, before those of the state are known; the notation is that of stationary_adjoint.h.
#pragma once

#include "stationary_scan.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F>
struct PreparedChunk {
  StationaryChunk<F> chunk;
  StationaryFactors<A, F> factors;
  int64_t first = 0;
  bool goes_on = true;  // whether the state after the chunk is wanted
  const bool reads;
  bool slopes = false;  // whether read variances have gradients
  const Columns columns;
  Matrix<F> U, Y, inner;                 // before the chunk; F^-1 D_b W; the known part of I
  Matrix<A> G, Rt;                       // V P, and R' before the chunk
  MeanBlocks<A> E, D;                    // and the known part of D^
  Matrix<F> Q, moved, DtQ, KQ;           // the queries, Q~, Delta'Q~ and (N o dA)'Q
  Matrix<F> moved_slopes, fresh_slopes;  // gv Q~ and h gv Q
  Matrix<A> queries;                     // Q~
  double *from_here, *across;            // of the retentions, from the reads

  PreparedChunk(Workspace::Scope& scope, int64_t step, int64_t K, const Columns& all, bool identity,
                bool has_reads)
      : chunk(scope, step, K, identity),
        factors(scope, chunk),
        reads(has_reads),
        columns(all),
        U(scope, K, K),
        Y(scope, step, K),
        inner(scope, step, step),
        G(scope, step, K),
        Rt(scope, all.count * all.width, K),
        E(scope, step, all),
        D(scope, step, all),
        from_here(scope.take<double>(step)),
        across(scope.take<double>(step)) {
    if (!reads) return;
    for (Matrix<F>* m : {&Q, &moved, &DtQ, &KQ, &moved_slopes, &fresh_slopes})
      *m = Matrix<F>(scope, step, K);
    queries = room_in_arithmetic<A>(scope, moved);
  }

  // About what one takes.
  static double bytes(int64_t step, int64_t K, int64_t C) {
    return double(sizeof(F)) * double(K * K + 12 * step * K + 6 * step * step) +
           double(sizeof(A)) * double(K * C + 2 * step * C + 2 * step * K);
  }

  // Bytes of chunks that are kept rather than prepared for segments of them.
  static double at_once(int64_t) { return 12e6; }

  void set_steps(int64_t L) {
    for (Matrix<F>* m : {&Y, &inner, &Q, &moved, &DtQ, &KQ, &moved_slopes, &fresh_slopes})
      m->rows = L;
    G.rows = inner.columns = L;
  }

  // Of a block of columns.
  Matrix<A> E_of(int64_t block) const { return E[block].top(chunk.L); }
  Matrix<A> D_of(int64_t block) const { return D[block].top(chunk.L); }
  Matrix<A> Rt_of(int64_t block) const {
    return {Rt[columns.at(block)], columns.of(block), Rt.columns, Rt.ld};
  }
};

template <class A, class F>
class Preparation {
 public:
  using Prepared = PreparedChunk<A, F>;

  Preparation(const CausalScanBackwardArgs& args, const Episode& e, double limit,
              const Matrix<F>& Sigma, double grad_log_evidence)
      : step(stationary_steps(args.n.K, args.chunk_size, bool(args.queries), e.steps)),
        columns(split_columns<A>(args.n.C)),
        args_(args),
        e_(e),
        limit_(limit),
        Sigma_(Sigma),
        gl_(grad_log_evidence),
        K_(args.n.K),
        C_(args.n.C) {}

  const int64_t step;
  const Columns columns;

  void load_steps(Prepared& p, int64_t first, const Executor& executor) const {
    const int64_t L = std::min(step, e_.steps - first);
    p.first = first;
    p.goes_on = true;
    load_chunk(p.chunk, args_.weights, e_, first, L, Sigma_, executor);
    p.set_steps(L);
  }

  // Factors from U, which becomes that after the chunk.
  Outcome factor(Prepared& p, const Matrix<F>& U, const Executor& executor) const {
    if (!factor_chunk(p.chunk, U, limit_, executor)) return Outcome::harder;
    p.factors.take(p.chunk);
    if (p.goes_on) downdate(p.chunk, Sigma_, U, executor);
    return Outcome::done;
  }

  // The write of the columns.
  void write(const Prepared& p, const MeanBlocks<A>& mean, const Executor& executor) const {
    executor.for_each(columns.count, [&](int64_t block) { write_block(p, mean[block], block); });
  }

  // All of it, and where it goes on the state after the chunk in place of the one before it.
  Outcome prepare(Prepared& p, int64_t first, const Belief<A, F>& now, bool goes_on,
                  const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    load_steps(p, first, executor);
    p.goes_on = goes_on;
    copy(now.U, p.U);
    const Outcome outcome = factor(p, now.U, executor);
    if (outcome != Outcome::done) return outcome;
    const StationaryChunk<F>& c = p.chunk;
    product_transposed(executor, c.V, c.moved, p.Y);
    const Matrix<F> gains(scope, c.L, K_);
    product(executor, c.V, c.P, gains);
    convert(gains, p.G);
    for (int64_t t = 0; t < c.L; ++t) p.from_here[t] = p.across[t] = 0.0;

    Reads r(scope, c.L);
    if (p.reads) load_reads(p, r, executor);
    const Sums sums = sum_columns(scope, p, r, now.R, executor);
    add_evidence(sums.H, p.inner);
    if (p.reads) reverse_reads(p, r, sums, executor);
    return Outcome::done;
  }

 private:
  // Of the reads of a chunk, above the diagonal: A', W U Q' and W Sigma Q'; and gv.
  struct Reads {
    Matrix<F> inside, prior, stationary;
    Matrix<A> factors;
    double* slope;

    Reads(Workspace::Scope& scope, int64_t L)
        : inside(scope, L, L),
          prior(scope, L, L),
          stationary(scope, L, L),
          factors(room_in_arithmetic<A>(scope, inside)),
          slope(scope.take<double>(L)) {
      inside.structure = Structure::upper;
      prior.zero();
      stationary.zero();
    }
  };

  // Sums over the columns, one set per task: gO R' (L x K), E gO' and E E' (L x L).
  struct Sums {
    Matrix<A> OR, EO, H;
  };

  void write_block(const Prepared& p, const Matrix<A>& R, int64_t block) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<A> E = p.E_of(block), D = take_block<A>(scope, E.rows, columns, block);
    load(args_.values, 0, Rows{nullptr, p.first}, D, columns.at(block));
    clear_neutral(e_, p.first, D);
    innovations(p.factors, R, D, E);
    if (!p.goes_on) return;
    if (p.chunk.last_kept() != 1.0) scale(p.chunk.last_kept(), R);
    product_transposed(p.factors.P, E, R, Store::add);
  }

  void load_reads(Prepared& p, Reads& r, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const StationaryChunk<F>& c = p.chunk;
    const Matrix<F> Qt(scope, K_, c.L), both(scope, c.L, c.L);
    load(args_.queries, 0, Rows{nullptr, p.first}, p.Q);
    move_rows(c, 1.0, p.Q, p.moved);
    take_into(p.queries, p.moved);
    transpose(p.Q, Qt);
    product(executor, c.X, Qt, r.prior, Store::set, Part::upper);
    product(executor, c.WS, Qt, r.stationary, Store::set, Part::upper);
    combine(c, r.prior, r.stationary, both);
    product_transposed(executor, c.V, both, r.inside, Store::set, Part::upper);
    clear_lower(r.inside);
    take_into(r.factors, r.inside);
    p.slopes = bool(args_.grad_read_var);
    for (int64_t t = 0; t < c.L; ++t)
      r.slope[t] = p.slopes ? load_scalar<double>(args_.grad_read_var, 0, p.first + t) : 0.0;
  }

  Sums sum_columns(Workspace::Scope& scope, const Prepared& p, const Reads& r,
                   const MeanBlocks<A>& mean, const Executor& executor) const {
    const int64_t tasks = std::max<int64_t>(1, std::min(executor.threads(), columns.count));
    const int64_t L = p.chunk.L, lk = p.factors.W.ld, ll = p.factors.V.ld;
    const int64_t size = L * (lk + 2 * ll);
    const Matrix<A> all(scope.take<A>(tasks * size), tasks, size, size);
    all.zero();
    const auto of = [&](int64_t task) {
      A* at = all[task];
      return Sums{{at, L, K_, lk}, {at + L * lk, L, L, ll}, {at + L * (lk + ll), L, L, ll}};
    };
    executor.for_each(tasks, [&](int64_t task) {
      for (int64_t j = task; j < columns.count; j += tasks)
        prepare_columns(j, p, r, mean[j], of(task));
    });
    for (int64_t i = 1; i < tasks; ++i)
      for (int64_t j = 0; j < size; ++j) all[0][j] += all[i][j];
    return of(0);
  }

  // E, R', and D^ without the gradient of the mean: V (A'gO - gl E).
  void prepare_columns(int64_t block, const Prepared& p, const Reads& r, const Matrix<A>& R,
                       const Sums& sums) const {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L, n = columns.of(block);
    const Matrix<A> E = p.E_of(block), D = p.D_of(block), Rt = p.Rt_of(block), turned(scope, n, L),
                    inner = take_block<A>(scope, L, columns, block);
    transpose(R, Rt);
    write_block(p, R, block);
    inner.zero();
    if (args_.grad_reads) {
      const Matrix<A> gO = take_block<A>(scope, L, columns, block);
      load(args_.grad_reads, 0, Rows{nullptr, p.first}, gO, columns.at(block));
      transpose(gO, turned);
      product(E, turned, sums.EO, Store::add);
      product(gO, Rt, sums.OR, Store::add);
      product(r.factors, gO, inner);
    }
    if (gl_ != 0.0) {
      transpose(E, turned);
      product(E, turned, sums.H, Store::add);
      axpy(-gl_, E, inner);
    }
    product(p.factors.V, inner, D);
  }

  // inner = gl/2 (E E' - C I)
  void add_evidence(const Matrix<A>& H, const Matrix<F>& inner) const {
    for (int64_t s = 0; s < inner.rows; ++s) {
      for (int64_t t = 0; t < padded<F>(inner.rows); ++t)
        inner[s][t] = t < inner.rows ? F(0.5 * gl_ * double(H[s][t])) : F(0);
      inner[s][s] -= F(0.5 * gl_ * double(C_));
    }
  }

  void reverse_reads(Prepared& p, const Reads& r, const Sums& sums,
                     const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const StationaryChunk<F>& c = p.chunk;
    const int64_t L = c.L;
    // B' and Delta', then dA' = V Delta'.
    Matrix<F> mixed(scope, L, L), delta(scope, L, L), inner_right(scope, L, L), dA(scope, L, L);
    mixed.zero();
    for (int64_t s = 0; s < L; ++s)
      for (int64_t t = s; t < L; ++t) mixed[s][t] = F(sums.EO[s][t]);
    for (int64_t s = 0; s < L; ++s)
      for (int64_t t = 0; t < padded<F>(L); ++t) {
        const F weighted = t < L ? F(r.slope[t]) * r.inside[s][t] : F(0);
        delta[s][t] = mixed[s][t] - F(2) * weighted;
        inner_right[s][t] = weighted - mixed[s][t];
      }
    delta.structure = Structure::upper;
    const Matrix<F> turned(scope, L, L), more(scope, L, L);
    transpose(inner_right, turned);
    product(executor, r.inside, turned, more);
    symmetrise(more);
    axpy(1.0, more, p.inner);
    product(executor, delta, p.moved, p.DtQ);
    product(executor, c.V, delta, dA);

    reverse_retention(p, r, dA);

    Matrix<F> fresh(scope, L, L);
    for (int64_t s = 0; s < L; ++s)
      for (int64_t t = 0; t < padded<F>(L); ++t) fresh[s][t] = c.renewal[s][t] * dA[s][t];
    fresh.structure = Structure::upper;
    clear_lower(fresh);
    product(executor, fresh, p.Q, p.KQ);
    reverse_queries(p, r, sums, delta, fresh, executor);
  }

  // dQ = D_b (Delta Y U + 2 gv Q~ U + gO R') + ((N o dA) W + 2 h gv Q) Sigma
  void reverse_queries(Prepared& p, const Reads& r, const Sums& sums, const Matrix<F>& delta,
                       const Matrix<F>& fresh, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const StationaryChunk<F>& c = p.chunk;
    const int64_t L = c.L;
    const Matrix<F> moved(scope, L, K_), YU(scope, L, K_), dQ(scope, L, K_), through(scope, L, K_);
    move_rows(c, 1.0, c.X, moved);
    product_transposed(executor, c.V, moved, YU);
    product_transposed(executor, delta, YU, dQ);
    product_transposed(executor, fresh, c.W, through);
    if (p.slopes) {
      const Matrix<F> QU(scope, L, K_), QS(scope, L, K_);
      product(executor, p.Q, p.U, QU);
      if (Sigma_) product(executor, p.Q, Sigma_, QS);
      const Matrix<F>& settled = Sigma_ ? QS : p.Q;
      for (int64_t t = 0; t < L; ++t) {
        const double b = c.kept[t], gv = r.slope[t];
        const double energy = row_dot(K_, QU[t], p.Q[t]) - row_dot(K_, settled[t], p.Q[t]);
        p.from_here[t] += 2.0 * b * b * gv * energy;
        axpy(0, K_, 2.0 * gv * b, QU[t], dQ[t]);
        axpy(0, K_, 2.0 * gv * c.fresh[t], p.Q[t], through[t]);
        std::memcpy(p.moved_slopes[t], p.moved[t], size_t(padded<F>(K_)) * sizeof(F));
        scale(0, K_, gv, p.moved_slopes[t]);
        std::memcpy(p.fresh_slopes[t], p.Q[t], size_t(padded<F>(K_)) * sizeof(F));
        scale(0, K_, gv * c.fresh[t], p.fresh_slopes[t]);
      }
    }
    const Matrix<F> OR(scope, L, K_);
    convert(sums.OR, OR);
    axpy(1.0, OR, dQ);
    for (int64_t t = 0; t < L; ++t) p.from_here[t] += row_dot(K_, OR[t], p.moved[t]);
    move_rows(c, 1.0, dQ, dQ);
    if (Sigma_) {
      product(executor, through, Sigma_, dQ, Store::add);
    } else {
      axpy(1.0, through, dQ);
    }
    store(args_.d_queries, 0, Rows{nullptr, p.first}, dQ);
  }

  // Through b b' o (W U Q') + N o (W Sigma Q'), given dA'.
  void reverse_retention(Prepared& p, const Reads& r, const Matrix<F>& dA) const {
    const StationaryChunk<F>& c = p.chunk;
    for (int64_t s = 0; s < c.L; ++s) {
      double later = 0.0;
      for (int64_t t = c.L - 1; t >= s; --t) {
        const double g = dA[s][t];
        const double moved =
            g * c.kept[s] * c.kept[t] * (double(r.prior[s][t]) - double(r.stationary[s][t]));
        p.from_here[s] += moved;
        p.from_here[t] += moved;
        if (t == s) break;
        later += g * c.between[t][s] * double(r.stationary[s][t]);
        p.across[t] += later;
      }
    }
  }

  const CausalScanBackwardArgs& args_;
  const Episode& e_;
  const double limit_;
  const Matrix<F> Sigma_;
  const double gl_;
  const int64_t K_, C_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
