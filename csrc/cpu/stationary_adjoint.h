// The adjoint of a scan of a memory that moves, in closed form per chunk, from the last to the
// first; with absent queries, of its write.
//
// In the notation of stationary_chunk.h and stationary_scan.h, with Y = F^-1 D_b W, W~ = D_b W,
// Q~ = D_b Q, N~ = E gR', B = tril(gO E'), Delta = B - 2 gv A, and the whitened
//   I = gl/2 (E E' - C I) + sym((P gU - N~) P') + A' gv A - sym(A'B),  T = N~ - 2 P gU,
//   M = b_L T + Delta'Q~:
//   D^ = V P gR - gl V E + V A'gO = dZ,  dS = V I V',  dB = V T,  dA = Delta V',  dv = diag(dS),
//   dW = D_b (V (M + 2 I Y) U - D^ R') + (2 (N o dS) W + D_n dB + (N o dA)'Q) Sigma,
//   dQ = D_b (Delta Y U + 2 gv Q~ U + gO R') + ((N o dA) W + 2 h gv Q) Sigma,
//   gR <- b_L gR - W~'D^ + Q~'gO,   gU <- b_L^2 gU + sym(Y'(M + I Y)) + Q~'gv Q~,
//   dSigma += h_L gU + sym(W'((N o dS) W + D_n dB + (N o dA)'Q)) + Q' h gv Q.
// The gradient of the retentions is taken by their logarithms: `from_here` is that of ln b_t, of
// what moves with the memory before the chunk less what it forgets towards, and `across` that of
// the g_st, whose sums are over rectangles: nothing cancels however small the retention.
//
// Half of it does not depend on the gradients of the state and is prepared (stationary_prepared.h)
// for segments of chunks (adjoint_segments.h).
#pragma once

