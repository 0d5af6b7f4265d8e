// The adjoint of the exact write, in closed form per chunk, from the last chunk to the first.
//
// Nothing but the inputs and the posterior is kept by the forward. The states at the starts of the
// chunks are computed again (at most two square roots of the number of chunks of them are alive);
// inside a chunk nothing is scanned. With the factors of write_chunk.h, whitened addresses
// Y = F^-1 W, G = F^-T P, b the decays inside the chunk and gU the gradient of the undecayed
// covariance:
//   N = E gR',  H_ij = b_max(i,j) (E E')_ij,
//   I^ = P gU P' - sym(P N') + gl/2 (H - C I),
//   D^ = G gR - gl F^-T (b E) = dZ,  dn = diag(F^-T I^ F^-1),
//   dW = -D^ R' + F^-T (N - 2 P gU + 2 I^ Y) U.
// What the chunk leaves of its prior is J' = I - Y'P. For chunks that can overwrite the memory it
// is formed once: subtracting the overwritten part from each gradient would cancel.
//   gR <- J' gR + gl Y'(b E),  gU <- J' gU J + sym(J' N' Y) + gl/2 Y'(H - C I) Y,
//   N - 2 P gU + 2 I^ Y = (N - 2 P gU) J - (P N' - gl (H - C I)) Y
// Others subtract, which costs less:
//   gR <- gR - W'D^,           gU <- gU + sym(Y'(N - 2 P gU + I^ Y))
// Over many chunks gU cancels all the same: in sqrt form a second one goes with the root, from
// which that of the start is taken where it is the better one (rooted_gradient.h).
//
// The adjoint of reads inside the chunks is a sum beside it: `Reads`, see causal_scan_backward.h.
#pragma once

#include "rooted_gradient.h"

namespace kanerva {
namespace KANERVA_ISA {

// What the adjoint of a write asks of reads inside its chunks, in the order of the calls. Of writes
// without reads: nothing.
template <class A, class F>
struct NoReads {
  static constexpr bool present = false;

  void load_chunk(int64_t, const Episode&) {}
  void take_root(int64_t, const Matrix<F>&) {}
  void take_kept(int64_t, const Matrix<F>&) {}
  const F* through_root(int64_t) const { return nullptr; }
  double slope(int64_t) const { return 0.0; }
  void prepare(const Chunk<F>&, const Matrix<F>&, const Matrix<F>&, bool) {}
  Matrix<A> load_gradient(Workspace::Scope&, int64_t, const Columns&, int64_t) const { return {}; }
  void add_columns(const ChunkFactors<A>&, const Matrix<A>&, const Matrix<A>&, const Matrix<A>&,
                   const Matrix<A>&) const {}
  void add_to_mean(const Matrix<A>&, const Matrix<A>&) const {}
  void add_inner(const Chunk<F>&, const Matrix<A>&, const Matrix<A>&, const Matrix<F>&) {}
  void add_to_covariance(const Matrix<F>&) const {}
  void add_to_kept(const Matrix<F>&) const {}
  void subtract_mixed(const Matrix<F>&) const {}
  void add_to_addresses(const Matrix<F>&) const {}
  void finish(int64_t, double*) const {}
};

template <class A, class F, class Reads = NoReads<A, F>>
class WriteAdjoint {
  // In sqrt form all is float64.
  static constexpr bool kMayBeRooted = std::is_same_v<A, double> && std::is_same_v<F, double>;

 public:
  // In chunks of `step` steps.
  WriteAdjoint(const WriteBackward& args, int64_t b, const Episode& e, bool use_sqrt, double limit,
               const Executor& executor, int64_t step, Reads& reads)
      : args_(args),
        b_(b),
        e_(e),
        use_sqrt_(use_sqrt),
        limit_(limit),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        step_(step),
        reads_(reads),
        chunk_(scope_, step_, K_),
        factors_(scope_, chunk_),
        columns_(split_columns<A>(C_)),
        gU_(scope_, K_, K_),
        gR_(scope_, K_, columns_),
        rooted_(scope_, use_sqrt ? K_ : 0, use_sqrt ? columns_ : Columns{}),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0) {}

