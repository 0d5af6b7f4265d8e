// The exact write of an episode with a read after every step: forward.
//
// The write is that of bayes_write.h, chunk by chunk. A Cholesky factor conditions in order: row i
// of P and E is what step i adds. So with the queries Q of a chunk, the state R0, U0 before it and
// b the decays inside it,
//   A = tril(Q P'),  reads = Q R0 + A E,  read_var_t = (q_t'U0 q_t - sum_i A_ti^2) / b_t,
// where A' = F^-1 (W U0 Q') above its diagonal. In sqrt form the difference would cancel, and the
// root that step t leaves gives the variance. Masked steps stay in the chunk as neutral ones.
//
// The factors of a chunk do not depend on the mean: where one item has several threads, one of them
// factorises the chunks ahead of those whose columns the others write.
#pragma once

#include <new>

#include "bayes_write.h"
#include "sequences.h"
#include "vectors.h"

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
  F *Q, *inside;
  A *queries, *read_factors;  // the same in the arithmetic of the columns

  ScanChunk(Workspace::Scope& scope, int64_t max_steps, int64_t K)
      : chunk(scope, max_steps, K), factors(scope, chunk, max_steps) {
    Q = scope.take<F>(max_steps * chunk.ldk);
    inside = scope.take<F>(max_steps * chunk.ldl);
    if constexpr (std::is_same_v<A, F>) {
      queries = Q, read_factors = inside;
    } else {
      queries = scope.take<A>(max_steps * factors.ldk);
      read_factors = scope.take<A>(max_steps * factors.ldl);
    }
  }
  void narrow() {
    factors.take(chunk);
    if constexpr (!std::is_same_v<A, F>) {
      convert(chunk.L, chunk.K, Q, chunk.ldk, queries, factors.ldk);
      convert(chunk.L, chunk.L, inside, chunk.ldl, read_factors, factors.ldl);
    }
  }
};

