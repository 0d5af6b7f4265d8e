// What the adjoint of a chunk takes from the states and from the gradients of the reads, before
// those of the state are known; the notation is that of write_adjoint.h.
#pragma once

#include "bayes_write.h"

namespace kanerva {
namespace KANERVA_ISA {

// What the adjoint of a write asks of reads inside a chunk, in the order of the calls: up to
// finish() to prepare the chunk, then of its prepared state. Of writes without reads: nothing.
template <class A, class F>
struct NoReads {
  static constexpr bool present = false;
  using Args = WriteBackward;

  NoReads(Workspace::Scope&, const Args&, int64_t, bool) {}
  void load_chunk(int64_t, const Episode&) {}
  void take_root(int64_t, const Matrix<F>&) {}
  void take_kept(int64_t, const Matrix<F>&) {}
  const F* through_root(int64_t) const { return nullptr; }
  double slope(int64_t) const { return 0.0; }
  void prepare(const Chunk<F>&, const Matrix<F>&, const Matrix<F>&, bool, const Executor&) {}
  Matrix<A> load_gradient(Workspace::Scope&, const Columns&, int64_t) const { return {}; }
  void add_columns(const Matrix<A>&, const Matrix<A>&, const Matrix<A>&, const Matrix<A>&) const {}
  void add_inner(const Chunk<F>&, const Matrix<A>&, const Matrix<A>&, const Matrix<F>&,
                 const Executor&) {}
  void finish(double*) const {}

  void add_to_mean(const Matrix<A>&, const Matrix<A>&) const {}
  void add_to_covariance(const Matrix<F>&, const Executor&) const {}
  void add_to_kept(const Matrix<F>&, const Executor&) const {}
  void subtract_mixed(const Matrix<F>&, const Executor&) const {}
  void add_to_addresses(const Matrix<F>&, const Executor&) const {}
};

// Chunks of more steps do not overwrite a memory of so many slots; see write_adjoint.h.
inline bool may_overwrite(int64_t K, int64_t steps) { return K <= 2 * steps; }

template <class A, class F, class Reads>
struct PreparedWrite {
  Chunk<F> chunk;
  ChunkFactors<A> factors;
  int64_t first = 0;
  bool goes_on = true;  // whether the state after the chunk is wanted
  bool kept = false;    // whether J' was formed
  const Columns columns;
  Matrix<F> U, Y, keep, inner;  // the covariance before the chunk; F^-1 W; J'; the known part of I^
  Matrix<A> G, whitened, J, Rt;  // F^-T P; Y and J' again; R' before the chunk
  Matrix<A> OR, OE, H;           // gO R' (L x K), gO E' and E E' (L x L)
  MeanBlocks<A> E, D;            // and the known part of D^
  double* d_decay;               // adjoint of b_t
  Reads reads;

  PreparedWrite(Workspace::Scope& scope, const typename Reads::Args& args, int64_t step,
                const Columns& all, bool use_sqrt)
      : chunk(scope, step, args.n.K),
        factors(scope, chunk),
        columns(all),
        U(scope, args.n.K, args.n.K),
        Y(scope, step, args.n.K),
        inner(scope, step, step),
        G(scope, step, args.n.K),
        whitened(room_in_arithmetic<A>(scope, Y)),
        Rt(scope, all.count * all.width, args.n.K),
        H(scope, step, step),
        E(scope, step, all),
        D(scope, step, all),
        d_decay(scope.take<double>(step)),
        reads(scope, args, step, use_sqrt) {
    if (use_sqrt || may_overwrite(args.n.K, step)) {
      keep = Matrix<F>(scope, args.n.K, args.n.K);
      J = room_in_arithmetic<A>(scope, keep);
    }
    if (!Reads::present) return;
    OR = Matrix<A>(scope, step, args.n.K);
    OE = Matrix<A>(scope, step, step);
  }

  // About what one takes.
  static double bytes(int64_t step, int64_t K, int64_t C) {
    const double L = double(step), k = double(K), c = double(C);
    const double kept = may_overwrite(K, step) ? k * k : 0.0;
    const double reads = Reads::present ? 3 * L * k + 3 * L * L : 0.0;
    return double(sizeof(F)) * (k * k + kept + 4 * L * k + 3 * L * L + reads) +
           double(sizeof(A)) * (k * c + 2 * L * c + L * k + L * L + reads / 3);
  }

