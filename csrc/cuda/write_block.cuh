// The write of a block of a memory's columns, chunk by chunk, by a team: that of bayes_write and,
// with reads after every step, of causal_scan.
#pragma once

#include "write_chunk.cuh"

namespace kanerva::cuda {

// A state and its steps: so many, from `first` on, of a row.
struct Item {
  int64_t state = 0, row = 0, first = 0, steps = 0;
  bool valid = true;     // whether the bounds of the sequences rise from 0 to T
  int64_t dynamics = 0;  // whose stationary covariance and gradient of the evidence are its own
};

template <class Args>
constexpr bool kReads =
    std::is_same_v<Args, CausalScanArgs> || std::is_same_v<Args, CausalScanBackwardArgs>;

// Item b of rows of T steps, the same in every thread. Where the bounds are not valid, the first of
// a row's sequences has all of its steps. kIsAlone: the kernel is never started for teams.
template <bool kIsAlone = false>
__device__ inline Item item_in(const Packing& p, int64_t T, int64_t b) {
  if (p.bounds == nullptr) return {b, b, 0, T, true, b};
  bool bad = false;
  for (int64_t i = thread(); i <= p.count; i += threads()) {
    const int64_t x = p.bounds[i * p.stride];
    bad = bad || x < (i > 0 ? p.bounds[(i - 1) * p.stride] : 0);
    bad = bad || (i == 0 && x != 0) || (i == p.count && x != T);
  }
  const int64_t row = b / p.count, i = b % p.count;
  const bool is_bad = kIsAlone ? __syncthreads_or(bad) != 0 : any(bad);
  if (is_bad) return {b, row, 0, i == 0 ? T : 0, false, b};
  const int64_t first = p.bounds[i * p.stride];
  return {b, row, first, p.bounds[(i + 1) * p.stride] - first, true, b};
}

template <bool kIsAlone = false, class Args>
__device__ inline Item item_of(const Args& args, int64_t b) {
  if constexpr (kReads<Args>) {
    return item_in<kIsAlone>(args.packing, args.n.T, b);
  } else {
    return {b, b, 0, args.n.T, true, b};
  }
}

template <class F>
struct Buffers {
  Chunk<F> chunk;
  Mat<F> D, E, R;  // L x width, L x width, K x width
  F* query;        // K; only with reads

