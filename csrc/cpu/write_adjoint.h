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
//
// The adjoint of reads inside the chunks is a sum beside it: `Reads`, see causal_scan_backward.h.
#pragma once

#include "bayes_write.h"

namespace kanerva {
namespace KANERVA_ISA {

// Of writes without reads.
struct NoReads {
  static constexpr bool present = false;
};

template <class A, class F, class Reads = NoReads>
class WriteAdjoint {
 public:
  // In chunks of `step` steps.
  WriteAdjoint(const WriteBackward& args, int64_t b, const Episode& e, bool use_sqrt,
               double limit, const Executor& executor, int64_t step, Reads* reads = nullptr)
      : args_(args),
        b_(b),
        e_(e),
        use_sqrt_(use_sqrt),
        limit_(limit),
        executor_(executor),
        workspace_(Workspace::of_thread()),
        scope_(workspace_),
        K_(args.n.K),
        C_(args.n.C),
        step_(step),
        reads_(reads),
        chunk_(scope_, step_, K_),
        factors_(scope_, chunk_, step_),
        columns_(split_columns<A>(C_)),
        ldk_(chunk_.ldk),
        ldl_(chunk_.ldl),
        block_(K_ * columns_.width),
        partial_(scope_.take<double>(columns_.count)),
        gU_(scope_.take<F>(K_ * ldk_)),
        gR_(scope_.take<A>(columns_.count * block_)),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0) {}

  Outcome run() {
    load_gradients();
    const int64_t chunks = (e_.steps + step_ - 1) / step_;
    const int64_t U_size = K_ * ldk_, R_size = columns_.count * block_;
    constexpr double one_level = 8e6;  // bytes of states that are kept without a second level
    const double bytes = double(chunks) * (double(U_size) * sizeof(F) + double(R_size) * sizeof(A));
    int64_t segment = std::max<int64_t>(1, chunks);
    if (bytes > one_level) segment = int64_t(std::ceil(std::sqrt(double(chunks))));
    const int64_t segments = std::max<int64_t>(1, (chunks + segment - 1) / segment);

    States<A, F> outer(scope_, segments, U_size, R_size), inner(scope_, segment, U_size, R_size);
    load_mean(args_.mean, b_, K_, columns_, outer.mean(0));
    if (!use_sqrt_) {
      load(args_.cov, b_, Rows{}, K_, 0, K_, outer.cov(0), ldk_);
    } else if (!load_root(args_.cov, b_, K_, outer.cov(0), ldk_, workspace_)) {
      return Outcome::failed;
    }
    for (int64_t s = 0; s + 1 < segments; ++s) {
      outer.copy(s + 1, outer, s);
      for (int64_t i = s * segment; i < (s + 1) * segment; ++i) {
        const Outcome outcome = advance(i, outer.cov(s + 1), outer.mean(s + 1));
        if (outcome != Outcome::done) return outcome;
      }
    }
    for (int64_t s = segments - 1; s >= 0; --s) {
      const int64_t first = s * segment, count = std::min(segment, chunks - first);
      inner.copy(0, outer, s);
      for (int64_t i = 0; i + 1 < count; ++i) {
        inner.copy(i + 1, inner, i);
        const Outcome outcome = advance(first + i, inner.cov(i + 1), inner.mean(i + 1));
        if (outcome != Outcome::done) return outcome;
      }
      for (int64_t i = count - 1; i >= 0; --i) {
        const Outcome outcome = reverse(first + i, inner.cov(i), inner.mean(i));
        if (outcome != Outcome::done) return outcome;
      }
    }
    store_mean(args_.d_mean, b_, K_, columns_, gR_);
    store(args_.d_cov, b_, Rows{}, K_, 0, K_, gU_, ldk_);
    return Outcome::done;
  }

 private:
  void load_gradients() {
    if (args_.grad_cov) {
      load(args_.grad_cov, b_, Rows{}, K_, 0, K_, gU_, ldk_);
      symmetrise(K_, gU_, ldk_);
    } else {
      std::memset(gU_, 0, size_t(K_ * ldk_) * sizeof(F));
    }
    if (args_.grad_mean) {
      load_mean(args_.grad_mean, b_, K_, columns_, gR_);
    } else {
      std::memset(gR_, 0, size_t(columns_.count * block_) * sizeof(A));
    }
  }