#include "adjoint_segments.h"
#include "stationary_prepared.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F>
class StationaryAdjoint {
 public:
  StationaryAdjoint(const CausalScanBackwardArgs& args, const Episode& e, double limit,
                    const Executor& executor)
      : args_(args),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, 0) : 0.0),
        Sigma_(load_stationary<F>(scope_, args.stationary_cov, K_)),
        preparation_(args, e, limit, Sigma_, gl_),
        step_(preparation_.step),
        columns_(preparation_.columns),
        segments_(preparation_, executor, args.n, e.steps),
        gU_(scope_, K_, K_),
        dSigma_(scope_, K_, K_),
        gR_(scope_, K_, columns_) {}

  Outcome run() {
    load_gradients();
    using Prepared = PreparedChunk<A, F>;
    const Outcome outcome = segments_.run(
        [&](Workspace::Scope& scope, Prepared* at) {
          new (at) Prepared(scope, step_, K_, columns_, !Sigma_, bool(args_.queries));
        },
        [&](const Belief<A, F>& first) {
          load(args_.mean, 0, first.R);
          load_covariance(args_.cov, 0, first.U);
          return Outcome::done;
        },
        [](const Matrix<F>&) {},
        [&](const Prepared& p, const Executor& executor) { reverse(p, executor); });
    if (outcome != Outcome::done) return outcome;
    store(args_.d_mean, 0, gR_);
    store(args_.d_cov, 0, Rows{}, gU_);
    if (args_.d_stationary_cov) {
      symmetrise(dSigma_);
      store(args_.d_stationary_cov, 0, Rows{}, dSigma_);
    }
    return Outcome::done;
  }

 private:
  void load_gradients() {
    load_or_zero(executor_, args_.grad_cov, 0, gU_);
    symmetrise(gU_);
    if (args_.grad_mean) {
      load(args_.grad_mean, 0, gR_);
    } else {
      std::memset(gR_.data, 0, gR_.bytes());
    }
    dSigma_.zero();
  }

  // Sums over the columns, one set per task: N~ and D^ R' (L x K), and <gR, R>.
  struct Sums {
    Matrix<A> N, DR;
    double* dot;
  };

  // The adjoint of a chunk; turns gU_ and gR_ into those of the state before it.
  void reverse(const PreparedChunk<A, F>& p, const Executor& executor) {
    Workspace::Scope scope(Workspace::of_thread());
    const StationaryChunk<F>& c = p.chunk;
    const int64_t L = c.L;
    const Sums sums = sum_columns(scope, p, executor);
    const Matrix<F> N(scope, L, K_), DR(scope, L, K_), PU(scope, L, K_), T(scope, L, K_),
        M(scope, L, K_), right(scope, L, K_), turned(scope, K_, L), inner(scope, L, L);
    convert(sums.N, N);
    convert(sums.DR, DR);
    product(executor, c.P, gU_, PU);
    const double b = c.last_kept();
    combine_rows(PU, -1.0, N, right);  // P gU - N~
    transpose(c.P, turned);
    product(executor, right, turned, inner);
    symmetrise(inner);
    axpy(1.0, p.inner, inner);
    combine_rows(N, -2.0, PU, T);
    if (p.reads) {
      combine_rows(p.DtQ, b, T, M);
    } else {
      copy(T, M);
      scale(b, M);
    }
    product(executor, inner, p.Y, right);  // I Y

    // The weights: through U, and in `fresh` through Sigma.
    const Matrix<F> whitened(scope, L, K_), dB(scope, L, K_), dS(scope, L, L), room(scope, L, L),
        fresh(scope, L, K_), dW(scope, L, K_);
    combine_rows(M, 2.0, right, N);
    product(executor, c.V, N, whitened);
    product(executor, whitened, p.U, dW);
    axpy(-1.0, DR, dW);
    move_rows(c, 1.0, dW, dW);
    const Matrix<F> turned_steps(scope, L, L);
    transpose(c.V, turned_steps);
    product(executor, c.V, inner, room);
    product(executor, room, turned_steps, dS);
    product(executor, c.V, T, dB);
    multiply_elements(c.renewal, dS, room);
    product(executor, room, c.W, fresh);
    const Matrix<F> twice(scope, L, K_);
    for (int64_t t = 0; t < L; ++t) {
      std::memcpy(twice[t], fresh[t], size_t(padded<F>(K_)) * sizeof(F));
      axpy(0, K_, c.renewal[t][L - 1], dB[t], fresh[t]);
      if (p.reads) axpy(0, K_, 1.0, p.KQ[t], fresh[t]);
    }
    axpy(1.0, fresh, twice);
    if (Sigma_) {
      product(executor, twice, Sigma_, dW, Store::add);
    } else {
      axpy(1.0, twice, dW);
    }
    clear_neutral(e_, p.first, dW);
    const Rows rows{nullptr, p.first};
    store(args_.d_weights, 0, rows, dW);
    for (int64_t t = 0; t < L; ++t)
      store_scalar(args_.d_noise_var, 0, p.first + t, counts(p, t) ? double(dS[t][t]) : 0.0);
    store_retention(p, dS, dB, DR, *sums.dot);

    if (args_.d_stationary_cov) {
      axpy(c.last_fresh(), gU_, dSigma_);
      product_transposed(executor, c.W, fresh, dSigma_, Store::add);
      if (p.slopes) product_transposed(executor, p.Q, p.fresh_slopes, dSigma_, Store::add);
    }
    if (b != 1.0) scale(b * b, gU_);
    axpy(1.0, M, right);  // M + I Y
    product_transposed(executor, p.Y, right, gU_, Store::add);
    if (p.slopes) product_transposed(executor, p.moved, p.moved_slopes, gU_, Store::add);
    symmetrise(gU_);
  }

  // to = x + alpha y
  static void combine_rows(const Matrix<F>& x, double alpha, const Matrix<F>& y,
                           const Matrix<F>& to) {
    using V = Simd<F>;
    const auto a = V::broadcast(F(alpha));
    for (int64_t t = 0; t < to.rows; ++t)
      for (int64_t j = 0; j < to.columns; j += V::width)
        V::store(to[t] + j, V::load(x[t] + j) + a * V::load(y[t] + j));
  }

  static void multiply_elements(const Matrix<F>& x, const Matrix<F>& y, const Matrix<F>& to) {
    using V = Simd<F>;
    for (int64_t t = 0; t < to.rows; ++t)
      for (int64_t j = 0; j < to.columns; j += V::width)
        V::store(to[t] + j, V::load(x[t] + j) * V::load(y[t] + j));
  }

  bool counts(const PreparedChunk<A, F>& p, int64_t t) const {
    return e_.counts == nullptr || e_.counts[p.first + t];
  }

  // All column blocks; the sums of the tasks are added in their order.
  Sums sum_columns(Workspace::Scope& scope, const PreparedChunk<A, F>& p,
                   const Executor& executor) {
    const int64_t tasks = std::max<int64_t>(1, std::min(executor.threads(), columns_.count));
    const int64_t L = p.chunk.L, ld = p.factors.W.ld, size = 2 * L * ld;
    const Matrix<A> all(scope.take<A>(tasks * size), tasks, size, size);
    double* dots = scope.take<double>(tasks);
    all.zero();
    const auto of = [&](int64_t task) {
      return Sums{{all[task], L, K_, ld}, {all[task] + L * ld, L, K_, ld}, dots + task};
    };
    executor.for_each(tasks, [&](int64_t task) {
      dots[task] = 0.0;
      for (int64_t j = task; j < columns_.count; j += tasks) reverse_columns(j, p, of(task));
    });
    for (int64_t i = 1; i < tasks; ++i) {
      dots[0] += dots[i];
      for (int64_t j = 0; j < size; ++j) all[0][j] += all[i][j];
    }
    return of(0);
  }

  void reverse_columns(int64_t block, const PreparedChunk<A, F>& p, const Sums& sums) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = p.chunk.L, n = columns_.of(block), c0 = columns_.at(block);
    const Matrix<A> gR = gR_[block], by_slots(scope, n, K_), Rt = p.Rt_of(block),
                    D = take_block<A>(scope, L, columns_, block);
    transpose(gR, by_slots);
    product(p.E_of(block), by_slots, sums.N, Store::add);
    copy(p.D_of(block), D);
    product(p.G, gR, D, Store::add);
    product(D, Rt, sums.DR, Store::add);
    *sums.dot += padded_dot(n, by_slots, Rt);
    if (p.chunk.last_kept() != 1.0) scale(p.chunk.last_kept(), gR);
    product_transposed(p.factors.W, D, gR, Store::sub);
    if (args_.grad_reads) {
      const Matrix<A> gO = take_block<A>(scope, L, columns_, block);
      load(args_.grad_reads, 0, Rows{nullptr, p.first}, gO, c0);
      product_transposed(p.queries, gO, gR, Store::add);
    }
    clear_neutral(e_, p.first, D);
    store(args_.d_values, 0, Rows{nullptr, p.first}, D, c0);
  }

  // gU_ is still that of the state after the chunk.
  void store_retention(const PreparedChunk<A, F>& p, const Matrix<F>& dS, const Matrix<F>& dB,
                       const Matrix<F>& DR, double gR_R) const {
    Workspace::Scope scope(Workspace::of_thread());
    const StationaryChunk<F>& c = p.chunk;
    const int64_t L = c.L;
    const double b = c.last_kept();
    double* from_here = scope.take<double>(L);
    double* across = scope.take<double>(L);
    double end = b * gR_R;  // what the last step gets beside its own
    for (int64_t i = 0; i < K_; ++i) {
      end += 2.0 * b * b * row_dot(K_, gU_[i], p.U[i]);
      end -= 2.0 * b * b * (Sigma_ ? row_dot(K_, gU_[i], Sigma_[i]) : double(gU_[i][i]));
    }
    const auto to_end = [&](int64_t s) { return row_dot(K_, dB[s], c.WS[s]); };
    for (int64_t t = 0; t < L; ++t) {
      const double through_gain =
          b * c.kept[t] * (row_dot(K_, dB[t], c.X[t]) - row_dot(K_, dB[t], c.WS[t]));
      end += through_gain;
      from_here[t] = p.from_here[t] + through_gain - row_dot(K_, DR[t], c.moved[t]);
      across[t] = p.across[t];
    }
    from_here[L - 1] += end;
    for (int64_t s = 0; s < L; ++s) {
      // Symmetric matrices, of which rows s are at hand right of the diagonal.
      double later = s + 1 < L ? c.between[L - 1][s] * to_end(s) : 0.0;
      for (int64_t t = L - 1; t > s; --t) {
        const double g = 2.0 * double(dS[s][t]);
        const double moved = c.kept[s] * c.kept[t] * double(c.prior[s][t] - c.stationary[s][t]) * g;
        from_here[s] += moved;
        from_here[t] += moved;
        later += g * c.between[t][s] * double(c.stationary[s][t]);
        across[t] += later;
      }
      from_here[s] += 2.0 * double(dS[s][s]) * c.kept[s] * c.kept[s] *
                      double(c.prior[s][s] - c.stationary[s][s]);
    }
    double later = 0.0;
    for (int64_t t = L - 1; t >= 0; --t) {
      later += from_here[t];
      store_scalar(args_.d_retention, 0, p.first + t,
                   counts(p, t) ? (later + across[t]) / e_.decay[p.first + t] : 0.0);
    }
  }

  const CausalScanBackwardArgs& args_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const double gl_;
  const Matrix<F> Sigma_;
  const Preparation<A, F> preparation_;
  const int64_t step_;
  const Columns columns_;
  const AdjointSegments<A, F, Preparation<A, F>> segments_;
  const Matrix<F> gU_, dSigma_;
  const MeanBlocks<A> gR_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
