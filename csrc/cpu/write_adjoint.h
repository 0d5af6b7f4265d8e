// The adjoint of the exact write, in closed form per chunk, from the last chunk to the first.
//
// Nothing but the inputs and the posterior is kept by the forward. The states at the starts of the
// chunks are computed again; inside a chunk nothing is scanned. What does not depend on the
// gradients of the state is prepared (write_prepared.h) for segments of chunks
// (adjoint_segments.h). With the factors of write_chunk.h, whitened addresses Y = F^-1 W,
// G = F^-T P, b the decays inside the chunk and gU the gradient of the undecayed covariance:
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

#include "adjoint_segments.h"
#include "rooted_gradient.h"
#include "write_prepared.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F, class Reads = NoReads<A, F>>
class WriteAdjoint {
  // In sqrt form all is float64.
  static constexpr bool kMayBeRooted = std::is_same_v<A, double> && std::is_same_v<F, double>;

 public:
  using Args = typename Reads::Args;
  using Prepared = PreparedWrite<A, F, Reads>;

  // In chunks of `step` steps.
  WriteAdjoint(const Args& args, int64_t b, const Episode& e, bool use_sqrt, double limit,
               const Executor& executor, int64_t step)
      : args_(args),
        b_(b),
        e_(e),
        use_sqrt_(use_sqrt),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        preparation_(args, b, e, use_sqrt, limit, step),
        step_(step),
        columns_(preparation_.columns),
        segments_(preparation_, executor, args.n, e.steps),
        gU_(scope_, K_, K_),
        gR_(scope_, K_, columns_),
        rooted_(scope_, use_sqrt ? K_ : 0, use_sqrt ? columns_ : Columns{}),
        gl_(preparation_.gl) {}

  Outcome run() {
    load_gradients();
    const Outcome outcome = segments_.run(
        [&](Workspace::Scope& scope, Prepared* at) {
          new (at) Prepared(scope, args_, step_, columns_, use_sqrt_);
        },
        [&](const Belief<A, F>& first) {
          load(args_.mean, b_, first.R);
          return load_state(args_.cov, b_, use_sqrt_, first.U) ? Outcome::done : Outcome::failed;
        },
        [&](const Matrix<F>& last) {
          if constexpr (kMayBeRooted)
            if (is_rooted()) rooted_.start(executor_, last, gU_, gR_);
        },
        [&](const Prepared& p, const Executor& executor) { reverse(p, executor); });
    if (outcome != Outcome::done) return outcome;
    if constexpr (kMayBeRooted)
      if (is_rooted()) rooted_.replace(args_.cov, b_, largest_, gU_);
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

  bool is_rooted() const { return use_sqrt_ && segments_.chunks() > 0; }

  // Sums over the columns, one set per task: E gR', D^ R' and, in sqrt form, that of RootedGradient
  // (L x K).
  struct Sums {
    Matrix<A> N, DR, hd;
  };

  // Of a chunk, in the arithmetic of its factors.
  struct Terms {
    Matrix<F> N, PU, inner;  // E gR' and P gU (L x K), I^ (L x L)
  };

  // The adjoint of a chunk; turns gU_ and gR_ into those of the state before it.
  void reverse(const Prepared& p, const Executor& executor) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L;
    if (e_.decay) undecay(p, executor);
    const Sums sums = sum_columns(scope, p, executor);
    if constexpr (kMayBeRooted)
      if (use_sqrt_) rooted_.write_chunk(p.chunk, e_, p.first, p.reads, sums.hd, p.H, gl_);
    const Terms m{Matrix<F>(scope, L, K_), Matrix<F>(scope, L, K_), p.inner};
    convert(sums.N, m.N);
    product(executor, p.chunk.P, gU_, m.PU);
    add_whitened(p, m, executor);
    if (p.kept) {
      reverse_kept_covariance(p, m, executor);
    } else {
      p.reads.add_to_addresses(m.N, executor);
      reverse_covariance(p, m, executor);
    }
    if (use_sqrt_) largest_ = std::max(largest_, row_norm(gU_));
    reverse_weights(p, m, sums.DR, executor);
    store_noise(p, m.inner, executor);
    if (e_.decay) store_decay(p);
  }