  Outcome factor(int64_t index, F* U) {
    return factor(index, U, [](int64_t) {});
  }

  template <class AfterStep>
  Outcome factor(int64_t index, F* U, AfterStep&& after_step) {
    first_ = index * step_;
    load_chunk(chunk_, args_.weights, b_, e_, first_, std::min(step_, e_.steps - first_));
    const bool ok = use_sqrt_ ? factor_chunk_sqrt(chunk_, U, workspace_, after_step)
                              : factor_chunk(chunk_, U, limit_, executor_);
    if (!(chunk_.hardness <= limit_)) return Outcome::harder;
    if (!ok) return use_sqrt_ ? Outcome::failed : Outcome::harder;
    factors_.take(chunk_);
    return Outcome::done;
  }

  // The forward write of chunk `index`, in place.
  Outcome advance(int64_t index, F* U, A* R) {
    const Outcome outcome = factor(index, U);
    if (outcome != Outcome::done) return outcome;
    write_columns(chunk_, factors_, columns_, args_.values, b_, e_, first_, MeanEnds{}, R, partial_,
                  executor_);
    if (!use_sqrt_) downdate(chunk_, U, executor_);
    return Outcome::done;
  }

  // Sums over the columns, one set per task, in one piece of memory.
  struct Sums {
    A *N, *DR, *H;  // E gR' and D^ R' (L x K), E E' (L x L)
    A *OR, *OE;     // gO R' (L x K) and gO E' (L x L), gO the gradient of the reads
  };

  // What the columns of a chunk need beside its factors; `keep` is J', or null to subtract.
  struct Adjoints {
    const A *G, *Y, *keep;
  };

  // The adjoint of chunk `index` at its starting state; turns gU_ and gR_ into those of that state.
  Outcome reverse(int64_t index, F* U, const A* R) {
    Workspace::Scope scope(workspace_);
    if constexpr (Reads::present) reads_->load_chunk(index * step_, e_);
    if (use_sqrt_) {  // the root is consumed: the covariance itself is needed as well
      F* cov = scope.take<F>(K_ * ldk_);
      gemm<true>(executor_, K_, K_, K_, U, ldk_, U, ldk_, cov, ldk_, Store::set);
      const Outcome outcome = factor(index, U, [&](int64_t t) {
        if constexpr (Reads::present) reads_->take_root(t, U);
      });
      if (outcome != Outcome::done) return outcome;
      U = cov;
    } else {
      const Outcome outcome = factor(index, U);
      if (outcome != Outcome::done) return outcome;
    }
    const int64_t L = chunk_.L, lk = factors_.ldk, ll = factors_.ldl;
    double* d_decay = scope.take<double>(L);  // adjoint of b_t
    for (int64_t t = 0; t < L; ++t) d_decay[t] = 0.0;
    if (e_.decay) undecay(U, d_decay);

    F* G = chunk_.X;  // X is free from here on
    F* Y = scope.take<F>(L * ldk_);
    gemm<false>(executor_, L, K_, L, chunk_.V, ldl_, chunk_.P, ldk_, G, ldk_, Store::set,
                Structure::upper);
    gemm<true>(executor_, L, K_, L, chunk_.V, ldl_, chunk_.W, ldk_, Y, ldk_, Store::set,
               Structure::lower);
    F* keep = use_sqrt_ || (K_ <= 2 * L && chunk_.hardness > kHardForSubtracting)
                  ? scope.take<F>(K_ * ldk_)
                  : nullptr;
    if (keep != nullptr) what_is_kept(Y, keep);
    if constexpr (Reads::present) reads_->prepare(chunk_, U, Y, keep != nullptr);

    const Sums sums = sum_columns(scope, R, narrow_adjoints(scope, G, Y, keep));
    F* N = scope.take<F>(L * ldk_);
    F* PU = scope.take<F>(L * ldk_);
    F* turned = scope.take<F>(K_ * ldl_);
    F* inner = chunk_.S;  // free as well
    convert(L, K_, sums.N, lk, N, ldk_);
    gemm<false>(executor_, L, K_, K_, chunk_.P, ldk_, gU_, ldk_, PU, ldk_, Store::set);
    evidence_of_factors(inner, sums.H);
    add_whitened(inner, PU, N, turned);
    if constexpr (Reads::present)
      reads_->add_inner(chunk_, sums.OR, sums.OE, inner, keep == nullptr ? N : nullptr);
    update_covariance(Y, keep, N, PU, inner, sums.H);
    if constexpr (Reads::present) reads_->finish(first_, d_decay);

    // N <- N - 2 P gU + 2 I^ Y, then dW = -D^ R' + F^-T N U
    scale_rows(inner, 2.0);
    if (keep == nullptr) {
      for (int64_t t = 0; t < L; ++t) axpy(0, K_, -2.0, PU + t * ldk_, N + t * ldk_);
      gemm<false>(executor_, L, K_, L, inner, ldl_, Y, ldk_, N, ldk_, Store::add);
    } else {
      add_kept(Y, keep, sums.H, PU, turned, N);
    }
    F* whitened = PU;
    gemm<false>(executor_, L, K_, L, chunk_.V, ldl_, N, ldk_, whitened, ldk_, Store::set,
                Structure::upper);
    F* dW = N;
    for (int64_t t = 0; t < L; ++t)
      for (int64_t k = 0; k < K_; ++k) dW[t * ldk_ + k] = -double(sums.DR[t * lk + k]);
    gemm<false>(executor_, L, K_, K_, whitened, ldk_, U, ldk_, dW, ldk_, Store::add);
    const Rows rows{e_.index, first_};
    clear_neutral(e_, first_, L, dW, ldk_);
    store(args_.d_weights, b_, rows, L, 0, K_, dW, ldk_);
    store_noise(inner, rows, d_decay);
    if (e_.decay) store_decay(sums.H, ll, rows, d_decay);
    return Outcome::done;
  }