  Outcome run() {
    load_gradients();
    const int64_t chunks = (e_.steps + step_ - 1) / step_;
    constexpr double one_level = 8e6;  // bytes of states that are kept without a second level
    const double bytes = double(chunks) * (double(gU_.bytes()) + double(gR_.bytes()));
    int64_t segment = std::max<int64_t>(1, chunks);
    if (bytes > one_level) segment = int64_t(std::ceil(std::sqrt(double(chunks))));
    const int64_t segments = std::max<int64_t>(1, (chunks + segment - 1) / segment);

    const States<A, F> outer(scope_, segments, K_, columns_), inner(scope_, segment, K_, columns_);
    load(args_.mean, b_, outer[0].R);
    if (!load_state(args_.cov, b_, use_sqrt_, outer[0].U)) return Outcome::failed;
    for (int64_t s = 0; s + 1 < segments; ++s) {
      outer[s + 1].copy_from(outer[s]);
      for (int64_t i = s * segment; i < (s + 1) * segment; ++i) {
        const Outcome outcome = advance(i, outer[s + 1]);
        if (outcome != Outcome::done) return outcome;
      }
    }
    for (int64_t s = segments - 1; s >= 0; --s) {
      const int64_t first = s * segment, count = std::min(segment, chunks - first);
      inner[0].copy_from(outer[s]);
      for (int64_t i = 0; i + 1 < count; ++i) {
        inner[i + 1].copy_from(inner[i]);
        const Outcome outcome = advance(first + i, inner[i + 1]);
        if (outcome != Outcome::done) return outcome;
      }
      for (int64_t i = count - 1; i >= 0; --i) {
        const Outcome outcome = reverse(first + i, inner[i]);
        if (outcome != Outcome::done) return outcome;
      }
    }
    if constexpr (kMayBeRooted)
      if (rooted_.started()) rooted_.replace(args_.cov, b_, largest_, gU_);
    store(args_.d_mean, b_, gR_);
    store(args_.d_cov, b_, Rows{}, gU_);
    return Outcome::done;
  }

 private:
  void load_gradients() {
    if (args_.grad_cov) {
      load(args_.grad_cov, b_, Rows{}, gU_);
      symmetrise(gU_);
    } else {
      gU_.zero();
    }
    if (args_.grad_mean) {
      load(args_.grad_mean, b_, gR_);
    } else {
      std::memset(gR_.data, 0, gR_.bytes());
    }
  }

  Rows rows() const { return {e_.index, first_}; }

  // The factors of chunk `index` from U, the covariance or its root.
  template <class AfterStep>
  Outcome factor_at(int64_t index, const Matrix<F>& U, AfterStep&& after_step) {
    first_ = index * step_;
    load_chunk(chunk_, args_.weights, b_, e_, first_, std::min(step_, e_.steps - first_));
    const Outcome outcome = factor(chunk_, U, use_sqrt_, limit_, executor_, after_step);
    if (outcome == Outcome::done) factors_.take(chunk_);
    return outcome;
  }

  // The forward write of chunk `index`, in place.
  Outcome advance(int64_t index, const Belief<A, F>& state) {
    const Outcome outcome = factor_at(index, state.U, [](int64_t) {});
    if (outcome != Outcome::done) return outcome;
    write_columns(chunk_, factors_, args_.values, b_, e_, first_, MeanEnds{}, state.R, executor_);
    if (!use_sqrt_) downdate(chunk_, state.U, executor_);
    return Outcome::done;
  }

  // Sums over the columns, one set per task, in one piece of memory.
  struct Sums {
    Matrix<A> N, DR, H;  // E gR' and D^ R' (L x K), E E' (L x L)
    Matrix<A> OR, OE;    // gO R' (L x K) and gO E' (L x L), gO the gradient of the reads
    Matrix<A> hd;        // of RootedGradient, L x K; in sqrt form
  };

  // Of a chunk, in the arithmetic of its factors.
  struct Terms {
    Matrix<F> U, Y;          // the covariance before the chunk, and the whitened addresses
    Matrix<F> keep;          // J'; absent to subtract what the chunk overwrites
    Matrix<F> N, PU, inner;  // E gR' and P gU (L x K), I^ (L x L)
  };

  // What the columns of a chunk need of these beside its factors, in their arithmetic.
  struct ColumnTerms {
    Matrix<A> G, Y, keep;
  };