  // All column blocks; the sums of the tasks are added in their order.
  Sums sum_columns(Workspace::Scope& scope, const Prepared& p, const Executor& executor) {
    const int64_t tasks = std::max<int64_t>(1, std::min(executor.threads(), columns_.count));
    const int64_t L = p.chunk.L, lk = p.factors.W.ld, size = (use_sqrt_ ? 3 : 2) * L * lk;
    const Matrix<A> all(scope.take<A>(tasks * size), tasks, size, size);
    all.zero();
    const auto of = [&](int64_t task) {
      const auto sum = [&](int64_t i) { return Matrix<A>(all[task] + i * L * lk, L, K_, lk); };
      return Sums{sum(0), sum(1), use_sqrt_ ? sum(2) : Matrix<A>()};
    };
    executor.for_each(tasks, [&](int64_t task) {
      for (int64_t j = task; j < columns_.count; j += tasks) reverse_columns(j, p, of(task));
    });
    for (int64_t i = 1; i < tasks; ++i)
      for (int64_t j = 0; j < size; ++j) all[0][j] += all[i][j];
    return of(0);
  }

  void reverse_columns(int64_t block, const Prepared& p, const Sums& sums) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L, n = columns_.of(block);
    const Matrix<A> gR = gR_[block], E = p.E_of(block), dZ = p.D_of(block),  // dZ = D^
        by_slots(scope, n, K_);
    const Matrix<A> gO = p.reads.load_gradient(scope, columns_, block);
    transpose(gR, by_slots);
    product(E, by_slots, sums.N, Store::add);
    if constexpr (kMayBeRooted)
      if (use_sqrt_)
        rooted_.write_chunk_columns(block, p.chunk, e_, p.first, p.reads, E, gO, gl_, sums.hd);
    product(p.G, gR, dZ, gO || gl_ != 0.0 ? Store::add : Store::set);
    product(dZ, p.Rt_of(block), sums.DR, Store::add);
    if (p.kept) {
      const Matrix<A> before = take_block<A>(scope, K_, columns_, block);
      copy(gR, before);
      product(p.J, before, gR);
      if (gl_ != 0.0) {
        for (int64_t t = 0; t < L; ++t) scale(0, n, gl_ * p.chunk.decay[t], E[t]);
        product_transposed(p.whitened, E, gR, Store::add);
      }
    } else {
      product_transposed(p.factors.W, dZ, gR, Store::sub);
    }
    if (gO) p.reads.add_to_mean(gO, gR);
    clear_neutral(e_, p.first, dZ);
    store(args_.d_values, b_, rows(p), dZ, columns_.at(block));
  }

  // I^ += P gU P' - sym(P N')
  void add_whitened(const Prepared& p, const Terms& m, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L;
    const Matrix<F> turned(scope, K_, L), cross(scope, L, L);
    transpose(p.chunk.P, turned);
    product(executor, m.PU, turned, m.inner, Store::add);
    transpose(m.N, turned);
    product(executor, p.chunk.P, turned, cross);
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < L; ++j) m.inner[i][j] -= 0.5 * (cross[i][j] + cross[j][i]);
  }

  // gU_ of the chunk's posterior -> of its starting state, by subtracting.
  void reverse_covariance(const Prepared& p, const Terms& m, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> right(scope, p.chunk.L, K_), dU(scope, K_, K_);
    copy(m.N, right);
    axpy(-2.0, m.PU, right);
    product(executor, m.inner, p.Y, right, Store::add);
    product_transposed(executor, p.Y, right, dU);
    p.reads.add_to_covariance(dU, executor);
    symmetrise(dU);
    axpy(1.0, dU, gU_);
  }

  // The same by what is kept: Y'(N J + gl/2 (H - C I) Y), then J' gU J on top.
  void reverse_kept_covariance(const Prepared& p, const Terms& m, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L;
    const Matrix<F> J(scope, K_, K_), right(scope, L, K_), dU(scope, K_, K_), half(scope, K_, K_),
        evidence(scope, L, L);
    transpose(p.keep, J);
    product(executor, m.N, J, right);
    if (gl_ != 0.0) {
      preparation_.take_evidence(p, evidence);
      product(executor, evidence, p.Y, right, Store::add);
    }
    p.reads.add_to_kept(right, executor);
    product_transposed(executor, p.Y, right, dU);
    p.reads.add_to_covariance(dU, executor);
    product(executor, p.keep, gU_, half);
    product(executor, half, J, dU, Store::add);
    symmetrise(dU);
    copy(dU, gU_);
  }

  // dW = -D^ R' + F^-T (N - 2 P gU + 2 I^ Y) U; I^ becomes 2 I^.
  void reverse_weights(const Prepared& p, const Terms& m, const Matrix<A>& DR,
                       const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L;
    const Matrix<F> whitened(scope, L, K_), dW(scope, L, K_);
    scale(2.0, m.inner);
    if (p.kept) {
      turn_kept(p, m, executor);
    } else {
      axpy(-2.0, m.PU, m.N);
      product(executor, m.inner, p.Y, m.N, Store::add);
    }
    product(executor, p.chunk.V, m.N, whitened);
    for (int64_t t = 0; t < L; ++t)
      for (int64_t k = 0; k < padded<F>(K_); ++k) dW[t][k] = F(-double(DR[t][k]));
    product(executor, whitened, p.U, dW, Store::add);
    clear_neutral(e_, p.first, dW);
    store(args_.d_weights, b_, rows(p), dW);
  }

  // N <- N - 2 P gU + 2 I^ Y without the difference of large terms:
  //   (N - 2 P gU) J - (P N' - gl (H - C I)) Y
  void turn_kept(const Prepared& p, const Terms& m, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L;
    const Matrix<F> J(scope, K_, K_), turned(scope, K_, L), system(scope, L, L);
    transpose(p.keep, J);
    preparation_.take_evidence(p, system);
    scale(2.0, system);
    transpose(m.N, turned);
    product(executor, p.chunk.P, turned, system, Store::sub);
    p.reads.subtract_mixed(system, executor);
    scale(-2.0, m.PU);
    axpy(1.0, m.N, m.PU);
    product(executor, m.PU, J, m.N);
    product(executor, system, p.Y, m.N, Store::add);
    p.reads.add_to_addresses(m.N, executor);
  }

  // dn = diag(F^-T I^ F^-1), given `inner` = 2 I^.
  void store_noise(const Prepared& p, const Matrix<F>& inner, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Chunk<F>& c = p.chunk;
    const Matrix<F> room(scope, c.L, c.L);
    product(executor, c.V, inner, room);
    for (int64_t t = 0; t < c.L; ++t) {
      double dn = 0.0;
      for (int64_t j = t; j < c.L; ++j) dn += 0.5 * room[t][j] * c.V[t][j];
      store_scalar(args_.d_noise_var, b_, rows(p)[t], counts(p, t) ? dn * c.decay[t] : 0.0);
      p.d_decay[t] += dn * e_.noise[p.first + t];
    }
  }

  Rows rows(const Prepared& p) const { return {e_.index, p.first}; }

  // Whether step t of the chunk is not a neutral one.
  bool counts(const Prepared& p, int64_t t) const {
    return e_.counts == nullptr || e_.counts[p.first + t];
  }

  void store_decay(const Prepared& p) const {
    const Chunk<F>& c = p.chunk;
    for (int64_t t = 0; t < c.L; ++t) {
      const double square = double(p.H[t][t]);  // |E_t|^2
      p.d_decay[t] -= 0.5 * gl_ * (square - double(C_) / c.decay[t]);
    }
    double later = 0.0;  // b_t is a product: gamma_s enters every b_t with t >= s
    for (int64_t t = c.L - 1; t >= 0; --t) {
      later += p.d_decay[t] * c.decay[t];
      store_scalar(args_.d_decay, b_, rows(p)[t],
                   counts(p, t) ? later / e_.decay[p.first + t] : 0.0);
    }
  }

  // gU of the decayed covariance -> of the undecayed one, and its share in the adjoint of b.
  void undecay(const Prepared& p, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const double b = p.chunk.final_decay();
    const Matrix<F> posterior(scope, K_, K_);
    copy(p.U, posterior);
    product_transposed(executor, p.chunk.P, p.chunk.P, posterior, Store::sub);
    double dot = 0.0;
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < K_; ++j) dot += gU_[i][j] * posterior[i][j];
    scale(1.0 / b, gU_);
    p.d_decay[p.chunk.L - 1] -= dot / (b * b);
  }

  const Args& args_;
  const int64_t b_;
  const Episode& e_;
  const bool use_sqrt_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const WritePreparation<A, F, Reads> preparation_;
  const int64_t step_;
  const Columns columns_;
  const AdjointSegments<A, F, WritePreparation<A, F, Reads>> segments_;
  const Matrix<F> gU_;
  const MeanBlocks<A> gR_;
  RootedGradient rooted_;
  double largest_ = 0.0;  // of gU so far
  const double gl_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