  // J' = I - Y'P; in sqrt form as the product over the steps of I - y_t p_t', where y_t is what the
  // product so far makes of w_t: as accurate as the recursion where Y and Y'P cancel.
  void what_is_kept(F* Y, F* keep) {
    for (int64_t i = 0; i < K_; ++i)
      for (int64_t j = 0; j < ldk_; ++j) keep[i * ldk_ + j] = i == j ? 1.0 : 0.0;
    if (!use_sqrt_) {
      gemm<true>(executor_, K_, K_, chunk_.L, Y, ldk_, chunk_.P, ldk_, keep, ldk_, Store::sub);
      return;
    }
    using V = Simd<F>;
    for (int64_t t = 0; t < chunk_.L; ++t) {
      const F* w = chunk_.W + t * ldk_;
      for (int64_t i = 0; i < K_; ++i) {
        typename V::Vector sum{};
        for (int64_t j = 0; j < padded<F>(K_); j += V::width)
          sum += V::load(keep + i * ldk_ + j) * V::load(w + j);
        const double y = V::sum(sum) * chunk_.inverse_diagonal[t];
        Y[t * ldk_ + i] = y;
        axpy(0, K_, -y, chunk_.P + t * ldk_, keep + i * ldk_);
      }
      if constexpr (Reads::present) reads_->take_kept(t, keep);
    }
  }

  Adjoints narrow_adjoints(Workspace::Scope& scope, const F* G, const F* Y, const F* keep) {
    const int64_t L = chunk_.L, lk = factors_.ldk;
    A *Ga = scope.take<A>(L * lk), *Ya = scope.take<A>(L * lk), *Ja = nullptr;
    convert(L, K_, G, ldk_, Ga, lk);
    convert(L, K_, Y, ldk_, Ya, lk);
    if (keep != nullptr) {
      Ja = scope.take<A>(K_ * lk);
      convert(K_, K_, keep, ldk_, Ja, lk);
    }
    return {Ga, Ya, Ja};
  }