  // The adjoint of chunk `index` at its starting state; turns gU_ and gR_ into those of that state.
  Outcome reverse(int64_t index, const Belief<A, F>& state) {
    Workspace::Scope scope(Workspace::of_thread());
    reads_.load_chunk(index * step_, e_);
    Terms m;
    m.U = use_sqrt_ ? square(executor_, scope, state.U) : state.U;  // the root is consumed
    const Outcome outcome =
        factor_at(index, state.U, [&](int64_t t) { reads_.take_root(t, state.U); });
    if (outcome != Outcome::done) return outcome;
    if constexpr (kMayBeRooted)
      if (use_sqrt_ && !rooted_.started()) rooted_.start(executor_, state.U, gU_, gR_);
    const int64_t L = chunk_.L;
    double* d_decay = scope.take<double>(L);  // adjoint of b_t
    for (int64_t t = 0; t < L; ++t) d_decay[t] = 0.0;
    if (e_.decay) undecay(m.U, d_decay);

    const Matrix<F> G(scope, L, K_);
    product(executor_, chunk_.V, chunk_.P, G);
    m.Y = Matrix<F>(scope, L, K_);
    product_transposed(executor_, chunk_.V, chunk_.W, m.Y);
    if (use_sqrt_ || (K_ <= 2 * L && chunk_.hardness > kHardForSubtracting)) {
      m.keep = Matrix<F>(scope, K_, K_);
      what_is_kept(m.Y, m.keep);
    }
    reads_.prepare(chunk_, m.U, m.Y, bool(m.keep));

    const Sums sums = sum_columns(scope, state.R, column_terms(scope, G, m));
    if constexpr (kMayBeRooted)
      if (use_sqrt_) rooted_.write_chunk(chunk_, e_, first_, reads_, sums.hd, sums.H, gl_);
    m.N = Matrix<F>(scope, L, K_);
    m.PU = Matrix<F>(scope, L, K_);
    convert(sums.N, m.N);
    product(executor_, chunk_.P, gU_, m.PU);
    m.inner = evidence_of_factors(scope, sums.H);
    add_whitened(m);
    reads_.add_inner(chunk_, sums.OR, sums.OE, m.inner);
    if (m.keep) {
      reverse_kept_covariance(m, sums.H);
    } else {
      reads_.add_to_addresses(m.N);
      reverse_covariance(m);
    }
    reads_.finish(first_, d_decay);
    if (use_sqrt_) largest_ = std::max(largest_, row_norm(gU_));
    reverse_weights(m, sums);
    store_noise(m.inner, d_decay);
    if (e_.decay) store_decay(sums.H, d_decay);
    return Outcome::done;
  }

  // J' = I - Y'P; in sqrt form as the product over the steps of I - y_t p_t', where y_t is what the
  // product so far makes of w_t: as accurate as the recursion where Y and Y'P cancel.
  void what_is_kept(const Matrix<F>& Y, const Matrix<F>& keep) {
    set_identity(keep);
    if (!use_sqrt_) {
      product_transposed(executor_, Y, chunk_.P, keep, Store::sub);
      return;
    }
    for (int64_t t = 0; t < chunk_.L; ++t) {
      for (int64_t i = 0; i < K_; ++i) {
        const double y = row_dot(K_, keep[i], chunk_.W[t]) * chunk_.inverse_diagonal[t];
        Y[t][i] = F(y);
        axpy(0, K_, -y, chunk_.P[t], keep[i]);
      }
      reads_.take_kept(t, keep);
    }
  }

  ColumnTerms column_terms(Workspace::Scope& scope, const Matrix<F>& G, const Terms& m) const {
    ColumnTerms terms{
        in_arithmetic<A>(executor_, scope, G), in_arithmetic<A>(executor_, scope, m.Y), {}};
    if (m.keep) terms.keep = in_arithmetic<A>(executor_, scope, m.keep);
    return terms;
  }

  // All column blocks; the sums of the tasks are added in their order.
  Sums sum_columns(Workspace::Scope& scope, const MeanBlocks<A>& R, const ColumnTerms& m) {
    const int64_t tasks = std::max<int64_t>(1, std::min(executor_.threads(), columns_.count));
    const int64_t L = chunk_.L, lk = factors_.W.ld, ll = factors_.V.ld;
    const int64_t write = 2 * L * lk + L * ll;
    const int64_t both = write + (Reads::present ? L * (lk + ll) : 0);
    const int64_t size = both + (use_sqrt_ ? L * lk : 0);
    const Matrix<A> all(scope.take<A>(tasks * size), tasks, size, size);
    all.zero();
    const auto of = [&](int64_t task) {
      const auto by_slots = [&](int64_t at) { return Matrix<A>(all[task] + at, L, K_, lk); };
      const auto by_steps = [&](int64_t at) { return Matrix<A>(all[task] + at, L, L, ll); };
      return Sums{by_slots(0),     by_slots(L * lk),         by_steps(2 * L * lk),
                  by_slots(write), by_steps(write + L * lk), by_slots(both)};
    };
    executor_.for_each(tasks, [&](int64_t task) {
      for (int64_t j = task; j < columns_.count; j += tasks) reverse_columns(j, R[j], m, of(task));
    });
    for (int64_t i = 1; i < tasks; ++i)
      for (int64_t j = 0; j < size; ++j) all[0][j] += all[i][j];
    return of(0);
  }