  __host__ __device__ Buffers(Arena& arena, int L, int K, int width, bool reads)
      : chunk(arena, L, K),
        D(arena.matrix<F>(L, width)),
        E(arena.matrix<F>(L, width)),
        R(arena.matrix<F>(K, width)),
        query(reads ? arena.take<F>(K) : nullptr) {}
};

// Columns [first, first + count) of a memory, which are block `index` of its columns.
struct ColumnBlock {
  int64_t first;
  int count, index;
};

// By one thread. Rounding must not make a variance negative.
__device__ inline void store_variance(const View& var, int64_t row, int64_t t, double x) {
  store_scalar(var, row, t, x < 0.0 ? 0.0 : x);
}

// The variances of the queries W, given A = tril(Q P') in S and Q U in X: by a warp each. No
// barrier.
template <class F>
__device__ __noinline__ void store_read_variances(const View& var, int64_t row, int64_t first,
                                                  int L, int K, const Chunk<F>& c) {
  for (int t = warp(); t < L; t += warps()) {
    double sum = 0.0;
    for (int k = lane(); k < K; k += 32) sum += double(c.W(t, k)) * double(c.X(t, k));
    for (int i = lane(); i <= t; i += 32) sum -= double(c.S(t, i)) * double(c.S(t, i));
    sum = warp_sum(sum);
    if (lane() == 0) store_variance(var, row, first + t, sum / c.decay[t]);
  }
}

// The variance of query t of a chunk from the root that its step leaves; `query` is room for K.
// Leaves the team synchronised.
template <class F>
__device__ __noinline__ void store_root_variance(const CausalScanArgs& args, int64_t row,
                                                 int64_t first, int t, const Chunk<F>& c,
                                                 F* query) {
  const int K = int(args.n.K);
  load(args.queries, row, first + t, 0, 1, K, Mat<F>{query, K});
  sync();
  double squares = 0.0;
  for (int k = warp(); k < K; k += warps()) {
    F sum = 0;
    for (int j = lane(); j < K; j += 32) sum += c.U(k, j) * query[j];
    sum = warp_sum(sum);
    if (lane() == 0) squares += double(sum) * double(sum);
  }
  squares = team_sum(squares);
  if (thread() == 0) store_variance(args.read_var_out, row, first + t, squares / c.decay[t]);
}

// The write of one item's columns in arithmetic F. `evidence` is their share of the log evidence;
// the first block stores the covariance and the variances of reads. Leaves the team synchronised.
template <class F, class Args>
__device__ Outcome write_block(const Args& args, const Item& item, const ColumnBlock& columns,
                               int steps, int width, Arena arena, bool use_sqrt, double limit,
                               double& evidence) {
  constexpr bool reads = kReads<Args>;
  const int K = int(args.n.K), n = columns.count;
  const int64_t b = item.state, c0 = columns.first;
  const bool stores_cov = columns.index == 0;
  const Buffers<F> m(arena, steps, K, width, reads);
  const Chunk<F>& c = m.chunk;
  if (use_sqrt) {
    if (!load_root(args.cov, b, K, c.U, m.R.data)) return Outcome::failed;
  } else {
    load_covariance(args.cov, b, K, c.U);
  }
  load(args.mean, b, 0, c0, K, n, m.R);
  double squares = 0.0, logs = 0.0;  // of this thread
  for (int64_t passed = 0; passed < item.steps; passed += steps) {
    const int64_t first = item.first + passed;
    const int L = int(passed + steps <= item.steps ? steps : item.steps - passed);
    if (!load_chunk(args, item.row, first, L, c)) return Outcome::failed;
    load(args.values, item.row, first, c0, L, n, m.D, c.kept);
    double hardness;
    if (use_sqrt) {
      const bool ok = factor_chunk_sqrt(L, K, c, hardness, [&](int t) {
        if constexpr (reads)
          if (stores_cov) store_root_variance(args, item.row, first, t, c, m.query);
      });
      if (!ok) return Outcome::failed;
    } else if (!factor_chunk(L, K, c, limit, hardness)) {
      return Outcome::harder;
    }
    product<false, false>(L, n, K, c.W, m.R, [&](int i, int j, F x) { m.D(i, j) -= x; });
    sync();
    product<false, false>(L, n, L, c.V, m.D, [&](int i, int j, F x) {
      m.E(i, j) = x;
      squares += c.decay[i] * double(x) * double(x);
    });
    for (int t = thread(); t < L; t += threads())
      if (c.kept[t]) logs += log(double(c.pivots[t])) - log(c.decay[t]) + kLog2Pi;
    if constexpr (reads) load(args.queries, item.row, first, 0, L, K, c.W);  // W, S, X, D are free
    sync();
    if constexpr (reads) {
      product<false, true>(L, L, K, c.W, c.P,
                           [&](int i, int j, F x) { c.S(i, j) = j <= i ? x : F(0); });
      product<false, false>(L, n, K, c.W, m.R, [&](int i, int j, F x) { m.D(i, j) = x; });
      if (stores_cov && !use_sqrt)
        product<false, false>(L, K, K, c.W, c.U, [&](int i, int j, F x) { c.X(i, j) = x; });
      sync();
      product<false, false>(L, n, L, c.S, m.E, [&](int i, int j, F x) { m.D(i, j) += x; });
      if (stores_cov && !use_sqrt)
        store_read_variances(args.read_var_out, item.row, first, L, K, c);
    }
    product<true, false>(K, n, L, c.P, m.E, [&](int i, int j, F x) { m.R(i, j) += x; });
    if (!use_sqrt) downdate(L, K, c);
    sync();
    if constexpr (reads) store(args.reads_out, item.row, first, c0, L, n, m.D);
  }
  squares = team_sum(squares);
  logs = team_sum(logs);
  evidence = -0.5 * (squares + double(n) * logs);
  // Values that are not finite, or whose squares overflow in F, show here.
  if (!(evidence < kInfinite && evidence > -kInfinite))
    return limit == kNoLimit ? Outcome::failed : Outcome::harder;
  store(args.mean_out, b, 0, c0, K, n, m.R);
  if (stores_cov && use_sqrt) {
    with_type(args.cov_out, [&](auto* data) {
      product<true, false>(K, K, K, c.U, c.U, [&](int i, int j, F x) {
        data[offset(args.cov_out, b, i, j)] =
            narrow<std::remove_reference_t<decltype(*data)>>(double(x));
      });
    });
  } else if (stores_cov) {
    store(args.cov_out, b, 0, 0, K, K, c.U);
  }
  return Outcome::done;
}

// What the fast arithmetic left undone. Not inlined: it must not take registers from the fast path.
template <class Args>
__device__ __noinline__ Outcome write_robustly(const Args& args, const Item& item,
                                               const ColumnBlock& columns, int steps, int width,
                                               Arena arena, bool only_sqrt, double& evidence) {
  const double limit = cholesky_limit(args.mean.dtype);
  Outcome outcome = Outcome::harder;
  for (int step = only_sqrt; step < 2 && outcome == Outcome::harder; ++step) {
    const bool use_sqrt = step == 1;
    outcome = write_block<double>(args, item, columns, steps, width, arena, use_sqrt,
                                  use_sqrt ? kNoLimit : limit, evidence);
    sync();
  }
  return outcome;
}

// Columns of an item's results = NaN.
template <class Args>
__device__ inline void fill_with_nan(const Args& args, const Item& item,
                                     const ColumnBlock& columns) {
  const int K = int(args.n.K);
  fill(args.mean_out, item.state, 0, columns.first, K, columns.count, NAN);
  if (columns.index == 0) fill(args.cov_out, item.state, 0, 0, K, K, NAN);
  if constexpr (kReads<Args>) {
    fill(args.reads_out, item.row, item.first, columns.first, item.steps, columns.count, NAN);
    if (columns.index == 0) fill(args.read_var_out, item.row, item.first, 0, item.steps, 1, NAN);
  }
}

// `partials`: the evidence of every block where a memory has more than one, else null.
template <class Args>
__device__ inline void finish_block(const Args& args, const Item& item, const ColumnBlock& columns,
                                    int blocks, Outcome outcome, double evidence,
                                    double* partials) {
  if (outcome != Outcome::done) {
    evidence = NAN;
    fill_with_nan(args, item, columns);
  }
  if (thread() == 0) {
    if (partials != nullptr) {
      partials[item.state * blocks + columns.index] = evidence;
    } else {
      store_scalar(args.log_evidence, item.state, 0, evidence);
    }
  }
}

// Adds up the evidence of a memory's blocks; one that failed makes the item NaN.
template <class Args>
__device__ inline void finish_item(const Args& args, const Item& item, int blocks,
                                   const double* partials) {
  double evidence = 0.0;
  for (int i = 0; i < blocks; ++i) evidence += partials[item.state * blocks + i];
  if (!(evidence < kInfinite && evidence > -kInfinite)) {
    evidence = NAN;
    fill_with_nan(args, item, {0, int(args.n.C), 0});
  }
  if (thread() == 0) store_scalar(args.log_evidence, item.state, 0, evidence);
}

}  // namespace kanerva::cuda