  // All column blocks; the sums of the tasks are added in their order.
  Sums sum_columns(Workspace::Scope& scope, const A* R, const Adjoints& adjoints) {
    const int64_t tasks = std::max<int64_t>(1, std::min(executor_.threads(), columns_.count));
    const int64_t L = chunk_.L, lk = factors_.ldk, ll = factors_.ldl;
    const int64_t write = 2 * L * lk + L * ll, size = write + (Reads::present ? L * (lk + ll) : 0);
    A* all = scope.take<A>(tasks * size);
    std::memset(all, 0, size_t(tasks * size) * sizeof(A));
    const auto of = [&](int64_t task) {
      A* first = all + task * size;
      return Sums{first, first + L * lk, first + 2 * L * lk, first + write, first + write + L * lk};
    };
    executor_.for_each(tasks, [&](int64_t task) {
      for (int64_t j = task; j < columns_.count; j += tasks)
        reverse_columns(j, R, adjoints, of(task));
    });
    for (int64_t i = 1; i < tasks; ++i)
      for (int64_t j = 0; j < size; ++j) all[j] += all[i * size + j];
    return of(0);
  }

  // inner += P gU P' - sym(P N'); `turned` is room for a K x L matrix.
  void add_whitened(F* inner, const F* PU, const F* N, F* turned) {
    Workspace::Scope scope(workspace_);
    const int64_t L = chunk_.L;
    F* cross = scope.take<F>(L * ldl_);
    transpose(L, K_, chunk_.P, ldk_, turned, ldl_);
    gemm<false>(executor_, L, L, K_, PU, ldk_, turned, ldl_, inner, ldl_, Store::add);
    transpose(L, K_, N, ldk_, turned, ldl_);
    gemm<false>(executor_, L, L, K_, chunk_.P, ldk_, turned, ldl_, cross, ldl_, Store::set);
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < L; ++j)
        inner[i * ldl_ + j] -= 0.5 * (cross[i * ldl_ + j] + cross[j * ldl_ + i]);
  }

  // gU_ of the chunk's posterior -> of its starting state.
  void update_covariance(const F* Y, const F* keep, const F* N, const F* PU, const F* inner,
                         const A* H) {
    Workspace::Scope scope(workspace_);
    const int64_t L = chunk_.L;
    F* right = scope.take<F>(L * ldk_);
    F* dU = scope.take<F>(K_ * ldk_);
    if (keep == nullptr) {
      std::memcpy(right, N, size_t(L * ldk_) * sizeof(F));
      for (int64_t t = 0; t < L; ++t) axpy(0, K_, -2.0, PU + t * ldk_, right + t * ldk_);
      gemm<false>(executor_, L, K_, L, inner, ldl_, Y, ldk_, right, ldk_, Store::add);
      gemm<true>(executor_, K_, K_, L, Y, ldk_, right, ldk_, dU, ldk_, Store::set);
      if constexpr (Reads::present) reads_->add_to_covariance(dU);
      symmetrise(K_, dU, ldk_);
      for (int64_t i = 0; i < K_; ++i) axpy(0, K_, 1.0, dU + i * ldk_, gU_ + i * ldk_);
      return;
    }
    F* turned = scope.take<F>(K_ * ldk_);
    F* half = scope.take<F>(K_ * ldk_);
    // Y'(N J + gl/2 (H - C I) Y), then J' gU J on top
    transpose(K_, K_, keep, ldk_, turned, ldk_);  // J
    gemm<false>(executor_, L, K_, K_, N, ldk_, turned, ldk_, right, ldk_, Store::set);
    if (gl_ != 0.0) {
      F* evidence = scope.take<F>(L * ldl_);
      evidence_of_factors(evidence, H);
      gemm<false>(executor_, L, K_, L, evidence, ldl_, Y, ldk_, right, ldk_, Store::add);
    }
    if constexpr (Reads::present) reads_->add_to_kept(right);
    gemm<true>(executor_, K_, K_, L, Y, ldk_, right, ldk_, dU, ldk_, Store::set);
    if constexpr (Reads::present) reads_->add_to_covariance(dU);
    gemm<false>(executor_, K_, K_, K_, keep, ldk_, gU_, ldk_, half, ldk_, Store::set);
    gemm<false>(executor_, K_, K_, K_, half, ldk_, turned, ldk_, dU, ldk_, Store::add);
    symmetrise(K_, dU, ldk_);
    std::memcpy(gU_, dU, size_t(K_ * ldk_) * sizeof(F));
  }