  void reverse_columns(int64_t block, const Matrix<A>& R, const ColumnTerms& m, const Sums& sums) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = chunk_.L, n = columns_.of(block), c0 = columns_.at(block);
    const auto take = [&](int64_t rows) { return take_block<A>(scope, rows, columns_, block); };
    const Matrix<A> gR = gR_[block], D = take(L), E = take(L), dZ = take(L);  // dZ = D^
    const Matrix<A> by_slots(scope, n, K_), by_steps(scope, n, L);
    load(args_.values, b_, rows(), D, c0);
    clear_neutral(e_, first_, D);
    innovations(factors_, R, D, E);
    transpose(gR, by_slots);
    product(E, by_slots, sums.N, Store::add);
    product(m.G, gR, dZ);
    const Matrix<A> gO = reads_.load_gradient(scope, first_, columns_, block);
    if constexpr (kMayBeRooted)
      if (use_sqrt_)
        rooted_.write_chunk_columns(block, chunk_, e_, first_, reads_, E, gO, gl_, sums.hd);
    if (gl_ != 0.0 || gO) transpose(E, by_steps);
    if (gO) reads_.add_columns(factors_, gO, by_steps, sums.OE, dZ);
    if (gl_ != 0.0) {
      product(E, by_steps, sums.H, Store::add);
      for (int64_t t = 0; t < L; ++t) scale(0, n, gl_ * chunk_.decay[t], E[t]);
      const Matrix<A> outer = take(L);
      product(factors_.V, E, outer);
      axpy(-1.0, outer, dZ);
    }
    transpose(R, by_slots);
    product(dZ, by_slots, sums.DR, Store::add);
    if (gO) product(gO, by_slots, sums.OR, Store::add);
    if (m.keep) {
      const Matrix<A> before = take(K_);
      copy(gR, before);
      product(m.keep, before, gR);
      if (gl_ != 0.0) product_transposed(m.Y, E, gR, Store::add);
    } else {
      product_transposed(factors_.W, dZ, gR, Store::sub);
    }
    if (gO) reads_.add_to_mean(gO, gR);
    clear_neutral(e_, first_, dZ);
    store(args_.d_values, b_, rows(), dZ, c0);
  }