  // Bytes of chunks that are kept rather than prepared for segments of them: what that saves, the
  // factors of each once, grows faster with the slots than what is read again.
  static double at_once(int64_t K) { return K <= 192 ? 6e6 : 12e6; }

  void set_steps(int64_t L) {
    for (Matrix<F>* m : {&Y, &inner}) m->rows = L;
    for (Matrix<A>* m : {&G, &OR, &OE, &H}) m->rows = L;
    inner.columns = OE.columns = H.columns = L;
  }

  // Of a block of columns.
  Matrix<A> E_of(int64_t block) const { return E[block].top(chunk.L); }
  Matrix<A> D_of(int64_t block) const { return D[block].top(chunk.L); }
  Matrix<A> Rt_of(int64_t block) const {
    return {Rt[columns.at(block)], columns.of(block), Rt.columns, Rt.ld};
  }
};

template <class A, class F, class Reads>
class WritePreparation {
 public:
  using Args = typename Reads::Args;
  using Prepared = PreparedWrite<A, F, Reads>;

  // In chunks of `steps` steps of item b.
  WritePreparation(const Args& args, int64_t b, const Episode& e, bool use_sqrt, double limit,
                   int64_t steps)
      : step(steps),
        columns(split_columns<A>(args.n.C)),
        gl(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0),
        args_(args),
        b_(b),
        e_(e),
        use_sqrt_(use_sqrt),
        limit_(limit),
        K_(args.n.K) {}

  const int64_t step;
  const Columns columns;
  const double gl;

  void load_steps(Prepared& p, int64_t first, const Executor&) const {
    p.first = first;
    p.goes_on = true;
    load_chunk(p.chunk, args_.weights, b_, e_, first, std::min(step, e_.steps - first));
    p.set_steps(p.chunk.L);
  }

  // Factors from U, the covariance or its root, which becomes that after the chunk.
  Outcome factor(Prepared& p, const Matrix<F>& U, const Executor& executor) const {
    return factor(p, U, executor, [](int64_t) {});
  }

  // The write of the columns.
  void write(const Prepared& p, const MeanBlocks<A>& mean, const Executor& executor) const {
    write_columns(p.chunk, p.factors, args_.values, b_, e_, p.first, MeanEnds{}, mean, executor);
  }

  // All of it, and where it goes on the state after the chunk in place of the one before it.
  Outcome prepare(Prepared& p, int64_t first, const Belief<A, F>& now, bool goes_on,
                  const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    load_steps(p, first, executor);
    p.goes_on = goes_on;
    p.reads.load_chunk(first, e_);
    copy(use_sqrt_ ? square(executor, scope, now.U) : now.U, p.U);
    const Outcome outcome =
        factor(p, now.U, executor, [&](int64_t t) { p.reads.take_root(t, now.U); });
    if (outcome != Outcome::done) return outcome;
    const Chunk<F>& c = p.chunk;
    for (int64_t t = 0; t < c.L; ++t) p.d_decay[t] = 0.0;
    const Matrix<F> gains(scope, c.L, K_);
    product(executor, c.V, c.P, gains);
    convert(gains, p.G);
    product_transposed(executor, c.V, c.W, p.Y);
    p.kept = use_sqrt_ || (may_overwrite(K_, c.L) && c.hardness > kHardForSubtracting);
    if (p.kept) {
      what_is_kept(p, executor);
      take_into(p.J, p.keep);
    }
    take_into(p.whitened, p.Y);
    p.reads.prepare(c, p.U, p.Y, p.kept, executor);
    sum_columns(p, now.R, executor);
    take_evidence(p, p.inner);
    p.reads.add_inner(c, p.OR, p.OE, p.inner, executor);
    p.reads.finish(p.d_decay);
    return Outcome::done;
  }

  // gl/2 (H - C I), with the decays in H.
  void take_evidence(const Prepared& p, const Matrix<F>& evidence) const {
    const int64_t L = p.chunk.L;
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < padded<F>(L); ++j) {
        double h = i == j ? -double(args_.n.C) : 0.0;
        if (j < L) h += p.chunk.decay[std::max(i, j)] * double(p.H[i][j]);
        evidence[i][j] = F(0.5 * gl * h);
      }
  }