  // N <- N - 2 P gU + 2 I^ Y without the difference of large terms:
  //   (N - 2 P gU) J - (P N' - gl (H - C I)) Y
  void add_kept(const F* Y, const F* keep, const A* H, F* PU, F* turned, F* N) {
    Workspace::Scope scope(workspace_);
    const int64_t L = chunk_.L;
    F* J = scope.take<F>(K_ * ldk_);
    F* system = scope.take<F>(L * ldl_);
    transpose(K_, K_, keep, ldk_, J, ldk_);
    evidence_of_factors(system, H);
    scale_rows(system, 2.0);
    transpose(L, K_, N, ldk_, turned, ldl_);
    gemm<false>(executor_, L, L, K_, chunk_.P, ldk_, turned, ldl_, system, ldl_, Store::sub);
    if constexpr (Reads::present) reads_->subtract_mixed(system);
    for (int64_t t = 0; t < L; ++t) {
      scale(0, K_, -2.0, PU + t * ldk_);
      axpy(0, K_, 1.0, N + t * ldk_, PU + t * ldk_);
    }
    gemm<false>(executor_, L, K_, K_, PU, ldk_, J, ldk_, N, ldk_, Store::set);
    gemm<false>(executor_, L, K_, L, system, ldl_, Y, ldk_, N, ldk_, Store::add);
    if constexpr (Reads::present) reads_->add_to_addresses(N);
  }

  void scale_rows(F* inner, double factor) const {
    for (int64_t i = 0; i < chunk_.L; ++i) scale(0, chunk_.L, factor, inner + i * ldl_);
  }

  // dn = diag(F^-T I^ F^-1), given `inner` = 2 I^.
  void store_noise(const F* inner, Rows rows, double* d_decay) {
    Workspace::Scope scope(workspace_);
    const int64_t L = chunk_.L;
    F* room = scope.take<F>(L * ldl_);
    gemm<false>(executor_, L, L, L, chunk_.V, ldl_, inner, ldl_, room, ldl_, Store::set,
                Structure::upper);
    for (int64_t t = 0; t < L; ++t) {
      double dn = 0.0;
      for (int64_t j = t; j < L; ++j) dn += 0.5 * room[t * ldl_ + j] * chunk_.V[t * ldl_ + j];
      store_scalar(args_.d_noise_var, b_, rows[t], counts(t) ? dn * chunk_.decay[t] : 0.0);
      d_decay[t] += dn * e_.noise[first_ + t];
    }
  }

  // Whether step t of the chunk is not a neutral one.
  bool counts(int64_t t) const { return e_.counts == nullptr || e_.counts[first_ + t]; }

  void store_decay(const A* H, int64_t ldh, Rows rows, double* d_decay) {
    const int64_t L = chunk_.L;
    for (int64_t t = 0; t < L; ++t) {
      const double square = double(H[t * ldh + t]);  // |E_t|^2
      d_decay[t] -= 0.5 * gl_ * (square - double(C_) / chunk_.decay[t]);
    }
    double later = 0.0;  // b_t is a product: gamma_s enters every b_t with t >= s
    for (int64_t t = L - 1; t >= 0; --t) {
      later += d_decay[t] * chunk_.decay[t];
      store_scalar(args_.d_decay, b_, rows[t], counts(t) ? later / e_.decay[first_ + t] : 0.0);
    }
  }

  // gU of the decayed covariance -> of the undecayed one, and its share in the adjoint of b.
  void undecay(const F* U, double* d_decay) {
    Workspace::Scope scope(workspace_);
    const double b = chunk_.final_decay();
    F* posterior = scope.take<F>(K_ * ldk_);
    std::memcpy(posterior, U, size_t(K_ * ldk_) * sizeof(F));
    gemm<true>(executor_, K_, K_, chunk_.L, chunk_.P, ldk_, chunk_.P, ldk_, posterior, ldk_,
               Store::sub);
    double dot = 0.0;
    for (int64_t i = 0; i < K_; ++i) {
      for (int64_t j = 0; j < K_; ++j) dot += gU_[i * ldk_ + j] * posterior[i * ldk_ + j];
      scale(0, K_, 1.0 / b, gU_ + i * ldk_);
    }
    d_decay[chunk_.L - 1] -= dot / (b * b);
  }