// U q for U = root' root, of K slots; returns q'U q. `phi` is room for K elements.
template <class F>
double root_product(int64_t K, const F* root, int64_t ld, const F* q, F* phi, F* Uq) {
  double energy = 0.0;
  std::memset(Uq, 0, size_t(padded<F>(K)) * sizeof(F));
  for (int64_t k = 0; k < K; ++k) {
    phi[k] = F(row_dot(K, root + k * ld, q));
    energy += double(phi[k]) * double(phi[k]);
    axpy(0, K, phi[k], root + k * ld, Uq);
  }
  return energy;
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
        step_(scan_steps(K_, args.chunk_size, e)),
        chunks_((e.steps + step_ - 1) / step_),
        ahead_(executor.threads() > 1 && K_ <= kSlotsWithoutForks && e.steps >= 2 * kStepsAhead),
        batch_(ahead_ ? std::max<int64_t>(1, kStepsAhead / step_) : 1),
        columns_(split_columns<A>(C_)),
        ldk_(row_stride<F>(K_)),
        ldl_(row_stride<F>(step_)),
        slots_(scope_.take<ScanChunk<A, F>>((ahead_ ? 2 : 1) * batch_)),
        U_(scope_.take<F>(K_ * ldk_)),
        Qt_(scope_.take<F>(K_ * ldl_)),
        room_(scope_.take<F>(step_ * std::max(ldk_, ldl_))),
        R_(scope_.take<A>(columns_.count * K_ * columns_.width)),
        partial_(scope_.take<double>(columns_.count * batch_)) {
    for (int64_t i = 0; i < (ahead_ ? 2 : 1) * batch_; ++i)
      new (slots_ + i) ScanChunk<A, F>(scope_, step_, K_);
  }

  // Outputs that may be inputs as well are written only when all is well.
  Outcome run() {
    if (!use_sqrt_) {
      load(args_.cov, 0, Rows{}, K_, 0, K_, U_, ldk_);
    } else if (!load_root(args_.cov, 0, K_, U_, ldk_, Workspace::of_thread())) {
      return Outcome::failed;
    }
    executor_.for_each(columns_.count, [&](int64_t block) {
      load(args_.mean, 0, Rows{}, K_, columns_.at(block), columns_.of(block), mean(block),
           columns_.width);
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
    if (!std::isfinite(log_evidence)) return limit_ == kNoLimit ? Outcome::failed : Outcome::harder;

    executor_.for_each(columns_.count, [&](int64_t block) {
      store(args_.mean_out, 0, Rows{}, K_, columns_.at(block), columns_.of(block), mean(block),
            columns_.width);
    });
    const F* cov = U_;
    if (use_sqrt_) {
      F* product = scope_.take<F>(K_ * ldk_);
      gemm<true>(executor_, K_, K_, K_, U_, ldk_, U_, ldk_, product, ldk_, Store::set);
      cov = product;
    }
    store(args_.cov_out, 0, Rows{}, K_, 0, K_, cov, ldk_);
    store_scalar(args_.log_evidence, 0, 0, log_evidence);
    return Outcome::done;
  }

 private:
  static constexpr int64_t kSlotsWithoutForks = 256;  // up to which a product is not worth a fork
  static constexpr int64_t kStepsAhead = 256;         // that are factorised at once

  A* mean(int64_t block) const { return R_ + block * K_ * columns_.width; }
  int64_t in_batch(int64_t batch) const { return std::min(batch_, chunks_ - batch * batch_); }
  ScanChunk<A, F>& slot(int64_t batch, int64_t i) const {
    return slots_[(ahead_ ? batch % 2 : 0) * batch_ + i];
  }

  Outcome factor_batch(int64_t batch, const Executor& executor) {
    for (int64_t i = 0; i < in_batch(batch); ++i) {
      const Outcome outcome = factor(slot(batch, i), (batch * batch_ + i) * step_, executor);
      if (outcome != Outcome::done) return outcome;
    }
    return Outcome::done;
  }

  // Factors of the chunk at step `first`, its read variances, and the covariance after it.
  Outcome factor(ScanChunk<A, F>& s, int64_t first, const Executor& executor) {
    Chunk<F>& c = s.chunk;
    Workspace& workspace = Workspace::of_thread();
    Workspace::Scope scope(workspace);
    const int64_t L = std::min(step_, e_.steps - first);
    F* var = scope.take<F>(padded<F>(L));  // times the decays
    s.first = first;
    load_chunk(c, args_.weights, 0, e_, first, L);
    load(args_.queries, 0, Rows{nullptr, first}, L, 0, K_, s.Q, ldk_);
    transpose(L, K_, s.Q, ldk_, Qt_, ldl_);
    bool ok = true;
    if (use_sqrt_) {
      F* phi = scope.take<F>(K_);
      ok = factor_chunk_sqrt(c, U_, workspace, [&](int64_t t) {
        var[t] = F(root_product(K_, U_, ldk_, s.Q + t * ldk_, phi, room_));
      });
    } else {
      ok = factor_chunk(c, U_, limit_, executor);
    }
    if (!(c.hardness <= limit_)) return Outcome::harder;
    if (!ok) return use_sqrt_ ? Outcome::failed : Outcome::harder;
    if (use_sqrt_) {
      gemm<false>(executor, L, L, K_, c.P, ldk_, Qt_, ldl_, s.inside, ldl_, Store::set,
                  Structure::full, Part::upper);
    } else {
      std::memset(room_, 0, size_t(L * ldl_) * sizeof(F));
      gemm<false>(executor, L, L, K_, c.X, ldk_, Qt_, ldl_, room_, ldl_, Store::set,
                  Structure::full, Part::upper);
      gemm<true>(executor, L, L, L, c.V, ldl_, room_, ldl_, s.inside, ldl_, Store::set,
                 Structure::lower, Part::upper);
    }
    for (int64_t i = 1; i < L; ++i) std::memset(s.inside + i * ldl_, 0, size_t(i) * sizeof(F));
    if (!use_sqrt_) {
      energies(L, s.Q, var, executor);
      subtract_squares(L, s.inside, var);
      downdate(c, U_, executor);
    }
    for (int64_t t = 0; t < L; ++t)  // rounding must not make a variance negative
      store_scalar(args_.read_var_out, 0, first + t, var[t] < F(0) ? 0.0 : var[t] / c.decay[t]);
    s.narrow();
    return Outcome::done;
  }

  // var_t = q_t'U q_t. U is symmetric: of its panels of columns, what lies above the diagonal block
  // counts twice.
  void energies(int64_t L, const F* Q, F* var, const Executor& executor) {
    Workspace::Scope scope(Workspace::of_thread());
    F* twice = scope.take<F>(L * ldk_);
    std::memcpy(twice, Q, size_t(L * ldk_) * sizeof(F));
    for (int64_t t = 0; t < L; ++t) scale(0, K_, 2.0, twice + t * ldk_);
    const Panels panels = Panels::of<F>(K_);
    auto run = [&](int64_t panel) {
      const int64_t j = panels.start(panel) * Simd<F>::width;
      const int64_t n = std::min(K_, panels.start(panel + 1) * Simd<F>::width) - j;
      gemm<false>(L, n, n, Q + j, ldk_, U_ + j * ldk_ + j, ldk_, room_ + j, ldk_, Store::set);
      gemm<false>(L, n, j, twice, ldk_, U_ + j, ldk_, room_ + j, ldk_, Store::add);
    };
    if (K_ > kSlotsWithoutForks) {
      executor.for_each(panels.count, run);
    } else {
      for (int64_t panel = 0; panel < panels.count; ++panel) run(panel);
    }
    for (int64_t t = 0; t < L; ++t) var[t] = F(row_dot(K_, Q + t * ldk_, room_ + t * ldk_));
  }

  // var_t -= sum_i inside(i, t)^2
  void subtract_squares(int64_t L, const F* inside, F* var) const {
    using V = Simd<F>;
    for (int64_t j = 0; j < L; j += V::width) {
      auto sum = V::load(inside + j) * V::load(inside + j);
      for (int64_t i = 1; i < std::min<int64_t>(L, j + V::width); ++i)
        sum += V::load(inside + i * ldl_ + j) * V::load(inside + i * ldl_ + j);
      V::store(var + j, V::load(var + j) - sum);
    }
  }

  // Writes and reads a block of columns of the chunks of a batch.
  void write_block(int64_t batch, int64_t block) {
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t ld = columns_.width, n = columns_.of(block), c0 = columns_.at(block);
    A* D = scope.take<A>(step_ * ld);
    A* E = scope.take<A>(step_ * ld);
    A* R = mean(block);
    for (int64_t i = 0; i < in_batch(batch); ++i) {
      const ScanChunk<A, F>& s = slot(batch, i);
      const ChunkFactors<A>& f = s.factors;
      const int64_t L = s.chunk.L;
      const Rows rows{nullptr, s.first};
      load(args_.values, 0, rows, L, c0, n, D, ld);
      clear_neutral(e_, s.first, L, D, ld);
      innovations(f, L, K_, n, D, R, ld, E);
      A* reads = D;
      gemm<false>(L, n, K_, s.queries, f.ldk, R, ld, reads, ld, Store::set);
      gemm<true>(L, n, L, s.read_factors, f.ldl, E, ld, reads, ld, Store::add, Structure::lower);
      store(args_.reads_out, 0, rows, L, c0, n, reads, ld);
      gemm<true>(K_, n, L, f.P, f.ldk, E, ld, R, ld, Store::add);
      partial_[block * batch_ + i] = weighted_square(L, n, E, ld, s.chunk.decay);
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
  const bool use_sqrt_;
  const double limit_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_, step_, chunks_;
  const bool ahead_;
  const int64_t batch_;
  const Columns columns_;
  const int64_t ldk_, ldl_;
  ScanChunk<A, F>* slots_;
  F *U_, *Qt_, *room_;
  A* R_;
  double* partial_;
};

template <class S>
Outcome scan_adaptively(const CausalScanArgs& args, const Episode& e, const Executor& executor) {
  constexpr bool narrow_state = std::is_same_v<S, float>;
  Outcome outcome = Outcome::harder;
  if (narrow_state)
    outcome = Scan<float, float>(args, e, false, kHardForFloat32Factors, executor).run();
  if (narrow_state && outcome == Outcome::harder && !is_small(e.steps, args.n))
    outcome = Scan<float, double>(args, e, false, kHardForFloat32, executor).run();
  if (outcome == Outcome::harder) {
    const double limit = cholesky_limit(args.mean.dtype);
    outcome = Scan<double, double>(args, e, false, limit, executor).run();
  }
  if (outcome != Outcome::harder) return outcome;
  return Scan<double, double>(args, e, true, kNoLimit, executor).run();
}

inline void causal_scan(const CausalScanArgs& args, const Executor& executor) {
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
    Outcome outcome = Outcome::failed;
    const Episode e = gather_all_steps(scope, item.n.T, 0, item.noise_var, item.mask, item.decay);
    if (rise && e.valid) {
      outcome = args.mean.dtype == Dtype::float32 ? scan_adaptively<float>(item, e, inner)
                                                  : scan_adaptively<double>(item, e, inner);
    }
    if (outcome != Outcome::done) fail(item);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