 private:
  template <class AfterStep>
  Outcome factor(Prepared& p, const Matrix<F>& U, const Executor& executor,
                 AfterStep&& after_step) const {
    const Outcome outcome =
        kanerva::KANERVA_ISA::factor(p.chunk, U, use_sqrt_, limit_, executor, after_step);
    if (outcome != Outcome::done) return outcome;
    p.factors.take(p.chunk);
    if (!use_sqrt_ && p.goes_on) downdate(p.chunk, U, executor);
    return outcome;
  }

  // J' = I - Y'P; in sqrt form as the product over the steps of I - y_t p_t', where y_t is what the
  // product so far makes of w_t: as accurate as the recursion where Y and Y'P cancel.
  void what_is_kept(Prepared& p, const Executor& executor) const {
    const Chunk<F>& c = p.chunk;
    set_identity(p.keep);
    if (!use_sqrt_) {
      product_transposed(executor, p.Y, c.P, p.keep, Store::sub);
      return;
    }
    for (int64_t t = 0; t < c.L; ++t) {
      for (int64_t i = 0; i < K_; ++i) {
        const double y = row_dot(K_, p.keep[i], c.W[t]) * c.inverse_diagonal[t];
        p.Y[t][i] = F(y);
        axpy(0, K_, -y, c.P[t], p.keep[i]);
      }
      p.reads.take_kept(t, p.keep);
    }
  }

  // Sums over the columns.
  struct Sums {
    Matrix<A> OR, OE, H;
  };

  // All column blocks; the sums of the tasks are added in their order.
  void sum_columns(Prepared& p, const MeanBlocks<A>& mean, const Executor& executor) const {
    const int64_t tasks = std::max<int64_t>(1, std::min(executor.threads(), columns.count));
    const Sums total{p.OR, p.OE, p.H};
    for (const Matrix<A>* m : {&total.OR, &total.OE, &total.H})
      if (*m) m->zero();
    if (tasks == 1) {
      for (int64_t j = 0; j < columns.count; ++j) prepare_columns(j, p, mean[j], total);
      return;
    }
    Workspace::Scope scope(Workspace::of_thread());
    Sums* parts = scope.take<Sums>(tasks);
    for (int64_t i = 0; i < tasks; ++i) {
      new (parts + i) Sums(total);
      for (Matrix<A>* m : {&parts[i].OR, &parts[i].OE, &parts[i].H}) {
        if (!*m || i == 0) continue;
        m->data = scope.take<A>(m->rows * m->ld);
        m->zero();
      }
    }
    executor.for_each(tasks, [&](int64_t task) {
      for (int64_t j = task; j < columns.count; j += tasks)
        prepare_columns(j, p, mean[j], parts[task]);
    });
    for (int64_t i = 1; i < tasks; ++i) {
      axpy(1.0, parts[i].H, total.H);
      if (!total.OR) continue;
      axpy(1.0, parts[i].OR, total.OR);
      axpy(1.0, parts[i].OE, total.OE);
    }
  }

  // E, R', D^ without the gradient of the mean: V (A'gO - gl b E), and R after the chunk where
  // that is wanted.
  void prepare_columns(int64_t block, const Prepared& p, const Matrix<A>& R,
                       const Sums& sums) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Chunk<F>& c = p.chunk;
    const int64_t L = c.L, n = columns.of(block);
    const Matrix<A> E = p.E_of(block), Rt = p.Rt_of(block), turned(scope, n, L),
                    inner = take_block<A>(scope, L, columns, block);
    transpose(R, Rt);
    load(args_.values, b_, Rows{e_.index, p.first}, inner, columns.at(block));
    clear_neutral(e_, p.first, inner);
    innovations(p.factors, R, inner, E);
    if (p.goes_on) product_transposed(p.factors.P, E, R, Store::add);
    const Matrix<A> gO = p.reads.load_gradient(scope, columns, block);
    if (!gO && gl == 0.0) return;
    transpose(E, turned);
    inner.zero();
    if (gO) {
      p.reads.add_columns(gO, turned, sums.OE, inner);
      product(gO, Rt, sums.OR, Store::add);
    }
    if (gl != 0.0) {
      product(E, turned, sums.H, Store::add);
      for (int64_t t = 0; t < L; ++t) axpy(0, n, -gl * c.decay[t], E[t], inner[t]);
    }
    product(p.factors.V, inner, p.D_of(block));
  }

  const Args& args_;
  const int64_t b_;
  const Episode& e_;
  const bool use_sqrt_;
  const double limit_;
  const int64_t K_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