  // gl/2 (H - C I), with the decays in H.
  void evidence_of_factors(F* inner, const A* H) const {
    const int64_t L = chunk_.L;
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < padded<F>(L); ++j) {
        double h = i == j ? -double(C_) : 0.0;
        if (j < L) h += chunk_.decay[std::max(i, j)] * double(H[i * factors_.ldl + j]);
        inner[i * ldl_ + j] = 0.5 * gl_ * h;
      }
  }

  void reverse_columns(int64_t block, const A* R, const Adjoints& adjoints, const Sums& sums) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t L = chunk_.L, ld = columns_.width, n = columns_.of(block),
                  c0 = columns_.at(block);
    const int64_t lk = factors_.ldk, ll = factors_.ldl;
    const Rows rows{e_.index, first_};
    const A* Rb = R + block * block_;
    A* gRb = gR_ + block * block_;
    A* D = scope.take<A>(L * ld);
    A* E = scope.take<A>(L * ld);
    A* turned = scope.take<A>(ld * std::max(lk, ll));
    load(args_.values, b_, rows, L, c0, n, D, ld);
    clear_neutral(e_, first_, L, D, ld);
    innovations(factors_, L, K_, n, D, Rb, ld, E);
    transpose(K_, n, gRb, ld, turned, lk);
    gemm<false>(L, K_, n, E, ld, turned, lk, sums.N, lk, Store::add);
    gemm<false>(L, n, K_, adjoints.G, lk, gRb, ld, D, ld, Store::set);  // D becomes D^
    const A* gO = nullptr;
    if constexpr (Reads::present) gO = reads_->load_gradient(scope, first_, L, c0, n, ld);
    if (gl_ != 0.0 || gO != nullptr) transpose(L, n, E, ld, turned, ll);
    if constexpr (Reads::present)
      if (gO != nullptr) reads_->add_columns(factors_, gO, turned, n, ld, sums.OE, D);
    if (gl_ != 0.0) {
      A* outer = scope.take<A>(L * ld);
      gemm<false>(L, L, n, E, ld, turned, ll, sums.H, ll, Store::add);
      for (int64_t t = 0; t < L; ++t)
        for (int64_t j = 0; j < ld; ++j) E[t * ld + j] *= A(gl_ * chunk_.decay[t]);
      gemm<false>(L, n, L, factors_.V, ll, E, ld, outer, ld, Store::set, Structure::upper);
      combine(L, n, A(-1), outer, D, ld);
    }
    transpose(K_, n, Rb, ld, turned, lk);
    gemm<false>(L, K_, n, D, ld, turned, lk, sums.DR, lk, Store::add);
    if (gO != nullptr) gemm<false>(L, K_, n, gO, ld, turned, lk, sums.OR, lk, Store::add);
    if (adjoints.keep != nullptr) {
      A* before = scope.take<A>(block_);
      std::memcpy(before, gRb, size_t(block_) * sizeof(A));
      gemm<false>(K_, n, K_, adjoints.keep, lk, before, ld, gRb, ld, Store::set);
      if (gl_ != 0.0) gemm<true>(K_, n, L, adjoints.Y, lk, E, ld, gRb, ld, Store::add);
    } else {
      gemm<true>(K_, n, L, factors_.W, lk, D, ld, gRb, ld, Store::sub);
    }
    if constexpr (Reads::present)
      if (gO != nullptr) reads_->add_to_mean(gO, n, ld, gRb);
    clear_neutral(e_, first_, L, D, ld);
    store(args_.d_values, b_, rows, L, c0, n, D, ld);
  }

  // D += alpha X
  static void combine(int64_t L, int64_t n, A alpha, const A* X, A* D, int64_t ld) {
    using V = Simd<A>;
    const auto a = V::broadcast(alpha);
    for (int64_t t = 0; t < L; ++t)
      for (int64_t j = t * ld; j < t * ld + n; j += V::width)
        V::store(D + j, V::load(D + j) + a * V::load(X + j));
  }

  const WriteBackward& args_;
  const int64_t b_;
  const Episode& e_;
  const bool use_sqrt_;
  const double limit_;
  const Executor& executor_;
  Workspace& workspace_;
  Workspace::Scope scope_;
  const int64_t K_, C_, step_;
  Reads* const reads_;
  Chunk<F> chunk_;
  ChunkFactors<A> factors_;
  const Columns columns_;
  const int64_t ldk_, ldl_, block_;
  double* partial_;
  F* gU_;
  A* gR_;
  const double gl_;
  int64_t first_ = 0;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