  // I^ += P gU P' - sym(P N')
  void add_whitened(const Terms& m) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = chunk_.L;
    const Matrix<F> turned(scope, K_, L), cross(scope, L, L);
    transpose(chunk_.P, turned);
    product(executor_, m.PU, turned, m.inner, Store::add);
    transpose(m.N, turned);
    product(executor_, chunk_.P, turned, cross);
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < L; ++j) m.inner[i][j] -= 0.5 * (cross[i][j] + cross[j][i]);
  }

  // gU_ of the chunk's posterior -> of its starting state, by subtracting.
  void reverse_covariance(const Terms& m) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> right(scope, chunk_.L, K_), dU(scope, K_, K_);
    copy(m.N, right);
    axpy(-2.0, m.PU, right);
    product(executor_, m.inner, m.Y, right, Store::add);
    product_transposed(executor_, m.Y, right, dU);
    reads_.add_to_covariance(dU);
    symmetrise(dU);
    axpy(1.0, dU, gU_);
  }

  // The same by what is kept: Y'(N J + gl/2 (H - C I) Y), then J' gU J on top.
  void reverse_kept_covariance(const Terms& m, const Matrix<A>& H) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> J(scope, K_, K_), right(scope, chunk_.L, K_), dU(scope, K_, K_),
        half(scope, K_, K_);
    transpose(m.keep, J);
    product(executor_, m.N, J, right);
    if (gl_ != 0.0) product(executor_, evidence_of_factors(scope, H), m.Y, right, Store::add);
    reads_.add_to_kept(right);
    product_transposed(executor_, m.Y, right, dU);
    reads_.add_to_covariance(dU);
    product(executor_, m.keep, gU_, half);
    product(executor_, half, J, dU, Store::add);
    symmetrise(dU);
    copy(dU, gU_);
  }

  // dW = -D^ R' + F^-T (N - 2 P gU + 2 I^ Y) U; I^ becomes 2 I^.
  void reverse_weights(const Terms& m, const Sums& sums) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = chunk_.L;
    const Matrix<F> whitened(scope, L, K_), dW(scope, L, K_);
    scale(2.0, m.inner);
    if (m.keep) {
      turn_kept(m, sums.H);
    } else {
      axpy(-2.0, m.PU, m.N);
      product(executor_, m.inner, m.Y, m.N, Store::add);
    }
    product(executor_, chunk_.V, m.N, whitened);
    for (int64_t t = 0; t < L; ++t)
      for (int64_t k = 0; k < padded<F>(K_); ++k) dW[t][k] = F(-double(sums.DR[t][k]));
    product(executor_, whitened, m.U, dW, Store::add);
    clear_neutral(e_, first_, dW);
    store(args_.d_weights, b_, rows(), dW);
  }

  // N <- N - 2 P gU + 2 I^ Y without the difference of large terms:
  //   (N - 2 P gU) J - (P N' - gl (H - C I)) Y
  void turn_kept(const Terms& m, const Matrix<A>& H) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> J(scope, K_, K_), turned(scope, K_, chunk_.L);
    transpose(m.keep, J);
    const Matrix<F> system = evidence_of_factors(scope, H);
    scale(2.0, system);
    transpose(m.N, turned);
    product(executor_, chunk_.P, turned, system, Store::sub);
    reads_.subtract_mixed(system);
    scale(-2.0, m.PU);
    axpy(1.0, m.N, m.PU);
    product(executor_, m.PU, J, m.N);
    product(executor_, system, m.Y, m.N, Store::add);
    reads_.add_to_addresses(m.N);
  }

  // dn = diag(F^-T I^ F^-1), given `inner` = 2 I^.
  void store_noise(const Matrix<F>& inner, double* d_decay) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = chunk_.L;
    const Matrix<F> room(scope, L, L);
    product(executor_, chunk_.V, inner, room);
    for (int64_t t = 0; t < L; ++t) {
      double dn = 0.0;
      for (int64_t j = t; j < L; ++j) dn += 0.5 * room[t][j] * chunk_.V[t][j];
      store_scalar(args_.d_noise_var, b_, rows()[t], counts(t) ? dn * chunk_.decay[t] : 0.0);
      d_decay[t] += dn * e_.noise[first_ + t];
    }
  }

  // Whether step t of the chunk is not a neutral one.
  bool counts(int64_t t) const { return e_.counts == nullptr || e_.counts[first_ + t]; }

  void store_decay(const Matrix<A>& H, double* d_decay) {
    const int64_t L = chunk_.L;
    for (int64_t t = 0; t < L; ++t) {
      const double square = double(H[t][t]);  // |E_t|^2
      d_decay[t] -= 0.5 * gl_ * (square - double(C_) / chunk_.decay[t]);
    }
    double later = 0.0;  // b_t is a product: gamma_s enters every b_t with t >= s
    for (int64_t t = L - 1; t >= 0; --t) {
      later += d_decay[t] * chunk_.decay[t];
      store_scalar(args_.d_decay, b_, rows()[t], counts(t) ? later / e_.decay[first_ + t] : 0.0);
    }
  }

  // gU of the decayed covariance -> of the undecayed one, and its share in the adjoint of b.
  void undecay(const Matrix<F>& U, double* d_decay) {
    Workspace::Scope scope(Workspace::of_thread());
    const double b = chunk_.final_decay();
    const Matrix<F> posterior(scope, K_, K_);
    copy(U, posterior);
    product_transposed(executor_, chunk_.P, chunk_.P, posterior, Store::sub);
    double dot = 0.0;
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < K_; ++j) dot += gU_[i][j] * posterior[i][j];
    scale(1.0 / b, gU_);
    d_decay[chunk_.L - 1] -= dot / (b * b);
  }

  // gl/2 (H - C I), with the decays in H.
  Matrix<F> evidence_of_factors(Workspace::Scope& scope, const Matrix<A>& H) const {
    const int64_t L = chunk_.L;
    const Matrix<F> evidence(scope, L, L);
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < padded<F>(L); ++j) {
        double h = i == j ? -double(C_) : 0.0;
        if (j < L) h += chunk_.decay[std::max(i, j)] * double(H[i][j]);
        evidence[i][j] = F(0.5 * gl_ * h);
      }
    return evidence;
  }

  const WriteBackward& args_;
  const int64_t b_;
  const Episode& e_;
  const bool use_sqrt_;
  const double limit_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_, step_;
  Reads& reads_;
  Chunk<F> chunk_;
  ChunkFactors<A> factors_;
  const Columns columns_;
  const Matrix<F> gU_;
  const MeanBlocks<A> gR_;
  RootedGradient rooted_;
  double largest_ = 0.0;  // of gU so far
  const double gl_;
  int64_t first_ = 0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
